"""What K brings: pairwise distance of candidates, `bc_loss` and score of DROL runs, beside the published curves.

python results/candidates.py results/candidates

Reads every DROL run below the folder, of tasks that were run with several K. Writes candidates.csv (a row for each run:
the last row of its train.csv, its headline score if asked for), candidates.pdf and .png. Published values are after a
million updates, read off figures.
"""

import collections
import csv
import dataclasses
import json
import pathlib
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import matplotlib
import numpy as np
import tyro

from common import run_directory
from common.env_ids import resolve
from common.errors import UserError, exit_in_one_line

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
PUBLISHED = {"candidate_metrics.csv": ("pairwise_distance", "bc_loss"), "k_sweep.csv": ("score",)}
LABELS = {
    "score": "headline score (%)",
    "pairwise_distance": "pairwise distance of candidates",
    "bc_loss": "bc_loss (squared, per dimension)",
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Metrics against K, as candidates.csv, .pdf and .png."""

    folder: tyro.conf.Positional[pathlib.Path] = HERE / "candidates"
    """Folder with run folders; what is made from them is written into it."""
    metrics: tuple[Literal["score", "pairwise_distance", "bc_loss"], ...] = ("pairwise_distance", "bc_loss")
    """What to draw, a column each; score is the headline score."""


def pairwise_distance(divergence: float, num_candidates: int) -> float:
    """sqrt(mean over pairs i != j of ||c_i - c_j||^2 / d), from `actor/divergence`; 0 where there are no pairs."""
    k = num_candidates
    return 0.0 if k == 1 else float(np.sqrt(2 * k / (k - 1) * divergence))


def published() -> dict[str, dict[str, list[tuple[int, float]]]]:
    """(K, value) for each metric and task."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {metric: {} for metric in LABELS}
    for name, metrics in PUBLISHED.items():
        with (HERE / "paper" / name).open() as file:
            for row in csv.DictReader(file):
                for metric in metrics:
                    if row[metric]:
                        points[metric].setdefault(row["task"], []).append((int(row["K"]), float(row[metric])))
    return points


def logged(path: pathlib.Path) -> list[run_directory.Row]:
    """The rows of a file of a run; raises UserError if there is none yet."""
    rows = run_directory.read_table(path) if path.exists() else []
    if not rows:
        raise UserError(f"{path}: nothing logged yet; leave this run out, or let it go on")
    return rows


def read(folder: pathlib.Path, metrics: tuple[str, ...]) -> list[dict]:
    """A row for each run.

    Raises:
        UserError: no task was run with several K, or a run has not logged what is asked for yet.
    """
    rows, ks = [], collections.defaultdict(set)
    for path in sorted(folder.rglob("config.json")):
        args = json.loads(path.read_text())["args"]
        if "num_candidates" not in args:
            continue  # another algorithm
        spec, k = resolve(args["env_id"]), args["num_candidates"]
        row = {"task": f"{spec.env_name}-task{spec.task}", "K": k, "seed": args["seed"]}
        last = logged(path.with_name("train.csv"))[-1]
        row |= {"updates": last["step"], "bc_loss": last["actor/bc_loss"]}
        row["pairwise_distance"] = pairwise_distance(last["actor/divergence"], k)
        if "score" in metrics:
            evaluations = logged(path.with_name("eval.csv"))
            headline = run_directory.headline_evaluations(spec.suite, evaluations)
            row["score"] = np.mean([each[run_directory.score_metric(headline)] for each in headline])
        rows.append(row)
        ks[row["task"]].add(k)
    rows = [row for row in rows if len(ks[row["task"]]) > 1]
    if not rows:
        raise UserError(f"{folder}: no task with DROL runs of several K (folders with config.json and train.csv)")
    return sorted(rows, key=lambda row: (row["task"], row["K"], row["seed"]))


def draw(rows: list[dict], metrics: tuple[str, ...]) -> plt.Figure:
    """A row of panels for each task, a column for each metric; each seed a dot, the line their mean."""
    plt.rcParams.update({"font.size": 9, "pdf.fonttype": 42})
    paper = published()
    tasks = sorted({row["task"] for row in rows})
    figure, axes = plt.subplots(
        len(tasks), len(metrics), figsize=(3.8 * len(metrics), 2.9 * len(tasks)), layout="constrained", squeeze=False
    )
    for i, task in enumerate(tasks):
        ours = [row for row in rows if row["task"] == task]
        ks = sorted({row["K"] for row in ours})
        for ax, metric in zip(axes[i], metrics, strict=True):
            theirs = paper[metric].get(task, [])
            if theirs:
                ax.plot(*zip(*theirs, strict=True), "s--", c="0.4", ms=4, label="paper, 1,000,000 updates")
            for index, updates in enumerate(sorted({row["updates"] for row in ours})):
                runs = [row for row in ours if row["updates"] == updates]
                seeds = {k: [row[metric] for row in runs if row["K"] == k] for k in ks}
                means = [(k, np.mean(values)) for k, values in seeds.items() if values]
                ax.plot(*zip(*means, strict=True), "o-", c=f"C{index}", ms=3, label=f"here, {updates:,} updates")
                ax.plot([row["K"] for row in runs], [row[metric] for row in runs], "o", c=f"C{index}", ms=3, alpha=0.4)
            ax.set_xscale("log", base=2)
            ticks = sorted({*ks, *(k for k, _ in theirs)})
            ax.set_xticks(ticks, ticks)
            ax.set(xlabel="K, candidates a state", ylabel=LABELS[metric], title=task, ylim=(0, None))
            ax.grid(alpha=0.3, lw=0.5)
    axes[0, 0].legend(fontsize=7)
    return figure


def main(args: Args) -> None:
    """Read, write, draw."""
    rows = read(args.folder, args.metrics)
    with (args.folder / "candidates.csv").open("w", newline="") as file:
        names = ("task", "K", "seed", "updates", *args.metrics)
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {name: f"{row[name]:.5g}" for name in args.metrics} for row in rows)
    figure = draw(rows, args.metrics)
    for ending, settings in ((".pdf", {"metadata": {"CreationDate": None}}), (".png", {"dpi": 160})):
        figure.savefig(args.folder / f"candidates{ending}", **settings)
    plt.close(figure)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
