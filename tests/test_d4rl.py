"""D4RL's own files and environments: files in the real form, against D4RL's own rules written as they stand there."""

import functools
import http.server
import json
import pathlib
import threading

from common import minari_envs, mujoco_versions
from common.arguments import RunArgs
from common.data import d4rl_check, d4rl_hdf5, sources
from common.env_ids import D4RL_FILE_NAMES, D4RL_MINARI_IDS, resolve
from common.envs import make_env, make_evaluation_env
from common.errors import UserError
from common.files import sha256
from common.run_directory import read_config
from common.tables import read_table

import gymnasium
import h5py
import mujoco
import numpy as np
import pytest

SIZES = {"antmaze": (29, 8), "pen": (45, 24), "door": (39, 28), "hammer": (46, 26), "relocate": (39, 30)}
SIZES |= {"hopper": (11, 3), "halfcheetah": (17, 6), "walker2d": (17, 6)}
BOX = mujoco.mjtGeom.mjGEOM_BOX
Arrays = dict[str, np.ndarray]


def made_up(name: str, rows: int = 400, episode: int = 60) -> Arrays:
    """What a file of D4RL's holds: episodes of an environment, with terminals in the middle of them."""
    rng = np.random.default_rng(0)
    observations, actions = SIZES[name.split("-")[0]]
    position = rng.normal(scale=0.1, size=(rows, observations)).cumsum(0)
    position[:, 0] += np.arange(rows) // episode * 20  # each episode in another place
    ends = np.arange(rows) % episode == episode - 1
    return {
        "observations": position.astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, actions)).astype(np.float32),
        "rewards": (rng.uniform(size=rows) < 0.2).astype(np.float32),
        "terminals": rng.uniform(size=rows) < 0.2,
        "timeouts": ends,
    }


def write(path: pathlib.Path, arrays: Arrays, **beside: object) -> pathlib.Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
        for name, value in beside.items():
            file[name.replace("__", "/")] = value
    return path


def as_in_the_papers(arrays: Arrays, name: str, horizon: int) -> list[Arrays]:
    """Row by row `d4rl.qlearning_dataset`, then what FQL and DROL make of it."""
    transitions, episode_step = [], 0
    for i in range(len(arrays["rewards"]) - 1):
        done = bool(arrays["terminals"][i])
        final = bool(arrays["timeouts"][i]) if "timeouts" in arrays else episode_step == horizon - 1
        if final:
            episode_step = 0
            continue
        if done:
            episode_step = 0
        reward = np.float32(np.ravel(arrays["rewards"])[i])
        transitions.append(
            {
                "observations": arrays["observations"][i].astype(np.float32),
                "next_observations": arrays["observations"][i + 1].astype(np.float32),
                "actions": np.clip(arrays["actions"][i].astype(np.float32), -1 + 1e-5, 1 - 1e-5),
                "rewards": reward - np.float32(1) if name.startswith("antmaze") else reward,
                "masks": np.float32(1) - np.float32(done),
            }
        )
        episode_step += 1
    return transitions


def read(name: str, path: pathlib.Path):
    return d4rl_hdf5.read(resolve(name, path), path)[0]


def check_equal(data, expected: list[Arrays]) -> None:
    """Bit for bit, and in float32."""
    rows = data.transitions
    columns = {name: getattr(data, name)[rows] for name in ("observations", "actions", "rewards", "masks")}
    columns["next_observations"] = data.observations[rows + 1]
    for name, column in columns.items():
        wanted = np.stack([transition[name] for transition in expected])
        assert column.dtype == wanted.dtype == np.float32, name
        np.testing.assert_array_equal(column.view(np.int32), wanted.view(np.int32), err_msg=name)


@pytest.mark.parametrize("name", ["antmaze-umaze", "pen-human", "relocate-cloned", "hopper-medium-replay"])
def test_a_file_becomes_what_the_papers_code_makes_of_it(name, tmp_path):
    """Traps 1, 2, 3, 5: terminals in mid-trajectory cut nothing, no row is lost but the papers', rewards stay."""
    arrays = made_up(name)
    path = write(tmp_path / "x.hdf5", arrays, infos__goal=np.full((400, 2), 99.0), infos__qpos=np.zeros((400, 15)))
    data = read(name, path)
    check_equal(data, as_in_the_papers(arrays, name, 10**9))
    assert len(data.observations) == 400  # as they lie
    assert len(data.transitions) == 400 - 6 - 1  # the last one's successor is not in the file
    assert (data.masks[data.transitions] == 0).sum() > 40


