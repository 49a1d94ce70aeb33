"""FQL: one-step offline reinforcement learning with a policy distilled from a flow, in one file.

    python fql.py --env-id cube-double

Flow Q-Learning (Park, Li, Levine, 2025, arXiv 2502.02538). A flow v(s, x, t) learns by flow matching to turn noise into
the data set's actions. A one-step actor f(s, z) is pulled towards what the flow makes of the same noise z in several
Euler steps, and is improved by the critic. Only the actor acts; the flow never sees the critic.

Read on from top to bottom: arguments, published settings, networks, losses, update, training loop. Files, environments
and logs are in common/. `diff drol.py fql.py` shows what the two algorithms do differently, and nothing else.

Deviations from the reference implementation:
1. Many updates run in one compiled loop, on batches that are sampled on the device.
2. Evaluation starts from fixed seeds, and a fixed assignment spreads its episodes over parallel environments, which run
   beside training.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int, Key

from common import datasets, machine, session
from common.datasets import Dataset
from common.env_ids import EnvSpec, resolve
from common.envs import ExplorationEnvs
from common.errors import UserError, exit_in_one_line
from common.evaluation import Evaluator, Policy
from common.machine import available_cores, describe_device
from common.run_directory import RunDirectory, import_wandb
from common.runs import IntervalMetrics, Runs, new_paths

ALGORITHM = "fql"
SHORT_CHUNK = 50  # updates between signs of life on a CPU; elsewhere a chunk is a log interval


@dataclasses.dataclass(frozen=True)
class Args:
    """Train FQL offline. An argument left unset takes the value that the paper published for the environment."""

    # Run
    env_id: str = "cube-double"
    """Environment and task, e.g. cube-double-task3, antmaze-large, scene-noisy (README: Names)."""
    seed: int = 0
    """Seed of everything random in this run, except the collection of data."""
    num_seeds: int = 1
    """Train the seeds SEED, SEED + 1, .. together. Each becomes a run of its own."""
    run_dir: pathlib.Path | None = None
    """Folder for logs and checkpoints (with several seeds: of the folders seed0, seed1, ..); under runs/ if unset."""
    resume: tuple[pathlib.Path, ...] = ()
    """Go on with the run in this folder, to the same bits as if it had never stopped, or with several runs that
    differ in the seed alone. Takes no other argument."""
    evaluate: pathlib.Path | None = None
    """Evaluate what the run in this folder has learned, without training. Takes evaluation arguments alone."""
    video: pathlib.Path | None = None
    """With --evaluate: write the first episodes to this file (.mp4, .gif)."""
    print_config: bool = False
    """Print the resolved settings as JSON and exit, without touching any data."""

    # Data
    data_source: datasets.DataSource = "auto"
    """auto: a file that is there, else the official server, else its mirror, else collect it here."""
    dataset_path: pathlib.Path | None = None
    """Train on this file (OGBench's npz format) or folder (Minari) and no other."""
    dataset_dir: pathlib.Path = pathlib.Path("~/.ogbench/data")
    """Folder that is searched, downloaded to and collected into (Minari's is MINARI_DATASETS_PATH)."""
    collect_episodes: int | None = None
    """Episodes to collect, when data has to be collected; OGBench's own number if unset."""
    collect_workers: int = available_cores()
    """Worker processes for collection."""
    data_memory: Literal["auto", "device", "host"] = "auto"
    """Where the data set lies: on the device if it fits there, else on the host, which sends batches ahead."""

    # Evaluation, logs and checkpoints
    eval_interval: int = 100_000
    """Updates between evaluations; the last update is always evaluated."""
    eval_episodes: int = 50
    """Episodes an evaluation."""
    eval_workers: int | None = None
    """Processes for evaluation, which goes on beside training; one for each CPU core if unset."""
    log_interval: int = 1_000
    """Updates between rows of train.csv; a row holds means over the interval."""
    save_minutes: float = 5.0
    """Wall-clock minutes between checkpoints. A run that is stopped politely, or ends, saves anyway."""
    track: bool = False
    """Send logs to Weights & Biases as well."""
    wandb_project: str = "one-step-offline-rl"
    """Weights & Biases project."""

    # Training, shared by DROL and FQL
    offline_steps: int | None = None
    """Number of updates (published: 1,000,000 on OGBench, 500,000 on D4RL)."""
    batch_size: int = 256
    """Transitions a batch, sampled uniformly with replacement."""
    hidden_sizes: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of every network."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    discount: float | None = None
    """Discount of the Bellman target (default 0.99)."""
    tau: float = 0.005
    """Step of the target critic towards the critic."""
    q_agg: Literal["mean", "min"] | None = None
    """Aggregation of the target critics in the Bellman target (default mean)."""
    online_steps: int = 0
    """Fine-tuning after the offline updates: steps in the environment, with one update each."""
    buffer_size: int = 2_000_000
    """Transitions in the replay buffer: the data set, and what is collected online, the oldest overwritten."""
    balanced_sampling: bool = False
    """Draw half of each online batch from the data set, and half from what was collected online."""

    # FQL
    alpha: float | None = None
    """Weight of distillation against improvement: the one to tune (default 10; published 3 to 30000)."""
    flow_steps: int = 10
    """Euler steps of the flow."""
    normalize_q_loss: bool = False
    """Divide the improvement loss by the mean absolute Q-value of the batch."""


class Published(NamedTuple):
    """Settings of FQL (arXiv 2502.02538, appendix)."""

    alpha: float
    discount: float
    q_agg: Literal["mean", "min"]


PUBLISHED = {
    "antmaze-large-navigate": Published(10.0, 0.99, "min"),
    "antmaze-giant-navigate": Published(10.0, 0.995, "min"),
    "humanoidmaze-medium-navigate": Published(30.0, 0.995, "mean"),
    "humanoidmaze-large-navigate": Published(30.0, 0.995, "mean"),
    "antsoccer-arena-navigate": Published(10.0, 0.995, "mean"),
    "cube-single-play": Published(300.0, 0.99, "mean"),
    "cube-double-play": Published(300.0, 0.99, "mean"),
    "scene-play": Published(300.0, 0.99, "mean"),
    "puzzle-3x3-play": Published(1000.0, 0.99, "mean"),
    "puzzle-4x4-play": Published(1000.0, 0.99, "mean"),
    "antmaze-umaze": Published(10.0, 0.99, "mean"),
    "antmaze-umaze-diverse": Published(10.0, 0.99, "mean"),
    "antmaze-medium-play": Published(10.0, 0.99, "mean"),
    "antmaze-medium-diverse": Published(10.0, 0.99, "mean"),
    "antmaze-large-play": Published(3.0, 0.99, "mean"),
    "antmaze-large-diverse": Published(3.0, 0.99, "mean"),
    "pen-human": Published(10000.0, 0.99, "min"),
    "pen-cloned": Published(10000.0, 0.99, "min"),
    "pen-expert": Published(3000.0, 0.99, "min"),
    "door-human": Published(30000.0, 0.99, "min"),
    "door-cloned": Published(30000.0, 0.99, "min"),
    "door-expert": Published(30000.0, 0.99, "min"),
    "hammer-human": Published(30000.0, 0.99, "min"),
    "hammer-cloned": Published(10000.0, 0.99, "min"),
    "hammer-expert": Published(30000.0, 0.99, "min"),
    "relocate-human": Published(10000.0, 0.99, "min"),
    "relocate-cloned": Published(30000.0, 0.99, "min"),
    "relocate-expert": Published(30000.0, 0.99, "min"),
}
PUBLISHED_ONLINE_ALPHA = {  # where fine-tuning follows; elsewhere as offline
    "humanoidmaze-medium-navigate": 100.0,
    "antsoccer-arena-navigate": 30.0,
    "cube-double-play": 300.0,
    "scene-play": 300.0,
    "puzzle-4x4-play": 1000.0,
    "pen-cloned": 1000.0,
    "door-cloned": 1000.0,
    "hammer-cloned": 1000.0,
    "relocate-cloned": 10000.0,
}
DEFAULTS = {"alpha": 10.0, "discount": 0.99, "q_agg": "mean"}
KNOB = "alpha"  # what to tune where nothing is published


def published_settings(args: Args, family: str) -> dict[str, Any]:
    """The paper's settings for a family of environments; none where it has none."""
    settings = PUBLISHED[family]._asdict() if family in PUBLISHED else {}
    if args.online_steps > 0 and family in PUBLISHED_ONLINE_ALPHA:
        settings["alpha"] = PUBLISHED_ONLINE_ALPHA[family]
    return settings


def valid_settings(args: Args) -> dict[str, bool]:
    """Whether each of FQL's own arguments is in its range."""
    return {
        "alpha": 0 <= args.alpha < math.inf,
        "flow_steps": args.flow_steps >= 1,
    }


# What --evaluate may change: it has no part in what was learned (but for online steps, which the same policy takes).
EVALUATION_ARGS = {
    *("eval_episodes", "eval_workers"),
    *("inference_num_samples", "inference_density_top_k", "inference_q_agg"),
}
OFFLINE_STEPS = {"ogbench": 1_000_000, "d4rl": 500_000}  # published for both


def resolve_settings(args: Args, spec: EnvSpec) -> tuple[Args, dict[str, str]]:
    """Fill in what was left unset.

    Returns:
        Arguments without None among the settings, and for each setting where its value came from.

    Raises:
        UserError: a value is out of range.
    """
    published, defaults = published_settings(args, spec.family), DEFAULTS | {"offline_steps": OFFLINE_STEPS[spec.suite]}
    if published:
        published["offline_steps"] = OFFLINE_STEPS[spec.suite]
    values, origins = {}, {}
    for name, default in defaults.items():
        values[name], origins[name] = getattr(args, name), "given"
        if values[name] is None and name in published:
            values[name], origins[name] = published[name], "published"
        elif values[name] is None:
            values[name], origins[name] = default, "default"
    args = dataclasses.replace(args, **values)

    in_range = {
        "seed": 0 <= args.seed < 2**31,
        "num_seeds": 1 <= args.num_seeds <= 2**31 - args.seed,
        "hidden_sizes": len(args.hidden_sizes) >= 1 and min(args.hidden_sizes) >= 1,
        "learning_rate": 0 < args.learning_rate < 1,
        "discount": 0 <= args.discount <= 1,
        "tau": 0 < args.tau <= 1,
        "offline_steps": 1 <= args.offline_steps < 10**9,
        "online_steps": 0 <= args.online_steps < 10**9,
        "batch_size": args.batch_size >= (2 if args.balanced_sampling else 1),
        "eval_interval": args.eval_interval >= 1,
        "eval_episodes": args.eval_episodes >= 1,
        "eval_workers": args.eval_workers is None or args.eval_workers >= 1,
        "log_interval": 1 <= args.log_interval <= 10**6,
        "save_minutes": 0 <= args.save_minutes < math.inf,
        "collect_episodes": args.collect_episodes is None or args.collect_episodes >= 1,
        "collect_workers": args.collect_workers >= 1,
        **valid_settings(args),
    }
    for name, valid in in_range.items():
        if not valid:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: out of range")
    return args, origins


# Networks: they take one example; losses and policies vmap them over the batch.


class MLP(eqx.Module):
    """Hidden layers: Linear, GELU (tanh approximation), and for critics LayerNorm. Output layer: Linear."""

    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]  # empty without LayerNorm

    def __init__(
        self,
        in_size: int,
        out_size: int,
        hidden_sizes: tuple[int, ...],
        *,
        layer_norm: bool = False,
        key: Key[Array, ""],
    ):
        sizes = (in_size, *hidden_sizes, out_size)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = [_linear(*fan, key=k) for fan, k in zip(itertools.pairwise(sizes), keys, strict=True)]
        self.norms = [eqx.nn.LayerNorm(size, eps=1e-6) for size in hidden_sizes] if layer_norm else []

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " out"]:
        """Apply the network to its inputs, concatenated."""
        x = jnp.concatenate(inputs)
        for index, layer in enumerate(self.layers[:-1]):
            x = jax.nn.gelu(layer(x), approximate=True)
            if self.norms:
                x = self.norms[index](x)
        return self.layers[-1](x)


