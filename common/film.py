"""Policies on film."""

import contextlib
import functools
import math
import os
import pathlib
import sys
from collections.abc import Callable

from common.env_ids import EnvSpec
from common.envs import make_film_env
from common.errors import UserError
from common.evaluation import Policy, Workers, is_stopping, seed_of_episode
from common.files import write_whole
from common.processes import check_locks
from common.signals import starting_workers

import gymnasium
import numpy as np
import tqdm
from gymnasium.vector import AutoresetMode

MOST_A_SECOND, MOST_AN_EPISODE = 25, 250  # frames: rendered in software, one takes a fifth of a second


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
        make = functools.partial(make_film_env, spec, dataset_path, frame_stack or 1, size)
        camera = _Camera(make, is_gif=path.suffix == ".gif")
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


class _Camera:
    """An environment in a process of its own: MuJoCo chooses how to render when it is first imported.

    Attributes:
        frames: pictures so far.
        rate: how many are to be shown in a second.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], *, is_gif: bool):
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")  # needs no display
        gymnasium.logger.min_level = gymnasium.logger.ERROR + 1  # it would print what becomes one line here
        check_locks("make room there")
        with starting_workers():
            self._env = Workers([make], context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        self.close = self._env.close
        self._most_steps = self._env.get_attr("most_steps")[0]
        # Rendering in software takes longer than all the rest. A GIF stores every pixel that changes, too.
        fps, of_gif = self._env.metadata.get("render_fps") or 20, 2 if is_gif else 1
        self._stride = max(of_gif, round(fps / MOST_A_SECOND), math.ceil(self._most_steps / MOST_AN_EPISODE))
        self.frames: list[np.ndarray] = []
        self.rate = fps / self._stride

    def film(self, policy: Policy, starts: list[int], should_stop: Callable[[], bool]) -> None:
        """Go through episodes, and shoot every so many steps, and what each ends with."""
        total = len(starts) * self._most_steps
        with tqdm.tqdm(desc="filming", unit="step", mininterval=1, total=total) as progress:
            for episode, start in enumerate(starts):
                observations, _ = self._env.reset(seed=start)
                time_step, over = 0, False
                while not over:
                    if time_step % self._stride == 0:
                        self._shoot()
                    actions = policy(observations[None], np.array([[episode]]), np.array([[time_step]]))[0]
                    observations, _, terminated, truncated, _ = self._env.step(np.asarray(actions))
                    time_step, over = time_step + 1, (terminated | truncated).all()
                    progress.update()
                    if should_stop():
                        return
                progress.total -= self._most_steps - time_step
                self._shoot()

    def _shoot(self) -> None:
        self.frames.append(self._env.call("render")[0])
