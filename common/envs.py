"""Constructs the real environments."""

import functools
import math
import multiprocessing
import pathlib
import signal
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from common import minari_data
from common.env_ids import EnvSpec
from common.minari_data import flatten_observation

# Of every machine without a display, and of OGBench's float64 bounds for float32 actions.
warnings.filterwarnings("ignore", module="glfw")
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")


def make_env(env_name: str, **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` for OGBench's environments.

    Args:
        env_name: Gymnasium id, e.g. 'cube-double-singletask-v0' or 'cube-double-v0'.
        **kwargs: arguments of the environment.
    """
    import ogbench  # noqa: F401 (registers the environments; slow, so not before it is needed)

    # The checker computes every observation twice.
    return gymnasium.make(env_name, disable_env_checker=True, **kwargs)


class EvaluationEnv(gymnasium.Wrapper):
    """An episode that is the same whenever it is started with the same seed.

    Observations are flat and float32. The info holds `success` alone: whether the task has been achieved so far, 0 or
    1; not a number where the environment does not say.
    """

    def __init__(self, env: gymnasium.Env, *, ends_at_success: bool = False):
        """Args:
        env: environment.
        ends_at_success: end the episode there, if the environment does not do so itself.
        """
        super().__init__(env)
        shape = gymnasium.spaces.flatten_space(env.observation_space).shape
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self._ends_at_success = ends_at_success
        self._success = math.nan

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode that belongs to `seed`."""
        np.random.seed(seed)  # OGBench's mazes draw from the global generator
        self.env.action_space.seed(seed)  # and a reset takes a few random steps to make up a goal image
        observation, _ = self.env.reset(seed=seed)
        # Those steps leave their mark in the solver's starting point (the arm's action space cannot be seeded).
        if hasattr(self.unwrapped, "data"):  # MuJoCo's
            self.unwrapped.data.qacc_warmstart[:] = 0
        self._success = math.nan
        return flatten_observation(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "success" in info:
            self._success = np.fmax(self._success, float(info["success"]))
        terminated = bool(terminated or (self._ends_at_success and self._success == 1))
        return flatten_observation(observation), float(reward), terminated, truncated, {"success": self._success}


class EpisodeLanes(gymnasium.Env):
    """Several environments side by side in one process: lanes, in each of which episodes run one after the other.

    A step takes a step in every lane that is not through. Wherever that ends an episode the next one begins, and the
    info has its `return`, `length` and `success`, an entry a lane, with a mask `ended`; else the info is empty.
    """

    def __init__(self, make_env: Callable[[], EvaluationEnv], episode_seeds: Sequence[Sequence[int]]):
        """Args:
        make_env: makes the environment of a lane.
        episode_seeds: of each lane, those of its episodes, maybe none.
        """
        self._episode_seeds = episode_seeds
        self._envs = [make_env() for _ in episode_seeds]
        self.observation_space = batch_space(self._envs[0].observation_space, len(self._envs))
        self.action_space = batch_space(self._envs[0].action_space, len(self._envs))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin with the first episode of every lane."""
        self._next = [iter(seeds) for seeds in self._episode_seeds]
        self._observations = np.zeros(self.observation_space.shape, np.float32)
        self._running, self._returns, self._lengths = np.zeros((3, len(self._envs)))
        for lane in range(len(self._envs)):
            self._begin(lane)
        return self._observations.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step in every lane."""
        ended, returns, lengths, successes = np.zeros((4, len(self._envs)))
        for lane, env in enumerate(self._envs):
            if not self._running[lane]:
                continue
            step = env.step(action[lane])
            self._observations[lane], reward, terminated, truncated, info = step
            self._returns[lane] += reward
            self._lengths[lane] += 1
            if terminated or truncated:
                ended[lane], successes[lane] = True, info["success"]
                returns[lane], lengths[lane] = self._returns[lane], self._lengths[lane]
                self._begin(lane)
        results = {"ended": ended, "return": returns, "length": lengths, "success": successes} if ended.any() else {}
        return self._observations.copy(), 0.0, False, False, results

    def _begin(self, lane: int) -> None:
        seed = next(self._next[lane], None)
        self._running[lane] = seed is not None
        self._returns[lane] = self._lengths[lane] = 0
        if seed is not None:
            self._observations[lane], _ = self._envs[lane].reset(seed=seed)

    def close(self) -> None:
        """Close every lane's environment."""
        for env in self._envs:
            env.close()


def make_evaluation_lanes(
    spec: EnvSpec, dataset_path: pathlib.Path | None, episode_seeds: Sequence[Sequence[int]]
) -> EpisodeLanes:
    """What a worker process of an evaluation runs: `EpisodeLanes` of `make_evaluation_env`."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    return EpisodeLanes(functools.partial(make_evaluation_env, spec, dataset_path), episode_seeds)


def make_evaluation_env(spec: EnvSpec, dataset_path: pathlib.Path | None = None) -> EvaluationEnv:
    """The environment that a policy for `spec` is judged in.

    Args:
        spec: environment and task.
        dataset_path: folder of the Minari data set, which names its environment; OGBench needs none.
    """
    if spec.suite == "d4rl":
        env = minari_data.make_env(dataset_path)
        # Trap: AntMaze goes on at the goal, and would count it at every further step.
        return EvaluationEnv(env, ends_at_success="AntMaze" in env.spec.id)
    return EvaluationEnv(make_env(spec.gym_id))
