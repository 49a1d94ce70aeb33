"""D4RL through Minari: real data sets, made here in the real environments."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import shutil
import sys
import warnings
from typing import ClassVar

from common import minari_envs, progress
from common.arguments import RunArgs
from common.data import sources
from common.env_ids import D4RL_MINARI_IDS, resolve
from common.envs import make_evaluation_env
from common.errors import UserError
from common.evaluation import Evaluator
from common.exploration import ExplorationEnvs
from common.files import making
from common.film import film
from common.run_directory import RunDirectory
from common.tables import read_table

import gymnasium
import h5py
import imageio.v3 as imageio
import numpy as np
import pytest

minari_envs.register_environments()
MIRRORED_UMAZE = [[1, 1, 1, 1, 1], [1, 0, 0, "r", 1], [1, 0, 1, 1, 1], [1, 0, 0, "g", 1], [1, 1, 1, 1, 1]]  # Minari's


def collect(name: str, env: gymnasium.Env, episodes: int, options=lambda episode: None, **metadata) -> None:
    import minari

    collector = minari.DataCollector(env)
    for episode in range(episodes):
        collector.reset(seed=episode, options=options(episode))
        env.action_space.seed(episode)
        over = False
        while not over:
            *_, terminated, truncated, _ = collector.step(env.action_space.sample())
            over = terminated or truncated
    collector.create_dataset(name, **metadata)
    collector.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """AntMaze: 6 episodes, every second one starts at the goal's cell. Pen: 3 episodes. Hopper: terminates."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        maze = {"continuing_task": True, "reset_target": False, "max_episode_steps": 60}
        env = gymnasium.make("AntMaze_UMaze-v4", **maze)
        env.unwrapped.position_noise_range = 0.1  # near enough that some of these episodes reach the goal
        collect(
            "D4RL/antmaze/umaze-diverse-v1",
            env,
            6,
            lambda i: {"goal_cell": np.array([1, 1]), "reset_cell": np.array([[3, 1], [1, 1]][i % 2])},
            eval_env=gymnasium.make("AntMaze_UMaze-v4", maze_map=MIRRORED_UMAZE, **maze).spec,
        )
        collect("D4RL/pen/human-v2", gymnasium.make("AdroitHandPen-v1", max_episode_steps=150), 2)
        collect("toys/hopper/random-v0", gymnasium.make("Hopper-v5"), 4, ref_min_score=10.0, ref_max_score=110.0)
        collect("toys/pendulum/random-v0", gymnasium.make("InvertedPendulum-v5"), 1)
    return folder


@pytest.fixture(autouse=True)
def datasets_path(folder, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))


def load(env_id: str, path: pathlib.Path | None = None):
    return sources.load(resolve(env_id), RunArgs(dataset_path=path))


def episodes_of(folder: pathlib.Path, name: str) -> list[h5py.Group]:
    file = h5py.File(folder / name / "data" / "main_data.hdf5")
    return [file[f"episode_{i}"] for i in range(len(file))]


def test_antmaze_is_relabelled_and_cut_at_the_first_success(folder):
    data, provenance = load("antmaze-umaze-diverse")
    assert (data.observation_shape, data.action_dim) == ((31,), 8)
    row, reached = 0, 0
    for episode in episodes_of(folder, "D4RL/antmaze/umaze-diverse-v1"):
        rewards = episode["rewards"][:]
        length = int(rewards.argmax()) + 1 if rewards.any() else len(rewards)
        reached += bool(rewards.any())
        goal, body, position = (
            episode["observations"][key][: length + 1] for key in ("desired_goal", "observation", "achieved_goal")
        )
        rows = slice(row, row + length + 1)
        np.testing.assert_array_equal(
            data.observations[rows], np.concatenate([position, body, goal], -1).astype(np.float32)
        )
        np.testing.assert_array_equal(data.rewards[row : row + length], rewards[:length] - 1)
        np.testing.assert_array_equal(data.masks[row : row + length], 1 - rewards[:length])
        assert not rewards[: length - 1].any()
        row += length + 1
    assert row == len(data.observations)  # nothing after the first success
    assert 0 < reached < 6
    assert (data.masks[data.transitions] == 0).sum() == reached
    assert row - 1 not in data.transitions  # no transition starts at the last observation
    assert len(data.transitions) == row - 6
    assert provenance["source"] == "minari"
    assert sources.describe_source(provenance) == "Minari: D4RL/antmaze/umaze-diverse-v1, 6 episodes"


