"""Runs of seeds that are trained together: on disk each is a run of its own, in the training loop they go on as one."""

import contextlib
import dataclasses
import datetime
import pathlib
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from common import algorithms, checkpoints, compiled, machine, mujoco_versions
from common.arguments import Args, Published, RunArgs, check_alone, complete, flag
from common.data import sources
from common.env_ids import EnvSpec, minari_id, resolve
from common.errors import UserError, describe_os_error, expanded
from common.progress import announce
from common.replay import Dataset, check_room
from common.run_directory import (
    SCORES,
    Row,
    RunDirectory,
    check_vacant,
    headline_steps,
    import_wandb,
    score_metric,
    scores,
)
from common.seeds import Seeds


class Checkpoint(NamedTuple):
    """What a run needs to go on; to evaluate it, the state is enough."""

    state: Any
    replay: Any = None
    sums: dict[str, np.ndarray] | None = None  # of metrics since the last row of train.csv


class Learned(NamedTuple):
    """What is needed of a state to act, whatever the rest of it was when it was saved."""

    params: Any


class Outcome(NamedTuple):
    """Of one run: its folder, updates so far, and its headline score, if it has ended."""

    path: pathlib.Path
    step: int
    score: float | None


class Runs:
    """The run directories of several seeds. Arrays have a leading seed axis, in the order of `seeds`.

    Attributes:
        seeds: their numbers.
        spec: environment and task.
        dataset_path: data file.
        step: updates that all of them have a checkpoint of, once they are restored.
        unlogged: metrics since the last row of train.csv.
    """

    def __init__(self, runs: Sequence[RunDirectory]):
        """Use `begin`, `create` or `open`."""
        self._runs = list(runs)
        self.seeds: list[int] = [run.config["args"]["seed"] for run in runs]
        self.spec = EnvSpec(**runs[0].config["environment"])
        self.dataset_path = runs[0].dataset_path
        self.step = 0
        self.unlogged = IntervalMetrics(self)
        self._like = Checkpoint(None)  # what a checkpoint of one seed holds, in structure, shapes and dtypes

    @staticmethod
    def begin(args: Args, algorithm: str, published_settings: Published) -> tuple[Args, Dataset, "Runs"]:
        """Start new runs, or open those of --resume. What can be refused is refused before any data is touched.

        Args:
            args: as given.
            algorithm: name of the script.
            published_settings: the paper's.

        Returns:
            The arguments without what was left unset (`data_memory` says where the data set lies), the data set (NumPy
            arrays), and the runs.

        Raises:
            UserError: arguments that do not go together; no data; a folder that is taken.
        """
        check_alone(args)
        algorithms.code_of(algorithm)  # remembered: what is edited while data is collected is not what runs
        machine.check()
        compiled.keep()
        resumed = Runs.open(args.resume, algorithm) if args.resume else None
        if resumed is not None:
            resumed.find_data(args)
            args = resumed.read_args(type(args))
        spec = resumed.spec if resumed else resolve(args.env_id, args.dataset_path)
        args, origins = complete(args, spec, published_settings)
        origins = resumed.origins if resumed else origins
        seeds = resumed.seeds if resumed else list(range(args.seed, args.seed + args.num_seeds))
        paths = [] if resumed else new_paths(args.run_dir, algorithm, spec, seeds)
        if args.track:
            import_wandb()
        dataset_path = resumed.dataset_path if resumed else args.dataset_path
        dataset, provenance = sources.load(spec, dataclasses.replace(args, dataset_path=dataset_path))
        check_room(args, dataset)
        data_memory = machine.place_data(args.data_memory, dataset.num_bytes)
        if data_memory == "host" and args.online_steps > 0:
            raise UserError("--online-steps needs the data set on the device")
        sizes = {"observation": dataset.observation_dim, "action": dataset.action_dim}
        runs = resumed or Runs.create(paths, algorithm, spec, args, origins, provenance, sizes, seeds)
        for run in runs._runs:
            run.check_data(provenance)
            run.check_physics()
            run.note_changes_of_code()
            if args.track:
                run.track(args.wandb_project)
        announce(
            environment=f"{spec.name}, observations {dataset.observation_dim}, actions {dataset.action_dim}",
            data=f"{sources.describe(provenance)}, {dataset.describe_size()}, on the {data_memory}",
            settings=", ".join(f"{name} {getattr(args, name)} ({origin})" for name, origin in origins.items()),
            run=", ".join(str(run.path) for run in runs._runs),
        )
        mujoco_versions.note_difference(spec, provenance)
        if "default" in origins.values():
            print(f"note: nothing is published for {spec.family}; tune {flag(next(iter(origins)))}", flush=True)
        return dataclasses.replace(args, data_memory=data_memory), dataset, runs

    @staticmethod
    def create(
        paths: Sequence[pathlib.Path],
        algorithm: str,
        spec: EnvSpec,
        args: RunArgs,
        origins: dict[str, str],
        provenance: dict[str, Any],
        sizes: dict[str, int],
        seeds: Sequence[int],
    ) -> "Runs":
        """Start new runs; arguments as of `RunDirectory.create`, with a path and a seed for each run.

        Raises:
            UserError: there is something at one of these paths already, or it cannot be written.
        """
        runs = []
        for path, seed in zip(paths, seeds, strict=True):
            args_of_one = dataclasses.replace(args, seed=seed, num_seeds=1, run_dir=path)
            run = RunDirectory.create(path, algorithm, spec, args_of_one, origins, provenance, sizes, list(seeds))
            runs.append(run)
        return Runs(runs)

    @property
    def origins(self) -> dict[str, str]:
        """Where each resolved setting came from when they were started."""
        return self._runs[0].config["origins"]

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
                    raise UserError(f"{pair} cannot go on together: they differ in {flag(name)}")
        return each[0]

    def find_data(self, args: RunArgs) -> None:
        """Take the data from where `args` say that it is by now, if they do; in training its SHA-256 decides later.

        Raises:
            UserError: another Minari data set is there.
        """
        if args.dataset_path is not None:
            self.dataset_path = expanded(args.dataset_path)
            if self.spec.suite == "d4rl" and (found := minari_id(self.dataset_path)) not in (None, self.spec.name):
                raise UserError(f"--dataset-path {args.dataset_path}: {found}, but the run is about {self.spec.name}")
        elif args.dataset_dir != type(args)().dataset_dir:
            self.dataset_path = expanded(args.dataset_dir) / self.dataset_path.name

    def bytes_of_batches(self, batch_size: int) -> int:
        """Of what one update of all seeds learns from."""
        observation, action = self._runs[0].sizes
        return 4 * len(self._runs) * batch_size * (2 * observation + action + 2)

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
        began_together = len({tuple(run.config["seeds_together"]) for run in self._runs}) == 1
        if not all(sound) and max(map(len, sound)) == 1 and began_together:
            return 0  # killed between the first checkpoints of the seeds
        common = set.intersection(*sound)
        if not common:
            stand = [f"{run.path} at {max(steps, default=0):,}" for run, steps in zip(self._runs, sound, strict=True)]
            raise UserError(f"these runs stand at different updates, resume each of them alone: {', '.join(stand)}")
        return max(common)

    def restore(self, seeds: Seeds, states: Any, replays: Any) -> tuple[Any, Any]:
        """Go on where the runs stand: at their newest common checkpoint, or at the beginning.

        What was logged after that is dropped: it will be logged again, the same.

        Args:
            seeds: their places.
            states: what the runs begin with, [places, ...].
            replays: likewise.

        Returns:
            States and replays to go on with, in their places.

        Raises:
            UserError: as of `last_common_step`; a run has been evaluated, but its checkpoints are gone.
        """
        self._like = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), Checkpoint(states, replays))
        self.step = self.last_common_step(self._like)
        if self.step > 0:
            restored = self.read(self.step, self._like)
            states, replays = seeds.spread((restored.state, restored.replay))
            self.unlogged.sums = _stack([run.restore_dict(self.step, ".sums") for run in self._runs])
        elif evaluated := [str(run.path) for run in self._runs if run.evaluations]:
            raise UserError(
                f"{', '.join(evaluated)}: without checkpoints; put them back, or begin in another --run-dir"
            )
        self.rewind(self.step)
        return states, replays

    def read(self, step: int, like: Any) -> Any:
        """The checkpoints after update `step`, as NumPy arrays in the structure of `like`, [seeds, ...]."""
        return _stack([run.restore(step, like) for run in self._runs])

    def read_newest_params(self, init_state: Callable[[Key[Array, ""]], Any]) -> tuple[int, Any]:
        """`last_common_step`, and what had been learned by then: parameters, as NumPy arrays, [seeds, ...].

        Of a run that is training, a checkpoint may be pruned between the two: then there is a newer one.

        Args:
            init_state: makes a state from a key.

        Raises:
            UserError: there is no checkpoint yet.
        """
        like = Checkpoint(Learned(jax.eval_shape(init_state, jax.random.key(0)).params))
        while (step := self.last_common_step(like)) > 0:
            with contextlib.suppress(FileNotFoundError):
                return step, self.read(step, like).state.params
        raise UserError(f"{', '.join(str(run.path) for run in self._runs)}: no checkpoint yet")

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, where the runs go on: it will be logged again, the same."""
        for run in self._runs:
            run.rewind(step)

    def missed_evaluations(self) -> Iterator[tuple[int, Any]]:
        """Evaluations that an earlier sitting began and did not end: the step, and the states, [seeds, ...]."""
        like = Checkpoint(self._like.state)
        steps = {step for run in self._runs for step in run.checkpoint_steps() if run.is_due(step)}
        for step in sorted(steps):
            try:
                restored = [run.restore(step, like) if run.is_due(step) else None for run in self._runs]
                stand_in = next(state for state in restored if state is not None)  # for seeds that have been evaluated
                yield step, _stack([stand_in if state is None else state for state in restored]).state
            except checkpoints.DAMAGE as error:  # nothing left to evaluate
                print(f"warning: the evaluation after update {step:,} is lost ({error})", file=sys.stderr, flush=True)

    def is_due(self, step: int) -> bool:
        """Whether an evaluation of any seed belongs after update `step` that is not in its log yet."""
        return any(run.is_due(step) for run in self._runs)

    def save(self, step: int, states: Any, replays: Any) -> None:
        """Write a checkpoint of each seed, unless it is there; empty places beyond the last seed are left out."""
        if all(run.saved_step == step for run in self._runs):
            return
        checkpoint = jax.device_get(Checkpoint(states, replays, self.unlogged.sums))
        for i, run in enumerate(self._runs):
            if run.saved_step != step:
                run.save(step, jax.tree.map(lambda leaf, i=i: leaf[i], checkpoint))

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

    def outcome(self, step: int, total: int) -> list[Outcome]:
        """The score of each run after update `step`, or how to go on; also in the last lines printed."""
        if not all(step == total and step in run.evaluations for run in self._runs):
            paths = " ".join(str(run.path) for run in self._runs)
            script = f"{self._runs[0].config['algorithm']}.py"
            print(f"saved at update {step:,} of {total:,}; to go on: python {script} --resume {paths}")
            return [Outcome(run.path, step, None) for run in self._runs]
        outcomes = []
        for run in self._runs:
            metric, by_step = score_metric(run.evaluations.values()), scores(run.evaluations.values())
            last = headline_steps(self.spec.suite, run.config["args"], by_step)
            steps = ", ".join(f"{step:,}" for step in last)
            score = sum(by_step[step] for step in last) / len(last)
            which = f"mean of the evaluations after {steps}" if len(last) > 1 else f"evaluation after {steps}"
            print(f"done: {SCORES[metric]} {score:.1f}, {which} updates; {run.path}")
            outcomes.append(Outcome(run.path, step, score))
        return outcomes

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
        UserError: there is something at one of these paths already, or it cannot be written.
    """
    if path is None:
        now = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        paths = [pathlib.Path("runs") / f"{algorithm}-{spec.short_name}-seed{seed}-{now}" for seed in seeds]
    else:
        paths = [path] if len(seeds) == 1 else [path / f"seed{seed}" for seed in seeds]
    for each in paths:
        check_vacant(each)
        try:
            each.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=each.parent).close()
        except OSError as error:
            raise UserError(f"--run-dir {each}: cannot write there ({describe_os_error(error)})") from error
    return paths


