"""How fast it is here: updates, memory, inference, evaluation beside training, collection, start-up.

    python results/experiments/speed.py [--out results/speed/speed] [--hidden-sizes 64 64]

Updates are measured in one process at the paper's sizes (batch 256, four layers of 512, cube-double: 37 observations, 5
actions), those of `fql.py` and of `drol.py` at several K, for one seed and for several together. They are compared to

- the floor: the matrix products of an update alone, by XLA or by NumPy, whichever is faster;
- one update a dispatch, on a batch that the host draws;
- the reference formulation: that, and the same losses as the reference implementations write them.

Rounds alternate between all of them and medians are reported, since machines are seldom idle.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the trainings that it times share the card

import basics
import drol
import figures
import fql
from common import algorithms, command_line
from common.data import collect
from common.env_ids import resolve
from common.errors import exit_in_one_line
from common.evaluation import Evaluator, policies_of
from common.machine import describe_device, quick_to_run
from common.replay import Batch, Batches, Dataset, take_batch
from common.seeds import Seeds, keys_of_runs
from common.session import SHORT_CHUNK
from common.tables import read_table

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

OBSERVATION_DIM, ACTION_DIM = 37, 5  # cube-double
FLOOR, DISPATCH, REFERENCE = "matrix products alone", "one update a dispatch", "reference formulation"
DIGITS = ".6g"  # of a measurement in FILE.csv


@dataclasses.dataclass(frozen=True)
class SpeedArgs:
    """Measure updates, memory, inference, evaluation beside training, collection and start-up on this machine."""

    num_candidates: tuple[int, ...] = (1, 4, 16, 64)
    """Values of K."""
    num_seeds: tuple[int, ...] = (1, 8)
    """Numbers of seeds that are trained together; one alone, which others are compared to, is always measured."""
    hidden_sizes: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers."""
    rounds: int = 5
    """Rounds of measurement; medians are reported."""
    updates_only: bool = False
    """Leave out evaluation, collection and start-up."""
    out: pathlib.Path | None = None
    """Write FILE.csv, FILE.md, FILE.pdf and FILE.png as well."""
    collect_episodes: int = 20
    """Episodes to time the collection with."""
    eval_episodes: int = 50
    """Episodes to time the evaluation with."""


class Measurement(NamedTuple):
    """One number."""

    quantity: str
    method: str
    seeds: int  # that are trained together
    value: float
    unit: str


class ReferenceState(NamedTuple):
    """What an update of the reference formulation changes: networks as Flax lays them out, moments of each array."""

    params: dict[str, list]
    target_critic: list
    opt_state: optax.OptState
    step: jax.Array

    @classmethod
    def of(cls, args: Any, state: Any) -> "ReferenceState":
        """The same networks as in a state of ours, with fresh moments."""

        def layers(net: drol.MLP) -> list[dict[str, jax.Array]]:
            result = [{"kernel": layer.weight.mT, "bias": layer.bias} for layer in net.layers]
            for layer, norm in zip(result, net.norms, strict=False):
                layer |= {"norm_scale": norm.weight, "norm_bias": norm.bias}
            return result

        params = {name: layers(net) for name, net in vars(state.params).items()}
        opt_state = optax.adam(args.learning_rate).init(params)
        return cls(params, layers(state.target_critic), opt_state, state.step)


