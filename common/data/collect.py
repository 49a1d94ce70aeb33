"""Collects data sets on this machine: OGBench's with scripted oracles or an ant, Adroit's with trained hands.

    python -m common.data.collect --env-id cube-double --episodes 1000

The recipe (environments, oracles, noise, episode counts and lengths, file format) is OGBench's own (Park et al., 2025,
appendix D and the data generation scripts of its repository). Episodes are independent and each has its own seed, so
the data does not depend on how many processes collected it.
"""

import dataclasses
import functools
import json
import pathlib
from importlib import metadata

from common import command_line, minari_envs, mujoco_versions
from common.data import experts, hands, recipes
from common.data.episodes import STEPS_A_SECOND, Episode, collect_episodes
from common.env_ids import EnvSpec, resolve
from common.envs import try_to_render
from common.errors import UserError, exit_in_one_line, expanded
from common.files import check_folder, found, found_or_made, sha256, write_whole

import numpy as np

SHARD_EPISODES = 1000
BYTES_A_STEP = 400  # at most, compressed; of eight cubes twice as many
BYTES_A_FRAME = 3000  # of 64 x 64 pixels, likewise


@dataclasses.dataclass(frozen=True)
class Args:
    """Collect an OGBench data set in the official file format, or an Adroit expert's as a Minari data set."""

    env_id: str
    """Environment, e.g. cube-double, scene-noisy, pointmaze-large-stitch, door-expert. Its task does not matter."""
    episodes: int | None = None
    """Training episodes; OGBench's own number if unset, 100 of a hand (pen: 300). A tenth as many validation episodes
    come on top, but not of a hand."""
    seed: int = 0
    """Seed of the collection."""
    workers: int | None = None
    """Worker processes; one for each CPU core if unset."""
    dataset_dir: pathlib.Path = pathlib.Path("~/.ogbench/data")
    """Folder for the files, named so as to tell them from the official ones. (Hands: MINARI_DATASETS_PATH.)"""


@dataclasses.dataclass(frozen=True)
class Size:
    """Number of training episodes and their length in steps."""

    episodes: int
    episode_steps: int


def official_size(spec: EnvSpec) -> Size:
    """The size of OGBench's own data set (Park et al., 2025, appendix D); of eight cubes there is but the one of 100m.

    Raises:
        UserError: the environment has no scripted oracle.
    """
    check_collectable(spec)
    if spec.size or spec.env_name == "cube-octuple":
        return Size(SHARD_EPISODES * (len(spec.shard_names) or 100), 1001)
    if spec.dataset_type == "stitch":
        return Size(5000, 201)
    if spec.dataset_type == "explore":
        return Size(10_000, 501)
    if spec.world in ("pointmaze-giant", "antmaze-giant"):
        return Size(500, 2001)
    if spec.world in ("cube-triple", "puzzle-4x5"):
        return Size(3000, 1001)
    if spec.world in ("cube-quadruple", "puzzle-4x6"):
        return Size(5000, 1001)
    return Size(1000, 1001)


def is_collectable(spec: EnvSpec) -> bool:
    """Whether there is somebody to act: ogbench's scripted oracles, the trained ant, a trained hand."""
    prefixes = ("cube", "scene", "puzzle", "pointmaze", "antmaze")
    return (spec.suite == "ogbench" and spec.world.startswith(prefixes)) or hands.is_collectable(spec)


def check_collectable(spec: EnvSpec) -> None:
    """Raises `UserError` where nobody acts."""
    if is_collectable(spec):
        return
    problems = {
        "d4rl": "is a Minari data set, which cannot be collected here (the Adroit hands' expert sets can)",
        "d4rl_hdf5": "is D4RL's own file, which nobody collects: name it with --dataset-path",
    }
    if spec.suite in problems:
        raise UserError(f"{spec.name} {problems[spec.suite]}")
    raise UserError(
        f"{spec.name}: no oracle collects this data (there are some for cube, scene, puzzle and the point and ant "
        "mazes); supply the official file with --dataset-path or in --dataset-dir"
    )


