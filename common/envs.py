"""Constructs the real environments."""

import multiprocessing
import signal
import warnings
from typing import Any

import gymnasium
import numpy as np

from common.env_ids import EnvSpec

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

    Observations are float32. The info holds `success` (0 or 1) alone, since everything in it travels between processes.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        self._last_step: tuple | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode that belongs to `seed`."""
        np.random.seed(seed)  # OGBench's mazes draw from the global generator
        self.env.action_space.seed(seed)  # and a reset takes a few random steps to make up a goal image
        observation, _ = self.env.reset(seed=seed)
        # Those steps leave their mark in the solver's starting point (the arm's action space cannot be seeded).
        self.unwrapped.data.qacc_warmstart[:] = 0
        self._last_step = None
        return np.asarray(observation, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step; after the last one of the episode, return that one again."""
        if self._last_step is None:
            observation, reward, terminated, truncated, info = self.env.step(action)
            step = (np.asarray(observation, np.float32), float(reward), terminated, truncated)
            step = (*step, {"success": float(info["success"])})
            if not (terminated or truncated):
                return step
            self._last_step = step
        return self._last_step  # vectorised environments move in step: a finished one costs nothing


def make_evaluation_env(spec: EnvSpec) -> EvaluationEnv:
    """The environment that a policy for `spec` is judged in, also as a worker process's environment."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    return EvaluationEnv(make_env(spec.gym_id))
