"""DROL: one-step offline reinforcement learning with top-1 dynamic routing, in one file.

    python drol.py --env-id cube-double

Preserve Support, Not Correspondence: Dynamic Routing for Offline Reinforcement Learning (Mu, Zhao, Zhong, Zhang, 2026,
arXiv 2604.22229). A one-step actor f(s, z) maps a state and a latent to an action. For each data set action, K latents
propose candidates, and the one nearest to the action wins: it alone is pulled towards that action, and it alone is
improved by the critic. The other latents stay free to cover other actions in the data. With K = 1 nothing is routed:
L_bc = E ||clip(f(s, z)) - a||^2 / d of one random latent z, which takes, alone, every f(s, z) to the mean E[a | s].

By default an update costs K + 2 forward passes of the actor (K to route, the winner, the next action) and 1 backward;
of each critic 2 forward (data action, winner), 2 backward (one as to the action alone), and 1 forward of its target.
Of images, each network's encoder (common/encoder.py) sees each state once, whatever K: 4 passes forward, 2 backward.

Files, environments, logs, and the rest of `--help` (RunArgs in common/arguments.py) are in common/.
`diff drol.py fql.py` shows what the two algorithms do differently, and nothing else.

Deviations from the reference implementation:
1. Many updates run in one compiled loop, on batches that were sampled for all of them before, on the device (where the
   data fits there).
2. Evaluation starts from fixed seeds, and a fixed assignment spreads its episodes over parallel environments, which run
   beside training.
3. The winner is chosen in a pass without gradient, and actor and critic run with gradient on the winning latent alone.
   Loss and gradient are the same as if all K candidates carried gradient; the cost is not.
"""

import dataclasses
import functools
import itertools
from typing import Annotated, Any, Literal, NamedTuple

from common.arguments import Count, RunArgs, Weight, from_command_line
from common.encoder import ImageNetwork, behind_encoder, num_features, see
from common.env_ids import EnvSpec
from common.errors import UserError, exit_in_one_line
from common.evaluation import Evaluations
from common.exploration import Explorer
from common.replay import Batch, Batches, Dataset, Replay, add_transition, empty_replay, sample_replay
from common.roles import Needs, Role
from common.runs import Runs
from common.scan import scan
from common.seeds import Seeds
from common.session import Session
from common.without_training import without_training

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Shaped
from pydantic import Field

ALGORITHM = "drol"

PRNGKey = Key[Array, ""]
Scalar = Float[Array, ""]
Metrics = dict[str, Scalar]
Agg = Literal["mean", "min"]  # over the ensemble of critics
NUM_CRITICS = 2


# ---- Arguments -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """Train offline. What is left unset takes the value that arXiv 2604.22229 published for the environment."""

    # Training
    offline_steps: Annotated[int | None, Field(ge=1, lt=10**9), Role.SIZE, Role.RESUME] = None
    """Number of updates (published: 1,000,000 on OGBench, 500,000 on D4RL)."""
    batch_size: Count = 256
    """Transitions a batch, sampled uniformly with replacement."""
    hidden_sizes: Annotated[tuple[Count, ...], Field(min_length=1), Role.SIZE] = (512, 512, 512, 512)
    """Widths of the hidden layers of every network."""
    encoder_sizes: Annotated[tuple[Count, ...], Field(min_length=2), Role.SIZE] = (16, 32, 32, 512)
    """Of images: channels of the stages of each network's encoder (IMPALA's), and last the features of an image."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 3e-4
    """Adam's step size."""
    discount: Annotated[float, Field(ge=0, le=1)] | None = None
    """Discount of the Bellman target."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Step of the target critic towards the critic."""
    q_agg: Agg | None = None
    """Aggregation of the target critics in the Bellman target."""

    # DROL
    bc_coef: Weight | None = None
    """Weight of behaviour cloning against improvement: the one to tune (published: 0.03 to 10)."""
    q_coef: Weight = 1.0
    """Weight of improvement."""
    num_candidates: Count | None = None
    """K, the number of candidates a state; if unset 16, which is DROL(16), or that of --drol-star."""
    drol_star: bool = False
    """DROL*: the K that the paper tuned for the environment, instead of 16."""
    actor_q_agg: Agg = "min"
    """Aggregation of the critics in the actor's loss."""
    normalize_q_loss: bool = True
    """Divide the improvement loss by the mean absolute Q-value of the actions that are improved."""
    critic_num_candidates: Count = 1
    """Next actions that the Bellman target takes the best of, by the minimum of the target critics."""
    inference_num_samples: Annotated[Count | None, Role.EVALUATE] = None
    """Actions that the evaluated policy takes the best of, by the critics; a single one if unset."""
    inference_density_top_k: Annotated[Count | None, Role.EVALUATE, Needs("inference_num_samples", 2)] = None
    """Of those, judge only so many: the ones with the smallest mean squared distance to the others."""
    inference_q_agg: Annotated[Agg | None, Role.EVALUATE, Needs("inference_num_samples", 2)] = None
    """Aggregation of the critics for inference_num_samples; the mean if unset."""


