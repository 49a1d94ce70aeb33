"""Minari's data sets: D4RL's re-collected or replayed, and any other of continuous control."""

import contextlib
import logging
import os
import pathlib
from typing import Any

from common import minari_envs
from common.actions import Bounds, bounds_of, describe
from common.data.check import Shapes, allocate, check, check_trajectories, in_int32, note_unread, to_learn
from common.env_ids import EnvSpec
from common.errors import UserError
from common.files import sha256, write_whole_folder
from common.minari_envs import first_line, flatten_observation, open_set
from common.replay import Dataset

import gymnasium
import numpy as np

ONLINE_TIMEOUT_S = 5
LEARNED = ("observations", "actions", "rewards", "masks")


def download(spec: EnvSpec, path: pathlib.Path) -> pathlib.Path:
    """Let Minari download a data set.

    Raises:
        UserError: a package is missing, or the set cannot be fetched.
    """
    minari = minari_envs.import_minari()

    def fetch(folder: pathlib.Path) -> pathlib.Path:
        with minari_envs.datasets_in(folder):
            minari.download_dataset(spec.name)
        return folder / spec.name

    print(f"data: downloading {spec.name} with Minari", flush=True)
    try:
        if "MINARI_REMOTE" not in os.environ:
            _check_connection()
        return write_whole_folder(path, fetch)
    except Exception as error:  # of whatever its storage is built on; all of them mean that there is no data
        advice = (
            f"where there is a network, run `minari download {spec.name}`, and put its folder here as {path}, or name "
            f"the folder that holds D4RL/: MINARI_DATASETS_PATH (now {os.environ.get('MINARI_DATASETS_PATH', 'unset')})"
        )
        raise UserError(f"could not download {spec.name} ({first_line(error)}); {advice}") from error


def _check_connection() -> None:
    """Fail at once where there is no network: the client tries again for half a minute, and says so each time."""
    import requests
    from huggingface_hub.constants import ENDPOINT  # or the mirror that HF_ENDPOINT names

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    requests.head(ENDPOINT, timeout=ONLINE_TIMEOUT_S)


def provenance(path: pathlib.Path) -> dict[str, Any]:
    """Where a data set came from, as a run's config records it; the SHA-256 is that of the largest file."""
    dataset = open_set(path)
    collected = dataset.storage.metadata.get("collected")
    files = [file for file in (path / "data").rglob("*") if file.is_file()]
    return {
        "source": "minari" if collected is None else "collected",
        "dataset": dataset.id,
        "episodes": int(dataset.total_episodes),
        "algorithm": dataset.storage.metadata.get("algorithm_name", ""),
        "path": str(path.absolute()),
        "sha256": sha256(max(files, key=lambda file: file.stat().st_size)),
        **(collected or {}),
    }


def read(spec: EnvSpec, path: pathlib.Path) -> Dataset:
    """Read a data set, and check it against the environment that its policies will be judged in.

    An episode of T steps has T + 1 observations, so the last of them takes a row of its own.

    Raises:
        UserError: it is another data set, damaged, or not of continuous control; or its environment cannot be made.
    """
    dataset = open_set(path)
    if dataset.id != spec.name and not dataset.id.startswith(f"collected/{spec.family.replace('-', '/')}-"):
        raise UserError(f"{path} holds {dataset.id}, not {spec.name}")
    shapes, bounds = _check_spaces(path, dataset)
    total_steps, columns, unread = dataset.storage.metadata.get("total_steps"), {}, set()
    rows = steps = episodes = 0
    try:
        room = (total_steps if isinstance(total_steps, int) else 0) + int(dataset.total_episodes)
        columns = {name: allocate(name, (room, *shapes.get(name, ())), np.float32) for name in LEARNED}
        ends = np.zeros(room, bool)
        for number, episode in enumerate(dataset.iterate_episodes()):
            observations = flatten_observation(episode.observations)
            read = {name: np.asarray(getattr(episode, name)) for name in ("actions", "rewards", "terminations")}
            read |= {"observations": observations[:-1], "next_observations": observations[1:]}
            read = _learned(dataset, check(f"{path}, episode {number}", read, shapes, spec.name, bounds))
            last = rows + len(read["rewards"])
            steps, episodes, unread = steps + len(observations) - 1, number + 1, unread | set(episode.infos or ())
            if last >= room:
                continue  # more than the metadata says, and refused below
            for name, column in read.items():
                columns[name][rows:last], columns[name][last] = column, 0
            to_learn(columns["actions"][rows:last], bounds)
            columns["observations"][last], ends[last] = observations[last - rows], True
            rows = last + 1
    except (*minari_envs.DAMAGE, MemoryError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)})") from error
    if steps != total_steps:
        problem = f"the metadata does not agree with its {episodes} episodes of {steps} steps; damaged"
        raise UserError(f"{path}: {problem}")
    note_unread(path, [f"infos ({', '.join(sorted(unread))})"] if unread else [])
    check_trajectories(path, ~ends[:rows], ends[:rows])
    learned = {name: column[:rows] for name, column in columns.items()}
    return Dataset(**learned, transitions=in_int32(np.flatnonzero(~ends[:rows])))


def _learned(dataset: Any, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An episode, as long as it is learned from."""
    rewards, masks, length = columns["rewards"], 1 - columns["terminations"], len(columns["rewards"])
    if minari_envs.is_antmaze(dataset):
        # Traps: rewards are 1 at the goal and 0 elsewhere, where the papers use 0 and -1; and no episode ends at the
        # goal, where the papers' do. What comes after the first success is another task's.
        reached, masks, rewards = np.flatnonzero(rewards > 0), np.float32(rewards <= 0), rewards - 1
        length = reached[0] + 1 if reached.size else length
    read = {"observations": columns["observations"], "actions": columns["actions"], "rewards": rewards, "masks": masks}
    return {name: column[:length] for name, column in read.items()}


def _check_spaces(path: pathlib.Path, dataset: Any) -> tuple[Shapes, Bounds | None]:
    """Shapes of an episode's rows, as its environment has them, and the bounds of actions, those of the data, too."""
    observations = dataset.spec.observation_space
    boxes = [observations]
    if isinstance(observations, gymnasium.spaces.Dict):
        if set(observations.spaces) != set(minari_envs.GOAL_KEYS):
            raise UserError(f"{path}: observations are a dict of {', '.join(observations.spaces)}; not supported")
        boxes = list(observations.spaces.values())
    if not all(isinstance(box, gymnasium.spaces.Box) and len(box.shape) == 1 for box in boxes):
        raise UserError(f"{path}: observations are not vectors ({observations}); not supported")
    bounds = bounds_of(dataset.spec.action_space, str(path))
    with contextlib.closing(minari_envs.make_env(path)) as env:
        shape, acted = (gymnasium.spaces.flatdim(env.observation_space),), bounds_of(env.action_space, str(path))
    if acted != bounds:
        problem = f"actions of the data lie in {describe(bounds)}, of its environment in {describe(acted)}"
        raise UserError(f"{path}: {problem}; make the data set anew")
    shapes = {"observations": shape, "next_observations": shape, "actions": dataset.spec.action_space.shape}
    return shapes | {"rewards": (), "terminations": ()}, bounds
