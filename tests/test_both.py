"""What drol.py and fql.py share, and that they share it to the letter."""

import ast
import contextlib
import csv
import dataclasses
import functools
import inspect
import json

import drol
import fql
from common import algorithms, replay
from common.env_ids import resolve
from common.replay import Batches, Dataset
from common.seeds import Seeds

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from toys import (
    ACTION_DIM,
    OBSERVATION_DIM,
    PROBE,
    batches_of,
    chunk,
    completed,
    init,
    make_args,
    random_dataset,
    train,
)

BOTH = pytest.mark.parametrize("algorithm", [drol, fql], ids=["drol", "fql"])
NAMES = algorithms.names()  # yours, too
ALL = pytest.mark.parametrize("algorithm", [algorithms.load(name) for name in NAMES], ids=NAMES)
# What the papers differ in. Everything else is equal to the letter.
DIFFERENT = {
    *("ALGORITHM", "Args", "Published", "DEFAULT", "PUBLISHED", "ONLINE_ALPHA", "published_settings", "method"),
    *("Params", "init_params", "sample_latents", "Noise", "sample_noise"),
    *("sample_action", "sample_next_actions", "actor_loss", "flow_actions"),
    *("sample_best_action", "best_next_actions", "best_action", "densest"),
}


def definitions(path) -> dict[str, str]:
    """The source of every statement of a script but its docstring and imports, comments above it included, by name."""
    source = path.read_text()
    lines, pieces, start = source.splitlines(), {}, None
    for node in ast.parse(source).body:
        if start is not None and not isinstance(node, ast.Import | ast.ImportFrom):
            name = getattr(node, "name", None) or ast.unparse(node).split(" = ")[0]
            pieces[name] = "\n".join(lines[start : node.end_lineno])
        start = node.end_lineno
    return pieces


def test_there_are_algorithm_files():
    assert set(algorithms.names()) >= {"drol", "fql"}


def test_everything_else_is_equal_to_the_letter():
    ours, theirs = (definitions(REPOSITORY / f"{name}.py") for name in ("drol", "fql"))
    shared = [piece for piece in ours if piece not in DIFFERENT]
    assert [piece for piece in theirs if piece in shared] == shared
    assert {piece for piece in shared if ours[piece] != theirs[piece]} == set()


def test_what_differs_differs():
    """So that the set above does not name what has become equal."""
    ours, theirs = (definitions(REPOSITORY / f"{name}.py") for name in ("drol", "fql"))
    assert {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)} == DIFFERENT


def test_arguments_differ_in_the_last_group_alone():
    shared = set()
    for algorithm in (drol, fql):
        _, heading, after = inspect.getsource(algorithm.Args).partition("    # Training\n")
        shared.add(heading + after.partition(f"    # {algorithm.ALGORITHM.upper()}\n")[0])
    assert len(shared) == 1


