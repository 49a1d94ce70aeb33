"""What surrounds a training loop: a polite stop, and news about how far it is."""

import os
import signal
import socket
import sys
import threading
import time
from types import TracebackType

import tqdm

SLOW_RUN_S = 3600
QUICK_START = (
    "README.md, 'Quick start', finishes on a laptop; README.md, 'Accelerators', has the one line that adds a GPU"
)


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
        while number := self._reader.recv(1):
            if number[0] not in self._old_handlers:
                continue
            if self._requested.is_set():
                os.write(2, b"\nstopped at once; what the last checkpoint holds can be resumed\n")
                os._exit(128 + number[0])
            self._requested.set()
            os.write(2, b"\nstopping after this chunk and saving; once more stops at once\n")


class Progress:
    """A progress bar with updates per second and time left; one line for each log row where there is no terminal."""

    def __init__(self, total: int, *, initial: int, on_cpu: bool):
        self.total, self._initial, self._on_cpu = total, initial, on_cpu
        self.step = initial
        self._is_terminal = sys.stderr.isatty()
        self._announced = False
        self._training_s = 0.0
        self._bar = tqdm.tqdm(
            total=total, initial=initial, unit="update", desc="training", disable=not self._is_terminal
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, step: int, seconds: float) -> None:
        """A chunk that took `seconds` (compilation not counted) has ended at `step`."""
        self._bar.update(step - self.step)
        self.step = step
        self._training_s += seconds
        if not self._announced:
            self._announced = True
            remaining_s = (self.total - step) * self.seconds_per_update
            self.say(
                f"one update takes {1e3 * self.seconds_per_update:.3g} ms: {self.total - step:,} more will take about "
                f"{duration(remaining_s)}, evaluations not counted"
            )
            if self._on_cpu and remaining_s > SLOW_RUN_S:
                self.say(f"that is long, on a CPU. {QUICK_START}.")

    @property
    def seconds_per_update(self) -> float:
        """Mean over this sitting."""
        return self._training_s / max(self.step - self._initial, 1)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def report(self, numbers: dict[str, float]) -> None:
        """Show the newest numbers, on the bar or as a line."""
        text = ", ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in numbers.items())
        if self._is_terminal:
            self._bar.set_postfix_str(text)
        else:
            left = (self.total - self.step) * self.seconds_per_update
            self.say(
                f"{time.strftime('%H:%M:%S')}  {self.step:>9,} / {self.total:,}  {1 / self.seconds_per_update:.4g} updates/s"
                f"  {duration(left)} left  {text}"
            )


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h', '2.1 days'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
