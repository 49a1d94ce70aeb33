"""Evaluation in the real environments."""

import numpy as np
import pytest

from common.env_ids import resolve
from common.envs import EvaluationEnv, make_env, make_evaluation_env
from common.evaluation import Evaluator

POINTMAZE = resolve("pointmaze-medium")


def oracle(observations, episodes, time_steps):
    """Walks to the goal of the default task by the maze's own shortest path."""
    return np.stack([_direction(observation) for observation in observations])


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
    evaluator = Evaluator(spec, **{"episodes": 5, "seed": 3, "num_envs": 1} | kwargs)
    try:
        return evaluator(policy)
    finally:
        evaluator.close()


def test_success_is_in_percent_and_return_counts_steps():
    reached = evaluate(oracle)
    assert reached["evaluation/success"] == 100
    assert reached["evaluation/length"] < 300
    # -1 a step, 0 on the last one, at which the goal has been reached (ogbench: success of the state before the step).
    assert reached["evaluation/return"] == pytest.approx(1 - reached["evaluation/length"])
    lost = evaluate(lambda observations, *_: np.zeros((len(observations), 2), np.float32), episodes=2)
    assert lost == {"evaluation/success": 0, "evaluation/return": -1000, "evaluation/length": 1000}


def test_results_do_not_depend_on_the_number_of_environments():
    """With episodes of different lengths, environments that finish early, and one that has nothing left to do."""
    results = [evaluate(oracle, num_envs=n) for n in (1, 2, 3)]
    assert results[0] == results[1] == results[2]
    assert results[0] != evaluate(oracle, seed=4)


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


def test_a_finished_episode_waits_for_the_others():
    env = EvaluationEnv(make_env(POINTMAZE.gym_id, max_episode_steps=3))
    env.reset(seed=0)
    steps = [env.step(np.ones(2, np.float32)) for _ in range(5)]
    assert [truncated for _, _, _, truncated, _ in steps] == [False, False, True, True, True]
    np.testing.assert_array_equal(steps[2][0], steps[4][0])
    assert not np.array_equal(steps[1][0], steps[2][0])
    env.reset(seed=0)
    assert env.step(np.ones(2, np.float32))[3] is False


@pytest.mark.parametrize("num_envs", [1, 2])
def test_it_stops_when_asked_and_starts_again(num_envs):
    evaluator = Evaluator(POINTMAZE, episodes=2, seed=0, num_envs=num_envs)
    calls = iter(range(1000))
    assert evaluator(wander, should_stop=lambda: next(calls) > 5) is None
    assert evaluator(oracle)["evaluation/success"] == 100
    evaluator.close()
