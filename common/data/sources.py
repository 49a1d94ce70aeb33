"""Offline data: where a data set comes from, and whether it is sound."""

import contextlib
import json
import pathlib
import time
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import gymnasium
import numpy as np
import tqdm

from common import actions, minari_envs, mujoco_versions
from common.arguments import DataSource
from common.data import collect, hands
from common.env_ids import EnvSpec
from common.envs import ACTION_BOUND, make_env, make_evaluation_env, make_own_env, try_out
from common.errors import UserError, describe_os_error, expanded
from common.files import check_archive, making, sha256, write_whole
from common.replay import Dataset

OFFICIAL_SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MIRROR = "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main"
KNOWN_SHA256 = {
    "cube-double-play-v0.npz": "a73d1a33d029cedb8bc170ef94791ec585fa2d9450096f4f2a02b8cfbcf608c9",
    "cube-double-play-v0-val.npz": "b1fcdf4bd40750351a58d0d491d6be198366ce898f0c6a2e4cb5db331966013e",
}
DOWNLOAD_TIMEOUT_S = (5, 30)  # connect, read: the official server has been down for weeks at a time
SLOW_AFTER_S, SLOW_BYTES_A_SECOND = 60, 20_000  # a download that is slower than that after so long is given up

# What NumPy and the zip format raise on truncated or altered files.
DAMAGE = (ValueError, TypeError, IndexError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)

SOURCES = ("official", "mirror", "collected")
CUTS = ("timeouts", "truncations")  # D4RL's and Gymnasium's flags of a trajectory that was cut
Provenance = dict[str, Any]


def load(
    spec: EnvSpec,
    *,
    dataset_path: pathlib.Path | None,
    dataset_dir: pathlib.Path,
    source: DataSource,
    collect_episodes: int | None,
    collect_workers: int,
    own_rewards: bool = False,
) -> tuple[Dataset, Provenance]:
    """Find, download or collect the data set of an environment, check it and relabel it for the task.

    Args:
        spec: environment and task.
        dataset_path: this file (for Minari, folder) and no other, if given.
        dataset_dir: folder that is searched, downloaded to and collected into.
        source: 'auto' takes a file that is there, else downloads, else collects; the others do only what they say.
        collect_episodes: size of a collected data set; the official size if None.
        collect_workers: worker processes for collection.
        own_rewards: take those of an OGBench file, and its masks, instead of computing the task's.

    Returns:
        The data set (NumPy arrays, float32) and where it came from.

    Raises:
        UserError: the file is missing, damaged or not this environment's; nothing could be downloaded or collected.
    """
    if own_rewards and spec.suite != "ogbench":
        raise UserError(f"--own-rewards is for OGBench's environments, not for {spec.name}")
    if spec.suite == "d4rl":
        return _load_minari(spec, dataset_path, source, collect_episodes, collect_workers)
    if spec.suite == "gymnasium" and dataset_path is None:
        raise UserError(f"--env-id {spec.name}: its data has to be given, with --dataset-path FILE.npz")
    if dataset_path is not None:
        path = expanded(dataset_path)
        if not path.is_file():
            raise UserError(f"--dataset-path {path}: no such file")
    else:
        path = _locate(spec, expanded(dataset_dir), source, collect_episodes, collect_workers)
    if spec.suite == "ogbench":
        return read_ogbench(spec, path, own_rewards), provenance(path)
    rescaled = _try_out(spec, path)
    return read_transitions(spec, path), provenance(path) | rescaled


def _try_out(spec: EnvSpec, path: pathlib.Path) -> Provenance:
    """Try the environment out before its data is read; of actions that are rescaled, the bounds."""
    with contextlib.closing(make_evaluation_env(spec, path)) as env:
        try_out(env)
        if env.action_bounds is None:
            return {}
        bounds = actions.describe(env.action_bounds)
    print(f"note: actions of {spec.name} lie in {bounds}: learned in [-1, 1], and rescaled to act", flush=True)
    return {"action_bounds": env.action_bounds}


