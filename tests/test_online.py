"""Fine-tuning online: the replay buffer, and transitions that are like the data set's."""

import dataclasses
import functools
import itertools
import json
import re
import signal

import drol
from common import actions, envs, replay
from common import exploration as exploration_module
from common.env_ids import resolve
from common.exploration import ExplorationEnvs
from common.replay import Batch, Replay
from common.tables import read_table

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import ACTION_DIM, OBSERVATION_DIM, make_args, random_dataset


def transition(number: float) -> Batch:
    """One whose every entry is `number`."""
    observations, actions = jnp.full(OBSERVATION_DIM, number), jnp.full(ACTION_DIM, number)
    return Batch(observations, actions, jnp.float32(number), jnp.float32(number), observations)


def filled(args, dataset, number_of_transitions: int) -> Replay:
    filled = replay.empty_replay(args, dataset)
    add = jax.jit(replay.add_transition)
    for number in range(number_of_transitions):
        filled = add(filled, transition(100.0 + number))
    return filled


def test_the_ring_overwrites_the_oldest():
    dataset = random_dataset()
    args = make_args(drol, online_steps=1000, buffer_size=dataset.transitions.size + 5)
    buffer = filled(args, dataset, 7)
    assert buffer.ring.rewards.tolist() == [105, 106, 102, 103, 104]
    for rows in jax.tree.leaves(buffer.ring):
        assert np.unique(rows.reshape(5, -1), axis=1).shape[1] == 1  # all parts of a transition in one place
    assert int(buffer.added) == 7
    short = dataclasses.replace(args, online_steps=3)  # no more room than will be needed
    assert replay.empty_replay(short, dataset).ring.rewards.shape == (3,)


@pytest.mark.slow(1)
@pytest.mark.parametrize("balanced", [False, True])
def test_batches_come_from_the_data_set_and_from_what_is_in_the_ring(balanced):
    dataset = random_dataset()
    n = dataset.transitions.size
    buffer = filled(make_args(drol, online_steps=50, buffer_size=n + 50), dataset, 12)
    batch = replay.sample_replay(jax.device_put(dataset), buffer, 3001, balanced, jax.random.key(0))
    online = np.asarray(batch.rewards) >= 100
    drawn, counts = np.unique(np.asarray(batch.rewards)[online], return_counts=True)
    assert drawn.tolist() == list(range(100, 112))  # each of them, and no empty slot
    assert counts.min() > 0.5 * counts.mean()
    np.testing.assert_array_equal(np.asarray(batch.next_observations)[online, 0], np.asarray(batch.rewards)[online])
    if balanced:
        assert online.sum() == 1501
    else:
        assert online.mean() == pytest.approx(12 / (n + 12), abs=0.04)
    offline = np.flatnonzero(~online)
    rows = [np.flatnonzero((dataset.observations == np.asarray(batch.observations)[i]).all(1)) for i in offline[:200]]
    assert all(row.size == 1 and row[0] in dataset.transitions for row in rows)
    np.testing.assert_array_equal(
        np.asarray(batch.next_observations)[offline[:200]], dataset.observations[np.concatenate(rows) + 1]
    )


@pytest.mark.slow(4)
def test_an_online_update_learns_from_the_transition_it_has_just_seen():
    """Without any other: the data set's share is drawn from rows that are not its transitions' own."""
    dataset = random_dataset()
    args = make_args(drol, online_steps=5, balanced_sampling=True, batch_size=2)
    buffer = replay.empty_replay(args, dataset)
    state = drol.init_state(args, (OBSERVATION_DIM,), ACTION_DIM, jax.random.key(0))
    learn = jax.jit(functools.partial(drol.online_update, args))
    for number in (1.0, 2.0):
        state, buffer, metrics = learn(state, buffer, jax.device_put(dataset), jax.random.key(1), transition(number))
        assert np.isfinite(float(metrics["critic/loss"]))
    assert int(state.step) == int(buffer.added) == 2


def achieve(env) -> None:
    """Bring about what the task wants."""
    maze_or_scene = env.unwrapped
    if hasattr(maze_or_scene, "set_xy"):
        maze_or_scene.set_xy(maze_or_scene.cur_goal_xy)
        return
    data = maze_or_scene._data
    if hasattr(maze_or_scene, "_target_button_states"):
        maze_or_scene._cur_button_states[:] = maze_or_scene._target_button_states
    if hasattr(maze_or_scene, "_target_drawer_pos"):
        data.joint("drawer_slide").qpos[0] = maze_or_scene._target_drawer_pos
        data.joint("window_slide").qpos[0] = maze_or_scene._target_window_pos
    for i in range(getattr(maze_or_scene, "_num_cubes", 0)):
        data.joint(f"object_joint_{i}").qpos[:3] = data.mocap_pos[i]


