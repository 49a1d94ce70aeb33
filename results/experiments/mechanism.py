"""Routing at work: cells, winners and handoffs of DROL in training on pointmaze, whose actions have two dimensions.

python results/experiments/mechanism.py

Trains with `update` of drol.py, once as it is and once by imitation alone, and measures in every update how many data
actions change their winner (the same latents before and after) and how far winners move. After some numbers of updates
it lets improvement alone take a few steps, which shows what routing does when a winner leaves. Writes
mechanism/handoff.csv, improvement.csv, candidates.csv and q.csv and, made from these, mechanism.pdf and mechanism.png.
"""

import dataclasses
import functools
import pathlib

import basics
import drol
import figures
from common import command_line
from common.arguments import RunArgs
from common.data import sources
from common.env_ids import resolve
from common.errors import UserError, exit_in_one_line
from common.replay import Batch, Dataset, sample_batch
from common.seeds import keys_of_runs

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import Voronoi, voronoi_plot_2d

METHODS = {"DROL": 1.0, "imitation alone": 0.0}  # q_coef
PROBES = 512  # data actions at which an improvement step is looked at
GRID = np.linspace(-1, 1, 33)  # of each action, for Q
PANELS = ("early", "a handoff", "a stable winner")
WHAT = ("data", "before", "after")  # in candidates.csv
CURVES = {
    "handed_off": "share of actions handed off\nin an update",
    "winner_moved": "how far a winner moves\nin an update",
}
DISTANCES = {
    "distance_before": ("winner, before", "0.6"),
    "distance_of_old_winner": ("the same candidate, after", "#D55E00"),
    "distance_of_new_winner": ("winner, after", "#0072B2"),
}


@dataclasses.dataclass(frozen=True)
class MechanismArgs:
    """Voronoi cells, winners and handoffs of DROL on pointmaze-medium."""

    num_candidates: int = 16
    """K."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    updates: tuple[int, int, int] = (100, 1000, 5000)
    """Numbers of updates after which an improvement step is looked at, a panel each; training ends with the last."""
    interval: int = 100
    """Updates that a row of handoff.csv is the mean of; divides the others."""
    distance: float = 0.3
    """How far an improvement step moves a winner (actions are within -1 and 1)."""
    seeds: int = 3
    """Seeds, trained together."""
    episodes: int = 100
    """Episodes of the data set, collected if it is not there."""
    dataset_dir: pathlib.Path = pathlib.Path("~/.ogbench/data")
    """Folder of the data set."""
    out: pathlib.Path = basics.RESULTS / "mechanism"
    """Folder to write to."""


def propose(
    actor: drol.MLP, observations: Float[Array, "batch observation"], latents: Float[Array, "batch K 2"]
) -> Float[Array, "batch K 2"]:
    """The candidates of each state."""
    return jnp.clip(jax.vmap(jax.vmap(actor, in_axes=(None, 0)))(observations, latents), -1, 1)


def handoff(
    before: Float[Array, "batch K 2"], after: Float[Array, "batch K 2"], actions: Float[Array, "batch 2"]
) -> dict[str, Float[Array, " batch"]]:
    """What becomes of each action's winner, from the candidates of the same latents before and after a change."""
    distances, distances_after = (jnp.linalg.norm(c - actions[:, None], axis=-1) for c in (before, after))
    rows, winner = jnp.arange(len(actions)), distances.argmin(axis=1)
    moved = jnp.linalg.norm(after - before, axis=-1)
    return {
        "handed_off": (distances_after.argmin(axis=1) != winner).astype(jnp.float32),
        "winner_moved": moved[rows, winner],
        "others_moved": (moved.sum(axis=1) - moved[rows, winner]) / (moved.shape[1] - 1),
        "distance_before": distances[rows, winner],
        "distance_of_old_winner": distances_after[rows, winner],
        "distance_of_new_winner": distances_after.min(axis=1),
    }


