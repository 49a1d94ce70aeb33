"""Tabulate runs beside the published numbers.

    python results/table.py RUN_DIR... [--out FILE]

Prints Markdown, or writes FILE.md, FILE.csv (both tables in one, a line a cell) and FILE.tex. The first table is the
paper's Table 1: a group of tasks counts only with all of its tasks. The second one has every task that was run.
"""

import csv
import dataclasses
import io
import pathlib

import numpy as np
import runs
import tyro
from published import num_tasks, published_scores
from runs import Comparison, Run
from tabulate import tabulate

from common.errors import exit_in_one_line

PAPER_METHODS = ("DROL(16)", "DROL*", "FQL")


@dataclasses.dataclass(frozen=True)
class Args:
    """Tables of runs beside the paper's: Markdown, CSV, LaTeX."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Run directories, or folders that hold some."""
    out: pathlib.Path | None = None
    """Name of the files, without their endings; Markdown on stdout if unset."""
    threshold: float = 50.0
    """Score whose first crossing by the mean curve is reported, in updates and minutes."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A heading, a header, and rows."""

    heading: str
    header: list[str]
    rows: list[list[str]]


def mean_and_deviation(scores: list[float]) -> str:
    """'88.7 ± 5.5': mean and sample deviation over seeds; a single seed has none."""
    deviation = f"{np.std(scores, ddof=1):.1f}" if len(scores) > 1 else "-"
    return f"{np.mean(scores):.1f} ± {deviation}"


def group_table(comparison: Comparison) -> Table:
    """The paper's Table 1, ours beside it."""
    paper, rows = published_scores(), []
    for group, size in num_tasks().items():
        row = [group, str(size)]
        for method in PAPER_METHODS:
            published = paper[group, method]
            row += [_group_cell(comparison, group, size, method), f"{published.mean:g} ± {published.deviation:g}"]
        rows.append(row)
    header = ["group", "tasks", *(name for method in PAPER_METHODS for name in (method, f"{method}, paper"))]
    return Table("Groups of tasks, as in the paper's Table 1", header, rows)


def _group_cell(comparison: Comparison, group: str, size: int, method: str) -> str:
    """Mean over tasks of each seed, then mean and deviation over seeds; or why there is none."""
    by_task = []
    for task in comparison.tasks:
        members = comparison.finished(task, method)
        if members and members[0].paper_group == group:
            by_task.append({run.seed: run.score for run in members})
    if not by_task:
        return "not run"
    if len(by_task) < size:
        return f"{len(by_task)} of {size} tasks"
    seeds = sorted(set.intersection(*(set(scores) for scores in by_task)))
    if not seeds:
        return "no common seed"
    return mean_and_deviation([float(np.mean([scores[seed] for scores in by_task])) for seed in seeds])


def task_table(comparison: Comparison, threshold: float) -> Table:
    """Every task and method that was run."""
    paper, rows = published_scores(), []
    for task, methods in comparison.tasks.items():
        for method, members in methods.items():
            finished = comparison.finished(task, method)
            args = members[0].config["args"]
            published = paper.get((members[0].paper_group, method))
            rows.append(
                [
                    task,
                    method,
                    mean_and_deviation([run.score for run in finished]) if finished else "unfinished",
                    str(len(finished)),
                    f"{args['offline_steps']:,}",
                    str(args["eval_episodes"]),
                    " ".join(map(str, args["hidden_sizes"])),
                    *crossing(members, threshold),
                    members[0].settings["data"],
                    "-" if published is None else f"{published.mean:g} ± {published.deviation:g}",
                ]
            )
    header = ["task", "method", "score", "seeds", "updates", "episodes", "hidden sizes"]
    header += [f"updates to {threshold:g}", f"minutes to {threshold:g}", "data", "paper, mean of the group"]
    return Table("Tasks", header, rows)


def crossing(members: list[Run], threshold: float) -> tuple[str, str]:
    """Updates and wall-clock minutes of the first evaluation at which the mean over seeds reaches the threshold."""
    for step in sorted(set.intersection(*(set(run.curve) for run in members))):
        if np.mean([run.curve[step] for run in members]) >= threshold:
            return f"{step:,}", f"{np.mean([run.minutes_at(step) for run in members]):.0f}"
    return "not reached", "not reached"


def to_markdown(tables: list[Table], notes: list[str]) -> str:
    """Tables with their headings, then what was left out."""
    parts = [
        f"**{t.heading}**\n\n{tabulate(t.rows, t.header, tablefmt='github', disable_numparse=True)}" for t in tables
    ]
    return "\n\n".join([*parts, *(f"- {note}" for note in [EXPLANATION, *notes])]) + "\n"


EXPLANATION = (
    "Scores: success or normalised score in percent, mean ± sample deviation over seeds of the headline score, which "
    "is the mean of the last three evaluations on OGBench and the last one on D4RL. Paper: arXiv 2604.22229, Table 1, "
    "after 1,000,000 updates (D4RL 500,000) on the official data."
)


def to_latex(tables: list[Table]) -> str:
    """For \\usepackage{booktabs}."""
    return "\n".join(
        f"% {t.heading}\n{tabulate(t.rows, t.header, tablefmt='latex_booktabs', disable_numparse=True)}\n"
        for t in tables
    )


def to_csv(tables: list[Table]) -> str:
    """A line a cell: table, row, column, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value"])
    for table in tables:
        labels = 2 if table.header[1] == "method" else 1
        for row in table.rows:
            for name, value in zip(table.header[labels:], row[labels:], strict=True):
                writer.writerow([table.heading, " / ".join(row[:labels]), name, value])
    return text.getvalue()


def main(args: Args) -> None:
    """Read, tabulate, write."""
    comparison = runs.read(list(args.runs))
    runs.report(comparison.notes)
    tables = [group_table(comparison), task_table(comparison, args.threshold)]
    markdown = to_markdown(tables, comparison.notes)
    if args.out is None:
        print(markdown, end="")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".md", markdown), (".csv", to_csv(tables)), (".tex", to_latex(tables))):
        path = args.out.with_name(args.out.name + ending)
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
