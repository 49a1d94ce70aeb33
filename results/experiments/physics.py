"""By how much MuJoCo versions move the environments otherwise, and what becomes of oracles and experts.

    python results/experiments/physics.py

Each version is installed into a folder that only its own measurement sees. States are recorded under the first one,
while oracles and experts act, so that there are contacts. Every version then takes one control step from each of them,
with the same control, and has the same oracles and experts act for whole episodes, from the same starts.
Writes steps.csv, outcomes.csv, and table.md from them; and into its folder sample.npz, which is tests/physics.npz.
"""

import collections
import contextlib
import csv
import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import basics
from antmaze import goals_reached
from common import command_line, minari_envs, mujoco_versions
from common.data import hands, recipes
from common.data.episodes import Episode
from common.env_ids import EnvSpec, resolve
from common.envs import make_env
from common.errors import exit_in_one_line

import mujoco
import numpy as np
from tabulate import tabulate

PACKAGES = {  # what goes with each MuJoCo
    "3.2.7": ("mujoco==3.2.7", "dm_control==1.0.28"),
    "3.3.7": ("mujoco==3.3.7", "dm_control==1.0.34"),
    "3.4.0": ("mujoco==3.4.0", "dm_control==1.0.36"),
    "4.0.0": ("mujoco==4.0.0", "mujoco-core==4.0.0", "dm_control==1.0.50"),
}
States = dict[str, np.ndarray]  # each [states, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that moves: coordinates of some joints, one sample a state, or several where there are several of it.

    Attributes:
        name: for people.
        joints: of each sample, MuJoCo's names.
        coordinates: of each joint, the first so many: 3 of a free body are its place.
        moves: only states count in which it moves at least so far in the step (millimetres, milliradians)..
        rests: .. and at most so far..
        above: .. and is at least so high before it (metres).
    """

    name: str
    joints: tuple[tuple[str, ...], ...]
    coordinates: int = 1
    moves: float = 0
    rests: float = np.inf
    above: float = -np.inf


ARM_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
ARM = Part("arm, mrad", (tuple(f"ur5e/{joint}_joint" for joint in ARM_JOINTS),), moves=10)
CUBES = ("object_joint_0",), ("object_joint_1",)
FINGERS = tuple(f"{finger}J{i}" for finger in ("FF", "MF", "RF", "LF", "TH") for i in range(4))
PARTS = {
    "cube-double": (
        ARM,
        Part("cube carried or pushed, mm", CUBES, 3, moves=2),
        Part("cube at rest on the other, mm", CUBES, 3, rests=1, above=0.055),
    ),
    "scene": (
        ARM,
        Part("cube carried or pushed, mm", CUBES[:1], 3, moves=2),
        Part("drawer, mm", (("drawer_slide",),), moves=1),
        Part("window, mm", (("window_slide",),), moves=1),
        Part("button, mm", (("buttonbox_joint_0",), ("buttonbox_joint_1",)), moves=1),
    ),
    "puzzle-3x3": (ARM, Part("button, mm", tuple((f"buttonbox_joint_{i}",) for i in range(9)), moves=1)),
    "antmaze-medium": (
        Part("torso, mm", (("root",),), 2, moves=20),
        Part("legs, mrad", (tuple(f"{name}_{i}" for i in range(1, 5) for name in ("hip", "ankle")),), moves=50),
    ),
    "pointmaze-medium": (Part("point at a wall, mm", (("ballx", "bally"),), moves=1),),
    "humanoidmaze-medium": (Part("torso, mm", (("root",),), 3, moves=10),),
    "door-expert": (Part("door, mrad", (("door_hinge",),), moves=5), Part("fingers, mrad", (FINGERS,), moves=20)),
    "hammer-expert": (
        Part("nail, mm", (("nail_dir",),), moves=0.2),
        Part("hammer, mm", (("OBJTx", "OBJTy", "OBJTz"),), moves=2),
    ),
    "pen-expert": (Part("pen, mrad", (("OBJRx", "OBJRy", "OBJRz"),), moves=5),),
    "relocate-expert": (Part("ball, mm", (("OBJTx", "OBJTy", "OBJTz"),), moves=2),),
}
# What environments change in their model: places of bodies, and the damping that locks drawer and window.
ALTERED = ("body_pos", "dof_damping")


@dataclasses.dataclass(frozen=True)
class PhysicsArgs:
    """One step and whole episodes under several MuJoCo versions: a table."""

    folder: pathlib.Path = pathlib.Path("runs/physics")
    """Folder for the versions, and for the states."""
    out: pathlib.Path = basics.RESULTS / "physics"
    """Folder for the CSV files and the table."""
    versions: tuple[str, ...] = tuple(PACKAGES)
    """MuJoCo versions; the first records the states."""
    episodes: int = 100
    """Episodes of each oracle and expert."""
    record_episodes: int = 10
    """Episodes that states are taken from, of each environment."""
    measure: bool = False
    """Only measure, with the MuJoCo that is imported: what is run for each version."""


# ---- One step --------------------------------------------------------------------------------------------------------


def collector(env_id: str, episode_steps: int, **hooks: Callable) -> Callable[[], Episode]:
    """What acts for one episode: the oracle or expert that collects this data, random actions where there is none."""
    spec = resolve(env_id)
    if hands.is_collectable(spec):
        return hands.recipe(hands.hand_of(spec), min(episode_steps, 100 if env_id.startswith("pen") else 200))
    if env_id.startswith(("antmaze", "pointmaze")):
        return recipes.maze(spec, episode_steps, **hooks)
    if env_id.startswith("humanoid"):
        return random_recipe(spec, episode_steps)
    return recipes.manipulation(spec, episode_steps, **hooks)


def acted(collect_episode: Callable[[], Episode], episodes: int) -> Iterator[Episode]:
    """So many episodes, each with its seed."""
    for episode in range(episodes):
        np.random.seed(episode)
        yield collect_episode()


def random_recipe(spec: EnvSpec, episode_steps: int) -> Callable[[], Episode]:
    """Random actions."""
    env = make_env(f"{spec.env_name}-v0", terminate_at_goal=False, max_episode_steps=episode_steps)

    def collect_episode() -> Episode:
        env.reset(seed=np.random.randint(2**31))
        while not env.step(np.random.uniform(-1, 1, env.action_space.shape))[3]:
            pass
        return {}

    return collect_episode


@contextlib.contextmanager
def watching(watch: Callable[[mujoco.MjModel, mujoco.MjData, int], None]) -> Iterator[None]:
    """Whatever steps MuJoCo meanwhile is seen before: its model, its data, and the number of steps."""
    mj_step = mujoco.mj_step

    def watched(model: mujoco.MjModel, data: mujoco.MjData, nstep: int = 1) -> None:
        watch(model, data, nstep)
        mj_step(model, data, nstep)

    with mock.patch.object(mujoco, "mj_step", watched):
        yield


def simulation(env_id: str) -> tuple[mujoco.MjModel, mujoco.MjData, int]:
    """The model of an environment, data for it, and how many steps make a control step."""
    seen = []
    np.random.seed(0)
    with watching(lambda *arguments: seen.append(arguments)):
        collector(env_id, 1)()
    return seen[-1]


def record(env_id: str, episodes: int) -> States:
    """States before each control step of some episodes, the control that was set, and what differs in the model."""
    rows = collections.defaultdict(list)

    def watch(model: mujoco.MjModel, data: mujoco.MjData, nstep: int) -> None:
        for name in ("qpos", "qvel", "ctrl"):
            rows[name].append(getattr(data, name).copy())
        for name in ALTERED:
            rows[name].append(getattr(model, name).flatten())

    with watching(watch):
        list(acted(collector(env_id, 1001), episodes))
    return {name: np.array(values) for name, values in rows.items()}


def step(env_id: str, states: States) -> np.ndarray:
    """Positions after a control step from each state, [states, nq]; no state remembers the one before."""
    model, data, nstep = simulation(env_id)
    after = np.empty(states["qpos"].shape)
    for i in range(len(after)):
        mujoco.mj_resetData(model, data)
        for name in ("qpos", "qvel", "ctrl"):
            getattr(data, name)[:] = states[name][i]
        for name in ALTERED:
            getattr(model, name).flat[:] = states[name][i]
        mujoco.mj_step(model, data, nstep)
        after[i] = data.qpos
    return after


def occurrences(
    model: mujoco.MjModel, part: Part, before: np.ndarray, after: np.ndarray
) -> Iterator[tuple[np.ndarray, list[int], np.ndarray]]:
    """Of each sample of a part: the states that count, its columns of the positions, how far it moves in them."""
    for joints in part.joints:
        first = [model.joint(name).qposadr[0] for name in joints]
        columns = [start + i for start in first for i in range(part.coordinates)]
        move = 1000 * np.linalg.norm(after[:, columns] - before[:, columns], axis=1)
        counts = (part.moves <= move) & (move <= part.rests)
        if np.isfinite(part.above):
            counts &= before[:, columns[2]] >= part.above
        yield np.flatnonzero(counts), columns, move[counts]


def compare(env_id: str, before: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> Iterator[dict[str, Any]]:
    """Of each part, how far it moves from `before` to `ours`, and how far from there `theirs` is; all [states, nq]."""
    model, _, _ = simulation(env_id)
    for part in PARTS[env_id]:
        seen = list(occurrences(model, part, before, ours))
        move = np.concatenate([move for _, _, move in seen])
        apart = [np.linalg.norm((theirs - ours)[np.ix_(states, columns)], axis=1) for states, columns, _ in seen]
        if not move.size:
            continue
        difference = 1000 * np.concatenate(apart)
        yield {
            "environment": env_id,
            "what": part.name,
            "number": difference.size,
            "moves": np.median(move),
            "median": np.median(difference),
            "95 %": np.quantile(difference, 0.95),
            "largest": difference.max(),
        }


def sample(env_id: str, states: States, number: int) -> States:
    """A few of the states, as many of each part as of the others, in float32; and where they go from there."""
    model, _, _ = simulation(env_id)
    rng, chosen = np.random.default_rng(0), []
    for part in PARTS[env_id]:
        seen = occurrences(model, part, states["qpos"], states["after"])
        counting = np.concatenate([counts for counts, _, _ in seen])
        share = min(number // len(PARTS[env_id]), counting.size)
        chosen.append(rng.choice(counting, share, replace=False))
    few = {name: values[np.concatenate(chosen)].astype(np.float32) for name, values in states.items()}
    return few | {"after": step(env_id, few).astype(np.float32)}


# ---- Whole episodes --------------------------------------------------------------------------------------------------


def subtasks(env_id: str, episodes: int) -> dict[str, list[float]]:
    """Of each kind of subtask that the arm's oracle was through with: whether it was done, in percent."""
    done = collections.defaultdict(list)

    def at_end(subtask: str, success: bool) -> None:
        done[f"oracle: {subtask} done, %"].append(100.0 * success)

    list(acted(collector(env_id, 401, at_end=at_end), episodes))
    return dict(sorted(done.items()))