def test_umaze_is_evaluated_on_the_training_map(folder):
    env = minari_envs.make_env(folder / "D4RL/antmaze/umaze-diverse-v1")
    maze = env.unwrapped.maze.maze_map
    env.close()
    assert maze == [[1, 1, 1, 1, 1], [1, "r", 0, 0, 1], [1, 1, 1, 0, 1], [1, "g", 0, 0, 1], [1, 1, 1, 1, 1]]


def test_a_training_map_with_its_own_goal_is_kept(folder):
    dataset = minari_envs.open_set(folder / "D4RL/antmaze/umaze-diverse-v1")
    own = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, "r", 0, 0, 1], [1, 1, 1, 1, 1]]
    dataset.spec.env_spec.kwargs["maze_map"] = own
    assert minari_envs.umaze_evaluation_map(dataset) == own


def test_an_evaluation_map_of_another_maze_is_refused(folder):
    dataset = minari_envs.open_set(folder / "D4RL/antmaze/umaze-diverse-v1")
    dataset.spec.env_spec.kwargs["maze_map"] = [[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1]]
    with pytest.raises(UserError, match="neither its training map nor a mirror image"):
        minari_envs.umaze_evaluation_map(dataset)


def test_antmaze_ends_at_its_first_success_and_scores_it(folder, monkeypatch):
    spec, path = resolve("antmaze-umaze-diverse"), folder / "D4RL/antmaze/umaze-diverse-v1"
    env = make_evaluation_env(spec, path)
    first, _ = env.reset(seed=5)
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (31,)
    assert np.abs(first[:2] - env.unwrapped.maze.unique_reset_locations[0]).max() < 1.5  # position first, ..
    assert np.abs(first[-2:] - env.unwrapped.maze.unique_goal_locations[0]).max() < 1.5  # .. goal last
    assert not env.step(np.zeros(8, np.float32))[2]
    env.unwrapped.goal = env.unwrapped.ant_env.data.qpos[:2].copy()  # the goal comes to the ant
    *_, terminated, truncated, info = env.step(np.zeros(8, np.float32))
    assert (terminated, truncated, info) == (True, False, {"success": 1.0})
    env.close()

    exploration = ExplorationEnvs(spec, path, [0], first_step=0)  # rewards and masks as the data is read
    zeros = np.zeros((1, 8), np.float32)
    going = exploration.step(zeros)
    maze = exploration._envs[0].unwrapped
    maze.goal = maze.ant_env.data.qpos[:2].copy()
    there = exploration.step(zeros)
    assert [(float(t["rewards"][0]), float(t["masks"][0])) for t in (going, there)] == [(-1, 1), (0, 0)]
    exploration.close()

    evaluator = Evaluator(spec, 2, seeds=[0], workers=1, dataset_path=path)
    (result,) = evaluator(lambda observations, *_: np.zeros((*observations.shape[:2], 8), np.float32))
    evaluator.close()
    assert result == {"evaluation/success": 0, "evaluation/return": 0, "evaluation/length": 60}


def test_pen_ends_after_100_steps_and_is_scored_by_d4rls_references(folder):
    spec, path = resolve("pen-human"), folder / "D4RL/pen/human-v2"
    data, _ = load("pen-human")
    np.testing.assert_array_equal(data.masks[data.transitions], 1)  # never terminates
    episodes = episodes_of(folder, "D4RL/pen/human-v2")
    np.testing.assert_allclose(data.rewards[data.transitions], np.concatenate([e["rewards"][:] for e in episodes]))
    np.testing.assert_allclose(
        data.observations[data.transitions + 1],
        np.concatenate([e["observations"][1:] for e in episodes]),
        rtol=1e-6,
        atol=1e-12,
    )
    evaluator = Evaluator(spec, 2, seeds=[0], workers=1, dataset_path=path)
    (result,) = evaluator(lambda observations, *_: np.zeros((*observations.shape[:2], 24), np.float32))
    evaluator.close()
    assert result["evaluation/length"] == 100
    score = 100 * (result["evaluation/return"] - 96.262799) / (3076.8331 - 96.262799)
    assert result["evaluation/normalized_score"] == pytest.approx(score)


