"""Evaluates a policy in the real environments, in parallel."""

import functools
import pathlib
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import tqdm
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jaxtyping import Float, Int

from common import minari_data
from common.env_ids import EnvSpec
from common.envs import make_evaluation_env
from common.errors import UserError
from common.machine import available_cores

GRACE_S = 1.0

# (observations [envs, o], episode numbers [envs], time steps [envs]) -> actions [envs, a]
Policy = Callable[
    [Float[np.ndarray, "envs o"], Int[np.ndarray, " envs"], Int[np.ndarray, " envs"]], Float[np.ndarray, "envs a"]
]


class Evaluator:
    """Runs the same episodes at every evaluation, spread over parallel environments.

    Episode i always starts from the seed made of (seed, i), and environment e of n always runs the episodes e, e + n,
    e + 2n, ...: never 'the first to finish', which would favour short episodes.
    """

    def __init__(
        self,
        spec: EnvSpec,
        episodes: int,
        *,
        seed: int,
        num_envs: int | None = None,
        dataset_path: pathlib.Path | None = None,
    ):
        """Args:
        spec: environment.
        episodes: episodes an evaluation.
        seed: seed of the start states.
        num_envs: parallel environments, one process each; one for each core if None.
        dataset_path: folder of the Minari data set, which names the environment; OGBench needs none.
        """
        self.spec = spec
        self.dataset_path = dataset_path
        self.reference_scores = None if spec.suite == "ogbench" else minari_data.reference_scores(spec, dataset_path)
        self.num_envs = min(num_envs or available_cores(), episodes)
        self.episode_seeds = [
            int(np.random.SeedSequence((seed, episode)).generate_state(1)[0]) for episode in range(episodes)
        ]
        self._envs: gymnasium.vector.VectorEnv | None = None

    def __call__(self, policy: Policy, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Run all episodes.

        Args:
            policy: actions for a batch of observations, given each one's episode number and time step.
            should_stop: asked at every step.

        Returns:
            Means over episodes: success in percent (of those of which the environment tells it), normalised score in
            percent (where there are references), return (undiscounted), length in steps. None if it was stopped.

        Raises:
            UserError: a worker process died.
        """
        try:
            return self._evaluate(self.start(), policy, should_stop)
        except (EOFError, ConnectionError) as error:  # a signal to the whole process group, the kernel short of memory
            self.close()
            deadline = time.monotonic() + GRACE_S
            while (
                time.monotonic() < deadline
            ):  # a signal to all of us may reach a worker before it reaches this process
                if should_stop():
                    return None
                time.sleep(0.05)
            raise UserError("an evaluation process died; fewer --eval-envs need less memory") from error

    def _evaluate(
        self, envs: gymnasium.vector.VectorEnv, policy: Policy, should_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        num_episodes = len(self.episode_seeds)
        episode = np.arange(self.num_envs)  # the episode that each environment is in; num_episodes or more: done
        time_step = np.zeros(self.num_envs, dtype=np.int64)
        returns, lengths, successes = np.zeros((3, num_episodes))
        observations, _ = envs.reset(seed=[self.episode_seeds[i] for i in episode])
        with tqdm.tqdm(total=num_episodes, desc="evaluating", unit="episode", leave=False, disable=None) as progress:
            while True:
                if should_stop():
                    self.close()  # a step may be under way
                    return None
                actions = np.asarray(policy(observations, episode, time_step))
                observations, rewards, terminated, truncated, infos = envs.step(actions)
                running = episode < num_episodes
                returns[episode[running]] += rewards[running]
                time_step += 1
                finished = running & (terminated | truncated)
                if not finished.any():
                    continue
                lengths[episode[finished]] = time_step[finished]
                successes[episode[finished]] = infos["success"][finished]
                progress.update(int(finished.sum()))
                episode[finished] += self.num_envs
                time_step[finished] = 0
                if (episode >= num_episodes).all():
                    break
                restart = finished & (episode < num_episodes)
                if restart.any():
                    seeds = [
                        self.episode_seeds[i] if again else None for i, again in zip(episode, restart, strict=True)
                    ]
                    observations, _ = envs.reset(seed=seeds, options={"reset_mask": restart})
        result = {} if np.isnan(successes).all() else {"evaluation/success": 100 * float(np.nanmean(successes))}
        if self.reference_scores is not None:
            low, high = self.reference_scores
            result["evaluation/normalized_score"] = 100 * (float(returns.mean()) - low) / (high - low)
        return result | {"evaluation/return": float(returns.mean()), "evaluation/length": float(lengths.mean())}

    def start(self) -> gymnasium.vector.VectorEnv:
        """Start the worker processes, unless they are running."""
        if self._envs is None:
            make = [functools.partial(make_evaluation_env, self.spec, self.dataset_path)] * self.num_envs
            if self.num_envs == 1:
                self._envs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)
            else:  # spawned, so that no worker inherits JAX's threads or touches the accelerator
                self._envs = AsyncVectorEnv(make, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        return self._envs

    def close(self) -> None:
        """End the worker processes. The next evaluation starts new ones."""
        if self._envs is not None:
            if isinstance(self._envs, AsyncVectorEnv):
                self._envs.close(terminate=True)
            else:
                self._envs.close()
            self._envs = None
