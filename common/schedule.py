"""When something is due in a run: rows of its tables, evaluations, the ends of its parts."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Schedule(NamedTuple):
    """Of a run with these arguments; all in updates."""

    offline_steps: int
    online_steps: int
    log_interval: int
    eval_interval: int

    @staticmethod
    def of(args: Mapping[str, Any]) -> "Schedule":
        """From all arguments of a run."""
        return Schedule(*(args[name] for name in Schedule._fields))

    @property
    def total(self) -> int:
        """Of the whole run."""
        return self.offline_steps + self.online_steps

    @property
    def ends(self) -> set[int]:
        """Of its offline part, and of the run: after each there are a row and an evaluation."""
        return {self.offline_steps, self.total}

    def row_is_due(self, step: int) -> bool:
        """Whether train.csv has a row after update `step`."""
        return step % self.log_interval == 0 or step in self.ends

    def evaluation_is_due(self, step: int) -> bool:
        """Whether there is an evaluation after update `step`."""
        return step in self.ends or (step > 0 and step % self.eval_interval == 0)

    def next_due(self, step: int) -> int:
        """The next update after which there is a row or an evaluation."""
        of_intervals = [step + interval - step % interval for interval in (self.log_interval, self.eval_interval)]
        return min(*of_intervals, *(end for end in self.ends if end > step))

    def rows(self, table: str, after: int, last: int) -> set[int]:
        """The updates of all rows of a table ('train', 'eval', 'time', 'exploration') in between, the last included."""
        interval = self.eval_interval if table == "eval" else self.log_interval
        after = max(after, self.offline_steps) if table == "exploration" else after
        return {step for step in (*range(interval, last + 1, interval), *self.ends) if after < step <= last}
