"""A run's folder: its settings, tables and checkpoints, its lock, and where its data is by now."""

import contextlib
import dataclasses
import datetime
import io
import json
import math
import pathlib
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

from common import actions, algorithms, minari_envs, mujoco_versions
from common.arguments import Args, RunArgs, flag, in_their_types
from common.checkpoints import Checkpoints
from common.data import d4rl_hdf5
from common.env_ids import EnvSpec, minari_id
from common.errors import UserError, describe_os_error, expanded
from common.files import holder_of, try_lock, write_whole
from common.machine import describe_device
from common.roles import Role, with_role
from common.schedule import Schedule
from common.tables import Row, Table

import jax
import numpy as np
from jaxtyping import Array, Key

DATASET_DIR = "~/.ogbench/data"
IN_NO_COPY = shutil.ignore_patterns(".*", "config.json", "wandb", "*-damaged-*")
TABLES = ("train", "eval", "time", "exploration")
PACKAGES = {
    "ogbench": ("jax", "jaxlib", "equinox", "optax", "numpy", "ogbench", "mujoco", "gymnasium"),
    "d4rl": ("jax", "jaxlib", "equinox", "optax", "numpy", "minari", "mujoco", "gymnasium", "gymnasium-robotics"),
    "d4rl_hdf5": (
        *("jax", "jaxlib", "equinox", "optax", "numpy", "h5py", "ogbench", "mujoco", "gymnasium", "gymnasium-robotics"),
    ),
    "gymnasium": ("jax", "jaxlib", "equinox", "optax", "numpy", "mujoco", "gymnasium"),
}


class Checkpoint(NamedTuple):
    """What a run needs to go on; to evaluate it, the parameters of its state are enough."""

    state: Any
    replay: Any = None
    sums: dict[str, np.ndarray] | None = None  # of metrics since the last row of train.csv


class Learned(NamedTuple):
    """What is needed of a state to act, whatever the rest of it was when it was saved."""

    params: Any


