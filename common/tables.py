"""Tables of numbers that grow, as CSV files: a row for an update, a column for a metric."""

import csv
import io
import pathlib
from collections.abc import Iterable
from typing import Literal

from common.errors import UserError
from common.files import flush, write_whole

Row = dict[str, float | int]


class Table:
    """One file, of the process that writes it."""

    def __init__(self, path: pathlib.Path):
        """Args: path: of the file, which is made with the first row."""
        self.path = path
        self._columns: list[str] | None = None  # unknown before the first row of this process

    def append(self, row: Row, *, to_disk: bool = False) -> None:
        """Add a row, in which `step` is the number of updates so far. A metric that is new is empty before.

        Args:
            row: numbers.
            to_disk: wait until it is there.

        Raises:
            OSError: the disk is full.
        """
        if self._columns is None:
            self._columns = self._header()
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._write(self.rows(at_damage="skip"))
        with self.path.open("a", newline="") as file:
            self._writer(file).writerow(_in_text(row))
            if to_disk:
                file.flush()
                flush(file.fileno())

    def flush(self) -> None:
        """Wait until all rows are on the disk. Raises `OSError` if it is full."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                flush(file.fileno())

    def rows(self, *, at_damage: Literal["raise", "skip", "stop"] = "raise") -> list[Row]:
        """See `read_table`; none if there is no file."""
        return read_table(self.path, at_damage=at_damage) if self.path.exists() else []

    def keep(self, rows: Iterable[Row]) -> None:
        """Write the file anew with these rows alone, in the same columns."""
        self._columns = self._header()
        self._write(rows)

    def _header(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open(errors="replace") as file:
            return [name for name in file.readline().rstrip("\n").split(",") if name]

    def _write(self, rows: Iterable[Row]) -> None:
        text = io.StringIO()
        if self._columns:
            writer = self._writer(text)
            writer.writeheader()
            writer.writerows(map(_in_text, rows))
        write_whole(self.path, lambda temporary: temporary.write_text(text.getvalue()))

    def _writer(self, file: io.TextIOBase) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")


def read_table(path: pathlib.Path, *, at_damage: Literal["raise", "skip", "stop"] = "raise") -> list[Row]:
    """The complete rows of a file, without empty cells; the half-written last line of a killed run is left out.

    Args:
        path: CSV file with a column `step`.
        at_damage: leave damaged rows out (what a power cut leaves), or stop before the first, instead of raising.

    Raises:
        UserError: a row is damaged.
    """
    header, *lines = path.read_text(errors="replace").split("\n")[:-1] or [""]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = dict(zip(header.split(","), line.split(","), strict=True))
            metrics = {name: float(value) for name, value in row.items() if name != "step" and value}
            rows.append({"step": int(row["step"])} | metrics)
        except (KeyError, ValueError) as error:
            if at_damage == "raise":
                raise UserError(f"{path}: row {number} is damaged ({error})") from error
            if at_damage == "stop":
                break
    return rows


def _in_text(row: Row) -> dict[str, int | str]:
    return {name: value if isinstance(value, int) else format(value, ".9g") for name, value in row.items()}
