"""What is DROL's own: routing, and the latent prior."""

import dataclasses
import functools

import drol
from common.errors import UserError

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from toys import (
    ACTION_DIM,
    PROBE,
    assert_close,
    bandit,
    completed,
    double_precision,
    make_args,
    make_inputs,
    policy_actions,
    to_numpy,
    train,
)

sample_latents = jax.jit(drol.sample_latents, static_argnums=1)


@pytest.mark.slow(2)
@pytest.mark.parametrize("k", [1, 5, 16])
def test_winner_alone_gives_the_gradient_of_all_candidates(k):
    args = make_args(drol, num_candidates=k, batch_size=32)
    with double_precision():
        state, batch, noise = make_inputs(drol, args, seed=3, dtype=np.float64)

        def loss_with_all_candidates(params):
            act = jax.vmap(jax.vmap(params.actor, in_axes=(None, 0)))
            candidates = jnp.clip(act(batch.observations, noise.latents), -1, 1)  # [batch, K, action]
            distances = ((candidates - batch.actions[:, None]) ** 2).sum(-1)
            chosen = jax.nn.one_hot(distances.argmin(1), k)
            bc = (chosen * distances).sum(1).mean() / ACTION_DIM
            critic = jax.lax.stop_gradient(params.critic)
            judge = jax.vmap(functools.partial(drol.q_values, critic), in_axes=(None, 1), out_axes=2)
            q = (judge(batch.observations, candidates).min(0) * chosen).sum(1)
            return args.bc_coef * bc - q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean())

        expected = jax.jit(jax.grad(loss_with_all_candidates))(state.params)
        actual = jax.jit(jax.grad(lambda params: drol.actor_loss(args, params, batch, noise)[0]))(state.params)
        assert_close(jax.tree.leaves(actual), jax.tree.leaves(expected), 1e-9)


@pytest.mark.parametrize("k", [1, 2, 16])
def test_divergence_gives_the_distance_of_all_pairs(k):
    """The published metric, sqrt(mean over batch and pairs i != j of ||c_i - c_j||^2 / d), without its K^2 pairs."""
    args = make_args(drol, num_candidates=k)
    state, batch, noise = make_inputs(drol, args)
    _, metrics = jax.jit(functools.partial(drol.actor_loss, args))(state.params, batch, noise)
    divergence = float(metrics["actor/divergence"])
    inputs = np.concatenate([np.repeat(np.asarray(batch.observations)[:, None], k, 1), noise.latents], axis=-1)
    candidates = np.clip(reference.forward(to_numpy(state.params.actor), inputs.astype(np.float64))[0], -1, 1)
    pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
    squares = [((candidates[:, i] - candidates[:, j]) ** 2).sum(-1) / ACTION_DIM for i, j in pairs]
    if k == 1:
        assert divergence == 0  # no pairs
    else:
        np.testing.assert_allclose(np.sqrt(2 * k / (k - 1) * divergence), np.sqrt(np.mean(squares)), rtol=1e-4)


@pytest.mark.parametrize(("top_k", "q_agg"), [(None, "mean"), (None, "min"), (3, "min"), (8, None)])
def test_inference_takes_the_best_of_several(top_k, q_agg):
    args = make_args(drol, inference_num_samples=8, inference_density_top_k=top_k, inference_q_agg=q_agg)
    state, batch, _ = make_inputs(drol, args)
    actor, critics = to_numpy(state.params.actor), [to_numpy(state.params.critic, i) for i in range(2)]
    act = jax.jit(functools.partial(drol.sample_action, args))
    for i, observation in enumerate(np.asarray(batch.observations, np.float64)):
        key = jax.random.key(i)
        latents = np.asarray(sample_latents(key, (8, ACTION_DIM)), np.float64)
        rows = np.concatenate([np.repeat(observation[None], 8, 0), latents], -1)
        candidates = np.clip(reference.forward(actor, rows)[0], -1, 1)
        if top_k is not None:
            others = [np.mean([((a - b) ** 2).mean() for b in candidates]) for a in candidates]
            candidates = candidates[np.argsort(others)[:top_k]]
        q, _ = reference.q_values(critics, np.repeat(observation[None], len(candidates), 0), candidates)
        expected = candidates[(q.mean(0) if q_agg != "min" else q.min(0)).argmax()]
        np.testing.assert_allclose(act(state.params, batch.observations[i], key), expected, rtol=1e-4, atol=1e-5)


