"""How many winners does routing in bfloat16 change? Of a trained DROL policy, on its own data.

python results/routing.py runs/drol-cube-single-seed0-...
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Annotated

import jax
import numpy as np
import tyro

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import drol
from common import datasets
from common.env_ids import resolve
from common.errors import UserError, exit_in_one_line
from common.run_directory import RunDirectory
from common.runs import Runs


@dataclasses.dataclass(frozen=True)
class Args:
    """Of a trained DROL policy, the share of winners that routing in bfloat16 changes."""

    run_dir: Annotated[pathlib.Path, tyro.conf.Positional]
    """Run whose last checkpoint is taken."""
    num_candidates: tuple[int, ...] = (16, 64)
    """K."""
    transitions: int = 8192
    """Transitions of the run's data set, drawn with a fixed seed."""


def main(args: Args) -> None:
    """Print a line for each K."""
    run = RunDirectory.open(args.run_dir, drol.ALGORITHM, lock=False)
    runs = Runs([run])
    trained = dataclasses.replace(run.read_args(drol.Args), batch_size=args.transitions)
    dataset, provenance = datasets.load(
        resolve(trained.env_id),
        dataset_path=run.dataset_path,
        dataset_dir=trained.dataset_dir,
        source="auto",
        collect_episodes=None,
        collect_workers=1,
    )
    run.check_data(provenance)
    init = functools.partial(drol.init_state, trained, dataset.observation_dim, dataset.action_dim)
    like = drol.Checkpoint(jax.eval_shape(init, jax.random.key(0)))
    step = runs.last_common_step(like)
    if step == 0:
        raise UserError(f"{run.path} has no checkpoint yet")
    actor = run.restore(step, like).state.params.actor
    batch = drol.take_batch(dataset, np.random.default_rng(0).integers(0, dataset.transitions.size, args.transitions))
    for k in args.num_candidates:
        single = dataclasses.replace(trained, num_candidates=k, bfloat16_routing=False)
        half = dataclasses.replace(single, bfloat16_routing=True)
        noise = drol.sample_noise(single, dataset.action_dim, jax.random.key(0))
        distances, rounded = (
            jax.jit(functools.partial(drol.candidate_distances, each))(actor, batch, noise) for each in (single, half)
        )
        winner, other = distances.argmin(axis=1), rounded.argmin(axis=1)
        bc_loss, bc_loss_of_other = (
            np.take_along_axis(np.asarray(distances), np.asarray(index)[:, None], axis=1).mean() / dataset.action_dim
            for index in (winner, other)
        )
        print(
            f"K = {k}: bfloat16 changes {100 * float((winner != other).mean()):.1f} % of {args.transitions:,} winners, "
            f"and the mean distance of the winner from {bc_loss:.6f} to {bc_loss_of_other:.6f}"
        )


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
