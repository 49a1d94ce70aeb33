"""Runs of seeds that are trained together: on disk each is a run of its own, in the training loop they go on as one."""

import contextlib
import dataclasses
import datetime
import pathlib
import sys
import typing
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from common import checkpoints
from common.env_ids import EnvSpec
from common.errors import UserError
from common.run_directory import SCORES, Row, RunDirectory, check_vacant, headline_evaluations, score_metric

Args = typing.TypeVar("Args")


class Runs:
    """The run directories of several seeds. Arrays have a leading seed axis, in the order of `seeds`."""

    def __init__(self, runs: Sequence[RunDirectory]):
        """Use `create` or `open`."""
        self._runs = list(runs)
        self.seeds: list[int] = [run.config["args"]["seed"] for run in runs]
        self.dataset_path = runs[0].dataset_path

    @staticmethod
    def create(
        paths: Sequence[pathlib.Path],
        algorithm: str,
        spec: EnvSpec,
        args: Any,
        origins: dict[str, str],
        provenance: dict[str, Any],
        seeds: Sequence[int],
    ) -> "Runs":
        """Start new runs; arguments as of `RunDirectory.create`, with a path and a seed for each run.

        Raises:
            UserError: there is something at one of these paths already, or it cannot be written.
        """
        runs = []
        for path, seed in zip(paths, seeds, strict=True):
            args_of_one = dataclasses.replace(args, seed=seed, num_seeds=1, run_dir=path)
            runs.append(RunDirectory.create(path, algorithm, spec, args_of_one, origins, provenance, list(seeds)))
        return Runs(runs)

    @staticmethod
    def open(paths: Sequence[pathlib.Path], algorithm: str) -> "Runs":
        """Open existing runs.

        Raises:
            UserError: one of them is not a run directory, a run of another algorithm, or in use.
        """
        return Runs([RunDirectory.open(path, algorithm) for path in paths])

    def read_args(self, args_class: type[Args]) -> Args:
        """The arguments that the runs were started with, which may differ in the seed alone.

        Raises:
            UserError: they differ in something else, or another version of the script made them.
        """
        each = [run.read_args(args_class) for run in self._runs]
        for run, args in zip(self._runs, each, strict=True):
            for name, value in vars(args).items():
                if name not in ("seed", "run_dir") and value != getattr(each[0], name):
                    pair = f"{self._runs[0].path} and {run.path}"
                    raise UserError(f"{pair} cannot go on together: they differ in --{name.replace('_', '-')}")
        return each[0]

    def check_data(self, provenance: dict[str, Any]) -> None:
        """Raises `UserError` if this is not the data that the runs were started on."""
        for run in self._runs:
            run.check_data(provenance)

    def track(self, project: str) -> None:
        """Send every row to Weights & Biases, too. Raises `UserError` if it does not start."""
        for run in self._runs:
            run.track(project)

    def __str__(self) -> str:
        return ", ".join(str(run.path) for run in self._runs)

    @property
    def origins(self) -> dict[str, str]:
        """Where each setting came from."""
        return self._runs[0].config["origins"]

    @property
    def seconds(self) -> float:
        """Of wall-clock that all sittings together have spent; known once the runs are rewound."""
        return max(run.seconds for run in self._runs)

    def last_common_step(self, like: Any) -> int:
        """The newest update that all runs have a sound checkpoint of; 0 if none of them has any.

        Args:
            like: what a checkpoint of one seed holds, in structure, shapes and dtypes.

        Raises:
            UserError: they have no checkpoint in common, or all are damaged.
        """
        sound = [checkpoints.sound_steps(run.path / "checkpoints", like) for run in self._runs]
        if not any(sound):
            return 0  # new runs, or killed before their first checkpoint
        if not all(sound) and max(map(len, sound)) == 1:
            return 0  # killed between the first checkpoints of the seeds
        common = set.intersection(*sound)
        if not common:
            stand = [f"{run.path} at {max(steps, default=0):,}" for run, steps in zip(self._runs, sound, strict=True)]
            raise UserError(f"these runs stand at different updates, resume each of them alone: {', '.join(stand)}")
        return max(common)

    def restore(self, step: int, like: Any) -> Any:
        """Read the checkpoints after update `step`, as NumPy arrays. To go on from there, rewind the runs."""
        return _stack([run.restore(step, like) for run in self._runs])

    def restore_newest(self, like: Any) -> tuple[int, Any]:
        """`last_common_step` and what was saved there; 0 and None if there is no checkpoint.

        Of a run that is training, a checkpoint may be pruned between the two: then there is a newer one.
        """
        while (step := self.last_common_step(like)) > 0:
            with contextlib.suppress(FileNotFoundError):
                return step, self.restore(step, like)
        return 0, None

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, where the runs go on: it will be logged again, the same."""
        for run in self._runs:
            run.rewind(step)

    def missed_evaluations(self, like: Any) -> Iterator[tuple[int, Any]]:
        """Evaluations that an earlier sitting began and did not end: the step, and what its checkpoints hold.

        Args:
            like: what a checkpoint of one seed holds, in structure, shapes and dtypes.
        """
        steps = {step for run in self._runs for step in run.checkpoint_steps()[:-1] if run.is_due(step)}
        for step in sorted(steps):
            try:
                restored = [run.restore(step, like) if run.is_due(step) else None for run in self._runs]
                stand_in = next(state for state in restored if state is not None)  # for seeds that have been evaluated
                yield step, _stack([stand_in if state is None else state for state in restored])
            except checkpoints.DAMAGE as error:  # nothing left to evaluate
                print(f"warning: the evaluation after update {step:,} is lost ({error})", file=sys.stderr, flush=True)

    def is_due(self, step: int) -> bool:
        """Whether an evaluation of any seed belongs after update `step` that is not in its log yet."""
        return any(run.is_due(step) for run in self._runs)

    def save(self, step: int, tree: Any) -> None:
        """Write a checkpoint of each seed, unless it is there; entries beyond the last seed are left out."""
        for i, run in enumerate(self._runs):
            if run.saved_step != step:
                run.save(step, jax.tree.map(lambda leaf, i=i: leaf[i], tree))

    def minutes_since_save(self) -> float:
        """Wall-clock since the last checkpoint of this sitting, or since its beginning."""
        return self._runs[0].minutes_since_save()

    def log(self, table: str, step: int, rows: Iterable[Row]) -> None:
        """Append a row to the table of each seed. Raises `OSError` if the disk is full."""
        for run, row in zip(self._runs, rows, strict=True):
            run.log(table, {"step": step, **row})

    def log_evaluation(self, step: int, results: Iterable[Row]) -> list[Row]:
        """The same to eval.csv, unless it is there (of seeds that were killed between their rows).

        Returns:
            The results that are new.
        """
        due = [(run, result) for run, result in zip(self._runs, results, strict=True) if run.is_due(step)]
        for run, result in due:
            run.log("eval", {"step": step, **result})
        return [result for _, result in due]

    def print_outcome(self, step: int, total: int) -> None:
        """The last lines: the score of each run, or how to go on."""
        if not all(step == total and step in run.evaluations for run in self._runs):
            paths = " ".join(str(run.path) for run in self._runs)
            script = pathlib.Path(sys.argv[0]).name
            print(f"saved at update {step:,} of {total:,}; to go on: python {script} --resume {paths}")
            return
        for run in self._runs:
            rows = headline_evaluations(run.config["environment"]["suite"], list(run.evaluations.values()))
            steps = ", ".join(f"{row['step']:,}" for row in rows)
            metric = score_metric(rows)
            score = sum(row[metric] for row in rows) / len(rows)
            which = f"mean of the evaluations after {steps}" if len(rows) > 1 else f"evaluation after {steps}"
            print(f"done: {SCORES[metric]} {score:.1f}, {which} updates; {run.path}")

    def last_good(self, seed: int) -> str:
        """Where the last good state of a seed is, for a message."""
        return self._runs[self.seeds.index(seed)].last_good()

    def close(self) -> None:
        """Finish what `track` began."""
        with contextlib.ExitStack() as stack:
            for run in self._runs:
                stack.callback(run.close)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def new_paths(path: pathlib.Path | None, algorithm: str, spec: EnvSpec, seeds: Sequence[int]) -> list[pathlib.Path]:
    """The folders of new runs, one a seed: PATH itself, or PATH/seed0, PATH/seed1, .. where there are several seeds.

    Args:
        path: the folder that was asked for; runs/ALGORITHM-ENV-seedSEED-DATE-TIME-XXXXXX if None, with six random
            digits: jobs of a loop start in the same second.
        algorithm: 'drol' or 'fql'.
        spec: environment.
        seeds: seeds.

    Raises:
        UserError: there is something at one of these paths already.
    """
    if path is None:
        now = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        paths = [pathlib.Path("runs") / f"{algorithm}-{spec.short_name}-seed{seed}-{now}" for seed in seeds]
    else:
        paths = [path] if len(seeds) == 1 else [path / f"seed{seed}" for seed in seeds]
    for each in paths:
        check_vacant(each)
    return paths


class IntervalMetrics:
    """Metrics of the updates since the last row of train.csv. Checkpoints between two rows hold them."""

    def __init__(self, names: Iterable[str], runs: Runs, log_interval: int):
        """Args:
        names: of the metrics.
        runs: whose they are.
        log_interval: updates between rows.
        """
        # A ring of updates. What a checkpoint of one seed holds is a row of each.
        self.values = {name: np.zeros((len(runs.seeds), log_interval), np.float32) for name in names}
        self._runs, self._log_interval = runs, log_interval

    def add(self, first: int, metrics: dict[str, np.ndarray]) -> None:
        """Remember the metrics of the updates after `first`.

        Args:
            first: updates before the first of them.
            metrics: each [seeds or more, updates], or [seeds or more] of a single update.

        Raises:
            UserError: one is not finite.
        """
        seeds = self._runs.seeds
        metrics = {name: values[: len(seeds)].reshape(len(seeds), -1) for name, values in metrics.items()}
        finite = np.logical_and.reduce([np.isfinite(values) for values in metrics.values()])
        if not finite.all():
            update, place = np.argwhere(~finite.T)[0]
            names = ", ".join(name for name, values in metrics.items() if not np.isfinite(values[place, update]))
            where = f"seed {seeds[place]}, update {first + 1 + update}"
            last_good = self._runs.last_good(seeds[place])
            raise UserError(f"not finite ({where}): {names}; the run is stopped, {last_good}")
        for name, values in metrics.items():
            self.values[name][:, np.arange(first, first + finite.shape[1]) % self._log_interval] = values

    def means(self, first: int, step: int) -> list[Row]:
        """Of each seed, over the updates after `first` up to `step`, at most a log interval."""
        since = np.arange(first, step) % self._log_interval
        means = {name: values[:, since].mean(axis=1, dtype=np.float64) for name, values in self.values.items()}
        return [{name: float(mean[i]) for name, mean in means.items()} for i in range(len(self._runs.seeds))]
