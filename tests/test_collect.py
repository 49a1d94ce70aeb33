"""Collected data: format, determinism, recipe."""

import json
import subprocess
import sys

from common.arguments import RunArgs
from common.data import collect, episodes, experts, recipes, sources
from common.env_ids import resolve
from common.envs import make_env
from common.errors import UserError

import jax
import numpy as np
import ogbench
import pytest
from conftest import REPOSITORY, run_script


@pytest.mark.slow(10)
def test_files_are_in_the_official_format(cube_file, pointmaze_file):
    validation = pointmaze_file.with_name(f"{pointmaze_file.stem}-val.npz")
    for path, number, widths in (
        (cube_file, 2, {"observations": 28, "actions": 5, "qpos": 21, "qvel": 20}),
        (pointmaze_file, 4, {"observations": 2, "actions": 2, "qpos": 2, "qvel": 2}),
        (validation, 1, {"observations": 2, "actions": 2, "qpos": 2, "qvel": 2}),
    ):
        with np.load(path) as file:
            shapes = {key: file[key].shape for key in file}
            dtypes = {key: file[key].dtype for key in file}
            terminals, actions = file["terminals"], file["actions"]
        rows = number * 1001
        assert shapes == {key: (rows, width) for key, width in widths.items()} | {"terminals": (rows,)}
        assert dtypes == {key: np.bool_ if key == "terminals" else np.float32 for key in shapes}
        assert np.flatnonzero(terminals).tolist() == [1001 * (i + 1) - 1 for i in range(number)]
        assert np.abs(actions).max() <= 1
    data = ogbench.load_dataset(str(cube_file))
    assert len(data["observations"]) == 2000
    assert cube_file.name != "cube-single-play-v0.npz"
    record = json.loads(cube_file.with_suffix(".json").read_text())
    assert (record["source"], record["episodes"], record["official_episodes"]) == ("collected", 2, 1000)


@pytest.mark.slow(10)
def test_positions_and_velocities_belong_to_the_state_before_the_step(cube_file):
    with np.load(cube_file) as file:
        observations, qpos, qvel = file["observations"], file["qpos"], file["qvel"]
    np.testing.assert_allclose(observations[:, :6], qpos[:, :6], atol=1e-6)  # the arm's joints lead both
    np.testing.assert_allclose(observations[:, 6:12], qvel[:, :6], atol=1e-5)


@pytest.mark.slow(10)
def test_the_oracle_moves_the_cube(cube_file):
    with np.load(cube_file) as file:
        cube = file["qpos"][:, 14:17]
    assert np.linalg.norm(cube.max(0)[:2] - cube.min(0)[:2]) > 0.1  # metres
    assert cube[:, 2].max() > 0.08  # lifted


@pytest.mark.slow(2)
def test_the_data_depends_neither_on_the_number_of_workers_nor_on_how_much_is_collected(tmp_path):
    spec = resolve("pointmaze-medium")
    few, more = (
        dict(np.load(collect.collect_data(spec, tmp_path / str(workers), episodes=episodes, seed=5, workers=workers)))
        for workers, episodes in ((1, 2), (2, 3))
    )
    for key, values in few.items():
        np.testing.assert_array_equal(more[key][: 2 * 1001], values)
    episodes = few["actions"].reshape(2, 1001, 2)
    assert not np.array_equal(episodes[0], episodes[1])  # each has a seed of its own


@pytest.mark.parametrize(
    ("env_id", "buttons"),
    [
        ("cube-double", 0),
        ("cube-double-noisy", 0),
        ("scene", 2),
        ("scene-noisy", 2),
        ("puzzle-3x3", 9),
        ("puzzle-4x4-noisy", 16),
    ],
)
@pytest.mark.slow(2)
def test_every_manipulation_recipe_yields_an_episode(env_id, buttons):
    np.random.seed(0)
    episode = recipes.manipulation(resolve(env_id), 120)()
    assert {len(values) for values in episode.values()} == {120}
    assert np.isfinite(episode["observations"]).all()
    if buttons:
        assert episode["button_states"].shape == (120, buttons)
        assert episode["button_states"].dtype == np.int64
        assert set(np.unique(episode["button_states"])) <= {0, 1}
    # Random and noisy actions leave the closed-loop controller's saturated ones; a plan moves smoothly.
    jumps = np.abs(np.diff(episode["actions"][:, :3], axis=0)).mean()
    assert (jumps > 0.15) == env_id.endswith("noisy"), jumps


@pytest.mark.parametrize("env_id", ["cube-double", "scene", "puzzle-3x3-noisy"])
@pytest.mark.slow(2)
def test_an_episode_does_not_depend_on_the_one_before(env_id, monkeypatch):
    collect_episode = recipes.manipulation(resolve(env_id), 40)
    monkeypatch.setattr(episodes, "_collect_episode", collect_episode, raising=False)
    first, second, again = (episodes._work((0, index)) for index in (1, 2, 1))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["actions"], second["actions"])


