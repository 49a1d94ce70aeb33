"""What a collected AntMaze (or pointmaze) set covers: its trajectories over the maze, and how often it is at each goal.

python results/experiments/antmaze.py DATA.npz --env-id antmaze-large

Writes ENV-trajectories.csv (20 episodes, every 10th position), ENV-goals.csv (for each of the five tasks the share of
transitions that start in its goal, by OGBench's own relabelling, and how many goals an episode of the expert reaches)
and, made from these, ENV.pdf and ENV.png.
"""

import collections
import csv
import dataclasses
import pathlib

import matplotlib
import numpy as np
import tyro

import basics
from common import collect, datasets
from common.env_ids import EnvSpec, resolve
from common.envs import make_env
from common.errors import exit_in_one_line

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TASKS = range(1, 6)
TRAJECTORIES, EVERY = 20, 10


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw and count what a collected maze data set covers."""

    data: tyro.conf.Positional[pathlib.Path]
    """File in OGBench's format."""
    env_id: str = "antmaze-large"
    """Its environment."""
    expert_episodes: int = 16
    """Episodes to collect anew in which reached goals are counted (data files do not say)."""
    out: pathlib.Path = basics.RESULTS / "antmaze"
    """Folder to write to."""


def goals_reached(spec: EnvSpec, episodes: int) -> list[int]:
    """Goals that the expert of the *navigate* recipe reaches in each of some episodes."""
    counts: list[int] = []

    def count() -> None:
        counts[-1] += 1

    collect_episode = collect.maze_recipe(spec, collect.official_size(spec).episode_steps, at_goal=count)
    for episode in range(episodes):
        np.random.seed(episode)
        counts.append(0)
        collect_episode()
    return counts


def measure(args: Args) -> None:
    """Both CSV files."""
    spec = resolve(args.env_id)
    with np.load(args.data) as data:
        xy, terminals = data["qpos"][:, :2], data["terminals"]
    starts = np.concatenate([[0], np.flatnonzero(terminals)[:-1] + 1])
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / f"{spec.env_name}-trajectories.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("episode", "step", "x", "y"))
        for episode, (first, last) in enumerate(zip(starts, np.flatnonzero(terminals), strict=True)):
            if episode < TRAJECTORIES:
                for row in range(first, last + 1, EVERY):
                    writer.writerow((episode, row - first, *(f"{value:.2f}" for value in xy[row])))
    counts = goals_reached(spec, args.expert_episodes)
    with (args.out / f"{spec.env_name}-goals.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "goal_x", "goal_y", "transitions", "at_goal", "goals_an_episode", "expert_episodes"))
        for task in TASKS:
            task_spec = dataclasses.replace(spec, task=task)
            dataset = datasets.read_ogbench(task_spec, args.data)
            at_goal = int((dataset.masks[dataset.transitions] == 0).sum())
            env = make_env(task_spec.gym_id)
            env.reset()
            goal = (f"{value:.2f}" for value in env.unwrapped.cur_goal_xy)
            writer.writerow((task, *goal, dataset.transitions.size, at_goal, f"{np.mean(counts):.2f}", len(counts)))


def render(folder: pathlib.Path, env_name: str) -> None:
    """ENV.pdf and ENV.png from the CSV files."""
    maze = make_env(f"{env_name}-v0").unwrapped
    with (folder / f"{env_name}-trajectories.csv").open() as file:
        rows = np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
    with (folder / f"{env_name}-goals.csv").open() as file:
        goals = list(csv.DictReader(file))
    plt.rcParams.update({"font.size": 9, "pdf.fonttype": 42})
    corners = np.array([maze.ij_to_xy((0, 0)), maze.ij_to_xy(tuple(np.array(maze.maze_map.shape) - 1))])
    half = abs(maze.ij_to_xy((0, 1))[0] - maze.ij_to_xy((0, 0))[0]) / 2
    width, height = np.ptp(corners, axis=0) + 2 * half
    figure, axes = plt.subplots(figsize=(5.5, 5.5 * height / width + 0.6), layout="constrained")
    for i, j in np.argwhere(maze.maze_map == 1):
        x, y = maze.ij_to_xy((i, j))
        axes.add_patch(plt.Rectangle((x - half, y - half), 2 * half, 2 * half, color="0.8", lw=0))
    for episode in np.unique(rows[:, 0]):
        path = rows[rows[:, 0] == episode]
        axes.plot(path[:, 2], path[:, 3], lw=0.7, alpha=0.8, c=plt.get_cmap("viridis")(episode / TRAJECTORIES))
        axes.plot(*path[0, 2:], "o", c="k", ms=2.5)
    at = collections.defaultdict(list)  # tasks may share a goal
    for goal in goals:
        at[float(goal["goal_x"]), float(goal["goal_y"])].append(goal)
    for (x, y), same in at.items():
        axes.plot(x, y, "*", c="#D55E00", ms=13, mec="w", mew=0.6, zorder=5)
        share = 100 * int(same[0]["at_goal"]) / int(same[0]["transitions"])
        text = f"task{'s' if len(same) > 1 else ''} {', '.join(goal['task'] for goal in same)}: {share:.2f} %"
        box = {"boxstyle": "round,pad=0.15", "fc": "w", "ec": "none", "alpha": 0.85}
        place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes.annotate(text, (x, y), **place, bbox=box, zorder=6)
    low, high = corners.min(axis=0) - half, corners.max(axis=0) + half
    axes.set(aspect="equal", xlabel="x", ylabel="y", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    transitions, mean = int(goals[0]["transitions"]), goals[0]["goals_an_episode"]
    axes.set_title(
        f"{env_name}: {len(np.unique(rows[:, 0]))} episodes (dots: starts), goals with the share of "
        f"{transitions:,} transitions;\nthe expert reaches {mean} goals an episode", fontsize=8
    )  # fmt: skip
    for ending, settings in ((".pdf", {"metadata": {"CreationDate": None}}), (".png", {"dpi": 160})):
        figure.savefig(folder / f"{env_name}{ending}", **settings)
    plt.close(figure)


def main(args: Args) -> None:
    """Count, then draw."""
    measure(args)
    render(args.out, resolve(args.env_id).env_name)
    print((args.out / f"{resolve(args.env_id).env_name}-goals.csv").read_text(), end="")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