def train_and_watch(its: drol.Args, state: drol.TrainState, data: Dataset, key: Array, num_updates: int):
    """`train_chunk` of drol.py and what it does to winners, a mean over actions and updates."""

    def one_update(state: drol.TrainState, _):
        batch_key, noise_key = drol.keys_of_update(key, state.step)
        batch, noise = sample_batch(data, its.batch_size, batch_key), drol.sample_noise(its, 2, noise_key)
        after, _ = drol.update(its, state, batch, noise)
        candidates = (propose(s.params.actor, batch.observations, noise.latents) for s in (state, after))
        return after, jax.tree.map(jnp.mean, handoff(*candidates, batch.actions))

    state, watched = jax.lax.scan(one_update, state, None, length=num_updates)
    return state, jax.tree.map(jnp.mean, watched)


def improvement_step(
    its: drol.Args, params: drol.Params, transition: Batch, latents: Float[Array, "K 2"], distance: float
) -> tuple[Float[Array, "K 2"], Float[Array, "K 2"]]:
    """The candidates of one state before and after a step of the actor on the improvement loss of this state alone.

    A plain gradient step on `actor_loss` of drol.py, as long as it takes for the winner to move by `distance`, to first
    order. What the other candidates do is up to the network. A winner that is clipped in both dimensions stays.
    """
    batch = jax.tree.map(lambda leaf: leaf[None], transition)
    noise = drol.Noise(next_latents=latents[:1], latents=latents[None])
    improvement = dataclasses.replace(its, bc_coef=0.0)
    gradient = jax.grad(lambda params: drol.actor_loss(improvement, params, batch, noise)[0])(params).actor
    downhill = jax.tree.map(jnp.negative, gradient)

    def candidates(actor: drol.MLP) -> Float[Array, "K 2"]:
        return propose(actor, batch.observations, noise.latents)[0]

    before, velocities = jax.jvp(candidates, (params.actor,), (downhill,))
    winner = jnp.linalg.norm(before - transition.actions, axis=-1).argmin()
    rate = distance / jnp.maximum(jnp.linalg.norm(velocities[winner]), 1e-9)
    return before, candidates(jax.tree.map(lambda leaf, change: leaf + rate * change, params.actor, downhill))


def measure(args: MechanismArgs) -> None:
    """All CSV files.

    Raises:
        UserError: a snapshot falls within an interval, or no action shows what the panels are to show.
    """
    if any(end % args.interval for end in args.updates):
        raise UserError(f"--interval {args.interval}: does not divide --updates {' '.join(map(str, args.updates))}")
    env_id = "pointmaze-medium"
    collected = RunArgs(dataset_dir=args.dataset_dir, data_source="collect", collect_episodes=args.episodes)
    data = jax.device_put(sources.load(resolve(env_id), collected)[0])
    its = basics.settings(drol, env_id, hidden_sizes=args.hidden_sizes, num_candidates=args.num_candidates)
    snapshots = watch_training(args, its, data)
    watch_improvement(args, its, data, snapshots)


def watch_training(args: MechanismArgs, its: drol.Args, data: Dataset) -> dict[int, drol.Params]:
    """handoff.csv; and DROL's parameters, of all seeds, after `args.updates`."""
    keys, snapshots, rows = keys_of_runs(range(args.seeds)), {}, []
    init = jax.jit(jax.vmap(functools.partial(drol.init_state, its, data.observation_shape, data.action_dim)))
    for method, q_coef in METHODS.items():
        of_method = functools.partial(train_and_watch, dataclasses.replace(its, q_coef=q_coef))
        train = jax.jit(jax.vmap(functools.partial(of_method, num_updates=args.interval), (0, None, 0)))
        states = init(keys.init)
        for end in range(args.interval, args.updates[-1] + 1, args.interval):
            states, watched = train(states, data, keys.train)
            for seed in range(args.seeds):
                rows.append((method, seed, end, *(f"{watched[name][seed]:.4g}" for name in CURVES)))
            if method == "DROL" and end in args.updates:
                snapshots[end] = states.params
            if end % (5 * args.interval) == 0:
                print(f"{method}: {end:,} of {args.updates[-1]:,} updates", flush=True)
    basics.write_csv(args.out / "handoff.csv", ("method", "seed", "updates", *CURVES), rows)
    return snapshots


