"""Policies on film."""

import contextlib
import functools
import itertools
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from common.env_ids import EnvSpec
from common.envs import make_film_env
from common.errors import UserError
from common.evaluation import Policy, Workers, is_stopping, seed_of_episode
from common.files import write_whole
from common.processes import available_cores, check_locks
from common.signals import starting_workers

import gymnasium
import numpy as np
import tqdm
from gymnasium.vector import AutoresetMode

MOST_A_SECOND, MOST_AN_EPISODE = 25, 250  # frames: rendered in software, one takes a fifth of a second
MOST_AT_ONCE = 4  # episodes: the process of each takes 0.8 GB


def film(
    policy: Policy,
    path: pathlib.Path,
    spec: EnvSpec,
    *,
    seed: int,
    episodes: int,
    dataset_path: pathlib.Path | None = None,
    frame_stack: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    size: int = 256,
) -> None:
    """Write the first episodes that are evaluated to a video, at the episodes' own pace.

    Args:
        policy: of one seed.
        path: file; its name says the format (.mp4, .gif).
        spec: environment.
        seed: training seed, which says where the episodes start.
        episodes: how many.
        dataset_path: folder of the Minari data set, which names its environment; others need none.
        frame_stack: of images: how many are an observation; one if None.
        should_stop: asked after each step; if so, what there is by then is written.
        size: width and height in pixels.

    Raises:
        UserError: this machine cannot render, or not write such a file.
    """
    import imageio.v3 as iio

    def write(temporary: pathlib.Path) -> None:
        hundredths = round(100 / camera.rate)  # a GIF's unit of time
        options = {"loop": 0, "duration": 10 * hundredths} if path.suffix == ".gif" else {"fps": camera.rate}
        iio.imwrite(temporary, np.stack(camera.frames), **options)

    os.environ["IMAGEIO_FFMPEG_NO_PREVENT_SIGINT"] = "1"  # else it runs code between fork and exec: JAX warns of it
    try:
        starts = [seed_of_episode(seed, episode) for episode in range(episodes)]
        make = functools.partial(_make_episode, spec, dataset_path, frame_stack or 1, size)
        camera = _Camera(make, episodes, is_gif=path.suffix == ".gif")
        with contextlib.closing(camera):
            try:
                camera.film(policy, starts, should_stop)
            except (EOFError, ConnectionError):  # a signal to all of us reached that process first
                if not is_stopping(should_stop):
                    raise
        if camera.frames:
            write_whole(path, write)
        stopped = "stopped: " if should_stop() else ""
        print(f"{stopped}video: {path}, {len(camera.frames)} frames" if camera.frames else "stopped: no video")
    except Exception as error:  # of whatever kind the graphics library of the machine raises
        reason = f"filming fails here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UserError(f"--video {path}: {error if isinstance(error, UserError) else reason}") from error


class _Episode(gymnasium.Wrapper):
    """Once it is over, it stays as it ended."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin another one."""
        self._time_step, self._over, self._is_shot = 0, False, False
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step."""
        if not self._over:
            self._answer, self._time_step = self.env.step(action), self._time_step + 1
            self._over = self._answer[2] or self._answer[3]
        return self._answer

    def shoot(self, stride: int) -> np.ndarray | None:
        """A picture every so many steps, and of what it ends with; None in between and afterwards."""
        if self._is_shot or not (self._over or self._time_step % stride == 0):
            return None
        self._is_shot = self._over
        return self.env.render()


def _make_episode(*args: Any) -> _Episode:
    return _Episode(make_film_env(*args))


class _Camera:
    """Environments, each in a process of its own: MuJoCo chooses how to render when it is first imported.

    Attributes:
        rate: how many pictures are to be shown in a second.
    """

    def __init__(self, make: Callable[[], _Episode], episodes: int, *, is_gif: bool):
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")  # needs no display
        gymnasium.logger.min_level = gymnasium.logger.ERROR + 1  # it would print what becomes one line here
        check_locks("make room there")
        self._at_once = min(available_cores(), episodes, MOST_AT_ONCE)
        with starting_workers():
            self._envs = Workers([make] * self._at_once, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        self.close = self._envs.close
        self._most_steps = self._envs.get_attr("most_steps")[0]
        # Rendering in software takes longer than all the rest. A GIF stores every pixel that changes, too.
        fps, of_gif = self._envs.metadata.get("render_fps") or 20, 2 if is_gif else 1
        self._stride = max(of_gif, round(fps / MOST_A_SECOND), math.ceil(self._most_steps / MOST_AN_EPISODE))
        self._frames: list[list[np.ndarray]] = [[] for _ in range(episodes)]
        self.rate = fps / self._stride

    @property
    def frames(self) -> list[np.ndarray]:
        """Pictures so far, of one episode after the other."""
        return list(itertools.chain.from_iterable(self._frames))

    def film(self, policy: Policy, starts: list[int], should_stop: Callable[[], bool]) -> None:
        """Go through episodes, as many at once as there are processes."""
        total = len(starts) * self._most_steps
        with tqdm.tqdm(desc="filming", unit="step", mininterval=1, total=total) as progress:
            for first in range(0, len(starts), self._at_once):
                # Processes that are left over repeat the last episode, of which they keep nothing.
                episodes = np.arange(first, first + self._at_once).clip(max=len(starts) - 1)
                observations, _ = self._envs.reset(seed=[starts[episode] for episode in episodes])
                over, counted = np.zeros(len(episodes), bool), len(starts[first : first + self._at_once])
                self._shoot(first)
                time_step = 0
                while not over.all():
                    time_steps = np.full((1, len(episodes)), time_step)
                    actions = policy(observations[None], episodes[None], time_steps)[0]
                    observations, _, terminated, truncated, _ = self._envs.step(np.asarray(actions))
                    time_step, ended = time_step + 1, (terminated | truncated) & ~over
                    progress.update(int((~over[:counted]).sum()))
                    progress.total -= int(ended[:counted].sum()) * (self._most_steps - time_step)
                    over |= ended
                    self._shoot(first)
                    if should_stop():
                        return

    def _shoot(self, first: int) -> None:
        """What is due of the episodes from `first` on."""
        for frames, frame in zip(self._frames[first:], self._envs.call("shoot", self._stride), strict=False):
            if frame is not None:
                frames.append(frame)
