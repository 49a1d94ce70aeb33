"""Small problems for the tests of the algorithms; `algorithm` is one of the modules drol and fql."""

import contextlib
import dataclasses
import functools
import pathlib
import types

import drol
import fql
from common.arguments import complete
from common.env_ids import resolve
from common.replay import Batch, Dataset, sample_batch
from common.run_directory import RunDirectory

import jax
import jax.numpy as jnp
import numpy as np

OBSERVATION_DIM, ACTION_DIM = 3, 2
CODE = {"script": "a" * 64, "common": "b" * 64, "commit": "c" * 40, "dirty": False, "modified": False}
PROBE = {"hidden_sizes": (32, 32), "batch_size": 32, "learning_rate": 3e-3, "tau": 0.05}


@contextlib.contextmanager
def double_precision():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def make_args(algorithm: types.ModuleType, **settings):
    small = {"env_id": "cube-single", "hidden_sizes": (8, 8), "batch_size": 6, "offline_steps": 10}
    return completed(algorithm, algorithm.Args(**{**small, **settings}))[0]


def completed(algorithm: types.ModuleType, args, env_id: str = "cube-single"):
    """What a run of these arguments takes, and where each setting came from."""
    return complete(args, resolve(env_id), algorithm.published_settings)


def init(
    algorithm, args, seed: int, observation_shape: tuple[int, ...] = (OBSERVATION_DIM,), action_dim: int = ACTION_DIM
):
    compiled = _compiled_init(algorithm, args.hidden_sizes, args.encoder_sizes, observation_shape, action_dim)
    return compiled(jax.random.key(seed))


@functools.cache  # compiling it takes longer than most tests do
def _compiled_init(algorithm, hidden_sizes, encoder_sizes, observation_shape, action_dim: int):
    args = make_args(algorithm, hidden_sizes=hidden_sizes, encoder_sizes=encoder_sizes)
    return jax.jit(functools.partial(algorithm.init_state, args, observation_shape, action_dim))