def _linear(fan_in: int, fan_out: int, *, key: Key[Array, ""]) -> eqx.nn.Linear:
    """Glorot uniform kernel and zero bias, unlike Equinox's own initialisation."""
    layer = eqx.filter_eval_shape(eqx.nn.Linear, fan_in, fan_out, key=key)
    weight = jax.nn.initializers.glorot_uniform()(key, (fan_out, fan_in))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, jnp.zeros(fan_out)))


class Params(eqx.Module):
    """Everything that is optimised."""

    critic: MLP  # Q_i(s, a); every array has a leading axis for the ensemble i = 1, 2
    actor: MLP  # f(s, z), not clipped
    flow: MLP  # v(s, x_t, t), the teacher


class TrainState(eqx.Module):
    """Everything that an update changes."""

    params: Params
    target_critic: MLP
    opt_state: optax.OptState
    step: Int[Array, ""]  # updates so far


class Batch(eqx.Module):
    """B transitions."""

    observations: Float[Array | np.ndarray, "*batch observation"]
    actions: Float[Array | np.ndarray, "*batch action"]
    rewards: Float[Array | np.ndarray, "*batch"]
    masks: Float[Array | np.ndarray, "*batch"]  # 0 where the task is complete: no bootstrapping
    next_observations: Float[Array | np.ndarray, "*batch observation"]