@pytest.mark.parametrize("flag", [bool, np.uint8, np.float32, np.float64])
def test_flags_and_rewards_of_every_type_and_shape(flag, tmp_path):
    arrays = made_up("door-human")
    expected = as_in_the_papers(arrays, "door-human", 200)
    arrays |= {name: arrays[name].astype(flag)[:, None] for name in ("terminals", "timeouts")}
    arrays |= {"rewards": arrays["rewards"].astype(np.float64)[:, None]}
    arrays |= {"observations": arrays["observations"].astype(np.float64)}
    check_equal(read("door-human", write(tmp_path / "x.hdf5", arrays)), expected)


def test_what_lies_beside_the_arrays_is_not_read(tmp_path, capsys):
    """Strings, scalars and a policy's weights, at which `[:]` raises."""
    arrays = made_up("hammer-expert")
    beside = {"metadata__algorithm": "SAC", "metadata__iteration": 5, "metadata__policy__fc0": np.ones((3, 3))}
    # Trap 7: with timeouts there may be next observations, too, and they are not looked at.
    path = write(tmp_path / "x.hdf5", arrays | {"next_observations": np.full((400, 46), np.nan)}, **beside)
    check_equal(read("hammer-expert", path), as_in_the_papers(arrays, "hammer-expert", 200))
    assert f"note: {path}: not read: metadata" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "horizon"), [("pen-human", 100), ("door-human", 200)])
def test_without_timeouts_steps_are_counted(name, horizon, tmp_path):
    """Trap 6, as d4rl counts: from 1 after a terminal. (Trap 8: of these files pen's have terminals.)"""
    arrays = made_up(name, rows=1000)
    del arrays["timeouts"]
    arrays["terminals"] = np.isin(np.arange(1000), [130, 131, 400, 599])
    expected = as_in_the_papers(arrays, name, horizon)
    assert 999 - len(expected) >= 3
    check_equal(read(name, write(tmp_path / "x.hdf5", arrays)), expected)


def test_transitions_of_drols_repository(tmp_path):
    """Trap 9: no timeouts, but next observations: every row is a transition, the last one, too."""
    arrays = made_up("pen-human")
    del arrays["timeouts"]
    following = np.concatenate([arrays["observations"][1:], arrays["observations"][:1]])
    following[[7, 200, 399]] = 0.5  # where another trajectory begins
    path = write(tmp_path / "pen-human-expert-v1.hdf5", arrays | {"next_observations": following})
    data = read("pen-human-expert", path)
    assert len(data.transitions) == 400
    np.testing.assert_array_equal(data.observations[data.transitions], arrays["observations"])
    np.testing.assert_array_equal(data.observations[data.transitions + 1], following)
    np.testing.assert_array_equal(data.rewards[data.transitions], arrays["rewards"])
    np.testing.assert_array_equal(data.masks[data.transitions], 1 - arrays["terminals"])


def test_wrong_timeouts_of_v0_are_refused(tmp_path):
    """Trap 4: a step later than trajectories end, so that a row's successor is across the maze."""
    arrays = made_up("antmaze-umaze")
    arrays["timeouts"] = np.roll(arrays["timeouts"], 1)
    path = write(tmp_path / "x.hdf5", arrays)
    with pytest.raises(UserError, match=r"the ant jumps [12]\d\.\d m from row 59 to the next, .* D4RL's v0 .* v2"):
        read("antmaze-umaze", path)
    with pytest.raises(UserError, match=r"d4rl-antmaze-umaze-v0: .* v2 is read; in v0"):
        resolve("d4rl-antmaze-umaze-v0")
    with pytest.raises(UserError, match="v2 is read"):
        resolve("antmaze-umaze-v0", path)


def test_trajectories_of_ones_own_may_end_at_the_goal_without_a_timeout(tmp_path):
    arrays = made_up("antmaze-umaze")
    arrays["terminals"], arrays["timeouts"] = arrays["timeouts"], np.zeros_like(arrays["timeouts"])
    check_equal(
        read("antmaze-umaze", write(tmp_path / "x.hdf5", arrays)), as_in_the_papers(arrays, "antmaze-umaze", 700)
    )


