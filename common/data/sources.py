"""Where a data set comes from: found, downloaded, or collected here; and how a run's config records that."""

import contextlib
import functools
import json
import pathlib
import time
from typing import Any

from common import actions, minari_envs, mujoco_versions
from common.arguments import RunArgs
from common.data import collect, d4rl_hdf5, minari_sets, ogbench_npz, own_npz, shards
from common.env_ids import HDF5_SUFFIXES, EnvSpec
from common.envs import make_evaluation_env, try_out, try_to_render
from common.errors import UserError, describe_os_error, expanded
from common.files import found, found_or_made, write_whole
from common.replay import Dataset

import tqdm

OFFICIAL_SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MIRROR = "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main"
KNOWN_SHA256 = d4rl_hdf5.known_sha256() | {
    "cube-double-play-v0.npz": "a73d1a33d029cedb8bc170ef94791ec585fa2d9450096f4f2a02b8cfbcf608c9",
    "cube-double-play-v0-val.npz": "b1fcdf4bd40750351a58d0d491d6be198366ce898f0c6a2e4cb5db331966013e",
}
DOWNLOAD_TIMEOUT_S = (5, 30)  # connect, read: the official server has been down for weeks at a time
SLOW_AFTER_S, SLOW_BYTES_A_SECOND = 60, 20_000  # a download that is slower than that after so long is given up
READERS = {"ogbench": ogbench_npz, "d4rl_hdf5": d4rl_hdf5, "gymnasium": own_npz}  # of one file
SOURCES = ("official", "mirror", "collected")
Provenance = dict[str, Any]


def load(spec: EnvSpec, args: RunArgs) -> tuple[Dataset, Provenance]:
    """Find, download or collect the data set of an environment, check it and relabel it for the task.

    Args:
        spec: environment and task.
        args: `dataset_path` is read and no other, if given; else `data_source`, `dataset_dir`, `collect_episodes` and
            `collect_workers` say where from. `own_rewards` are taken from a file instead of computing the task's.
            Of a folder of shards `num_shards` are taken, which `data_memory` may leave on the disk.

    Returns:
        The data set (NumPy arrays, float32, images uint8) and where it came from.

    Raises:
        UserError: the file is missing, damaged or not this environment's; nothing could be downloaded or collected.
    """
    if args.own_rewards and spec.suite != "ogbench":
        raise UserError(f"--own-rewards is for OGBench's environments, not for {spec.name}")
    if spec.is_visual:
        try_to_render(spec)  # or its policies could not be evaluated
    if args.dataset_path is None:
        _check_shards(args, may_be=spec.size != "" or args.data_source == "collect")
        path = locate(spec, args)
    else:
        path = _given(spec, expanded(args.dataset_path))
    are_shards = spec.suite == "ogbench" and path.is_dir()
    _check_shards(args, may_be=are_shards)
    if are_shards:
        return _load_shards(spec, path, args)
    if spec.suite == "ogbench":
        dataset, digest = ogbench_npz.read(spec, path, args.own_rewards)
        return dataset, provenance(path, digest)
    rescaled = _try_out(spec, path)
    if spec.suite == "d4rl":
        return minari_sets.read(spec, path), minari_sets.provenance(path) | rescaled
    dataset, digest = READERS[spec.suite].read(spec, path)
    return dataset, provenance(path, digest) | rescaled


def _check_shards(args: RunArgs, may_be: bool) -> None:
    """Raises `UserError` if something is asked for that only a folder of shards has."""
    if args.num_shards is not None and not may_be:
        raise UserError(f"--num-shards {args.num_shards} is for a folder of OGBench's shards")
    if args.data_memory == "disk" and not may_be:
        raise UserError("--data-memory disk is for a folder of OGBench's shards")


def _given(spec: EnvSpec, path: pathlib.Path) -> pathlib.Path:
    """The path of --dataset-path. Raises `UserError` if there cannot be this environment's data."""
    problem = None
    if spec.suite == "d4rl":
        problem = None if (path / "data").is_dir() else "not the folder of a Minari data set"
    elif path.is_dir() and spec.suite != "ogbench":
        problem = f"a folder, and the data of {spec.name} is a file"
    elif not path.exists():
        problem = "no such file"
    if problem is not None:
        raise UserError(f"--dataset-path {path}: {problem}")
    return path


