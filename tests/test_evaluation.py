"""Evaluation in the real environments."""

import itertools
import os
import signal
import threading
import time
import types
import unittest.mock

import drol
from common import evaluation
from common.env_ids import resolve
from common.envs import EpisodeLanes, EvaluationEnv, make_env, make_evaluation_env
from common.errors import UserError
from common.evaluation import Evaluations, Evaluator
from common.runs import Runs
from common.seeds import Seeds
from common.session import Session

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import completed, new_run

POINTMAZE = resolve("pointmaze-medium")


def oracle(observations, episodes, time_steps):
    """Walks to the goal of the default task by the maze's own shortest path."""
    return np.apply_along_axis(_direction, -1, observations)


def _direction(xy, cache=[]):  # noqa: B006 (one maze for all calls)
    if not cache:
        env = make_env(POINTMAZE.gym_id)
        env.reset(seed=0)
        cache.append(env.unwrapped)
    maze = cache[0]
    subgoal, _ = maze.get_oracle_subgoal(xy, maze.cur_goal_xy)
    if maze.xy_to_ij(xy) == maze.xy_to_ij(maze.cur_goal_xy):
        subgoal = np.asarray(maze.cur_goal_xy)
    direction = subgoal - xy
    return np.asarray(direction / (np.linalg.norm(direction) + 1e-6), np.float32)


def wander(observations, episodes, time_steps):
    """Depends on episode and time step alone."""
    return np.stack([np.sin(episodes + time_steps / 7), np.cos(episodes * 2.0 + time_steps / 11)], -1).astype(
        np.float32
    )


def evaluate(policy, spec=POINTMAZE, **kwargs):
    evaluator = Evaluator(spec, **{"episodes": 5, "seeds": [3], "workers": 1} | kwargs)
    try:
        return evaluator(policy)
    finally:
        evaluator.close()


@pytest.mark.slow(1)
def test_success_is_in_percent_and_return_counts_steps():
    (reached,) = evaluate(oracle)
    assert reached["evaluation/success"] == 100
    assert reached["evaluation/length"] < 300
    # -1 a step, 0 on the last one, at which the goal has been reached (ogbench: success of the state before the step).
    assert reached["evaluation/return"] == pytest.approx(1 - reached["evaluation/length"])
    (lost,) = evaluate(lambda observations, *_: np.zeros_like(observations), episodes=2)
    assert lost == {"evaluation/success": 0, "evaluation/return": -1000, "evaluation/length": 1000}


@pytest.mark.slow(7)
def test_results_do_not_depend_on_how_episodes_are_spread():
    """Over workers and lanes, and next to other seeds: with lanes that end early, and some that have nothing to do."""

    def policy(observations, episodes, time_steps):
        """Every second episode arrives, in less than 300 steps, the others never."""
        actions, arrives = wander(observations, episodes, time_steps), (episodes % 2 == 0) & (time_steps < 300)
        actions[arrives] = oracle(observations[arrives], None, None) if arrives.any() else 0
        return actions

    three, four = (evaluate(policy, seeds=[seed])[0] for seed in (3, 4))
    assert three["evaluation/success"] == four["evaluation/success"] == 60
    assert three["evaluation/length"] != four["evaluation/length"]
    assert evaluate(policy, seeds=[4, 3], workers=3) == [four, three]


def test_every_episode_has_one_lane(monkeypatch):
    monkeypatch.setattr(evaluation, "LANES_PER_WORKER", 2)
    for seeds, workers, episodes in [([0], 1, 5), ([0, 1, 2], 1, 3), ([5, 6], 3, 4)]:
        evaluator = Evaluator(POINTMAZE, episodes, seeds=seeds, workers=workers)
        lanes = evaluator.lanes_of_workers()
        spread = [episode for worker in lanes for lane in worker for episode in lane]
        assert sorted(spread) == sorted(itertools.chain(*evaluator.episode_seeds))
        assert len({len(worker) for worker in lanes}) == 1  # vectorised environments have one shape


@pytest.mark.slow(1)
def test_evaluations_repeat_themselves_and_start_states_differ():
    spec = resolve("cube-single")
    env = make_evaluation_env(spec)
    ends = []
    for seed in (7, 8, 7):
        first, _ = env.reset(seed=seed)
        for step in range(20):
            last, *_ = env.step(np.full(5, np.sin(step), np.float32))
        ends.append((first, last))
    env.close()
    np.testing.assert_array_equal(ends[0], ends[2])
    assert not np.array_equal(ends[0][0], ends[1][0])
    assert ends[0][0].dtype == np.float32