@pytest.mark.parametrize("env_id", ["pointmaze-medium", "pointmaze-teleport", "pointmaze-medium-stitch"])
def test_pointmaze_recipes_reach_goals(env_id):
    spec = resolve(env_id)
    env = make_env(f"{spec.env_name}-v0").unwrapped
    np.random.seed(1)
    collect_episode = recipes.maze(spec, 400)
    for _ in range(3):
        episode = collect_episode()
        path = episode["observations"]
        assert all(env.maze_map[env.xy_to_ij(xy)] == 0 for xy in path)
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        if spec.dataset_type == "stitch":  # four cells of four units away, then it stays
            assert np.linalg.norm(path[-100:].max(0) - path[-100:].min(0)) < 6
        elif env_id == "pointmaze-medium":  # goes on to the next goal
            assert steps[-100:].mean() > 0.08


def test_the_ant_is_its_networks_mode():
    state = np.random.default_rng(0).normal(size=29)
    with np.load(experts.EXPERTS / "ant.npz") as file:
        weights = {key: file[key].astype(np.float64) for key in file}
    x = state
    for layer in ("hidden0", "hidden1"):
        x = np.asarray(jax.nn.gelu(x @ weights[f"{layer}_kernel"] + weights[f"{layer}_bias"], approximate=True))
    expected = np.tanh(x @ weights["mean_kernel"] + weights["mean_bias"])
    np.testing.assert_allclose(experts.load_ant()(state), expected, atol=1e-5)


def test_the_ant_walks_where_it_is_told_to_go():
    env = make_env("antmaze-large-v0").unwrapped
    ant = experts.load_ant()
    np.random.seed(0)  # which the start is drawn from
    for direction in ([1.0, 0.0], [-1.0, 0.0]):  # along a corridor of the maze, from its middle
        env.reset(seed=0, options={"task_info": {"init_ij": (1, 3), "goal_ij": (1, 3)}})
        start = env.get_xy()
        for _ in range(60):
            env.step(ant(np.concatenate([env.get_ob(ob_type="states")[2:], direction])))
        moved = env.get_xy() - start
        assert moved @ direction > 2, moved  # half a cell
        assert abs(moved[1]) < moved @ direction / 2, moved


@pytest.mark.parametrize("env_id", ["antmaze-medium", "antmaze-medium-stitch", "antmaze-medium-explore"])
def test_antmaze_recipes(env_id):
    spec = resolve(env_id)
    maze = make_env(f"{spec.env_name}-v0").unwrapped
    np.random.seed(2)
    collect_episode = recipes.maze(spec, 400)
    episodes = [collect_episode() for _ in range(2)]
    for episode in episodes:
        assert episode["observations"].shape == (400, 29)
        np.testing.assert_allclose(episode["observations"], np.hstack([episode["qpos"], episode["qvel"]]), rtol=1e-6)
        assert all(maze.maze_map[maze.xy_to_ij(xy)] == 0 for xy in episode["observations"][:, :2])
        assert np.abs(episode["actions"]).max() == 1
    path = np.concatenate([np.diff(episode["observations"][:, :2], axis=0) for episode in episodes])
    speed = np.linalg.norm(path, axis=1).mean()
    saturated = np.mean([np.abs(episode["actions"]) == 1 for episode in episodes])
    if env_id.endswith("explore"):
        assert saturated > 0.25  # of noise with deviation 1
        assert speed < 0.11
    else:
        assert saturated < 0.2
        assert speed > 0.08
    assert not np.array_equal(episodes[0]["observations"][0, :2], episodes[1]["observations"][0, :2])


def test_the_ant_is_in_the_provenance():
    assert "SHA-256" in collect.describe_oracle(resolve("antmaze-large"))
    assert "scripted" in collect.describe_oracle(resolve("cube-double"))