def _load_shards(spec: EnvSpec, folder: pathlib.Path, args: RunArgs) -> tuple[Dataset, Provenance]:
    """Those of a folder, or the first of them."""
    paths = shards.find(folder, args.num_shards)
    dataset, digests = shards.read(spec, paths, args.own_rewards, args.data_memory)
    sources = [_source(path, digest) for path, digest in zip(paths, digests, strict=True)]
    return dataset, shards.provenance(folder, paths, digests, sources, dataset.num_transitions)


def _try_out(spec: EnvSpec, path: pathlib.Path) -> Provenance:
    """Try the environment out before its data is read; of actions that are rescaled, the bounds."""
    with contextlib.closing(make_evaluation_env(spec, path)) as env:
        try_out(env)
        if env.action_bounds is None:
            return {}
        bounds = actions.describe(env.action_bounds)
    print(f"note: actions of {spec.name} lie in {bounds}: learned in [-1, 1], and rescaled to act", flush=True)
    return {"action_bounds": env.action_bounds}


def locate(spec: EnvSpec, args: RunArgs) -> pathlib.Path:
    """The data set's file or folder, in the first place that has it; each step is announced in one line."""
    if spec.size and args.data_source != "collect":
        return _locate_shards(spec, expanded(args.dataset_dir) / spec.dataset_name, args.num_shards)
    if spec.suite == "gymnasium":
        raise UserError(f"--env-id {spec.name}: its data has to be given, with --dataset-path FILE.npz")
    may_collect = args.data_source == "auto" and collect.is_collectable(spec)
    if may_collect and spec.env_name == "cube-octuple":  # of which there are 100 million transitions or none
        may_collect = args.collect_episodes is not None
    folder = expanded(args.dataset_dir) if spec.suite == "ogbench" else None  # Minari and d4rl have their own

    def collect_here() -> pathlib.Path:
        return collect.collect_data(spec, folder, episodes=args.collect_episodes, workers=args.collect_workers)

    if args.data_source == "collect":
        return collect_here()
    places = {"d4rl": minari_envs.local_path, "d4rl_hdf5": d4rl_hdf5.local_path}
    original = folder / f"{spec.dataset_name}.npz" if folder else places[spec.suite](spec.name)

    def find() -> pathlib.Path | None:
        there = found(original)
        if there or not may_collect:
            return there
        hint = " (the original data instead: --data-source download)"
        return collect.find_collected(spec, folder, args.collect_episodes, hint=hint)

    def make() -> pathlib.Path:
        try:
            return minari_sets.download(spec, original) if spec.suite == "d4rl" else _download(spec, original)
        except UserError as error:
            if not may_collect:
                raise
            print(f"data: {str(error).split(';')[0]}", flush=True)
            return collect_here()

    return found_or_made(original, find, make)


def _locate_shards(spec: EnvSpec, folder: pathlib.Path, num_shards: int | None) -> pathlib.Path:
    """The folder of a set of 100 million transitions, where the shards that are missing are downloaded, one by one."""
    names = spec.shard_names
    if num_shards is not None and num_shards > len(names):
        raise UserError(f"--num-shards {num_shards}: {spec.family} has {len(names)}")
    wanted = [folder / name for name in names[:num_shards]]
    missing = [path for path in wanted if not path.is_file()]
    download = f", of which {len(missing)} are missing and downloaded" if missing else ""
    print(f"data: {len(wanted)} shards in {folder}{download}", flush=True)
    for path in missing:
        found_or_made(path, lambda path=path: found(path), lambda path=path: _download(spec, path))
    return folder