def _load_minari(
    spec: EnvSpec,
    dataset_path: pathlib.Path | None,
    source: DataSource,
    collect_episodes: int | None,
    collect_workers: int,
) -> tuple[Dataset, Provenance]:
    """A D4RL or other Minari data set; `dataset_path` is a folder here."""
    if dataset_path is not None:
        path = expanded(dataset_path)
        if not (path / "data").is_dir():
            raise UserError(f"--dataset-path {path}: not the folder of a Minari data set")
    else:
        path = _locate_minari(spec, source, collect_episodes, collect_workers)
    rescaled = _try_out(spec, path)
    arrays = minari_envs.read(spec, path)
    arrays["actions"] = np.clip(arrays["actions"], -ACTION_BOUND, ACTION_BOUND)
    return Dataset(**arrays), minari_envs.provenance(path) | rescaled


def _locate_minari(
    spec: EnvSpec, source: DataSource, collect_episodes: int | None, collect_workers: int
) -> pathlib.Path:
    """The folder of the data set, from the first place that has it; each step is announced in one line."""
    if not hands.is_collectable(spec):
        if source == "collect":
            raise UserError(
                f"--data-source collect: {spec.name} is a Minari data set, which cannot be collected here "
                "(the Adroit hands' expert sets can)"
            )
        return minari_envs.locate(spec)
    if source == "auto" and not (minari_envs.local_path(spec.name) / "data").is_dir():
        collected = minari_envs.local_path(hands.dataset_id(spec, collect_episodes, seed=0))
        if (collected / "data").is_dir():
            print(f"data: found {collected} (D4RL's own data instead: --data-source download)", flush=True)
            return collected
    if source != "collect":
        try:
            return minari_envs.locate(spec)
        except UserError as error:
            if source == "download":
                raise
            print(f"data: {str(error).split(';')[0]}", flush=True)
    return hands.collect(spec, episodes=collect_episodes, workers=collect_workers)


def provenance(path: pathlib.Path) -> Provenance:
    """Where a data file came from (the JSON file beside it says so, if it speaks of this very file) and its SHA-256."""
    origin: Provenance = {"path": str(path.absolute()), "sha256": sha256(path)}
    return _source(path, origin["sha256"]) | origin


def _source(path: pathlib.Path, digest: str) -> Provenance:
    """What is known of how a data file was made."""
    of_2024 = {"versions": {"mujoco": mujoco_versions.OFFICIAL_MUJOCO}}
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.with_suffix(".json").read_text())
        if isinstance(record, dict) and record.get("sha256") == digest and record.get("source") in SOURCES:
            return record if record["source"] == "collected" else record | of_2024
    known = KNOWN_SHA256.get(path.name)
    if known == digest:
        return {"source": "official"} | of_2024
    if known is not None:
        print(f"warning: {path} is not the official file of that name: its SHA-256 differs", flush=True)
    return {"source": "file"}


def describe_source(origin: Provenance) -> str:
    """For people: 'collected: 300 (official: 1000) episodes, seed 0'."""
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


def _locate(
    spec: EnvSpec,
    dataset_dir: pathlib.Path,
    source: DataSource,
    collect_episodes: int | None,
    workers: int,
) -> pathlib.Path:
    """The data file, from the first place that has it; each step is announced in one line."""
    official, collected = dataset_dir / f"{spec.dataset_name}.npz", None
    if collect.is_collectable(spec):
        episodes = collect.official_size(spec).episodes if collect_episodes is None else collect_episodes
        collected = collect.collected_path(spec, dataset_dir, episodes, seed=0)

    def find() -> pathlib.Path | None:
        if source != "collect" and official.is_file():
            print(f"data: found {official}", flush=True)
            return official
        if source != "download" and collected is not None and collected.is_file():
            print(f"data: found {collected} (official data instead: --data-source download)", flush=True)
            return collected
        return None

    if (found := find()) is not None:
        return found
    if source == "collect":
        collect.check_collectable(spec)
    collect.check_folder(dataset_dir)
    with making(official):
        if (found := find()) is not None:
            return found
        if source != "collect":
            for name, url in (("official", OFFICIAL_SERVER), ("mirror", MIRROR)):
                try:
                    return _download(spec, name, f"{url}/{official.name}", official)
                except _DownloadError as error:
                    print(f"data: {name} {url}: {error}", flush=True)
            if source == "download":
                advice = f"put it into {dataset_dir}, or collect it: --data-source collect"
                raise UserError(f"could not download {official.name}; {advice}")
        collect.check_collectable(spec)
        return collect.collect_once(spec, dataset_dir, episodes=collect_episodes, workers=workers)