def reference_mlp(layers: list[dict[str, jax.Array]], *inputs: jax.Array) -> jax.Array:
    """Flax's Dense and LayerNorm on a batch: x W + b; the variance as E[x^2] - E[x]^2."""
    x = jnp.concatenate(inputs, axis=-1)
    for layer in layers[:-1]:
        x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"], approximate=True)
        if "norm_scale" in layer:
            mean, mean_of_squares = x.mean(axis=-1, keepdims=True), (x * x).mean(axis=-1, keepdims=True)
            variance = jnp.maximum(mean_of_squares - mean**2, 0)
            x = (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * layer["norm_scale"]) + layer["norm_bias"]
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def reference_loss(
    algorithm: types.ModuleType, args: Any, params: dict[str, list], target_critic: list, batch: Batch, noise: Any
) -> jax.Array:
    """The same losses: every candidate carries gradient through actor and critic, and the winner is picked last."""

    def q_values(critic: list, observations: jax.Array, actions: jax.Array) -> jax.Array:
        return jax.vmap(reference_mlp, in_axes=(0, None, None))(critic, observations, actions)[..., 0]

    next_actions = jnp.clip(reference_mlp(params["actor"], batch.next_observations, noise.next_latents), -1, 1)
    next_q = drol.aggregate(q_values(target_critic, batch.next_observations, next_actions), args.q_agg)
    target_q = jax.lax.stop_gradient(batch.rewards + args.discount * batch.masks * next_q)
    critic_loss = ((q_values(params["critic"], batch.observations, batch.actions) - target_q) ** 2).mean()
    frozen_critic = jax.lax.stop_gradient(params["critic"])
    if algorithm is drol:
        observations = jnp.repeat(batch.observations[:, None], args.num_candidates, axis=1)
        candidates = jnp.clip(reference_mlp(params["actor"], observations, noise.latents), -1, 1)  # [B, K, action]
        distances = ((candidates - batch.actions[:, None]) ** 2).mean(axis=-1)
        winner = distances.argmin(axis=1)[:, None]
        imitation_loss = args.bc_coef * jnp.take_along_axis(distances, winner, axis=1).mean()
        q = q_values(frozen_critic, observations, candidates)  # [ensemble, B, K]
        q = drol.aggregate(jnp.take_along_axis(q, winner[None], axis=2)[..., 0], args.actor_q_agg)
    else:
        x_t = (1 - noise.flow_times) * noise.flow_noise + noise.flow_times * batch.actions
        velocities = reference_mlp(params["flow"], batch.observations, x_t, noise.flow_times)
        flow_loss = ((velocities - (batch.actions - noise.flow_noise)) ** 2).mean()
        x = noise.latents
        for step in range(args.flow_steps):
            times = jnp.full((args.batch_size, 1), step / args.flow_steps)
            x += reference_mlp(jax.lax.stop_gradient(params["flow"]), batch.observations, x, times) / args.flow_steps
        actions = reference_mlp(params["actor"], batch.observations, noise.latents)
        imitation_loss = flow_loss + args.alpha * ((actions - jnp.clip(x, -1, 1)) ** 2).mean()
        q = q_values(frozen_critic, batch.observations, jnp.clip(actions, -1, 1)).mean(axis=0)
    scale = 1 / jax.lax.stop_gradient(jnp.maximum(jnp.abs(q).mean(), 1e-6)) if args.normalize_q_loss else 1
    return critic_loss + imitation_loss - getattr(args, "q_coef", 1) * scale * q.mean()


def reference_update(
    algorithm: types.ModuleType, args: Any, state: ReferenceState, batch: Batch, noise: Any
) -> tuple[ReferenceState, jax.Array]:
    """Adam, array by array, and the target."""
    loss, grads = jax.value_and_grad(reference_loss, argnums=2)(
        algorithm, args, state.params, state.target_critic, batch, noise
    )
    updates, opt_state = optax.adam(args.learning_rate).update(grads, state.opt_state)
    target_critic = jax.tree.map(
        lambda q, target: args.tau * q + (1 - args.tau) * target, state.params["critic"], state.target_critic
    )
    return ReferenceState(optax.apply_updates(state.params, updates), target_critic, opt_state, state.step + 1), loss


def matrix_products(algorithm: types.ModuleType, args: Any) -> dict[str, Callable[[], Any]]:
    """The products of one update in its shapes, with nothing between them: by XLA and by NumPy.

    On a CPU: elsewhere a call of them is its dispatch more than its products, and no floor.
    """
    if jax.default_backend() != "cpu":
        return {}
    key, rng = jax.random.key(0), np.random.default_rng(0)
    state = jax.eval_shape(functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM), key)
    one_batch = take_batch(random_dataset(), np.arange(args.batch_size)[None])
    update = jax.make_jaxpr(functools.partial(algorithm.train_chunk, args))(state, one_batch, key)
    factors = [
        (rng.normal(size=(rows, depth)).astype(np.float32), rng.normal(size=(depth, columns)).astype(np.float32))
        for rows, depth, columns in shapes_of_products(update.jaxpr)
    ]

    def multiply(factors: list[tuple[Any, Any]]) -> list:
        return [left @ right for left, right in factors]

    compiled, on_device = jax.jit(multiply), jax.device_put(factors)
    return {"XLA": lambda: compiled(on_device), "NumPy": lambda: multiply(factors)}