class Replay(eqx.Module):
    """What was collected online, beside the data set."""

    ring: Batch  # a row a transition, the oldest overwritten
    added: Int[Array, ""]  # transitions so far


class Checkpoint(NamedTuple):
    """What a run needs to go on; to evaluate it, the state is enough."""

    state: TrainState
    replay: Replay | None = None
    unlogged: dict[str, np.ndarray] | None = None  # metrics since the last row of train.csv


def init_params(args: Args, observation_dim: int, action_dim: int, key: Key[Array, ""]) -> Params:
    """Fresh networks."""
    critic_key, actor_key, flow_key = jax.random.split(key, 3)
    in_size = observation_dim + action_dim
    return Params(
        critic=init_critic(args, in_size, critic_key),
        actor=MLP(in_size, action_dim, args.hidden_sizes, key=actor_key),
        flow=MLP(in_size + 1, action_dim, args.hidden_sizes, key=flow_key),
    )


def init_critic(args: Args, in_size: int, key: Key[Array, ""]) -> MLP:
    """An ensemble of two."""
    init_member = functools.partial(MLP, in_size, 1, args.hidden_sizes, layer_norm=True)
    return eqx.filter_vmap(lambda key: init_member(key=key))(jax.random.split(key, 2))


def init_state(args: Args, observation_dim: int, action_dim: int, key: Key[Array, ""]) -> TrainState:
    """Fresh networks, target equal to critic, zero Adam moments."""
    params = init_params(args, observation_dim, action_dim, key)
    target_critic = jax.tree.map(jnp.copy, params.critic)  # a copy: the state's buffers are donated to each chunk
    return TrainState(params, target_critic, optimizer(args).init(params), jnp.zeros((), jnp.int32))


