"""Tabulate runs beside the published numbers.

    python results/table.py RUN_DIR... [--out FILE]

Prints Markdown, or writes FILE.md, FILE.csv (both tables in one, a line a cell) and FILE.tex. The first table is the
paper's Table 1, where a group of tasks counts only with all of its tasks, and a method with other settings than the
paper's has a column of its own. The second one has every task that was run.
"""

import csv
import dataclasses
import functools
import io
import pathlib

import clone  # noqa: F401 (first: it lets this import the clone's modules)
import runs
from common import command_line
from common.errors import exit_in_one_line
from common.files import write_whole
from published import num_tasks, published_scores
from runs import Comparison, Run, describe_value

import numpy as np
import tyro
from tabulate import tabulate

PAPER_METHODS = ("DROL(16)", "DROL*", "FQL")


@dataclasses.dataclass(frozen=True)
class TableArgs:
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
    """The paper's Table 1, ours beside it; then what else has a whole group: other settings, other algorithms."""
    paper, sizes = published_scores(), num_tasks()
    columns = {"group": list(sizes), "tasks": [str(size) for size in sizes.values()]}
    for method in dict.fromkeys((*PAPER_METHODS, *comparison.algorithms)):
        cells = [_group_cell(comparison, group, size, method) for group, size in sizes.items()]
        if method in PAPER_METHODS:
            published = ["{:g} ± {:g}".format(*paper[group, method]) for group in sizes]
            columns |= {method: cells, f"{method}, paper": published}
        elif any("±" in cell for cell in cells):
            columns[method] = cells
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table("Groups of tasks, as in the paper's Table 1", list(columns), rows)


def _group_cell(comparison: Comparison, group: str, size: int, algorithm: str) -> str:
    """Mean over tasks of each seed, then mean and deviation over seeds; or why there is none."""
    by_task: dict[str, list[Run]] = {}
    for task in comparison.tasks:
        methods = comparison.methods_of(task, algorithm)
        if not methods or comparison.tasks[task][methods[0]][0].paper_group != group:
            continue
        if len(methods) > 1:
            return f"several settings of {task}"
        if finished := comparison.finished(task, methods[0]):
            by_task[task] = finished
    if not by_task:
        return "not run"
    first = next(iter(by_task.values()))[0]
    if len({members[0].spec.suite for members in by_task.values()}) > 1:
        return "D4RL's own files and Minari's data: name the runs of one"
    if len(by_task) < size:
        return f"{len(by_task)} of {size} tasks"
    if any(members[0].budget != first.budget for members in by_task.values()):
        return "unlike settings"
    seeds = sorted(set.intersection(*({run.seed for run in members} for members in by_task.values())))
    if not seeds:
        return "no common seed"
    if dropped := [run.name for members in by_task.values() for run in members if run.seed not in seeds]:
        comparison.notes.append(f"not in the mean of {group}, for not every task has the seed: {', '.join(dropped)}")
    scores = [np.mean([run.score for members in by_task.values() for run in members if run.seed == s]) for s in seeds]
    kinds = {members[0].data.split(":")[0] for members in by_task.values()}
    number = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    return (
        f"{mean_and_deviation(scores)} ({number}, {first.args['offline_steps']:,} updates, "
        f"{first.args['eval_episodes']} episodes, data: {', '.join(sorted(kinds))})"
    )


def task_table(comparison: Comparison, threshold: float) -> Table:
    """Every task and method that was run."""
    paper, rows = published_scores(), []
    for task, methods in comparison.tasks.items():
        for method, members in methods.items():
            finished, first = comparison.finished(task, method), members[0]
            published, online = paper.get((first.paper_group, first.algorithm)), first.args["online_steps"]
            unit = " (return)" if first.metric == "evaluation/return" else ""
            rows.append(
                [
                    task,
                    method,
                    mean_and_deviation([run.score for run in finished]) + unit if finished else "unfinished",
                    str(len(finished)),
                    f"{first.args['offline_steps']:,}" + (f" + {online:,} online" if online else ""),
                    str(first.args["eval_episodes"]),
                    describe_value(first.args["hidden_sizes"]),
                    *crossing(comparison.counted(task, method), threshold),
                    first.data,
                    "-" if published is None else "{:g} ± {:g}".format(*published),
                ]
            )
    header = ["task", "method", "score", "seeds", "updates", "episodes", "hidden sizes"]
    header += [f"updates to {threshold:g}", f"minutes to {threshold:g}", "data", "paper, mean of the group"]
    return Table("Tasks", header, rows)


def crossing(members: list[Run], threshold: float) -> tuple[str, str]:
    """Updates and wall-clock minutes of the first evaluation at which the mean over seeds reaches the threshold."""
    for step in sorted(set.intersection(*(set(run.curve) for run in members))):
        if np.mean([run.curve[step] for run in members]) >= threshold:
            minutes = np.mean([run.minutes_at(step) for run in members])
            return f"{step:,}", "unknown" if np.isnan(minutes) else f"{minutes:.0f}"
    return "not reached", "not reached"


def to_markdown(tables: list[Table], notes: list[str]) -> str:
    """Tables with their headings, then what was left out."""
    parts = [
        f"**{t.heading}**\n\n{tabulate(t.rows, t.header, tablefmt='github', disable_numparse=True)}" for t in tables
    ]
    return "\n\n".join([*parts, *(f"- {note}" for note in [EXPLANATION, *notes])]) + "\n"


EXPLANATION = (
    "Scores: success or normalised score in percent, mean ± sample deviation over seeds of the headline score: the "
    "mean of the last three evaluations on OGBench, the last one on D4RL (ours: on Minari's or collected data; tasks "
    "called d4rl-* on D4RL's own files). Paper: arXiv 2604.22229, Table 1, after 1,000,000 updates (D4RL 500,000) on "
    "the official data."
)


def to_latex(tables: list[Table], notes: list[str]) -> str:
    """For \\usepackage{booktabs}; the notes are comments."""
    return "".join(f"% {note}\n" for note in [EXPLANATION, *notes]) + "\n".join(
        f"% {t.heading}\n{tabulate(t.rows, t.header, tablefmt='latex_booktabs', disable_numparse=True)}\n"
        for t in tables
    )


def to_csv(tables: list[Table], notes: list[str]) -> str:
    """A line a cell: table, row, column, value; then a line a note."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value"])
    for table in tables:
        labels = 2 if table.header[1] == "method" else 1
        for row in table.rows:
            for name, value in zip(table.header[labels:], row[labels:], strict=True):
                writer.writerow([table.heading, " / ".join(row[:labels]), name, value])
    writer.writerows(["note", "", "", note] for note in [EXPLANATION, *notes])
    return text.getvalue()


def main(args: TableArgs) -> None:
    """Read, tabulate, write."""
    comparison = runs.read(list(args.runs))
    tables = [group_table(comparison), task_table(comparison, args.threshold)]
    notes = comparison.notes + comparison.notes_on_minutes
    runs.report(notes)
    markdown = to_markdown(tables, notes)
    if args.out is None:
        print(markdown, end="")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".md", markdown), (".csv", to_csv(tables, notes)), (".tex", to_latex(tables, notes))):
        path = args.out.with_name(args.out.name + ending)
        write_whole(path, functools.partial(pathlib.Path.write_text, data=text, encoding="utf-8"))
        print(path)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(TableArgs)))
