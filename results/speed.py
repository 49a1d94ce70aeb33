"""How fast it is here: updates, collection, evaluation, start-up.

    python results/speed.py

Updates are measured in one process at the paper's sizes (batch 256, four layers of 512, cube-double: 37 observations, 5
actions) in three ways: `drol.py`'s update; the same update with every candidate carried through actor and critic with
gradient; and the floor, the matrix products of `drol.py`'s update alone. Rounds alternate between the three and medians
are reported, since machines are seldom idle.
"""

import dataclasses
import functools
import itertools
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import drol
from common import collect
from common.datasets import Dataset
from common.env_ids import resolve
from common.evaluation import Evaluator
from common.machine import available_cores, describe_device

REPOSITORY = pathlib.Path(__file__).parents[1]
OBSERVATION_DIM, ACTION_DIM = 37, 5  # cube-double


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure updates, collection, evaluation and start-up on this machine."""

    num_candidates: tuple[int, ...] = (1, 16, 64)
    """Values of K."""
    rounds: int = 7
    """Rounds of measurement; medians are reported."""
    updates_only: bool = False
    """Leave out collection, evaluation and start-up."""
    collect_episodes: int = 20
    """Episodes to time the collection with."""
    eval_episodes: int = 50
    """Episodes to time the evaluation with."""


def loss_of_all_candidates(
    args: drol.Args, params: drol.Params, target_critic: drol.MLP, batch: drol.Batch, noise: drol.Noise
) -> jax.Array:
    """DROL's losses as one would first write them: every candidate carries gradient, and the winner is picked last."""
    act = jax.vmap(jax.vmap(params.actor, in_axes=(None, 0)))
    candidates = jnp.clip(act(batch.observations, noise.latents), -1, 1)  # [B, K, action]
    distances = ((candidates - batch.actions[:, None]) ** 2).sum(axis=-1)
    winner = distances.argmin(axis=1)[:, None]
    bc_loss = jnp.take_along_axis(distances, winner, axis=1).mean() / ACTION_DIM
    frozen_critic = jax.lax.stop_gradient(params.critic)
    judge = jax.vmap(functools.partial(drol.q_values, frozen_critic), in_axes=(None, 1), out_axes=2)
    q = judge(batch.observations, candidates).min(axis=0)  # [B, K]
    q = jnp.take_along_axis(q, winner, axis=1)
    q_loss = -q.mean() / jax.lax.stop_gradient(jnp.maximum(jnp.abs(q).mean(), 1e-6))
    critic_loss, _ = drol.critic_loss(args, params, target_critic, batch, noise)
    return critic_loss + args.bc_coef * bc_loss + args.q_coef * q_loss


def update_with_all_candidates(
    args: drol.Args, state: drol.TrainState, batch: drol.Batch, noise: drol.Noise
) -> tuple[drol.TrainState, dict[str, jax.Array]]:
    """`drol.update` with the losses above."""
    loss, grads = jax.value_and_grad(loss_of_all_candidates, argnums=1)(
        args, state.params, state.target_critic, batch, noise
    )
    updates, opt_state = drol.optimizer(args).update(grads, state.opt_state)
    params = jax.tree.map(jnp.add, state.params, updates)
    target_critic = jax.tree.map(
        lambda q, target: args.tau * q + (1 - args.tau) * target, state.params.critic, state.target_critic
    )
    return drol.TrainState(params, target_critic, opt_state, state.step + 1), {"loss": loss}