class _DownloadError(Exception):
    pass


def _download(spec: EnvSpec, source: str, url: str, path: pathlib.Path) -> pathlib.Path:
    """Download to a temporary file, check that it is the environment's data, and rename it into place.

    Raises:
        _DownloadError: in one line, why there is no file.
    """
    import pooch
    import requests

    class Bar(tqdm.tqdm):
        """Also gives up a server that only trickles: a read never times out then, and neither would the download."""

        begun = time.monotonic()

        def __bool__(self) -> bool:
            return True  # pooch asks, and tqdm takes that for its length

        def update(self, n: int = 1) -> bool | None:
            shown = super().update(n)
            if (passed := time.monotonic() - self.begun) > SLOW_AFTER_S and self.n < passed * SLOW_BYTES_A_SECOND:
                raise requests.exceptions.Timeout
            return shown

    def fetch_and_check(url: str, output_file: str, pup: Any) -> None:
        bar = Bar(unit="B", unit_scale=True, desc=path.name, leave=False)
        with bar:
            pooch.HTTPDownloader(progressbar=bar, timeout=DOWNLOAD_TIMEOUT_S)(url, output_file, pup)
        _read_checked(spec, pathlib.Path(output_file))  # most official files have no published checksum
        record = {"source": source, "url": url, "sha256": sha256(pathlib.Path(output_file))}
        text = json.dumps(record, indent=2) + "\n"
        write_whole(path.with_suffix(".json"), lambda temporary: temporary.write_text(text))

    pooch.get_logger().setLevel("ERROR")
    try:
        pooch.retrieve(url, KNOWN_SHA256.get(path.name), path.name, path.parent, downloader=fetch_and_check)
        print(f"data: downloaded {url}", flush=True)
    except requests.exceptions.HTTPError as error:
        raise _DownloadError(f"HTTP status {error.response.status_code}") from error
    except requests.exceptions.Timeout as error:
        raise _DownloadError("no answer in time") from error
    except requests.exceptions.RequestException as error:
        raise _DownloadError(f"no connection ({type(error).__name__})") from error
    except (UserError, *DAMAGE) as error:
        raise _DownloadError("what arrived is damaged, or not the expected data") from error
    except OSError as error:
        raise UserError(f"cannot write to --dataset-dir: {describe_os_error(error)}") from error
    return path


def read_ogbench(spec: EnvSpec, path: pathlib.Path, own_rewards: bool = False) -> Dataset:
    """Read a file in OGBench's format and relabel it with the rewards and masks of one task.

    The relabelling is the ogbench package's own: reward = -(number of unmet sub-goals), mask 0 on success, both on the
    state before the step. Rewards and masks that the file has are not used, and it says so; or they are, if asked for.

    Raises:
        UserError: the file is damaged, lacks a key, or holds what cannot be this environment's data.
    """
    from ogbench.relabel_utils import relabel_dataset

    data, env, own = _read_checked(spec, path)
    if own_rewards:
        data |= _checked(path, data | own, {"rewards": (), "masks": ()}, "--own-rewards")
        _check_masks(path, data["masks"])
    else:
        if own:
            unused = f"{' and '.join(own)} of {path} are not used"
            print(f"note: {unused}: those of {spec.name} are computed instead (else: --own-rewards)", flush=True)
        relabel_dataset(spec.gym_id, env, data)
    env.close()
    return Dataset(
        observations=data["observations"],
        actions=np.clip(data["actions"], -ACTION_BOUND, ACTION_BOUND),
        rewards=data["rewards"].astype(np.float32),
        masks=data["masks"].astype(np.float32),
        transitions=np.flatnonzero(data["valids"]).astype(np.int32),
    )


