"""The algorithm against independent mathematics."""

import contextlib
import csv
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_drol as reference
import pytest
import scipy.stats
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

import drol
from common.datasets import Dataset
from common.env_ids import resolve
from common.errors import UserError

OBSERVATION_DIM, ACTION_DIM = 3, 2
SETTINGS = list(itertools.product((1, 5, 16), (("mean", "min"), ("min", "mean")), (True, False)))


@contextlib.contextmanager
def double_precision():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def make_args(**settings) -> drol.Args:
    small = {"env_id": "cube-single", "hidden_sizes": (8, 8), "batch_size": 6, "offline_steps": 10}
    return drol.resolve_settings(drol.Args(**{**small, **settings}), resolve("cube-single"))[0]


def init(args: drol.Args, seed: int, observation_dim: int = OBSERVATION_DIM, action_dim: int = ACTION_DIM):
    return jax.jit(functools.partial(drol.init_state, args, observation_dim, action_dim))(jax.random.key(seed))


def make_inputs(args: drol.Args, seed: int = 0, dtype=np.float32):
    """State with biases and LayerNorm that are not trivial, a target that differs, a batch with both kinds of masks."""
    rng = np.random.default_rng(seed)
    state = init(args, seed)
    state = jax.tree.map(
        lambda x: (
            jnp.asarray(x + 0.3 * rng.normal(size=x.shape), dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        ),
        dataclasses.replace(state, opt_state=()),
    )
    state = dataclasses.replace(state, opt_state=drol.optimizer(args).init(state.params))
    b = args.batch_size
    batch = drol.Batch(
        observations=jnp.asarray(rng.normal(size=(b, OBSERVATION_DIM)), dtype),
        actions=jnp.asarray(rng.uniform(-1, 1, size=(b, ACTION_DIM)), dtype),
        rewards=jnp.asarray(-rng.integers(0, 3, size=b), dtype),
        masks=jnp.asarray(np.arange(b) % 3 > 0, dtype),
        next_observations=jnp.asarray(rng.normal(size=(b, OBSERVATION_DIM)), dtype),
    )
    noise = jax.tree.map(lambda x: x.astype(dtype), drol.sample_noise(args, ACTION_DIM, jax.random.key(seed + 1)))
    return state, batch, noise


def to_numpy(mlp: drol.MLP, member: int | None = None) -> dict:
    take = (lambda x: np.asarray(x, np.float64)) if member is None else (lambda x: np.asarray(x[member], np.float64))
    net = {
        "kernels": [take(layer.weight).T for layer in mlp.layers],
        "biases": [take(layer.bias) for layer in mlp.layers],
    }
    if mlp.norms:
        net |= {"scales": [take(n.weight) for n in mlp.norms], "shifts": [take(n.bias) for n in mlp.norms]}
    return net


def flatten(nets: list[dict]) -> list[np.ndarray]:
    return [array for net in nets for key in sorted(net) for array in net[key]]


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Relative to the largest entry of each array."""
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-30))


def numpy_view(state, batch, noise):
    """Critics, targets, actor, batch and noise in float64 NumPy."""
    critics, targets = ([to_numpy(c, i) for i in range(2)] for c in (state.params.critic, state.target_critic))
    arrays = [{name: np.asarray(value, np.float64) for name, value in vars(x).items()} for x in (batch, noise)]
    return critics, targets, to_numpy(state.params.actor), *arrays


@functools.partial(jax.jit, static_argnums=0)
def gradients_and_update(args, state, batch, noise):
    def total(params):
        c_loss = drol.critic_loss(args, params, state.target_critic, batch, noise)[0]
        return c_loss + drol.actor_loss(args, params, batch, noise)[0]

    return jax.grad(total)(state.params), *drol.update(args, state, batch, noise)


def flatten_gradients(grads: drol.Params) -> list[np.ndarray]:
    return flatten([to_numpy(grads.critic, 0), to_numpy(grads.critic, 1), to_numpy(grads.actor)])


@pytest.mark.parametrize(("k", "aggs", "normalize"), SETTINGS)
def test_two_updates_equal_numpy(k, aggs, normalize):
    """Losses, every gradient, Adam with its moments, and the target: each number to nine digits."""
    settings = {"num_candidates": k, "q_agg": aggs[0], "actor_q_agg": aggs[1], "normalize_q_loss": normalize}
    settings |= {"bc_coef": 0.7, "q_coef": 1.3, "discount": 0.9, "tau": 0.1, "learning_rate": 1e-2}
    args = make_args(**settings)
    with double_precision():
        state, batch, noise = make_inputs(args, dtype=np.float64)
        critics, targets, actor, np_batch, np_noise = numpy_view(state, batch, noise)
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in flatten([*critics, actor])]
        for step in (1, 2):
            c_loss, c_grads = reference.critic_loss(settings, critics, targets, actor, np_batch, np_noise)
            a_loss, a_grads = reference.actor_loss(settings, critics, actor, np_batch, np_noise)
            grads, state, metrics = gradients_and_update(args, state, batch, noise)
            assert_close(flatten_gradients(grads), flatten([*c_grads, a_grads]), 1e-9)
            assert float(metrics["critic/loss"]) == pytest.approx(c_loss, rel=1e-9)
            assert float(metrics["actor/loss"]) == pytest.approx(a_loss, rel=1e-9)

            targets = [
                {key: [0.1 * q + 0.9 * old for q, old in zip(c[key], target[key], strict=True)] for key in c}
                for c, target in zip(critics, targets, strict=True)
            ]
            flat, moments = reference.adam(
                settings, flatten([*critics, actor]), flatten([*c_grads, a_grads]), moments, step
            )
            iterator = iter(flat)
            for net in (*critics, actor):
                for key in sorted(net):
                    net[key] = [next(iterator) for _ in net[key]]
            actual_critics, actual_targets, actual_actor, *_ = numpy_view(state, batch, noise)
            assert_close(flatten([*actual_critics, actual_actor]), flatten([*critics, actor]), 1e-9)
            assert_close(flatten(actual_targets), flatten(targets), 1e-9)
    assert int(state.step) == 2


@pytest.mark.parametrize("k", [1, 16])
def test_single_precision_keeps_five_digits(k):
    args = make_args(num_candidates=k, batch_size=64)
    state, batch, noise = make_inputs(args)
    settings = dataclasses.asdict(args)
    critics, targets, actor, np_batch, np_noise = numpy_view(state, batch, noise)
    c_loss, c_grads = reference.critic_loss(settings, critics, targets, actor, np_batch, np_noise)
    a_loss, a_grads = reference.actor_loss(settings, critics, actor, np_batch, np_noise)
    grads, _, metrics = gradients_and_update(args, state, batch, noise)
    assert float(metrics["critic/loss"]) == pytest.approx(c_loss, rel=1e-5)
    assert float(metrics["actor/loss"]) == pytest.approx(a_loss, rel=1e-5)
    actual, expected = (
        np.concatenate([array.ravel() for array in arrays])
        for arrays in (flatten_gradients(grads), flatten([*c_grads, a_grads]))
    )
    assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("k", [1, 5, 16])
def test_winner_alone_gives_the_gradient_of_all_candidates(k):
    args = make_args(num_candidates=k, batch_size=32)
    with double_precision():
        state, batch, noise = make_inputs(args, seed=3, dtype=np.float64)

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


def test_no_gradient_reaches_frozen_parts():
    args = make_args()
    state, batch, noise = make_inputs(args)

    def largest(tree):
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    def losses(params_of_critic_loss, target, params_of_actor_loss):
        c_loss, _ = drol.critic_loss(args, params_of_critic_loss, target, batch, noise)
        return c_loss + drol.actor_loss(args, params_of_actor_loss, batch, noise)[0]

    of_critic_loss, of_target, of_actor_loss = jax.jit(jax.grad(losses, argnums=(0, 1, 2)))(
        state.params, state.target_critic, state.params
    )
    assert largest(of_critic_loss.critic) > 0
    assert largest(of_actor_loss.actor) > 0
    assert largest(of_critic_loss.actor) == 0
    assert largest(of_target) == 0
    assert largest(of_actor_loss.critic) == 0


def random_dataset(rows: int = 40, episode: int = 10) -> Dataset:
    rng = np.random.default_rng(0)
    transitions = np.flatnonzero(np.arange(rows) % episode < episode - 1).astype(np.int32)
    return Dataset(
        observations=rng.normal(size=(rows, OBSERVATION_DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(rows, ACTION_DIM)).astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
        transitions=transitions,
    )


def chunk(args, state, dataset, seed, num_updates):
    return jax.jit(functools.partial(drol.train_chunk, args, num_updates=num_updates))(
        state, dataset, jax.random.key(seed)
    )


def test_chunks_do_not_change_the_result():
    args = make_args()
    dataset = jax.device_put(random_dataset())
    results = []
    for cuts in ([8], [3, 3, 2]):
        state = init(args, 0)
        losses = []
        for length in cuts:
            state, metrics = chunk(args, state, dataset, 1, length)
            losses.append(metrics["critic/loss"])
        results.append((*jax.tree.leaves(state), jnp.concatenate(losses)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_vmapped_seed_equals_that_seed_alone():
    args = make_args()
    dataset = jax.device_put(random_dataset())
    keys = jax.random.split(jax.random.key(5), 3)
    init_one = functools.partial(drol.init_state, args, OBSERVATION_DIM, ACTION_DIM)
    train_one = functools.partial(drol.train_chunk, args, num_updates=20)
    together, _ = jax.jit(jax.vmap(train_one, in_axes=(0, None, 0)))(jax.jit(jax.vmap(init_one))(keys), dataset, keys)
    alone, _ = jax.jit(train_one)(jax.jit(init_one)(keys[1]), dataset, keys[1])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6)


def test_batches_never_cross_a_trajectory_boundary():
    rows, episode = 40, 10
    dataset = dataclasses.replace(
        random_dataset(rows, episode), observations=np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1)
    )
    batch = drol.sample_batch(jax.device_put(dataset), 2000, jax.random.key(0))
    first, second = np.asarray(batch.observations)[:, 0], np.asarray(batch.next_observations)[:, 0]
    np.testing.assert_array_equal(second, first + 1)
    np.testing.assert_array_equal(first // episode, second // episode)
    assert set(first.astype(int)) == set(dataset.transitions.tolist())  # each one can be drawn
    np.testing.assert_array_equal(batch.actions, dataset.actions[first.astype(int)])


# Data sets whose answer is known.


def train(args, dataset, num_updates, seed=0):
    state = init(args, seed, dataset.observation_dim, dataset.action_dim)
    return chunk(args, state, jax.device_put(dataset), seed, num_updates)[0]


def one_hot_dataset(steps: list[tuple[int, float, float]], successors: list[int]) -> Dataset:
    """Two-row trajectories between states that are one-hot vectors: (state, reward, mask) and the successor."""
    size = max(max(successors), *(state for state, _, _ in steps)) + 1
    rows = [row for (state, _, _), successor in zip(steps, successors, strict=True) for row in (state, successor)]
    n = len(steps)
    return Dataset(
        observations=np.eye(size, dtype=np.float32)[rows],
        actions=np.random.default_rng(0).uniform(-1, 1, size=(2 * n, 1)).astype(np.float32),
        rewards=np.repeat(np.asarray([r for _, r, _ in steps], np.float32), 2),
        masks=np.repeat(np.asarray([m for _, _, m in steps], np.float32), 2),
        transitions=np.arange(0, 2 * n, 2, dtype=np.int32),
    )


def learned_q(args, dataset, num_updates=1500):
    state = train(args, dataset, num_updates)
    observations = jnp.eye(dataset.observation_dim)
    actions = jnp.zeros((dataset.observation_dim, 1))
    return np.asarray(drol.q_values(state.params.critic, observations, actions).mean(0))


PROBE = {"hidden_sizes": (32, 32), "batch_size": 64, "learning_rate": 3e-3, "tau": 0.05}


def test_q_of_a_chain_is_the_discounted_reward():
    # 0 -> 1 -> 2 (complete), rewards 0 and 1: Q(1) = 1, Q(0) = discount.
    data = one_hot_dataset([(0, 0.0, 1.0), (1, 1.0, 0.0)] * 20, [1, 2] * 20)
    q = learned_q(make_args(**PROBE, discount=0.5), data)
    np.testing.assert_allclose(q[:2], [0.5, 1.0], atol=0.05)


def test_the_end_of_a_trajectory_is_bootstrapped_and_completion_is_not():
    # Both trajectories end after one step. State 0 goes on (mask 1) for ever at -1 a step: Q = -1 / (1 - 0.5) = -2.
    # State 1 is complete (mask 0): Q = -1.
    data = one_hot_dataset([(0, -1.0, 1.0), (1, -1.0, 0.0)] * 20, [0, 0] * 20)
    q = learned_q(make_args(**PROBE, discount=0.5), data)
    np.testing.assert_allclose(q[:2], [-2.0, -1.0], atol=0.1)


def bandit(actions: np.ndarray, rewards: np.ndarray) -> Dataset:
    """One state, one step, always complete."""
    n = len(actions)
    return Dataset(
        observations=np.ones((2 * n, 1), np.float32),
        actions=np.repeat(actions, 2).astype(np.float32)[:, None],
        rewards=np.repeat(rewards, 2).astype(np.float32),
        masks=np.zeros(2 * n, np.float32),
        transitions=np.arange(0, 2 * n, 2, dtype=np.int32),
    )


def policy_actions(state, n=400):
    sample = jax.vmap(drol.sample_action, in_axes=(None, None, 0))
    return np.asarray(sample(state.params.actor, jnp.ones(1), jax.random.split(jax.random.key(9), n)))[:, 0]


def test_candidates_keep_both_modes_and_improvement_picks_the_better():
    actions = np.tile([-0.7, 0.7], 50)
    data = bandit(actions, rewards=actions)
    averaged = policy_actions(train(make_args(**PROBE, num_candidates=1, q_coef=0.0), data, 600))
    assert np.abs(averaged).mean() < 0.3  # one candidate regresses to the mean of the modes, which is 0
    cloned = policy_actions(train(make_args(**PROBE, num_candidates=16, q_coef=0.0), data, 600))
    near_a_mode = np.abs(np.abs(cloned) - 0.7) < 0.25
    assert near_a_mode.mean() > 0.5
    assert 0.2 < (cloned[near_a_mode] > 0).mean() < 0.8  # both of them
    improved = policy_actions(train(make_args(**PROBE, bc_coef=0.1), data, 600))
    assert improved.mean() > cloned.mean() + 0.3


def test_actions_are_clipped_and_differ_by_latent():
    args = make_args()
    actor = jax.tree.map(lambda x: 5 * x, init(args, 0, observation_dim=1).params.actor)
    keys = jax.random.split(jax.random.key(1), 200)
    actions = np.asarray(jax.vmap(drol.sample_action, in_axes=(None, None, 0))(actor, jnp.ones(1), keys))
    assert np.abs(actions).max() == 1
    assert np.std(actions, axis=0).min() > 0.1


# Latents, networks, settings


@given(d=st.sampled_from([1, 2, 5, 21, 30]), seed=st.integers(0, 2**31 - 1))
def test_latents_lie_in_the_ball(d, seed):
    z = np.asarray(drol.sample_latents(jax.random.key(seed), (50, d)), np.float64)
    assert z.shape == (50, d)
    assert np.linalg.norm(z, axis=-1).max() <= np.sqrt(d) * (1 + 1e-6)


@pytest.mark.parametrize("d", [1, 2, 5, 21])
def test_latents_are_uniform_in_the_ball(d):
    z = np.asarray(drol.sample_latents(jax.random.key(d), (4000, d)), np.float64)
    radius = np.linalg.norm(z, axis=-1) / np.sqrt(d)
    assert scipy.stats.kstest(radius**d, "uniform").pvalue > 0.01  # volume within a radius grows as r^d
    first = z[:, 0] / np.linalg.norm(z, axis=-1)  # of a uniform direction: (x + 1) / 2 is Beta((d-1)/2, (d-1)/2)
    if d > 1:
        assert scipy.stats.kstest((first + 1) / 2, scipy.stats.beta((d - 1) / 2, (d - 1) / 2).cdf).pvalue > 0.01
    else:
        assert 0.45 < (first > 0).mean() < 0.55


def test_initialisation():
    args = make_args(hidden_sizes=(64, 32))
    state = init(args, 0, 10, 4)
    for mlp, members in ((state.params.actor, ()), (state.params.critic, (2,))):
        for layer, (fan_in, fan_out) in zip(mlp.layers, [(14, 64), (64, 32), (32, 1 if members else 4)], strict=True):
            assert layer.weight.shape == (*members, fan_out, fan_in)
            bound = np.sqrt(6 / (fan_in + fan_out))
            assert 0.9 * bound < np.abs(layer.weight).max() <= bound
            assert np.abs(layer.bias).max() == 0
    assert [norm.eps for norm in state.params.critic.norms] == [1e-6, 1e-6]
    assert state.params.actor.norms == []
    assert not np.allclose(*state.params.critic.layers[0].weight)  # the members differ
    for a, b in zip(jax.tree.leaves(state.params.critic), jax.tree.leaves(state.target_critic), strict=True):
        np.testing.assert_array_equal(a, b)


def test_published_settings_are_those_of_the_paper():
    with (REPOSITORY / "results" / "paper" / "hyperparameters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["family"] for row in rows} == set(drol.PUBLISHED)
    for row in rows:
        spec = resolve(row["family"] if row["suite"] == "d4rl" else f"{row['family']}-singletask-v0")
        assert spec.family == row["family"]
        args, origins = drol.resolve_settings(drol.Args(env_id=row["family"]), spec)
        assert args.bc_coef == float(row["drol_bc_coef"])
        assert args.discount == float(row["drol_discount"])
        assert args.q_agg == row["drol_q_agg"]
        assert args.offline_steps == int(row["offline_steps"])
        assert args.num_candidates == int(row["drol_k"])
        assert set(origins.values()) == {"published", "DROL(16)"}
        tuned, _ = drol.resolve_settings(drol.Args(num_candidates="tuned"), spec)
        assert tuned.num_candidates == int(row["drol_k_tuned"])


def test_given_settings_win_and_unpublished_ones_take_the_default():
    args, origins = drol.resolve_settings(drol.Args(bc_coef=7.0, q_agg="min"), resolve("cube-double"))
    assert (args.bc_coef, args.q_agg, args.discount) == (7.0, "min", 0.99)
    assert (origins["bc_coef"], origins["q_agg"], origins["discount"]) == ("given", "given", "published")
    args, origins = drol.resolve_settings(drol.Args(), resolve("cube-single-noisy"))
    assert (args.bc_coef, args.q_agg, args.discount, args.offline_steps) == (1.0, "mean", 0.99, 1_000_000)
    assert origins["bc_coef"] == "default"
    with pytest.raises(UserError, match="no tuned value"):
        drol.resolve_settings(drol.Args(num_candidates="tuned"), resolve("cube-single-noisy"))