def matrix_products(args: drol.Args) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The products of one update of `drol.py`, with nothing between them, and arguments to call them with."""
    in_size = OBSERVATION_DIM + ACTION_DIM
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def kernels(out_size: int) -> list[jax.Array]:
        sizes = (in_size, *args.hidden_sizes, out_size)
        return [0.05 * jax.random.normal(next(keys), fan) for fan in itertools.pairwise(sizes)]

    def forward(net: list[jax.Array], x: jax.Array) -> list[jax.Array]:
        tape = [x]
        for kernel in net:
            tape.append(tape[-1] @ kernel)
        return tape

    def backward(net: list[jax.Array], tape: list[jax.Array], *, parameters: bool, inputs: bool) -> list[jax.Array]:
        products, grad = [], tape[-1]
        for index in reversed(range(len(net))):
            if parameters:
                products.append(tape[index].T @ grad)
            if inputs or index > 0:
                grad = grad @ net[index].T
        return [*products, grad]

    def products(actor: list, critics: list, targets: list, x: jax.Array, candidates: jax.Array) -> list[jax.Array]:
        # Different inputs everywhere: equal products would be computed once.
        results = [forward(actor, candidates)[-1], forward(actor, x + 1)[-1]]  # routing, next action
        results += backward(actor, forward(actor, x), parameters=True, inputs=False)  # the winner
        for critic, target in zip(critics, targets, strict=True):
            results.append(forward(target, x + 1)[-1])
            results += backward(critic, forward(critic, x), parameters=True, inputs=False)  # Bellman error
            results += backward(critic, forward(critic, x + 2), parameters=False, inputs=True)  # improvement
        return results

    batch = jax.random.normal(next(keys), (args.batch_size, in_size))
    candidates = jax.random.normal(next(keys), (args.batch_size * args.num_candidates, in_size))
    nets = kernels(ACTION_DIM), [kernels(1), kernels(1)], [kernels(1), kernels(1)]
    return jax.jit(products), (*nets, batch, candidates)


def random_dataset(rows: int = 100_000) -> Dataset:
    """Numbers of cube-double's shape."""
    rng = np.random.default_rng(0)
    return Dataset(
        observations=rng.normal(size=(rows, OBSERVATION_DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(rows, ACTION_DIM)).astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
        transitions=np.arange(rows - 1, dtype=np.int32),
    )


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure_updates(num_candidates: int, rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of one update: drol.py, all candidates with gradient, matrix products alone."""
    args, _ = drol.resolve_settings(drol.Args(num_candidates=num_candidates), resolve("cube-double"))
    dataset, key = jax.device_put(random_dataset()), jax.random.key(1)
    per_call = 10

    def chunk(state: drol.TrainState, dataset: Dataset, update: Callable[..., Any]) -> Any:
        def one_update(state: drol.TrainState, _: None) -> Any:
            batch_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
            batch = drol.sample_batch(dataset, args.batch_size, batch_key)
            return update(args, state, batch, drol.sample_noise(args, ACTION_DIM, noise_key))

        return jax.lax.scan(one_update, state, length=per_call)[0]

    def repeat(update: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(functools.partial(chunk, update=update), donate_argnums=0)
        states = [drol.init_state(args, OBSERVATION_DIM, ACTION_DIM, jax.random.key(0))]

        def call() -> Any:
            states.append(compiled(states.pop(), dataset))
            return states[0]

        return call

    calls = [repeat(drol.update), repeat(update_with_all_candidates)]
    products, inputs = matrix_products(args)
    calls.append(lambda: [products(*inputs) for _ in range(per_call)])
    for call in calls:  # compile
        jax.block_until_ready(call())
    times = np.array([[seconds(call) for call in calls] for _ in range(rounds)])
    return tuple(1e3 * np.median(times, axis=0) / per_call)


def measure_collection(episodes: int) -> float:
    """Transitions a second on all cores, starting the processes included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        collect.collect(resolve("cube-double"), pathlib.Path(folder), episodes=episodes)
        return episodes * 1001 / (time.perf_counter() - start)


def measure_evaluation(episodes: int, num_envs: int) -> float:
    """Seconds of one evaluation of an untrained policy on cube-single (200 steps an episode), processes started."""
    args, _ = drol.resolve_settings(drol.Args(), resolve("cube-single"))
    actor = drol.init_state(args, 28, ACTION_DIM, jax.random.key(0)).params.actor

    @jax.jit
    def policy(observations: jax.Array, episodes: jax.Array, time_steps: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda i, t: jax.random.fold_in(jax.random.key(i), t))(episodes, time_steps)
        return jax.vmap(drol.sample_action, in_axes=(None, 0, 0))(actor, observations, keys)

    evaluator = Evaluator(resolve("cube-single"), episodes, seed=0, num_envs=num_envs)
    calls = iter(range(3))
    evaluator(policy, should_stop=lambda: next(calls, None) is None)  # compiles the policy
    evaluator.start()
    start = time.perf_counter()
    evaluator(policy)
    taken = time.perf_counter() - start
    evaluator.close()
    return taken


def measure_start() -> float:
    """Seconds from the shell to the end of the first 50 updates of `drol.py` at the paper's sizes, data on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = collect.collect(resolve("pointmaze-medium"), pathlib.Path(folder), episodes=2, workers=1)
        arguments = ("--env-id", "pointmaze-medium", "--dataset-path", path, "--run-dir", f"{folder}/run")
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "drol.py", *map(str, arguments)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if line.startswith("one update takes"):
                break
        taken = time.perf_counter() - start
        process.kill()
        process.wait()
    return taken


def main(args: Args) -> None:
    """Print everything as Markdown."""
    print(f"{describe_device()}\n")
    print("| K | drol.py, ms | all candidates, ms | times faster | matrix products, ms | multiple of them |")
    print("|--:|--:|--:|--:|--:|--:|")
    for k in args.num_candidates:
        ours, all_candidates, floor = measure_updates(k, args.rounds)
        cells = (f"{x:.1f}" for x in (ours, all_candidates, all_candidates / ours, floor))
        print(f"| {k} | {' | '.join(cells)} | {ours / floor:.2f} |", flush=True)
    if args.updates_only:
        return
    print(
        f"\ncollection (cube-double): {measure_collection(args.collect_episodes):.0f} transitions a second", flush=True
    )
    cores = available_cores()
    one, many = (measure_evaluation(args.eval_episodes, n) for n in (1, cores))
    print(
        f"evaluation ({args.eval_episodes} episodes of cube-single): {many:.1f} s with {cores} environments at a time, "
    )
    print(f"    {one:.1f} s with one: {one / many:.1f} times faster", flush=True)
    print(f"start-up to the end of the first {drol.CPU_CHUNK} updates: {measure_start():.1f} s")


if __name__ == "__main__":
    main(tyro.cli(Args))