def test_any_other_set_works_by_its_id(folder):
    data, _ = load("toys/hopper/random-v0")
    terminations = np.concatenate([e["terminations"][:] for e in episodes_of(folder, "toys/hopper/random-v0")])
    assert terminations.sum() == 4
    np.testing.assert_array_equal(data.masks[data.transitions], 1.0 - terminations)
    spec = resolve("toys/hopper/random-v0")
    evaluator = Evaluator(spec, 1, seeds=[0], workers=1, dataset_path=folder / spec.name)
    (result,) = evaluator(lambda observations, *_: np.zeros((*observations.shape[:2], 3), np.float32))
    evaluator.close()
    assert "evaluation/success" not in result  # the environment knows no success
    assert result["evaluation/normalized_score"] == pytest.approx(result["evaluation/return"] - 10)


@pytest.mark.parametrize("name", sorted(D4RL_MINARI_IDS))
def test_every_d4rl_name_has_its_references(name):
    spec = resolve(name)
    assert spec.name.startswith("D4RL/")
    scores = minari_envs.reference_scores(spec, pathlib.Path("nowhere"))
    assert (scores is None) == name.startswith("antmaze")


def test_actions_of_another_box_are_rescaled_and_back(folder, tmp_path, capsys):
    """The pendulum's lie in [-3, 3]."""
    data, provenance = load("toys/pendulum/random-v0")
    (episode,) = episodes_of(folder, "toys/pendulum/random-v0")
    np.testing.assert_allclose(data.actions[data.transitions], episode["actions"][:] / 3, atol=2e-5)
    assert provenance["action_bounds"] == [[-3], [3]]
    assert "note: actions of toys/pendulum/random-v0 lie in [-3, 3]: learned in [-1, 1]" in capsys.readouterr().out
    path = shutil.copytree(folder / "toys/pendulum/random-v0", tmp_path / "wide")
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        file["episode_0"]["actions"][0] = 3.1
    with pytest.raises(
        UserError, match=r"episode 0: actions must lie in \[-3, 3\], the largest, rescaled to \[-1, 1\], is 1.0333333"
    ):
        load("toys/pendulum/random-v0", path)


def damaged(folder: pathlib.Path, target: pathlib.Path, kind: str) -> pathlib.Path:
    """A copy of the pen set with one thing wrong."""
    shutil.copytree(folder / "D4RL/pen/human-v2", target)
    file, metadata_file = target / "data" / "main_data.hdf5", target / "data" / "metadata.json"
    metadata = json.loads(metadata_file.read_text())
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-5000])
    elif kind in ("not json", "a list"):
        metadata_file.write_text("{" if kind == "not json" else "[]")
    elif kind == "episodes missing":
        metadata_file.write_text(json.dumps(metadata | {"total_episodes": 1}))
    elif kind == "other format":
        metadata_file.write_text(json.dumps(metadata | {"data_format": "parchment"}))
    else:
        with h5py.File(file, "r+") as data:
            episode = data["episode_1"]
            if kind == "nan":
                episode["observations"][3, 2] = np.nan
            elif kind == "range":
                episode["actions"][3, 2] = 1.5
            else:
                name, change = {
                    "narrow observations": ("observations", lambda x: x[:, :-1]),
                    "narrow actions": ("actions", lambda x: x[:, :-1]),
                    "short rewards": ("rewards", lambda x: x[:-1]),
                    "rewards in a column": ("rewards", lambda x: x[:, None]),
                    "rewards beyond float32": ("rewards", lambda x: np.full(len(x), 1e39)),
                    "rewards in words": ("rewards", lambda x: np.array([b"one"] * len(x))),
                }[kind]
                values = change(episode[name][:])
                del episode[name]
                episode[name] = values
    return target


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("not json", "damaged"),
        ("a list", "damaged"),
        ("episodes missing", "does not agree with its 1 episodes of 150 steps"),
        ("other format", "damaged|another package"),
        ("nan", "episode 1: NaN or infinity in observations, first in row 3"),
        ("range", r"episode 1: actions must lie in \[-1, 1\], the largest is 1.5"),
        ("narrow observations", r"episode 1: observations has shape \(150, 44\)"),
        ("narrow actions", r"episode 1: actions has shape \(150, 23\)"),
        ("short rewards", "episode 1: 149 rows of rewards but 150 of observations"),
        ("rewards in a column", r"episode 1: rewards has shape \(150, 1\)"),
        ("rewards beyond float32", "episode 1: NaN or infinity in rewards"),
        ("rewards in words", "episode 1: rewards holds .*, not numbers"),
    ],
)
def test_damage_is_refused(folder, tmp_path, kind, message):
    with pytest.raises(UserError, match=message):
        load("pen-human", damaged(folder, tmp_path / "set", kind))