def test_actions_beyond_their_bounds_are_clipped_as_in_the_papers(tmp_path, capsys):
    arrays = made_up("pen-cloned")
    arrays["actions"] *= 1.5
    check_equal(read("pen-cloned", write(tmp_path / "x.hdf5", arrays)), as_in_the_papers(arrays, "pen-cloned", 100))
    assert "are clipped to [-1, 1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminals": None}, "terminals is missing; d4rl-pen-human needs it"),
        ({"observations": np.zeros((400, 29), np.float32)}, r"observations has shape \(400, 29\)"),
        ({"rewards": np.full(400, np.nan)}, "NaN or infinity in rewards, first in row 0"),
        ({"actions": np.full((400, 24), np.inf)}, "NaN or infinity in actions"),
        ({"actions": np.full((400, 24), b"x")}, "actions holds .*, not numbers"),
        ({"timeouts": np.ones(399)}, "399 rows of timeouts but 400 of observations"),
        ({"timeouts": np.full(400, 2)}, r"timeouts must lie in \[0, 1\]"),
        ({"timeouts": np.ones(400)}, "it holds no transition"),
        ({"rewards": "text"}, "rewards has shape"),
    ],
)
def test_unsound_files_are_refused(change, message, tmp_path):
    arrays = {name: array for name, array in (made_up("pen-human") | change).items() if array is not None}
    with pytest.raises(UserError, match=message):
        read("pen-human", write(tmp_path / "x.hdf5", arrays))


