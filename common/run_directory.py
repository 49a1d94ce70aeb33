"""A run's folder: config.json, train.csv, eval.csv, time.csv, checkpoints/ (README, "What a run directory holds")."""

import contextlib
import csv
import dataclasses
import datetime
import io
import json
import pathlib
import shutil
import sys
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, Literal

import numpy as np

from common import actions, algorithms, checkpoints, minari_envs, mujoco_versions
from common.arguments import Args, flag, in_their_types
from common.env_ids import EnvSpec
from common.errors import UserError, describe_os_error
from common.files import flush, holder_of, try_lock, write_whole
from common.machine import describe_device

DATASET_DIR = "~/.ogbench/data"
TABLES = ("train", "eval", "time", "exploration")
# How many of the last evaluations make a score, as in the papers.
HEADLINE_EVALUATIONS = {"ogbench": 3, "d4rl": 1, "gymnasium": 3}
SCORES = {  # metrics that are scores, and what people call them; the first that an evaluation has is its score
    "evaluation/normalized_score": "normalised score (%)",
    "evaluation/success": "success (%)",
    "evaluation/return": "return",
}
PACKAGES = {
    "ogbench": ("jax", "jaxlib", "equinox", "optax", "numpy", "ogbench", "mujoco", "gymnasium"),
    "d4rl": ("jax", "jaxlib", "equinox", "optax", "numpy", "minari", "mujoco", "gymnasium", "gymnasium-robotics"),
    "gymnasium": ("jax", "jaxlib", "equinox", "optax", "numpy", "mujoco", "gymnasium"),
}

Row = dict[str, float | int]