def watch_improvement(args: MechanismArgs, its: drol.Args, data: Dataset, snapshots: dict[int, drol.Params]) -> None:
    """The other CSV files: an improvement step from each snapshot, seen at the same data actions and latents."""
    probe_key, latent_key = jax.random.split(jax.random.key(0))
    probes = sample_batch(data, PROBES, probe_key)
    latents = drol.sample_latents(latent_key, (PROBES, its.num_candidates, 2))

    @jax.jit
    @jax.vmap
    def step(params: drol.Params):
        of_probe = functools.partial(improvement_step, its, params, distance=args.distance)
        before, after = jax.vmap(of_probe)(probes, latents)
        return before, after, handoff(before, after, probes.actions)

    steps = {end: jax.tree.map(np.asarray, step(params)) for end, params in snapshots.items()}
    outcomes = {end: became for end, (_, _, became) in steps.items()}
    rows = [
        (seed, end, *(f"{of_seeds[seed].mean():.4g}" for of_seeds in became.values()))
        for end, became in outcomes.items()
        for seed in range(args.seeds)
    ]
    basics.write_csv(args.out / "improvement.csv", ("seed", "updates", *outcomes[args.updates[0]]), rows)

    drawn = clearest_handoff(args, np.asarray(probes.actions), list(outcomes.values()))
    transition = jax.tree.map(lambda leaf: np.asarray(leaf[drawn]), probes)
    grid = np.stack([x.ravel() for x in np.meshgrid(GRID, GRID)], axis=-1)
    observations = jnp.broadcast_to(transition.observations, (len(grid), *data.observation_shape))
    candidates, q_of_grid = [], []
    for end, (before, after, _) in steps.items():
        for what, xy in zip(WHAT, (transition.actions[None], before[0, drawn], after[0, drawn]), strict=True):
            candidates += [(end, what, f"{x:.4f}", f"{y:.4f}") for x, y in xy]
        critic = jax.tree.map(lambda of_seeds: of_seeds[0], snapshots[end].critic)
        q = np.asarray(drol.aggregate(drol.q_values(critic, observations, jnp.asarray(grid)), its.actor_q_agg))
        q_of_grid += [(end, f"{x:.4g}", f"{y:.4g}", f"{z:.6g}") for (x, y), z in zip(grid, q, strict=True)]
    basics.write_csv(args.out / "candidates.csv", ("updates", "what", "action_1", "action_2"), candidates)
    basics.write_csv(args.out / "q.csv", ("updates", "action_1", "action_2", "q"), q_of_grid)


def clearest_handoff(args: MechanismArgs, actions: np.ndarray, steps: list[dict[str, np.ndarray]]) -> int:
    """Of [PROBES, 2] actions, which one to draw: seed 0's middle snapshot hands it off, and the other two do not.

    Of those where the box clips neither action nor winners, the one whose new winner is nearest as against its old one.
    """
    early, middle, late = ({name: of_seeds[0] for name, of_seeds in became.items()} for became in steps)
    inside = np.abs(actions).max(axis=1) < 0.9
    for became in (early, middle, late):
        inside &= became["winner_moved"] > 0.8 * args.distance
    fitting = inside & (early["handed_off"] == 0) & (middle["handed_off"] == 1) & (late["handed_off"] == 0)
    if not fitting.any():
        raise UserError(f"none of {inside.sum()} actions is handed off after {args.updates[1]} updates alone")
    print(f"of {inside.sum()} actions inside the box, {fitting.sum()} are handed off in the middle alone")
    gain = middle["distance_of_old_winner"] - middle["distance_of_new_winner"]
    return int(np.where(fitting, gain, -np.inf).argmax())


def render(folder: pathlib.Path) -> None:
    """mechanism.pdf and mechanism.png from the CSV files."""
    candidates, values, handoffs, improvements = (
        basics.read_csv(folder / f"{name}.csv") for name in ("candidates", "q", "handoff", "improvement")
    )
    figure, axes = plt.subplots(2, 3, figsize=(8.6, 5.8), layout="constrained", height_ratios=(1.3, 1))
    draw_panels(figure, axes[0], candidates, values)
    draw_curves(axes[1, :2], handoffs)
    draw_distances(axes[1, 2], improvements)
    figures.save(figure, folder / "mechanism")


