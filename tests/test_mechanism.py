"""What results/mechanism.py measures, against mathematics of its own."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from conftest import REPOSITORY
from toys import init, largest, make_args, random_dataset

sys.path.insert(0, str(REPOSITORY / "results"))

import drol
import mechanism


def test_a_handoff_is_a_change_of_the_nearest_candidate():
    rng = np.random.default_rng(0)
    before, actions = rng.uniform(-1, 1, (40, 5, 2)).astype(np.float32), rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    after = (before + rng.normal(0, 0.3, before.shape)).astype(np.float32)
    measured = jax.tree.map(np.asarray, mechanism.handoff(*map(jnp.asarray, (before, after, actions))))
    for i, action in enumerate(actions):
        squares, squares_after = ([sum((c - action) ** 2) for c in candidates[i]] for candidates in (before, after))
        winner = squares.index(min(squares))
        expected = {
            "handed_off": min(squares_after) < squares_after[winner],
            "winner_moved": sum((after[i, winner] - before[i, winner]) ** 2) ** 0.5,
            "distance_before": min(squares) ** 0.5,
            "distance_of_old_winner": squares_after[winner] ** 0.5,
            "distance_of_new_winner": min(squares_after) ** 0.5,
        }
        assert measured.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(measured[name][i], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert 0.2 < measured["handed_off"].mean() < 0.8


def test_watching_changes_no_update_and_sees_the_same_latents_on_both_sides():
    args = make_args(drol, num_candidates=4)
    data, key, state = jax.device_put(random_dataset()), jax.random.key(3), init(drol, args, 0)
    train = jax.jit(functools.partial(mechanism.train_and_watch, args, num_updates=5))
    watched, means = train(state, data, key)
    trained, _ = jax.jit(functools.partial(drol.train_chunk, args, num_updates=5))(state, data, key)
    assert largest(jax.tree.map(jnp.subtract, watched.params, trained.params)) < 1e-6
    assert 0 < means["winner_moved"] < 0.05  # other latents would move a winner further by an order of magnitude
    still = dataclasses.replace(args, learning_rate=1e-12)
    means = jax.jit(functools.partial(mechanism.train_and_watch, still, num_updates=5))(state, data, key)[1]
    assert means["handed_off"] == 0


def test_an_improvement_step_raises_q_and_moves_the_actor_alone():
    args = make_args(drol, num_candidates=4, batch_size=32, learning_rate=3e-3)
    data, params = jax.device_put(random_dataset()), init(drol, args, 0).params
    improved = jax.jit(functools.partial(mechanism.improve, args, num_steps=60))(params, data, jax.random.key(1))
    assert largest(jax.tree.map(jnp.subtract, improved.critic, params.critic)) == 0
    batch = drol.sample_batch(data, 32, jax.random.key(2))
    noise = drol.sample_noise(args, 2, jax.random.key(3))
    q_before, q_after = (drol.actor_loss(args, p, batch, noise)[1]["actor/q_mean"] for p in (params, improved))
    assert q_after > q_before + 0.3  # imitation alone happens to raise it by 0.2