class RunDirectory:
    """Logs and checkpoints of one run of one seed."""

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        """Use `create` or `open`."""
        self.path = path
        self.config = config
        self.evaluations: dict[int, Row] = {}  # by step
        self._columns: dict[str, list[str]] = {}  # of tables
        self.seconds = 0.0  # of wall-clock that all sittings together have spent
        self._wandb: Any = None
        self._lock: io.TextIOWrapper | None = None
        self._saved_at, self.saved_step = time.monotonic(), -1  # no checkpoint yet

    @staticmethod
    def create(
        path: pathlib.Path,
        algorithm: str,
        spec: EnvSpec,
        args: Any,
        origins: dict[str, str],
        provenance: dict[str, Any],
        sizes: dict[str, int],
        seeds_together: list[int],
    ) -> "RunDirectory":
        """Start a new run.

        Args:
            path: folder.
            algorithm: 'drol' or 'fql'.
            spec: environment.
            args: the resolved arguments of this seed, a dataclass.
            origins: where each resolved setting came from.
            provenance: where the data came from.
            sizes: of an `observation` and an `action`.
            seeds_together: all seeds that are trained together, this one among them.

        Raises:
            UserError: there is something at this path already, or it cannot be written.
        """
        config = {
            "algorithm": algorithm,
            "environment": dataclasses.asdict(spec),
            "args": dataclasses.asdict(args),
            "origins": origins,
            "dataset": provenance,
            "sizes": sizes,
            "code": [{"step": 0} | algorithms.code_of(algorithm)],  # and with what other code it went on, from where
            "versions": {package: metadata.version(package) for package in PACKAGES[spec.suite]},
            "device": describe_device(),
            "started": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
            "seeds_together": seeds_together,
            "id": uuid.uuid4().hex,  # of the run wherever its folder goes, for Weights & Biases
        }
        run = RunDirectory(path, json.loads(json.dumps(config, default=str)))
        try:
            path.mkdir(parents=True, exist_ok=True)
            run._locked()
            check_vacant(path)  # only now: of two that start at once, the second sees the run of the first
            run._write_config()
        except FileExistsError as error:
            raise UserError(f"--run-dir {path} is not a folder") from error
        except OSError as error:
            raise UserError(f"cannot write the run directory: {describe_os_error(error)}") from error
        return run

    @staticmethod
    def open(path: pathlib.Path, algorithm: str, *, lock: bool = True) -> "RunDirectory":
        """Open an existing run; without the lock, to read it only.

        Raises:
            UserError: it is not a run directory, or a run of another algorithm.
        """
        config = read_config(path)
        if config["algorithm"] != algorithm:
            raise UserError(f"{path}: a run of {config['algorithm']}.py, not of {algorithm}.py")
        run = RunDirectory(path, config)
        if lock:
            run._locked()
        if (path / "eval.csv").exists():
            rows = read_table(path / "eval.csv", at_damage="skip")
            run.evaluations = {int(row["step"]): row for row in rows}
        return run

    def _write_config(self) -> None:
        text = json.dumps(self.config, indent=2) + "\n"
        write_whole(self.path / "config.json", lambda temporary: temporary.write_text(text))

    def _locked(self) -> "RunDirectory":
        """Keep other processes out of the folder as long as this one lives."""
        self._lock = try_lock(self.path / ".lock")
        if self._lock is None:
            raise UserError(f"{self.path} is in use by {holder_of(self.path / '.lock')}")
        return self

    @property
    def dataset_path(self) -> pathlib.Path:
        """The data that the run was started on, or, where it has moved, would be found today (`check_data` decides)."""
        path = pathlib.Path(self.config["dataset"]["path"])
        if self.config["environment"]["suite"] == "d4rl":
            folders = [minari_envs.local_path(self.config["environment"]["name"])] if not path.exists() else []
        else:
            dirs = (self.config["args"]["dataset_dir"], DATASET_DIR)
            folders = [pathlib.Path(folder).expanduser() / path.name for folder in dirs]
        return next((place for place in (path, *folders) if place.exists()), path)

    def read_args(self, args_class: type[Args]) -> Args:
        """The arguments that the run was started with; one that the script did not have then takes its default.

        Raises:
            UserError: another version of the script, with arguments that this one does not have, made the run.
        """
        values, known = self.config["args"], {field.name: field.default for field in dataclasses.fields(args_class)}
        if unknown := sorted(set(values) - set(known)):
            names = ", ".join(map(flag, unknown))
            raise UserError(f"{self.path} was made by another version of the script, this one has no {names}")
        if new := sorted(set(known) - set(values)):
            taken = ", ".join(f"{flag(name)} {known[name]}" for name in new)
            print(f"note: {self.path} is older than some arguments, which take their defaults: {taken}", flush=True)
        return args_class(**in_their_types(args_class, values))

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths of an observation and of an action."""
        return self.config["sizes"]["observation"], self.config["sizes"]["action"]

    def note_changes_of_code(self) -> None:
        """Say what does other things now than in the code that the run was last trained with."""
        before, now = self.config["code"][-1], algorithms.code_of(self.config["algorithm"])
        files = {"script": f"{self.config['algorithm']}.py", "common": "common/"}
        if changed := [file for key, file in files.items() if before[key] != now[key]]:
            began = f"commit {before['commit'][:10]}" if before["commit"] else "another version"
            print(f"note: {' and '.join(changed)} changed since {self.path} was trained (with {began})", flush=True)

    def _record_code(self, step: int) -> None:
        """Add the code that the run goes on with after update `step` to its config, where it does other things."""
        now = {"step": step} | algorithms.code_of(self.config["algorithm"])
        code = [each for each in self.config["code"] if each["step"] < step]  # what came later is trained again
        if not code or any(code[-1][key] != now[key] for key in ("script", "common")):
            code.append(now)
        if code != self.config["code"]:
            self.config["code"] = code
            with self._writing(self.path / "config.json"):
                self._write_config()

    def check_data(self, provenance: dict[str, Any]) -> None:
        """Raises `UserError` if this is not the data that the run was started on."""
        if provenance["sha256"] != self.config["dataset"]["sha256"]:
            raise UserError(
                f"{provenance['path']} is not the data that {self.path} was trained on: its SHA-256 differs"
            )
        bounds = [each.get("action_bounds") for each in (self.config["dataset"], provenance)]
        if bounds[0] != bounds[1]:
            before, now = map(actions.describe, bounds)
            raise UserError(f"{self.path}: actions of the environment lay in {before}, and lie in {now} now")

    def check_physics(self) -> None:
        """Raises `UserError` if its evaluations so far are of another physics: they would become one score."""
        spec, now = EnvSpec(**self.config["environment"]), mujoco_versions.installed()
        before = self.config.get("versions", {}).get("mujoco", now)
        if mujoco_versions.changes(spec, before) != mujoco_versions.changes(spec, now):
            raise UserError(
                f"{self.path} is evaluated with MuJoCo {before}, and {now} moves {spec.env_name} otherwise: "
                f"pip install mujoco=={before} to go on, or begin a new run"
            )

    def is_due(self, step: int) -> bool:
        """Whether an evaluation belongs after update `step` that is not in the log yet."""
        args = self.config["args"]
        ends = (args["offline_steps"], args["offline_steps"] + args["online_steps"])
        is_scheduled = step in ends or (step > 0 and step % args["eval_interval"] == 0)
        return is_scheduled and step not in self.evaluations

    def save(self, step: int, tree: Any) -> pathlib.Path:
        """Write a checkpoint; every row logged so far reaches the disk before it does.

        One whose evaluation is still due is kept until that is in the log: should the run be stopped before, the
        evaluation is made up for.
        """
        for table in TABLES:
            path = self.path / f"{table}.csv"
            if path.exists():
                with self._writing(path), path.open("rb+") as file:
                    flush(file.fileno())
        with self._writing(self.path / "checkpoints"):
            path = checkpoints.save(self.path / "checkpoints", step, tree, keep=self._due_checkpoints())
        self._saved_at, self.saved_step = time.monotonic(), step
        return path

    @contextlib.contextmanager
    def _writing(self, path: pathlib.Path) -> Iterator[None]:
        """Turn a full disk into a line that says how to go on."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(path)
            go_on = f"nothing before is lost, {self.last_good()}; when there is room: --resume {self.path}"
            raise UserError(f"cannot write: {describe_os_error(error)}; {go_on}") from error

    def _due_checkpoints(self) -> list[int]:
        return [step for step in self.checkpoint_steps() if self.is_due(step)]

    def minutes_since_save(self) -> float:
        """Wall-clock since the last checkpoint of this sitting, or since its beginning."""
        return (time.monotonic() - self._saved_at) / 60

    def last_good(self) -> str:
        """Where the last good state is, for a message."""
        return checkpoints.last_good(self.path / "checkpoints")

    def checkpoint_steps(self) -> list[int]:
        """Updates that a checkpoint was saved after, sound or not, in order."""
        return [checkpoints.step_of(path) for path in checkpoints.by_step(self.path / "checkpoints")]

    def restore(self, step: int, like: Any) -> Any:
        """Read the checkpoint after update `step`, as NumPy arrays. To go on from it, the run has to be rewound."""
        return checkpoints.restore(self.path / "checkpoints", step, like)

    def restore_dict(self, step: int, name: str) -> dict[str, np.ndarray]:
        """Read one dict of this checkpoint, whose keys need not be known."""
        return checkpoints.restore_dict(self.path / "checkpoints", step, name)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, where the run goes on: it will be logged again, the same."""
        self._record_code(step)
        self.saved_step = step if step in self.checkpoint_steps() else -1
        folder = self.path / "checkpoints"
        for debris in (*folder.glob(".tmp-*"), *self.path.glob(".tmp-*")):  # of a kill while it was written
            debris.unlink()
        for path in checkpoints.by_step(folder):
            if checkpoints.step_of(path) > step:
                path.unlink()
        for table in TABLES:
            path = self.path / f"{table}.csv"
            if not path.exists():
                continue
            columns = self._columns[table] = _columns(path)
            rows = [row for row in read_table(path, at_damage="skip") if row["step"] <= step]
            if table == "eval":
                self.evaluations = {int(row["step"]): row for row in rows}
            lost = sorted(self._due_rows(table, step) - {int(row["step"]) for row in rows})
            if lost:
                kept = path.with_name(f"{table}-damaged-{time.time_ns()}.csv")
                shutil.copyfile(path, kept)
                steps = ", ".join(map(str, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
                problem = f"{path} is damaged: the rows after updates {steps} cannot be read, and are lost"
                print(f"warning: {problem}; the file as it was: {kept}", file=sys.stderr, flush=True)
            _write_table(path, columns, rows)
            if table == "time" and rows:
                self.seconds = rows[-1]["time/seconds"]

    def _due_rows(self, table: str, step: int) -> set[int]:
        """Updates after which a table has a row for sure: a checkpoint after `step` was written later.

        Evaluations whose checkpoint is still there may be under way, or are made again.
        """
        args = self.config["args"]
        start, interval = 0, args["eval_interval" if table == "eval" else "log_interval"]
        ends = {args["offline_steps"], args["offline_steps"] + args["online_steps"]}
        if table == "exploration":
            start = args["offline_steps"]
        due = {end for end in {*range(interval, step + 1, interval), *ends} if start < end <= step}
        return due - set(self.checkpoint_steps()) if table == "eval" else due

    def log(self, table: str, row: Row) -> None:
        """Append one row, in which `step` is the number of updates so far. A metric that is new is empty before.

        Raises:
            UserError: the disk is full.
        """
        path = self.path / f"{table}.csv"
        if table == "eval":
            self.evaluations[int(row["step"])] = row
        if table not in self._columns:
            self._columns[table] = _columns(path)
        columns = self._columns[table]
        with self._writing(path):
            if new := [name for name in row if name not in columns]:
                columns += new
                _write_table(path, columns, read_table(path, at_damage="skip") if path.exists() else [])
            with path.open("a", newline="") as file:
                _writer(file, columns).writerow(_in_text(row))
                if table == "eval":  # the checkpoint that it was made from may go now
                    file.flush()
                    flush(file.fileno())
        if self._wandb is not None:
            self._wandb.log({"update" if name == "step" else name: value for name, value in row.items()})
        if table == "eval":
            checkpoints.prune(self.path / "checkpoints", keep=self._due_checkpoints())

    def track(self, project: str) -> None:
        """Send every row to Weights & Biases too.

        Raises:
            UserError: it does not start.
        """
        try:
            self._wandb = import_wandb().init(
                project=project,
                name=str(self.path),
                id=self.config["id"],
                resume="allow",
                reinit="create_new",  # each seed is a run of its own there, too
                dir=self.path,
                config=self.config,
            )
            self._wandb.define_metric("update")
            self._wandb.define_metric("*", step_metric="update")  # evaluations arrive after later training rows
        except Exception as error:  # not logged in, no network
            raise UserError(f"--track: Weights & Biases does not start ({error})") from error

    def close(self) -> None:
        """Finish what `track` began, and let others into the folder."""
        if self._wandb is not None:
            self._wandb.finish()
        if self._lock is not None:
            self._lock.close()


def headline_steps(suite: str, args: Mapping[str, Any], evaluated: Collection[int]) -> list[int]:
    """The evaluations whose mean is the headline score, as the papers take it: the last that were due. Never the best.

    An earlier one does not stand in for one that is missing, nor, of a fine-tuned run, one from before the switch.
    """
    end, interval, switch = max(evaluated), args["eval_interval"], args["offline_steps"]
    due = sorted({end, *range(interval, end, interval)})
    last = [step for step in due if end <= switch or step > switch][-HEADLINE_EVALUATIONS[suite] :]
    return [step for step in last if step in evaluated]


def score_metric(evaluations: Iterable[Row]) -> str:
    """The metric that is the score of these evaluations.

    Raises:
        KeyError: they have none.
    """
    had = set().union(*evaluations)
    for metric in SCORES:
        if metric in had:
            return metric
    raise KeyError(f"none of {', '.join(SCORES)}")


def scores(evaluations: Iterable[Row]) -> dict[int, float]:
    """By step, the score of each evaluation that has it; `KeyError` if none has.

    An environment may report success only where there is one: where it reports none, there was none.
    """
    rows = list(evaluations)
    metric = score_metric(rows)
    rows = [{metric: 0.0} | row if metric == "evaluation/success" else row for row in rows]
    return {int(row["step"]): row[metric] for row in rows if metric in row}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config.json of a run.

    Raises:
        UserError: this is not a run directory, or its config.json is damaged.
    """
    try:
        config = json.loads((path / "config.json").read_text())
        config["algorithm"], config["origins"], config["dataset"]["path"], config["dataset"]["sha256"]
        config["dataset"]["source"], config["code"][0]["script"]
        EnvSpec(**config["environment"])
        if not isinstance(config["args"], dict):
            raise TypeError("args is not an object")
    except OSError as error:
        raise UserError(f"{path}: not a run directory ({describe_os_error(error)})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: config.json is damaged ({type(error).__name__}: {str(error)[:200]})") from error
    return config


