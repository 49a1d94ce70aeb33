"""Run directories, as the scripts that plot and tabulate them see them."""

import collections
import dataclasses
import math
import pathlib
import re
import sys
from typing import Any

from common import algorithms, mujoco_versions
from common.data.sources import describe_source
from common.env_ids import EnvSpec
from common.errors import UserError, describe_os_error
from common.run_directory import read_config
from common.scores import evaluations_in_score, headline_steps, score_metric, scores
from common.tables import Row, read_table
from identity import Identity, describe_value, identify
from published import group_of

import numpy as np


def natural(name: str) -> list[str | int]:
    """To sort names as people do, by the numbers in them."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


@dataclasses.dataclass(frozen=True)
class Run(Identity):
    """One run of one seed.

    Attributes:
        path: its folder.
        name: the same, as it was given.
        spec: environment and task.
        task: 'cube-double' for the default task by any name, else 'cube-double-task3'.
        seed: seed.
        args: the arguments of the script.
        data: where its data came from, for people.
        sha256: of its data.
        metric: the column of eval.csv that is its score.
        curve: score of each evaluation, by step.
        minutes: wall-clock minutes since the start, by step, evaluations included; empty where they are not known.
        machine: what they were taken on: '1 x cpu (cpu), 2 CPU cores, 3 seeds together'.
        unlike: how the physics of its evaluation differs from that of the data or of the papers; None if it does not.
    """

    path: pathlib.Path
    name: str
    spec: EnvSpec
    task: str
    seed: int
    args: dict[str, Any]
    data: str
    sha256: str
    metric: str
    curve: dict[int, float]
    minutes: dict[int, float]
    machine: str
    unlike: str | None

    @property
    def is_finished(self) -> bool:
        """Whether the last update has been evaluated."""
        return max(self.curve) == self.total_steps

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.args["offline_steps"] + self.args["online_steps"]

    @property
    def headline_steps(self) -> list[int]:
        """The evaluations that make the headline score, as the papers take it: the last that were due."""
        return headline_steps(self.spec.family, self.args, self.curve)

    @property
    def score(self) -> float:
        """Headline score."""
        return sum(self.curve[step] for step in self.headline_steps) / len(self.headline_steps)

    @property
    def data_set(self) -> str:
        """Its data, and what tells it from other data of the same description."""
        return f"{self.data} ({self.settings['data'][:6]})"

    @property
    def paper_group(self) -> str | None:
        """The group of the published table that its task belongs to."""
        return group_of(self.spec)

    def minutes_at(self, step: int) -> float:
        """Wall-clock minutes from the start to this update; not a number where they are not known."""
        known = list(self.minutes), list(self.minutes.values())
        return float(np.interp(step, *known, right=math.nan)) if self.minutes else math.nan


@dataclasses.dataclass
class Comparison:
    """Runs by task and method.

    Attributes:
        tasks: task -> method -> runs, one a seed. A method is an algorithm, with what else distinguishes its runs where
            one task has several: 'DROL(16), hidden_sizes 64 64'.
        notes: what was left out, or is not what it seems, a line each.
    """

    tasks: dict[str, dict[str, list[Run]]]
    notes: list[str]

    @property
    def methods(self) -> list[str]:
        """Every method: DROL(4) before DROL(16)."""
        return sorted({method for methods in self.tasks.values() for method in methods}, key=natural)

    @property
    def algorithms(self) -> list[str]:
        """Every algorithm, likewise."""
        return sorted({run.algorithm for run in self.runs}, key=natural)

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for methods in self.tasks.values() for members in methods.values() for run in members]

    @property
    def title(self) -> str:
        """What all runs have in common that is not the paper's: 'tau 0.01; hidden_sizes 64 64'; '' if nothing is."""
        named = [run.algorithm.split(", ")[1:] for run in self.runs]
        sizes = [run.size.split(", ") for run in self.runs]
        return "; ".join([*_in_all(named), *_in_all(sizes)])

    def label(self, method: str) -> str:
        """A method's name without what the title says."""
        (algorithm,) = {run.algorithm for of in self.tasks.values() for run in of.get(method, [])} or {method}
        name, *others = algorithm.split(", ")
        return ", ".join(
            [name, *(other for other in others if other not in self.title.split("; "))]
        ) + method.removeprefix(algorithm)

    @property
    def notes_on_minutes(self) -> list[str]:
        """Where they cannot be compared."""
        tasks = collections.defaultdict(list)
        for task, methods in self.tasks.items():
            timed = {run.machine for members in methods.values() for run in members if run.minutes}
            tasks["; ".join(sorted(timed))] += [task] * (len(timed) > 1)
        return [f"minutes on unlike machines: {names} ({', '.join(of)})" for names, of in tasks.items() if of]

    def finished(self, task: str, method: str) -> list[Run]:
        """The runs that have come to their end: scores are taken from these alone."""
        return [run for run in self.tasks[task].get(method, []) if run.is_finished]

    def counted(self, task: str, method: str) -> list[Run]:
        """The runs that curves are averaged over: the finished ones, or all while there are none."""
        return self.finished(task, method) or self.tasks[task].get(method, [])

    def methods_of(self, task: str, algorithm: str) -> list[str]:
        """The methods of an algorithm on one task; more than one if it was run with several settings."""
        return [name for name, members in self.tasks[task].items() if members[0].algorithm == algorithm]