class Published(NamedTuple):
    """What the appendix of the paper tabulates. The first is the one to tune."""

    bc_coef: float
    discount: float
    q_agg: Agg
    star_k: int | None  # the K of DROL*, taken with --drol-star only: else K = 16 everywhere, which is DROL(16)


DEFAULT = Published(1.0, 0.99, "mean", None)  # where nothing is published
OFFLINE_STEPS = {"ogbench": 1_000_000, "d4rl": 500_000, "d4rl_hdf5": 500_000, "gymnasium": 1_000_000}
VISUAL = {"offline_steps": 500_000, "frame_stack": 3, "p_aug": 0.5}  # OGBench's visual tasks: FQL's, of all five
PUBLISHED = {
    # OGBench: --env-id antmaze-large (or antmaze-large-task2, ..) is the navigate set, cube-double the play set.
    "antmaze-large-navigate": Published(0.03, 0.995, "min", star_k=16),
    "antmaze-giant-navigate": Published(0.03, 0.995, "min", star_k=1),
    "humanoidmaze-medium-navigate": Published(0.3, 0.995, "mean", star_k=16),
    "humanoidmaze-large-navigate": Published(0.3, 0.995, "mean", star_k=4),
    "antsoccer-arena-navigate": Published(0.1, 0.995, "mean", star_k=4),
    "cube-single-play": Published(10.0, 0.99, "mean", star_k=16),
    "cube-double-play": Published(3.0, 0.99, "mean", star_k=64),
    "scene-play": Published(3.0, 0.99, "mean", star_k=64),
    "puzzle-3x3-play": Published(0.3, 0.99, "mean", star_k=32),
    "puzzle-4x4-play": Published(10.0, 0.99, "mean", star_k=64),
    # D4RL, through Minari: --env-id as it stands here.
    "antmaze-umaze": Published(0.3, 0.99, "mean", star_k=2),
    "antmaze-medium-play": Published(0.1, 0.99, "mean", star_k=32),
    **dict.fromkeys(("antmaze-umaze-diverse", "antmaze-medium-diverse"), Published(0.1, 0.99, "mean", star_k=16)),
    **dict.fromkeys(("antmaze-large-play", "antmaze-large-diverse"), Published(0.1, 0.99, "mean", star_k=16)),
    **dict.fromkeys(("pen-human", "pen-cloned", "pen-expert"), Published(1.0, 0.99, "min", star_k=16)),
    **dict.fromkeys(("door-human", "door-cloned", "door-expert"), Published(10.0, 0.99, "min", star_k=8)),
    **dict.fromkeys(("hammer-human", "hammer-cloned", "hammer-expert"), Published(3.0, 0.99, "min", star_k=8)),
    **dict.fromkeys(("relocate-human", "relocate-cloned", "relocate-expert"), Published(10.0, 0.99, "min", star_k=32)),
}


def published_settings(args: Args, spec: EnvSpec) -> tuple[Literal["published", "default"], dict[str, Any]]:
    """What arguments take that are left unset, and whether the paper has it."""
    settings = PUBLISHED.get(spec.family, DEFAULT)._asdict() | {"offline_steps": OFFLINE_STEPS[spec.suite]}
    settings |= VISUAL if spec.is_visual else {}
    star_k = settings.pop("star_k")
    if args.drol_star and star_k is None:
        raise UserError(f"--drol-star: the paper has no tuned K for {spec.family}; give --num-candidates")
    if args.drol_star and args.num_candidates not in (None, star_k):
        raise UserError(f"--drol-star is K = {star_k} here: leave --num-candidates out")
    settings["num_candidates"] = star_k if args.drol_star else 16
    return "published" if spec.family in PUBLISHED else "default", settings