def _download(spec: EnvSpec, path: pathlib.Path) -> pathlib.Path:
    """Download a file of OGBench or D4RL, check that it is the environment's data, and only then give it its name.

    Raises:
        UserError: no server has it, or it cannot be written.
    """
    import requests

    name = f"{spec.dataset_name}/{path.name}" if spec.size else path.name
    urls = {"official": f"{OFFICIAL_SERVER}/{name}", "mirror": f"{MIRROR}/{name}"}
    if spec.suite == "d4rl_hdf5":
        urls = {"official": f"{d4rl_hdf5.SERVER}/{d4rl_hdf5.remote_name(spec.name)}"}
    for name, url in urls.items():
        server = url.removesuffix(f"/{path.name}")
        try:
            write_whole(path, functools.partial(_fetch, spec, name, url, path))
            print(f"data: downloaded {url}", flush=True)
            return path
        except requests.exceptions.HTTPError as error:
            problem = f"HTTP status {error.response.status_code}"
        except requests.exceptions.Timeout:
            problem = "no answer in time"
        except requests.exceptions.RequestException as error:
            problem = f"no connection ({type(error).__name__})"
        except UserError:
            problem = "what arrived is damaged, or not the expected data"
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {describe_os_error(error)}") from error
        print(f"data: {name} {server}: {problem}", flush=True)
    other = "collect it: --data-source collect"
    if spec.size:
        other = "collect some: --data-source collect --collect-episodes N; shards that have arrived are kept"
    elif not collect.is_collectable(spec):
        other = "name it with --dataset-path: no oracle collects this data"
    raise UserError(f"could not download {path.name}; put it into {path.parent}, or {other}")


def _fetch(spec: EnvSpec, source: str, url: str, path: pathlib.Path, temporary: pathlib.Path) -> None:
    """Fill and check the file that is to become `path`, and write its provenance.

    Raises:
        requests.exceptions.RequestException: it does not come, or only trickles: no read ever times out then.
        UserError: it is not what was expected.
    """
    import requests

    with requests.get(url, stream=True, timeout=DOWNLOAD_TIMEOUT_S) as response, temporary.open("wb") as file:
        response.raise_for_status()
        size, begun = int(response.headers.get("Content-Length", 0)) or None, time.monotonic()
        with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False) as bar:
            for chunk in response.iter_content(2**16):
                bar.update(file.write(chunk))
                if (passed := time.monotonic() - begun) > SLOW_AFTER_S and bar.n < passed * SLOW_BYTES_A_SECOND:
                    raise requests.exceptions.Timeout
    _, digest = READERS[spec.suite].read(spec, temporary)  # most official files have no published checksum
    if digest != KNOWN_SHA256.get(path.name, digest):
        raise UserError(f"{url}: its SHA-256 is not the official file's")
    text = json.dumps({"source": source, "url": url, "sha256": digest}, indent=2) + "\n"
    write_whole(path.with_suffix(".json"), lambda json_file: json_file.write_text(text))


def provenance(path: pathlib.Path, digest: str) -> Provenance:
    """Where a data file came from (the JSON file beside it says so, if it speaks of this very file) and its SHA-256."""
    return _source(path, digest) | {"path": str(path.absolute()), "sha256": digest}


def _source(path: pathlib.Path, digest: str) -> Provenance:
    """What is known of how a data file was made."""
    suite = "d4rl_hdf5" if path.suffix in HDF5_SUFFIXES else "ogbench"
    made_with = {"versions": {"mujoco": mujoco_versions.OFFICIAL_MUJOCO[suite]}}
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.with_suffix(".json").read_text())
        if isinstance(record, dict) and record.get("sha256") == digest and record.get("source") in SOURCES:
            return record if record["source"] == "collected" else record | made_with
    known = KNOWN_SHA256.get(path.name)
    if known == digest:
        return {"source": "official"} | made_with
    if known is not None:
        print(f"warning: {path} is not the official file of that name: its SHA-256 differs", flush=True)
    return {"source": "file"}


def describe_source(origin: Provenance) -> str:
    """For people: 'collected: 300 (official: 1000) episodes, seed 0', 'official: 10 shards, 10,000,000 transitions'."""
    if "shards" in origin:
        of_one = describe_source({name: value for name, value in origin.items() if name != "shards"})
        size = f"{origin['shards']} shards, {origin['transitions']:,} transitions"
        return f"{of_one}{', ' if ':' in of_one else ': '}{size}"
    if origin["source"] == "collected" and "policy" in origin:
        return f"collected: {origin['episodes']} episodes of a policy trained with DROL, seed {origin['seed']}"
    if origin["source"] == "collected":
        return (
            f"collected: {origin['episodes']} (official: {origin['official_episodes']}) episodes, seed {origin['seed']}"
        )
    if origin["source"] == "minari":
        return f"Minari: {origin['dataset']}, {origin['episodes']} episodes"
    return origin["source"]


def describe(origin: Provenance) -> str:
    """For people: 'collected: 300 (official: 1000) episodes, seed 0 (/data/...npz)'."""
    return f"{describe_source(origin)} ({origin['path']})"
