"""How episodes of OGBench's data sets are acted: its own recipes for the arm and for the mazes (Park et al., 2025)."""

import importlib
import itertools
from collections.abc import Callable
from typing import Any

from common.data.episodes import Episode
from common.data.experts import load_ant
from common.env_ids import EnvSpec
from common.envs import make_env

import gymnasium
import numpy as np

P_STACK_BOUNDS = {  # of the stacking probability, which is drawn for each episode; elsewhere it is 0.5
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
DTYPES = {"terminals": np.bool_, "button_states": np.int64}  # elsewhere float32


def record(
    env: gymnasium.Env,
    observation: np.ndarray,
    info: dict[str, Any],
    act: Callable[[np.ndarray, dict[str, Any]], np.ndarray],
    after_step: Callable[[dict[str, Any]], None],
) -> Episode:
    """An episode in OGBench's format, from a reset to its end.

    Args:
        env: environment.
        observation: of the reset.
        info: of the reset.
        act: the action for an observation and an info, to be clipped.
        after_step: what becomes of the task, given the info of a step.
    """
    rows, done = [], False
    while not done:
        action = np.clip(act(observation, info), -1, 1)
        next_observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        after_step(info)
        row = {"observations": observation, "actions": action, "terminals": done}
        # The state before the step, as the observation is.
        before = {"qpos": "prev_qpos", "qvel": "prev_qvel", "button_states": "prev_button_states"}
        rows.append(row | {key: info[name] for key, name in before.items() if name in info})
        observation = next_observation
    dtypes = DTYPES | ({"observations": np.uint8} if observation.dtype == np.uint8 else {})
    return {key: np.asarray([row[key] for row in rows], dtypes.get(key, np.float32)) for key in rows[0]}


def manipulation(
    spec: EnvSpec, episode_steps: int, *, at_end: Callable[[str, bool], None] = lambda subtask, success: None
) -> Callable[[], Episode]:
    """Cube, scene and puzzle: the arm solves one random subtask after another (OGBench's generate_manipspace.py).

    'play' follows a plan with temporally correlated noise; 'noisy' a closed-loop controller with Gaussian noise whose
    scale is drawn for each episode, and random actions in between.

    Args:
        spec: environment and data set type.
        episode_steps: length of an episode.
        at_end: called when the oracle is through with a subtask ('cube', 'button', 'drawer', 'window'), with whether it
            is done.

    Returns:
        A function that collects one episode with what NumPy's global generator is seeded to.
    """
    env = make_env(
        f"{spec.env_name}-v0",
        terminate_at_goal=False,
        mode="data_collection",
        max_episode_steps=episode_steps,
        visualize_info=False,  # colours only
    )
    oracles, noisy = _oracles(spec, env), spec.dataset_type == "noisy"
    p_random_action = (0.2 if spec.world.startswith("puzzle") else 0.1) if noisy else 0.0

    def collect_episode() -> Episode:
        observation, info = env.reset(seed=np.random.randint(2**31))
        p_stack = np.random.uniform(*P_STACK_BOUNDS.get(spec.world, (0.5, 0.5)))
        xi = np.random.uniform(0, 0.1)  # noise scale of 'noisy'
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)

        def act(observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            if np.random.rand() < p_random_action:
                return np.random.uniform(-1, 1, size=5)
            action = np.array(oracle.select_action(observation, info))
            return action + np.random.normal(0, [xi, xi, xi, 3 * xi, 10 * xi]) if noisy else action

        def next_subtask(info: dict[str, Any]) -> None:
            nonlocal oracle
            if oracle.done:
                at_end(env.unwrapped._target_task, bool(info["success"]))
                observation, info = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[info["privileged/target_task"]]
                oracle.reset(observation, info)

        return record(env, observation, info, act, next_subtask)

    def collect_healthy_episode() -> Episode:
        while True:  # a block out of sight would make the state ambiguous: repeat the episode
            episode = collect_episode()
            y, z = episode["qpos"][:, 15], episode["qpos"][:, 16]
            outside_drawer = (z < 0.06) | (z > 0.08)
            if not ((y >= 0.29) | ((y <= -0.3) & outside_drawer)).any():
                return episode

    return collect_healthy_episode if spec.world == "scene" else collect_episode


def _oracles(spec: EnvSpec, env: gymnasium.Env) -> dict[str, Any]:
    """The ogbench package's, one for each kind of subtask: closed-loop ones for 'noisy', planners for 'play'."""
    settings: dict[str, dict[str, Any]] = {"cube": {}, "button": {}, "drawer": {}, "window": {}}
    if spec.world.startswith("puzzle"):
        settings["button"] = {"gripper_always_closed": True}
    if spec.dataset_type == "noisy":
        kind, of_all = "markov", {"min_norm": 0.4}
        settings["cube"] = {"max_step": 100 if spec.world == "scene" else 200}
    else:
        kind, of_all = "plan", {"noise": 0.1, "noise_smoothing": 0.5}
    oracles = {}
    for subtask, of_subtask in settings.items():
        module = importlib.import_module(f"ogbench.manipspace.oracles.{kind}.{subtask}_{kind}")
        oracle = getattr(module, f"{subtask.title()}{kind.title()}Oracle")
        oracles[subtask] = oracle(env=env, **of_all, **of_subtask)
    return oracles


def maze(spec: EnvSpec, episode_steps: int, *, at_goal: Callable[[], None] = lambda: None) -> Callable[[], Episode]:
    """Pointmaze and antmaze: go towards the oracle's next subgoal, with action noise (OGBench's generate_locomaze.py).

    The point's action is the direction itself; the ant's is the mode of a policy that was trained to walk in a given
    direction. 'navigate' draws a new goal at every success; 'stitch' goes to a cell four steps away and stays there;
    'explore' takes a random direction every 10 steps, with much more noise.

    Args:
        spec: environment and data set type.
        episode_steps: length of an episode.
        at_goal: called whenever 'navigate' reaches a goal.

    Returns:
        A function that collects one episode with what NumPy's global generator is seeded to.
    """
    env = make_env(f"{spec.env_name}-v0", terminate_at_goal=False, max_episode_steps=episode_steps)
    maze = env.unwrapped
    cells, goal_cells = _cells(maze.maze_map == 0)
    ant = load_ant() if spec.world.startswith("antmaze") else None
    noise = 0.5 if ant is None else 1.0 if spec.dataset_type == "explore" else 0.2

    def draw_goal(start: tuple[int, int]) -> tuple[int, int]:
        if spec.dataset_type != "stitch":
            return _draw(goal_cells)
        # The oracle's map holds each cell's distance to the place that it is asked to go to.
        _, distance = maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(start))
        return _draw([cell for cell in cells if distance[cell] == 4] or [start])

    def collect_episode() -> Episode:
        start = _draw(cells)
        task = {"init_ij": start, "goal_ij": draw_goal(start)}
        env.action_space.seed(np.random.randint(2**31))  # the reset takes a few random steps
        observation, info = env.reset(seed=np.random.randint(2**31), options={"task_info": task})
        steps, direction = itertools.count(), np.zeros(2)

        def act(*_: Any) -> np.ndarray:
            nonlocal direction
            if spec.dataset_type != "explore":
                subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
                direction = subgoal - maze.get_xy()
                direction = direction / (np.linalg.norm(direction) + 1e-6)
            elif next(steps) % 10 == 0:
                direction = np.random.randn(2)
                direction = direction / np.linalg.norm(direction)
            # The ant sees no position, only where to go.
            mode = direction if ant is None else ant(np.concatenate([maze.get_ob(ob_type="states")[2:], direction]))
            return mode + np.random.normal(0, noise, mode.shape)

        def next_goal(info: dict[str, Any]) -> None:
            if info["success"] and spec.dataset_type == "navigate":
                at_goal()
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(_draw(goal_cells))))

        return record(env, observation, info, act, next_goal)

    return collect_episode


def _draw(cells: list[tuple[int, int]]) -> tuple[int, int]:
    return cells[np.random.randint(len(cells))]


def _cells(free: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Those of a maze [rows, columns] that one can be in, and of these the ones that are not corridors."""
    cells = [(int(i), int(j)) for i, j in np.argwhere(free)]

    def is_corridor(i: int, j: int) -> bool:
        vertical, horizontal = (free[i - 1, j], free[i + 1, j]), (free[i, j - 1], free[i, j + 1])
        return (all(vertical) and not any(horizontal)) or (all(horizontal) and not any(vertical))

    return cells, [cell for cell in cells if not is_corridor(*cell)]