def read_transitions(spec: EnvSpec, path: pathlib.Path) -> Dataset:
    """Read an npz file of transitions of one's own: its rewards are taken as they are.

    `observations` [n, o], `actions` [n, a], `rewards` [n]; `terminals` [n], 1 in the last row of a trajectory, however
    it ended; `masks` [n], 0 where the task is complete, or `terminations` [n], 1 there. With `next_observations` [n, o]
    every row is a transition. Without, the next row is the successor, and the last one of a trajectory is a transition
    where its mask is 0, which asks for no successor. Trap: where there are `timeouts` (D4RL's) or `truncations`, they
    end trajectories, too, and `terminals` are 1 where the task is complete.

    Raises:
        UserError: the file is damaged, lacks a key, or holds what cannot be this environment's data.
    """
    env = make_own_env(spec.name)
    observation_shape, action_shape = env.observation_space.shape, env.action_space.shape
    bounds = actions.bounds_of(env.action_space, spec.name)
    env.close()
    data = _read_npz(path)
    widths = {"observations": observation_shape, "actions": action_shape, "rewards": (), "terminals": ()}
    widths |= {"next_observations": observation_shape} if "next_observations" in data else {}
    cuts = [key for key in CUTS if key in data]
    complete = next((key for key in ("masks", "terminations") if key in data), "terminals" if cuts else "masks")
    widths |= dict.fromkeys((complete, *cuts), ())
    _note_unread(path, data.keys() - widths.keys())
    data = _checked(path, data, widths, spec.name)
    masks = data["masks"] if complete == "masks" else 1 - data[complete]
    _check_masks(path, masks)
    unit_actions = actions.to_unit(data["actions"], bounds)
    _check_actions(path, unit_actions, bounds)

    observations, successors = data["observations"], data.get("next_observations")
    ends = np.any([data[key] != 0 for key in ("terminals", *cuts)], axis=0)
    if successors is None:
        starts = ~ends | (masks == 0)
        successors = np.concatenate([observations[1:], observations[-1:]])
        if not ends[-1]:
            raise UserError(f"{path}: the last trajectory does not end (terminals[-1] is 0); the file is truncated")
    else:
        starts = np.ones(len(ends), bool)
        ends = ends | np.append((successors[:-1] != observations[1:]).any(axis=1), True)
    if not starts.any():
        raise UserError(f"{path}: it holds no transition")
    # In a `Dataset` the successor is the next row: after each end there is one more.
    rows = np.arange(len(ends)) + np.cumsum(ends) - ends
    num_rows = len(ends) + ends.sum()

    def in_rows(array: np.ndarray) -> np.ndarray:
        spread = np.zeros((num_rows, *array.shape[1:]), np.float32)
        spread[rows] = array
        return spread

    all_observations = in_rows(observations)
    all_observations[rows[ends] + 1] = successors[ends]
    return Dataset(
        observations=all_observations,
        actions=in_rows(np.clip(unit_actions, -ACTION_BOUND, ACTION_BOUND)),
        rewards=in_rows(data["rewards"]),
        masks=in_rows(masks),
        transitions=rows[starts].astype(np.int32),
    )


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises `UserError` if it cannot be read."""
    try:
        check_archive(path)
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except OSError as error:
        raise UserError(f"cannot read {describe_os_error(error)}") from error
    except DAMAGE as error:
        raise UserError(f"{path}: damaged or not an npz file ({error})") from error


def _checked(
    path: pathlib.Path, data: dict[str, np.ndarray], widths: dict[str, tuple[int, ...]], needed_by: str
) -> dict[str, np.ndarray]:
    """These arrays as training gets them, in float32.

    Raises:
        UserError: one is missing, or not of finite numbers [rows, *width], rows as in observations.
    """
    checked = {}
    for key, width in widths.items():
        if key not in data:
            raise UserError(f"{path}: {key} is missing; {needed_by} needs it")
        if data[key].shape[1:] != width or data[key].ndim == 0:
            raise UserError(f"{path}: {key} has shape {data[key].shape}, {needed_by} needs (rows, {str(width)[1:-1]})")
        if len(data[key]) != len(data["observations"]):
            raise UserError(f"{path}: {len(data[key])} rows of {key} but {len(data['observations'])} of observations")
        if data[key].dtype.kind not in "fiub":
            raise UserError(f"{path}: {key} holds {data[key].dtype}, not numbers")
        with np.errstate(over="ignore"):  # to infinity
            checked[key] = data[key].astype(np.float32, copy=False)
        if not (finite := np.isfinite(checked[key])).all():
            row = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
            raise UserError(f"{path}: NaN or infinity in {key}, first in row {row} (as float32)")
    if len(data["observations"]) == 0:
        raise UserError(f"{path}: it holds no transition")
    return checked


def _note_unread(path: pathlib.Path, keys: Collection[str]) -> None:
    if keys:
        print(f"note: {path}: not read: {', '.join(sorted(keys))}", flush=True)


def _check_masks(path: pathlib.Path, masks: np.ndarray) -> None:
    if ((masks < 0) | (masks > 1)).any():
        raise UserError(f"{path}: masks (1 - terminations) must lie in [0, 1]")


def _check_actions(path: pathlib.Path, unit_actions: np.ndarray, bounds: actions.Bounds | None = None) -> None:
    """Raises `UserError` if one lies outside of the bounds that were rescaled to [-1, 1]."""
    largest = float(np.abs(unit_actions).max())
    if largest > 1 + actions.ROUNDING:
        rescaled = "" if bounds is None else ", rescaled to [-1, 1],"
        raise UserError(
            f"{path}: actions must lie in {actions.describe(bounds)}, the largest{rescaled} is {largest:.9g}"
        )


def _read_checked(
    spec: EnvSpec, path: pathlib.Path
) -> tuple[dict[str, np.ndarray], gymnasium.Env, dict[str, np.ndarray]]:
    """The arrays of a file in OGBench's format, the environment that they were checked against, and own rewards."""
    env = make_env(spec.gym_id)
    import ogbench

    try:
        check_archive(path)
        data = ogbench.load_dataset(str(path), compact_dataset=True, add_info=True)
        with np.load(path) as file:
            keys, cuts = file.files, [key for key in CUTS if key in file]
            own = {key: file[key] for key in ("rewards", "masks") if key in file}
            data |= {key: file[key] for key in cuts}
    except KeyError as error:
        raise UserError(
            f"{path}: {str(error.args[0]).split()[0]} is missing; it is not an OGBench data file"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {describe_os_error(error)}") from error
    except DAMAGE as error:
        raise UserError(f"{path}: damaged or not an npz file in OGBench's format ({error})") from error

    env.reset()
    state = env.unwrapped.data
    widths = {
        "observations": env.observation_space.shape,
        "actions": env.action_space.shape,
        "terminals": (),
        "qpos": state.qpos.shape,
        "qvel": state.qvel.shape,
        **dict.fromkeys(cuts, ()),
    }
    if spec.env_name.startswith(("scene", "puzzle")):
        widths["button_states"] = (env.unwrapped._num_buttons,)
    _note_unread(path, set(keys) - widths.keys() - own.keys())
    _checked(path, data, widths, spec.env_name)
    data["valids"] = np.where(np.any([data[key] != 0 for key in cuts], axis=0), 0, data["valids"])
    if not data["valids"].any():
        raise UserError(f"{path}: it holds no transition")
    if data["valids"][-1]:
        raise UserError(f"{path}: the last trajectory does not end (terminals[-1] is false); the file is truncated")
    _check_actions(path, data["actions"])
    return data, env, own
