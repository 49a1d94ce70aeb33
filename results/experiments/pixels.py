"""What is learned from pixels, and what from states: a point that is to be brought to rest, drawn with NumPy.

python results/experiments/pixels.py

A point slides without friction in a box. It can be seen where it is in one picture, but how fast it is in several
only. DROL and FQL learn from the same episodes three times: from position and velocity, from the last three pictures,
and from the last one. Writes a CSV file of each (pixels/drol-states.csv, ..) and, made from them, pixels/pixels.pdf and
pixels/pixels.png.
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any, ClassVar

import basics
import drol
import figures
import fql
from common import command_line
from common.errors import exit_in_one_line
from common.tables import read_table

import gymnasium
import matplotlib.pyplot as plt
import numpy as np

SIZE = 16  # pixels, of the picture and of a side of the box
STEPS = 50  # of an episode
FORCE = 0.03  # change of speed at full action, in half sides a step
NEAR, SLOW = 0.2, 0.04  # at most, in each direction: at rest in the middle
OBSERVED = {  # environment, frames; for people
    "states": ("pixels:Point-v0", None, "states"),
    "3frames": ("pixels:Pixels-v0", 3, "3 frames"),
    "1frame": ("pixels:Pixels-v0", 1, "1 frame"),
}
METHODS = {"drol": ("DROL(16)", drol, {"bc_coef": 1.0}), "fql": ("FQL", fql, {"alpha": 0.3, "normalize_q_loss": True})}
ALL = tuple(f"{method}-{observed}" for observed in OBSERVED for method in METHODS)
COLUMNS = ("seed", "step", "success", "return", "cpu_seconds_of_all_seeds")


class Point(gymnasium.Env):
    """A point in [-1, 1]^2 that is pushed, bounces off the walls, and is to be brought to rest in the middle."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, *, pixels: bool, render_mode: str | None = None):
        self._pixels, self.render_mode = pixels, render_mode
        self.observation_space = gymnasium.spaces.Box(-2, 2, (4,), np.float32)
        if pixels:
            self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin anywhere, on the move."""
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-0.9, 0.9, 2), self.np_random.uniform(-0.15, 0.15, 2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Push."""
        self.velocity = self.velocity + FORCE * np.clip(action, -1, 1)
        position = self.position + self.velocity
        is_through = np.abs(position) > 1
        self.position = np.where(is_through, np.clip(2 * np.sign(position) - position, -1, 1), position)
        self.velocity = np.where(is_through, -self.velocity, self.velocity)
        success = bool((np.abs(self.position) < NEAR).all() and (np.abs(self.velocity) < SLOW).all())
        return self._observation(), success - 1.0, success, False, {"success": success}

    def _observation(self) -> np.ndarray:
        return self._picture() if self._pixels else np.append(self.position, 10 * self.velocity).astype(np.float32)

    def _picture(self) -> np.ndarray:
        place = (self.position[:, None] + 1) / 2 * (SIZE - 1)  # in pixels
        x, y = np.exp(-((np.arange(SIZE) - place) ** 2) / 2)
        return (255 * y[:, None] * x).astype(np.uint8)[..., None]

    def render(self) -> np.ndarray:
        """Its picture, large."""
        return self._picture().repeat(8, 0).repeat(8, 1).repeat(3, 2)


gymnasium.register("Point-v0", "pixels:Point", max_episode_steps=STEPS, kwargs={"pixels": False})
gymnasium.register("Pixels-v0", "pixels:Point", max_episode_steps=STEPS, kwargs={"pixels": True})


@dataclasses.dataclass(frozen=True)
class PixelArgs:
    """DROL and FQL on a point that is to be brought to rest: from states, from three pictures, from one."""

    episodes: int = 300
    """Of the data set."""
    updates: int = 3000
    """Of each method."""
    seeds: int = 3
    """Seeds, trained together."""
    eval_episodes: int = 50
    """Of each of six evaluations."""
    only: tuple[str, ...] = ALL
    """Which of them."""
    out: pathlib.Path = basics.RESULTS / "pixels"
    """Folder to write to."""


