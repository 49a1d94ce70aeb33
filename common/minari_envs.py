"""Minari on this machine: its packages, its folder, the environments that its data sets name, reference scores.

The sets of D4RL's names are re-collections (AntMaze) or replays (Adroit) of D4RL's: results on them are marked as
Minari's. What differs from D4RL, or would go wrong unnoticed, has 'Trap' beside it. Processes that collect or evaluate
import this: nothing here needs JAX.
"""

import contextlib
import copy
import io
import json
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

from common.env_ids import EnvSpec, minari_root
from common.errors import UserError

import gymnasium
import numpy as np

GOAL_KEYS = ("achieved_goal", "observation", "desired_goal")  # of a goal-conditioned observation, in this order
# D4RL's returns of a random and an expert policy.
REFERENCE_SCORES = {
    "pen": (96.262799, 3076.8331),
    "door": (-56.512833, 2880.5693),
    "hammer": (-274.856578, 12794.1348),
    "relocate": (-6.425911, 4233.8778),
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}
INSTALL = 'pip install "minari[hdf5,hf]" "gymnasium-robotics<=1.4.2"'
# What HDF5, JSON and Minari raise on damaged files.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError)


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


def first_line(error: Exception) -> str:
    """Of a message, for one line of ours."""
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


def open_set(path: pathlib.Path) -> Any:
    """A `minari.MinariDataset`. Raises `UserError` if the folder holds none, or a damaged one."""
    minari = import_minari()
    try:
        return minari.MinariDataset(path / "data")
    except ImportError as error:
        raise UserError(f"{path}: its format needs another package ({first_line(error)})") from error
    except DAMAGE as error:
        raise UserError(f"{path}: not a Minari data set, or damaged ({first_line(error)})") from error


def is_antmaze(dataset: Any) -> bool:
    """Whether the rewards are AntMaze's 0 and 1 at the goal."""
    env_spec = dataset.spec.env_spec
    return env_spec is not None and env_spec.id.startswith("AntMaze_") and "Dense" not in env_spec.id


def flatten_observation(observation: Any) -> np.ndarray:
    """An observation as the networks take it, from one of an environment or, stacked, of a data set; float32.

    Trap: AntMaze's is a dict, and the policy needs all of it: position (2), body (27) and goal (2).
    """
    with np.errstate(over="ignore"):  # to infinity: what is checked is what training gets
        if isinstance(observation, dict):
            return np.concatenate([np.asarray(observation[key], np.float32) for key in GOAL_KEYS], axis=-1)
        return np.asarray(observation, np.float32)


def ends_at_success(path: pathlib.Path) -> bool:
    """Whether the episodes of a data set are read as ending at the goal, with rewards of 0 there and -1 elsewhere."""
    return is_antmaze(open_set(path))


def make_env(path: pathlib.Path, **kwargs: Any) -> gymnasium.Env:
    """The environment that policies trained on a data set are judged in.

    Args:
        path: folder of the data set.
        **kwargs: further arguments of the environment.

    Raises:
        UserError: the data set names none, or it cannot be made here.
    """
    dataset = open_set(path)
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
        raise UserError(f"{path}: its environment cannot be made here ({first_line(error)})") from error
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
    metadata = open_set(path).storage.metadata
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    known = all(isinstance(score, int | float) for score in (low, high)) and low != high
    return (float(low), float(high)) if known else None
