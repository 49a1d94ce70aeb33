"""What results/experiments/mechanism.py measures, against mathematics of its own."""

import dataclasses
import functools

import basics
import drol
import mechanism
from common.replay import sample_batch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import batches_of, init, largest, make_args, random_dataset


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
            "others_moved": np.mean([sum((after[i, k] - before[i, k]) ** 2) ** 0.5 for k in range(5) if k != winner]),
            "distance_before": min(squares) ** 0.5,
            "distance_of_old_winner": squares_after[winner] ** 0.5,
            "distance_of_new_winner": min(squares_after) ** 0.5,
        }
        assert measured.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(measured[name][i], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert 0.2 < measured["handed_off"].mean() < 0.8


@pytest.mark.slow(7)
def test_watching_changes_no_update_and_sees_the_same_latents_on_both_sides():
    args = make_args(drol, num_candidates=4)
    data, key, state = jax.device_put(random_dataset()), jax.random.key(3), init(drol, args, 0)
    train = jax.jit(functools.partial(mechanism.train_and_watch, args, num_updates=5))
    watched, means = train(state, data, key)
    batches = batches_of(args, data, key, 0, 5)
    trained, _ = jax.jit(functools.partial(drol.train_chunk, args))(state, batches, key)
    assert largest(jax.tree.map(jnp.subtract, watched.params, trained.params)) < 1e-6
    assert 0 < means["winner_moved"] < 0.05  # other latents would move a winner further by an order of magnitude
    still = dataclasses.replace(args, learning_rate=1e-12)
    means = jax.jit(functools.partial(mechanism.train_and_watch, still, num_updates=5))(state, data, key)[1]
    assert means["handed_off"] == 0


@pytest.mark.slow(2)
def test_an_improvement_step_takes_the_winner_uphill_whatever_the_data_action_in_its_cell():
    args = make_args(drol, num_candidates=4)
    params, data = init(drol, args, 0).params, jax.device_put(random_dataset())
    batch = jax.jit(sample_batch, static_argnums=1)(data, 32, jax.random.key(2))
    latents = jax.jit(drol.sample_latents, static_argnums=1)(jax.random.key(3), (32, 4, 2))
    step = jax.jit(jax.vmap(functools.partial(mechanism.improvement_step, args, params, distance=0.01)))
    before, after = map(np.asarray, step(batch, latents))
    rows = np.arange(32)
    winner = np.linalg.norm(before - batch.actions[:, None], axis=-1).argmin(axis=1)
    free = np.abs(before[rows, winner]).max(axis=1) < 0.98  # not about to be clipped
    moved = np.linalg.norm(after - before, axis=-1)[rows, winner]
    np.testing.assert_allclose(moved[free], 0.01, rtol=0.1)
    q_values = jax.jit(drol.q_values)
    q_before, q_after = (
        np.asarray(q_values(params.critic, batch.observations, c[rows, winner])).min(axis=0) for c in (before, after)
    )
    assert (q_after > q_before)[free].all()
    assert free.mean() > 0.5
    in_the_same_cells = dataclasses.replace(batch, actions=(batch.actions + before[rows, winner]) / 2)
    np.testing.assert_allclose(step(in_the_same_cells, latents)[1], after, atol=1e-6)


@pytest.mark.slow(15)
def test_from_data_to_figure(pointmaze_file, tmp_path, capsys):
    small = {
        "num_candidates": 8,
        "hidden_sizes": (16,),
        "updates": (20, 100, 200),
        "interval": 20,
        "seeds": 2,
        "episodes": 4,
    }
    mechanism.main(mechanism.MechanismArgs(**small, dataset_dir=pointmaze_file.parent, out=tmp_path))
    rows = {name: basics.read_csv(tmp_path / f"{name}.csv") for name in ("handoff", "improvement", "candidates", "q")}
    curve = [(row["method"], row["seed"], row["updates"]) for row in rows["handoff"]]
    assert curve == [
        (method, seed, end) for method in mechanism.METHODS for end in range(20, 201, 20) for seed in (0, 1)
    ]
    assert len(rows["improvement"]) == 6
    assert len(rows["q"]) == 3 * mechanism.GRID.size**2
    # The panels show what their titles say: the data action's nearest candidate changes in the middle alone.
    for end, changes in ((20, False), (100, True), (200, False)):
        here = [row for row in rows["candidates"] if row["updates"] == end]
        data, before, after = (
            np.array([(row["action_1"], row["action_2"]) for row in here if row["what"] == what])
            for what in mechanism.WHAT
        )
        assert len(before) == len(after) == 8
        assert (((before - data) ** 2).sum(1).argmin() != ((after - data) ** 2).sum(1).argmin()) == changes
    assert (tmp_path / "mechanism.png").stat().st_size > 50_000
