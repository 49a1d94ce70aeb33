"""What surrounds a training loop: a polite stop, and news about how far it is."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import TracebackType

import tqdm

SLOW_RUN_S = 3600
SAME_SIGNAL_S = 0.3  # job schedulers deliver one signal twice, to the group and to the process
SLOW_RUN_HINT = (
    "that is long, on a CPU: in README.md, 'Quick start' is a run for a CPU, and 'Accelerators' has the "
    "line that adds a GPU"
)


def announce(**lines: str) -> None:
    """Print what a run resolved to, a line each."""
    for name, text in lines.items():
        print(f"{name:<12} {text}", flush=True)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that this thread spawns meanwhile do not see Ctrl-C, and do not import a script started by its path.

    A terminal sends Ctrl-C to all of us, but it is for the parent to handle. Workers inherit what is blocked; a handler
    of their own would come too late for a Ctrl-C while they import. Workers of an evaluation need none of the script.
    """
    resource_tracker.ensure_running()  # it would lift the block when it is first needed
    script = vars(sys.modules["__main__"])
    hidden = {name: script.pop(name) for name in ("__file__",) if name in script}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        script.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def interrupt_event() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, for a loop that asks for it. A KeyboardInterrupt would be lost now and then:

    Python drops an exception in a callback of its garbage collector, and JAX has one. Main thread only.
    """
    interrupted = threading.Event()
    handler = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, handler)


class StopSignals:
    """The first Ctrl-C or SIGTERM asks the loop to stop after its chunk; the second ends the process at once.

    Python runs signal handlers between bytecodes, hence not while XLA computes. The wake-up file descriptor is written
    to immediately, and a thread reads it.
    """

    def __enter__(self) -> "StopSignals":
        self._requested = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
        }
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._writer.close()

    def requested(self) -> bool:
        """Whether the loop should save and end."""
        return self._requested.is_set()

    def _watch(self) -> None:
        first: tuple[int, float] | None = None
        while received := self._reader.recv(1):
            number, now = received[0], time.monotonic()
            if number not in self._old_handlers:
                continue
            if first is None:
                first = number, now
                self._requested.set()
                os.write(2, b"\nstopping after this chunk and saving; once more stops at once\n")
            elif number != first[0] or now - first[1] > SAME_SIGNAL_S:
                os.write(2, b"\nstopped at once; what the last checkpoint holds can be resumed\n")
                os._exit(128 + number)


class Progress:
    """A progress bar with updates per second and time left; one line for each log row where there is no terminal."""

    def __init__(self, total: int, *, initial: int, seconds: float, on_cpu: bool):
        """Args:
        total: updates of the whole run.
        initial: updates done before this sitting.
        seconds: wall-clock that earlier sittings took.
        on_cpu: whether to say where faster machines are, should it take long.
        """
        self.total, self.step, self._on_cpu = total, initial, on_cpu
        self._initial = initial
        self._start = time.monotonic() - seconds
        self._training_s = 0.0
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total,
            initial=initial,
            unit="update",
            desc="training",
            disable=not self._is_terminal,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def timed(self, end: int) -> Iterator[None]:
        """Around a chunk (already compiled) that ends after update `end`. The first one foretells the whole run."""
        start = time.monotonic()
        yield
        self._training_s += time.monotonic() - start
        is_first = self.step == self._initial
        self._bar.update(end - self.step)
        self.step = end
        if is_first:
            left_s = (self.total - end) * self.seconds_per_update
            self.say(
                f"one update takes {1e3 * self.seconds_per_update:.3g} ms: the other {self.total - end:,} will take "
                f"about {duration(left_s)}, and evaluations come on top"
            )
            if self._on_cpu and left_s > SLOW_RUN_S:
                self.say(SLOW_RUN_HINT)

    @property
    def seconds_per_update(self) -> float:
        """Mean over this sitting."""
        return self._training_s / max(self.step - self._initial, 1)

    def times(self) -> dict[str, float]:
        """Columns of time.csv: wall-clock of all sittings with everything in it, and the training alone."""
        return {
            "time/seconds": time.monotonic() - self._start,
            "time/ms_per_update": 1e3 * self.seconds_per_update,
        }

    def compiling(self, num_updates: int) -> None:
        """A word before the longest silence of a run."""
        self.say(f"compiling a chunk of {num_updates:,} updates (seconds on a CPU, up to a minute elsewhere)")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def report(self, numbers: dict[str, float]) -> None:
        """Show the newest numbers: on the bar, or as a line where there is none."""
        text = describe(numbers)
        if self._is_terminal:
            self._bar.set_postfix_str(text)
        else:
            rate = 1 / self.seconds_per_update if self.step > self._initial else 0
            left = duration((self.total - self.step) * self.seconds_per_update)
            now = time.strftime("%H:%M:%S")
            self.say(f"{now}  {self.step:>9,} of {self.total:,}  {rate:.4g} updates/s  {left} left  {text}")

    def report_evaluation(self, step: int, results: list[dict[str, float]]) -> None:
        """Print what the policies of each seed were worth after update `step`, by now a while ago."""
        means = {name: sum(result[name] for result in results) / len(results) for name in results[0]}
        which = f" (means over {len(results)} seeds)" if len(results) > 1 else ""
        self.say(f"{time.strftime('%H:%M:%S')}  {step:>9,} of {self.total:,}  {describe(means)}{which}")


def describe(numbers: dict[str, float]) -> str:
    """'evaluation/success 86, evaluation/length 93.7'."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h', '2.1 days'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
