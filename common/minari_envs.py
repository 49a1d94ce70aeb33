"""D4RL, and any other data set of continuous control, through Minari: data, environments, reference scores.

The sets are re-collections (AntMaze) or replays (Adroit) of D4RL's: results on them are marked as Minari's. What
differs from D4RL, or would go wrong unnoticed, has 'Trap' beside it.
"""

import contextlib
import copy
import io
import json
import logging
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from common.actions import ROUNDING, Bounds, bounds_of, describe, to_unit
from common.env_ids import EnvSpec, minari_root
from common.errors import UserError
from common.files import making, sha256, write_whole_folder

GOAL_KEYS = ("achieved_goal", "observation", "desired_goal")  # of a goal-conditioned observation, in this order
# D4RL's returns of a random and an expert policy.
REFERENCE_SCORES = {
    "pen": (96.262799, 3076.8331),
    "door": (-56.512833, 2880.5693),
    "hammer": (-274.856578, 12794.1348),
    "relocate": (-6.425911, 4233.8778),
}
INSTALL = 'pip install "minari[hdf5,hf]" "gymnasium-robotics<=1.4.2"'
ONLINE_TIMEOUT_S = 5
# What HDF5, JSON and Minari raise on damaged files.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError)


def locate(spec: EnvSpec) -> pathlib.Path:
    """The folder of a data set: what Minari has on this machine, else its own download.

    Raises:
        UserError: a package is missing; the set is not here and cannot be fetched.
    """
    minari, path = import_minari(), local_path(spec.name)
    if (path / "data").is_dir():
        print(f"data: found {path}", flush=True)
        return path
    advice = (
        f"where there is a network, run `minari download {spec.name}`, and put its folder here as {path}, or name the "
        f"folder that holds D4RL/: MINARI_DATASETS_PATH (now {os.environ.get('MINARI_DATASETS_PATH', 'unset')})"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with making(path):
            if (path / "data").is_dir():  # by another process, meanwhile
                return path
            print(f"data: downloading {spec.name} with Minari", flush=True)
            if "MINARI_REMOTE" not in os.environ:
                _check_connection()

            def download(folder: pathlib.Path) -> pathlib.Path:
                with datasets_in(folder):
                    minari.download_dataset(spec.name)
                return folder / spec.name

            write_whole_folder(path, download)
    except Exception as error:  # of whatever its storage is built on; all of them mean that there is no data
        raise UserError(f"could not download {spec.name} ({_first_line(error)}); {advice}") from error
    return path


def local_path(name: str) -> pathlib.Path:
    """Where Minari keeps, or would keep, a data set on this machine."""
    return minari_root() / name


@contextlib.contextmanager
def datasets_in(folder: pathlib.Path) -> Iterator[None]:
    """Minari reads and writes there meanwhile."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before


def _check_connection() -> None:
    """Fail at once where there is no network: the client tries again for half a minute, and says so each time."""
    import requests
    from huggingface_hub.constants import ENDPOINT  # or the mirror that HF_ENDPOINT names

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    requests.head(ENDPOINT, timeout=ONLINE_TIMEOUT_S)


def _first_line(error: Exception) -> str:
    name = type(error).__name__
    if "Connection" in name or "Timeout" in name:
        return f"no connection: {name}"
    return f"{name}: {(str(error).splitlines() or [''])[0]}"


def import_minari() -> Any:
    """The package that reads the data.

    Raises:
        UserError: it, or what it stores data with, is missing.
    """
    try:
        import h5py  # noqa: F401 (Minari asks for it late)
        import minari
    except ImportError as error:
        raise UserError(f"D4RL needs Minari ({error.name} is missing): {INSTALL}") from error
    return minari


def register_environments() -> None:
    """Make Adroit and AntMaze known to Gymnasium.

    Raises:
        UserError: the package is missing, or too new. Trap: after 1.4.2 it has no AdroitHand*-v1, which the data names.
    """
    try:
        # On import it prints that rewards of v1 changed in 1.2.1: the data has been replayed with those.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise UserError(f"D4RL needs gymnasium-robotics ({error.name} is missing): {INSTALL}") from error
    gymnasium.register_envs(gymnasium_robotics)
    if "AdroitHandPen-v1" not in gymnasium.registry:
        raise UserError(f"this gymnasium-robotics has no AdroitHand*-v1, which the data was made in: {INSTALL}")


def _open(path: pathlib.Path) -> Any:
    minari = import_minari()
    try:
        return minari.MinariDataset(path / "data")
    except ImportError as error:
        raise UserError(f"{path}: its format needs another package ({_first_line(error)})") from error
    except DAMAGE as error:
        raise UserError(f"{path}: not a Minari data set, or damaged ({_first_line(error)})") from error


def provenance(path: pathlib.Path) -> dict[str, Any]:
    """Where a data set came from, as a run's config records it; the SHA-256 is that of the largest file."""
    dataset = _open(path)
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


def is_antmaze(dataset: Any) -> bool:
    """Whether the rewards are AntMaze's 0 and 1 at the goal."""
    env_spec = dataset.spec.env_spec
    return env_spec is not None and env_spec.id.startswith("AntMaze_") and "Dense" not in env_spec.id


def flatten_observation(observation: Any) -> np.ndarray:
    """An observation as the networks take it, from one of an environment or, stacked, of a data set; float32.

    Trap: AntMaze's is a dict, and the policy needs all of it: position (2), body (27) and goal (2).
    """
    if isinstance(observation, dict):
        return np.concatenate([np.asarray(observation[key], np.float32) for key in GOAL_KEYS], axis=-1)
    return np.asarray(observation, np.float32)


def read(spec: EnvSpec, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a data set, and check it against the environment that its policies will be judged in.

    Returns:
        `observations` [rows, o], `actions` [rows, a], `rewards` [rows], `masks` [rows], float32, and `transitions`
        [transitions], int32: the rows that start one. Each episode of T steps has T + 1 rows.

    Raises:
        UserError: it is another data set, damaged, or not of continuous control; or its environment cannot be made.
    """
    dataset = _open(path)
    if dataset.id != spec.name and not dataset.id.startswith(f"collected/{spec.family.replace('-', '/')}-"):
        raise UserError(f"{path} holds {dataset.id}, not {spec.name}")
    observation_dim, action_dim, bounds = _check_spaces(path, dataset)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("observations", "actions", "rewards", "masks")}
    starts, row, steps, unread = [], 0, 0, set()
    try:
        for number, episode in enumerate(dataset.iterate_episodes()):
            with np.errstate(over="ignore"):  # to infinity: what is checked is what training gets
                observations = flatten_observation(episode.observations)
                rewards, actions = (np.asarray(x, np.float32) for x in (episode.rewards, episode.actions))
            masks = 1.0 - np.asarray(episode.terminations)
            length, unread = len(rewards), unread | set(episode.infos or ())
            of = f"of episode {number}"
            _check_array(f"{path}: observations {of}", observations, (length + 1, observation_dim))
            _check_array(f"{path}: actions {of}", actions, (length, action_dim))
            _check_array(f"{path}: rewards {of}", rewards, (length,))
            _check_array(f"{path}: terminations {of}", masks, (length,))
            steps += length
            if is_antmaze(dataset):
                # Traps: rewards are 1 at the goal and 0 elsewhere, where the papers use 0 and -1; and no episode
                # ends at the goal, where the papers' do. What comes after the first success is another task's.
                reached = np.flatnonzero(rewards > 0)
                masks = 1.0 - (rewards > 0)
                rewards = rewards - 1
                length = reached[0] + 1 if reached.size else length
            actions = to_unit(actions, bounds)
            if np.abs(actions).max(initial=0) > 1 + ROUNDING:
                largest = f"{np.abs(actions).max():.9g}" + (" (rescaled to [-1, 1])" if bounds else "")
                raise UserError(f"{path}: actions must lie in {describe(bounds)}, episode {number} has {largest}")
            parts["observations"].append(observations[: length + 1])
            for name, array in (("actions", actions), ("rewards", rewards), ("masks", masks)):
                # The last row is only a successor: what stands there is never read.
                padding = [(0, 1), *[(0, 0)] * (array.ndim - 1)]
                parts[name].append(np.pad(array[:length].astype(np.float32), padding))
            starts.append(np.arange(row, row + length, dtype=np.int32))
            row += length + 1
    except DAMAGE as error:
        raise UserError(f"{path}: damaged ({_first_line(error)})") from error
    if steps != dataset.storage.metadata.get("total_steps"):
        raise UserError(
            f"{path}: the metadata does not agree with its {len(starts)} episodes of {steps} steps; damaged"
        )
    if unread:
        print(f"note: {path}: not read: infos ({', '.join(sorted(unread))})", flush=True)
    if not starts or not sum(map(len, starts)):
        raise UserError(f"{path}: it holds no transition")
    return {**{name: np.concatenate(arrays) for name, arrays in parts.items()}, "transitions": np.concatenate(starts)}


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise UserError(f"{name} have shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} hold NaN or infinity (as float32)")


def _check_spaces(path: pathlib.Path, dataset: Any) -> tuple[int, int, Bounds | None]:
    """Lengths of observations and actions in the environment, and the bounds of actions, those of the data, too."""
    observations = dataset.spec.observation_space
    boxes = [observations]
    if isinstance(observations, gymnasium.spaces.Dict):
        if set(observations.spaces) != set(GOAL_KEYS):
            raise UserError(f"{path}: observations are a dict of {', '.join(observations.spaces)}; not supported")
        boxes = list(observations.spaces.values())
    if not all(isinstance(box, gymnasium.spaces.Box) and len(box.shape) == 1 for box in boxes):
        raise UserError(f"{path}: observations are not vectors ({observations}); not supported")
    bounds = bounds_of(dataset.spec.action_space, str(path))
    with contextlib.closing(make_env(path)) as env:  # if that fails, then now, not after the first 100,000 updates
        if (acted := bounds_of(env.action_space, str(path))) != bounds:
            problem = f"actions of the data lie in {describe(bounds)}, of its environment in {describe(acted)}"
            raise UserError(f"{path}: {problem}; make the data set anew")
        return gymnasium.spaces.flatdim(env.observation_space), env.action_space.shape[0], bounds


def ends_at_success(path: pathlib.Path) -> bool:
    """Whether the episodes of a data set are read as ending at the goal, with rewards of 0 there and -1 elsewhere."""
    return is_antmaze(_open(path))


def make_env(path: pathlib.Path, **kwargs: Any) -> gymnasium.Env:
    """The environment that policies trained on a data set are judged in.

    Args:
        path: folder of the data set.
        **kwargs: further arguments of the environment.

    Raises:
        UserError: the data set names none, or it cannot be made here.
    """
    dataset = _open(path)
    if dataset.spec.env_spec is None:
        raise UserError(f"{path}: the data set names no environment to evaluate in")
    register_environments()
    changes: dict[str, Any] = {"disable_env_checker": True} | kwargs
    if dataset.spec.env_spec.id.startswith("AdroitHandPen-"):
        changes["max_episode_steps"] = 100  # Trap: D4RL's horizon; gymnasium-robotics has 200
    if is_antmaze(dataset) and "UMaze" in dataset.spec.env_spec.id:
        changes["maze_map"] = umaze_evaluation_map(dataset)
    try:
        has_own = dataset.storage.metadata.get("eval_env_spec") is not None
        with warnings.catch_warnings():
            # Trap: AntMaze v4 is called out of date, but v5 adds contact forces.
            warnings.filterwarnings("ignore", message=".*is out of date")
            env = dataset.recover_environment(eval_env=has_own, **changes)
    except Exception as error:  # of whatever kind its constructor, a wrapper or a renderer raises
        raise UserError(f"{path}: its environment cannot be made here ({_first_line(error)})") from error
    if env.spec is not None and env.spec.max_episode_steps is None:
        # An environment may truncate by itself; then the data shows after how many steps.
        lengths = [len(episode) for episode in dataset.iterate_episodes() if episode.truncations[-1]]
        if not lengths:
            env.close()
            problem = (
                "its environment has no time limit, and no episode of its data is truncated: evaluation may not end"
            )
            raise UserError(f"{path}: {problem}; register it with max_episode_steps, and make the data set anew")
        env = gymnasium.wrappers.TimeLimit(env, max(lengths))
    return env


def umaze_evaluation_map(dataset: Any) -> list[list[Any]]:
    """The maze to evaluate in.

    Trap: the evaluation maps of both umaze sets are mirror images of the maze that the data was collected in, so that a
    policy that knows the way would walk into a wall. The training map it is; where it fixes neither start nor goal
    (umaze-diverse), those of the evaluation map are mirrored into it.
    """
    from gymnasium_robotics.envs.maze.maps import U_MAZE

    training = dataset.spec.env_spec.kwargs.get("maze_map", copy.deepcopy(U_MAZE))
    if any(isinstance(cell, str) for row in training for cell in row):
        return training
    own = json.loads(dataset.storage.metadata.get("eval_env_spec", "{}")).get("kwargs", {}).get("maze_map", training)

    def walls(maze: list[list[Any]]) -> list[list[bool]]:
        return [[cell == 1 for cell in row] for row in maze]

    for maze in (own, [row[::-1] for row in own], own[::-1]):
        if walls(maze) == walls(training):
            return maze
    raise UserError("the evaluation map of this umaze set is neither its training map nor a mirror image of it")


def reference_scores(spec: EnvSpec, path: pathlib.Path) -> tuple[float, float] | None:
    """Returns that a normalised score maps to 0 and 100; none where scores are success rates, or nothing is known."""
    if spec.family.startswith("antmaze"):
        return None
    if spec.family.split("-")[0] in REFERENCE_SCORES:
        return REFERENCE_SCORES[spec.family.split("-")[0]]
    metadata = _open(path).storage.metadata
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    known = all(isinstance(score, int | float) for score in (low, high)) and low != high
    return (float(low), float(high)) if known else None