def _in_all(lists: list[list[str]]) -> list[str]:
    """What is in each of them. That a script was changed belongs to a name wherever it stands."""
    return [item for item in lists[0] if all(item in each for each in lists) and item not in ("", "modified")]


def read(paths: list[pathlib.Path]) -> Comparison:
    """Read run directories, or folders that hold some.

    Raises:
        UserError: there is not one run among them that has been evaluated.
    """
    runs, notes = [], []
    for path, name in _find(paths):
        try:
            runs.append(_read_run(path, name, notes))
        except UserError as error:
            notes.append(f"left out: {str(error).replace(str(path), name)}")
    if not runs:
        raise UserError("; ".join(["nothing to show", *notes]))

    scripts, by_name = collections.defaultdict(set), collections.defaultdict(list)
    for run in runs:
        scripts[run.algorithm].add(run.script)
    for run in runs:
        others = f", script {run.script}" * (len(scripts[run.algorithm]) > 1)
        by_name[run.task, run.algorithm + others].append(dataclasses.replace(run, algorithm=run.algorithm + others))
    tasks = collections.defaultdict(dict)
    for (task, algorithm), group in sorted(by_name.items(), key=lambda item: [natural(name) for name in item[0]]):
        for method, members in _by_settings(algorithm, group).items():
            tasks[task][method] = _one_per_seed(members, notes)
    for name, versions in scripts.items():
        if len(versions) > 1:
            notes.append(f"{name}: by {len(versions)} scripts that do other things, each under a name of its own")
    comparison = Comparison(dict(tasks), notes)
    notes += _notes_on(comparison)
    return comparison


def _notes_on(comparison: Comparison) -> list[str]:
    """What is not the paper's, not finished, or unlike."""
    notes = []
    for attribute, words in (("size", "not the paper's size: "), ("unlike", "")):
        for value in sorted({getattr(run, attribute) for run in comparison.runs} - {"", None}):
            of = ", ".join(sorted({run.task for run in comparison.runs if getattr(run, attribute) == value}))
            notes.append(f"{words}{value} ({of})")
    few = collections.defaultdict(list)
    for task, methods in comparison.tasks.items():
        for method, members in methods.items():
            for run in members:
                last, total, wanted = max(run.curve), run.total_steps, evaluations_in_score(run.spec.family)
                if not run.is_finished:
                    notes.append(f"unfinished, no score: {run.name} ({task}, {method}: {last:,} of {total:,} updates)")
                elif len(run.headline_steps) < wanted:
                    few[len(run.headline_steps), wanted].append(run.name)
        hashes = collections.defaultdict(set)
        for run in (run for members in methods.values() for run in members):
            hashes[run.settings["data"]].add(run.sha256)
        for same in hashes.values():
            if len(same) > 1:
                short = ", ".join(sorted(digest[:6] for digest in same))
                notes.append(f"{task}: the data was collected {len(same)} times by the same recipe (SHA-256 {short})")
        notes += _unlike(task, methods)
    for (number, wanted), names in few.items():
        others = f" and {len(names) - 3} others" if len(names) > 3 else ""
        notes.append(f"score of {number} of {wanted} evaluations: {', '.join(names[:3])}{others}")
    return notes


def report(notes: list[str]) -> None:
    """Name on stderr what was left out."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def printable(name: str) -> str:
    """A name that no terminal acts on, in one line: what is not a character in it, by its code."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _find(paths: list[pathlib.Path]) -> list[tuple[pathlib.Path, str]]:
    """Run directories and their names. A folder that is none stands for those in it, at any depth (a sweep's)."""
    found = {}
    for path in paths:
        inside = []
        if not (path / "config.json").exists():
            inside = sorted(config.parent for config in path.rglob("config.json"))
            if all(run.parent == path for run in inside):  # then what is beside the runs should be one, too
                inside = sorted(folder for folder in path.glob("*") if folder.is_dir())
        for folder in inside or [path]:
            name = f"{path.name}/{folder.relative_to(path)}" if inside else str(folder)
            found[folder.resolve()] = folder, printable(name)
    return list(found.values())


