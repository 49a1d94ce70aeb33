"""What is FQL's own: the flow, its integration, and what the one-step actor learns from it."""

import functools

import fql

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from toys import PROBE, bandit, make_args, policy_actions, train


def affine_flow(slope: float, drift: float, times: float) -> fql.MLP:
    """v(s, x, t) = slope x + drift + times t, for one-dimensional s and x."""
    flow = fql.MLP(3, 1, (1,), key=jax.random.key(0))
    flow.layers[:] = [fql._linear(3, 1, key=jax.random.key(0))]
    weight = jnp.array([[0.0, slope, times]])
    return eqx.tree_at(lambda flow: (flow.layers[0].weight, flow.layers[0].bias), flow, (weight, jnp.array([drift])))


def test_euler_steps_follow_a_known_flow():
    z = jnp.linspace(-0.4, 0.4, 5)[:, None]
    s = jnp.zeros((5, 1))
    for steps in (1, 4, 10):
        flow_actions = jax.jit(functools.partial(fql.flow_actions, make_args(fql, flow_steps=steps)))
        # x' = 0.3: x(1) = z + 0.3, exactly
        np.testing.assert_allclose(flow_actions(affine_flow(0.0, 0.3, 0.0), s, z), z + 0.3, rtol=1e-5)
        # x' = -x: each step multiplies by 1 - 1 / steps
        decayed = flow_actions(affine_flow(-1.0, 0.0, 0.0), s, z)
        np.testing.assert_allclose(decayed, z * (1 - 1 / steps) ** steps, atol=1e-6)
        # x' = t at t = 0, 1/steps, ..: x(1) = z + (steps - 1) / (2 steps). The last time is not 1.
        np.testing.assert_allclose(
            flow_actions(affine_flow(0.0, 0.0, 1.0), s, z), z + (steps - 1) / (2 * steps), atol=1e-6
        )
    np.testing.assert_array_equal(flow_actions(affine_flow(0.0, 9.0, 0.0), s, z), 1)  # clipped, at the end


@pytest.mark.slow(9)
def test_the_flow_and_its_student_keep_both_modes_and_improvement_picks_the_better():
    actions = np.tile([-0.7, 0.7], 50)
    data = bandit(actions, rewards=actions)
    args = make_args(fql, **PROBE, alpha=1000.0)
    state = train(fql, args, data, 1000)
    z = jax.random.normal(jax.random.key(0), (400, 1))
    generated = np.asarray(fql.flow_actions(args, state.params.flow, jnp.ones((400, 1)), z))[:, 0]
    for sample in (generated, policy_actions(fql, state)):
        near_a_mode = np.abs(np.abs(sample) - 0.7) < 0.25
        assert near_a_mode.mean() > 0.6
        assert 0.3 < (sample[near_a_mode] > 0).mean() < 0.7
    improved = policy_actions(fql, train(fql, make_args(fql, **PROBE, alpha=0.3), data, 1000))
    assert improved.mean() > generated.mean() + 0.3


def test_latents_are_standard_normal():
    z = np.asarray(fql.sample_latents(jax.random.key(0), (4000, 3)), np.float64)
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.06


def test_noise_of_an_update_is_drawn_afresh_for_each_use():
    args = make_args(fql, batch_size=2000)
    noise = fql.sample_noise(args, 2, jax.random.key(0))
    assert scipy.stats.kstest(np.asarray(noise.flow_times, np.float64).ravel(), "uniform").pvalue > 0.01
    for a, b in ((noise.next_latents, noise.latents), (noise.latents, noise.flow_noise)):
        assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.1
