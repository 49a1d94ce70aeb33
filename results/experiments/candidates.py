"""What K brings: pairwise distance of candidates, `bc_loss` and score of DROL runs, beside the published curves.

python results/experiments/candidates.py results/candidates

Reads every finished DROL run below the folder, of tasks that were run with several K. Writes candidates.csv (a row for
each run: the last row of its train.csv, its headline score if asked for), candidates.pdf and .png. Runs that differ in
more than K and seed are not averaged. Published values are after a million updates, read off figures.
"""

import collections
import dataclasses
import pathlib
from typing import Literal

import basics
import figures
import runs
from common import command_line
from common.errors import UserError, exit_in_one_line
from common.tables import read_table

import matplotlib.pyplot as plt
import numpy as np
import tyro

PUBLISHED = {
    "score": "k_sweep.csv",
    "pairwise_distance": "candidate_metrics.csv",
    "bc_loss": "candidate_metrics.csv",
}
COLUMNS = ("num_candidates ", "offline_steps ")  # of candidates.csv; not told again among the settings
LABELS = {
    "score": "headline score (%)",
    "pairwise_distance": "pairwise distance of candidates",
    "bc_loss": "bc_loss (squared, per dimension)",
}


@dataclasses.dataclass(frozen=True)
class CandidateArgs:
    """Metrics against K, as candidates.csv, .pdf and .png."""

    folder: tyro.conf.Positional[pathlib.Path] = basics.RESULTS / "candidates"
    """Folder with run folders; what is made from them is written into it."""
    metrics: tuple[Literal["score", "pairwise_distance", "bc_loss"], ...] = ("pairwise_distance", "bc_loss")
    """What to draw, a column each; score is the headline score."""


def pairwise_distance(divergence: float, num_candidates: int) -> float:
    """sqrt(mean over pairs i != j of ||c_i - c_j||^2 / d), from `actor/divergence`; 0 where there are no pairs."""
    k = num_candidates
    return 0.0 if k == 1 else float(np.sqrt(2 * k / (k - 1) * divergence))


def published(metric: str, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of K, and the metric at each."""
    rows = basics.read_csv(basics.RESULTS / "paper" / PUBLISHED[metric])
    rows = rows[(rows["task"] == task) & ~np.isnan(rows[metric])]
    return rows["K"], rows[metric]


def read(folder: pathlib.Path, metrics: tuple[str, ...]) -> list[dict]:
    """A row for each run; its settings are those that tell it from others of its task and K.

    Raises:
        UserError: no task was run with several K, or a run has not logged what is asked for.
    """
    comparison, rows, ks = runs.read([folder]), [], collections.defaultdict(set)
    runs.report(comparison.notes)
    for task, methods in comparison.tasks.items():
        for method in methods:
            for run in comparison.finished(task, method):
                if "num_candidates" not in run.args:
                    continue  # another algorithm
                others = [part for part in method.split(", ")[1:] if not part.startswith(COLUMNS)]
                row = {
                    "task": dataclasses.replace(run.spec, task=run.spec.task_number).short_name,  # as it is published
                    "K": run.args["num_candidates"],
                    "seed": run.seed,
                    "updates": run.args["offline_steps"],
                    "settings": ", ".join(others),  # of 'DROL(16), offline_steps 600, tau 0.01' the last
                }
                rows.append(row | {metric: value_of(run, metric) for metric in metrics})
                ks[row["task"]].add(row["K"])
    rows = [row for row in rows if len(ks[row["task"]]) > 1]
    if not rows:
        raise UserError(f"{folder}: no task with finished DROL runs of several K")
    return sorted(rows, key=lambda row: (row["task"], row["settings"], row["K"], row["seed"], row["updates"]))


def value_of(run: runs.Run, metric: str) -> float:
    """Of a finished run, in the last row of its train.csv; raises UserError if it is not there."""
    if metric == "score":
        return run.score
    table, column = run.path / "train.csv", {"pairwise_distance": "actor/divergence"}.get(metric, f"actor/{metric}")
    last = (read_table(table) if table.exists() else [{}])[-1]
    if column not in last:
        raise UserError(f"{table}: no {column}; leave this run out")
    value = last[column]
    return value if metric != "pairwise_distance" else pairwise_distance(value, run.args["num_candidates"])


def draw(rows: list[dict], metrics: tuple[str, ...]) -> plt.Figure:
    """A row of panels for each task, a column for each metric; each seed a dot, the line their mean."""
    tasks = sorted({row["task"] for row in rows})
    figure, axes = plt.subplots(
        len(tasks), len(metrics), figsize=(3.8 * len(metrics), 2.9 * len(tasks)), layout="constrained", squeeze=False
    )
    for i, task in enumerate(tasks):
        ours = [row for row in rows if row["task"] == task]
        ks = sorted({row["K"] for row in ours})
        for ax, metric in zip(axes[i], metrics, strict=True):
            paper_ks, values = published(metric, task)
            if paper_ks.size:
                ax.plot(paper_ks, values, "s--", c="0.4", ms=4, label="paper, 1,000,000 updates")
            for index, (updates, settings) in enumerate(sorted({(row["updates"], row["settings"]) for row in ours})):
                alike = [row for row in ours if (row["updates"], row["settings"]) == (updates, settings)]
                seeds = {k: [row[metric] for row in alike if row["K"] == k] for k in ks}
                means = [(k, np.mean(each)) for k, each in seeds.items() if each]
                others = f", {settings}" if len({row["settings"] for row in ours}) > 1 and settings else ""
                label = f"here, {updates:,} updates{others}"
                ax.plot(*zip(*means, strict=True), "o-", c=f"C{index}", ms=3, label=label)
                ax.plot(
                    [row["K"] for row in alike], [row[metric] for row in alike], "o", c=f"C{index}", ms=3, alpha=0.4
                )
            ax.set_xscale("log", base=2)
            ticks = sorted({*ks, *paper_ks})
            ax.set_xticks(ticks, ticks)
            ax.set(xlabel="K, candidates a state", ylabel=LABELS[metric], title=task, ylim=(0, None))
            ax.grid(alpha=0.3, lw=0.5)
    axes[0, 0].legend(fontsize=7)
    return figure


def main(args: CandidateArgs) -> None:
    """Read, write, draw."""
    rows = read(args.folder, args.metrics)
    written = [(row | {name: f"{row[name]:.5g}" for name in args.metrics}).values() for row in rows]
    basics.write_csv(args.folder / "candidates.csv", rows[0], written)
    figures.save(draw(rows, args.metrics), args.folder / "candidates")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(CandidateArgs)))