def draw_panels(figure: plt.Figure, axes: np.ndarray, candidates: np.ndarray, values: np.ndarray) -> None:
    """Cells, candidates and Q of one data action, a panel for each snapshot."""
    snapshots = np.unique(candidates["updates"])
    q = [values["q"][values["updates"] == end].reshape(GRID.size, GRID.size) for end in snapshots]
    levels = np.linspace(min((of_box - of_box.max()).min() for of_box in q), 0, 11)
    for ax, end, title, of_box in zip(axes, snapshots, PANELS, q, strict=True):
        image = ax.contourf(GRID, GRID, of_box - of_box.max(), levels=levels, cmap="Greens", alpha=0.75)
        here = candidates[candidates["updates"] == end]
        of = {what: here[here["what"] == what] for what in WHAT}
        draw_routing(ax, **{what: np.stack([p["action_1"], p["action_2"]], axis=1) for what, p in of.items()})
        ax.set(aspect="equal", xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), xlabel="action 1", ylabel="action 2")
        ax.set_title(f"{title}: {end:,.0f} updates", fontsize=9)
    figure.colorbar(image, ax=axes, label="Q(s, a) - max Q(s, .)", shrink=0.8, format="%.2f")
    handles = axes[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=5, fontsize=8, frameon=False)


def draw_routing(ax: plt.Axes, data: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """K candidates and their cells before an improvement step, and where it takes the winner of the data action."""
    far = 10 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # closes all other cells
    cells = Voronoi(np.concatenate([before, far]))
    voronoi_plot_2d(cells, ax, show_points=False, show_vertices=False, line_colors="0.35", line_width=0.6)
    old, new = (np.linalg.norm(candidates - data, axis=1).argmin() for candidates in (before, after))
    ax.plot(*np.stack([before, after]).transpose(2, 0, 1), c="k", lw=0.7)
    ax.plot(*before.T, "o", c="k", ms=3, label="candidates, and where they go")
    ax.plot(*data[0], "*", c="#F0E442", mec="k", mew=0.7, ms=13, label="data action")
    ax.plot(*before[old], "o", c="#D55E00", ms=7, label="winner, before")
    ax.annotate("", after[old], before[old], arrowprops={"arrowstyle": "-", "color": "#D55E00", "lw": 1.5})
    ax.plot(*after[old], "o", mfc="w", mec="#D55E00", mew=1.5, ms=7, clip_on=False, label="the same, after")
    ax.plot(*after[new], "o", mfc="none", mec="#0072B2", mew=1.8, ms=12, clip_on=False, label="winner, after")


def draw_curves(axes: np.ndarray, handoffs: np.ndarray) -> None:
    """Each seed thin, their mean thick."""
    for ax, (metric, label) in zip(axes, CURVES.items(), strict=True):
        for method, colour in zip(METHODS, ("#0072B2", "#D55E00"), strict=True):
            rows = handoffs[handoffs["method"] == method]
            updates = np.unique(rows["updates"])
            of_seeds = np.array([rows[metric][rows["updates"] == end] for end in updates])
            ax.plot(updates, of_seeds, c=colour, lw=0.5, alpha=0.35)
            ax.plot(updates, of_seeds.mean(axis=1), c=colour, lw=1.3, label=method)
        ax.set(xlabel="updates", ylabel=label, xlim=(0, None), ylim=(0, None))
        ax.grid(alpha=0.3, lw=0.5)
    axes[0].legend(fontsize=8)


def draw_distances(ax: plt.Axes, improvements: np.ndarray) -> None:
    """Bars: means over seeds; dots: each."""
    snapshots = np.unique(improvements["updates"])
    for i, (metric, (label, colour)) in enumerate(DISTANCES.items()):
        of_seeds = [improvements[metric][improvements["updates"] == end] for end in snapshots]
        places = np.arange(len(snapshots)) + 0.27 * (i - 1)
        ax.bar(places, np.mean(of_seeds, axis=1), 0.25, color=colour, label=label)
        ax.plot(places, of_seeds, ".", c="k", ms=3)
    ax.set_xticks(range(len(snapshots)), [f"{end:,.0f}" for end in snapshots])
    ax.set(xlabel="updates", ylabel="distance to the data action\nat an improvement step")
    ax.set_ylim(0, 1.5 * ax.get_ylim()[1])  # room for the legend
    ax.legend(fontsize=7, loc="upper right")


def main(args: MechanismArgs) -> None:
    """Train and watch, then draw."""
    measure(args)
    render(args.out)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(MechanismArgs)))