def test_damaged_files_are_refused(tmp_path):
    path = write(tmp_path / "x.hdf5", made_up("pen-human"))
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2 : len(whole) // 2 + 2000] = bytes(2000)
    for content in (whole[: len(whole) // 2], b"", b"not an HDF5 file", bytes(middle)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or not an HDF5 file"):
            read("pen-human", path)
    path.unlink()
    write(path, {}, observations__group=1)
    with pytest.raises(UserError, match="damaged or not an HDF5 file"):
        read("pen-human", path)


# Names, and where the files come from.


def test_names():
    for name in D4RL_FILE_NAMES:
        version = "v2" if name.startswith(("antmaze", "hopper", "halfcheetah", "walker2d")) else "v1"
        spec = resolve(f"d4rl-{name}")
        assert (spec.suite, spec.name, spec.short_name, spec.family) == ("d4rl_hdf5", f"d4rl-{name}", spec.name, name)
        file = pathlib.Path("somewhere.hdf5")
        assert spec == resolve(f"d4rl-{name}-{version}") == resolve(name, file) == resolve(f"{name}-{version}", file)
        if name in D4RL_MINARI_IDS:
            assert resolve(name).suite == resolve(f"{name}-{version}").suite == "d4rl"  # Minari's, as ever
    with pytest.raises(UserError, match=r"nearest known names are .*d4rl-pen-human"):
        resolve("d4rl-pen-humam")
    with pytest.raises(UserError, match=r"v1 is read$"):
        resolve("d4rl-pen-human-v0")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder of D4RL's server, here; d4rl's own is tmp_path/d4rl."""
    folder = tmp_path / "server"
    (folder / "hand_dapg_v1").mkdir(parents=True)
    (folder / "ant_maze_v2").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(d4rl_hdf5, "SERVER", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    yield folder
    server.shutdown()
    server.server_close()


def load(name: str, **arguments):
    return sources.load(resolve(name), RunArgs(**arguments))


def test_a_file_is_downloaded_once_then_found_where_d4rl_keeps_it(server, tmp_path, capfd):
    name = "Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    write(server / "ant_maze_v2" / name, made_up("antmaze-medium-play"))
    data, origin = load("d4rl-antmaze-medium-play-v2")
    assert (origin["source"], origin["path"]) == ("official", str(tmp_path / "d4rl" / name))
    assert origin["versions"]["mujoco"] == mujoco_versions.OFFICIAL_MUJOCO["d4rl_hdf5"]
    (server / "ant_maze_v2" / name).unlink()
    again, found = load("d4rl-antmaze-medium-play")
    assert found == origin
    np.testing.assert_array_equal(again.transitions, data.transitions)
    out = capfd.readouterr().out
    assert out.count("data: downloaded") == out.count("data: found") == 1


def test_a_download_is_compared_with_the_published_checksum(server, tmp_path, monkeypatch, capfd):
    write(server / "hand_dapg_v1" / "pen-human-v1.hdf5", made_up("pen-human"))
    with pytest.raises(UserError, match=r"could not download pen-human-v1\.hdf5; put it into .*d4rl, or name it with"):
        load("d4rl-pen-human")
    assert "damaged, or not the expected data" in capfd.readouterr().out
    assert not list((tmp_path / "d4rl").glob("*.hdf5"))
    digest = sha256(server / "hand_dapg_v1" / "pen-human-v1.hdf5")
    monkeypatch.setitem(sources.KNOWN_SHA256, "pen-human-v1.hdf5", digest)
    assert load("d4rl-pen-human")[1]["source"] == "official"


def test_a_file_of_that_name_that_is_another_is_not_called_official(server, tmp_path, capfd):
    (tmp_path / "d4rl").mkdir()
    write(tmp_path / "d4rl" / "pen-human-v1.hdf5", made_up("pen-human"))
    assert load("d4rl-pen-human")[1]["source"] == "file"
    assert "is not the official file of that name" in capfd.readouterr().out


def test_nobody_collects_d4rls_own_files(server):
    for name in ("d4rl-pen-expert", "d4rl-antmaze-umaze"):
        with pytest.raises(UserError, match="is D4RL's own file, which nobody collects"):
            load(name, data_source="collect")
    with pytest.raises(UserError, match="could not download pen-human-expert-v1"):
        load("d4rl-pen-human-expert")


# Environments.


@pytest.mark.parametrize("maze", ["medium", "large"])
def test_the_ant_and_its_walls_are_ogbenchs_to_the_last_bit(maze):
    """OGBench's have been compared with D4RL's own (bitwise, in one MuJoCo)."""
    here = make_env(f"common.d4rl_envs:d4rl-antmaze-{maze}-play").unwrapped
    theirs = make_env(f"antmaze-{maze}-v0").unwrapped
    rng = np.random.default_rng(0)
    for episode in range(3):
        here.reset(seed=episode)
        theirs.reset(seed=episode)
        theirs.set_state(here.data.qpos.copy(), here.data.qvel.copy())
        for env in (here, theirs):
            env.data.qacc_warmstart[:] = 0
        for _ in range(200):
            action = rng.uniform(-1, 1, 8)
            np.testing.assert_array_equal(here.step(action)[0], theirs.step(action)[0])
    fields = ("pos", "size", "friction", "margin", "solref", "solimp", "contype", "conaffinity")
    walls = [
        np.concatenate([getattr(env.model, f"geom_{field}")[env.model.geom_type == BOX].T for field in fields], None)
        for env in (here, theirs)
    ]
    np.testing.assert_array_equal(*walls)


GOALS = {"umaze": (0, 8), "medium": (20, 20), "large": (32, 24)}  # corners of their cells' inner halves, in metres


@pytest.mark.parametrize("name", [name for name in D4RL_FILE_NAMES if name.startswith("antmaze")])
def test_antmaze_begins_and_ends_as_in_d4rl(name):
    """Against the rules as facts: start, goal, reward, end, horizon; ten episodes."""
    maze = name.split("-")[1]
    env = make_evaluation_env(resolve(f"d4rl-{name}"))
    ant, goals = env.unwrapped, []
    assert env.most_steps == {"umaze": 700, "medium": 1000, "large": 1000}[maze]
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        assert observation.shape == (29,)
        np.testing.assert_array_equal(observation, np.concatenate([ant.data.qpos, ant.data.qvel]).astype(np.float32))
        assert np.abs(observation[:2]).max() <= 0.1
        assert abs(observation[2] - 0.75) <= 0.1
        goals.append(ant.goal)
        offset = ant.goal - GOALS[maze]
        assert ((offset >= 0) & (offset <= 1.5)).all()
        step = env.step(np.zeros(8, np.float32))
        assert step[1:] == (0.0, False, False, {"success": 0.0})
        for distance, reached in ((0.6, False), (0.4, True)):
            ant.set_xy(ant.goal - np.array([distance, 0]))
            ant.data.qvel[:2] = 0
            _, reward, terminated, truncated, info = env.step(np.zeros(8, np.float32))
            measured = np.linalg.norm(ant.data.qpos[:2] - ant.goal) <= 0.5
            assert measured == reached
            assert (reward, terminated, truncated) == (float(reached), reached, False)
        assert info["success"] == 1
    assert len({tuple(goal) for goal in goals}) == 10  # drawn anew
    env.reset(seed=3)
    np.testing.assert_array_equal(ant.goal, goals[3])


@pytest.mark.parametrize("hand", ["door", "hammer", "relocate"])
def test_hands_have_d4rls_sign(hand):
    """The term of the palm's distance, +0.1 in gymnasium-robotics' v1, is -0.1; nothing else differs."""
    env = make_env(f"common.d4rl_envs:d4rl-{hand}-human")
    assert env.spec.max_episode_steps == 200
    theirs = gymnasium.make(f"AdroitHand{hand.capitalize()}-v1").unwrapped
    env.reset(seed=0)
    theirs.reset(seed=0)
    rng, distances = np.random.default_rng(0), []
    for _ in range(50):
        action = rng.uniform(-1, 1, env.action_space.shape)
        (here, reward, *_), (there, their_reward, *_) = env.step(action), theirs.step(action)
        np.testing.assert_array_equal(here, there)
        palm = theirs.data.site_xpos[theirs.grasp_site_id if hand == "door" else theirs.S_grasp_site_id]
        if hand == "door":
            object_ = theirs.data.site_xpos[theirs.handle_site_id]
        else:
            object_ = theirs.data.xpos[theirs.obj_body_id]
        distances.append(np.linalg.norm(palm - object_))
        assert reward - -0.1 * distances[-1] == pytest.approx(their_reward - 0.1 * distances[-1], abs=1e-9)
    assert max(distances) > 0.05


def test_pen_ends_where_it_is_dropped_or_after_100_steps():
    env = make_evaluation_env(resolve("d4rl-pen-human"))
    for seed, scale in ((0, 0.0), (1, 1.0), (2, 1.0), (3, 1.0)):
        env.reset(seed=seed)
        rng, over, steps = np.random.default_rng(seed), False, 0
        while not over:
            _, _, terminated, truncated, _ = env.step(scale * rng.choice([-1.0, 1.0], 24).astype(np.float32))
            steps, over = steps + 1, terminated or truncated
            assert terminated == (env.unwrapped.data.body("Object").xpos[2] < 0.075)
        assert terminated or steps == 100
    env.reset(seed=0)
    state = env.unwrapped.get_env_state()
    state["qpos"][-6] = 0.3  # the pen, 30 cm lower: its first axis points down
    env.unwrapped.set_env_state(state)
    assert env.step(np.zeros(24, np.float32))[2]


@pytest.mark.parametrize(
    ("robot", "theirs"), [("hopper", "Hopper"), ("halfcheetah", "HalfCheetah"), ("walker2d", "Walker2d")]
)
def test_locomotion_is_gymnasiums_v4_scored_by_d4rl(robot, theirs):
    spec = resolve(f"d4rl-{robot}-medium-expert-v2")
    assert d4rl_hdf5.remote_name(spec.name) == f"gym_mujoco_v2/{robot}_medium_expert-v2.hdf5"
    env = make_evaluation_env(spec)
    assert (env.observation_space.shape, env.action_space.shape) == tuple((size,) for size in SIZES[robot])
    assert env.most_steps == 1000
    v4 = gymnasium.make(f"{theirs}-v4")
    rng, over = np.random.default_rng(0), False
    np.testing.assert_array_equal(env.reset(seed=0)[0], v4.reset(seed=0)[0].astype(np.float32))
    v4.unwrapped.data.qacc_warmstart[:] = 0
    while not over:  # the cheetah to its time limit
        action = rng.uniform(-1, 1, v4.action_space.shape).astype(np.float32)
        ours, expected = env.step(action), v4.step(action)
        np.testing.assert_array_equal(ours[0], expected[0].astype(np.float32))
        assert ours[1:4] == pytest.approx(expected[1:4])
        over = expected[2] or expected[3]
    low, high = minari_envs.reference_scores(spec, pathlib.Path())
    assert (low, high) == pytest.approx(REFERENCES[robot])


# D4RL's infos.py.
REFERENCES = {"hopper": (-20.272305, 3234.3), "halfcheetah": (-280.178953, 12135.0), "walker2d": (1.629008, 4592.3)}


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("name", ["antmaze-umaze", "hopper-medium", "door-human"])
def test_the_simulator_is_compared_with_a_files(name, lag, tmp_path, capsys):
    """Of states that were recorded here it makes the same; of those of other actions it does not."""
    env, rng = make_env(f"common.d4rl_envs:d4rl-{name}"), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    data, rows = env.unwrapped.data, []
    for _ in range(30):
        action, states = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32), []
        for moment in range(2):
            states.append({"qpos": data.qpos.copy(), "qvel": data.qvel.copy()})
            if moment == 0:
                before, (observation, *_) = observation, env.step(action)
        place = (
            {"door_body_pos": env.unwrapped.model.body_pos[env.unwrapped.door_body_id].copy()} if "door" in name else {}
        )
        rows.append(
            {"observations": before, "actions": action} | {f"infos/{n}": a for n, a in (states[lag] | place).items()}
        )
    arrays = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    arrays |= {"terminals": np.zeros(30), "timeouts": np.arange(30) == 14}
    path = write(tmp_path / "x.hdf5", arrays)
    d4rl_check.main(d4rl_check.Args(f"d4rl-{name}", path))
    out = capsys.readouterr().out
    assert f"26 steps of {path}, whose rows have the state {('before', 'after')[lag]} its action" in out
    off, moved = (float(line.split(" by ")[1].split()[0]) for line in out.splitlines()[-2:])
    assert off < 1e-3 * moved
    arrays["actions"] = -arrays["actions"]
    d4rl_check.main(d4rl_check.Args(f"d4rl-{name}", write(tmp_path / "y.hdf5", arrays)))
    assert float(capsys.readouterr().out.splitlines()[-2].split(" by ")[1].split()[0]) > 1e-2 * moved
    del arrays["infos/qvel"]
    with pytest.raises(UserError, match="it has no infos/qvel, so that its states cannot be set again"):
        d4rl_check.main(d4rl_check.Args(f"d4rl-{name}", write(tmp_path / "z.hdf5", arrays)))


# Runs.


@pytest.mark.slow(7)
@pytest.mark.parametrize(
    ("name", "script"), [("antmaze-umaze", "drol.py"), ("pen-human", "fql.py"), ("hopper-medium", "drol.py")]
)
def test_training_evaluation_and_moving_the_data(name, script, tmp_path, here, monkeypatch):
    data, path = write(tmp_path / "mine.hdf5", made_up(name)), tmp_path / "run"
    sizes = ("--hidden-sizes", 8, "--batch-size", 8, "--eval-episodes", 1, "--eval-workers", 1)
    steps = ("--offline-steps", 100, "--log-interval", 50)
    words = ("--env-id", name, "--dataset-path", data, *sizes, *steps, "--run-dir", path)
    result = here(*words, script=script)
    assert result.returncode == 0, result.stderr
    config = read_config(path)
    assert config["environment"]["name"] == f"d4rl-{name}"
    assert config["origins"]["discount"] == ("default" if name == "hopper-medium" else "published")
    assert ("nothing is published for hopper-medium" in result.stdout) == (name == "hopper-medium")
    assert {"h5py", "ogbench", "gymnasium-robotics"} <= config["versions"].keys()
    (row,) = read_table(path / "eval.csv")
    is_maze = name.startswith("antmaze")
    assert ("evaluation/normalized_score" in row) == (not is_maze)
    assert row["evaluation/length"] == 700 or not is_maze
    if not is_maze:  # one of them is enough for what follows
        return
    folder = data.parent / "d4rl"
    folder.mkdir()
    data.rename(folder / pathlib.Path(d4rl_hdf5.remote_name("d4rl-antmaze-umaze")).name)
    (path / "eval.csv").unlink()
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    resumed = here("--resume", path)
    assert resumed.returncode == 0, resumed.stderr
    assert read_table(path / "eval.csv") == [row]
    assert json.loads((path / "config.json").read_text())["environment"]["suite"] == "d4rl_hdf5"
