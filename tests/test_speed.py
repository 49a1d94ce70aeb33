"""results/experiments/speed.py: what updates are compared to is the same update, and the floor is one."""

import dataclasses
import math

import drol
import fql
import speed

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from jax.flatten_util import ravel_pytree
from toys import assert_close, make_args, make_inputs


@pytest.mark.parametrize(
    ("algorithm", "settings"), [(drol, {"num_candidates": 4, "bc_coef": 3.0}), (fql, {"alpha": 3.0})]
)
@pytest.mark.slow(4)
def test_the_reference_formulation_is_the_same_update(algorithm, settings):
    args = make_args(algorithm, **settings)
    state, batch, noise = make_inputs(algorithm, args)
    reference = speed.ReferenceState.of(args, state)
    ours, metrics = algorithm.update(args, state, batch, noise)
    theirs, loss = jax.jit(speed.reference_update, static_argnums=(0, 1))(algorithm, args, reference, batch, noise)
    assert float(loss) == pytest.approx(float(metrics["critic/loss"] + metrics["actor/loss"]), rel=1e-5)
    _, unravel = ravel_pytree(state.params)  # our moments are one vector

    def leaves(vector):
        moments = dataclasses.replace(ours, params=unravel(vector))
        return jax.tree.leaves(speed.ReferenceState.of(args, moments).params)

    gradients = jax.tree.map(lambda mu: 10 * mu, leaves(ours.opt_state[0].mu))
    assert_close(jax.tree.leaves(theirs.opt_state[0].mu), leaves(ours.opt_state[0].mu), 1e-4)
    assert_close(jax.tree.leaves(theirs.opt_state[0].nu), leaves(ours.opt_state[0].nu), 1e-4)
    expected = speed.ReferenceState.of(args, ours)
    assert_close(jax.tree.leaves(theirs.target_critic), jax.tree.leaves(expected.target_critic), 1e-6)
    # Adam's first step is a sign: where a gradient is not rounding error, so is ours.
    for mine, other, gradient in zip(*map(jax.tree.leaves, (expected.params, theirs.params)), gradients, strict=True):
        clear = np.abs(gradient) > 1e-4
        np.testing.assert_allclose(
            np.asarray(other)[clear], np.asarray(mine)[clear], rtol=0, atol=1e-2 * args.learning_rate
        )


def flops(jaxpr):
    """Of all matrix products in it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
                    total += times * flops(inner)
    return total


@pytest.mark.slow(1)
@pytest.mark.parametrize(("algorithm", "settings"), [(drol, {"num_candidates": 4}), (fql, {"alpha": 3.0})])
def test_the_floor_has_the_products_of_an_update(algorithm, settings, monkeypatch):
    args = make_args(algorithm, **settings)
    state, batch, noise = make_inputs(algorithm, args)
    monkeypatch.setattr(speed, "OBSERVATION_DIM", batch.observations.shape[1])
    monkeypatch.setattr(speed, "ACTION_DIM", batch.actions.shape[1])
    update = jax.make_jaxpr(algorithm.update, static_argnums=0)(args, state, batch, noise)
    floor = jax.make_jaxpr(speed.matrix_products(algorithm, args)["XLA"])()
    assert flops(floor.jaxpr) == flops(update.jaxpr)


def test_there_is_no_floor_where_a_call_is_its_dispatch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert speed.matrix_products(drol, make_args(drol)) == {}


@pytest.mark.parametrize("name", ["speed", "small"])
def test_no_update_that_was_measured_is_faster_than_its_floor(name):
    _, measurements = speed.read(REPOSITORY / "results" / "speed" / name)
    floors = speed.floors_of(measurements)
    updates = [m for m in measurements if m.quantity == "update" and m.seeds == 1]  # as the floor's products are
    assert len(updates) >= 3
    for m in updates:
        assert m.value > floors[m.method], m