@pytest.mark.slow(5)
def test_a_large_collection_comes_in_shards_and_goes_on_after_a_stop(tmp_path, monkeypatch, capfd):
    spec = resolve("pointmaze-medium")
    monkeypatch.setattr(collect, "SHARD_EPISODES", 2)
    whole = dict(np.load(collect.collect_data(spec, tmp_path / "whole", episodes=2, seed=3, workers=1)))
    make, made = collect.collect_episodes, []

    def stopped(make_collector, indices, *args, **how):
        if made:
            raise KeyboardInterrupt
        made.append(list(indices))
        return make(make_collector, indices, *args, **how)

    monkeypatch.setattr(collect, "collect_episodes", stopped)
    with pytest.raises(KeyboardInterrupt):
        collect.collect_data(spec, tmp_path, episodes=5, seed=3, workers=1)
    folder = collect.collected_path(spec, tmp_path, 5, 3)
    assert folder.name == "pointmaze-medium-navigate-v0-collected-5-seed3"
    (folder / ".tmp-killed.npz").write_bytes(b"left by a kill")
    assert collect.find_collected(spec, tmp_path, 5, 3) is None
    monkeypatch.setattr(
        collect, "collect_episodes", lambda *args, **how: made.append(list(args[1])) or make(*args, **how)
    )
    assert collect.collect_data(spec, tmp_path, episodes=5, seed=3, workers=1) == folder
    assert made == [[0, 1], [2, 3], [4]]  # none of them twice
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".npz") == [
        f"{folder.name}-{shard:03}.npz" for shard in range(3)
    ]
    with np.load(folder / f"{folder.name}-000.npz") as first:
        for name, array in whole.items():
            np.testing.assert_array_equal(first[name], array)
    data, origin = sources.load(spec, RunArgs(dataset_path=folder))
    assert data.num_transitions == 5000
    assert sources.describe_source(origin) == (
        "collected: 5 (official: 1000) episodes, seed 3, 3 shards, 5,000 transitions"
    )
    capfd.readouterr()
    assert collect.collect_data(spec, tmp_path, episodes=5, seed=3) == folder
    assert f"found {folder}" in capfd.readouterr().out


def test_what_one_shard_holds_is_one_file(tmp_path):
    for env_id, number, is_file in (
        ("cube-single", 1000, True),
        ("cube-single", 1001, False),
        ("antmaze-large-stitch", 5000, True),
        ("antmaze-large-explore", None, False),
        ("cube-quadruple-play-100m", 1000, True),
    ):
        spec = resolve(env_id)
        path = collect.collected_path(spec, tmp_path, number, 0)
        assert (path.suffix == ".npz") == is_file, env_id
        parts = collect.files_of(spec, path, number)
        assert sum(map(len, parts.values())) == (number or 10_000)
    old = tmp_path / "cube-triple-play-v0-collected-3000-seed0.npz"  # of before there were shards
    assert collect.collected_path(resolve("cube-triple"), tmp_path, None, 0).suffix == ""
    old.touch()
    assert collect.collected_path(resolve("cube-triple"), tmp_path, None, 0) == old


@pytest.mark.slow(2)
def test_eight_cubes_are_collected_where_they_are_asked_for(tmp_path, monkeypatch):
    np.random.seed(0)
    episode = recipes.manipulation(resolve("cube-octuple"), 60)()
    assert episode["observations"].shape == (60, 19 + 9 * 8)
    assert episode["qpos"].shape == (60, 14 + 7 * 8)
    for name in ("OFFICIAL_SERVER", "MIRROR"):
        monkeypatch.setattr(sources, name, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not download cube-octuple-play-v0.npz; .*--data-source collect"):
        sources.load(resolve("cube-octuple"), RunArgs(dataset_dir=tmp_path))


def test_official_sizes():
    sizes = {
        "cube-single": (1000, 1001),
        "cube-triple": (3000, 1001),
        "cube-quadruple-noisy": (5000, 1001),
        "puzzle-4x5": (3000, 1001),
        "puzzle-4x6": (5000, 1001),
        "pointmaze-large": (1000, 1001),
        "pointmaze-giant": (500, 2001),
        "pointmaze-giant-stitch": (5000, 201),
        "antmaze-medium": (1000, 1001),
        "antmaze-giant": (500, 2001),
        "antmaze-teleport-stitch": (5000, 201),
        "antmaze-large-explore": (10000, 501),
        "cube-octuple": (100000, 1001),
        "scene-100m": (100000, 1001),
    }
    for env_id, size in sizes.items():
        official = collect.official_size(resolve(env_id))
        assert (official.episodes, official.episode_steps) == size
    with pytest.raises(UserError, match="no oracle collects"):
        collect.official_size(resolve("humanoidmaze-large"))


def test_processes_that_collect_do_without_jax():
    command = [sys.executable, "-c", "import sys, common.data.collect; sys.exit('jax' in sys.modules)"]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == 0


@pytest.mark.slow(2)
def test_as_a_program(tmp_path):
    result = run_script(
        *("--env-id", "pointmaze-medium-stitch", "--episodes", 10, "--workers", 1, "--dataset-dir", tmp_path),
        module="common.data.collect",
    )
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock")
    stem = "pointmaze-medium-stitch-v0-collected-10-seed0"
    assert names == [f"{stem}-val.npz", f"{stem}.json", f"{stem}.npz"]
    assert "official size: 5000 episodes" in result.stdout

    with pytest.raises(UserError, match="no oracle collects this data"):
        collect.main(collect.Args(env_id="humanoidmaze-large", dataset_dir=tmp_path))