class RunDirectory:
    """Settings, logs and checkpoints of one run of one seed.

    Attributes:
        path: its folder.
        config: what config.json holds; of a run that has not begun, what is known of it.
        spec: environment and task.
        checkpoints: its checkpoints.
        evaluations: the rows of eval.csv, by step.
        seconds: of wall-clock that all sittings before have spent; known once it is rewound.
        saved_step: update of the newest checkpoint; -1 where there is none yet.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        """A run that `create` is to begin, with `algorithm`, `environment`, `args`, `origins` and `seeds_together`."""
        self.path, self.config, self.spec = path, config, EnvSpec(**config["environment"])
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.evaluations: dict[int, Row] = {}
        self.seconds = 0.0
        self.saved_at, self.saved_step = time.monotonic(), -1
        self._tables = {name: Table(path / f"{name}.csv") for name in TABLES}
        self._changed: dict[str, list[Any]] = {}  # arguments, from and to
        self._wandb: Any = None
        self._lock: io.TextIOWrapper | None = None

    def create(self, provenance: dict[str, Any], sizes: dict[str, Any]) -> "RunDirectory":
        """Take the folder, and write config.json.

        Args:
            provenance: where the data came from.
            sizes: shape of an `observation`, and length of an `action`.

        Raises:
            UserError: there is something at this path already, or it cannot be written.
        """
        config = self.config | {
            "dataset": provenance,
            "sizes": sizes,
            # and with what other code it went on, from where
            "code": [{"step": 0} | algorithms.code_of(self.config["algorithm"])],
            "versions": {package: metadata.version(package) for package in PACKAGES[self.spec.suite]},
            "device": describe_device(),
            "started": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
            "id": uuid.uuid4().hex,  # of the run wherever its folder goes, for Weights & Biases
            "changes": [],  # of arguments, by sittings that went on otherwise
        }
        self.config = _as_json(config)
        self._take_folder()
        return self

    def copy(self, path: pathlib.Path) -> "RunDirectory":
        """Another run, that goes on from here in a folder of its own.

        Raises:
            UserError: there is something at this path already, or it cannot be written.
        """
        args = self.config["args"] | {"run_dir": str(path)}
        config = self.config | {"args": args, "id": uuid.uuid4().hex, "continues": str(self.path)}
        run = RunDirectory(path, config)
        run._take_folder(lambda: shutil.copytree(self.path, path, ignore=IN_NO_COPY, dirs_exist_ok=True))
        run.evaluations = self.evaluations
        return run

    def _take_folder(self, fill: Callable[[], object] = lambda: None) -> None:
        """Make it, keep others out, fill it, and write config.json."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            check_vacant(self.path)  # only now: of two that start at once, the second sees the run of the first
            fill()
            self._write_config()
        except FileExistsError as error:
            raise UserError(f"--run-dir {self.path} is not a folder") from error
        except OSError as error:
            raise UserError(f"cannot write the run directory: {describe_os_error(error)}") from error

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
            run._take_lock()
        run.evaluations = {int(row["step"]): row for row in run._tables["eval"].rows(at_damage="skip")}
        return run

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_config(self) -> None:
        text = json.dumps(self.config, indent=2) + "\n"
        write_whole(self.path / "config.json", lambda temporary: temporary.write_text(text))

    def _take_lock(self) -> None:
        """Keep other processes out of the folder as long as this one lives."""
        self._lock = try_lock(self.path / ".lock")
        if self._lock is None:
            raise UserError(f"{self.path} is in use by {holder_of(self.path / '.lock')}")

    def find_data(self, args: RunArgs) -> pathlib.Path:
        """Where the data is by now: where `args` say so, else where it was, else where it would be found today.

        In training its SHA-256 decides later.

        Raises:
            UserError: another Minari data set is there.
        """
        path, suite = pathlib.Path(self.config["dataset"]["path"]), self.spec.suite
        if args.dataset_path is not None:
            given = expanded(args.dataset_path)
            if suite == "d4rl" and (found := minari_id(given)) not in (None, self.spec.name):
                raise UserError(f"--dataset-path {given}: {found}, but the run is about {self.spec.name}")
            return given
        if args.dataset_dir != RunArgs.dataset_dir:
            return expanded(args.dataset_dir) / path.name
        folders = (self.config["args"]["dataset_dir"], DATASET_DIR)
        today = [pathlib.Path(folder).expanduser() / path.name for folder in folders]
        if suite in (places := {"d4rl": minari_envs.local_path, "d4rl_hdf5": d4rl_hdf5.local_path}):
            today = [] if path.exists() else [places[suite](self.spec.name)]
        return next((place for place in (path, *today) if place.exists()), path)

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
    def sizes(self) -> tuple[tuple[int, ...], int]:
        """Shape of an observation, and length of an action."""
        shape = np.atleast_1d(self.config["sizes"]["observation"])  # of older runs a length
        return tuple(map(int, shape)), self.config["sizes"]["action"]

    @property
    def bytes_of_transition(self) -> int:
        """In a batch: two observations, an action, a reward and a mask, as float32; images of bytes."""
        observation, action = self.sizes
        return (8 if len(observation) == 1 else 2) * math.prod(observation) + 4 * (action + 2)

    def note_changes_of_code(self) -> None:
        """Say what does other things now than in the code that the run was last trained with."""
        before, now = self.config["code"][-1], algorithms.code_of(self.config["algorithm"])
        files = {"script": f"{self.config['algorithm']}.py", "common": "common/"}
        if changed := [file for key, file in files.items() if before[key] != now[key]]:
            began = f"commit {before['commit'][:10]}" if before["commit"] else "another version"
            print(f"note: {' and '.join(changed)} changed since {self.path} was trained (with {began})", flush=True)

    def change(self, args: RunArgs) -> None:
        """Go on with these arguments; its config has them as soon as it is rewound."""
        default, now = (_as_json(dataclasses.asdict(each)) for each in (type(args)(), args))
        before = default | self.config["args"]  # which may be older than an argument
        names = [name for name in with_role(type(args), Role.RESUME) if before[name] != now[name]]
        self._changed = {name: [before[name], now[name]] for name in sorted(names)}
        self.config["args"] |= {name: now[name] for name in names}

    def _record_sitting(self, step: int) -> None:
        """Add to its config with what code and arguments it goes on after update `step`, where they are others."""
        before = json.dumps(self.config)
        now = {"step": step} | algorithms.code_of(self.config["algorithm"])
        code = [each for each in self.config["code"] if each["step"] < step]  # what came later is trained again
        if not code or any(code[-1][key] != now[key] for key in ("script", "common")):
            code.append(now)
        self.config["code"] = code
        if self._changed:
            changes = self.config.get("changes", [])
            self.config["changes"] = [*changes, {"step": step} | self._changed]
            said = ", ".join(f"{flag(name)} {now} (before: {before})" for name, (before, now) in self._changed.items())
            print(f"note: {self.path} goes on after update {step:,} with {said}", flush=True)
        if json.dumps(self.config) != before or self._changed:
            self._changed = {}
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
        now = mujoco_versions.installed()
        before = self.config.get("versions", {}).get("mujoco", now)
        if mujoco_versions.changes(self.spec, before) != mujoco_versions.changes(self.spec, now):
            raise UserError(
                f"{self.path} is evaluated with MuJoCo {before}, and {now} moves {self.spec.env_name} otherwise: "
                f"pip install mujoco=={before} to go on, or begin a new run"
            )

    def is_due(self, step: int) -> bool:
        """Whether an evaluation belongs after update `step` that is not in the log yet."""
        return Schedule.of(self.config["args"]).evaluation_is_due(step) and step not in self.evaluations

    def due_checkpoints(self) -> list[int]:
        """The steps of those whose evaluation is not in the log yet."""
        return [step for step in self.checkpoints.steps() if self.is_due(step)]

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; every row logged so far reaches the disk before it does.

        One whose evaluation is still due is kept until that is in the log: should the run be stopped before, the
        evaluation is made up for.
        """
        for table in self._tables.values():
            with self._writing(table.path):
                table.flush()
        with self._writing(self.checkpoints.folder):
            self.checkpoints.save(step, checkpoint, keep=self.due_checkpoints())
        self.saved_at, self.saved_step = time.monotonic(), step

    @contextlib.contextmanager
    def _writing(self, path: pathlib.Path) -> Iterator[None]:
        """Turn a full disk into a line that says how to go on."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(path)
            go_on = f"nothing before is lost, {self.checkpoints.last_good()}; when there is room: --resume {self.path}"
            raise UserError(f"cannot write: {describe_os_error(error)}; {go_on}") from error

    def newest_params(self, init_state: Callable[[Key[Array, ""]], Any]) -> tuple[int, Any]:
        """Updates so far, and what had been learned by then: parameters, as NumPy arrays.

        Of a run that is training, a checkpoint may be pruned before it is read: then there is a newer one.

        Args:
            init_state: makes a state from a key.

        Raises:
            UserError: there is no checkpoint yet.
        """
        like = Checkpoint(Learned(jax.eval_shape(init_state, jax.random.key(0)).params))
        while steps := self.checkpoints.sound_steps(like):
            with contextlib.suppress(FileNotFoundError):
                return max(steps), self.checkpoints.restore(max(steps), like).state.params
        raise UserError(f"{self.path}: no checkpoint yet")

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, where the run goes on: it will be logged again, the same."""
        self._record_sitting(step)
        self.checkpoints.rewind(step)
        self.saved_step = step if step in self.checkpoints.steps() else -1
        for debris in self.path.glob(".tmp-*"):  # of a kill while it was written
            debris.unlink()
        for name, table in self._tables.items():
            if not table.path.exists():
                continue
            rows = [row for row in table.rows(at_damage="skip") if row["step"] <= step]
            if name == "eval":
                self.evaluations = {int(row["step"]): row for row in rows}
            if lost := sorted(self._due_rows(name, step) - {int(row["step"]) for row in rows}):
                kept = table.path.with_name(f"{name}-damaged-{time.time_ns()}.csv")
                shutil.copyfile(table.path, kept)
                steps = ", ".join(map(str, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
                problem = f"{table.path} is damaged: the rows after updates {steps} cannot be read, and are lost"
                print(f"warning: {problem}; the file as it was: {kept}", file=sys.stderr, flush=True)
            table.keep(rows)
            if name == "time" and rows:
                self.seconds = rows[-1]["time/seconds"]

    def _due_rows(self, table: str, step: int) -> set[int]:
        """Updates after which a table has a row for sure: a checkpoint after `step` was written later.

        Evaluations whose checkpoint is still there may be under way, or are made again. What was due before arguments
        changed is not asked for.
        """
        changed = max((change["step"] for change in self.config.get("changes", [])), default=0)
        due = Schedule.of(self.config["args"]).rows(table, changed, step)
        return due - set(self.checkpoints.steps()) if table == "eval" else due

    def log(self, table: str, row: Row) -> None:
        """Append a row to a table, in which `step` is the number of updates so far.

        Raises:
            UserError: the disk is full.
        """
        is_evaluation = table == "eval"
        if is_evaluation:
            self.evaluations[int(row["step"])] = row
        with self._writing(self._tables[table].path):
            self._tables[table].append(row, to_disk=is_evaluation)
        if self._wandb is not None:
            self._wandb.log({"update" if name == "step" else name: value for name, value in row.items()})
        if is_evaluation:  # the checkpoint that it was made from may go now
            self.checkpoints.prune(keep=self.due_checkpoints())

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


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


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
