"""Policies are evaluated: the same episodes every time, in parallel environments, beside training or alone."""

import concurrent.futures
import functools
import math
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from common import machine, minari_envs
from common.env_ids import EnvSpec
from common.envs import make_evaluation_lanes
from common.errors import UserError
from common.processes import available_cores, check_locks
from common.runs import Runs
from common.seeds import keys_of_runs
from common.session import Session
from common.signals import starting_workers

import gymnasium
import jax
import numpy as np
import tqdm
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jaxtyping import Array, Float, Int, Key, Shaped

GRACE_S = 1.0
LANES_PER_WORKER = 4  # at least: the policy is called once for all of them, and processes talk less

# (observations [seeds, lanes, *o], episode numbers and time steps [seeds, lanes]) -> actions [seeds, lanes, a]
Policy = Callable[
    [Shaped[np.ndarray, "seeds lanes *o"], Int[np.ndarray, "seeds lanes"], Int[np.ndarray, "seeds lanes"]],
    Float[np.ndarray, "seeds lanes a"],
]
Results = list[dict[str, float]]  # of each seed
Act = Callable[[Any, Shaped[Array, "*o"], Key[Array, ""]], Float[Array, " a"]]  # of parameters: one action


class Workers(AsyncVectorEnv):
    """Its own way to close first waits for the answer to a step that is under way, even of a process that died."""

    def close_extras(self, **_: object) -> None:
        """End all processes."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


def is_stopping(should_stop: Callable[[], bool]) -> bool:
    """Whether a stop was asked for. A signal to all of us may reach a worker before it reaches this process."""
    deadline = time.monotonic() + GRACE_S
    while not should_stop() and time.monotonic() < deadline:
        time.sleep(0.05)
    return should_stop()


def seed_of_episode(seed: int, episode: int) -> int:
    """What episode number `episode` of a training seed starts from."""
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0])


class Evaluator:
    """Runs the same episodes at every evaluation, for several training seeds at once, spread over worker processes.

    Lane j of n always runs the episodes j, j + n, j + 2n, ...: never 'the first to finish', which would favour short
    episodes.
    """

    def __init__(
        self,
        spec: EnvSpec,
        episodes: int,
        *,
        seeds: Sequence[int],
        workers: int | None = None,
        dataset_path: pathlib.Path | None = None,
        frame_stack: int | None = None,
    ):
        """Args:
        spec: environment.
        episodes: episodes an evaluation, for each seed.
        seeds: training seeds.
        workers: processes, each with several environments; one for each core if None. One is this process itself.
        dataset_path: folder of the Minari data set, which names the environment; OGBench needs none.
        frame_stack: of images: how many are an observation; one if None.

        Raises:
            UserError: there cannot be several processes here.
        """
        self.spec = spec
        self.dataset_path = dataset_path
        self._frame_stack = frame_stack or 1
        has_scores = spec.suite in ("d4rl", "d4rl_hdf5")
        self.reference_scores = minari_envs.reference_scores(spec, dataset_path) if has_scores else None
        workers = workers or available_cores()
        self.lanes = min(math.ceil(workers * LANES_PER_WORKER / len(seeds)), episodes)  # of each seed
        self._share = math.ceil(len(seeds) * self.lanes / workers)  # lanes of a worker
        self.workers = math.ceil(len(seeds) * self.lanes / self._share)
        if self.workers > 1:
            check_locks("make room there, or take --eval-workers 1, which needs none")
        self.episode_seeds = [[seed_of_episode(seed, episode) for episode in range(episodes)] for seed in seeds]
        self._envs: gymnasium.vector.VectorEnv | None = None

    @staticmethod
    def of(runs: Runs) -> "Evaluator":
        """As their arguments ask for it."""
        args, workers = runs.args, runs.args.eval_workers
        return Evaluator(
            runs.spec,
            args.eval_episodes,
            seeds=runs.seeds,
            workers=workers,
            dataset_path=runs.dataset_path,
            frame_stack=args.frame_stack,
        )

    def __call__(self, policy: Policy, should_stop: Callable[[], bool] = lambda: False) -> Results | None:
        """Run all episodes now.

        Args:
            policy: actions for a batch of observations, given each one's episode number and time step.
            should_stop: asked at every step.

        Returns:
            For each seed means over episodes: success in percent (of those of which the environment tells it),
            normalised score in percent (where there are references), return (undiscounted), length in steps. None if it
            was stopped.

        Raises:
            UserError: a worker process died; an environment does not do as it should.
        """
        try:
            return self._evaluate(self.start(), policy, should_stop)
        except (EOFError, ConnectionError) as error:  # a signal to the whole process group, the kernel short of memory
            self.close()
            if is_stopping(should_stop):
                return None
            raise UserError("an evaluation process died; fewer --eval-workers need less memory") from error

    def _evaluate(
        self, envs: gymnasium.vector.VectorEnv, policy: Policy, should_stop: Callable[[], bool]
    ) -> Results | None:
        num_seeds, num_episodes = len(self.episode_seeds), len(self.episode_seeds[0])
        shape = (num_seeds, self.lanes)
        size = num_seeds * self.lanes

        def by_seed(x: np.ndarray) -> np.ndarray:  # [workers, lanes of a worker, ...] -> [seeds, lanes of a seed, ...]
            return x.reshape(-1, *x.shape[2:])[:size].reshape(*shape, *x.shape[2:])

        episode = np.tile(np.arange(self.lanes), (num_seeds, 1))  # that each lane is in; num_episodes or more: through
        time_step = np.zeros(shape, dtype=np.int64)
        results = {name: np.zeros((num_seeds, num_episodes)) for name in ("return", "length", "success")}
        actions = np.zeros(envs.action_space.shape, np.float32)
        observations, infos = envs.reset()
        self._check(infos)
        progress = tqdm.tqdm(
            total=num_seeds * num_episodes, desc="evaluating", unit="episode", leave=False, position=1, disable=None
        )
        with progress:
            while (episode < num_episodes).any():
                if should_stop():
                    self.close()  # a step may be under way
                    return None
                actions.reshape(-1, actions.shape[-1])[:size] = np.reshape(
                    policy(by_seed(observations), episode, time_step), (size, -1)
                )
                observations, _, _, _, infos = envs.step(actions)
                self._check(infos)
                time_step += 1
                if "ended" not in infos:
                    continue
                ended = by_seed(infos["ended"]) == 1
                for name, values in results.items():
                    values[np.nonzero(ended)[0], episode[ended]] = by_seed(infos[name])[ended]
                progress.update(int(ended.sum()))
                episode[ended] += self.lanes
                time_step[ended] = 0
        return [self._summarise(*(results[name][i] for name in results)) for i in range(num_seeds)]

    def _check(self, infos: dict[str, Any]) -> None:
        """Raises `UserError` where an environment does not do as it should."""
        if "refused" in infos:
            self.close()
            raise UserError(next(filter(None, infos["refused"])))

    def _summarise(self, returns: np.ndarray, lengths: np.ndarray, successes: np.ndarray) -> dict[str, float]:
        """Means over the episodes of one seed."""
        result = {}
        if not np.isnan(successes).all():  # an environment may report success only where there is one
            result["evaluation/success"] = 100 * float(np.nan_to_num(successes).mean())
        if self.reference_scores is not None:
            low, high = self.reference_scores
            result["evaluation/normalized_score"] = 100 * (float(returns.mean()) - low) / (high - low)
        return result | {"evaluation/return": float(returns.mean()), "evaluation/length": float(lengths.mean())}

    def start(self) -> gymnasium.vector.VectorEnv:
        """Start the worker processes, unless they are running."""
        if self._envs is None:
            make = [
                functools.partial(make_evaluation_lanes, self.spec, self.dataset_path, self._frame_stack, lanes)
                for lanes in self.lanes_of_workers()
            ]
            if self.workers == 1:
                self._envs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)
            else:  # spawned, so that no worker inherits JAX's threads or touches the accelerator
                with starting_workers():
                    self._envs = Workers(make, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        return self._envs

    def lanes_of_workers(self) -> list[list[list[int]]]:
        """The seeds of the episodes of each lane of each worker; lanes without any make up the number of the last."""
        lanes = [seeds[lane :: self.lanes] for seeds in self.episode_seeds for lane in range(self.lanes)]
        lanes += [[]] * (self._share * self.workers - len(lanes))
        return [lanes[first : first + self._share] for first in range(0, len(lanes), self._share)]

    def close(self) -> None:
        """End the worker processes."""
        if self._envs is not None:
            self._envs.close()
        self._envs = None


def policies_of(act: Act, keys: Key[Array, " seeds"]) -> Callable[[Any], Policy]:
    """Of parameters [seeds, ...], the policies of all seeds in all their environments, for `Evaluator`.

    Each step of each episode has a key of its own, so that it does not matter how episodes are spread.

    Args:
        act: the policy, (parameters, observation, key) -> action.
        keys: evaluation keys.
    """

    @functools.partial(jax.jit, compiler_options=machine.single_threaded())
    def act_everywhere(params: Any, keys: Array, observations: Array, episodes: Array, time_steps: Array) -> Array:
        def act_of_seed(params: Any, key: Array, observations: Array, episodes: Array, time_steps: Array) -> Array:
            keys = jax.vmap(lambda i, t: jax.random.fold_in(jax.random.fold_in(key, i), t))(episodes, time_steps)
            return jax.vmap(functools.partial(act, params))(observations, keys)

        return jax.vmap(act_of_seed)(params, keys, observations, episodes, time_steps)

    device = machine.policy_device()
    keys = jax.device_put(keys, device)
    return lambda params: functools.partial(act_everywhere, jax.device_put(params, device), keys)


class Evaluations:
    """The evaluations of a session, each in a thread beside training; its results go to eval.csv."""

    def __init__(self, session: Session, act: Act):
        """Args:
        session: whose.
        act: the policy.
        """
        self._session, self._runs = session, session.runs
        self._evaluator = Evaluator.of(session.runs)
        self._policies = policies_of(act, keys_of_runs(session.runs.seeds).evaluation)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "evaluation")
        self._under_way: tuple[int, concurrent.futures.Future[Results | None]] | None = None
        self._closing = threading.Event()

    def make_up_for_missed(self) -> None:
        """Run the evaluations that an earlier sitting began and did not end."""
        for step, states in self._runs.missed_evaluations():
            self.begin(step, states.params)

    def begin(self, step: int, params: Any) -> None:
        """Evaluate what the seeds have learned by `step`, once the evaluation before has ended.

        Beside training, but for a single core: there they would only get in each other's way.
        """
        self.log_finished(wait=True)
        policies = self._policies(self._session.seeds.gather(params))  # copies: the next chunk reuses the memory
        stop = lambda: self._session.stop_requested() or self._closing.is_set()  # noqa: E731
        self._under_way = step, self._thread.submit(self._evaluator, policies, stop)
        self.log_finished(wait=available_cores() == 1)

    def log_finished(self, *, wait: bool = False) -> None:
        """Log the evaluation that is under way, if it has ended or is to be waited for.

        Raises:
            UserError: a worker process died.
        """
        if self._under_way is None or not (wait or self._under_way[1].done()):
            return
        step, future = self._under_way
        self._under_way = None
        results = future.result()
        if results is not None:  # else it was stopped
            self._session.progress.report_evaluation(step, self._runs.log_evaluation(step, results))

    def close(self) -> None:
        """End the thread and the worker processes; an evaluation that is under way is stopped."""
        self._closing.set()
        self._thread.shutdown()
        self._evaluator.close()