def optimizer(args: Args) -> optax.GradientTransformation:
    """One Adam over all parameters (betas 0.9 and 0.999, eps 1e-8)."""
    return optax.adam(args.learning_rate)


def sample_transitions(args: Args, num_transitions: int, key: Key[Array, ""]) -> Int[Array, " batch"]:
    """Uniform with replacement."""
    return jax.random.randint(key, (args.batch_size,), 0, num_transitions)


def take_batch(dataset: Dataset, transitions: Int[Array | np.ndarray, "*batch"]) -> Batch:
    """The row after the one that starts a transition holds its next observation."""
    rows = dataset.transitions[transitions]
    return Batch(
        observations=dataset.observations[rows],
        actions=dataset.actions[rows],
        rewards=dataset.rewards[rows],
        masks=dataset.masks[rows],
        next_observations=dataset.observations[rows + 1],
    )


# Latents and policy


def sample_latents(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Standard normal."""
    return jax.random.normal(key, shape)


class Noise(eqx.Module):
    """Every random draw of one update but the batch."""

    next_latents: Float[Array, "batch action"]  # of the next action in the Bellman target
    latents: Float[Array, "batch action"]  # z, where the flow and the one-step actor start
    flow_noise: Float[Array, "batch action"]  # x_0 of flow matching
    flow_times: Float[Array, "batch 1"]  # t of flow matching


def sample_noise(args: Args, action_dim: int, key: Key[Array, ""]) -> Noise:
    """Draw fresh latents, noise and times."""
    next_key, latents_key, flow_noise_key, flow_times_key = jax.random.split(key, 4)
    shape = (args.batch_size, action_dim)
    return Noise(
        next_latents=sample_latents(next_key, shape),
        latents=sample_latents(latents_key, shape),
        flow_noise=sample_latents(flow_noise_key, shape),
        flow_times=jax.random.uniform(flow_times_key, (args.batch_size, 1)),
    )


def q_values(
    critic: MLP, observations: Float[Array, "batch observation"], actions: Float[Array, "batch action"]
) -> Float[Array, "ensemble batch"]:
    """Q_i(s, a) of every member of the ensemble."""
    return jax.vmap(lambda member: jax.vmap(member)(observations, actions)[:, 0])(critic)


def aggregate(q: Float[Array, "ensemble batch"], q_agg: Literal["mean", "min"]) -> Float[Array, " batch"]:
    """agg_i Q_i."""
    return q.mean(axis=0) if q_agg == "mean" else q.min(axis=0)


def sample_action(
    args: Args, params: Params, observation: Float[Array, " observation"], key: Key[Array, ""]
) -> Float[Array, " action"]:
    """The policy: one latent, one pass of the actor, clipped."""
    action_dim = params.actor.layers[-1].out_features
    return jnp.clip(params.actor(observation, sample_latents(key, (action_dim,))), -1, 1)


def sample_next_actions(
    args: Args, params: Params, target_critic: MLP, batch: Batch, noise: Noise
) -> Float[Array, "batch action"]:
    """a' of the Bellman target: a fresh sample of the policy."""
    return jnp.clip(jax.vmap(params.actor)(batch.next_observations, noise.next_latents), -1, 1)


# Losses


def critic_loss(
    args: Args, params: Params, target_critic: MLP, batch: Batch, noise: Noise
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over batch and ensemble of (Q_i(s, a) - y)^2, y = r + discount * m * agg_i Qtarget_i(s', a')."""
    next_actions = sample_next_actions(args, params, target_critic, batch, noise)
    next_q = aggregate(q_values(target_critic, batch.next_observations, next_actions), args.q_agg)
    # The target is a constant: the actor must not learn to make it easy to predict.
    target_q = jax.lax.stop_gradient(batch.rewards + args.discount * batch.masks * next_q)
    q = q_values(params.critic, batch.observations, batch.actions)
    loss = ((q - target_q) ** 2).mean()
    return loss, {
        "critic/loss": loss,
        "critic/q_mean": q.mean(),
        "critic/q_min": q.min(),
        "critic/q_max": q.max(),
        "critic/target_q_mean": target_q.mean(),
    }


def flow_actions(
    args: Args, flow: MLP, observations: Float[Array, "batch observation"], latents: Float[Array, "batch action"]
) -> Float[Array, "batch action"]:
    """Follow the flow dx/dt = v(s, x, t) from x = z at t = 0 to t = 1 in Euler steps, and clip."""

    def euler_step(x: Float[Array, "batch action"], step: Int[Array, ""]) -> tuple[Float[Array, "batch action"], None]:
        times = jnp.full_like(x[:, :1], step / args.flow_steps)
        return x + jax.vmap(flow)(observations, x, times) / args.flow_steps, None

    x, _ = jax.lax.scan(euler_step, latents, jnp.arange(args.flow_steps))
    return jnp.clip(x, -1, 1)


def actor_loss(
    args: Args, params: Params, batch: Batch, noise: Noise
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L_flow + alpha * L_distill + L_q (arXiv 2502.02538, section 4)."""

    # Flow matching: v(s, x_t, t) predicts the velocity a - x_0 of x_t = (1 - t) x_0 + t a.
    x_t = (1 - noise.flow_times) * noise.flow_noise + noise.flow_times * batch.actions
    velocities = jax.vmap(params.flow)(batch.observations, x_t, noise.flow_times)
    flow_loss = ((velocities - (batch.actions - noise.flow_noise)) ** 2).mean()

    # Distillation: one step of the actor should lead where the flow leads, from the same latent.
    # The teacher is a constant: it learns from the data alone, and does not come to meet its student.
    teacher_actions = jax.lax.stop_gradient(flow_actions(args, params.flow, batch.observations, noise.latents))
    actions = jax.vmap(params.actor)(batch.observations, noise.latents)
    distill_loss = ((actions - teacher_actions) ** 2).mean()

    # Improvement: L_q = -mean over the batch of the ensemble's mean Q(s, clip(f(s, z), -1, 1)).
    frozen_critic = jax.lax.stop_gradient(params.critic)  # the critic judges actions, it does not learn to praise them
    q = aggregate(q_values(frozen_critic, batch.observations, jnp.clip(actions, -1, 1)), "mean")
    q_loss = -q.mean()
    if args.normalize_q_loss:
        scale = 1 / jnp.maximum(jnp.abs(q).mean(), 1e-6)
        q_loss = jax.lax.stop_gradient(scale) * q_loss  # a change of units, not something to optimise

    loss = flow_loss + args.alpha * distill_loss + q_loss
    return loss, {
        "actor/loss": loss,
        "actor/flow_loss": flow_loss,
        "actor/distill_loss": distill_loss,
        "actor/q_loss": q_loss,
        "actor/q_mean": q.mean(),
    }


# Training


@functools.partial(jax.jit, static_argnums=0)  # traced once, whatever lengths chunks have
def update(args: Args, state: TrainState, batch: Batch, noise: Noise) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One gradient step on both losses, taken at the same parameters, and one step of the target critic."""

    def total_loss(params: Params) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        c_loss, c_metrics = critic_loss(args, params, state.target_critic, batch, noise)
        a_loss, a_metrics = actor_loss(args, params, batch, noise)
        return c_loss + a_loss, c_metrics | a_metrics

    grads, metrics = jax.grad(total_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(args).update(grads, state.opt_state)
    # The target follows the critic from before this update.
    target_critic = jax.tree.map(
        lambda q, target: args.tau * q + (1 - args.tau) * target, state.params.critic, state.target_critic
    )
    return TrainState(optax.apply_updates(state.params, updates), target_critic, opt_state, state.step + 1), metrics


def keys_of_update(key: Key[Array, ""], step: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """For the batch and for the noise. They depend on the number of the update alone, however runs are cut."""
    batch_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
    return batch_key, noise_key


def train_chunk(
    args: Args, state: TrainState, data: Dataset | Batch, key: Key[Array, ""], num_updates: int
) -> tuple[TrainState, dict[str, Float[Array, " num_updates"]]]:
    """`num_updates` updates in one loop on the device.

    `data` is the data set or, where that is too large for the device, the batches of these updates.
    """

    def one_update(state: TrainState, batch: Batch | None) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        batch_key, noise_key = keys_of_update(key, state.step)
        if batch is None:
            batch = take_batch(data, sample_transitions(args, data.transitions.shape[0], batch_key))
        return update(args, state, batch, sample_noise(args, batch.actions.shape[1], noise_key))

    return jax.lax.scan(one_update, state, data if isinstance(data, Batch) else None, length=num_updates)


def sample_chunk(
    args: Args, num_transitions: int, key: Key[Array, ""], first: Int[Array, ""], num_updates: int
) -> Int[Array, "num_updates batch"]:
    """The transitions that `train_chunk` would draw itself, for the host to fetch."""

    def of_update(step: Int[Array, ""]) -> Int[Array, " batch"]:
        batch_key, _ = keys_of_update(key, step)
        return sample_transitions(args, num_transitions, batch_key)

    return jax.vmap(of_update)(first + jnp.arange(num_updates))


# Fine-tuning online


def init_replay(args: Args, observation_dim: int, action_dim: int, num_transitions: int) -> Replay:
    """An empty ring with room for all that will be collected, or for what the data set leaves of the buffer."""
    rows = max(min(args.online_steps, args.buffer_size - num_transitions), 0)
    observations, actions, numbers = (jnp.zeros((rows, *shape)) for shape in ((observation_dim,), (action_dim,), ()))
    return Replay(Batch(observations, actions, numbers, numbers, observations), jnp.zeros((), jnp.int32))


def add_transition(replay: Replay, transition: Batch) -> Replay:
    """In the place of the oldest one, once the ring is full."""
    slot = replay.added % replay.ring.rewards.shape[0]
    ring = jax.tree.map(lambda rows, row: rows.at[slot].set(row), replay.ring, transition)
    return Replay(ring, replay.added + 1)


def sample_replay(args: Args, dataset: Dataset, replay: Replay, key: Key[Array, ""]) -> Batch:
    """Uniform over the data set and what was collected online; or, balanced, half from each."""
    num_offline = dataset.transitions.shape[0]
    num_online = jnp.minimum(replay.added, replay.ring.rewards.shape[0])
    if args.balanced_sampling:
        offline_key, online_key = jax.random.split(key)
        half = args.batch_size // 2
        offline = take_batch(dataset, jax.random.randint(offline_key, (half,), 0, num_offline))
        slots = jax.random.randint(online_key, (args.batch_size - half,), 0, num_online)
        return jax.tree.map(lambda rows, ring: jnp.concatenate([rows, ring[slots]]), offline, replay.ring)
    drawn = jax.random.randint(key, (args.batch_size,), 0, num_offline + num_online)
    is_offline = drawn < num_offline
    offline = take_batch(dataset, jnp.where(is_offline, drawn, 0))
    slots = jnp.where(is_offline, 0, drawn - num_offline)

    def choose(rows: Array, ring: Array) -> Array:
        return jnp.where(is_offline.reshape(-1, *[1] * (rows.ndim - 1)), rows, ring[slots])

    return jax.tree.map(choose, offline, replay.ring)


def online_update(
    args: Args, state: TrainState, replay: Replay, dataset: Dataset, key: Key[Array, ""], transition: Batch
) -> tuple[TrainState, Replay, dict[str, Float[Array, ""]]]:
    """Remember a transition, and learn from a batch."""
    replay = add_transition(replay, transition)
    batch_key, noise_key = keys_of_update(key, state.step)
    batch = sample_replay(args, dataset, replay, batch_key)
    state, metrics = update(args, state, batch, sample_noise(args, batch.actions.shape[1], noise_key))
    return state, replay, metrics


def run_keys(seed: Int[Array, ""]) -> Key[Array, "4"]:
    """Of a run, from its seed: for initialisation, training, evaluation and exploration."""
    key = jax.random.key(seed)
    return jnp.concatenate([jax.random.split(key, 3), jax.random.fold_in(key, 3)[None]])


def make_policy(args: Args, seeds: list[int]) -> Callable[[Params], Policy]:
    """Of parameters with a leading seed axis, the policies of all seeds in all their environments, for `Evaluator`.

    Each step of each episode has a key of its own, so that it does not matter how episodes are spread.
    """

    @functools.partial(jax.jit, compiler_options=machine.single_threaded())
    def act(params: Params, keys: Array, observations: Array, episodes: Array, time_steps: Array) -> Array:
        def act_of_seed(params: Params, key: Array, observations: Array, episodes: Array, time_steps: Array) -> Array:
            keys = jax.vmap(lambda i, t: jax.random.fold_in(jax.random.fold_in(key, i), t))(episodes, time_steps)
            return jax.vmap(functools.partial(sample_action, args, params))(observations, keys)

        return jax.vmap(act_of_seed)(params, keys, observations, episodes, time_steps)

    device = machine.policy_device()
    keys = jax.device_put(jax.vmap(run_keys)(jnp.array(seeds))[:, 2], device)

    def of_params(params: Params) -> Policy:
        copies = jax.tree.map(lambda leaf: np.array(leaf)[: len(seeds)], params)  # the next chunk reuses their memory
        return functools.partial(act, jax.device_put(copies, device), keys)

    return of_params


def evaluate_run(args: Args) -> None:
    """Evaluate a saved policy, with the settings of its run but for those that are given; film it if asked to."""
    run, video = RunDirectory.open(args.evaluate, ALGORITHM, lock=False), args.video
    trained = dataclasses.replace(run.read_args(Args), evaluate=args.evaluate, video=video)
    args = tyro.cli(Args, default=trained)  # once more: what is not given is the run's
    for name, value in vars(args).items():
        if name not in EVALUATION_ARGS and value != getattr(trained, name):
            raise UserError(f"--evaluate takes no --{name.replace('_', '-')}: it does not change what was learned")
    spec, runs = resolve(args.env_id), Runs([run])
    args, _ = resolve_settings(args, spec)
    evaluator = Evaluator(
        spec, args.eval_episodes, seeds=runs.seeds, workers=args.eval_workers, dataset_path=runs.dataset_path
    )
    with contextlib.closing(evaluator), session.StopSignals() as stop:
        init = functools.partial(init_state, args, *evaluator.dimensions())
        like = Checkpoint(jax.eval_shape(init, jax.random.key(0)))
        step, checkpoint = runs.restore_newest(like)
        if step == 0:
            raise UserError(f"{run.path} has no checkpoint yet")
        policy = make_policy(args, runs.seeds)(checkpoint.state.params)
        results = evaluator(policy, stop.requested)
        if results is not None:
            episodes = f"{args.eval_episodes} episode{'s' if args.eval_episodes > 1 else ''}"
            print(f"after update {step:,}, {episodes}: {session.describe(results[0])}")
        if video is not None and not stop.requested():
            evaluator.film(policy, video, stop.requested)


def main(args: Args) -> None:
    """Load, initialise, then for each chunk: train, log, save, evaluate. Only here is there more than one seed."""
    if args.resume and args != Args(resume=args.resume):
        raise UserError("--resume takes all other settings from the run; give no other argument")
    if args.video is not None and (args.evaluate is None or args.video.suffix not in (".mp4", ".gif")):
        raise UserError(f"--video {args.video}: belongs to --evaluate, and to a name that ends in .mp4 or .gif")
    if args.evaluate is not None:
        evaluate_run(args)
        return
    resumed = Runs.open(args.resume, ALGORITHM) if args.resume else None
    if resumed is not None:
        args = resumed.read_args(Args)
    spec = resolve(args.env_id)
    args, origins = resolve_settings(args, spec)
    if args.print_config:
        config = {"environment": spec.name, "args": dataclasses.asdict(args), "origins": origins}
        print(json.dumps(config, indent=2, default=str))
        return

    # What can be refused is refused before any data is touched.
    seeds = resumed.seeds if resumed else list(range(args.seed, args.seed + args.num_seeds))
    paths = [] if resumed else new_paths(args.run_dir, ALGORITHM, spec, seeds)
    if args.track:
        import_wandb()
    dataset, provenance = datasets.load(
        spec,
        dataset_path=resumed.dataset_path if resumed else args.dataset_path,
        dataset_dir=args.dataset_dir,
        source=args.data_source,
        collect_episodes=args.collect_episodes,
        collect_workers=args.collect_workers,
    )
    num_transitions = dataset.transitions.size
    if args.online_steps > 0 and args.buffer_size <= num_transitions:
        raise UserError(f"--buffer-size {args.buffer_size}: the data set alone has {num_transitions} transitions")
    on_host = machine.keep_on_host(args.data_memory, dataset.num_bytes)
    if on_host and args.online_steps > 0:
        raise UserError("--online-steps needs the data set on the device")
    runs = resumed or Runs.create(paths, ALGORITHM, spec, args, origins, provenance, seeds)
    runs.check_data(provenance)
    if args.track:
        runs.track(args.wandb_project)

    # The seed axis: one place for each seed, spread over the devices.
    placement = machine.place_seeds(len(seeds))
    keys = placement.spread(jax.vmap(run_keys)(jnp.array(seeds)))
    init_keys, train_keys, exploration_keys = keys[:, 0], keys[:, 1], keys[:, 3]

    def init(key: Key[Array, ""]) -> tuple[TrainState, Replay]:
        sizes = (dataset.observation_dim, dataset.action_dim)
        return init_state(args, *sizes, key), init_replay(args, *sizes, num_transitions)

    initialise = jax.jit(jax.vmap(init), out_shardings=placement.by_seed, compiler_options=machine.quick_to_compile())
    states, replays = initialise(init_keys)
    session.announce(
        environment=f"{spec.name}, observations {dataset.observation_dim}, actions {dataset.action_dim}",
        data=f"{datasets.describe(provenance)}, {dataset.describe_size()}" + (" on the host" if on_host else ""),
        settings=", ".join(f"{name} {getattr(args, name)} ({origin})" for name, origin in runs.origins.items()),
        networks=f"hidden sizes {args.hidden_sizes}, batch size {args.batch_size}",
        seeds=f"{', '.join(map(str, seeds))}" + (f" ({placement.description})" if len(seeds) > 1 else ""),
        device=describe_device(),
        run=str(runs),
    )
    if spec.family not in PUBLISHED:
        print(f"note: nothing is published for {spec.family}; tune --{KNOB.replace('_', '-')}", flush=True)

    # Go on where the runs stand.
    one_update = jax.vmap(functools.partial(train_chunk, args, num_updates=1), in_axes=(0, None, 0))
    _, names = jax.eval_shape(one_update, states, dataset, train_keys)
    unlogged = IntervalMetrics(names, runs, args.log_interval)
    first_of = functools.partial(jax.tree.map, lambda leaf: leaf[0])
    like = jax.eval_shape(first_of, Checkpoint(states, replays, unlogged.values))  # of one seed
    step, total = runs.last_common_step(like), args.offline_steps + args.online_steps
    if step > 0:
        states, replays, unlogged.values = runs.restore(step, like)
        states, replays = placement.spread((states, replays))
    runs.rewind(step)

    on_cpu = jax.default_backend() == "cpu"
    one_core = machine.available_cores() == 1  # where updates and evaluation would only get in each other's way

    def end_of_chunk(step: int) -> int:
        """A chunk ends where something is due; sooner on a CPU, where that takes long, and with batches to fetch."""
        if step >= args.offline_steps:
            return min(step + 1, total)  # online: a step in the environment between any two updates
        ends = [step + interval - step % interval for interval in (args.log_interval, args.eval_interval)]
        return min(*ends, args.offline_steps, step + SHORT_CHUNK if on_cpu or on_host else args.offline_steps)

    # Data: shared by all seeds on the device; or on the host, which fetches the batches of the chunk after this one.
    @functools.partial(jax.jit, static_argnums=2)
    def draw(keys: Array, first: int, num_updates: int) -> Array:
        sample = functools.partial(sample_chunk, args, num_transitions, num_updates=num_updates)
        return jax.vmap(sample, in_axes=(0, None))(keys, first)

    host_keys = jax.device_put(train_keys, machine.policy_device())  # drawn there: the device is busy

    def fetch(first: int, end: int) -> Batch:
        return jax.device_put(take_batch(dataset, np.asarray(draw(host_keys, first, end - first))), placement.by_seed)

    batches_ahead = datasets.Prefetcher(fetch)
    device_data = None if on_host else jax.device_put(dataset, placement.shared)

    @functools.cache
    def compile_chunk(num_updates: int) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        progress.compiling(num_updates)
        chunk = functools.partial(train_chunk, args, num_updates=num_updates)
        vmapped = jax.vmap(chunk, in_axes=(0, 0 if on_host else None, 0))
        return jax.jit(vmapped, donate_argnums=0).lower(states, data, train_keys).compile()

    # Fine-tuning: each seed explores an environment of its own.
    @functools.cache
    def begin_exploring() -> tuple[ExplorationEnvs, Callable[..., Array], Callable[..., tuple]]:
        progress.compiling(1)
        environments = ExplorationEnvs(spec, runs.dataset_path, seeds, first_step=step)
        stack.callback(environments.close)

        def act(params: Params, observation: Array, key: Array, step: int) -> Array:
            return sample_action(args, params, observation, jax.random.fold_in(key, step))

        explore = jax.jit(jax.vmap(act, in_axes=(0, 0, 0, None)))
        explore(states.params, placement.spread(environments.observations), exploration_keys, step)  # compiles it
        vmapped = jax.vmap(functools.partial(online_update, args), in_axes=(0, 0, None, 0, 0))
        learn = jax.jit(vmapped, donate_argnums=(0, 1))
        transitions = jax.device_put(jax.tree.map(lambda ring: ring[:, 0], replays.ring), placement.by_seed)
        return environments, explore, learn.lower(states, replays, device_data, train_keys, transitions).compile()

    policy = make_policy(args, seeds)
    evaluator = Evaluator(
        spec, args.eval_episodes, seeds=seeds, workers=args.eval_workers, dataset_path=runs.dataset_path
    )

    def begin_evaluation(step: int, params: Params) -> None:
        """Evaluate what the seeds have learned by `step`, beside training, once the evaluation before has ended."""
        log_evaluation(wait=True)
        evaluator.submit(step, policy(params), stop.requested)

    def log_evaluation(*, wait: bool) -> None:
        """Log the evaluation that is under way, if it has ended or is to be waited for."""
        finished = evaluator.finished(wait=wait)
        if finished is not None:
            progress.report_evaluation(finished[0], runs.log_evaluation(*finished))

    def save() -> None:
        runs.save(step, jax.device_get(Checkpoint(states, replays, unlogged.values)))

    with (
        contextlib.ExitStack() as stack,
        session.StopSignals() as stop,
        session.Progress(total, initial=step, seconds=runs.seconds, on_cpu=on_cpu) as progress,
    ):
        for closable in (runs, batches_ahead, evaluator):
            stack.callback(closable.close)
        for missed, checkpoint in runs.missed_evaluations(Checkpoint(like.state)):
            begin_evaluation(missed, checkpoint.state.params)
        while True:
            if runs.is_due(step):
                save()
                begin_evaluation(step, states.params)
            log_evaluation(wait=step == total or one_core)
            if step == total or stop.requested():
                break

            end = end_of_chunk(step)
            if step < args.offline_steps:
                data = batches_ahead(step, end, end_of_chunk(end)) if on_host else device_data
                chunk = compile_chunk(end - step)
                with progress.timed(end):
                    states, metrics = jax.block_until_ready(chunk(states, data, train_keys))
            else:
                environments, explore, learn = begin_exploring()
                with progress.timed(end):
                    observations = placement.spread(environments.observations)
                    actions = np.asarray(explore(states.params, observations, exploration_keys, step))[: len(seeds)]
                    transitions = placement.spread(Batch(**environments.step(actions)))
                    learned = learn(states, replays, device_data, train_keys, transitions)
                    states, replays, metrics = jax.block_until_ready(learned)
            unlogged.add(step, jax.device_get(metrics))
            step = end

            if step % args.log_interval == 0 or step in (args.offline_steps, total):
                first = (step - 1) // args.log_interval * args.log_interval
                if step > args.offline_steps:
                    first = max(first, args.offline_steps)  # which has a row of its own
                    runs.log("exploration", step, environments.summaries())
                means = unlogged.means(first, step)
                runs.log("train", step, means)
                runs.log("time", step, [progress.times()] * len(seeds))
                shown = ("critic/loss", "critic/q_mean", "actor/q_mean")
                progress.report({name: float(np.mean([mean[name] for mean in means])) for name in shown})
            if runs.minutes_since_save() >= args.save_minutes:
                save()
        save()
    runs.print_outcome(step, total)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