def test_the_best_of_one_is_that_one():
    args = make_args(drol)
    state, batch, noise = make_inputs(drol, args)
    plain = jax.jit(functools.partial(drol.sample_next_actions, args))(state.params, state.target_critic, batch, noise)
    of_one = dataclasses.replace(noise, next_latents=noise.next_latents[:, None])
    best_of = dataclasses.replace(args, critic_num_candidates=2)
    general = jax.jit(functools.partial(drol.sample_next_actions, best_of))(
        state.params, state.target_critic, batch, of_one
    )
    np.testing.assert_allclose(plain, general, rtol=1e-6, atol=1e-7)
    assert noise.next_latents.shape == (args.batch_size, ACTION_DIM)  # the draws of a run without the option


@pytest.mark.slow(8)
def test_candidates_keep_both_modes_and_improvement_picks_the_better():
    actions = np.tile([-0.7, 0.7], 50)
    data = bandit(actions, rewards=actions)
    averaged = policy_actions(drol, train(drol, make_args(drol, **PROBE, num_candidates=1, q_coef=0.0), data, 600))
    assert np.abs(averaged).mean() < 0.3  # one candidate regresses to the mean of the modes, which is 0
    cloned = policy_actions(drol, train(drol, make_args(drol, **PROBE, num_candidates=16, q_coef=0.0), data, 600))
    near_a_mode = np.abs(np.abs(cloned) - 0.7) < 0.25
    assert near_a_mode.mean() > 0.4  # the latents between the modes are nobody's winners, and stay free
    assert 0.2 < (cloned[near_a_mode] > 0).mean() < 0.8  # both of them
    improved = policy_actions(drol, train(drol, make_args(drol, **PROBE, bc_coef=0.1), data, 600))
    assert improved.mean() > cloned.mean() + 0.3


@given(d=st.sampled_from([1, 2, 5, 21, 30]), seed=st.integers(0, 2**31 - 1))
def test_latents_lie_in_the_ball(d, seed):
    z = np.asarray(sample_latents(jax.random.key(seed), (50, d)), np.float64)
    assert z.shape == (50, d)
    assert np.linalg.norm(z, axis=-1).max() <= np.sqrt(d) * (1 + 1e-6)


@pytest.mark.parametrize("d", [1, 2, 5, 21])
def test_latents_are_uniform_in_the_ball(d):
    z = np.asarray(sample_latents(jax.random.key(d), (4000, d)), np.float64)
    radius = np.linalg.norm(z, axis=-1) / np.sqrt(d)
    assert scipy.stats.kstest(radius**d, "uniform").pvalue > 0.01  # volume within a radius grows as r^d
    first = z[:, 0] / np.linalg.norm(z, axis=-1)  # of a uniform direction: (x + 1) / 2 is Beta((d-1)/2, (d-1)/2)
    if d > 1:
        assert scipy.stats.kstest((first + 1) / 2, scipy.stats.beta((d - 1) / 2, (d - 1) / 2).cdf).pvalue > 0.01
    else:
        assert 0.45 < (first > 0).mean() < 0.55


def test_drol_star_takes_the_tuned_number_of_candidates():
    args, origins = completed(drol, drol.Args(drol_star=True), "antmaze-giant")
    assert (args.num_candidates, origins["num_candidates"]) == (1, "published")
    again, _ = completed(drol, args, "antmaze-giant")  # as on resume
    assert again == args
    with pytest.raises(UserError, match="no tuned K for cube-single-noisy"):
        completed(drol, drol.Args(drol_star=True), "cube-single-noisy")
    with pytest.raises(UserError, match="leave --num-candidates out"):
        completed(drol, drol.Args(drol_star=True, num_candidates=3), "cube-double")
