"""One sitting of a training: what is due when, news, Ctrl-C, and the end of what works in the background."""

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np

from common import machine
from common.arguments import RunArgs
from common.progress import Progress, announce
from common.runs import Runs
from common.seeds import Seeds
from common.signals import StopSignals

SHORT_CHUNK = 50  # updates between signs of life on a CPU; elsewhere a chunk is a log interval
FETCHED_BYTES = 512e6  # of a chunk's batches at most, where the host fetches them: two are there at a time
SHOWN = ("critic/loss", "critic/q_mean", "actor/q_mean")  # metrics on the progress bar, of those that the algorithm has


class Session:
    """The surroundings of a training loop, from where its runs stand to their last update or the first Ctrl-C.

    Attributes:
        args: arguments of the runs.
        runs: logs and checkpoints of each seed.
        seeds: their keys and places.
        step: updates so far.
    """

    def __init__(self, args: RunArgs, runs: Runs, seeds: Seeds):
        """Args: as the attributes; `runs` stand where they go on."""
        self.args, self.runs, self.seeds = args, runs, seeds
        self.step, self.total = runs.step, args.offline_steps + args.online_steps
        self._on_cpu = jax.default_backend() == "cpu"
        self._longest_chunk = SHORT_CHUNK if self._on_cpu else args.offline_steps
        if args.data_memory == "host":
            fetched = int(FETCHED_BYTES / runs.bytes_of_batches(args.batch_size))
            self._longest_chunk = max(min(self._longest_chunk, fetched), 1)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        announce(seeds=str(self.seeds), device=machine.describe_device())
        self._stop = self._stack.enter_context(StopSignals())
        seconds = self.runs.seconds
        self.progress = self.closing(Progress(self.total, initial=self.step, seconds=seconds, on_cpu=self._on_cpu))
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
        while self.step < self.total and not self.stop_requested():
            end = self.end_of_chunk(self.step)
            program = (end - self.step, self.step < self.args.offline_steps)  # its length; offline, or online
            self._compiles = program not in compiled
            if self._compiles:
                self.progress.compiling(end - self.step)
                compiled.add(program)
            self._start = time.monotonic()
            yield self.step, end
            self.step = end

    def end_of_chunk(self, step: int) -> int:
        """Where something is due; sooner on a CPU, where that takes long, and where batches fill the memory."""
        args = self.args
        if step >= args.offline_steps:
            return min(step + 1, self.total)  # online: a step in the environment between any two updates
        ends = [step + interval - step % interval for interval in (args.log_interval, args.eval_interval)]
        return min(*ends, args.offline_steps, step + self._longest_chunk)

    def log(self, end: int, metrics: dict[str, jax.Array], explorer: Any) -> None:
        """Wait for the chunk, remember its metrics, and write a row of their means wherever one is due.

        Args:
            end: updates after the chunk.
            metrics: each [places, updates], or [places] of a single update.
            explorer: whose episodes are logged as well, once it has begun.

        Raises:
            UserError: a metric is not finite.
            OSError: the disk is full.
        """
        metrics = self.seeds.gather(metrics)
        self.progress.advance(end, None if self._compiles else time.monotonic() - self._start)
        self.runs.unlogged.add(self.step, metrics)
        offline_steps, interval = self.args.offline_steps, self.args.log_interval
        if end % interval == 0 or end in (offline_steps, self.total):
            if end > offline_steps:
                self.runs.log("exploration", end, explorer.summaries())
            means = self.runs.unlogged.take_means()
            self.runs.log("train", end, means)
            self.runs.log("time", end, [self.progress.times()] * len(self.seeds))
            self.progress.report(
                {name: float(np.mean([mean[name] for mean in means])) for name in SHOWN if name in means[0]}
            )

    def save_is_due(self, end: int) -> bool:
        """Whether a checkpoint belongs after update `end`: one for its evaluation, or --save-minutes have passed."""
        return self.evaluation_is_due(end) or self.runs.minutes_since_save() >= self.args.save_minutes

    def evaluation_is_due(self, end: int) -> bool:
        """Whether an evaluation belongs after update `end`: each --eval-interval, and at the end of each phase."""
        return self.runs.is_due(end)