def collected_path(spec: EnvSpec, dataset_dir: pathlib.Path | None, episodes: int | None, seed: int) -> pathlib.Path:
    """What is collected here: a file, or from the size of OGBench's shards on a folder of them.

    It has neither the official name, nor that of what another physics makes.
    """
    if hands.is_collectable(spec):
        return minari_envs.local_path(hands.dataset_id(spec, episodes, seed))
    episodes = official_size(spec).episodes if episodes is None else episodes
    folder = dataset_dir / f"{spec.dataset_name}-collected-{episodes}-seed{seed}{mujoco_versions.suffix(spec)}"
    file = folder.with_name(f"{folder.name}.npz")
    return file if episodes <= episodes_of_shard(spec) or file.is_file() else folder


def episodes_of_shard(spec: EnvSpec) -> int:
    """OGBench's have 1000 of 1000 steps; of images a tenth of that: they are held until there are so many."""
    return (SHARD_EPISODES // 10 if spec.is_visual else SHARD_EPISODES) * max(
        1000 // (official_size(spec).episode_steps - 1), 1
    )


def files_of(spec: EnvSpec, path: pathlib.Path, episodes: int | None) -> dict[pathlib.Path, range]:
    """The files of what is collected at a path, and the episodes of each."""
    episodes = official_size(spec).episodes if episodes is None else episodes
    if path.suffix == ".npz":
        return {path: range(episodes)}
    firsts = range(0, episodes, step := episodes_of_shard(spec))
    parts = [range(first, min(first + step, episodes)) for first in firsts]
    return {path / f"{path.name}-{number:03}.npz": part for number, part in enumerate(parts)}


def find_collected(
    spec: EnvSpec, dataset_dir: pathlib.Path | None, episodes: int | None, seed: int = 0, hint: str = ""
) -> pathlib.Path | None:
    """What has been collected here, all of it, which is said with a hint; None if it is not there."""
    path = collected_path(spec, dataset_dir, episodes, seed)
    return found(path, hint, () if hands.is_collectable(spec) else files_of(spec, path, episodes))