def make_inputs(algorithm, args, seed: int = 0, dtype=np.float32):
    """State with biases and LayerNorm that are not trivial, a target that differs, a batch with both kinds of masks."""
    rng = np.random.default_rng(seed)
    state = init(algorithm, args, seed)
    state = jax.tree.map(
        lambda x: (
            jnp.asarray(x + 0.3 * rng.normal(size=x.shape), dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        ),
        dataclasses.replace(state, opt_state=()),
    )
    state = dataclasses.replace(state, opt_state=jax.jit(algorithm.optimizer(args).init)(state.params))
    b = args.batch_size
    batch = algorithm.Batch(
        observations=jnp.asarray(rng.normal(size=(b, OBSERVATION_DIM)), dtype),
        actions=jnp.asarray(rng.uniform(-1, 1, size=(b, ACTION_DIM)), dtype),
        rewards=jnp.asarray(-rng.integers(0, 3, size=b), dtype),
        masks=jnp.asarray(np.arange(b) % 3 > 0, dtype),
        next_observations=jnp.asarray(rng.normal(size=(b, OBSERVATION_DIM)), dtype),
    )
    noise = jax.jit(functools.partial(algorithm.sample_noise, args, ACTION_DIM))(jax.random.key(seed + 1))
    return state, batch, jax.tree.map(lambda x: x.astype(dtype), noise)


def new_run(path, algorithm, args, origins, provenance=None, sizes=None, seeds_together=(0,)) -> RunDirectory:
    """A run of these arguments that has just begun."""
    config = {
        "algorithm": algorithm.ALGORITHM,
        "environment": dataclasses.asdict(resolve(args.env_id)),
        "args": dataclasses.asdict(args),
        "origins": origins,
        "seeds_together": list(seeds_together),
    }
    provenance = provenance or {"source": "file", "path": "x.npz", "sha256": "0"}
    return RunDirectory(path, config).create(provenance, sizes or {"observation": 3, "action": 2})


def write_run(
    path: pathlib.Path, env_id: str = "cube-single", algorithm: str = "drol", seed: int = 0, scores=(10, 60, 80), **args
) -> pathlib.Path:
    """A run directory of the real format, finished if there are three scores."""
    script = {"drol": drol, "fql": fql}[algorithm]
    settings = {"env_id": env_id, "seed": seed, "offline_steps": 300, "eval_interval": 100, "hidden_sizes": (8, 8)}
    resolved, origins = completed(script, script.Args(**{**settings, **args}), env_id)
    provenance = {"source": "collected", "episodes": 300, "official_episodes": 1000, "seed": 0}
    provenance |= {"path": "cube.npz", "sha256": "5fd3ce448ef537e5"}
    new_run(path, script, resolved, origins, provenance, {"observation": 28, "action": 5}, [seed])
    steps = range(100, 100 * len(scores) + 1, 100)
    rows = [f"{step},{score}" for step, score in zip(steps, scores, strict=True)]
    (path / "eval.csv").write_text("\n".join(["step,evaluation/success", *rows, ""]))
    (path / "time.csv").write_text("\n".join(["step,time/seconds", *(f"{step},{step * 6}" for step in steps), ""]))
    return path


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


def batches_of(args, dataset, key, step: int, num_updates: int) -> Batch:
    """What the updates after `step` learn from."""
    draw = lambda i: sample_batch(dataset, args.batch_size, drol.keys_of_update(key, i)[0])  # noqa: E731
    return jax.vmap(draw)(step + jnp.arange(num_updates))


def chunk(algorithm, args, state, data, seed, num_updates):
    return _compiled_chunk(algorithm, args, num_updates)(state, data, jax.random.key(seed))


@functools.cache
def _compiled_chunk(algorithm, args, num_updates: int):
    def chunk(state, dataset, key):
        batches = batches_of(args, dataset, key, state.step, num_updates)
        return algorithm.train_chunk(args, state, batches, key)

    return jax.jit(chunk)


def train(algorithm, args, dataset, num_updates, seed=0):
    state = init(algorithm, args, seed, dataset.observation_shape, dataset.action_dim)
    return chunk(algorithm, args, state, jax.device_put(dataset), seed, num_updates)[0]


def policy_actions(algorithm, state, n=400):
    sample = jax.vmap(functools.partial(algorithm.sample_action, algorithm.Args()), in_axes=(None, None, 0))
    return np.asarray(jax.jit(sample)(state.params, jnp.ones(1), jax.random.split(jax.random.key(9), n)))[:, 0]


def largest(tree) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


# NumPy's view of networks and parameters


def to_numpy(mlp, member: int | None = None) -> dict:
    take = (lambda x: np.asarray(x, np.float64)) if member is None else (lambda x: np.asarray(x[member], np.float64))
    net = {
        "kernels": [take(layer.weight).T for layer in mlp.layers],
        "biases": [take(layer.bias) for layer in mlp.layers],
    }
    if mlp.norms:
        net |= {"scales": [take(n.weight) for n in mlp.norms], "shifts": [take(n.bias) for n in mlp.norms]}
    return net


def params_to_numpy(params) -> tuple[list[dict], dict[str, dict]]:
    """The critics, and the other networks by name."""
    names = [field.name for field in dataclasses.fields(params) if field.name != "critic"]
    return [to_numpy(params.critic, i) for i in range(drol.NUM_CRITICS)], {
        name: to_numpy(getattr(params, name)) for name in names
    }


def arrays_to_numpy(module) -> dict[str, np.ndarray]:
    return {f.name: np.asarray(getattr(module, f.name), np.float64) for f in dataclasses.fields(module)}


def flatten(nets: list[dict]) -> list[np.ndarray]:
    return [array for net in nets for key in sorted(net) for array in net[key]]


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Relative to the largest entry of each array."""
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-30))
