"""Transitions of one's own, for any environment that Gymnasium makes, in an npz file."""

import contextlib
import pathlib

from common.actions import bounds_of
from common.data.check import CUTS, Rows, breaks, check, lay_out, note_unread
from common.env_ids import EnvSpec
from common.envs import make_own_env
from common.files import read_npz
from common.replay import Dataset

import numpy as np


def read(spec: EnvSpec, path: pathlib.Path) -> Dataset:
    """Read a file of transitions; its rewards are taken as they are.

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
    data = read_npz(path)
    cuts = [name for name in CUTS if name in data]
    complete = next((name for name in ("masks", "terminations") if name in data), "terminals" if cuts else "masks")
    shapes = {"observations": observation_shape, "actions": action_shape, "rewards": (), "terminals": ()}
    shapes |= dict.fromkeys((complete, *cuts), ())
    shapes |= {"next_observations": observation_shape} if "next_observations" in data else {}
    note_unread(path, data.keys() - shapes.keys())
    data = check(path, data, shapes, spec.name, bounds)

    masks = data["masks"] if complete == "masks" else 1 - data[complete]
    ends = np.any([data[name] != 0 for name in ("terminals", *cuts)], axis=0)
    observations, successors = data["observations"], data.get("next_observations")
    if successors is None:
        starts = ~ends | (masks == 0)
        successors = np.concatenate([observations[1:], observations[-1:]])  # after a mask of 0 never looked at
    else:
        starts = np.ones(len(ends), bool)
        ends = ends | breaks(observations, successors)
    rows = Rows(observations, data["actions"], data["rewards"], masks, starts, ends, successors[ends])
    return lay_out(path, rows, bounds)