def method(args: Args) -> str:
    """What plots and tables call it."""
    return "DROL*" if args.drol_star else f"DROL({args.num_candidates})"


# ---- Networks and state ----------------------------------------------------------------------------------------------
# Networks take one example; losses and policies vmap them over the batch.


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
        key: PRNGKey,
    ):
        sizes = (in_size, *hidden_sizes, out_size)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = [_linear(*fan, key=k) for fan, k in zip(itertools.pairwise(sizes), keys, strict=True)]
        self.norms = [eqx.nn.LayerNorm(size, eps=1e-6) for size in hidden_sizes] if layer_norm else []

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " out"]:
        """Apply the network to its inputs, concatenated (x W^T + b: a LayerNorm is one kernel on a GPU then)."""
        x = jnp.concatenate(inputs)
        for index, layer in enumerate(self.layers[:-1]):
            x = jax.nn.gelu(x @ layer.weight.T + layer.bias, approximate=True)
            if self.norms:
                x = self.norms[index](x)
        return x @ self.layers[-1].weight.T + self.layers[-1].bias


def _linear(fan_in: int, fan_out: int, *, key: PRNGKey) -> eqx.nn.Linear:
    """Glorot uniform kernel and zero bias, unlike Equinox's own initialisation."""
    layer = eqx.filter_eval_shape(eqx.nn.Linear, fan_in, fan_out, key=key)
    weight = jax.nn.initializers.glorot_uniform()(key, (fan_out, fan_in))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, jnp.zeros(fan_out)))


Network = MLP | ImageNetwork  # the members of an ensemble of ImageNetworks share the encoder


class Params(eqx.Module):
    """Everything that is optimised."""

    critic: Network  # Q_i(s, a); every array has a leading axis for the ensemble i = 1, .., NUM_CRITICS
    actor: Network  # f(s, z), not clipped


class TrainState(eqx.Module):
    """Everything that an update changes."""

    params: Params
    target_critic: Network
    opt_state: optax.OptState
    step: Int[Array, ""]  # updates so far


def init_params(args: Args, observation_shape: tuple[int, ...], action_dim: int, key: PRNGKey) -> Params:
    """Fresh networks."""
    critic_key, actor_key = jax.random.split(key)
    of_images = functools.partial(behind_encoder, observation_shape, args.encoder_sizes)  # where they are images
    in_size = num_features(observation_shape, args.encoder_sizes) + action_dim
    return Params(
        critic=of_images(init_critic(args, in_size, critic_key), critic_key),
        actor=of_images(MLP(in_size, action_dim, args.hidden_sizes, key=actor_key), actor_key),
    )


def init_critic(args: Args, in_size: int, key: PRNGKey) -> MLP:
    """The ensemble."""
    init_member = functools.partial(MLP, in_size, 1, args.hidden_sizes, layer_norm=True)
    return eqx.filter_vmap(lambda key: init_member(key=key))(jax.random.split(key, NUM_CRITICS))


def init_state(args: Args, observation_shape: tuple[int, ...], action_dim: int, key: PRNGKey) -> TrainState:
    """Fresh networks, target equal to critic, zero Adam moments."""
    params = init_params(args, observation_shape, action_dim, key)
    target_critic = jax.tree.map(jnp.copy, params.critic)  # a copy: no buffer can be donated to a chunk twice
    return TrainState(params, target_critic, optimizer(args).init(params), jnp.zeros((), jnp.int32))


def optimizer(args: Args) -> optax.GradientTransformation:
    """One Adam over all parameters (betas 0.9 and 0.999, eps 1e-8), in one vector: 18 kernels less on a GPU."""
    return optax.flatten(optax.adam(args.learning_rate))


