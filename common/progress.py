"""News about how far a run is, for people who wait."""

import itertools
import sys
import time

import tqdm

SLOW_RUN_S = 3600
SLOW_RUN_HINT = (
    "that is long, on a CPU: in README.md, 'Quick start' is a run for a CPU, and 'Accelerators' has the "
    "line that adds a GPU"
)


def announce(**lines: str) -> None:
    """Print what a run resolved to, a line each."""
    for name, text in lines.items():
        print(f"{name:<12} {text}", flush=True)


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
        self._start = time.monotonic() - seconds
        # Of this sitting: updates, and the seconds they took. Those of chunks that were compiled first do not count.
        self._updates, self._seconds = 0, 0.0
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total,
            initial=initial,
            unit="update",
            desc="training",
            disable=not self._is_terminal,
            dynamic_ncols=True,
        )

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def advance(self, end: int, seconds: float | None) -> None:
        """A chunk has ended after update `end`. The first one that is timed foretells the whole run.

        Args:
            end: updates so far.
            seconds: what the chunk took; None if it had to be compiled.
        """
        updates, self.step = end - self.step, end
        self._bar.update(updates)
        if seconds is None:
            return
        is_first = self._updates == 0
        self._updates += updates
        self._seconds += seconds
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
        """Mean over this sitting; not a number before anything was timed."""
        return self._seconds / self._updates if self._updates else float("nan")

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
            return
        speed = ""
        if self._updates:
            left = duration((self.total - self.step) * self.seconds_per_update)
            speed = f"{1 / self.seconds_per_update:.4g} updates/s  {left} left  "
        self.say(f"{time.strftime('%H:%M:%S')}  {self.step:>9,} of {self.total:,}  {speed}{text}")

    def report_evaluation(self, step: int, results: list[dict[str, float]]) -> None:
        """Print what the policies of each seed were worth after update `step`, by now a while ago."""
        names = dict.fromkeys(itertools.chain(*results))  # success only where an environment has reported one
        means = {name: sum(result.get(name, 0.0) for result in results) / len(results) for name in names}
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
