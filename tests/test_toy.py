"""The toy of results/experiments/toy.py, and on it what the theory claims."""

import shutil

import drol
import toy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY


@pytest.mark.slow(5)
def test_as_many_candidates_as_separated_modes_leave_each_its_prototype():
    """Of imitation's minimum: from some draws of four fixed latents the descent ends in a local minimum, above it."""
    modes = len(toy.CENTRES)
    args = toy.settings(drol, num_candidates=modes, q_coef=0.0)

    def prototypes(key):
        latents = drol.sample_latents(jax.random.fold_in(key, 7), (modes, 2))
        actor = toy.train(drol, args, 600, key, latents).actor
        return jnp.clip(jax.vmap(actor, in_axes=(None, 0))(jnp.ones(1), latents), -1, 1)

    seeds = np.asarray(jax.jit(jax.vmap(prototypes))(jax.vmap(jax.random.key)(jnp.arange(8))))
    actions = np.asarray(toy.sample_batch(500, jax.random.key(8)).actions)
    losses = ((seeds[:, :, None] - actions) ** 2).sum(-1).min(axis=1).mean(axis=1)
    inside = np.linalg.norm(seeds[:, :, None] - toy.CENTRES, axis=-1).min(axis=1) < toy.RADIUS  # [seed, mode]
    assert inside[losses.argmin()].all()
    assert losses[inside.all(axis=1)].max() < losses[~inside.all(axis=1)].min(initial=np.inf)
    # No arrangement does better than a prototype in each mode, at its mean: there the loss is the discs' own variance.
    np.testing.assert_allclose(losses.min(), toy.RADIUS**2 / 2, rtol=0.25)


def test_the_known_q_is_the_hill():
    actions = jnp.array([[0.6, 0.6], [0.6, -0.2], [-0.2, 0.6]])
    q = drol.q_values(toy.KnownQ(), jnp.ones((3, 1)), actions)
    np.testing.assert_allclose(q, np.exp([[0, -0.5, -0.5]] * 2), rtol=1e-6)


def test_scores_of_policies_that_are_known():
    on_centres = toy.scores(np.repeat(toy.CENTRES, 5, axis=0))
    assert (on_centres["modes"], on_centres["share_near_a_mode"], on_centres["distance_to_support"]) == (4, 1, 0)
    assert on_centres["share_of_good_mode"] == 0.25
    in_the_middle = toy.scores(np.zeros((5, 2)))
    assert (in_the_middle["modes"], in_the_middle["share_near_a_mode"]) == (0, 0)
    assert in_the_middle["distance_to_support"] == pytest.approx(0.6 * np.sqrt(2) - toy.RADIUS)
    assert in_the_middle["q"] == pytest.approx(np.exp(-0.72 / (2 * toy.HILL**2)))


@pytest.mark.slow(2)
def test_what_is_committed_can_be_drawn(tmp_path):
    for name in ("scores.csv", "actions.csv"):
        shutil.copy(REPOSITORY / "results" / "toy" / name, tmp_path)
    toy.render(tmp_path)
    assert (tmp_path / "toy.png").stat().st_size > 20_000