def q_values(
    critic: Network, observations: Shaped[Array, " batch *observation"], actions: Float[Array, "batch action"]
) -> Float[Array, "ensemble batch"]:
    """Q_i(s, a) of every member of the ensemble."""
    features, members = see(critic, observations)
    return jax.vmap(lambda member: jax.vmap(member)(features, actions)[:, 0])(members)


def aggregate(q: Float[Array, "ensemble batch"], q_agg: Agg) -> Float[Array, " batch"]:
    """agg_i Q_i."""
    return q.mean(axis=0) if q_agg == "mean" else q.min(axis=0)


# ---- Latents: every random draw of an update but the batch -----------------------------------------------------------


def sample_latents(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Uniform in the ball of radius sqrt(d): the first d coordinates of a uniform direction in d + 2 dimensions."""
    *batch, d = shape
    x = jax.random.normal(key, (*batch, d + 2))
    return jnp.sqrt(d) * x[..., :d] / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Noise(eqx.Module):
    """What `sample_noise` draws for one update."""

    next_latents: Float[Array, "batch *best_of action"]  # of the next action in the Bellman target, or of N of them
    latents: Float[Array, "batch candidates action"]  # of the K candidates


def sample_noise(args: Args, action_dim: int, key: PRNGKey) -> Noise:
    """Fresh for each update."""
    next_key, candidates_key = jax.random.split(key)
    best_of = () if args.critic_num_candidates == 1 else (args.critic_num_candidates,)
    return Noise(
        next_latents=sample_latents(next_key, (args.batch_size, *best_of, action_dim)),
        latents=sample_latents(candidates_key, (args.batch_size, args.num_candidates, action_dim)),
    )


# ---- Policy ----------------------------------------------------------------------------------------------------------


def sample_action(
    args: Args, params: Params, observation: Shaped[Array, "*observation"], key: PRNGKey
) -> Float[Array, " action"]:
    """The policy: one latent, one pass of the actor, clipped; or, if asked for, the best of several."""
    if args.inference_num_samples not in (None, 1):
        return sample_best_action(args, params, observation, key)
    features, actor = see(params.actor, observation)
    return jnp.clip(actor(features, sample_latents(key, (actor.layers[-1].out_features,))), -1, 1)


def sample_next_actions(
    args: Args, params: Params, target_critic: Network, batch: Batch, noise: Noise
) -> Float[Array, "batch action"]:
    """a' of the Bellman target: a fresh sample of the policy; or, if asked for, the best of several."""
    if args.critic_num_candidates > 1:
        return best_next_actions(params, target_critic, batch, noise)
    features, actor = see(params.actor, batch.next_observations)
    return jnp.clip(jax.vmap(actor)(features, noise.next_latents), -1, 1)


# ---- Losses ----------------------------------------------------------------------------------------------------------


def actor_loss(args: Args, params: Params, batch: Batch, noise: Noise) -> tuple[Scalar, Metrics]:
    """bc_coef * L_bc + q_coef * L_q of the winning candidates (arXiv 2604.22229)."""

    # Route: w = argmin_k ||c_k - a||^2 of the candidates c_k = clip(f(s, z_k), -1, 1). An argmin has no gradient, and
    # only the winner gets one: so all K are computed without, and the winner once more with it.
    features, actor = see(params.actor, batch.observations)
    router = jax.vmap(jax.vmap(jax.lax.stop_gradient(actor), in_axes=(None, 0)))
    candidates = jnp.clip(router(jax.lax.stop_gradient(features), noise.latents), -1, 1)  # [batch, K, action]
    distances = ((candidates - batch.actions[:, None]) ** 2).sum(axis=-1)
    winner = distances.argmin(axis=1)
    winning_latents = jnp.take_along_axis(noise.latents, winner[:, None, None], axis=1)[:, 0]
    actions = jnp.clip(jax.vmap(actor)(features, winning_latents), -1, 1)

    # Behaviour cloning: L_bc = mean over the batch of ||c_w - a||^2 / d.
    bc_loss = ((actions - batch.actions) ** 2).mean()

    # Improvement: L_q = -mean over the batch of agg_i Q_i(s, c_w).
    frozen_critic = jax.lax.stop_gradient(params.critic)  # the critic judges actions, it does not learn to praise them
    q = aggregate(q_values(frozen_critic, batch.observations, actions), args.actor_q_agg)
    q_loss = -q.mean()
    if args.normalize_q_loss:
        scale = 1 / jnp.maximum(jnp.abs(q).mean(), 1e-6)
        q_loss = jax.lax.stop_gradient(scale) * q_loss  # a change of units, not something to optimise

    loss = args.bc_coef * bc_loss + args.q_coef * q_loss
    return loss, {
        "actor/loss": loss,
        "actor/bc_loss": bc_loss,
        "actor/q_loss": q_loss,
        "actor/q_mean": q.mean(),
        "actor/divergence": candidates.var(axis=1).mean(),  # of candidates: mean of ||c_k - mean_k c_k||^2 / d
    }


def critic_loss(
    args: Args, params: Params, target_critic: Network, batch: Batch, noise: Noise
) -> tuple[Scalar, Metrics]:
    """Mean over batch and i of (Q_i(s, a) - y)^2, y = r + discount * m * agg_i Qtarget_i(s', a').

    m = 0 where the task is complete. Where a trajectory ends otherwise, at a time limit say, y bootstraps: m = 1.
    """
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


# ---- The best of several actions: off by default ---------------------------------------------------------------------


def sample_best_action(
    args: Args, params: Params, observation: Shaped[Array, "*observation"], key: PRNGKey
) -> Float[Array, " action"]:
    """The best of inference_num_samples actions of the policy, or of the densest of them."""
    features, actor = see(params.actor, observation)
    latents = sample_latents(key, (args.inference_num_samples, actor.layers[-1].out_features))
    candidates = jnp.clip(jax.vmap(actor, in_axes=(None, 0))(features, latents), -1, 1)
    if args.inference_density_top_k is not None:
        candidates = densest(candidates, args.inference_density_top_k)
    return best_action(params.critic, args.inference_q_agg or "mean", observation, candidates)


def best_next_actions(
    params: Params, target_critic: Network, batch: Batch, noise: Noise
) -> Float[Array, "batch action"]:
    """a' as the best of N samples of the policy, by the minimum of the target critics."""
    features, actor = see(params.actor, batch.next_observations)
    act = jax.vmap(jax.vmap(actor, in_axes=(None, 0)))
    candidates = jnp.clip(act(features, noise.next_latents), -1, 1)  # [batch, N, action]
    return jax.vmap(functools.partial(best_action, target_critic, "min"))(batch.next_observations, candidates)


def best_action(
    critic: Network, q_agg: Agg, observation: Shaped[Array, "*observation"], candidates: Float[Array, "N action"]
) -> Float[Array, " action"]:
    """The candidate with the largest agg_i Q_i(s, c)."""
    features, members = see(critic, observation)
    features = jnp.broadcast_to(features, (len(candidates), len(features)))
    return candidates[aggregate(q_values(members, features, candidates), q_agg).argmax()]


def densest(candidates: Float[Array, "N action"], top_k: int) -> Float[Array, "top_k action"]:
    """The candidates with the smallest mean squared distance to the others."""
    distances = ((candidates[:, None] - candidates) ** 2).mean(axis=(1, 2))  # the one to itself, 0, changes no order
    return candidates[jnp.argsort(distances)[:top_k]]


# ---- Update ----------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)  # traced once, for chunks of all lengths
def update(args: Args, state: TrainState, batch: Batch, noise: Noise) -> tuple[TrainState, Metrics]:
    """One gradient step on both losses, taken at the same parameters, and one step of the target critic."""

    def total_loss(params: Params) -> tuple[Scalar, Metrics]:
        c_loss, c_metrics = critic_loss(args, params, state.target_critic, batch, noise)
        a_loss, a_metrics = actor_loss(args, params, batch, noise)
        return c_loss + a_loss, c_metrics | a_metrics

    grads, metrics = jax.grad(total_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(args).update(grads, state.opt_state, state.params)
    # The target follows the critic from before this update.
    target_critic = jax.tree.map(
        lambda q, target: args.tau * q + (1 - args.tau) * target, state.params.critic, state.target_critic
    )
    return TrainState(optax.apply_updates(state.params, updates), target_critic, opt_state, state.step + 1), metrics


def keys_of_update(key: PRNGKey, step: Int[Array, ""]) -> tuple[PRNGKey, PRNGKey]:
    """For the batch and for the noise. They depend on the number of the update alone, however runs are cut."""
    batch_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
    return batch_key, noise_key


def train_chunk(
    args: Args, state: TrainState, batches: Batch, key: PRNGKey
) -> tuple[TrainState, dict[str, Float[Array, " updates"]]]:
    """An update with each of these batches, in one loop on the device."""
    _, noise_keys = jax.vmap(functools.partial(keys_of_update, key))(state.step + jnp.arange(len(batches.rewards)))

    def one_update(state: TrainState, inputs: tuple[Batch, PRNGKey]) -> tuple[TrainState, Metrics]:
        batch, noise_key = inputs
        return update(args, state, batch, sample_noise(args, batch.actions.shape[1], noise_key))

    return scan(one_update, state, (batches, noise_keys))


def online_update(
    args: Args, state: TrainState, replay: Replay, dataset: Dataset, key: PRNGKey, transition: Batch
) -> tuple[TrainState, Replay, Metrics]:
    """Fine-tuning: remember a transition, learn from data set and ring (or, with balanced_sampling, half from each)."""
    replay = add_transition(replay, transition)
    batch_key, noise_key = keys_of_update(key, state.step)
    batch = sample_replay(dataset, replay, args.batch_size, args.balanced_sampling, batch_key)
    state, metrics = update(args, state, batch, sample_noise(args, batch.actions.shape[1], noise_key))
    return state, replay, metrics


# ---- Main ------------------------------------------------------------------------------------------------------------


def main(args: Args) -> list | None:
    """Load, initialise, then chunk by chunk: update, log, save, evaluate. Only here is there more than one seed."""
    if args.print_config or args.evaluate is not None:  # settings as JSON; a saved policy evaluated, and filmed
        return without_training(args, ALGORITHM, published_settings, init_state, sample_action)

    # Arguments: given, else published, else default; or those of the runs that --resume names.
    begin = Runs.reopen if args.resume else Runs.start
    runs = begin(args, ALGORITHM, published_settings)
    dataset = runs.load_dataset()
    args, seeds = runs.args, Seeds(runs.seeds)  # every array below has a leading axis of seeds, spread over the devices
    states = seeds.initialise(functools.partial(init_state, args, dataset.observation_shape, dataset.action_dim))
    replays = seeds.initialise(lambda key: empty_replay(args, dataset))
    states, replays = runs.restore(seeds, states, replays)  # where they stand, if they are resumed
    train = seeds.vmap(functools.partial(train_chunk, args), donate=[0])
    fine_tune = seeds.vmap(functools.partial(online_update, args), shared=[2], donate=[0, 1])

    with Session(runs, seeds) as session:  # progress, Ctrl-C, the end of what works in the background
        batches = session.closing(Batches(args, dataset, seeds, keys_of_update, session.end_of_chunk))
        dataset = batches.dataset  # on the device, where it fits there: the copy on the host goes
        act = functools.partial(sample_action, args)
        evaluations, explorer = session.closing(Evaluations(session, act)), session.closing(Explorer(session, act))
        evaluations.make_up_for_missed()

        for step, end in session.chunks():  # to the last update, or to the first Ctrl-C; online of one update each
            if step < args.offline_steps:
                states, metrics = train(states, batches(step, end), seeds.keys.train)
            else:  # fine-tuning online: a step in the environment, and one update
                transitions = explorer.step(step, states.params)
                states, replays, metrics = fine_tune(states, replays, dataset, seeds.keys.train, transitions)
            session.log(end, metrics, explorer)  # a row of train.csv holds means over --log-interval updates
            if runs.save_is_due(end):  # each --save-minutes, and wherever an evaluation is due
                runs.save(end, states, replays)
            if runs.evaluation_is_due(end):  # each --eval-interval, and at the end
                evaluations.begin(end, states.params)  # waits for the one before, then runs beside training, on a copy
            evaluations.log_finished()
        runs.save(session.step, states, replays)
        evaluations.log_finished(wait=True)
    return runs.outcomes(session.step)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(from_command_line(Args)))
