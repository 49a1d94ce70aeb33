"""Whether what a reader found is sound, and how it lies in memory: from any format's arrays to a `Dataset`."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from common.actions import ACTION_BOUND, ROUNDING, Bounds, describe, to_unit
from common.errors import UserError
from common.replay import Dataset

import numpy as np

CUTS = ("timeouts", "truncations")  # D4RL's and Gymnasium's flags of a trajectory that was cut
FLAGS = ("terminals", *CUTS, "terminations", "masks")
BLOCK_BYTES = 2**20  # what is read, checked and copied at once, in the processor's cache
ALIGNMENT_BYTES = 64  # of arrays that JAX takes for its own on a CPU, without a copy
Shapes = Mapping[str, tuple[int, ...]]  # of a row
Allocate = Callable[[str, tuple[int, ...], Any], np.ndarray]  # an array of a name, a shape and a dtype


class Header(NamedTuple):
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Of all."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, chunk_rows: int = 1) -> Iterator[tuple[int, int]]:
        """First row and end of each part of about `BLOCK_BYTES`, a multiple of `chunk_rows`."""
        step = max(BLOCK_BYTES // max(self.row_bytes, 1) // chunk_rows, 1) * chunk_rows
        for first in range(0, self.shape[0], step):
            yield first, min(first + step, self.shape[0])


@runtime_checkable
class ArrayFile(Protocol):
    """A file of arrays, as a reader has it open."""

    headers: Mapping[str, Header]

    def in_order(self, names: Collection[str]) -> list[str]:
        """As they are read best."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """An array, some rows at a time: the number of the first of them, and the rows."""
        ...


def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of the data set, to be filled, in memory where it can stay."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def check_headers(
    where: Any, headers: Mapping[str, Header | np.ndarray], shapes: Shapes, needed_by: str
) -> dict[str, Header]:
    """What arrays will be in memory: images of bytes as they are, all else in float32.

    Raises:
        UserError: one is missing, has another shape, or does not hold numbers.
    """
    checked, first = {}, next(iter(shapes))
    for name, shape in shapes.items():
        if name not in headers:
            raise UserError(f"{where}: {name} is missing; {needed_by} needs it")
        found, dtype = headers[name].shape, headers[name].dtype
        if not found or found[1:] != shape:
            raise UserError(f"{where}: {name} has shape {found}, {needed_by} needs (rows, {str(shape)[1:-1]})")
        if found[0] != headers[first].shape[0]:
            raise UserError(f"{where}: {found[0]} rows of {name} but {headers[first].shape[0]} of {first}")
        if dtype.kind not in "fiub":
            raise UserError(f"{where}: {name} holds {dtype}, not numbers")
        is_image = len(shape) == 3
        if is_image and dtype != np.uint8:
            raise UserError(f"{where}: {name} holds {dtype}; images are uint8")
        checked[name] = Header(found, np.dtype(np.uint8 if is_image else np.float32))
    return checked


def check_block(where: Any, name: str, block: np.ndarray, header: Header, first: int = 0) -> np.ndarray:
    """Some rows of an array, as they will be in memory.

    Args:
        where: file, or part of it, for messages.
        name: of the array.
        block: the rows.
        header: of `check_headers`.
        first: number of the first row.

    Raises:
        UserError: one is not finite; flags or masks lie outside of [0, 1].
    """
    with np.errstate(over="ignore"):  # to infinity
        block = block.astype(header.dtype, copy=False)
    if header.dtype.kind == "f" and not (finite := np.isfinite(block)).all():
        row = first + int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
        raise UserError(f"{where}: NaN or infinity in {name}, first in row {row} (as float32)")
    if name in FLAGS and ((block < 0) | (block > 1)).any():
        raise UserError(f"{where}: {name} must lie in [0, 1]")
    return block


def check_actions(where: Any, actions: np.ndarray, bounds: Bounds | None = None) -> None:
    """Raises `UserError` if one lies outside of its bounds (None: [-1, 1]) by more than rounding."""
    if (largest := largest_action(actions, bounds)) > 1 + ROUNDING:
        rescaled = "" if bounds is None else ", rescaled to [-1, 1],"
        raise UserError(f"{where}: actions must lie in {describe(bounds)}, the largest{rescaled} is {largest:.9g}")


def largest_action(actions: np.ndarray, bounds: Bounds | None = None) -> float:
    """Of the absolute values, in [-1, 1]."""
    parts = Header(actions.shape, actions.dtype).blocks()
    return max((float(np.abs(to_unit(actions[a:b], bounds)).max(initial=0)) for a, b in parts), default=0.0)


def check(
    where: Any, columns: Mapping[str, np.ndarray], shapes: Shapes, needed_by: str, bounds: Bounds | None = None
) -> dict[str, np.ndarray]:
    """Arrays that are in memory, as training gets them.

    Args:
        where: file, or part of it, for messages.
        columns: arrays [rows, *shape]; others than those named by `shapes` are not looked at.
        shapes: of a row of each; all have as many rows as the first.
        needed_by: what needs them, for messages.
        bounds: of `actions`; None is [-1, 1].

    Raises:
        UserError: as of `check_headers`, `check_block` and `check_actions`.
    """
    headers = check_headers(where, columns, shapes, needed_by)
    checked = {name: check_block(where, name, columns[name], header) for name, header in headers.items()}
    if "actions" in checked:
        check_actions(where, checked["actions"], bounds)
    return checked


def read_checked(
    where: Any, file: ArrayFile, shapes: Shapes, needed_by: str, *, with_room: bool = False
) -> dict[str, np.ndarray]:
    """Arrays of a file, each block checked and put where it stays. Actions are not compared with bounds.

    With room `observations` have twice their rows: what is not touched takes no memory, and `lay_out` needs no copy.
    """
    headers = check_headers(where, file.headers, shapes, needed_by)
    rooms = {name: 2 if with_room and name == "observations" else 1 for name in headers}
    columns = {
        n: allocate(n, (rooms[n] * header.shape[0], *header.shape[1:]), header.dtype) for n, header in headers.items()
    }
    for name in file.in_order(shapes):
        for first, block in file.blocks(name):
            columns[name][first : first + len(block)] = check_block(where, name, block, headers[name], first)
    return columns


def note_unread(where: Any, names: Collection[str]) -> None:
    """Name what a file has and nobody reads."""
    if names:
        print(f"note: {where}: not read: {', '.join(sorted(names))}", flush=True)


def read_successors(where: Any, file: ArrayFile, observations: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """What was observed after the last row of each trajectory, of a file that has it of every row.

    Args:
        where: file, for messages.
        file: with `next_observations`, of the shape of `observations`.
        observations: [rows, o].
        ends: [rows], true in the last row of each trajectory. The rows are added in which what was observed next is not
            what the next row says.
    """
    header, successors = Header(observations.shape, observations.dtype), []
    ends[-1:] = True
    for first, block in file.blocks("next_observations"):
        block = check_block(where, "next_observations", block, header, first)
        following = observations[first + 1 : first + 1 + len(block)]
        ends_here = ends[first : first + len(block)]
        differs = block[: len(following)] != following
        ends_here[: len(following)] |= differs.any(axis=tuple(range(1, differs.ndim)))
        successors.append(block[ends_here])
    return np.concatenate([observations[:0], *successors])


def check_trajectories(where: Any, starts: np.ndarray, ends: np.ndarray) -> None:
    """Raises `UserError` if there is no transition, or the last trajectory does not end; arguments as of `lay_out`."""
    if not starts.any():
        raise UserError(f"{where}: it holds no transition")
    if not ends[-1]:
        raise UserError(f"{where}: the last trajectory does not end (terminals[-1] is 0); the file is truncated")


def lay_out(
    where: Any,
    columns: dict[str, np.ndarray],
    starts: np.ndarray,
    ends: np.ndarray,
    last_observations: np.ndarray | None = None,
    bounds: Bounds | None = None,
) -> Dataset:
    """The data set in memory: rows as they lie, with one more after each trajectory for its last observation, if known.

    Args:
        where: file, for messages.
        columns: `observations` [rows, o], maybe with room for more, `actions` [rows, a], `rewards` and `masks` [rows],
            checked: trajectories one after the other, a row a time step. They are taken out of here, and changed.
        starts: [rows], true in rows that start a transition. The next row is the successor.
        ends: [rows], true in the last row of each trajectory.
        last_observations: [trajectories, o], the successor of the last row of each, where the file has it.
        bounds: of actions, which are learned in [-1, 1]; None where they lie there already.

    Raises:
        UserError: there is no transition, or the last trajectory does not end.
    """
    check_trajectories(where, starts, ends)
    names = ("observations", "actions", "rewards", "masks")
    to_learn(columns["actions"], bounds)
    first_rows = np.flatnonzero(starts)
    if last_observations is None:
        columns["observations"] = columns["observations"][: len(ends)]
    else:
        places = np.arange(len(ends)) + np.cumsum(ends) - ends  # of rows, one later after each trajectory
        more = places[ends] + 1  # where a last observation comes
        for name in names:
            columns[name] = _spread(name, columns.pop(name), places)
            columns[name][more] = last_observations if name == "observations" else 0
        first_rows, ends = places[first_rows], np.zeros(len(columns["masks"]), bool)
        ends[more] = True
    learned = {name: columns.pop(name) for name in names}
    firsts = first_of_trajectory(ends) if learned["observations"].dtype == np.uint8 else None
    return Dataset(**learned, transitions=in_int32(first_rows), firsts=firsts)


def first_of_trajectory(ends: np.ndarray, allocate: Allocate = allocate) -> np.ndarray:
    """Of each row, the one that its trajectory begins with; of images, whose frames are stacked from there on."""
    begins = np.flatnonzero(np.append(True, ends[:-1]))
    return in_int32(np.repeat(begins, np.diff(begins, append=len(ends))), allocate, "firsts")


def in_int32(rows: np.ndarray, allocate: Allocate = allocate, name: str = "transitions") -> np.ndarray:
    """Numbers of rows, by default of those that start a transition, where they stay."""
    numbers = allocate(name, rows.shape, np.int32)
    numbers[:] = rows
    return numbers


def to_learn(actions: np.ndarray, bounds: Bounds | None = None) -> None:
    """Change actions to what is learned: in [-1, 1], and not quite its ends."""
    for first, end in Header(actions.shape, actions.dtype).blocks():
        actions[first:end] = np.clip(to_unit(actions[first:end], bounds), -ACTION_BOUND, ACTION_BOUND)


def _spread(name: str, column: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows in other places, each at its own or a later one: where the column has room, within it. The last one ends."""
    total = int(places[-1]) + 2
    spaced = column[:total] if len(column) >= total else allocate(name, (total, *column.shape[1:]), column.dtype)
    for first, end in reversed([*Header((len(places), *column.shape[1:]), column.dtype).blocks()]):
        spaced[places[first:end]] = column[first:end].copy()
    return spaced