@ALL
@pytest.mark.slow(4)
def test_chunks_do_not_change_the_result(algorithm):
    args = make_args(algorithm)
    dataset = jax.device_put(random_dataset())
    results = []
    for cuts in ([4, 2], [2, 4], [2, 2, 2]):
        state = init(algorithm, args, 0)
        losses = []
        for length in cuts:
            state, metrics = chunk(algorithm, args, state, dataset, 1, length)
            losses.append(metrics["critic/loss"])
        results.append((*jax.tree.leaves(state), jnp.concatenate(losses)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@BOTH
@pytest.mark.slow(3)
def test_metrics_of_a_chunk_are_those_of_its_updates(algorithm):
    args, key = make_args(algorithm), jax.random.key(1)
    dataset, state = jax.device_put(random_dataset()), init(algorithm, args, 0)
    _, of_chunk = chunk(algorithm, args, state, dataset, 1, 4)
    for i in range(4):
        batch_key, noise_key = algorithm.keys_of_update(key, state.step)
        batch = replay.sample_batch(dataset, args.batch_size, batch_key)
        state, metrics = algorithm.update(args, state, batch, algorithm.sample_noise(args, ACTION_DIM, noise_key))
        assert of_chunk.keys() == metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(of_chunk[name][i], value, rtol=1e-4, atol=1e-6, err_msg=name)


@ALL
@pytest.mark.slow(5)
def test_a_vmapped_seed_equals_that_seed_alone(algorithm):
    args = make_args(algorithm)
    dataset = jax.device_put(random_dataset())
    keys = jax.random.split(jax.random.key(5), 3)
    init_one = functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM)
    train_one = functools.partial(algorithm.train_chunk, args)
    batches = jax.jit(jax.vmap(lambda key: batches_of(args, dataset, key, 0, 100)))(keys)
    together, _ = jax.jit(jax.vmap(train_one))(jax.jit(jax.vmap(init_one))(keys), batches, keys)
    first = jax.tree.map(lambda leaf: leaf[1], batches)
    alone, _ = jax.jit(train_one)(jax.jit(init_one)(keys[1]), first, keys[1])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow(3)
@pytest.mark.parametrize("memory", ["device", "host"])
def test_batches_are_those_of_their_updates_wherever_the_data_lies(memory):
    seeds, dataset, args = Seeds([3, 4]), random_dataset(), make_args(drol, data_memory=memory)
    with contextlib.closing(Batches(args, dataset, seeds, drol.keys_of_update, lambda step: step + 4)) as batches:
        for step in (0, 4, 8, 4):  # the last is not what was fetched ahead
            each = batches(step, step + 4)
            for place, key in enumerate(seeds.keys.train):
                expected = batches_of(args, jax.device_put(dataset), key, step, 4)
                for a, b in zip(*map(jax.tree.leaves, (each, expected)), strict=True):
                    np.testing.assert_array_equal(a[place], b)


def test_batches_never_cross_a_trajectory_boundary():
    rows, episode = 40, 10
    dataset = dataclasses.replace(
        random_dataset(rows, episode), observations=np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1)
    )
    batch = replay.sample_batch(jax.device_put(dataset), 2000, jax.random.key(0))
    first, second = np.asarray(batch.observations)[:, 0], np.asarray(batch.next_observations)[:, 0]
    np.testing.assert_array_equal(second, first + 1)
    np.testing.assert_array_equal(first // episode, second // episode)
    assert set(first.astype(int)) == set(dataset.transitions.tolist())  # each one can be drawn
    np.testing.assert_array_equal(batch.actions, dataset.actions[first.astype(int)])


# Data sets whose answer is known.


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
    state = train(drol, args, dataset, num_updates)
    observations = jnp.eye(*dataset.observation_shape)
    actions = jnp.zeros((*dataset.observation_shape, 1))
    return np.asarray(drol.q_values(state.params.critic, observations, actions).mean(0))


@pytest.mark.slow(5)
def test_q_values_where_they_are_known():
    steps = {
        0: (0.0, 1.0, 1),  # a chain, 0 -> 1 -> 2, complete there, with rewards 0 and 1: Q(1) = 1, Q(0) = discount
        1: (1.0, 0.0, 2),
        3: (-1.0, 1.0, 3),  # a trajectory ends, but the task goes on for ever: Q = -1 / (1 - discount)
        4: (-1.0, 0.0, 3),  # the task is complete: Q = -1
    }
    data = one_hot_dataset(
        [(state, reward, mask) for state, (reward, mask, _) in steps.items()] * 20,
        [successor for _, _, successor in steps.values()] * 20,
    )
    q = learned_q(make_args(drol, **PROBE, discount=0.5, num_candidates=2), data)
    np.testing.assert_allclose(q[[0, 1, 3, 4]], [0.5, 1.0, -2.0, -1.0], atol=0.1)


@pytest.mark.slow(1)
@ALL
def test_actions_are_clipped_and_those_of_latents_differ(algorithm):
    args = make_args(algorithm)
    params = jax.tree.map(lambda x: 5 * x, init(algorithm, args, 0, observation_shape=(1,)).params)
    keys = jax.random.split(jax.random.key(1), 200)
    sample = jax.vmap(functools.partial(algorithm.sample_action, args), in_axes=(None, None, 0))
    actions = np.asarray(sample(params, jnp.ones(1), keys))
    assert 0.5 < np.abs(actions).max() <= 1
    if hasattr(algorithm, "sample_latents"):
        assert np.std(actions, axis=0).min() > 0.1


@BOTH
def test_initialisation(algorithm):
    args = make_args(algorithm, hidden_sizes=(64, 32))
    state = init(algorithm, args, 0, (10,), 4)
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


# Published settings


def families() -> list[dict[str, str]]:
    with (REPOSITORY / "results" / "paper" / "hyperparameters.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("algorithm", "columns"),
    [
        (
            drol,
            {"bc_coef": "drol_bc_coef", "discount": "drol_discount", "q_agg": "drol_q_agg", "num_candidates": "drol_k"},
        ),
        (fql, {"alpha": "fql_alpha", "discount": "fql_discount", "q_agg": "fql_q_agg"}),
    ],
    ids=["drol", "fql"],
)
def test_published_settings_are_those_of_the_paper(algorithm, columns, capsys):
    """Every family of the published tables, as --print-config shows it."""
    rows = [row for row in families() if row[columns["q_agg"]]]  # DROL has none of visual tasks
    assert {row["family"] for row in rows} == set(algorithm.PUBLISHED)
    for row in rows:
        env_id = row["family"] if row["suite"] == "d4rl" else f"{row['family']}-singletask-v0"
        assert resolve(env_id).family == row["family"]
        algorithm.main(algorithm.Args(env_id=env_id, print_config=True))
        config = json.loads(capsys.readouterr().out)
        for name, column in {**columns, "offline_steps": "offline_steps"}.items():
            assert str(config["args"][name]).removesuffix(".0") == row[column].removesuffix(".0"), (env_id, name)
            assert config["origins"][name] == "published"
        if algorithm is drol:
            algorithm.main(algorithm.Args(env_id=env_id, print_config=True, drol_star=True))
            assert json.loads(capsys.readouterr().out)["args"]["num_candidates"] == int(row["drol_k_tuned"])


def test_fine_tuning_has_published_settings_of_its_own():
    for env_id, alpha in [
        *(("antsoccer-arena", 30), ("humanoidmaze-medium", 100), ("puzzle-4x4", 1000), ("cube-double", 300)),
        *(("pen-cloned", 1000), ("relocate-cloned", 10000), ("antmaze-umaze", 10), ("antmaze-large-play", 3)),
    ]:
        args, origins = completed(fql, fql.Args(online_steps=5), env_id)
        assert (args.alpha, origins["alpha"]) == (alpha, "published")
    args, _ = completed(fql, fql.Args(), "antsoccer-arena")
    assert args.alpha == 10


@pytest.mark.parametrize(("algorithm", "knob"), [(drol, "bc_coef"), (fql, "alpha")], ids=["drol", "fql"])
def test_given_settings_win_and_unpublished_ones_take_the_default(algorithm, knob):
    given = algorithm.Args(**{knob: 7.0}, q_agg="min")
    args, origins = completed(algorithm, given, "cube-double")
    assert (getattr(args, knob), args.q_agg, args.discount) == (7.0, "min", 0.99)
    assert (origins[knob], origins["q_agg"], origins["discount"]) == ("given", "given", "published")
    args, origins = completed(algorithm, algorithm.Args(), "cube-single-noisy")
    assert next(iter(origins)) == knob  # what a run with default settings is told to tune
    assert (getattr(args, knob), args.q_agg, args.offline_steps) == (algorithm.DEFAULT[0], "mean", 1_000_000)
    assert origins[knob] == "default"