def collect_data(
    spec: EnvSpec,
    dataset_dir: pathlib.Path | None,
    *,
    episodes: int | None = None,
    val_episodes: int = 0,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Collect a data set, unless it is there: of several processes one collects, and the others wait for it.

    Shards that are there, of a collection that was stopped, are not collected again.

    Args:
        spec: environment.
        dataset_dir: folder for NAME.npz, NAME-val.npz (if there are validation episodes) and NAME.json, its provenance;
            or for a folder NAME of NAME-000.npz, .. (Of a hand a Minari data set is made, where Minari keeps its own.)
        episodes: training episodes; OGBench's own number if None, 100 of a hand (pen: 300).
        val_episodes: validation episodes of OGBench, which are numbered after the training ones.
        seed: seed of the collection.
        workers: worker processes; one for each core if None.

    Returns:
        The training file, the folder of shards, or Minari's.

    Raises:
        UserError: nobody acts in this environment, a size below one, or the files cannot be written.
    """
    check_collectable(spec)
    path = collected_path(spec, dataset_dir, episodes, seed)
    if hands.is_collectable(spec):
        make_set = functools.partial(hands.make_set, spec, path, episodes=episodes, seed=seed, workers=workers)
        return found_or_made(path, lambda: found(path), make_set)
    files = files_of(spec, path, episodes)

    def find() -> pathlib.Path | None:
        has_all = val_episodes == 0 or all(validation_path(file).is_file() for file in files)
        return find_collected(spec, dataset_dir, episodes, seed) if has_all else None

    return found_or_made(path, find, lambda: _make_files(spec, path, files, val_episodes, seed, workers))


def validation_path(path: pathlib.Path) -> pathlib.Path:
    """Of the validation episodes that belong to a file."""
    return path.with_name(f"{path.stem}-val.npz")


def _make_files(
    spec: EnvSpec,
    path: pathlib.Path,
    files: dict[pathlib.Path, range],
    val_episodes: int,
    seed: int,
    workers: int | None,
) -> pathlib.Path:
    """Those of an OGBench data set that are not there yet, one after the other: no more is held than one has."""
    size, total = official_size(spec), sum(map(len, files.values()))
    fewer = "--collect-episodes N, or --episodes N of python -m common.data.collect"
    hint = f"official size: {size.episodes} episodes; fewer: {fewer}"
    act = recipes.maze if "maze" in spec.env_name else recipes.manipulation
    make_collector = functools.partial(act, spec, size.episode_steps)
    provenance = {
        "source": "collected",
        "episodes": total,
        "episode_steps": size.episode_steps,
        "official_episodes": size.episodes,
        "seed": seed,
        "oracle": describe_oracle(spec),
        "versions": {name: metadata.version(name) for name in ("ogbench", "mujoco", "gymnasium", "numpy")},
    }
    bytes_a_step, steps_a_second = BYTES_A_STEP * (2 if spec.env_name == "cube-octuple" else 1), STEPS_A_SECOND
    if spec.is_visual:  # seen to draw before anything is collected
        provenance["renderer"], steps_a_second = try_to_render(spec)
        bytes_a_step += BYTES_A_FRAME
    of_file = val_episodes // len(files)
    for number, (file, indices) in enumerate(files.items()):
        first_val = total + number * of_file
        val_indices = range(first_val, first_val + of_file)
        if file.is_file() and (validation_path(file).is_file() or not val_indices):
            continue
        steps_left = (total - indices.start + val_episodes) * size.episode_steps
        check_folder(file.parent, steps_left * bytes_a_step)
        if file != path:
            for debris in path.glob(".tmp-*"):  # of a kill
                debris.unlink()
            provenance |= {"episodes": len(indices), "first_episode": indices.start}
        collected = collect_episodes(
            make_collector,
            [*indices, *val_indices],
            size.episode_steps,
            seed=seed,
            workers=workers,
            path=file,
            hint=hint,
            steps_a_second=steps_a_second,
        )
        # Last the one that is looked for.
        for name, split in ((validation_path(file), collected[len(indices) :]), (file, collected[: len(indices)])):
            if split:
                arrays = {key: np.concatenate([episode[key] for episode in split]) for key in split[0]}
                write_whole(name, functools.partial(_write_with_provenance, arrays, file, provenance))
        del collected
    return path


def describe_oracle(spec: EnvSpec) -> str:
    """Who acted, for the provenance of a data set."""
    if spec.world.startswith("antmaze"):
        return f"trained ant ({experts.describe('ant')}), directed by the ogbench package's oracle"
    return "scripted oracles of the ogbench package"


def _write_with_provenance(arrays: Episode, path: pathlib.Path, provenance: dict, temporary: pathlib.Path) -> None:
    """Fill a data file that has no name yet, and describe it in PATH.json before it gets one."""
    np.savez_compressed(temporary, **arrays)
    text = json.dumps({**provenance, "sha256": sha256(temporary)}, indent=2) + "\n"
    write_whole(path.with_suffix(".json"), lambda json_file: json_file.write_text(text))


def main(args: Args) -> None:
    """Collect the training and the validation file of one environment; of an Adroit hand the Minari data set."""
    spec, val_episodes = resolve(args.env_id), 0
    if not hands.is_collectable(spec):
        val_episodes = max((official_size(spec).episodes if args.episodes is None else args.episodes) // 10, 0)
    sizes = {"episodes": args.episodes, "val_episodes": val_episodes}
    collect_data(spec, expanded(args.dataset_dir), **sizes, seed=args.seed, workers=args.workers)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(Args, prog="python -m common.data.collect")))
