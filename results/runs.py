"""Run directories, as the scripts that plot and tabulate them see them."""

import collections
import dataclasses
import math
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
from published import group_of

from common import run_directory
from common.datasets import describe_source
from common.env_ids import EnvSpec
from common.errors import UserError
from common.run_directory import Row

# Arguments that runs of one method may differ in: they do not change what is learned, or have a place of their own.
INCIDENTAL = {
    *("env_id", "seed", "run_dir", "resume", "print_config", "eval_envs", "log_interval", "save_minutes", "track"),
    *("wandb_project", "data_source", "dataset_path", "dataset_dir", "collect_episodes", "collect_workers"),
    *("num_candidates", "drol_star"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one seed.

    Attributes:
        path: its folder.
        config: its config.json.
        evaluations: the rows of eval.csv.
        minutes: wall-clock minutes since the start, by step, evaluations included.
    """

    path: pathlib.Path
    config: dict[str, Any]
    evaluations: list[Row]
    minutes: dict[int, float]

    @property
    def spec(self) -> EnvSpec:
        """Environment and task."""
        return EnvSpec(**self.config["environment"])

    @property
    def task(self) -> str:
        """'cube-double' for the default task by any name, else 'cube-double-task3'."""
        default = dataclasses.replace(self.spec, task=None)
        is_default = self.spec.suite == "d4rl" or self.spec.task_number == default.task_number
        return (default if is_default else self.spec).short_name

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config["args"]["seed"]

    @property
    def algorithm(self) -> str:
        """The paper's name: DROL(16), DROL*, FQL."""
        if self.config["algorithm"] != "drol":
            return self.config["algorithm"].upper()
        args = self.config["args"]
        return "DROL*" if args.get("drol_star") else f"DROL({args['num_candidates']})"

    @property
    def settings(self) -> dict[str, Any]:
        """What runs that are averaged have to agree in."""
        settings = {name: value for name, value in self.config["args"].items() if name not in INCIDENTAL}
        return settings | {"data": describe_source(self.config["dataset"])}

    @property
    def is_finished(self) -> bool:
        """Whether the last update has been evaluated."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == self.config["args"]["offline_steps"]

    @property
    def score_metric(self) -> str:
        """The column of eval.csv that is this run's score."""
        return run_directory.score_metric(self.evaluations)

    @property
    def score(self) -> float:
        """Headline score, as the papers take it (see `run_directory.headline_evaluations`)."""
        rows = run_directory.headline_evaluations(self.spec.suite, self.evaluations)
        return sum(row[self.score_metric] for row in rows) / len(rows)

    @property
    def paper_group(self) -> str | None:
        """The group of the published table that its task belongs to."""
        return group_of(self.spec)

    def minutes_at(self, step: int) -> float:
        """Wall-clock minutes from the start to this update."""
        return float(np.interp(step, list(self.minutes), list(self.minutes.values()))) if self.minutes else math.nan

    @property
    def curve(self) -> dict[int, float]:
        """Score of each evaluation, by step."""
        return {int(row["step"]): row[self.score_metric] for row in self.evaluations}


@dataclasses.dataclass
class Comparison:
    """Runs by task and method.

    Attributes:
        tasks: task ('cube-double-task3') -> method ('DROL(16)'; with what distinguishes it where one task has several)
            -> runs, one a seed.
        notes: what was left out, or is not what it seems, a line each.
    """

    tasks: dict[str, dict[str, list[Run]]]
    notes: list[str]

    @property
    def methods(self) -> list[str]:
        """Every method, in alphabetical order."""
        return sorted({method for methods in self.tasks.values() for method in methods})

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for methods in self.tasks.values() for members in methods.values() for run in members]

    def finished(self, task: str, method: str) -> list[Run]:
        """The runs that have come to their end: scores are taken from these alone."""
        return [run for run in self.tasks[task].get(method, []) if run.is_finished]


def read(paths: list[pathlib.Path]) -> Comparison:
    """Read run directories, or folders that hold some.

    Raises:
        UserError: there is not one run among them that has been evaluated.
    """
    runs, notes = [], []
    for folder in paths:
        inside = sorted(path.parent for path in folder.glob("*/config.json"))
        for path in inside if inside and not (folder / "config.json").exists() else [folder]:
            try:
                run = _read_run(path, notes)
            except UserError as error:
                notes.append(f"left out: {error}")
                continue
            if run.evaluations:
                runs.append(run)
            else:
                notes.append(f"left out: {path} has no evaluation yet")
    if not runs:
        raise UserError("; ".join(["nothing to show", *notes]))

    by_name = collections.defaultdict(list)
    for run in runs:
        by_name[run.task, run.algorithm].append(run)
    tasks = collections.defaultdict(dict)
    for (task, algorithm), group in sorted(by_name.items()):
        for method, members in _by_settings(algorithm, group).items():
            tasks[task][method] = _one_per_seed(members, notes)
    for task, methods in tasks.items():
        for method, members in methods.items():
            for run in members:
                if not run.is_finished:
                    last, total = run.evaluations[-1]["step"], run.config["args"]["offline_steps"]
                    notes.append(f"unfinished, no score: {run.path} ({task}, {method}: {last:,} of {total:,} updates)")
    return Comparison(dict(tasks), notes)


def report(notes: list[str]) -> None:
    """Name on stderr what was left out."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _read_run(path: pathlib.Path, notes: list[str]) -> Run:
    """One run; damage in its tables is noted, and what comes before it is kept."""
    config = run_directory.read_config(path)
    tables = {}
    for table in ("eval", "time"):
        file = path / f"{table}.csv"
        tables[table] = []
        if file.exists():
            try:
                tables[table] = run_directory.read_table(file)
            except UserError as error:
                notes.append(f"only what comes before the damage is used: {error}")
                tables[table] = run_directory.read_table(file, until_damage=True)
    minutes = {int(row["step"]): row["time/seconds"] / 60 for row in tables["time"]}
    return Run(path, config, tables["eval"], minutes)


def _by_settings(algorithm: str, runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that may be averaged, by a name that says what distinguishes them: 'DROL(16), bc_coef 3'."""
    names = sorted({name for run in runs for name in run.settings})
    varying = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
    groups = collections.defaultdict(list)
    for run in runs:
        groups[", ".join([algorithm, *(f"{name} {_short(run.settings.get(name))}" for name in varying)])].append(run)
    return dict(groups)


def _short(value: Any) -> str:
    return (
        " ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _one_per_seed(runs: list[Run], notes: list[str]) -> list[Run]:
    """Two runs of one seed would count twice: the one that went further stands."""
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.evaluations[-1]["step"]):
        if run.seed in by_seed:
            notes.append(f"left out: {by_seed[run.seed].path} has the seed and settings of {run.path}")
        by_seed[run.seed] = run
    return [by_seed[seed] for seed in sorted(by_seed)]