class Lottery(gymnasium.Env):
    """Draws from NumPy's global generator in every step, as OGBench's teleporting mazes do."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.random.rand(1), {}

    def step(self, action):
        return np.random.rand(1), 0.0, False, False, {}


def test_environments_of_one_process_do_not_share_random_numbers():
    def draws(envs, seeds):
        firsts = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
        return np.array([firsts, *([env.step(np.zeros(1))[0] for env in envs] for _ in range(5))])

    together = draws([EvaluationEnv(Lottery()) for _ in range(2)], [7, 8])
    for i, seed in enumerate((7, 8)):
        np.testing.assert_array_equal(together[:, i], draws([EvaluationEnv(Lottery())], [seed])[:, 0])
    assert len(np.unique(together)) == 12


def test_success_has_two_names():
    class Fetch(Lottery):
        def step(self, action):
            return *super().step(action)[:4], {"is_success": np.float32(1)}

    env = EvaluationEnv(Fetch())
    env.reset(seed=0)
    assert env.step(np.zeros(1))[4] == {"success": 1}


def test_an_environment_may_report_success_only_where_there_is_one():
    evaluator = Evaluator(POINTMAZE, 4, seeds=[0], workers=1)
    ones, nan = np.ones(4), np.full(4, np.nan)
    assert evaluator._summarise(ones, ones, np.array([1, np.nan, np.nan, np.nan]))["evaluation/success"] == 25
    assert "evaluation/success" not in evaluator._summarise(ones, ones, nan)


def test_lanes_begin_their_next_episode_by_themselves():
    def make():
        return EvaluationEnv(make_env(POINTMAZE.gym_id, max_episode_steps=3))

    lanes = EpisodeLanes(make, [[10, 11], [], [12]])
    first, _ = lanes.reset()
    alone = make()
    for lane, seed in ((0, 10), (2, 12)):
        np.testing.assert_array_equal(first[lane], alone.reset(seed=seed)[0])
    steps = [lanes.step(np.ones((3, 2), np.float32)) for _ in range(7)]
    assert [info.get("ended", np.zeros(3)).tolist() for *_, info in steps] == [
        *([0, 0, 0], [0, 0, 0], [1, 0, 1]),
        *([0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]),
    ]
    third, sixth = steps[2][-1], steps[5][-1]
    assert (third["length"].tolist(), third["return"].tolist()) == ([3, 0, 3], [-3, 0, -3])
    assert sixth["length"].tolist() == [3, 0, 0]
    np.testing.assert_array_equal(steps[2][0][0], alone.reset(seed=11)[0])


def test_it_stops_when_asked_and_starts_again():
    evaluator = Evaluator(POINTMAZE, episodes=2, seeds=[0], workers=1)
    calls = iter(range(1000))
    assert evaluator(wander, should_stop=lambda: next(calls) > 5) is None
    assert evaluator(oracle)[0]["evaluation/success"] == 100
    evaluator.close()


@pytest.mark.slow(2)
def test_a_worker_that_dies_in_a_step_is_an_error_unless_all_of_us_are_to_stop():
    """As when SIGTERM goes to the whole process group, and reaches a worker first."""
    evaluator = Evaluator(POINTMAZE, episodes=2, seeds=[0], workers=2)
    dying = threading.Event()

    def deadly(observations, episodes, time_steps):
        if time_steps.max() == 3 and not dying.is_set():
            worker = evaluator.start().processes[0]
            os.kill(worker.pid, signal.SIGSTOP)  # its answer to this step does not come
            threading.Timer(0.3, worker.kill).start()
            dying.set()
        return wander(observations, episodes, time_steps)

    with pytest.raises(UserError, match="an evaluation process died; fewer --eval-workers need less memory"):
        evaluator(deadly)
    dying.clear()
    assert evaluator(deadly, should_stop=dying.is_set) is None
    evaluator.close()


@pytest.mark.slow(2)
def test_an_evaluation_in_the_background_keeps_its_step_and_ends_with_its_session(tmp_path):
    """Two evaluations: the first is waited for, the second is not."""
    go_on, logged = threading.Event(), []

    def wait():
        go_on.wait()

    def act(params, observation, key):
        jax.debug.callback(wait)
        return jnp.zeros(2)

    args = drol.Args(env_id="pointmaze-medium", eval_episodes=2, eval_workers=1)
    run = new_run(tmp_path / "run", drol, *completed(drol, args, args.env_id))
    runs = Runs([run], args, None, is_new=False)
    runs.log_evaluation = lambda step, results: logged.append((step, results)) or results
    session = unittest.mock.create_autospec(Session, instance=True)
    session.runs, session.seeds = runs, Seeds([0])
    session.stop_requested.return_value = False
    session.progress = types.SimpleNamespace(report_evaluation=lambda step, results: None)
    evaluations = Evaluations(session, act)
    evaluations.log_finished(wait=True)  # of none
    evaluations.begin(7, {"w": jnp.zeros((1, 1))})
    evaluations.log_finished()
    assert logged == []  # training goes on meanwhile
    go_on.set()
    evaluations.log_finished(wait=True)
    ((step, (lost,)),) = logged
    assert (step, lost["evaluation/success"], lost["evaluation/length"]) == (7, 0, 1000)
    evaluations.begin(8, {"w": jnp.zeros((1, 1))})
    begin = time.monotonic()
    evaluations.close()  # does not wait for 2000 steps
    evaluations.log_finished(wait=True)
    assert len(logged) == 1
    assert time.monotonic() - begin < 5
