"""One update of each algorithm against independent mathematics: float64 NumPy."""

import dataclasses
import functools
import itertools

import drol
import fql

import jax
import numpy as np
import numpy_reference as reference
import pytest
from jax.flatten_util import ravel_pytree
from toys import (
    arrays_to_numpy,
    assert_close,
    double_precision,
    flatten,
    largest,
    make_args,
    make_inputs,
    params_to_numpy,
    to_numpy,
)

ACTOR_LOSS = {drol: reference.drol_actor_loss, fql: reference.fql_actor_loss}
SETTINGS = [
    *(
        (drol, {"num_candidates": k, "q_agg": q_agg, "actor_q_agg": actor_q_agg, "normalize_q_loss": normalize})
        for k, (q_agg, actor_q_agg), normalize in itertools.product(
            (1, 5, 16), (("mean", "min"), ("min", "mean")), (True, False)
        )
        if k == 5 or (q_agg == "mean") == normalize  # of the others each pair of settings
    ),
    *((drol, {"critic_num_candidates": n, "num_candidates": 2}) for n in (2, 7)),
    *(
        (fql, {"flow_steps": flow_steps, "q_agg": q_agg, "normalize_q_loss": normalize})
        for flow_steps, q_agg, normalize in [
            (1, "mean", False),
            *itertools.product((10,), ("mean", "min"), (True, False)),
        ]
    ),
]
SETTINGS = [pytest.param(*each, marks=[pytest.mark.slow(2)] if i % 5 else []) for i, each in enumerate(SETTINGS)]
OWN = {drol: {"bc_coef": 0.7, "q_coef": 1.3}, fql: {"alpha": 0.7}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients_and_update(algorithm, args, state, batch, noise):
    """The gradients are what Adam was given: its first moment m becomes 0.9 m + 0.1 gradient."""
    new_state, metrics = algorithm.update(args, state, batch, noise)
    before, after = state.opt_state[0].mu, new_state.opt_state[0].mu
    _, unravel = ravel_pytree(state.params)  # as the moments are kept: in one vector
    grads = unravel((after - 0.9 * before) / 0.1)
    return grads, new_state, metrics


def numpy_losses(algorithm, settings, critics, targets, nets, batch, noise):
    """Both losses, and all gradients in one flat list."""
    c_loss, c_grads = reference.critic_loss(settings, critics, targets, nets["actor"], batch, noise)
    a_loss, a_grads = ACTOR_LOSS[algorithm](settings, critics, nets, batch, noise)
    return c_loss, a_loss, flatten([*c_grads, *(a_grads[name] for name in nets)])


def flatten_params(params) -> list[np.ndarray]:
    critics, nets = params_to_numpy(params)
    return flatten([*critics, *nets.values()])


@pytest.mark.parametrize(("algorithm", "settings"), SETTINGS, ids=lambda x: getattr(x, "__name__", None))
def test_two_updates_equal_numpy(algorithm, settings):
    """Losses, every gradient, Adam with its moments, and the target: each number to nine digits."""
    args = make_args(algorithm, **settings, **OWN[algorithm], discount=0.9, tau=0.1, learning_rate=1e-2)
    settings = dataclasses.asdict(args)
    with double_precision():
        state, batch, noise = make_inputs(algorithm, args, dtype=np.float64)
        critics, nets = params_to_numpy(state.params)
        targets = [to_numpy(state.target_critic, i) for i in range(2)]
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in flatten([*critics, *nets.values()])]
        for step in (1, 2):
            c_loss, a_loss, expected_grads = numpy_losses(
                algorithm, settings, critics, targets, nets, arrays_to_numpy(batch), arrays_to_numpy(noise)
            )
            grads, state, metrics = gradients_and_update(algorithm, args, state, batch, noise)
            assert_close(flatten_params(grads), expected_grads, 1e-9)
            assert float(metrics["critic/loss"]) == pytest.approx(c_loss, rel=1e-9)
            assert float(metrics["actor/loss"]) == pytest.approx(a_loss, rel=1e-9)

            targets = [
                {key: [0.1 * q + 0.9 * old for q, old in zip(c[key], target[key], strict=True)] for key in c}
                for c, target in zip(critics, targets, strict=True)
            ]
            everything = [*critics, *nets.values()]
            flat, moments = reference.adam(settings, flatten(everything), expected_grads, moments, step)
            iterator = iter(flat)
            for net in everything:
                for key in sorted(net):
                    net[key] = [next(iterator) for _ in net[key]]
            assert_close(flatten_params(state.params), flatten(everything), 1e-9)
            assert_close(flatten([to_numpy(state.target_critic, i) for i in range(2)]), flatten(targets), 1e-9)
    assert int(state.step) == 2


@pytest.mark.parametrize(
    ("algorithm", "settings"), [(drol, {"num_candidates": 1}), (drol, {"num_candidates": 16}), (fql, {})]
)
@pytest.mark.slow(3)
def test_single_precision_keeps_five_digits(algorithm, settings):
    args = make_args(algorithm, **settings, batch_size=64)
    state, batch, noise = make_inputs(algorithm, args)
    critics, nets = params_to_numpy(state.params)
    targets = [to_numpy(state.target_critic, i) for i in range(2)]
    c_loss, a_loss, expected = numpy_losses(
        algorithm, dataclasses.asdict(args), critics, targets, nets, arrays_to_numpy(batch), arrays_to_numpy(noise)
    )
    grads, _, metrics = gradients_and_update(algorithm, args, state, batch, noise)
    assert float(metrics["critic/loss"]) == pytest.approx(c_loss, rel=1e-5)
    assert float(metrics["actor/loss"]) == pytest.approx(a_loss, rel=1e-5)
    actual, expected = (np.concatenate([x.ravel() for x in arrays]) for arrays in (flatten_params(grads), expected))
    assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow(2)
@pytest.mark.parametrize("algorithm", [drol, fql])
def test_no_gradient_reaches_frozen_parts(algorithm):
    args = make_args(algorithm)
    state, batch, noise = make_inputs(algorithm, args)

    def losses(params_of_critic_loss, target, params_of_actor_loss):
        c_loss, _ = algorithm.critic_loss(args, params_of_critic_loss, target, batch, noise)
        return c_loss + algorithm.actor_loss(args, params_of_actor_loss, batch, noise)[0]

    of_critic_loss, of_target, of_actor_loss = jax.jit(jax.grad(losses, argnums=(0, 1, 2)))(
        state.params, state.target_critic, state.params
    )
    assert largest(of_critic_loss.critic) > 0
    assert largest(of_actor_loss.actor) > 0
    assert largest(of_critic_loss.actor) == 0
    assert largest(of_target) == 0
    assert largest(of_actor_loss.critic) == 0


def test_the_flow_learns_from_the_data_alone():
    args = make_args(fql)
    state, batch, noise = make_inputs(fql, args)

    @functools.partial(jax.jit, static_argnums=0)
    def flow_gradient(args, critic):
        params = dataclasses.replace(state.params, critic=critic)
        return jax.grad(lambda params: fql.actor_loss(args, params, batch, noise)[0])(params).flow

    a = flow_gradient(dataclasses.replace(args, alpha=0.0), state.params.critic)
    b = flow_gradient(dataclasses.replace(args, alpha=100.0), state.target_critic)
    assert largest(a) > 0
    assert_close(jax.tree.leaves(b), jax.tree.leaves(a), 1e-5)
