"""Constructs the real environments."""

import collections
import contextlib
import functools
import math
import os
import pathlib
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from common import actions, minari_envs
from common.answers import Answers, is_image
from common.env_ids import VISUAL, EnvSpec
from common.errors import UserError

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

TRIAL_STEPS, TRIAL_FRAMES = 10, 4
HOW_TO_RENDER = "images need EGL (Debian: libegl1 libgl1-mesa-dri), or OSMesa (libosmesa6) and MUJOCO_GL=osmesa"

# Of every machine without a display, of OGBench's float64 bounds for float32 actions, and of its missing metadata.
warnings.filterwarnings("ignore", message=".*not in the possible render_modes")
warnings.filterwarnings("ignore", module="glfw")
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")


def make_env(env_name: str, **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` for OGBench's environments, and those that are made of them.

    Args:
        env_name: Gymnasium id, e.g. 'cube-double-singletask-v0', 'cube-double-v0', 'common.d4rl_envs:d4rl-pen-human'.
        **kwargs: arguments of the environment.
    """
    if VISUAL in env_name and sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no display; MuJoCo chooses when it is first imported
    try:
        import mujoco  # noqa: F401 (what the environments import)
        import ogbench  # noqa: F401 (registers the environments; slow, so not before it is needed)
    except (ImportError, AttributeError, RuntimeError) as error:
        if "MUJOCO_GL" not in os.environ:
            raise
        advice = HOW_TO_RENDER if VISUAL in env_name else "unset it"
        raise UserError(f"MuJoCo does not start with MUJOCO_GL={os.environ['MUJOCO_GL']}; {advice}") from error

    # The checker computes every observation twice.
    return gymnasium.make(env_name, disable_env_checker=True, **kwargs)


class Rendering(NamedTuple):
    """How this machine draws what an environment is observed in."""

    renderer: str  # the library that MuJoCo uses, and what that says of itself: other ones draw other pixels
    steps_a_second: float  # of one core


def try_to_render(spec: EnvSpec) -> Rendering:
    """Take a few steps in one of OGBench's environments that are observed in images.

    Raises:
        UserError: this machine cannot draw them, with what is needed.
    """
    try:
        with contextlib.closing(make_env(f"{spec.env_name}-v0")) as env:
            import mujoco  # which makes its choice in make_env

            mujoco.GLContext(64, 64).free()  # alone: a renderer that is made by halves complains when it goes
            env.reset(seed=0)
            start = time.monotonic()
            for _ in range(TRIAL_FRAMES):
                env.step(np.zeros(env.action_space.shape, np.float32))
            seconds = time.monotonic() - start
            from OpenGL import GL  # of the context that has just drawn

            while GL.glGetError():  # MuJoCo leaves some behind
                pass
            drawn_by = GL.glGetString(GL.GL_RENDERER).decode()
    except UserError:
        raise
    except Exception as error:  # of whatever kind the graphics library of the machine raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{spec.env_name}: nothing can be drawn here ({reason}); {HOW_TO_RENDER}") from error
    return Rendering(f"{os.environ.get('MUJOCO_GL', 'default')}: {drawn_by}", TRIAL_FRAMES / seconds)


def make_own_env(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` for an environment of one's own: 'my_envs:Reach-v0' imports my_envs, which registers it.

    Raises:
        UserError: it cannot be made, is not of continuous control, or has no time limit.
    """
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except ImportError as error:
        advice = "put it beside drol.py, or its folder into PYTHONPATH"
        raise UserError(f"--env-id {env_id}: {env_id.split(':')[0]} cannot be imported ({error}); {advice}") from error
    except Exception as error:  # of whatever kind its module or its constructor raises
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(f"--env-id {env_id}: it cannot be made ({reason})") from error
    observations, problem = env.observation_space, None
    if isinstance(observations, gymnasium.spaces.Box) and len(observations.shape) == 3 and not is_image(observations):
        problem = f"images are uint8, height x width x 1, 3 or 4, a frame each, not {observations}"
    elif not (
        is_image(observations) or (isinstance(observations, gymnasium.spaces.Box) and len(observations.shape) == 1)
    ):
        problem = f"observations are not vectors ({observations}); gymnasium.wrappers.FlattenObservation makes them so"
    elif env.spec.max_episode_steps is None:
        problem = "it has no time limit, and evaluation may not end; register it with max_episode_steps"
    if problem is not None:
        env.close()
        raise UserError(f"--env-id {env_id}: {problem}")
    return env


_RANDOM_NUMBERS = threading.Lock()


class EvaluationEnv(gymnasium.Wrapper):
    """An episode that is the same whenever it is started with the same seed, acted in within [-1, 1].

    Observations are flat and float32, or images: the last frames side by side in the channels, the oldest first. The
    info holds `success` alone: whether the task has been achieved so far, 0 or 1; not a number where the environment
    does not say. An answer that has no meaning is a `UserError`.

    Attributes:
        action_bounds: the environment's own; None where they are [-1, 1].
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        ends_at_success: bool = False,
        own_actions: bool = False,
        uses_random: bool = True,
        frame_stack: int = 1,
    ):
        """Args:
        env: environment.
        ends_at_success: end the episode there, if the environment does not do so itself.
        own_actions: it is acted in within its own bounds.
        uses_random: it may draw from Python's generator, which takes as long to change as a small environment to step.
        frame_stack: of images: how many are an observation; at the beginning of an episode the first one several times.

        Raises:
            UserError: actions are not vectors of real numbers, or not bounded.
        """
        self._answers = Answers(env)
        self.action_bounds = actions.bounds_of(env.action_space, self._answers.name)
        super().__init__(
            env if own_actions or self.action_bounds is None else actions.UnitActions(env, self.action_bounds)
        )
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self._answers.size,), np.float32)
        if self._answers.image_shape is not None:
            *size, channels = self._answers.image_shape
            self.observation_space = gymnasium.spaces.Box(0, 255, (*size, channels * frame_stack), np.uint8)
        self._frames: collections.deque[np.ndarray] = collections.deque(maxlen=frame_stack)
        self.ends_at_success = ends_at_success
        self._success = math.nan
        self._bit_generator = np.random.MT19937()
        self._random_state = random.getstate() if uses_random else None

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """OGBench's mazes draw from NumPy's global generator, others from Python's: here every environment has its own.

        All but the second of a pair of normal numbers, which `np.random.randn` keeps back: it is lost.
        """
        with _RANDOM_NUMBERS:
            shared = np.random.get_bit_generator()
            np.random.set_bit_generator(self._bit_generator)
            if self._random_state is not None:
                shared_state = random.getstate()
                random.setstate(self._random_state)
            try:
                yield
            finally:
                np.random.set_bit_generator(shared)
                if self._random_state is not None:
                    self._random_state = random.getstate()
                    random.setstate(shared_state)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode that belongs to `seed`."""
        self.env.action_space.seed(seed)  # a reset takes a few random steps to make up a goal image
        with self._own_random_numbers(), self._answers.asking("reset"):
            np.random.seed(seed)
            if self._random_state is not None:
                random.seed(seed)
            answer = self.env.reset(seed=seed)
        observation, _ = self._answers.parts("reset", answer, "observation, info")
        # Those steps leave their mark in the solver's starting point (the arm's action space cannot be seeded).
        if hasattr(self.unwrapped, "data"):  # MuJoCo's
            self.unwrapped.data.qacc_warmstart[:] = 0
        self._success = math.nan
        observation = self._answers.observation("reset", observation)
        self._frames.extend([observation] * self._frames.maxlen)
        return self._stacked(observation), {}

    def _stacked(self, observation: np.ndarray) -> np.ndarray:
        """With the frames before it, if it is one of them."""
        return observation if observation.ndim == 1 else np.concatenate(self._frames, axis=-1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step."""
        answers = self._answers
        with self._own_random_numbers(), answers.asking("step"):
            answer = self.env.step(action)
        names = "observation, reward, terminated, truncated, info"
        observation, reward, terminated, truncated, info = answers.parts("step", answer, names)
        self._success = float(np.fmax(self._success, answers.success(info)))
        terminated, truncated = answers.flag("terminated", terminated), answers.flag("truncated", truncated)
        terminated = terminated or (self.ends_at_success and self._success == 1)
        info = {"success": self._success}
        observation = answers.observation("step", observation)
        self._frames.append(observation)
        return self._stacked(observation), answers.reward(reward), terminated, truncated, info

    @property
    def most_steps(self) -> int:
        """Of an episode."""
        return self.env.get_wrapper_attr("spec").max_episode_steps

    def render(self) -> np.ndarray:
        """A picture [height, width, 3], of uint8. Raises `UserError` where there is none."""
        try:
            frame = self.env.render()
        except Exception as error:  # of whatever kind the graphics library of the machine raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            advice = f"; {HOW_TO_RENDER}" if hasattr(self.unwrapped, "data") else ""
            raise UserError(f"{self._answers.name}: render() raised {reason}{advice}") from error
        return self._answers.frame(frame)