def collect(env_id: str, episodes: int, path: pathlib.Path) -> None:
    """A data file: a spring of a stiffness and damping of its own in each episode, and noise.

    The same episodes, whatever is observed.
    """
    env, rng = gymnasium.make(env_id), np.random.default_rng(0)
    rows: dict[str, list] = {"observations": [], "actions": [], "rewards": [], "terminals": [], "terminations": []}
    for episode in range(episodes):
        observation, over = env.reset(seed=episode)[0], False
        stiffness, damping = rng.uniform(0.5, 3), rng.uniform(-3, 12)
        while not over:
            pull = -stiffness * env.unwrapped.position - damping * env.unwrapped.velocity
            action = np.clip(pull + rng.normal(size=2), -1, 1).astype(np.float32)
            successor, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            for name, value in zip(rows, (observation, action, reward, over, terminated), strict=True):
                rows[name].append(value)
            observation = successor
    np.savez_compressed(path, **{name: np.array(column) for name, column in rows.items()})


def settings(which: str, args: PixelArgs) -> dict[str, Any]:
    """Small networks; what weighs imitation; everything else the algorithm's own."""
    method, observed = which.split("-")
    env_id, frame_stack, _ = OBSERVED[observed]
    return METHODS[method][2] | {
        "env_id": env_id,
        "frame_stack": frame_stack,
        "encoder_sizes": (8, 64),
        "hidden_sizes": (128, 128),
        "batch_size": 64,
        "learning_rate": 1e-3,
        "discount": 0.95,
        "tau": 0.02,
        "offline_steps": args.updates,
        "log_interval": 500,
        "eval_interval": args.updates // 6,
        "eval_episodes": args.eval_episodes,
        "eval_workers": 1,
        "num_seeds": args.seeds,
    }


def measure(which: str, args: PixelArgs) -> None:
    """Its CSV file: each evaluation of each seed."""
    algorithm, start = METHODS[which.split("-")[0]][1], time.process_time()
    given = settings(which, args)
    with tempfile.TemporaryDirectory() as folder:
        data, run_dir = pathlib.Path(folder, "data.npz"), pathlib.Path(folder, "run")
        collect(given["env_id"], args.episodes, data)
        outcomes = algorithm.main(algorithm.Args(**given, dataset_path=data, run_dir=run_dir))
        seconds, rows = time.process_time() - start, []
        for seed, outcome in enumerate(outcomes):
            for row in read_table(outcome.path / "eval.csv"):
                judged = row["evaluation/success"], row["evaluation/return"]
                rows.append((seed, int(row["step"]), *(f"{value:.4g}" for value in judged), round(seconds)))
    basics.write_csv(args.out / f"{which}.csv", COLUMNS, rows)


def render(folder: pathlib.Path) -> None:
    """pixels.pdf and pixels.png from the CSV files."""
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 2.9), layout="constrained", width_ratios=(0.75, 1, 1))
    env = Point(pixels=True)
    frames = [env.reset(seed=4)[0]] + [env.step(np.zeros(2))[0] for _ in range(2)]
    axes[0].imshow(np.concatenate(frames, axis=-1))
    axes[0].set_title("three frames, as red, green, blue", fontsize=8)
    axes[0].axis("off")
    colors = dict(zip(OBSERVED, ("#000000", "#0072B2", "#D55E00"), strict=True))
    for ax, (method, (name, *_)) in zip(axes[1:], METHODS.items(), strict=True):
        for observed, color in colors.items():
            rows = basics.read_csv(folder / f"{method}-{observed}.csv")
            steps = np.unique(rows["step"])
            values = np.array([rows["success"][rows["step"] == step] for step in steps])
            ax.plot(steps, values, ".", c=color, ms=3, alpha=0.5)
            ax.plot(steps, values.mean(axis=1), c=color, label=OBSERVED[observed][2])
        ax.set(title=name, xlabel="updates", ylabel="success (%)", ylim=(0, 103), xlim=(0, None))
        ax.grid(alpha=0.3, lw=0.5)
    axes[1].legend(fontsize=8)
    figures.save(figure, folder / "pixels")


def main(args: PixelArgs) -> None:
    """Learn, then draw, once all of them are there."""
    for which in args.only:
        measure(which, args)
    if all((args.out / f"{which}.csv").is_file() for which in ALL):
        render(args.out)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(PixelArgs)))
