"""One sitting of a training: its chunks, progress, Ctrl-C, and the end of what works in the background."""

import contextlib
import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from common import machine
from common.progress import Progress, announce
from common.runs import Runs
from common.schedule import Schedule
from common.seeds import Seeds
from common.signals import StopSignals

import jax
import numpy as np

SHORT_CHUNK = 50  # updates between signs of life on a CPU; elsewhere a chunk is a log interval
BATCHES_BYTES = 512e6  # of the batches of a chunk at most
SHOWN = ("critic/loss", "critic/q_mean", "actor/q_mean")  # metrics on the progress bar, of those that the algorithm has


class Session:
    """The surroundings of a training loop, from where its runs stand to their last update or the first Ctrl-C.

    Attributes:
        runs: logs and checkpoints of each seed.
        seeds: their keys and places.
        schedule: when rows and evaluations are due.
        step: updates so far.
    """

    def __init__(self, runs: Runs, seeds: Seeds):
        """Args: as the attributes; `runs` stand where they go on."""
        args = runs.args
        self.runs, self.seeds, self.step = runs, seeds, runs.step
        self.schedule = Schedule.of(vars(args))
        self._on_cpu = jax.default_backend() == "cpu"
        bytes_of_update = len(seeds) * args.batch_size * runs.each[0].bytes_of_transition
        longest = max(min(SHORT_CHUNK if self._on_cpu else args.log_interval, BATCHES_BYTES // bytes_of_update), 1)
        # Chunks of a log interval are equally long, where they can be: each length is compiled.
        self._chunk = math.ceil(args.log_interval / math.ceil(args.log_interval / longest))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        announce(seeds=str(self.seeds), device=machine.describe_device())
        self._stop = self._stack.enter_context(StopSignals())
        seconds = max(run.seconds for run in self.runs.each)
        self.progress = self.closing(
            Progress(self.schedule.total, initial=self.step, seconds=seconds, on_cpu=self._on_cpu)
        )
        self.closing(self.runs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def closing(self, worker: Any) -> Any:
        """The same, which is closed at the end of the session, whatever ends it."""
        self._stack.callback(worker.close)
        return worker

    def stop_requested(self) -> bool:
        """Whether there was a Ctrl-C or SIGTERM."""
        return self._stop.requested()

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Updates before and after each chunk, up to the last update, or to the one during which Ctrl-C came."""
        compiled = set()
        while self.step < self.schedule.total and not self.stop_requested():
            end = self.end_of_chunk(self.step)
            program = (end - self.step, self.step < self.schedule.offline_steps)  # its length; offline, or online
            self._compiles = program not in compiled
            if self._compiles:
                self.progress.compiling(end - self.step)
                compiled.add(program)
            self._start = time.monotonic()
            yield self.step, end
            self.step = end

    def end_of_chunk(self, step: int) -> int:
        """Where something is due; sooner on a CPU, where that takes long, and where batches fill the memory."""
        if step >= self.schedule.offline_steps:
            return min(step + 1, self.schedule.total)  # online: a step in the environment between any two updates
        return min(self.schedule.next_due(step), step + self._chunk)

    def log(self, end: int, metrics: dict[str, jax.Array], explorer: Any) -> None:
        """Wait for the chunk, remember its metrics, and write a row of their means wherever one is due.

        Args:
            end: updates after the chunk.
            metrics: each [places, updates], or [places] of a single update.
            explorer: whose episodes are logged as well, once it has begun.

        Raises:
            UserError: a metric is not finite; the disk is full.
        """
        runs = self.runs
        metrics = self.seeds.gather(metrics)
        self.progress.advance(end, None if self._compiles else time.monotonic() - self._start)
        runs.add_metrics(self.step, metrics)
        if self.schedule.row_is_due(end):
            if end > self.schedule.offline_steps:
                runs.log("exploration", end, explorer.summaries())
            means = runs.take_means()
            runs.log("train", end, means)
            runs.log("time", end, [self.progress.times()] * len(self.seeds))
            self.progress.report(
                {name: float(np.mean([mean[name] for mean in means])) for name in SHOWN if name in means[0]}
            )
