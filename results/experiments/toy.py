"""The claim itself, where everything is known: four separated modes of actions, one of them good, and a known Q.

python results/experiments/toy.py

One state. The data set's actions lie in four discs; Q is a wide hill with its top in one of them, so that it pulls
every action across the gaps. Actors learn with `actor_loss` of drol.py and fql.py, whose critic is this Q. Writes
toy/scores.csv and toy/actions.csv and, made from these, toy/toy.pdf and toy/toy.png.
"""

import dataclasses
import functools
import pathlib
import types

import basics
import drol
import figures
import fql
from common import command_line
from common.errors import exit_in_one_line
from common.replay import Batch

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float

CENTRES = np.array([[0.6, 0.6], [0.6, -0.6], [-0.6, 0.6], [-0.6, -0.6]])  # of the modes; the first is the good one
RADIUS = 0.12
HILL = 0.8  # standard deviation of Q's hill
NUM_CANDIDATES = (1, 2, 4, 8, 16, 32)
SHOWN = ("DROL(1)", "FQL", "DROL(16)")


class KnownQ(drol.MLP):
    """Q(s, a) = exp(-||a - top||^2 / 2 HILL^2) of both members: an MLP in nothing but its type."""

    top: Float[Array, "ensemble action"]

    def __init__(self):
        self.layers, self.norms = [], []
        self.top = jnp.tile(jnp.asarray(CENTRES[:1], jnp.float32), (2, 1))

    def __call__(self, observation: Float[Array, " _"], action: Float[Array, " action"]) -> Float[Array, " 1"]:
        """Of one action."""
        return hill(((action - self.top) ** 2).sum())[None]


def hill(squared_distance):
    """Q at this squared distance from its top."""
    return jnp.exp(-squared_distance / (2 * HILL**2))


@dataclasses.dataclass(frozen=True)
class ToyArgs:
    """DROL and FQL on a two-dimensional toy, with a known Q."""

    bc_coef: float = 10.0
    """Weight of imitation (FQL: alpha); the losses of improvement are both normalised."""
    updates: int = 2000
    """Adam steps."""
    seeds: int = 3
    """Seeds, trained together."""
    samples: int = 1000
    """Actions of the policy that are judged."""
    out: pathlib.Path = basics.RESULTS / "toy"
    """Folder to write to."""


def settings(algorithm: types.ModuleType, **given):
    """Complete arguments: small networks, everything else the algorithm's own."""
    small = {"hidden_sizes": (32, 32), "batch_size": 64, "learning_rate": 3e-3, "normalize_q_loss": True}
    return basics.settings(algorithm, "cube-single", **small, **given)


def sample_batch(size: int, key: Array) -> Batch:
    """Actions uniform over the discs, always in the one state."""
    mode_key, place_key = jax.random.split(key)
    centres = jnp.asarray(CENTRES, jnp.float32)[jax.random.randint(mode_key, (size,), 0, len(CENTRES))]
    within = drol.sample_latents(place_key, (size, 2)) / jnp.sqrt(2)  # the unit disc
    one = jnp.ones(size)
    return Batch(one[:, None], centres + RADIUS * within, one, one, one[:, None])


def train(algorithm: types.ModuleType, args, updates: int, key: Array, latents: Array | None = None):
    """Parameters after some updates of the actor, with the known Q in place of the critic.

    `latents` [K, 2], if given, are the same K latents in every update and for every action, in place of fresh ones.
    """
    init_key, train_key = jax.random.split(key)
    params = dataclasses.replace(algorithm.init_params(args, (1,), 2, init_key), critic=KnownQ())
    optimizer = algorithm.optimizer(args)

    def one_update(carry, step: Array):
        params, opt_state = carry
        batch_key, noise_key = jax.random.split(jax.random.fold_in(train_key, step))
        noise = algorithm.sample_noise(args, 2, noise_key)
        if latents is not None:
            noise = dataclasses.replace(noise, latents=jnp.broadcast_to(latents, noise.latents.shape))
        batch = sample_batch(args.batch_size, batch_key)
        grads = jax.grad(lambda params: algorithm.actor_loss(args, params, batch, noise)[0])(params)
        changes, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, changes), opt_state), None

    return jax.lax.scan(one_update, (params, optimizer.init(params)), jnp.arange(updates))[0][0]


def policy_actions(algorithm: types.ModuleType, args, params, samples: int, key: Array) -> Float[Array, "samples 2"]:
    """What the policy does in the one state."""
    keys = jax.random.split(key, samples)
    return jax.vmap(functools.partial(algorithm.sample_action, args, params, jnp.ones(1)))(keys)


def scores(actions: np.ndarray) -> dict[str, float]:
    """Of a policy's actions [samples, 2]."""
    distances = np.linalg.norm(actions[:, None] - CENTRES, axis=-1)  # [samples, modes]
    outside = np.maximum(distances.min(axis=1) - RADIUS, 0)
    near = (distances < 2 * RADIUS).mean(axis=0)
    return {
        "modes": int((near > 0.01).sum()),  # with more than 1 % of the actions within two radii
        "share_of_good_mode": float(near[0]),
        "share_near_a_mode": float(near.sum()),
        "q": float(hill(distances[:, 0] ** 2).mean()),
        "distance_to_support": float(outside.mean()),
    }


