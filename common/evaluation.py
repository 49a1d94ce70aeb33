"""Policies in the real environments: evaluated beside training or alone, filmed, and exploring."""

import concurrent.futures
import contextlib
import functools
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
import tqdm
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jaxtyping import Array, Float, Int, Key

from common import compiled, machine, minari_envs, mujoco_versions
from common.arguments import RunArgs, check_alone, for_evaluation
from common.env_ids import EnvSpec
from common.envs import ExplorationEnvs, make_evaluation_lanes, make_film_env
from common.errors import UserError
from common.files import write_whole
from common.processes import available_cores, check_locks
from common.progress import describe
from common.replay import Batch
from common.run_directory import RunDirectory, score_metric
from common.runs import Outcome, Runs
from common.seeds import keys_of_runs
from common.session import Session
from common.signals import StopSignals, starting_workers

GRACE_S = 1.0
LANES_PER_WORKER = 4  # at least: the policy is called once for all of them, and processes talk less

# (observations [seeds, lanes, o], episode numbers and time steps [seeds, lanes]) -> actions [seeds, lanes, a]
Policy = Callable[
    [Float[np.ndarray, "seeds lanes o"], Int[np.ndarray, "seeds lanes"], Int[np.ndarray, "seeds lanes"]],
    Float[np.ndarray, "seeds lanes a"],
]
Results = list[dict[str, float]]  # of each seed
Act = Callable[[Any, Float[Array, " o"], Key[Array, ""]], Float[Array, " a"]]  # of parameters: one action


