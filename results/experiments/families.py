"""How far runs are that do not succeed yet: the distance from the data, and the value, beside the score.

python results/experiments/families.py
"""

import dataclasses
import pathlib

import basics
import runs
from common import command_line
from common.errors import exit_in_one_line
from common.files import write_whole
from common.tables import read_table
from runs import Run

import numpy as np
from tabulate import tabulate

LAST = 10_000  # updates that losses and values are averaged over


@dataclasses.dataclass(frozen=True)
class FamiliesArgs:
    """A table of runs, finished or not: score, imitation loss and Q-value at their end, milliseconds an update."""

    folder: pathlib.Path = basics.RESULTS / "families"
    """Folder of runs; table.md is written into it."""


def row_of(run: Run) -> list[str]:
    """One run as far as it went."""
    train, times = read_table(run.path / "train.csv"), read_table(run.path / "time.csv")
    step = int(train[-1]["step"])
    last = [row for row in train if row["step"] > step - LAST]
    scores = [run.curve[at] for at in sorted(run.curve)[-3:]]
    mean = lambda name: f"{np.mean([row[name] for row in last]):.3g}" if name in last[-1] else "-"  # noqa: E731
    return [
        run.task,
        run.algorithm,
        str(run.seed),
        f"{step:,}",
        ", ".join(f"{score:g}" for score in scores),
        mean("actor/bc_loss"),
        mean("critic/q_mean"),
        f"{np.median([row['time/ms_per_update'] for row in times]):.1f}",
    ]


def render(folder: pathlib.Path) -> None:
    """Write FOLDER/table.md."""
    comparison = runs.read([folder])
    header = ["task", "method", "seed", "updates", "last evaluations (%)", "bc_loss", "Q", "ms an update"]
    rows = [row_of(run) for run in comparison.runs]
    table = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    said = f"bc_loss and Q: means over the last {LAST:,} updates; ms: median, with other work beside."
    text = f"{comparison.title}; {said}\n\n{table}\n"
    write_whole(folder / "table.md", lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    exit_in_one_line(lambda: render(command_line.read(FamiliesArgs).folder))