@pytest.mark.parametrize(
    "env_id", ["cube-single", "cube-double", "scene", "puzzle-3x3", "pointmaze-medium", "antmaze-medium"]
)
@pytest.mark.slow(4)
def test_rewards_and_masks_are_those_that_the_relabelling_gives_the_same_states(env_id):
    from ogbench.relabel_utils import relabel_dataset

    spec = resolve(env_id)
    exploration = ExplorationEnvs(spec, None, [0], first_step=0)
    env = exploration._envs[0]
    rng = np.random.default_rng(0)
    states, steps = [], []
    for step in range(12):
        if step == 4:
            achieve(env)
        raw = env.unwrapped
        data = raw.data if hasattr(raw, "data") else raw._data
        states.append({"qpos": data.qpos.copy()})
        if hasattr(raw, "_cur_button_states"):
            states[-1]["button_states"] = raw._cur_button_states.copy()
        steps.append(exploration.step(rng.uniform(-1, 1, size=(1, env.action_space.shape[0]))))
    data = {key: np.stack([state[key] for state in states]) for key in states[0]}
    judge = envs.make_env(spec.gym_id)
    relabel_dataset(spec.gym_id, judge, data)
    rewards, masks = (np.concatenate([step[name] for step in steps]) for name in ("rewards", "masks"))
    settled = np.arange(12) != 4  # MuJoCo and the task's own flags catch up with a state that was set by hand
    np.testing.assert_array_equal(rewards[settled], data["rewards"][settled])
    np.testing.assert_array_equal(masks[settled], data["masks"][settled])
    assert 0 in masks
    assert exploration.summaries()[0]["exploration/episodes"] == 1  # which ended there, and the next one has begun
    assert exploration.summaries()[0]["exploration/episodes"] == 0


def test_truncation_bootstraps_and_begins_anew():
    exploration = ExplorationEnvs(resolve("pointmaze-medium"), None, [0, 1], first_step=0)
    steps = [exploration.step(np.full((2, 2), 1.0)) for _ in range(1001)]
    np.testing.assert_array_equal([step["masks"] for step in steps], 1)
    assert np.abs(steps[0]["actions"]).max() == np.float32(actions.ACTION_BOUND)
    for earlier, later in itertools.pairwise(steps[:1000]):
        np.testing.assert_array_equal(earlier["next_observations"], later["observations"])
    assert not np.array_equal(steps[999]["next_observations"], steps[1000]["observations"])
    summary = exploration.summaries()[0]
    assert (summary["exploration/episodes"], summary["exploration/length"]) == (1, 1000)
    assert (summary["exploration/success"], summary["exploration/return"]) == (0, -1000)
    assert not np.array_equal(steps[0]["observations"][0], steps[0]["observations"][1])  # seeds explore differently
    exploration.close()