def test_another_data_set_is_not_taken_for_the_one_that_is_named(folder):
    with pytest.raises(UserError, match="holds D4RL/pen/human-v2, not D4RL/door/human-v2"):
        load("door-human", folder / "D4RL/pen/human-v2")


def test_a_download_is_whole_or_not_there_and_made_by_one_process(monkeypatch, folder, tmp_path):
    spec, path = resolve("pen-human"), tmp_path / "D4RL/pen/human-v2"
    monkeypatch.setenv("MINARI_REMOTE", "hf://somewhere")
    source = folder / spec.name / "data"

    def download(name, *, fails=False):
        target = minari_envs.local_path(name) / "data"
        target.mkdir(parents=True)
        shutil.copy(source / "metadata.json", target)
        if fails:
            raise ConnectionError("in the middle of it")
        shutil.copy(source / "main_data.hdf5", target)

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr("minari.download_dataset", functools.partial(download, fails=True))
    with pytest.raises(UserError, match="could not download"):
        sources.locate(spec, RunArgs())
    assert not path.exists()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        with making(path):  # by another process
            waiting = threads.submit(sources.locate, spec, RunArgs())
            download(spec.name)
        assert waiting.result() == path
    shutil.rmtree(path)
    monkeypatch.setattr("minari.download_dataset", download)
    assert sources.locate(spec, RunArgs()) == path and load("pen-human", path)
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".tmp")] == []


def test_a_policy_is_not_judged_on_another_data_set(folder, tmp_path):
    config = {"environment": dataclasses.asdict(resolve("pen-human")), "dataset": {"path": "x"}}
    other = RunArgs(dataset_path=folder / "D4RL/antmaze/umaze-diverse-v1")
    with pytest.raises(UserError, match=r"umaze-diverse-v1, but the run is about D4RL/pen/human-v2"):
        RunDirectory(tmp_path, config).find_data(other)


def test_offline_says_what_to_fetch_and_where_to_put_it(monkeypatch, folder):
    import requests

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", no_network)
    with pytest.raises(UserError) as error:
        load("door-cloned")
    message = str(error.value)
    assert "\n" not in message
    for part in ("no connection", "minari download D4RL/door/cloned-v2", str(folder / "D4RL/door/cloned-v2")):
        assert part in message
    with pytest.raises(UserError, match="cannot be collected here"):
        sources.load(resolve("door-cloned"), RunArgs(data_source="collect"))