def goals(env_id: str, episodes: int) -> dict[str, list[int]]:
    """Goals that the maze's expert reaches in each episode of 1001 steps."""
    return {"expert: goals an episode": goals_reached(resolve(env_id), episodes)}


def scores(env_id: str, episodes: int) -> dict[str, list[float]]:
    """Normalised score of each of an Adroit expert's episodes."""
    low, high = minari_envs.REFERENCE_SCORES[hands.hand_of(resolve(env_id))]
    returns = [episode["rewards"].sum() for episode in acted(collector(env_id, 1001), episodes)]
    return {"expert: score": [100 * (each - low) / (high - low) for each in returns]}


def outcomes(args: PhysicsArgs) -> Iterator[dict[str, Any]]:
    """A row for each environment and whoever acts in it: mean, and its standard error."""
    arms, hands = ("cube-double", "scene", "puzzle-3x3"), (env_id for env_id in PARTS if env_id.endswith("expert"))
    for act, env_ids in ((subtasks, arms), (goals, ("antmaze-medium",)), (scores, hands)):
        for env_id in env_ids:
            for what, values in act(env_id, args.episodes).items():
                error = np.std(values, ddof=1) / len(values) ** 0.5
                row = {"number": len(values), "mean": np.mean(values), "error": error}
                yield {"environment": env_id, "what": what} | row