def shapes_of_products(jaxpr: Any) -> Iterator[tuple[int, int, int]]:
    """Rows, depth and columns of each matrix product; of a stack of products each counts."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), (stacked, _) = equation.params["dimension_numbers"]
            left, right = (variable.aval.shape for variable in equation.invars)
            number, depth = (math.prod(left[axis] for axis in axes) for axes in (stacked, contracted))
            rows, columns = (math.prod(shape) // number // depth for shape in (left, right))
            yield from number * [(rows, depth, columns)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)  # of a closed one
            if hasattr(inner, "eqns"):
                yield from times * list(shapes_of_products(inner))


def median_seconds(function: Callable[[], Any]) -> float:
    """Of ten calls."""
    return float(np.median([seconds(function) for _ in range(10)]))


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
    """Wall-clock of one call, its result waited for; after a rest, since NumPy's threads spin on after a product."""
    time.sleep(0.1)
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


class Program(NamedTuple):
    """What is timed."""

    call: Callable[[], Any]
    updates: int  # that a call makes, or whatever else it makes several of
    compiled: Any = None  # of what is compiled as a whole


def going_on(step: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
    """A function that takes a state one step further at every call. It keeps no old one: steps give buffers away."""
    box = [state]

    def call() -> Any:
        box.append(step(box.pop()))
        return box[0]

    return call


def repeat(function: Callable[[], Any], times: int) -> Program:
    """Another function several times, one after the other, which keeps no result but the last."""

    def call() -> Any:
        for _ in range(times):
            result = jax.block_until_ready(function())
        return result

    return Program(call, times)


def compile_updates(
    algorithm: types.ModuleType, args: Any, num_seeds: int, length: int, options: dict[str, Any] | None = None
) -> Program:
    """The loop over `length` updates of several seeds, as `main` compiles it, or with other options of XLA's."""
    seeds = Seeds(range(num_seeds))
    states = seeds.initialise(functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM))
    batches = Batches(args, random_dataset(), seeds, drol.keys_of_update, lambda step: step + length)
    draw, keys, options = functools.partial(batches, 0, length), seeds.keys.train, quick_to_run() | (options or {})
    chunk = jax.vmap(functools.partial(algorithm.train_chunk, args))
    compiled = jax.jit(chunk, donate_argnums=0).lower(states, draw(), keys).compile(options)
    return Program(going_on(lambda states: compiled(states, draw(), keys)[0], states), length, compiled)


def one_update_a_dispatch(algorithm: types.ModuleType, args: Any, length: int, reference: bool = False) -> Program:
    """`length` updates as the reference implementations run them: the host draws a batch, the device takes a step.

    The reference formulation is compiled as JAX does by default, ours as in the loop.
    """
    dataset, rng, key = random_dataset(), np.random.default_rng(0), jax.random.key(1)
    state = jax.jit(functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM))(key)
    update, options = algorithm.update, quick_to_run()
    if reference:
        state, update, options = ReferenceState.of(args, state), functools.partial(reference_update, algorithm), {}

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    def step(state: Any, batch: Batch) -> Any:
        _, noise_key = algorithm.keys_of_update(key, state.step)
        return update(args, state, batch, algorithm.sample_noise(args, ACTION_DIM, noise_key))

    def draw_and_step(state: Any) -> Any:
        return step(state, take_batch(dataset, rng.integers(dataset.transitions.size, size=args.batch_size)))[0]

    once = going_on(draw_and_step, state)
    return Program(lambda: [once() for _ in range(length)][-1], length)