@pytest.mark.parametrize("package", ["minari", "h5py", "gymnasium_robotics"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, refusal, package):
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    message = refusal("--env-id", "pen-human", "--run-dir", tmp_path / "run")
    assert f"{package} is missing" in message
    assert "pip install" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture
def train(here):
    """A hundred updates; returns what they are worth."""

    def train(env_id: str, path: pathlib.Path, episodes: int, workers: int, script: str = "drol.py"):
        settings = ("--hidden-sizes", 8, "--batch-size", 8, "--eval-episodes", episodes)
        steps = ("--offline-steps", 100, "--log-interval", 50, "--eval-workers", workers)
        result = here("--env-id", env_id, *settings, *steps, "--run-dir", path, script=script)
        assert result.returncode == 0, result.stderr
        assert "Minari: " in result.stdout
        assert "done: " + ("success" if script == "fql.py" else "normalised score") in result.stdout
        assert "gymnasium-robotics" in json.loads((path / "config.json").read_text())["versions"]
        (row,) = read_table(path / "eval.csv")
        return row

    return train


@pytest.mark.slow(6)
def test_training_and_evaluation_and_resumption(train, here, tmp_path):
    """On an environment whose returns, and lengths, differ from policy to policy."""
    path, film = tmp_path / "run", tmp_path / "film.gif"
    row = train("toys/hopper/random-v0", path, episodes=1, workers=1)
    assert 5 < row["evaluation/length"] < 500
    (path / "eval.csv").unlink()
    assert here("--resume", path).returncode == 0
    assert read_table(path / "eval.csv") == [row]
    result = here("--evaluate", path, "--video", film)
    evaluated, *filmed = result.stdout.splitlines()
    numbers = {name: value for name, value in row.items() if name != "step"}
    assert evaluated == f"after update 100, 1 episode: {progress.describe(numbers)}"
    if result.returncode == 0:
        frames = math.ceil(row["evaluation/length"] / 5) + 1  # of 125 a second every fifth, and what it ended with
        assert filmed == [f"video: {film}, {frames} frames"]
        assert imageio.immeta(film)["duration"] == 40  # milliseconds
    else:
        assert result.stderr.startswith("error: --video ")
        assert filmed == []


@pytest.mark.slow(4)
def test_fql_trains_on_antmaze(train, tmp_path):
    row = train("antmaze-umaze-diverse", tmp_path / "run", episodes=2, workers=2, script="fql.py")
    assert row["evaluation/length"] == 60


@pytest.mark.slow(4)
def test_a_video_shows_the_first_episodes_or_says_in_one_line_why_not(folder, tmp_path):
    spec = resolve("toys/hopper/random-v0")
    evaluator = Evaluator(spec, 2, seeds=[0], workers=1, dataset_path=folder / spec.name)

    def policy(observations, *_):
        return np.ones((*observations.shape[:2], 3), np.float32)

    with contextlib.closing(evaluator):
        try:
            film(policy, tmp_path / "film.mp4", spec, seed=0, episodes=2, dataset_path=folder / spec.name, size=64)
        except UserError as error:
            assert str(error).startswith(f"--video {tmp_path / 'film.mp4'}: ")
            return
        frames = imageio.imread(tmp_path / "film.mp4")
        (result,) = evaluator(policy)
        # Hopper's 125 a second; 25 will do, and the states after the last steps.
        assert abs(len(frames) - (2 * result["evaluation/length"] / 5 + 2)) <= 2
        assert frames.shape[1:] == (64, 64, 3)
        assert frames[0].std() > 5  # there is something to be seen
        assert np.abs(frames[-1] - frames[0].astype(float)).max() > 50  # and it moves


class Choosy(gymnasium.Env):
    """Takes no size, has no time limit, and raises whatever it is asked to."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 25}
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None, error=None):
        self.render_mode = render_mode
        if error is not None:
            raise error

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("error", [ValueError("a"), AssertionError("a"), RuntimeError("a"), AttributeError("a")])
def test_whatever_an_environment_fails_with_is_one_line(folder, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(minari_envs.import_minari().MinariDataset, "recover_environment", fail)
    with pytest.raises(UserError, match=f"cannot be made here \\({type(error).__name__}: a\\)"):
        minari_envs.make_env(folder / "toys/hopper/random-v0")


def test_an_environment_without_a_time_limit_takes_that_of_the_data_or_is_refused(folder, monkeypatch):
    gymnasium.register("Choosy-v0", Choosy)
    dataset = minari_envs.import_minari().MinariDataset
    monkeypatch.setattr(dataset, "recover_environment", lambda *args, **kwargs: gymnasium.make("Choosy-v0"))
    with pytest.raises(UserError, match=r"no time limit.*max_episode_steps"):
        minari_envs.make_env(folder / "toys/hopper/random-v0")  # all of its episodes end by falling
    env = minari_envs.make_env(folder / "D4RL/pen/human-v2")
    env.reset()
    steps = [env.step(np.zeros(1))[3] for _ in range(150)]
    assert (steps.index(True), sum(steps)) == (149, 1)