def check_vacant(path: pathlib.Path) -> None:
    """Raises `UserError` if a new run cannot take this folder.

    It can have what a run leaves that was killed before its first row: a lock, a config, nothing learned.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"--run-dir {path} is not a folder")
    names = {entry.name for entry in path.iterdir() if entry.name != ".lock" and not entry.name.startswith(".tmp-")}
    if "config.json" in names and names != {"config.json"}:
        raise UserError(f"{path} holds a run; name another --run-dir, or go on with it: --resume {path}")
    if names - {"config.json"}:
        raise UserError(f"{path} is not empty; name another --run-dir")


def import_wandb() -> Any:
    """The optional package.

    Raises:
        UserError: it is missing.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError("--track needs Weights & Biases: pip install wandb") from error
    return wandb


def read_table(path: pathlib.Path, *, at_damage: Literal["raise", "skip", "stop"] = "raise") -> list[Row]:
    """The complete rows of a CSV file, without empty cells; the half-written last line of a killed run is left out.

    Args:
        path: CSV file with a column `step`.
        at_damage: leave damaged rows out (what a power cut leaves), or stop before the first, instead of raising.

    Raises:
        UserError: a row is damaged.
    """
    header, *lines = path.read_text(errors="replace").split("\n")[:-1] or [""]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = dict(zip(header.split(","), line.split(","), strict=True))
            metrics = {name: float(value) for name, value in row.items() if name != "step" and value}
            rows.append({"step": int(row["step"])} | metrics)
        except (KeyError, ValueError) as error:
            if at_damage == "raise":
                raise UserError(f"{path}: row {number} is damaged ({error})") from error
            if at_damage == "stop":
                break
    return rows


def _columns(path: pathlib.Path) -> list[str]:
    """The header of a table; empty if there is none yet."""
    if not path.exists():
        return []
    with path.open(errors="replace") as file:
        return [name for name in file.readline().rstrip("\n").split(",") if name]


def _write_table(path: pathlib.Path, columns: list[str], rows: list[Row]) -> None:
    text = io.StringIO()
    if columns:
        writer = _writer(text, columns)
        writer.writeheader()
        writer.writerows(map(_in_text, rows))
    write_whole(path, lambda temporary: temporary.write_text(text.getvalue()))


def _writer(file: io.TextIOBase, columns: list[str]) -> csv.DictWriter:
    return csv.DictWriter(file, columns, restval="", lineterminator="\n")


def _in_text(row: Row) -> dict[str, int | str]:
    return {name: value if isinstance(value, int) else format(value, ".9g") for name, value in row.items()}
