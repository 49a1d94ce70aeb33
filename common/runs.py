"""Runs of seeds that are trained together: on disk each is a run of its own, in the training loop they go on as one."""

import contextlib
import dataclasses
import datetime
import pathlib
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from common import algorithms, compiled, machine, mujoco_versions
from common.arguments import Published, RunArgs, check_alone, complete, flag, for_resuming, given
from common.checkpoints import DAMAGE
from common.data import sources
from common.env_ids import EnvSpec, resolve
from common.errors import UserError, describe_os_error
from common.progress import announce
from common.replay import Dataset, check_room, resized, rows_of_ring
from common.run_directory import Checkpoint, RunDirectory, check_vacant, import_wandb
from common.schedule import Schedule
from common.scores import SCORES, headline_steps, score_metric, scores
from common.seeds import Seeds
from common.tables import Row

import jax
import numpy as np


class Outcome(NamedTuple):
    """Of one run: its folder, updates so far, and its headline score, if it has ended."""

    path: pathlib.Path
    step: int
    score: float | None


class Runs:
    """The runs of several seeds, in step. Arrays have a leading axis of seeds, in the order of `seeds`.

    Attributes:
        each: their folders.
        args: their arguments, none of them unset; after `load_dataset` `data_memory` says where the data set lies.
        origins: of what the papers tabulate: 'given', 'published' or 'default'.
        seeds: their numbers.
        spec: environment and task.
        dataset_path: data file; None where it is yet to be found.
        step: updates that all of them have a checkpoint of, once they are restored.
        sums: of each metric since the last row of train.csv [seeds, 2]: the sum, and of how many updates; float64.
    """

    def __init__(self, each: Sequence[RunDirectory], args: RunArgs, dataset_path: pathlib.Path | None, *, is_new: bool):
        """Use `start` or `reopen`."""
        self.each, self.args, self.dataset_path, self._is_new = list(each), args, dataset_path, is_new
        self.origins: dict[str, str] = each[0].config["origins"]
        self.seeds: list[int] = [run.config["args"]["seed"] for run in each]
        self.spec = each[0].spec
        self.step = 0
        self.sums: dict[str, np.ndarray] = {}
        self._before, self._num_transitions = args, 0  # what their checkpoints were written with; of the data set
        self._like = Checkpoint(None)  # what a checkpoint of one seed holds, in structure, shapes and dtypes

    @staticmethod
    def start(args: RunArgs, algorithm: str, published_settings: Published) -> "Runs":
        """New runs, of which nothing is on disk before their data is there (`load_dataset`).

        Args:
            args: as given; what was left unset takes what is published, else the default.
            algorithm: name of the script.
            published_settings: the paper's.

        Raises:
            UserError: arguments that do not go together; a folder that is taken.
        """
        _check(args, algorithm)
        spec = resolve(args.env_id, args.dataset_path)
        args, origins = complete(args, spec, published_settings)
        seeds = list(range(args.seed, args.seed + args.num_seeds))
        config = {
            "algorithm": algorithm,
            "environment": dataclasses.asdict(spec),
            "origins": origins,
            "seeds_together": seeds,
        }
        each = []
        for seed, path in zip(seeds, new_paths(args.run_dir, algorithm, spec, seeds), strict=True):
            args_of_one = dataclasses.replace(args, seed=seed, num_seeds=1, run_dir=path)
            each.append(RunDirectory(path, config | {"args": dataclasses.asdict(args_of_one)}))
        return Runs(each, args, args.dataset_path, is_new=True)

    @staticmethod
    def reopen(args: RunArgs, algorithm: str, published_settings: Published) -> "Runs":
        """Those of --resume.

        Args:
            args: as given: `resume`, and where the data is by now.
            algorithm: name of the script.
            published_settings: the paper's, for arguments that the runs did not have yet.

        Raises:
            UserError: one of them is not a run directory, a run of another algorithm, or in use; they differ in more
                than the seed, or another version of the script made them; what is given beside does not go with them.
        """
        _check(args, algorithm)
        with contextlib.ExitStack() as opened:  # and closed, should something be refused
            each = [opened.enter_context(RunDirectory.open(path, algorithm)) for path in args.resume]
            settings = [run.read_args(type(args)) for run in each]
            for run, other in zip(each, settings, strict=True):
                for name, value in vars(other).items():
                    if name not in ("seed", "run_dir") and value != getattr(settings[0], name):
                        pair = f"{each[0].path} and {run.path}"
                        raise UserError(f"{pair} cannot go on together: they differ in {flag(name)}")
            before, _ = complete(settings[0], each[0].spec, published_settings)
            now = for_resuming(before, args, max((step for run in each for step in run.checkpoints.steps()), default=0))
            dataset_path = each[0].find_data(args)
            if args.run_dir is None:
                opened.pop_all()
            else:
                seeds = [run.config["args"]["seed"] for run in each]
                paths = new_paths(args.run_dir, algorithm, each[0].spec, seeds)
                each = [run.copy(path) for run, path in zip(each, paths, strict=True)]
        for run in each:
            run.change(now)
        runs = Runs(each, now, dataset_path, is_new=False)
        runs._before = before
        return runs

    def load_dataset(self) -> Dataset:
        """Find, download or collect the data set (NumPy arrays); new runs take their folders when it is there.

        Raises:
            UserError: there is no data, or not what the runs began with; a folder was taken meanwhile.
        """
        args = self.args
        if args.track:
            import_wandb()
        dataset, provenance = sources.load(self.spec, dataclasses.replace(args, dataset_path=self.dataset_path))
        dataset = _of_last_frames(args, dataset)
        check_room(args, dataset)
        self._num_transitions = dataset.num_transitions
        self.args = dataclasses.replace(args, data_memory=machine.place_data(args.data_memory, dataset))
        if self.args.data_memory != "device" and args.online_steps > 0:
            raise UserError("--online-steps needs the data set on the device")
        for run in self.each:
            if self._is_new:
                run.create(provenance, {"observation": dataset.observation_shape, "action": dataset.action_dim})
            run.check_data(provenance)
            run.check_physics()
            run.note_changes_of_code()
            if args.track:
                run.track(args.wandb_project)
        self.dataset_path = pathlib.Path(provenance["path"])
        self._announce(dataset, provenance)
        return dataset

    def _announce(self, dataset: Dataset, provenance: sources.Provenance) -> None:
        """Say what is going to be trained."""
        args, origins = self.args, self.origins
        observation = " x ".join(map(str, dataset.observation_shape))
        announce(
            environment=f"{self.spec.name}, observations {observation}, actions {dataset.action_dim}",
            data=f"{sources.describe(provenance)}, {dataset.describe_size()}, on the {args.data_memory}",
            settings=", ".join(f"{name} {getattr(args, name)} ({origin})" for name, origin in origins.items()),
            run=", ".join(str(run.path) for run in self.each),
        )
        mujoco_versions.note_difference(self.spec, provenance)
        if "default" in origins.values():
            print(f"note: nothing is published for {self.spec.family}; tune {flag(next(iter(origins)))}", flush=True)

    @property
    def paths(self) -> str:
        """For messages."""
        return " ".join(str(run.path) for run in self.each)

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
        before, now = (rows_of_ring(args, self._num_transitions) for args in (self._before, self.args))
        has_grown = before < now
        like = self._like._replace(replay=resized(self._like.replay, before)) if has_grown else self._like
        self.step = self.last_common_step(like)
        if self.step > 0:
            each = [run.checkpoints.restore(self.step, like) for run in self.each]
            restored = _stack([c._replace(replay=resized(c.replay, now)) for c in each] if has_grown else each)
            states, replays = seeds.spread((restored.state, restored.replay))
            self.sums = _stack([run.checkpoints.restore_dict(self.step, ".sums") for run in self.each])
        elif evaluated := [str(run.path) for run in self.each if run.evaluations]:
            raise UserError(
                f"{', '.join(evaluated)}: without checkpoints; put them back, or begin in another --run-dir"
            )
        for run in self.each:
            run.rewind(self.step)
        return states, replays

    def last_common_step(self, like: Checkpoint) -> int:
        """The newest update that all runs have a sound checkpoint of; 0 if none of them has any.

        Args:
            like: what a checkpoint of one seed holds, in structure, shapes and dtypes.

        Raises:
            UserError: they have no checkpoint in common, or all are damaged.
        """
        sound = [run.checkpoints.sound_steps(like) for run in self.each]
        if not any(sound):
            return 0  # new runs, or killed before their first checkpoint
        began_together = len({tuple(run.config["seeds_together"]) for run in self.each}) == 1
        if not all(sound) and max(map(len, sound)) == 1 and began_together:
            return 0  # killed between the first checkpoints of the seeds
        common = set.intersection(*sound)
        if not common:
            stand = [f"{run.path} at {max(steps, default=0):,}" for run, steps in zip(self.each, sound, strict=True)]
            raise UserError(f"these runs stand at different updates, resume each of them alone: {', '.join(stand)}")
        return max(common)

    def save(self, step: int, states: Any, replays: Any) -> None:
        """Write a checkpoint of each seed, unless it is there; empty places beyond the last seed are left out."""
        if all(run.saved_step == step for run in self.each):
            return
        checkpoint = jax.device_get(Checkpoint(states, replays, self.sums))
        for i, run in enumerate(self.each):
            if run.saved_step != step:
                run.save(step, jax.tree.map(lambda leaf, i=i: leaf[i], checkpoint))

    def save_is_due(self, step: int) -> bool:
        """Whether a checkpoint belongs after update `step`: one for its evaluation, or --save-minutes have passed."""
        minutes = (time.monotonic() - self.each[0].saved_at) / 60
        return self.evaluation_is_due(step) or minutes >= self.args.save_minutes

    def add_metrics(self, first: int, metrics: dict[str, np.ndarray]) -> None:
        """Add those of the updates after `first` to the sums.

        Args:
            first: updates before the first of them.
            metrics: each [seeds, updates], or [seeds] of a single update.

        Raises:
            UserError: one is not finite.
        """
        metrics = {name: values.reshape(len(self.seeds), -1) for name, values in metrics.items()}
        finite = np.logical_and.reduce([np.isfinite(values) for values in metrics.values()])
        if not finite.all():
            update, place = np.argwhere(~finite.T)[0]
            names = ", ".join(name for name, values in metrics.items() if not np.isfinite(values[place, update]))
            where = f"seed {self.seeds[place]}, update {first + 1 + update}"
            last_good = self.each[place].checkpoints.last_good()
            raise UserError(f"not finite ({where}): {names}; the run is stopped, {last_good}")
        for name, values in metrics.items():
            total = self.sums.setdefault(name, np.zeros((len(self.seeds), 2)))
            # One update after the other, so that a run has the same bits however it is cut into chunks.
            total[:, 0] = np.cumsum(np.column_stack([total[:, 0], values]), axis=1, dtype=np.float64)[:, -1]
            total[:, 1] += values.shape[1]

    def take_means(self) -> list[Row]:
        """Of each seed, over the updates since the last row that have each metric; the next interval begins."""
        means = {name: total[:, 0] / total[:, 1] for name, total in self.sums.items()}
        self.sums = {}
        return [{name: float(mean[i]) for name, mean in means.items()} for i in range(len(self.seeds))]

    def log(self, table: str, step: int, rows: Iterable[Row]) -> None:
        """Append a row to the table of each seed. Raises `UserError` if the disk is full."""
        for run, row in zip(self.each, rows, strict=True):
            run.log(table, {"step": step, **row})

    def evaluation_is_due(self, step: int) -> bool:
        """Whether an evaluation of any seed belongs after update `step` that is not in its log yet."""
        return any(run.is_due(step) for run in self.each)

    def missed_evaluations(self) -> Iterator[tuple[int, Any]]:
        """Evaluations that an earlier sitting began and did not end: the step, and the states, [seeds, ...]."""
        like = Checkpoint(self._like.state)
        for step in sorted({step for run in self.each for step in run.due_checkpoints()}):
            try:
                restored = [run.checkpoints.restore(step, like) if run.is_due(step) else None for run in self.each]
                stand_in = next(state for state in restored if state is not None)  # for seeds that have been evaluated
                yield step, _stack([stand_in if state is None else state for state in restored]).state
            except DAMAGE as error:  # nothing left to evaluate
                print(f"warning: the evaluation after update {step:,} is lost ({error})", file=sys.stderr, flush=True)

    def log_evaluation(self, step: int, results: Iterable[Row]) -> list[Row]:
        """Append a row to eval.csv, unless it is there (of seeds that were killed between their rows).

        Returns:
            The results that are new.
        """
        due = [(run, result) for run, result in zip(self.each, results, strict=True) if run.is_due(step)]
        for run, result in due:
            run.log("eval", {"step": step, **result})
        return [result for _, result in due]

    def outcomes(self, step: int) -> list[Outcome]:
        """The score of each run after update `step`, or how to go on; also in the last lines printed."""
        total = Schedule.of(vars(self.args)).total
        if not all(step == total and step in run.evaluations for run in self.each):
            script = f"{self.each[0].config['algorithm']}.py"
            print(f"saved at update {step:,} of {total:,}; to go on: python {script} --resume {self.paths}")
            return [Outcome(run.path, step, None) for run in self.each]
        outcomes = []
        for run in self.each:
            metric, by_step = score_metric(run.evaluations.values()), scores(run.evaluations.values())
            last = headline_steps(self.spec.family, run.config["args"], by_step)
            steps = ", ".join(f"{step:,}" for step in last)
            score = sum(by_step[step] for step in last) / len(last)
            which = f"mean of the evaluations after {steps}" if len(last) > 1 else f"evaluation after {steps}"
            print(f"done: {SCORES[metric]} {score:.1f}, {which} updates; {run.path}")
            outcomes.append(Outcome(run.path, step, score))
        return outcomes

    def close(self) -> None:
        """Finish what `track` began, and let others into the folders."""
        with contextlib.ExitStack() as stack:
            for run in self.each:
                stack.callback(run.close)


def _check(args: RunArgs, algorithm: str) -> None:
    """What can be refused before anything is touched."""
    check_alone(args)
    algorithms.code_of(algorithm)  # remembered: what is edited while data is collected is not what runs
    machine.check()
    compiled.keep()


def _of_last_frames(args: RunArgs, dataset: Dataset) -> Dataset:
    """As many frames an observation as arguments say. Raises `UserError` if they are about images and it has none."""
    if dataset.firsts is None:
        for name in ("frame_stack", "p_aug", "encoder_sizes"):
            if name in given(args):
                value = " ".join(map(str, np.ravel(getattr(args, name))))
                raise UserError(f"{flag(name)} {value} is of images, and observations are vectors here")
        return dataset
    return dataclasses.replace(dataset, frame_stack=args.frame_stack or 1)


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
