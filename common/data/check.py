"""Whether what a reader found is sound, and how it lies in memory: from any format's arrays to a `Dataset`."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from common.actions import ACTION_BOUND, ROUNDING, Bounds, describe, to_unit
from common.errors import UserError
from common.replay import Dataset

import numpy as np

CUTS = ("timeouts", "truncations")  # D4RL's and Gymnasium's flags of a trajectory that was cut
FLAGS = ("terminals", *CUTS, "terminations", "masks")
Shapes = Mapping[str, tuple[int, ...]]  # of a row


def check(
    where: Any, columns: Mapping[str, np.ndarray], shapes: Shapes, needed_by: str, bounds: Bounds | None = None
) -> dict[str, np.ndarray]:
    """Columns of a file, or of a part of it, as training gets them: in float32.

    Args:
        where: file, or part of it, for messages.
        columns: arrays [rows, *shape]; others than those named by `shapes` are not looked at.
        shapes: of a row of each; all have as many rows as the first.
        needed_by: what needs them, for messages.
        bounds: of `actions`; None is [-1, 1].

    Raises:
        UserError: one is missing, or not of finite numbers, or has another shape; actions lie outside of their bounds,
            flags or masks outside of [0, 1].
    """
    checked: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if name not in columns:
            raise UserError(f"{where}: {name} is missing; {needed_by} needs it")
        column, first = columns[name], next(iter(shapes))
        if column.ndim == 0 or column.shape[1:] != shape:
            raise UserError(f"{where}: {name} has shape {column.shape}, {needed_by} needs (rows, {str(shape)[1:-1]})")
        if len(column) != len(columns[first]):
            raise UserError(f"{where}: {len(column)} rows of {name} but {len(columns[first])} of {first}")
        if column.dtype.kind not in "fiub":
            raise UserError(f"{where}: {name} holds {column.dtype}, not numbers")
        with np.errstate(over="ignore"):  # to infinity
            checked[name] = column.astype(np.float32, copy=False)
        if not (finite := np.isfinite(checked[name])).all():
            row = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
            raise UserError(f"{where}: NaN or infinity in {name}, first in row {row} (as float32)")
        if name in FLAGS and ((checked[name] < 0) | (checked[name] > 1)).any():
            raise UserError(f"{where}: {name} must lie in [0, 1]")
    if "actions" in checked:
        largest = float(np.abs(to_unit(checked["actions"], bounds)).max(initial=0))
        if largest > 1 + ROUNDING:
            rescaled = "" if bounds is None else ", rescaled to [-1, 1],"
            raise UserError(f"{where}: actions must lie in {describe(bounds)}, the largest{rescaled} is {largest:.9g}")
    return checked


def note_unread(where: Any, names: Collection[str]) -> None:
    """Name what a file has and nobody reads."""
    if names:
        print(f"note: {where}: not read: {', '.join(sorted(names))}", flush=True)


def breaks(observations: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
    """Rows [n] after which another trajectory begins: what was observed next is not what the next row says."""
    return np.append((next_observations[:-1] != observations[1:]).any(axis=1), True)


class Rows(NamedTuple):
    """What a reader gives: trajectories one after the other, a row a time step, checked.

    The next row is the successor of one that starts a transition; or, where the file says what was observed after the
    last row of each trajectory (`last_observations`), that is the successor of the last one.
    """

    observations: np.ndarray  # [rows, o]
    actions: np.ndarray  # [rows, a], within the environment's bounds
    rewards: np.ndarray  # [rows]
    masks: np.ndarray  # [rows], 0 where the task is complete
    starts: np.ndarray  # [rows], true in rows that start a transition
    ends: np.ndarray  # [rows], true in the last row of each trajectory
    last_observations: np.ndarray | None = None  # [trajectories, o]


def lay_out(where: Any, rows: Rows, bounds: Bounds | None = None) -> Dataset:
    """The data set in memory: rows as they lie, with one more after each trajectory for its last observation, if known.

    Args:
        where: file, for messages.
        rows: of a reader.
        bounds: of actions, which are learned in [-1, 1]; None where they lie there already.

    Raises:
        UserError: there is no transition, or the last trajectory does not end.
    """
    if not rows.starts.any():
        raise UserError(f"{where}: it holds no transition")
    if not rows.ends[-1]:
        raise UserError(f"{where}: the last trajectory does not end (terminals[-1] is 0); the file is truncated")
    actions = np.clip(to_unit(rows.actions, bounds), -ACTION_BOUND, ACTION_BOUND)
    columns = {"observations": rows.observations, "actions": actions, "rewards": rows.rewards, "masks": rows.masks}
    starts = np.flatnonzero(rows.starts)
    if rows.last_observations is not None:
        before = np.cumsum(rows.ends) - rows.ends  # rows that are put in before each one
        places = np.arange(len(before)) + before

        def spread(column: np.ndarray) -> np.ndarray:
            spaced = np.zeros((len(places) + rows.ends.sum(), *column.shape[1:]), np.float32)
            spaced[places] = column
            return spaced

        columns = {name: spread(column) for name, column in columns.items()}
        columns["observations"][places[rows.ends] + 1] = rows.last_observations
        starts = places[starts]
    in_float32 = {name: column.astype(np.float32, copy=False) for name, column in columns.items()}
    return Dataset(**in_float32, transitions=starts.astype(np.int32))