def measure(args: ToyArgs) -> None:
    """Both CSV files."""
    methods = {f"DROL({k})": (drol, settings(drol, num_candidates=k, bc_coef=args.bc_coef)) for k in NUM_CANDIDATES}
    methods["FQL"] = (fql, settings(fql, alpha=args.bc_coef))
    keys = jax.vmap(jax.random.key)(jnp.arange(args.seeds))
    rows, points = [], []
    for name, (algorithm, its) in methods.items():

        def run(key: Array, algorithm=algorithm, its=its) -> Array:
            params = train(algorithm, its, args.updates, key)
            return policy_actions(algorithm, its, params, args.samples, jax.random.fold_in(key, 1))

        of_seeds = np.asarray(jax.jit(jax.vmap(run))(keys))
        judged = list(map(scores, of_seeds))
        rows += [(name, seed, *(f"{value:.4g}" for value in each.values())) for seed, each in enumerate(judged)]
        if name in SHOWN:
            points += [(name, f"{x:.3f}", f"{y:.3f}") for x, y in of_seeds[0][:400]]
        print(name, {key: round(float(np.mean([each[key] for each in judged])), 3) for key in judged[0]}, flush=True)
    basics.write_csv(args.out / "scores.csv", ("method", "seed", *judged[0]), rows)
    basics.write_csv(args.out / "actions.csv", ("method", "x", "y"), points)


def render(folder: pathlib.Path) -> None:
    """toy.pdf and toy.png from the CSV files."""
    rows, points = (basics.read_csv(folder / name) for name in ("scores.csv", "actions.csv"))
    figure, axes = plt.subplots(2, 3, figsize=(8.6, 6.0), layout="constrained", height_ratios=(1.35, 1))

    titles = {
        "DROL(1)": "one tether: DROL with K = 1\nregresses to the mean",
        "FQL": "FQL\neach latent has one target",
        "DROL(16)": "DROL(16)\neach mode keeps a winner",
    }
    grid = np.linspace(-1, 1, 101)
    q = np.exp(-((grid[:, None] - CENTRES[0, 1]) ** 2 + (grid - CENTRES[0, 0]) ** 2) / (2 * HILL**2))
    for ax, name in zip(axes[0], SHOWN, strict=True):
        image = ax.contourf(grid, grid, q, levels=np.linspace(0, 1, 11), cmap="Greens", alpha=0.75)
        for x, y in CENTRES:
            ax.add_patch(plt.Circle((x, y), RADIUS, fc="none", ec="k", lw=1.4, zorder=4))
        shown = points[points["method"] == name]
        ax.plot(shown["x"], shown["y"], ".", c="#D55E00" if name == "FQL" else "#0072B2", ms=4, alpha=0.6, zorder=3)
        ax.set(aspect="equal", xlim=(-1, 1), ylim=(-1, 1), xlabel="action 1", ylabel="action 2")
        ax.set_title(titles[name], fontsize=9)
    figure.colorbar(image, ax=axes[0, :], label="Q (known)", shrink=0.85)

    labels = {
        "share_near_a_mode": "actions near a mode (share)",
        "q": "mean Q of the policy",
        "distance_to_support": "mean distance to the discs",
    }
    for ax, (metric, label) in zip(axes[1], labels.items(), strict=True):
        by_k = [rows[metric][rows["method"] == f"DROL({k})"] for k in NUM_CANDIDATES]
        ax.plot(NUM_CANDIDATES, by_k, ".", c="#0072B2", ms=4, alpha=0.5)
        ax.plot(NUM_CANDIDATES, np.mean(by_k, axis=1), "o-", c="#0072B2", ms=4, label="DROL")
        of_fql = rows[metric][rows["method"] == "FQL"]
        ax.axhline(np.mean(of_fql), c="#D55E00", ls="--", label="FQL")
        ax.axhspan(min(of_fql), max(of_fql), color="#D55E00", alpha=0.12, lw=0)
        ax.set_xscale("log", base=2)
        ax.set_xticks(NUM_CANDIDATES, NUM_CANDIDATES)
        ax.set(xlabel="K, candidates a state", ylabel=label, ylim=(0, None))
        ax.grid(alpha=0.3, lw=0.5)
    axes[1, 0].legend(fontsize=8)
    figure.suptitle(
        "Circles: the data's four modes. Dots: 400 actions of the policy. Below: mean and each of "
        f"{len(np.unique(rows['seed']))} seeds (FQL: mean and range)",
        fontsize=8,
    )
    figures.save(figure, folder / "toy")


def main(args: ToyArgs) -> None:
    """Learn, then draw."""
    measure(args)
    render(args.out)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(ToyArgs)))
