"""Collects data sets on this machine: OGBench's with scripted oracles or an ant, Adroit's with trained hands.

    python -m common.data.collect --env-id cube-double --episodes 1000

The recipe (environments, oracles, noise, episode counts and lengths, file format) is OGBench's own (Park et al., 2025,
appendix D and the data generation scripts of its repository). Episodes are independent and each has its own seed, so
the data does not depend on how many processes collected it.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import metadata

import numpy as np

from common import command_line, mujoco_versions
from common.data import hands
from common.data.episodes import Episode, collect_episodes
from common.data.hands import gelu
from common.env_ids import EnvSpec, resolve
from common.envs import make_env
from common.errors import UserError, describe_os_error, exit_in_one_line, expanded
from common.files import making, sha256, write_whole
from common.processes import available_cores

ANT = pathlib.Path(__file__).parents[1] / "experts" / "ant.npz"
BYTES_A_TRANSITION = 400  # at most, compressed
TRANSITIONS_A_SECOND = 450  # of one core, for announcing how long a collection will take


@dataclasses.dataclass(frozen=True)
class Args:
    """Collect an OGBench data set in the official file format, or an Adroit expert's as a Minari data set."""

    env_id: str
    """Environment, e.g. cube-double, scene-noisy, pointmaze-large-stitch, door-expert. Its task does not matter."""
    episodes: int | None = None
    """Training episodes; OGBench's own number if unset, 100 of a hand (pen: 300). A tenth as many validation episodes
    come on top, but not of a hand."""
    seed: int = 0
    """Seed of the collection."""
    workers: int = available_cores()
    """Worker processes."""
    dataset_dir: pathlib.Path = pathlib.Path("~/.ogbench/data")
    """Folder for the files, named so as to tell them from the official ones. (Hands: MINARI_DATASETS_PATH.)"""


@dataclasses.dataclass(frozen=True)
class Size:
    """Number of training episodes and their length in steps."""

    episodes: int
    episode_steps: int


def official_size(spec: EnvSpec) -> Size:
    """The size of OGBench's own data set (Park et al., 2025, appendix D).

    Raises:
        UserError: the environment has no scripted oracle.
    """
    check_collectable(spec)
    if spec.dataset_type == "stitch":
        return Size(5000, 201)
    if spec.dataset_type == "explore":
        return Size(10_000, 501)
    if spec.env_name in ("pointmaze-giant", "antmaze-giant"):
        return Size(500, 2001)
    if spec.env_name in ("cube-triple", "puzzle-4x5"):
        return Size(3000, 1001)
    if spec.env_name in ("cube-quadruple", "puzzle-4x6"):
        return Size(5000, 1001)
    return Size(1000, 1001)


def is_collectable(spec: EnvSpec) -> bool:
    """Whether there is an oracle for this environment: ogbench's scripted ones, or the trained ant."""
    prefixes = ("cube", "scene", "puzzle", "pointmaze", "antmaze")
    # No recipe is published for eight cubes.
    return spec.suite == "ogbench" and spec.env_name.startswith(prefixes) and spec.env_name != "cube-octuple"


def check_collectable(spec: EnvSpec) -> None:
    """Raises `UserError` where there is no oracle."""
    if not is_collectable(spec):
        raise UserError(
            f"{spec.name}: no oracle collects this data (there are some for cube, scene, puzzle and the point and ant "
            "mazes); supply the official file with --dataset-path or in --dataset-dir"
        )


def collected_path(spec: EnvSpec, dataset_dir: pathlib.Path, episodes: int, seed: int) -> pathlib.Path:
    """File of a data set that is collected here. Neither the official name, nor that of what another physics makes."""
    return dataset_dir / f"{spec.dataset_name}-collected-{episodes}-seed{seed}{mujoco_versions.suffix(spec)}.npz"