class IntervalMetrics:
    """Means of metrics since the last row of train.csv. Checkpoints between two rows hold their sums."""

    def __init__(self, runs: Runs):
        """Args: runs: whose they are."""
        self.sums: dict[str, np.ndarray] = {}  # of each metric [seeds, 2]: the sum, and of how many updates; float64
        self._runs = runs

    def add(self, first: int, metrics: dict[str, np.ndarray]) -> None:
        """Add the metrics of the updates after `first`.

        Args:
            first: updates before the first of them.
            metrics: each [seeds, updates], or [seeds] of a single update.

        Raises:
            UserError: one is not finite.
        """
        seeds = self._runs.seeds
        metrics = {name: values.reshape(len(seeds), -1) for name, values in metrics.items()}
        finite = np.logical_and.reduce([np.isfinite(values) for values in metrics.values()])
        if not finite.all():
            update, place = np.argwhere(~finite.T)[0]
            names = ", ".join(name for name, values in metrics.items() if not np.isfinite(values[place, update]))
            where = f"seed {seeds[place]}, update {first + 1 + update}"
            last_good = self._runs.last_good(seeds[place])
            raise UserError(f"not finite ({where}): {names}; the run is stopped, {last_good}")
        for name, values in metrics.items():
            total = self.sums.setdefault(name, np.zeros((len(seeds), 2)))
            # One update after the other, so that a run has the same bits however it is cut into chunks.
            total[:, 0] = np.cumsum(np.column_stack([total[:, 0], values]), axis=1, dtype=np.float64)[:, -1]
            total[:, 1] += values.shape[1]

    def take_means(self) -> list[Row]:
        """Of each seed, over the updates that have each metric; the next interval begins."""
        means = {name: total[:, 0] / total[:, 1] for name, total in self.sums.items()}
        self.sums = {}
        return [{name: float(mean[i]) for name, mean in means.items()} for i in range(len(self._runs.seeds))]
