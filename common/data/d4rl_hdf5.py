"""D4RL's own HDF5 files, as `d4rl.qlearning_dataset` and the reference implementations read them: the papers' data.

A file of D4RL's and a Minari set of the same name are different data. What would go wrong unnoticed has 'Trap' beside
it; https://github.com/Farama-Foundation/D4RL/issues has the numbers.
"""

import contextlib
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from common.data.check import (
    Header,
    check_actions,
    check_headers,
    largest_action,
    lay_out,
    note_unread,
    read_checked,
    read_successors,
)
from common.env_ids import LOCOMOTION, EnvSpec
from common.envs import make_evaluation_env
from common.errors import UserError, expanded
from common.files import sha256
from common.minari_envs import DAMAGE, first_line
from common.replay import Dataset

import numpy as np

SERVER = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
MAZE_FILES = {
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}
SHA256 = {  # by name; those of tensorflow_datasets, which has none of antmaze-medium-play, relocate, locomotion
    "antmaze-umaze": "5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130",
    "antmaze-umaze-diverse": "c771dd63963cd7d9f55f24a6d809064f6b82250a6aeac4c9d13f9a1d06e8c932",
    "antmaze-medium-diverse": "ad9dcbac05d1f8744a7a216083f513662f43f64f28a4a5eb225e9811902dfae7",
    "antmaze-large-play": "6d353df2457829925d7f9d4b0215587469908bd57478ea76f16417cfa944f471",
    "antmaze-large-diverse": "84f775eb7956ea9cc766704710dc520a8ab357adc7522ade47f556f0e335e284",
    "pen-human": "209e345b2150b633f30a11612612c60f49e941f127ce6c4dc0cd790501c46f9f",
    "pen-cloned": "6d1a982cee1950501bedebbddedbcbb377e6284d379986c83abac8a6c0be0c22",
    "pen-expert": "3791b8ca6a802061770af2977c051ac3ae261488210ce73788760a5b8308f374",
    "door-human": "f9691288c3ddf2b4e7b31bdae0d8444b80ba035515495f8a902d60c43ee09370",
    "door-cloned": "1f6a60ecc4d2a2e5c02f41dd3412be61bb265a33dcf120ceee9e9682d4fe4d48",
    "door-expert": "66df4cd4e0a1e0b72ea72653ce088e29ecbfa99bac3cd2b52e64092e9a0aaab4",
    "hammer-human": "3e42f3f49b5c92a901601dfe867c6c62a9651cbe79f6760ec8b402a15816a498",
    "hammer-cloned": "e48d75b159bdd72f51d3f01448d3eca4d38275714e11e995c14a36f6cf159db3",
    "hammer-expert": "1c069a0f6e4852493023c77dc3b3a12d8d5ac2e3a034827fea3ab8a161e7185f",
}
FLAT, SUCCESSORS = ("rewards", "terminals", "timeouts"), "next_observations"
ARRAYS = ("observations", "actions", *FLAT, SUCCESSORS)
FARTHEST_STEP_M = 5  # of an ant, as D4RL's own check has it


def remote_name(name: str) -> str:
    """Below `SERVER`, of 'd4rl-pen-human': 'hand_dapg_v1/pen-human-v1.hdf5'."""
    _, robot, kind = name.split("-", 2)
    if robot == "antmaze":
        return f"ant_maze_v2/Ant_maze_{MAZE_FILES[kind]}_sparse_fixed.hdf5"
    if robot in LOCOMOTION:
        return f"gym_mujoco_v2/{robot}_{kind.replace('-', '_')}-v2.hdf5"
    return f"hand_dapg_v1/{robot}-{kind}-v1.hdf5"