# ---- Several versions ------------------------------------------------------------------------------------------------


def steps(args: PhysicsArgs) -> Iterator[dict[str, Any]]:
    """A row for each part; the first version records the states, and leaves a few of them for the tests."""
    few, sampled = {}, args.folder / "sample.npz"
    for env_id in PARTS:
        path = args.folder / f"{env_id}.npz"
        if not path.exists():
            states = record(env_id, args.record_episodes)
            np.savez_compressed(path, **states, after=step(env_id, states))
        with np.load(path) as file:
            states = dict(file)
        yield from compare(env_id, states["qpos"], states["after"], step(env_id, states))
        if not sampled.exists():
            chosen = sample(env_id, states, 50 if env_id.endswith("expert") else 100)
            few |= {f"{env_id}/{name}": values for name, values in chosen.items()}
    if few:
        np.savez_compressed(sampled, version=mujoco_versions.installed(), **few)


MEASUREMENTS = {"steps": steps, "outcomes": outcomes}


def measure(args: PhysicsArgs) -> None:
    """With the MuJoCo that is imported; CSV files in a folder of its version. What is there stands."""
    version = mujoco_versions.installed()
    for name, rows in MEASUREMENTS.items():
        path = args.folder / version / f"{name}.csv"
        if not path.exists():
            write(path, [{"version": version} | row for row in rows(args)])


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file, numbers with three digits, and none beyond the sixth decimal."""
    cells = ([f"{round(x, 6):.3g}" if isinstance(x, float) else x for x in row.values()] for row in rows)
    basics.write_csv(path, rows[0], cells)


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def render(folder: pathlib.Path) -> None:
    """table.md from the CSV files."""
    index = ("environment", "what", "number", "moves")
    of_steps = tabulate_versions(read(folder / "steps.csv"), index, "{median} / {95 %} / {largest}")
    of_episodes = tabulate_versions(read(folder / "outcomes.csv"), index[:2], "{mean} ± {error} ({number})")
    (folder / "table.md").write_text(f"{of_steps}\n\n{of_episodes}\n")


def tabulate_versions(rows: list[dict[str, str]], index: tuple[str, ...], cell: str) -> str:
    """Markdown with a column for each version."""
    versions = list(dict.fromkeys(row["version"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = tuple(row[name] for name in index)
        lines.setdefault(line, dict.fromkeys(versions, "-"))[row["version"]] = cell.format(**row)
    body = [[*line, *cells.values()] for line, cells in lines.items()]
    return tabulate(body, [*index, *versions], tablefmt="github", disable_numparse=True)


def main(args: PhysicsArgs) -> None:
    """Measure with each version, in a process that sees it before any other."""
    if args.measure:
        return measure(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    for version in args.versions:
        overlay = args.folder / f"mujoco-{version}"
        if not overlay.exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", overlay]
            subprocess.run([*pip, *PACKAGES[version]], check=True)
        environment = os.environ | {"PYTHONPATH": str(overlay.resolve())}
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure"], env=environment, check=True)
    for name in MEASUREMENTS:
        write(args.out / f"{name}.csv", [row for v in args.versions for row in read(args.folder / v / f"{name}.csv")])
    render(args.out)
    print((args.out / "table.md").read_text(), end="")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(PhysicsArgs)))
