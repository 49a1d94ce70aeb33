"""Transitions of one's own, for any environment that Gymnasium makes, in an npz file."""

import contextlib
import pathlib

from common.actions import bounds_of
from common.data import npz
from common.data.check import CUTS, check_actions, check_headers, lay_out, note_unread, read_checked, read_successors
from common.env_ids import EnvSpec
from common.envs import make_own_env
from common.replay import Dataset

import numpy as np


def read(spec: EnvSpec, path: pathlib.Path) -> tuple[Dataset, str]:
    """Read a file of transitions; its rewards are taken as they are. Returns its SHA-256, too.

    `observations` [n, o], `actions` [n, a], `rewards` [n]; `terminals` [n], 1 in the last row of a trajectory, however
    it ended; `masks` [n], 0 where the task is complete, or `terminations` [n], 1 there. With `next_observations` [n, o]
    every row is a transition. Without, the next row is the successor, and the last one of a trajectory is a transition
    where its mask is 0, which asks for no successor. Trap: where there are `timeouts` (D4RL's) or `truncations`, they
    end trajectories, too, and `terminals` are 1 where the task is complete.

    Raises:
        UserError: the file is damaged, lacks a key, or holds what cannot be this environment's data.
    """
    with contextlib.closing(make_own_env(spec.name)) as env:
        observation_shape, action_shape = env.observation_space.shape, env.action_space.shape
        bounds = bounds_of(env.action_space, spec.name)
    with npz.opened(path) as file:
        cuts = [name for name in CUTS if name in file.headers]
        complete = next((n for n in ("masks", "terminations") if n in file.headers), "terminals" if cuts else "masks")
        shapes = {"observations": observation_shape, "actions": action_shape, "rewards": (), "terminals": ()}
        shapes |= dict.fromkeys((complete, *cuts), ())
        successors = {"next_observations": observation_shape} if "next_observations" in file.headers else {}
        note_unread(path, file.headers.keys() - shapes.keys() - successors.keys())
        check_headers(path, file.headers, shapes | successors, spec.name)
        columns = read_checked(path, file, shapes, spec.name, with_room=True)
        check_actions(path, columns["actions"], bounds)

        ends = np.any([columns[name] != 0 for name in ("terminals", *cuts)], axis=0)
        if complete != "masks":
            columns["masks"] = 1 - columns[complete]
        for name in {"terminals", "terminations", *cuts} & columns.keys():
            del columns[name]
        observations = columns["observations"][: len(ends)]
        if successors:
            starts = np.ones(len(ends), bool)
            last_observations = read_successors(path, file, observations, ends)
        else:
            starts = ~ends | (columns["masks"] == 0)
            # After a mask of 0 the successor is never looked at.
            last_observations = observations[np.minimum(np.flatnonzero(ends) + 1, len(ends) - 1)]
        return lay_out(path, columns, starts, ends, last_observations, bounds), file.sha256()