def check_folder(dataset_dir: pathlib.Path, steps: int = 0) -> None:
    """Make the folder for data. Raises `UserError` if it cannot be written, or `steps` transitions have no room."""
    try:
        dataset_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=dataset_dir) as file:
            file.write(b"x")
        free, needed = shutil.disk_usage(dataset_dir).free, steps * BYTES_A_TRANSITION
    except OSError as error:
        raise UserError(f"cannot write to --dataset-dir {dataset_dir}: {describe_os_error(error)}") from error
    if free < needed:
        problem = f"{free / 1e6:.0f} MB are free, the data may need {needed / 1e6:.0f} MB"
        raise UserError(f"cannot write to --dataset-dir {dataset_dir}: {problem}")


def collect_once(
    spec: EnvSpec,
    dataset_dir: pathlib.Path,
    *,
    episodes: int | None,
    val_episodes: int = 0,
    seed: int = 0,
    workers: int,
) -> pathlib.Path:
    """`collect`, unless the files are there: of several processes one collects, and the others wait for it."""
    path = collected_path(spec, dataset_dir, episodes or official_size(spec).episodes, seed)
    check_folder(dataset_dir)
    with making(path):
        if path.is_file() and (val_episodes == 0 or path.with_name(f"{path.stem}-val.npz").is_file()):
            print(f"data: found {path}", flush=True)
            return path
        return collect(spec, dataset_dir, episodes=episodes, val_episodes=val_episodes, seed=seed, workers=workers)


def collect(
    spec: EnvSpec,
    dataset_dir: pathlib.Path,
    *,
    episodes: int | None = None,
    val_episodes: int = 0,
    seed: int = 0,
    workers: int = available_cores(),
) -> pathlib.Path:
    """Collect a data set and write it, with its provenance in a JSON file beside it.

    Args:
        spec: environment.
        dataset_dir: folder for NAME.npz, NAME-val.npz (if there are validation episodes) and NAME.json.
        episodes: training episodes; OGBench's own number if None.
        val_episodes: validation episodes, collected after the training ones.
        seed: seed of the collection.
        workers: worker processes.

    Returns:
        The training file.

    Raises:
        UserError: no oracle for this environment, a size below one, or the files cannot be written.
    """
    size = official_size(spec)
    episodes = size.episodes if episodes is None else episodes
    if episodes < 1 or workers < 1 or seed < 0:
        raise UserError(f"cannot collect {episodes} episodes with {workers} workers and seed {seed}: too small")
    path = collected_path(spec, dataset_dir, episodes, seed)
    total = episodes + val_episodes
    workers = min(workers, total)
    steps = total * size.episode_steps
    check_folder(dataset_dir, steps)
    print(
        f"collecting {spec.dataset_name}: {total} episodes of {size.episode_steps} steps with {workers} "
        f"{'process' if workers == 1 else 'processes'}, about {_minutes(steps / (workers * TRANSITIONS_A_SECOND))} "
        f"(official size: {size.episodes} episodes; fewer: --collect-episodes N, or --episodes N of "
        "python -m common.data.collect)",
        flush=True,
    )
    start = time.monotonic()
    recipe = maze_recipe if spec.env_name.startswith(("pointmaze", "antmaze")) else manipulation_recipe
    make_collector = functools.partial(recipe, spec, size.episode_steps)
    collected = collect_episodes(make_collector, total, seed=seed, workers=workers, episode_steps=size.episode_steps)
    seconds = time.monotonic() - start

    provenance = {
        "source": "collected",
        "episodes": episodes,
        "episode_steps": size.episode_steps,
        "official_episodes": size.episodes,
        "seed": seed,
        "oracle": describe_oracle(spec),
        "versions": {name: metadata.version(name) for name in ("ogbench", "mujoco", "gymnasium", "numpy")},
    }
    splits = {path: collected[:episodes]}
    if val_episodes:
        splits[path.with_name(f"{path.stem}-val.npz")] = collected[episodes:]
    try:
        for split_path, split in reversed(splits.items()):  # the training file last: it is what is looked for
            arrays = {key: np.concatenate([episode[key] for episode in split]) for key in split[0]}
            write_whole(split_path, functools.partial(_write_with_provenance, arrays, path, provenance))
    except OSError as error:
        raise UserError(f"cannot write the collected data: {describe_os_error(error)}") from error
    print(
        f"collected {steps:,} transitions in {_minutes(seconds)} ({steps / seconds:.0f} a second): {path}", flush=True
    )
    return path