def _read_run(path: pathlib.Path, name: str, notes: list[str]) -> Run:
    """One run; damage in its tables is noted, and what comes before it is kept.

    Raises:
        UserError: it cannot be used.
    """
    config = read_config(path)
    evaluations, times = _read_table(path, name, "eval", notes), _read_table(path, name, "time", notes)
    if not evaluations:
        raise UserError(f"{name} has no evaluation yet")
    try:
        args, spec, together = config["args"], EnvSpec(**config["environment"]), len(config["seeds_together"])
        args["hidden_sizes"]
        mujoco = config["versions"].get("mujoco")
        is_default = spec.suite == "d4rl" or spec.task_number == dataclasses.replace(spec, task=None).task_number
        if config["algorithm"] not in algorithms.names():
            missing = f"there is no {config['algorithm']}.py here"
            notes.append(f"{name}: {missing}, so its settings are not compared with the paper's")
        run = Run(
            path=path,
            name=name,
            **vars(identify(config)),
            spec=spec,
            task=(dataclasses.replace(spec, task=None) if is_default else spec).short_name,
            seed=args["seed"],
            args=args,
            data=describe_source(config["dataset"]),
            sha256=config["dataset"]["sha256"],
            metric=score_metric(evaluations),
            curve={step: score for step, score in scores(evaluations).items() if math.isfinite(score)},
            minutes={int(row["step"]): row["time/seconds"] / 60 for row in times},
            machine=config["device"] + (f", {together} seeds together" if together > 1 else ""),
            unlike=mujoco_versions.difference(spec, config["dataset"], mujoco) if mujoco else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: config.json or a table is damaged ({error!r})") from error
    if len(run.curve) < len(evaluations):
        notes.append(f"{name}: evaluations that are not finite are left out")
    if not run.curve:
        raise UserError(f"{name} has no finite evaluation")
    return run


def _read_table(path: pathlib.Path, name: str, table: str, notes: list[str]) -> list[Row]:
    file = path / f"{table}.csv"
    if not file.exists():
        return []
    try:
        return read_table(file)
    except UserError as error:
        notes.append(f"only what comes before the damage is used: {str(error).replace(str(path), name)}")
        return read_table(file, at_damage="stop")
    except OSError as error:
        raise UserError(f"{name}: {describe_os_error(error)}") from error


def _by_settings(algorithm: str, runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that may be averaged, by a name that says what distinguishes them: 'DROL(16), bc_coef 3'.

    Of one seed that was run with several versions of common/ neither run counts twice, nor is it left out.
    """
    names = sorted({name for run in runs for name in run.settings})
    varying = [name for name in names if len({describe_value(run.settings.get(name)) for run in runs}) > 1]
    if len({(run.seed, run.common) for run in runs}) > len({run.seed for run in runs}):
        varying.append("common/")
    groups = collections.defaultdict(list)
    for run in runs:
        values = run.settings | {"data": run.data_set, "common/": run.common}
        method = ", ".join([algorithm, *(f"{name} {describe_value(values.get(name))}" for name in varying)])
        groups[method].append(run)
    return dict(groups)


def _one_per_seed(runs: list[Run], notes: list[str]) -> list[Run]:
    """Two runs of one seed would count twice: the one that went further stands."""
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: max(run.curve)):
        if run.seed in by_seed:
            notes.append(f"left out: {by_seed[run.seed].name} has the seed and settings of {run.name}")
        by_seed[run.seed] = run
    return [by_seed[seed] for seed in sorted(by_seed)]


def _unlike(task: str, methods: dict[str, list[Run]]) -> list[str]:
    """A line for each setting that the methods of one task should share and do not, for their data and for common/."""
    notes, names = [], dict.fromkeys(name for members in methods.values() for name in members[0].budget)
    for name in (*names, "data", "common/"):
        values = {}
        for method, members in methods.items():
            each = {{"data": run.data_set, "common/": run.common}.get(name, run.budget.get(name)) for run in members}
            values[method] = " and ".join(sorted(map(str, each)))
        in_names = any(f", {name} " in method for method in methods)
        if (len(set(values.values())) > 1 and not in_names) or any(" and " in value for value in values.values()):
            notes.append(f"unlike in {task}: {name} " + ", ".join(f"{v} ({m})" for m, v in values.items()))
    return notes