class Workers(AsyncVectorEnv):
    """Its own way to close first waits for the answer to a step that is under way, even of a process that died."""

    def close_extras(self, **_: object) -> None:
        """End all processes."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


class Evaluator:
    """Runs the same episodes at every evaluation, for several training seeds at once, spread over worker processes.

    Episode i of a training seed always starts from the seed made of (training seed, i), and lane j of n always runs the
    episodes j, j + n, j + 2n, ...: never 'the first to finish', which would favour short episodes.
    """

    def __init__(
        self,
        spec: EnvSpec,
        episodes: int,
        *,
        seeds: Sequence[int],
        workers: int | None = None,
        dataset_path: pathlib.Path | None = None,
    ):
        """Args:
        spec: environment.
        episodes: episodes an evaluation, for each seed.
        seeds: training seeds.
        workers: processes, each with several environments; one for each core if None. One is this process itself.
        dataset_path: folder of the Minari data set, which names the environment; OGBench needs none.

        Raises:
            UserError: there cannot be several processes here.
        """
        self.spec = spec
        self.dataset_path = dataset_path
        self.reference_scores = minari_envs.reference_scores(spec, dataset_path) if spec.suite == "d4rl" else None
        workers = workers or available_cores()
        self.lanes = min(math.ceil(workers * LANES_PER_WORKER / len(seeds)), episodes)  # of each seed
        self._share = math.ceil(len(seeds) * self.lanes / workers)  # lanes of a worker
        self.workers = math.ceil(len(seeds) * self.lanes / self._share)
        if self.workers > 1:
            check_locks("make room there, or take --eval-workers 1, which needs none")
        self.episode_seeds = [
            [int(np.random.SeedSequence((seed, episode)).generate_state(1)[0]) for episode in range(episodes)]
            for seed in seeds
        ]
        self._envs: gymnasium.vector.VectorEnv | None = None

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
            if self._is_stopping(should_stop):
                return None
            raise UserError("an evaluation process died; fewer --eval-workers need less memory") from error

    def _is_stopping(self, should_stop: Callable[[], bool]) -> bool:
        """Whether a stop was asked for. A signal to all of us may reach a worker before it reaches this process."""
        deadline = time.monotonic() + GRACE_S
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.05)
        return should_stop()

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

    def film(
        self,
        policy: Policy,
        path: pathlib.Path,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        episodes: int = 3,
        size: int = 256,
    ) -> None:
        """Write the first episodes of the first seed to a video, about 25 frames a second at the episodes' own pace.

        Args:
            policy: of one seed.
            path: file; its name says the format (.mp4, .gif).
            should_stop: asked after each step; if so, nothing is written.
            episodes: how many.
            size: width and height in pixels.

        Raises:
            UserError: this machine cannot render, or not write such a file.
        """
        import imageio.v3 as iio

        def write(temporary: pathlib.Path) -> None:
            hundredths = round(100 / rate)  # a GIF's unit of time
            options = {"loop": 0, "duration": 10 * hundredths} if path.suffix == ".gif" else {"fps": rate}
            iio.imwrite(temporary, np.stack(frames), **options)

        os.environ["IMAGEIO_FFMPEG_NO_PREVENT_SIGINT"] = "1"  # else it runs code between fork and exec: JAX warns of it
        try:
            frames, rate = self._frames(policy, path.suffix == ".gif", should_stop, episodes, size)
            if not should_stop():
                write_whole(path, write)
                print(f"video: {path}, {len(frames)} frames")
        except Exception as error:  # of whatever kind the graphics library of the machine raises
            if not self._is_stopping(should_stop):
                reason = f"filming fails here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                raise UserError(f"--video {path}: {error if isinstance(error, UserError) else reason}") from error

    def _frames(
        self, policy: Policy, is_gif: bool, should_stop: Callable[[], bool], episodes: int, size: int
    ) -> tuple[list[np.ndarray], float]:
        """Of `film`, and how many are to be shown in a second; fewer, where it is stopped."""
        # In a process of its own: MuJoCo chooses how to render when it is first imported. EGL needs no display.
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")
        gymnasium.logger.min_level = gymnasium.logger.ERROR + 1  # it would print what becomes one line here
        make = functools.partial(make_film_env, self.spec, self.dataset_path, size)
        check_locks("make room there")
        with starting_workers():
            env = Workers([make], context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        with contextlib.closing(env), tqdm.tqdm(desc="filming", unit="step", mininterval=1) as progress:
            fps = env.metadata.get("render_fps") or 20
            # Rendering in software takes longer than all the rest. A GIF stores every pixel that changes, too.
            frames, stride = [], max(2 if is_gif else 1, round(fps / 25))
            for episode in range(min(episodes, len(self.episode_seeds[0]))):
                observations, _ = env.reset(seed=self.episode_seeds[0][episode])
                time_step, over = 0, False
                while not over:
                    if time_step % stride == 0:
                        frames.append(env.call("render")[0])
                    actions = policy(observations[None], np.array([[episode]]), np.array([[time_step]]))[0]
                    observations, _, terminated, truncated, _ = env.step(np.asarray(actions))
                    time_step, over = time_step + 1, (terminated | truncated).all()
                    progress.update()
                    if should_stop():
                        return frames, fps / stride
                frames.append(env.call("render")[0])  # what it ended with
        return frames, fps / stride

    def start(self) -> gymnasium.vector.VectorEnv:
        """Start the worker processes, unless they are running."""
        if self._envs is None:
            make = [
                functools.partial(make_evaluation_lanes, self.spec, self.dataset_path, lanes)
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
        args, runs = session.args, session.runs
        self._session, self._runs = session, runs
        self._evaluator = Evaluator(
            runs.spec, args.eval_episodes, seeds=runs.seeds, workers=args.eval_workers, dataset_path=runs.dataset_path
        )
        self._policies = policies_of(act, keys_of_runs(runs.seeds).evaluation)
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


class Explorer:
    """Fine-tuning: each seed explores an environment of its own."""

    def __init__(self, session: Session, act: Act):
        """Args:
        session: whose.
        act: the policy.
        """
        self._session = session
        self._envs: ExplorationEnvs | None = None  # as long as there is no step
        act_at = lambda params, observation, key, step: act(params, observation, jax.random.fold_in(key, step))  # noqa: E731
        self._act = jax.jit(jax.vmap(act_at, in_axes=(0, 0, 0, None)))

    def step(self, step: int, params: Any) -> Batch:
        """A step in the environment of each seed after update `step`: the transitions, in their places."""
        runs, seeds = self._session.runs, self._session.seeds
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


def evaluate_run(
    args: RunArgs, algorithm: str, init_state: Callable[..., Any], sample_action: Callable[..., Any]
) -> list[Outcome]:
    """Evaluate a saved policy, with the settings of its run but for those that are given; film it if asked to.

    Args:
        args: `evaluate`, and what is to differ.
        algorithm: name of the script.
        init_state: its (args, observation_dim, action_dim, key) -> state.
        sample_action: its (args, params, observation, key) -> action.

    Raises:
        UserError: this is no run of this algorithm, or without a checkpoint; a setting that --evaluate does not take.
    """
    check_alone(args)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # in a program that has not used JAX yet
    machine.check()
    compiled.keep()
    run, video = RunDirectory.open(args.evaluate, algorithm, lock=False), args.video
    runs = Runs([run])
    runs.find_data(args)
    run.note_changes_of_code()
    args = for_evaluation(run.read_args(type(args)), args)
    mujoco_versions.note_difference(runs.spec, run.config["dataset"])
    evaluator = Evaluator(
        runs.spec, args.eval_episodes, seeds=runs.seeds, workers=args.eval_workers, dataset_path=runs.dataset_path
    )
    with contextlib.closing(evaluator), StopSignals() as stop:
        step, params = runs.read_newest_params(functools.partial(init_state, args, *run.sizes))
        policies = policies_of(functools.partial(sample_action, args), keys_of_runs(runs.seeds).evaluation)
        policy = policies(params)
        results = evaluator(policy, stop.requested)
        if results is None:
            return [Outcome(run.path, step, None)]
        episodes = f"{args.eval_episodes} episode{'s' if args.eval_episodes > 1 else ''}"
        print(f"after update {step:,}, {episodes}: {describe(results[0])}")
        if video is not None and not stop.requested():
            evaluator.film(policy, video, stop.requested)
        if video is not None and stop.requested():
            print("stopped: no video")
    return [Outcome(run.path, step, results[0][score_metric(results)])]
