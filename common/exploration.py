"""Fine-tuning online: policies explore, and what they see has rewards and masks as the data sets do."""

import pathlib
from collections.abc import Sequence
from typing import Any

from common.actions import ACTION_BOUND
from common.env_ids import EnvSpec
from common.envs import make_evaluation_env
from common.evaluation import Act
from common.replay import Batch
from common.session import Session

import jax
import numpy as np


class ExplorationEnvs:
    """An environment for each seed, in this process, whose transitions have rewards and masks as the data sets do."""

    def __init__(self, spec: EnvSpec, dataset_path: pathlib.Path | None, seeds: Sequence[int], *, first_step: int):
        """Args:
        spec: environment and task.
        dataset_path: folder of the Minari data set, which names its environment; others need none.
        seeds: training seeds.
        first_step: updates before the first step: a run that goes on does not see the same episodes again.
        """
        self._envs = [make_evaluation_env(spec, dataset_path) for _ in seeds]
        self._rngs = [np.random.default_rng((seed, first_step)) for seed in seeds]
        self._episodes: list[list[tuple[float, float, float]]] = [[] for _ in seeds]  # since the last summary
        self._returns, self._lengths = np.zeros((2, len(seeds)))
        self.observations = np.stack([self._reset(i) for i in range(len(seeds))])

    def _reset(self, i: int) -> np.ndarray:
        self._returns[i] = self._lengths[i] = 0
        return self._envs[i].reset(seed=int(self._rngs[i].integers(2**31)))[0]

    def step(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        """Take a step in every environment, and begin the next episode where it ends one.

        Args:
            actions: [seeds, a], in [-1, 1].

        Returns:
            `observations`, `actions`, `rewards`, `masks` and `next_observations`, each [seeds, ...] and float32.
        """
        rows = []
        for i, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            next_observation, reward, terminated, truncated, info = env.step(action)
            self._returns[i] += reward
            self._lengths[i] += 1
            # Minari's AntMaze: 0 at the goal and -1 elsewhere, as its data is read. OGBench's rewards are that already,
            # and belong to the state before the step, as those of its data do.
            reward -= env.ends_at_success
            rows.append((self.observations[i].copy(), action, reward, 1 - terminated, np.array(next_observation)))
            self.observations[i] = next_observation
            if terminated or truncated:
                self._episodes[i].append((100 * info["success"], self._returns[i], self._lengths[i]))
                self.observations[i] = self._reset(i)
        names = ("observations", "actions", "rewards", "masks", "next_observations")
        transitions = {
            name: np.array(column, np.float32) for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        return transitions | {"actions": np.clip(transitions["actions"], -ACTION_BOUND, ACTION_BOUND)}

    def summaries(self) -> list[dict[str, float | int]]:
        """Of each seed, means over the episodes that have ended since the last summary, not a number if none has."""
        names = ("exploration/success", "exploration/return", "exploration/length")
        means = [np.mean(episodes, axis=0) if episodes else np.full(3, np.nan) for episodes in self._episodes]
        numbers = [len(episodes) for episodes in self._episodes]
        self._episodes = [[] for _ in self._episodes]
        return [
            {"exploration/episodes": number, **dict(zip(names, map(float, mean), strict=True))}
            for number, mean in zip(numbers, means, strict=True)
        ]

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()


class Explorer:
    """Fine-tuning: each seed explores an environment of its own."""

    def __init__(self, session: Session, act: Act):
        """Args:
        session: whose.
        act: the policy.
        """
        self._runs, self._seeds = session.runs, session.seeds
        self._envs: ExplorationEnvs | None = None  # as long as there is no step
        act_at = lambda params, observation, key, step: act(params, observation, jax.random.fold_in(key, step))  # noqa: E731
        self._act = jax.jit(jax.vmap(act_at, in_axes=(0, 0, 0, None)))

    def step(self, step: int, params: Any) -> Batch:
        """A step in the environment of each seed after update `step`: the transitions, in their places."""
        runs, seeds = self._runs, self._seeds
        if self._envs is None:
            self._envs = ExplorationEnvs(runs.spec, runs.dataset_path, runs.seeds, first_step=step)
        observations = seeds.spread(self._envs.observations)
        actions = seeds.gather(self._act(params, observations, seeds.keys.exploration, step))
        return seeds.spread(Batch(**self._envs.step(actions)))

    def summaries(self) -> list[dict[str, float | int]]:
        """Of each seed, means over the episodes that have ended since the last summary."""
        return self._envs.summaries()

    def close(self) -> None:
        """Close the environments."""
        if self._envs is not None:
            self._envs.close()