def try_out(env: EvaluationEnv) -> None:
    """Take a few steps in two episodes of one seed, so that what is wrong is known before the first update.

    Raises:
        UserError: it raises, or answers what has no meaning.
    """
    rng, space, name = np.random.default_rng(0), env.unwrapped.observation_space, env.unwrapped.spec.id
    tries = rng.uniform(-1, 1, (TRIAL_STEPS, *env.action_space.shape)).astype(np.float32)
    episodes = []
    for _ in range(2):
        observations, over = [env.reset(seed=0)[0]], False
        for action in tries:
            if not over:
                observation, _, terminated, truncated, _ = env.step(action)
                observations.append(observation)
                over = terminated or truncated
        episodes.append(np.array(observations))
    first, second = episodes
    if not np.array_equal(first, second):
        print(f"note: {name}: two episodes of one seed differ, so evaluations do not repeat themselves", flush=True)
    if isinstance(space, gymnasium.spaces.Box) and ((first < space.low) | (first > space.high)).any():
        worst = first[((first < space.low) | (first > space.high)).any(axis=1)][0]
        print(
            f"note: {name}: observations leave their space ({worst}, {space}); they are taken as they are", flush=True
        )


class EpisodeLanes(gymnasium.Env):
    """Several environments side by side in one process: lanes, in each of which episodes run one after the other.

    A step takes a step in every lane that is not through. Wherever that ends an episode the next one begins, and the
    info has its `return`, `length` and `success`, an entry a lane, with a mask `ended`; else the info is empty. Of an
    environment that does not do as it should, the info says so in `refused`.
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
        self._observations = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        self._running, self._returns, self._lengths = np.zeros((3, len(self._envs)))
        try:
            for lane in range(len(self._envs)):
                self._begin(lane)
        except UserError as error:
            return self._observations.copy(), {"refused": str(error)}
        return self._observations.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step in every lane."""
        try:
            results = self._step(action)
        except UserError as error:
            results = {"refused": str(error)}
        return self._observations.copy(), 0.0, False, False, results

    def _step(self, action: np.ndarray) -> dict[str, np.ndarray]:
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
        return {"ended": ended, "return": returns, "length": lengths, "success": successes} if ended.any() else {}

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
    spec: EnvSpec, dataset_path: pathlib.Path | None, frame_stack: int, episode_seeds: Sequence[Sequence[int]]
) -> EpisodeLanes:
    """What a worker process of an evaluation runs: `EpisodeLanes` of `make_evaluation_env`."""
    make = functools.partial(make_evaluation_env, spec, dataset_path, frame_stack=frame_stack)
    return EpisodeLanes(make, episode_seeds)