def test_an_observation_that_the_environment_changes_in_place_is_kept(monkeypatch):
    class Counter(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(0, 9, (1,)), gymnasium.spaces.Box(-1, 1, (1,))
        ends_at_success, state = False, np.zeros(1, np.float32)

        def reset(self, *, seed=None, options=None):
            self.state[:] = 0
            return self.state, {}

        def step(self, action):
            self.state += 1
            return self.state, 0.0, False, self.state[0] == 2, {"success": 0.0}

    monkeypatch.setattr(exploration_module, "make_evaluation_env", lambda *_: Counter())
    exploration = ExplorationEnvs(resolve("pointmaze-medium"), None, [0], first_step=0)
    steps = [exploration.step(np.zeros((1, 1))) for _ in range(3)]
    pairs = [(step["observations"].item(), step["next_observations"].item()) for step in steps]
    assert pairs == [(0, 1), (1, 2), (0, 1)]


SMALL = ("--hidden-sizes", 8, "--batch-size", 8, "--eval-workers", 1, "--eval-episodes", 1)
ONLINE = ("--env-id", "pointmaze-medium", *SMALL, "--offline-steps", 100, "--online-steps", 400, "--log-interval", 100)


@pytest.mark.slow(8)
@pytest.mark.usefixtures("short_episodes")
def test_a_fine_tuned_run_resumes_with_its_buffer_and_can_be_evaluated(
    pointmaze_file, tmp_path, here, refusal, after_update
):
    path = tmp_path / "run"
    after_update(300, lambda: signal.raise_signal(signal.SIGINT))
    stopped = here(*ONLINE, "--dataset-path", pointmaze_file, "--run-dir", path, "--eval-interval", 250)
    assert f"--resume {path}" in stopped.stdout
    saved = max((path / "checkpoints").iterdir())
    with np.load(saved) as arrays:
        assert arrays[".replay.added"] == arrays[".state.step"] - 100 >= 200
        ring = arrays[".replay.ring.observations"]
        assert ring.shape == (400, 2)
        assert (np.abs(ring).sum(axis=1) > 0).sum() == arrays[".replay.added"]
    result = here("--resume", path)
    assert result.returncode == 0, result.stderr
    # What is foretold for the whole run leaves out what it takes to build the program.
    assert float(re.search(r"one update takes (\S+) ms", result.stdout)[1]) < 1000
    assert [row["step"] for row in read_table(path / "train.csv")] == list(range(100, 501, 100))
    assert [row["step"] for row in read_table(path / "eval.csv")] == [100, 250, 500]  # the switch is evaluated, too
    explored = read_table(path / "exploration.csv")
    assert [row["step"] for row in explored] == list(range(200, 501, 100))
    more = here("--evaluate", path, "--eval-episodes", 2, "--inference-num-samples", 4)
    assert more.returncode == 0, more.stderr
    assert "after update 500, 2 episodes:" in more.stdout
    assert "--evaluate takes no --tau" in refusal("--evaluate", path, "--tau", 0.5)


@pytest.mark.slow(16)
@pytest.mark.usefixtures("short_episodes")
def test_seeds_that_are_fine_tuned_together_equal_each_alone(pointmaze_file, tmp_path, here):
    """Three seeds on two devices, with an empty place. Rows do not mix offline and online updates."""
    settings = ("--env-id", "pointmaze-medium", *SMALL, "--dataset-path", pointmaze_file)
    settings = (*settings, "--offline-steps", 150, "--online-steps", 60)
    three = ("--seed", 5, "--num-seeds", 3, "--log-interval", 100)
    together = here(*settings, *three, "--run-dir", tmp_path / "together")
    assert together.returncode == 0, together.stderr
    assert "(2 on each of 2 devices, 1 of 4 places empty)" in together.stdout
    alone = here(*settings, "--seed", 6, "--log-interval", 50, "--run-dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    rows, finer = (
        {row["step"]: row for row in read_table(path / "train.csv")}
        for path in (tmp_path / "together" / "seed6", tmp_path / "alone")
    )
    assert (list(rows), list(finer)) == ([100, 150, 200, 210], [50, 100, 150, 200, 210])
    for step in (150, 200, 210):
        assert rows[step] == pytest.approx(finer[step], rel=1e-4)
    assert rows[100]["critic/loss"] == pytest.approx(
        (finer[50]["critic/loss"] + finer[100]["critic/loss"]) / 2, rel=1e-4
    )
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("together/seed6", "alone")]
    assert [config["seeds_together"] for config in configs] == [[5, 6, 7], [6]]
    assert [(config["args"]["seed"], config["args"]["num_seeds"]) for config in configs] == [(6, 1), (6, 1)]
    other = read_table(tmp_path / "together" / "seed5" / "train.csv")[0]
    assert all(rows[100][name] != other[name] for name in other if name != "step")  # another seed is another run
    rings = []
    for path in (tmp_path / "together" / "seed6", tmp_path / "alone", tmp_path / "together" / "seed5"):
        with np.load(path / "checkpoints" / "step-000000210.npz") as arrays:
            assert arrays[".replay.added"] == 60
            rings.append(arrays[".replay.ring.observations"])
    np.testing.assert_allclose(rings[0], rings[1], rtol=1e-4, atol=1e-5)
    assert np.abs(rings[0] - rings[2]).max() > 0.1  # each explores for itself


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--buffer-size", 1500), "--buffer-size 1500: the data set alone has 4000 transitions"),
        (("--data-memory", "host"), "needs the data set on the device"),
        (("--own-rewards",), "the environment has other rewards than the file"),
        (("--balanced-sampling", "--batch-size", 1), "--batch-size 1: out of range"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(pointmaze_file, tmp_path, args, message, refusal):
    assert message in refusal(*ONLINE, "--dataset-path", pointmaze_file, "--run-dir", tmp_path / "run", *args)
    assert not (tmp_path / "run").exists()