def local_path(name: str) -> pathlib.Path:
    """Where d4rl keeps, or would keep, a file. Raises `UserError` where nobody knows the home folder."""
    folder = expanded(pathlib.Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets"))
    return folder / remote_name(name).split("/")[-1]


def known_sha256() -> dict[str, str]:
    """By the names of files."""
    return {remote_name(f"d4rl-{name}").split("/")[-1]: digest for name, digest in SHA256.items()}


def read(spec: EnvSpec, path: pathlib.Path) -> tuple[Dataset, str]:
    """Read a file: rows as they lie, and where the next row is the successor. Returns its SHA-256, too.

    `observations` [n, o], `actions` [n, a], `rewards` and `terminals` [n] or [n, 1], and `timeouts`, of any type of
    number. Transitions are the rows without a timeout, but for the last row of the file; masks are 1 - terminals.
    Without `timeouts`, but with `next_observations`, every row is a transition (the files of DROL's repository).

    Raises:
        UserError: the file is damaged, lacks an array, or holds what cannot be this environment's data.
    """
    with contextlib.closing(make_evaluation_env(spec, path)) as env:
        shapes = {"observations": env.observation_space.shape, "actions": env.action_space.shape}
        horizon = env.most_steps
    is_antmaze = spec.family.startswith("antmaze")
    with _opened(path) as file:
        has_timeouts = "timeouts" in file.headers
        shapes |= dict.fromkeys(("rewards", "terminals", *(["timeouts"] if has_timeouts else [])), ())
        # Trap: locomotion's files have next observations, too, which d4rl does not look at.
        successors = {} if has_timeouts else {n: shapes["observations"] for n in file.headers if n == SUCCESSORS}
        check_headers(path, file.headers, shapes | successors, spec.name)
        columns = read_checked(path, file, shapes, spec.name, with_room=bool(successors))
        _check_actions(path, file.headers["actions"], columns["actions"])

        # Traps: AntMaze's terminals are 1 near one goal, also in the middle of trajectories that go on, and cut
        # nothing; its rewards were made for that goal, not for the one in infos/goal.
        done = columns.pop("terminals") != 0
        columns["masks"] = 1 - done.astype(np.float32)
        if is_antmaze:
            columns["rewards"] -= 1
        if successors:
            starts, ends = np.ones(len(done), bool), np.zeros(len(done), bool)
            last_observations = read_successors(path, file, columns["observations"][: len(done)], ends)
            return lay_out(path, columns, starts, ends, last_observations), sha256(path)
    cuts = columns.pop("timeouts") != 0 if has_timeouts else _counted_timeouts(done, horizon)
    cuts[-1:] = True  # what came after it is not in the file
    if is_antmaze:
        _check_steps(path, columns["observations"][:, :2], cuts | done)  # whose successor is never looked at
    return lay_out(path, columns, starts=~cuts, ends=cuts), sha256(path)


class _Hdf5:
    """An open file (`check.ArrayFile`). Rewards and flags are flat here."""

    def __init__(self, path: pathlib.Path, file: Any):
        """Args:
        path: of the file.
        file: as h5py has it open.
        """
        self._path, self._file, self.headers = path, file, {}
        for name in ARRAYS:  # what lies beside them are strings and scalars, too
            if name in file:
                shape = file[name].shape
                is_flat = name in FLAT and len(shape) == 2 and shape[1] == 1
                self.headers[name] = Header(shape[:1] if is_flat else shape, file[name].dtype)

    def in_order(self, names: Collection[str]) -> list[str]:
        """As they are named."""
        return list(names)

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """An array, some rows at a time: the number of the first of them, and the rows."""
        with _naming_damage(self._path):
            header, array = self.headers[name], self._file[name]
            for first, end in header.blocks(array.chunks[0] if array.chunks else 1):
                yield first, array[first:end].reshape(end - first, *header.shape[1:])


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[_Hdf5]:
    """Open a file for as long as it is read."""
    with opened_by_h5py(path) as file:
        with _naming_damage(path):
            arrays = _Hdf5(path, file)
        note_unread(path, file.keys() - set(ARRAYS))
        yield arrays


@contextlib.contextmanager
def opened_by_h5py(path: pathlib.Path) -> Iterator[Any]:
    """An `h5py.File`. Raises `UserError` if it is none."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: to read it h5py is needed: pip install h5py") from error
    with _naming_damage(path):
        file = h5py.File(path)
    with file:
        yield file


@contextlib.contextmanager
def _naming_damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}: damaged or not an HDF5 file ({first_line(error)})") from error


def _check_actions(path: pathlib.Path, header: Header, actions: np.ndarray) -> None:
    """Raises `UserError` if they lie outside of [-1, 1] and are whole numbers; others are clipped, which is said."""
    if header.dtype.kind == "f" and (largest := largest_action(actions)) > 1:
        print(f"note: {path}: actions up to {largest:.6g} are clipped to [-1, 1], as in the papers", flush=True)
    else:
        check_actions(path, actions)


def _counted_timeouts(done: np.ndarray, horizon: int) -> np.ndarray:
    """Where d4rl ends trajectories of a file without `timeouts` (Adroit's v0): after so many steps.

    Trap: it counts from 0 after such an end, and from 1 after a terminal.
    """
    timeouts, step = np.zeros(len(done), bool), 0
    for row, is_done in enumerate(done):
        timeouts[row] = step == horizon - 1
        step = 0 if timeouts[row] else 1 if is_done else step + 1
    return timeouts


def _check_steps(path: pathlib.Path, positions: np.ndarray, cuts: np.ndarray) -> None:
    """Trap: the timeouts of AntMaze's v0 are not where trajectories end (issue 77)."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    jumps = np.flatnonzero((steps > FARTHEST_STEP_M) & ~cuts[:-1])
    if jumps.size:
        problem = f"the ant jumps {steps[jumps[0]]:.1f} m from row {jumps[0]} to the next, and timeouts do not say so"
        raise UserError(f"{path}: {problem}: D4RL's v0 has that; take the v2 file")
