"""results/speed.py: what updates are compared to is the same update, and the floor is one."""

import csv
import dataclasses
import sys

import jax
import pytest
from conftest import REPOSITORY
from jax.flatten_util import ravel_pytree
from toys import assert_close, make_args, make_inputs

import drol
import fql

sys.path.insert(0, str(REPOSITORY / "results"))

import speed


@pytest.mark.parametrize(
    ("algorithm", "settings"), [(drol, {"num_candidates": 4, "bc_coef": 3.0}), (fql, {"alpha": 3.0})]
)
def test_the_reference_formulation_is_the_same_update(algorithm, settings):
    args = make_args(algorithm, **settings)
    state, batch, noise = make_inputs(algorithm, args)
    reference = speed.ReferenceState.of(args, state)
    ours, metrics = algorithm.update(args, state, batch, noise)
    theirs, loss = jax.jit(speed.reference_update, static_argnums=(0, 1))(algorithm, args, reference, batch, noise)
    assert float(loss) == pytest.approx(float(metrics["critic/loss"] + metrics["actor/loss"]), rel=1e-5)
    # Adam's first moment is a tenth of the gradient; ours is one vector.
    _, unravel = ravel_pytree(state.params)
    moments = speed.ReferenceState.of(args, dataclasses.replace(ours, params=unravel(ours.opt_state[0].mu))).params
    assert_close(jax.tree.leaves(theirs.opt_state[0].mu), jax.tree.leaves(moments), 1e-4)
    expected = speed.ReferenceState.of(args, ours)
    assert_close(jax.tree.leaves(theirs.target_critic), jax.tree.leaves(expected.target_critic), 1e-6)


def test_no_update_is_faster_than_its_floor():
    with (REPOSITORY / "results" / "speed" / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    measurements = [
        speed.Measurement(row["quantity"], row["method"], int(row["seeds"]), float(row["value"]), row["unit"])
        for row in rows
        if row["quantity"] != "machine"
    ]
    floors = speed.floors_of(measurements)
    updates = [m for m in measurements if m.quantity == "update"]
    assert len(updates) >= 3
    for m in updates:
        assert m.value / m.seeds > floors[m.method], m
