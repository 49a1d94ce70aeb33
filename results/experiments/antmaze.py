"""What a collected AntMaze (or pointmaze) set covers: its trajectories over the maze, and how often it is at each goal.

python results/experiments/antmaze.py DATA.npz --env-id antmaze-large

Writes ENV-trajectories.csv (20 episodes, every 10th position), ENV-goals.csv (for each of the five tasks the share of
transitions that start in its goal, by OGBench's own relabelling, and how many goals an episode of the expert reaches)
and, made from these, ENV.pdf and ENV.png.
"""

import dataclasses
import pathlib

import basics
import figures
from common import command_line
from common.data import collect, ogbench_npz, recipes
from common.env_ids import EnvSpec, resolve
from common.envs import make_env
from common.errors import exit_in_one_line

import matplotlib.pyplot as plt
import numpy as np
import tyro

TASKS = range(1, 6)
TRAJECTORIES, EVERY = 20, 10


@dataclasses.dataclass(frozen=True)
class AntmazeArgs:
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
    reached: list[int] = []  # a number for each

    def at_goal() -> None:
        reached[-1] += 1

    collect_episode = recipes.maze(spec, collect.official_size(spec).episode_steps, at_goal=at_goal)
    for episode in range(episodes):
        reached.append(0)
        np.random.seed(episode)
        collect_episode()
    return reached


def measure(args: AntmazeArgs) -> None:
    """Both CSV files."""
    spec = resolve(args.env_id)
    with np.load(args.data) as data:
        xy, terminals = data["qpos"][:, :2], data["terminals"]
    ends = np.flatnonzero(terminals)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = [
        (episode, row - first, *(f"{value:.2f}" for value in xy[row]))
        for episode, (first, last) in enumerate(list(zip(starts, ends, strict=True))[:TRAJECTORIES])
        for row in range(first, last + 1, EVERY)
    ]
    basics.write_csv(args.out / f"{spec.env_name}-trajectories.csv", ("episode", "step", "x", "y"), places)
    counts, goals = goals_reached(spec, args.expert_episodes), []
    for task in TASKS:
        task_spec = dataclasses.replace(spec, task=task)
        dataset, _ = ogbench_npz.read(task_spec, args.data)
        at_goal = int((dataset.masks[dataset.transitions] == 0).sum())
        env = make_env(task_spec.gym_id)
        env.reset()
        goal = (f"{value:.2f}" for value in env.unwrapped.cur_goal_xy)
        goals.append((task, *goal, dataset.transitions.size, at_goal, f"{np.mean(counts):.2f}", len(counts)))
    header = ("task", "goal_x", "goal_y", "transitions", "at_goal", "goals_an_episode", "expert_episodes")
    basics.write_csv(args.out / f"{spec.env_name}-goals.csv", header, goals)


def render(folder: pathlib.Path, env_name: str) -> None:
    """ENV.pdf and ENV.png from the CSV files."""
    maze = make_env(f"{env_name}-v0").unwrapped
    places, goals = (basics.read_csv(folder / f"{env_name}-{what}.csv") for what in ("trajectories", "goals"))
    corners = np.array([maze.ij_to_xy((0, 0)), maze.ij_to_xy(tuple(np.array(maze.maze_map.shape) - 1))])
    half = abs(maze.ij_to_xy((0, 1))[0] - maze.ij_to_xy((0, 0))[0]) / 2
    width, height = np.ptp(corners, axis=0) + 2 * half
    figure, axes = plt.subplots(figsize=(5.5, 5.5 * height / width + 0.6), layout="constrained")
    for i, j in np.argwhere(maze.maze_map == 1):
        x, y = maze.ij_to_xy((i, j))
        axes.add_patch(plt.Rectangle((x - half, y - half), 2 * half, 2 * half, color="0.8", lw=0))
    episodes = np.unique(places["episode"])
    for episode in episodes:
        path = places[places["episode"] == episode]
        axes.plot(path["x"], path["y"], lw=0.7, alpha=0.8, c=plt.get_cmap("viridis")(episode / TRAJECTORIES))
        axes.plot(path["x"][0], path["y"][0], "o", c="k", ms=2.5)
    for x, y in dict.fromkeys(zip(goals["goal_x"], goals["goal_y"], strict=True)):  # tasks may share a goal
        same = goals[(goals["goal_x"] == x) & (goals["goal_y"] == y)]
        axes.plot(x, y, "*", c="#D55E00", ms=13, mec="w", mew=0.6, zorder=5)
        share = 100 * same["at_goal"][0] / same["transitions"][0]
        text = f"task{'s' if len(same) > 1 else ''} {', '.join(map(str, same['task']))}: {share:.2f} %"
        box = {"boxstyle": "round,pad=0.15", "fc": "w", "ec": "none", "alpha": 0.85}
        place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes.annotate(text, (x, y), **place, bbox=box, zorder=6)
    low, high = corners.min(axis=0) - half, corners.max(axis=0) + half
    axes.set(aspect="equal", xlabel="x", ylabel="y", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set_title(
        f"{env_name}: {len(episodes)} episodes (dots: starts), goals with the share of {goals['transitions'][0]:,} "
        f"transitions;\nthe expert reaches {goals['goals_an_episode'][0]:.2f} goals an episode",
        fontsize=8,
    )
    figures.save(figure, folder / env_name)


def main(args: AntmazeArgs) -> None:
    """Count, then draw."""
    measure(args)
    render(args.out, resolve(args.env_id).env_name)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(AntmazeArgs)))