def updates_a_call(hidden_sizes: tuple[int, ...]) -> int:
    """On a CPU: 2 of the paper's networks, and more of smaller ones, up to a chunk of training."""
    sizes = (OBSERVATION_DIM + ACTION_DIM, *hidden_sizes, ACTION_DIM)
    return min(max(1_000_000 // sum(map(math.prod, itertools.pairwise(sizes))), 2), SHORT_CHUNK)


def measure_updates(options: SpeedArgs) -> list[Measurement]:
    """Median milliseconds of an update (of all seeds together), what it is compared to, and the memory it takes."""
    is_cpu = jax.default_backend() == "cpu"
    times = updates_a_call(options.hidden_sizes) if is_cpu else 200
    programs: dict[tuple[str, str, int], Program] = {}
    memory = []
    others = [algorithms.load(name) for name in algorithms.names() if name != drol.ALGORITHM]  # yours, too
    for algorithm, settings in [
        *((algorithm, {}) for algorithm in others),
        *((drol, {"num_candidates": k}) for k in options.num_candidates),
    ]:
        args = basics.settings(algorithm, hidden_sizes=options.hidden_sizes, **settings)
        method = algorithm.method(args)
        for seeds in options.num_seeds:
            # As long as two cores allow: a chunk's own cost, mostly that of fresh memory, counts with its updates here.
            length = times if not is_cpu else max(times, 20 if seeds == 1 else 10)
            loop = programs["update", method, seeds] = compile_updates(algorithm, args, seeds, length)
            sizes = loop.compiled.memory_analysis()
            megabytes = (sizes.argument_size_in_bytes + sizes.temp_size_in_bytes) / 1e6  # results replace arguments
            memory.append(Measurement("memory", method, seeds, megabytes, "MB"))
        if algorithm in (drol, fql):
            programs[DISPATCH, method, 1] = one_update_a_dispatch(algorithm, args, times)
            programs[REFERENCE, method, 1] = one_update_a_dispatch(algorithm, args, times, reference=True)
        for library, products in matrix_products(algorithm, args).items():
            programs[f"{FLOOR}, {library}", method, 1] = repeat(products, times)
    return medians(programs, options.rounds) + memory


def measure_inference(options: SpeedArgs) -> list[Measurement]:
    """Median milliseconds until the actions are there: one observation, and a batch of 256."""
    programs = {}
    for method, algorithm in (("FQL", fql), ("DROL", drol)):
        args = basics.settings(algorithm, hidden_sizes=options.hidden_sizes)
        init_state = jax.jit(functools.partial(algorithm.init_state, args, (OBSERVATION_DIM,), ACTION_DIM))
        params = init_state(jax.random.key(0)).params
        for size in (1, 256):
            act = jax.jit(jax.vmap(functools.partial(algorithm.sample_action, args), in_axes=(None, 0, 0)))
            inputs = np.zeros((size, OBSERVATION_DIM), np.float32), jax.random.split(jax.random.key(0), size)
            name = f"inference, {size} action{'s' if size > 1 else ''}"
            programs[name, method, 1] = repeat(functools.partial(act, params, *inputs), 50)
    return medians(programs, options.rounds)


def medians(programs: dict[tuple[str, str, int], Program], rounds: int) -> list[Measurement]:
    """Run all of them in turn, and again, after a first time that compiles."""
    for program in programs.values():
        jax.block_until_ready(program.call())
    times = [[seconds(program.call) / program.updates for program in programs.values()] for _ in range(rounds)]
    milliseconds = 1e3 * np.median(times, axis=0)
    return [Measurement(*name, ms, "ms") for name, ms in zip(programs, milliseconds, strict=True)]


def measure_collection(episodes: int) -> float:
    """Transitions a second on all cores, starting the processes included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        collect.collect_data(resolve("cube-double"), pathlib.Path(folder), episodes=episodes)
        return episodes * 1001 / (time.perf_counter() - start)


def measure_evaluation(episodes: int) -> list[Measurement]:
    """What an evaluation of DROL(16) on cube-single costs: in turn with training, and beside it."""
    train = compile_updates(drol, basics.settings(drol), 1, 2 if jax.default_backend() == "cpu" else 50).call
    single = basics.settings(drol, "cube-single")
    params = drol.init_state(single, (28,), ACTION_DIM, jax.random.key(0)).params
    policies = policies_of(functools.partial(drol.sample_action, single), keys_of_runs([0]).evaluation)
    policy = policies(jax.tree.map(lambda leaf: np.array(leaf)[None], params))
    evaluator = Evaluator(resolve("cube-single"), episodes, seeds=[0])
    calls = iter(range(3))
    evaluator(policy, should_stop=lambda: next(calls, None) is None)  # compiles the policy
    evaluator.start()
    train()
    one_chunk = median_seconds(train)
    in_turn = seconds(lambda: evaluator(policy))
    start, chunks = time.perf_counter(), 0
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        result = thread.submit(evaluator, policy)
        while not result.done():
            jax.block_until_ready(train())
            chunks += 1
    until_there = time.perf_counter() - start
    one_chunk = (one_chunk + median_seconds(train)) / 2  # machines drift
    evaluator.close()
    measured = {
        "in turn with training": in_turn,
        "beside training, until it is there": until_there,
        "time that training loses meanwhile": until_there - chunks * one_chunk,
    }
    what = f"evaluation, {episodes} episodes of cube-single"
    return [Measurement(f"{what}, {how}", "DROL(16)", 1, value, "s") for how, value in measured.items()]


def measure_loop() -> float:
    """Milliseconds an update that `drol.py` spends on anything but updates, at the default intervals; no evaluation."""
    tiny = ("--hidden-sizes", 8, "--batch-size", 8, "--num-candidates", 1, "--offline-steps", 20_000)
    with training(*tiny, "--eval-episodes", 1, "--eval-workers", 1) as (process, run):
        process.communicate()
        first, *_, last = read_table(run / "time.csv")
    args = basics.settings(drol, "pointmaze-medium", hidden_sizes=(8,), batch_size=8, num_candidates=1)
    train = compile_updates(drol, args, 1, 1000).call
    train()
    updates = last["step"] - first["step"]
    return 1e3 * ((last["time/seconds"] - first["time/seconds"]) / updates - median_seconds(train) / 1000)


def measure_start() -> float:
    """Seconds from the shell to the end of the first 50 updates of `drol.py` at the paper's sizes, data on disk."""
    with training() as (process, _):
        start = time.perf_counter()
        next(line for line in process.stdout if line.startswith("one update takes"))
        taken = time.perf_counter() - start
        process.kill()
    return taken


@contextlib.contextmanager
def training(*arguments: object) -> Iterator[tuple[subprocess.Popen, pathlib.Path]]:
    """`drol.py` on a little of pointmaze-medium, in another process that has just begun, and its run directory."""
    with tempfile.TemporaryDirectory() as folder:
        path = collect.collect_data(resolve("pointmaze-medium"), pathlib.Path(folder), episodes=2, workers=1)
        run = pathlib.Path(folder) / "run"
        words = ("drol.py", "--env-id", "pointmaze-medium", "--dataset-path", path, "--run-dir", run, *arguments)
        command = [sys.executable, *map(str, words)]
        with subprocess.Popen(command, cwd=basics.REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            yield process, run


def to_markdown(measurements: list[Measurement], machine: str) -> str:
    """A table of updates, one of seeds, and a list of the rest."""
    value = {m[:3]: m.value for m in measurements}
    methods = [m.method for m in measurements if m.quantity == "update" and m.seeds == 1]
    seeds = sorted({m.seeds for m in measurements if m.quantity == "update"})
    floors = floors_of(measurements)

    lines = [f"{machine}; medians, milliseconds an update.", ""]
    lines += [f"| one seed | update | {FLOOR} | multiple | {DISPATCH} | times as long | {REFERENCE} | times as long |"]
    lines += ["|:--|--:|--:|--:|--:|--:|--:|--:|"]
    for method in methods:
        ours, floor = value["update", method, 1], floors.get(method)
        cells = [f"{ours:.3g}", *(["", ""] if floor is None else [f"{floor:.3g}", f"{ours / floor:.2f}"])]
        for other in (DISPATCH, REFERENCE):
            theirs = value.get((other, method, 1))
            cells += ["", ""] if theirs is None else [f"{theirs:.3g}", f"{theirs / ours:.2f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")

    lines += [
        "",
        "Several seeds together: milliseconds an update and seed, as a multiple of one seed's floor, memory, and how "
        "long a million updates of all of them take.",
    ]
    lines += ["", "| | " + " | ".join(f"{n} seed{'s' if n > 1 else ''}" for n in seeds) + " |"]
    lines += ["|:--|" + "--:|" * len(seeds)]
    for method in methods:
        cells = []
        for n in seeds:
            ours, floor = value["update", method, n], floors.get(method)
            hours, megabytes = ours / 3.6, value["memory", method, n]
            total = f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.0f} h"
            multiple = "" if floor is None else f" ({ours / n / floor:.2f})"
            cells.append(f"{ours / n:.3g} ms{multiple}, {megabytes:.0f} MB, {total}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append("")
    for m in measurements:
        if m.quantity not in ("update", "memory", DISPATCH, REFERENCE) and not m.quantity.startswith(FLOOR):
            lines.append(f"- {m.quantity}{f', {m.method}' if m.method else ''}: {m.value:.3g} {m.unit}")
    return "\n".join(lines) + "\n"


def floors_of(measurements: list[Measurement]) -> dict[str, float]:
    """Milliseconds of the matrix products of an update of each method, by whichever library is faster."""
    products = [m for m in measurements if m.quantity.startswith(FLOOR)]
    return {method: min(m.value for m in products if m.method == method) for method in {m.method for m in products}}


def draw(measurements: list[Measurement], machine: str) -> plt.Figure:
    """Bars in the manner of the paper's: an update of each seed with its floor, and inference."""
    figure, (updates, inference) = plt.subplots(1, 2, figsize=(7.6, 3.2), width_ratios=[2.6, 1], layout="constrained")
    value = {m[:3]: m.value for m in measurements}
    methods = [m.method for m in measurements if m.quantity == "update" and m.seeds == 1]
    seeds = sorted({m.seeds for m in measurements if m.quantity == "update"})
    floors = floors_of(measurements)
    colours = {method: "#0072B2" if method.startswith("DROL") else "#CC79A7" for method in (*methods, "DROL")}
    colours["FQL"] = "#D55E00"
    width = 0.8 / len(seeds)
    for i, method in enumerate(methods):
        for j, n in enumerate(seeds):
            x, y = i + width * (j - (len(seeds) - 1) / 2), value["update", method, n] / n
            updates.bar(x, y, 0.92 * width, color=colours[method], alpha=0.9 - 0.25 * j)
            updates.text(x, 0, f" {y:.3g}", ha="center", va="bottom", rotation=90, fontsize=7)  # clear of the lines
        comparisons = {FLOOR: floors.get(method), f"{DISPATCH}, one seed": value.get((DISPATCH, method, 1))}
        for (label, y), style in zip(comparisons.items(), (":", "-"), strict=True):
            if y is None:
                continue
            line = updates.hlines(y, i - 0.45, i + 0.45, colors="k", linestyles=style, lw=1)
            if method == "FQL":
                line.set_label(label)
    updates.margins(y=0.2)  # room for the legend
    updates.set_xticks(range(len(methods)), methods)
    together = ", ".join(map(str, seeds))
    updates.set(ylabel="ms an update and seed", title=f"training, from left to right {together} seeds together")
    updates.title.set_fontsize(9)
    updates.legend(frameon=False, fontsize=8, loc="upper left")
    sizes = ("inference, 1 action", "inference, 256 actions")
    for i, size in enumerate(sizes):
        for j, method in enumerate(("FQL", "DROL")):
            x, y = i + 0.4 * j - 0.2, value[size, method, 1]
            inference.bar(x, y, 0.36, color=colours[method], alpha=0.8, label=method if i == 0 else None)
            inference.text(x, y, f"{y:.2f}", ha="center", va="bottom", fontsize=8)
    inference.set_xticks(range(2), ["1 action", "256 actions"])
    inference.set(ylabel="ms a call", title="inference")
    inference.title.set_fontsize(9)
    inference.legend(frameon=False, fontsize=8)
    figure.supxlabel(machine, fontsize=7, c="0.25")
    return figure


def write(out: pathlib.Path, measurements: list[Measurement], machine: str) -> None:
    """FILE.csv, and what is made from it."""
    rows = [(*m[:3], f"{m.value:{DIGITS}}", m.unit) for m in measurements]
    first = ("machine", machine, "", "", "")
    basics.write_csv(out.with_name(out.name + ".csv"), Measurement._fields, [first, *rows])
    render(out)


def read(out: pathlib.Path) -> tuple[str, list[Measurement]]:
    """The machine, and what was measured, from FILE.csv."""
    with out.with_name(out.name + ".csv").open() as file:
        _, first, *rows = csv.reader(file)
    return first[1], [Measurement(*row[:2], int(row[2]), float(row[3]), row[4]) for row in rows]


def render(out: pathlib.Path) -> None:
    """FILE.md, FILE.pdf and FILE.png from FILE.csv."""
    machine, measurements = read(out)
    out.with_name(out.name + ".md").write_text(to_markdown(measurements, machine))
    figures.save(draw(measurements, machine), out)


def main(args: SpeedArgs) -> None:
    """Measure, print as Markdown, write."""
    args = dataclasses.replace(args, num_seeds=tuple(sorted({1, *args.num_seeds})))
    sizes = " ".join(map(str, args.hidden_sizes))
    machine = f"{describe_device()}, {processor()}; batch 256, hidden sizes {sizes}"
    measurements = measure_updates(args) + measure_inference(args)
    if not args.updates_only:
        measurements += measure_evaluation(args.eval_episodes)
        of_a_small_run = "everything but the update in a run of one seed, evaluation aside"
        measurements += [
            Measurement(of_a_small_run, "", 1, measure_loop(), "ms an update"),
            Measurement("collection of cube-double", "", 1, measure_collection(args.collect_episodes), "transitions/s"),
            Measurement(f"start-up to the end of the first {SHORT_CHUNK} updates", "", 1, measure_start(), "s"),
        ]
    measurements = [m._replace(value=float(f"{m.value:{DIGITS}}")) for m in measurements]  # as the file will have them
    print(to_markdown(measurements, machine), end="")
    if args.out is not None:
        write(args.out, measurements, machine)


def processor() -> str:
    """The name of the CPU, where Linux tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(SpeedArgs)))
