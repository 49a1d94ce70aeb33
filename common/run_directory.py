"""A run's folder: config.json, train.csv, eval.csv, time.csv, checkpoints/ (README, "What a run directory holds")."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import types
import typing
from importlib import metadata
from typing import Any

import jax

from common import checkpoints
from common.errors import UserError, describe_os_error
from common.files import write_whole

TABLES = ("train", "eval", "time")
HEADLINE_EVALUATIONS = {"ogbench": 3, "d4rl": 1}  # how many of the last evaluations make a score, as in the papers
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "ogbench", "mujoco", "gymnasium")

Row = dict[str, float | int]


class RunDirectory:
    """Logs and checkpoints of one run of one seed."""

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        """Use `create` or `open`."""
        self.path = path
        self.config = config
        self.evaluations: dict[int, Row] = {}  # by step
        self.seconds = 0.0  # of wall-clock that all sittings together have spent
        self._wandb: Any = None

    @staticmethod
    def create(path: pathlib.Path, config: dict[str, Any]) -> "RunDirectory":
        """Start a new run.

        Raises:
            UserError: there is a run at this path already, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"{path} is not empty; name another --run-dir, or go on with it: --resume {path}")
            text = json.dumps(config, indent=2, default=str) + "\n"
            write_whole(path / "config.json", lambda temporary: temporary.write_text(text))
        except OSError as error:
            raise UserError(f"cannot write the run directory: {describe_os_error(error)}") from error
        return RunDirectory(path, config)

    @staticmethod
    def open(path: pathlib.Path) -> "RunDirectory":
        """Open an existing run.

        Raises:
            UserError: it is not a run directory.
        """
        try:
            config = json.loads((path / "config.json").read_text())
            config["args"], config["algorithm"], config["dataset"]["sha256"]  # what resuming needs
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = describe_os_error(error) if isinstance(error, OSError) else f"config.json is damaged: {error!r}"
            raise UserError(f"{path} is not a run directory ({problem})") from error
        return RunDirectory(path, config)

    def save(self, step: int, tree: Any) -> pathlib.Path:
        """Write a checkpoint; every row logged so far reaches the disk before it does."""
        for table in TABLES:
            if (self.path / f"{table}.csv").exists():
                with (self.path / f"{table}.csv").open("rb+") as file:
                    os.fsync(file.fileno())
        return checkpoints.save(self.path / "checkpoints", step, tree)

    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from; a run that was killed before the first one starts at its beginning."""
        return any((self.path / "checkpoints").glob("step-*.npz"))

    def restore(self, like: Any) -> Any:
        """Read the newest sound checkpoint."""
        return checkpoints.restore_latest(self.path / "checkpoints", like)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: the resumed run logs it again."""
        for table in TABLES:
            path = self.path / f"{table}.csv"
            if not path.exists():
                continue
            rows = [row for row in read_table(path) if row["step"] <= step]
            text = io.StringIO()
            if rows:
                _write_rows(text, rows, header=True)
            write_whole(path, lambda temporary, text=text: temporary.write_text(text.getvalue()))
            if table == "eval":
                self.evaluations = {int(row["step"]): row for row in rows}
            if table == "time" and rows:
                self.seconds = rows[-1]["time/seconds"]

    def log(self, table: str, row: Row) -> None:
        """Append one row, in which `step` is the number of updates so far.

        Raises:
            OSError: the disk is full.
        """
        if table == "eval":
            self.evaluations[int(row["step"])] = row
        path = self.path / f"{table}.csv"
        with path.open("a", newline="") as file:
            _write_rows(file, [row], header=file.tell() == 0)
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def headline(self) -> float:
        """The score as the papers take it: mean success (OGBench: last three evaluations) in percent. Never the best."""
        steps = self.headline_steps()
        return sum(self.evaluations[step]["evaluation/success"] for step in steps) / len(steps)

    def headline_steps(self) -> list[int]:
        """The evaluations that make the headline score."""
        return sorted(self.evaluations)[-HEADLINE_EVALUATIONS[self.config["environment"]["suite"]] :]

    def track(self, project: str) -> None:
        """Send every row to Weights & Biases too.

        Raises:
            UserError: the package is missing.
        """
        try:
            import wandb
        except ImportError as error:
            raise UserError("--track needs Weights & Biases: pip install wandb") from error
        self._wandb = wandb.init(
            project=project, name=self.path.name, id=self.path.name, resume="allow", dir=self.path, config=self.config
        )

    def close(self) -> None:
        """Finish what `track` began."""
        if self._wandb is not None:
            self._wandb.finish()


def read_table(path: pathlib.Path) -> list[Row]:
    """The complete rows of a CSV file; the half-written last line of a killed run is left out.

    Raises:
        UserError: a row is damaged.
    """
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    try:
        return [
            {name: int(value) if name == "step" else float(value) for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(complete))
        ]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error})") from error


def _write_rows(file: typing.TextIO, rows: list[Row], *, header: bool) -> None:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(
        {name: value if isinstance(value, int) else format(value, ".9g") for name, value in row.items()} for row in rows
    )


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {package: metadata.version(package) for package in PACKAGES}


def device() -> dict[str, Any]:
    """What the run runs on."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.local_device_count(),
        "cpu_cores": os.cpu_count(),
    }


def args_from_json(args_class: type, values: dict[str, Any]) -> Any:
    """The inverse of writing `dataclasses.asdict(args)` to JSON: paths and tuples come back as such.

    Raises:
        UserError: the run was made by another version of the script, with other arguments.
    """
    hints = typing.get_type_hints(args_class)
    names = {field.name for field in dataclasses.fields(args_class)}
    if names != set(values):
        raise UserError(f"the run was made with other arguments ({', '.join(sorted(names ^ set(values)))})")

    def decode(value: Any, hint: Any) -> Any:
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is not None and pathlib.Path in options:
            return pathlib.Path(value)
        return tuple(value) if isinstance(value, list) else value

    return args_class(**{name: decode(values[name], hints[name]) for name in names})