def make_evaluation_env(
    spec: EnvSpec,
    dataset_path: pathlib.Path | None = None,
    *,
    own_actions: bool = False,
    frame_stack: int = 1,
    **kwargs: Any,
) -> EvaluationEnv:
    """The environment that a policy for `spec` is judged in.

    Args:
        spec: environment and task.
        dataset_path: folder of the Minari data set, which names its environment; others need none.
        own_actions: act in its own bounds, not in [-1, 1].
        frame_stack: of images: how many are an observation.
        **kwargs: further arguments of the environment.
    """
    ends_at_success = False
    if spec.suite == "d4rl_hdf5":
        env = make_env(f"common.d4rl_envs:{spec.name}", **kwargs)
    elif spec.suite == "d4rl":
        env = minari_envs.make_env(dataset_path, **kwargs)
        # Trap: AntMaze goes on at the goal, and would count it at every further step.
        ends_at_success = minari_envs.ends_at_success(dataset_path)
    else:
        env = make_own_env(spec.name, **kwargs) if spec.suite == "gymnasium" else make_env(spec.gym_id, **kwargs)
    return EvaluationEnv(
        env,
        ends_at_success=ends_at_success,
        own_actions=own_actions,
        uses_random=spec.suite != "ogbench",
        frame_stack=frame_stack,
    )


def make_film_env(spec: EnvSpec, dataset_path: pathlib.Path | None, frame_stack: int, size: int) -> EvaluationEnv:
    """`make_evaluation_env` that renders, `size` pixels wide and high if it lets one choose.

    One that is observed in images stays as it is: another size, or another shadow, and they would be other images.
    """
    make = functools.partial(make_evaluation_env, spec, dataset_path, frame_stack=frame_stack, render_mode="rgb_array")
    try:
        env = make() if spec.is_visual else make(width=size, height=size)
    except (TypeError, UserError):
        env = make()
    if env.observation_space.dtype == np.uint8:
        return env if spec.is_visual else make()
    with contextlib.suppress(AttributeError):  # not MuJoCo's
        env.unwrapped.model.vis.quality.shadowsize = 1024  # of 4096: a fifth less time in software
    return env