def describe_oracle(spec: EnvSpec) -> str:
    """Who acted, for the provenance of a data set."""
    if spec.env_name.startswith("antmaze"):
        return (
            f"trained ant (common/experts/{ANT.name}, SHA-256 {sha256(ANT)}), directed by the ogbench package's oracle"
        )
    return "scripted oracles of the ogbench package"


def _write_with_provenance(arrays: Episode, path: pathlib.Path, provenance: dict, temporary: pathlib.Path) -> None:
    """Fill a data file that has no name yet, and describe it in PATH.json before it gets one."""
    np.savez_compressed(temporary, **arrays)
    text = json.dumps({**provenance, "sha256": sha256(temporary)}, indent=2) + "\n"
    write_whole(path.with_suffix(".json"), lambda json_file: json_file.write_text(text))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def manipulation_recipe(
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
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    env = make_env(
        f"{spec.env_name}-v0",
        terminate_at_goal=False,
        mode="data_collection",
        max_episode_steps=episode_steps,
        visualize_info=False,  # colours only
    )
    noisy = spec.dataset_type == "noisy"
    is_puzzle, is_scene = spec.env_name.startswith("puzzle"), spec.env_name == "scene"
    has_buttons = is_puzzle or is_scene
    closed = {"gripper_always_closed": True} if is_puzzle else {}
    if noisy:
        markov = {"env": env, "min_norm": 0.4}
        oracles = {
            "cube": CubeMarkovOracle(max_step=100 if is_scene else 200, **markov),
            "button": ButtonMarkovOracle(**markov, **closed),
            "drawer": DrawerMarkovOracle(**markov),
            "window": WindowMarkovOracle(**markov),
        }
        p_random_action = 0.2 if is_puzzle else 0.1
    else:
        plan = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
        oracles = {
            "cube": CubePlanOracle(**plan),
            "button": ButtonPlanOracle(**plan, **closed),
            "drawer": DrawerPlanOracle(**plan),
            "window": WindowPlanOracle(**plan),
        }
        p_random_action = 0.0
    # Bounds of the stacking probability, which is drawn for each episode.
    p_stack_bounds = {
        "cube-single": (0.0, 0.0),
        "cube-double": (0.0, 0.25),
        "cube-triple": (0.05, 0.35),
        "cube-quadruple": (0.1, 0.5),
    }.get(spec.env_name, (0.5, 0.5))

    def collect_episode() -> Episode:
        rows: dict[str, list] = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
        if has_buttons:
            rows["button_states"] = []
        observation, info = env.reset(seed=np.random.randint(2**31))
        p_stack = np.random.uniform(*p_stack_bounds)
        xi = np.random.uniform(0, 0.1)  # noise scale of 'noisy'
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        done = False
        while not done:
            if np.random.rand() < p_random_action:
                action = np.random.uniform(-1, 1, size=5)
            else:
                action = np.array(oracle.select_action(observation, info))
                if noisy:
                    action = action + np.random.normal(0, [xi, xi, xi, 3 * xi, 10 * xi])
            action = np.clip(action, -1, 1)
            next_observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            if oracle.done:
                at_end(env.unwrapped._target_task, bool(info["success"]))
                oracle_observation, oracle_info = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[oracle_info["privileged/target_task"]]
                oracle.reset(oracle_observation, oracle_info)
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["terminals"].append(done)
            rows["qpos"].append(info["prev_qpos"])  # the state before the step, as the observation is
            rows["qvel"].append(info["prev_qvel"])
            if has_buttons:
                rows["button_states"].append(info["prev_button_states"])
            observation = next_observation
        return _as_arrays(rows)

    def collect_healthy_episode() -> Episode:
        while True:  # a block out of sight would make the state ambiguous: repeat the episode
            episode = collect_episode()
            y, z = episode["qpos"][:, 15], episode["qpos"][:, 16]
            outside_drawer = (z < 0.06) | (z > 0.08)
            if not ((y >= 0.29) | ((y <= -0.3) & outside_drawer)).any():
                return episode

    return collect_healthy_episode if is_scene else collect_episode


def load_ant() -> Callable[[np.ndarray], np.ndarray]:
    """The trained ant: the mode of its policy, from the ant's state without its position (27) and a direction (2).

    Two hidden layers with GELU (tanh approximation), tanh at the end (see experts/README.md).
    """
    with np.load(ANT) as file:
        weights = dict(file)

    def mode(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32)
        for layer in ("hidden0", "hidden1"):
            x = gelu(x @ weights[f"{layer}_kernel"] + weights[f"{layer}_bias"])
        return np.tanh(x @ weights["mean_kernel"] + weights["mean_bias"])

    return mode


def maze_recipe(
    spec: EnvSpec, episode_steps: int, *, at_goal: Callable[[], None] = lambda: None
) -> Callable[[], Episode]:
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
    free = maze.maze_map == 0
    cells = [(int(i), int(j)) for i, j in np.argwhere(free)]

    def is_corridor(i: int, j: int) -> bool:
        vertical, horizontal = (free[i - 1, j], free[i + 1, j]), (free[i, j - 1], free[i, j + 1])
        return (all(vertical) and not any(horizontal)) or (all(horizontal) and not any(vertical))

    goal_cells = [cell for cell in cells if not is_corridor(*cell)]
    if spec.env_name.startswith("antmaze"):
        ant = load_ant()
        noise = 1.0 if spec.dataset_type == "explore" else 0.2
    else:
        ant, noise = None, 0.5

    def direction_to_subgoal() -> np.ndarray:
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        direction = subgoal - maze.get_xy()
        return direction / (np.linalg.norm(direction) + 1e-6)

    def random_direction() -> np.ndarray:
        direction = np.random.randn(2)
        return direction / np.linalg.norm(direction)

    def draw(candidates: list[tuple[int, int]]) -> tuple[int, int]:
        return candidates[np.random.randint(len(candidates))]

    def collect_episode() -> Episode:
        rows: dict[str, list] = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
        start = draw(cells)
        if spec.dataset_type == "stitch":
            # The oracle's map holds each cell's distance to the place that it is asked to go to.
            _, distance = maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(start))
            goal = draw([cell for cell in cells if distance[cell] == 4] or [start])
        else:
            goal = draw(goal_cells)
        env.action_space.seed(np.random.randint(2**31))  # the reset takes a few random steps
        observation, _ = env.reset(
            seed=np.random.randint(2**31), options={"task_info": {"init_ij": start, "goal_ij": goal}}
        )
        done = False
        while not done:
            if spec.dataset_type != "explore":
                direction = direction_to_subgoal()
            elif len(rows["actions"]) % 10 == 0:
                direction = random_direction()
            # The oracle sees no position, only where to go.
            mode = direction if ant is None else ant(np.concatenate([maze.get_ob(ob_type="states")[2:], direction]))
            action = np.clip(mode + np.random.normal(0, noise, mode.shape), -1, 1)
            next_observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            if info["success"] and spec.dataset_type == "navigate":
                at_goal()
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(draw(goal_cells))))
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["terminals"].append(done)
            rows["qpos"].append(info["prev_qpos"])  # the state before the step, as the observation is
            rows["qvel"].append(info["prev_qvel"])
            observation = next_observation
        return _as_arrays(rows)

    return collect_episode


def _as_arrays(rows: dict[str, list]) -> Episode:
    dtypes = {"terminals": np.bool_, "button_states": np.int64}
    return {key: np.asarray(values, dtypes.get(key, np.float32)) for key, values in rows.items()}


def main(args: Args) -> None:
    """Collect the training and the validation file of one environment; of an Adroit hand the Minari data set."""
    spec = resolve(args.env_id)
    if hands.is_collectable(spec):
        hands.collect(spec, episodes=args.episodes, seed=args.seed, workers=args.workers)
        return
    episodes = official_size(spec).episodes if args.episodes is None else args.episodes
    collect_once(
        spec,
        expanded(args.dataset_dir),
        episodes=episodes,
        val_episodes=episodes // 10,
        seed=args.seed,
        workers=args.workers,
    )


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(Args, prog="python -m common.data.collect")))
