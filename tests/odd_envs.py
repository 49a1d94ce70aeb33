"""Environments with one oddity each, as `odd_envs:Odd-v0`; of two numbers, and two actions."""

import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Odd(gymnasium.Env):
    """A point that actions move."""

    observation_space = Box(-2, 2, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, *, bounds=(-1, 1), render_mode=None, on_reset=None, on_step=None, on_render=None):
        self.action_space = Box(np.float32(bounds[0]), np.float32(bounds[1]), (2,), np.float32)
        self.render_mode = render_mode
        self.on_reset, self.on_step, self.on_render = on_reset, on_step, on_render

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        answer = self.position.copy(), {}
        return self.on_reset(*answer) if self.on_reset else answer

    def step(self, action):
        self.position = np.clip(self.position + 0.2 * action, -2, 2).astype(np.float32)
        self.steps += 1
        answer = (self.position.copy(), -1.0, False, False, {"success": False})
        return self.on_step(self.steps, *answer) if self.on_step else answer

    def render(self):
        return self.on_render() if self.on_render else np.zeros((32, 32, 3), np.uint8)


class Slow(Odd):
    """An episode takes half a second, and hardly any of the processor's time: in which something can happen."""

    def step(self, action):
        time.sleep(0.025)
        return super().step(action)


class Counting(Odd):
    """Of five to nine steps, after which it must not be stepped; its picture has their number, and how far it is."""

    def reset(self, **options):
        answer = super().reset(**options)
        self.length = int(self.np_random.integers(5, 10))
        return answer

    def step(self, action):
        assert self.steps < self.length
        observation, reward, _, *rest = super().step(action)
        return observation, reward, self.steps == self.length, *rest

    def render(self):
        return np.full((32, 32, 3), 10 * self.length + self.steps, np.uint8)


def data(bounds=(-1, 1), rows=60, episode=20, seed=0) -> dict[str, np.ndarray]:
    """Transitions of it, with actions in these bounds."""
    rng = np.random.default_rng(seed)
    observations, actions = rng.uniform(-1, 1, (rows, 2)), rng.uniform(*bounds, (rows, 2))
    return {
        "observations": observations,
        "actions": actions,
        "rewards": -np.ones(rows),
        "terminals": np.arange(rows) % episode == episode - 1,
        "terminations": np.zeros(rows),
        "next_observations": np.clip(observations + 0.2 * actions, -2, 2),
    }


gymnasium.register("Film-v0", "odd_envs:Odd", max_episode_steps=20)
gymnasium.register("Slow-v0", "odd_envs:Slow", max_episode_steps=20)
gymnasium.register("Counting-v0", "odd_envs:Counting", max_episode_steps=20)
