"""Constructs the real environments."""

import math
import multiprocessing
import pathlib
import signal
import warnings
from typing import Any

import gymnasium
import numpy as np

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
    """An episode that is the same whenever it is started with the same seed, and that waits when it is over.

    Observations are flat and float32. The info holds `success` alone (whether the task has been achieved so far, 0 or
    1; not a number where the environment does not say), since everything in it travels between processes.
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
        self._last_step: tuple | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode that belongs to `seed`."""
        np.random.seed(seed)  # OGBench's mazes draw from the global generator
        self.env.action_space.seed(seed)  # and a reset takes a few random steps to make up a goal image
        observation, _ = self.env.reset(seed=seed)
        # Those steps leave their mark in the solver's starting point (the arm's action space cannot be seeded).
        if hasattr(self.unwrapped, "data"):  # MuJoCo's
            self.unwrapped.data.qacc_warmstart[:] = 0
        self._last_step, self._success = None, math.nan
        return flatten_observation(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step; after the last one of the episode, return that one again."""
        if self._last_step is None:
            observation, reward, terminated, truncated, info = self.env.step(action)
            if "success" in info:
                self._success = np.fmax(self._success, float(info["success"]))
            terminated = bool(terminated or (self._ends_at_success and self._success == 1))
            step = (flatten_observation(observation), float(reward), terminated, truncated, {"success": self._success})
            if not (terminated or truncated):
                return step
            self._last_step = step
        return self._last_step  # vectorised environments move in step: a finished one costs nothing


def make_evaluation_env(spec: EnvSpec, dataset_path: pathlib.Path | None = None) -> EvaluationEnv:
    """The environment that a policy for `spec` is judged in, also as a worker process's environment.

    Args:
        spec: environment and task.
        dataset_path: folder of the Minari data set, which names its environment; OGBench needs none.
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if spec.suite == "d4rl":
        env = minari_data.make_env(dataset_path)
        # Trap: AntMaze goes on at the goal, and would count it at every further step.
        return EvaluationEnv(env, ends_at_success="AntMaze" in env.spec.id)
    return EvaluationEnv(make_env(spec.gym_id))
