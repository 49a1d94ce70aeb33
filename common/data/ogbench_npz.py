"""Data files in OGBench's format, official or collected, relabelled for one task: one of them, or many shards."""

import concurrent.futures
import contextlib
import pathlib
import types
from collections.abc import Collection, Sequence

from common.data import npz
from common.data.check import (
    CUTS,
    Allocate,
    Header,
    allocate,
    check_actions,
    check_block,
    check_headers,
    check_trajectories,
    first_of_trajectory,
    in_int32,
    note_unread,
    to_learn,
)
from common.env_ids import EnvSpec
from common.envs import make_env
from common.processes import available_cores
from common.replay import Dataset

import gymnasium
import numpy as np
import tqdm

LEARNED = ("observations", "actions", "rewards", "masks")
STATES = {"qpos", "qvel", "button_states"}  # of the simulator; rewards are computed from some of them


def columns_of(spec: EnvSpec) -> tuple[str, ...]:
    """The arrays of a `Dataset`; `firsts` is of images."""
    return *LEARNED, "transitions", *(("firsts",) if spec.is_visual else ())


def read(spec: EnvSpec, path: pathlib.Path, own_rewards: bool = False) -> tuple[Dataset, str]:
    """The data set of one file, and its SHA-256; arguments and errors as of `read_files`."""
    columns, (digest,) = read_files(spec, [path], own_rewards)
    return Dataset(**columns), digest


def read_files(
    spec: EnvSpec,
    paths: Sequence[pathlib.Path],
    own_rewards: bool = False,
    names: Collection[str] | None = None,
    allocate: Allocate = allocate,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read files of trajectories, one after the other, and relabel them with the rewards and masks of one task.

    The relabelling is the ogbench package's own: reward = -(number of unmet sub-goals), mask 0 on success, both on the
    state before the step. Rewards and masks that a file has are not used, and it says so; or they are, if asked for.
    The last row of a trajectory starts no transition. Files are read side by side, each once, and of each no more than
    is needed.

    Args:
        spec: environment and task.
        paths: files.
        own_rewards: take those of the files.
        names: of the arrays that are asked for; all of `columns_of` if None.
        allocate: where they lie.

    Returns:
        The arrays of a `Dataset`, and the SHA-256 of each file.

    Raises:
        UserError: a file is damaged, lacks a key, or holds what cannot be this environment's data.
    """
    names = columns_of(spec) if names is None else names
    with contextlib.closing(make_env(spec.gym_id)) as env:
        env.reset()
        task = _Task(spec, env, own_rewards)
        sizes, unread = [], set()
        for path in paths:
            with npz.opened(path) as file:
                headers = task.check(file)
                sizes.append(headers["observations"].shape[0])
                unread |= file.headers.keys()
        task.note_unread(paths[0] if len(paths) == 1 else paths[0].parent, unread)
        headers |= dict.fromkeys(("rewards", "masks"), headers["terminals"])
        headers = {n: Header((sum(sizes), *headers[n].shape[1:]), headers[n].dtype) for n in LEARNED if n in names}
        columns, ends = {name: allocate(name, *header) for name, header in headers.items()}, np.zeros(sum(sizes), bool)
        rows = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        threads = concurrent.futures.ThreadPoolExecutor(min(len(paths), available_cores()))
        try:
            parts = [{name: column[each] for name, column in columns.items()} for each in rows]
            digests = threads.map(task.read, paths, parts, [ends[each] for each in rows])
            bar = tqdm.tqdm(digests, "reading", len(paths), unit="shard", leave=False, disable=len(paths) == 1)
            digests = list(bar)
        finally:
            threads.shutdown(cancel_futures=True)
    if "transitions" in names:
        columns["transitions"] = in_int32(np.flatnonzero(~ends), allocate)
    if "firsts" in names:
        columns["firsts"] = first_of_trajectory(ends, allocate)
    return columns, digests


class _Task:
    """What is asked of a file, and what is made of it.

    Attributes:
        shapes: of a row of what is needed of every file.
    """

    def __init__(self, spec: EnvSpec, env: gymnasium.Env, own_rewards: bool):
        """Args:
        spec: environment and task.
        env: in which the task is set. It is not reset again: several threads look at it.
        own_rewards: take those of the files.
        """
        self._spec, self._own_rewards = spec, own_rewards
        self._env = types.SimpleNamespace(unwrapped=env.unwrapped, reset=lambda: None)
        self.shapes = {"observations": env.observation_space.shape, "actions": env.action_space.shape, "terminals": ()}
        self._state_shapes = {}
        if not (own_rewards or spec.world.startswith("puzzle")):
            self._state_shapes["qpos"] = env.unwrapped.data.qpos.shape
        if not own_rewards and spec.world.startswith(("scene", "puzzle")):
            self._state_shapes["button_states"] = (env.unwrapped._num_buttons,)
        self.shapes |= self._state_shapes

    def check(self, file: npz.Npz) -> dict[str, Header]:
        """What a file becomes in memory. Raises `UserError` if it does not have what is needed."""
        headers = check_headers(file.path, file.headers, self._shapes_of(file), self._spec.env_name)
        if self._own_rewards:
            own = {"observations": self.shapes["observations"], "rewards": (), "masks": ()}
            check_headers(file.path, file.headers, own, "--own-rewards")
        return headers

    def note_unread(self, where: pathlib.Path, names: set[str]) -> None:
        """Say what files have, and nobody reads."""
        own = sorted(names & {"rewards", "masks"}, reverse=True)
        note_unread(where, names - self.shapes.keys() - STATES - set(CUTS) - set(own))
        if own and not self._own_rewards:
            unused = f"{' and '.join(own)} of {where} are not used"
            print(f"note: {unused}: those of {self._spec.name} are computed instead (else: --own-rewards)", flush=True)

    def _shapes_of(self, file: npz.Npz) -> dict[str, tuple[int, ...]]:
        return self.shapes | {name: () for name in CUTS if name in file.headers}

    def read(self, path: pathlib.Path, columns: dict[str, np.ndarray], ends: np.ndarray) -> str:
        """Read a file into its part of the data set. Returns its SHA-256.

        Args:
            path: file.
            columns: to be filled, of its rows: those that are asked for.
            ends: [rows], to become true in the last row of each trajectory.

        Raises:
            UserError: it is damaged, or not this environment's data.
        """
        with npz.opened(path) as file:
            shapes = self._shapes_of(file) | ({"rewards": (), "masks": ()} if self._own_rewards else {})
            shapes = {name: shape for name, shape in shapes.items() if name in columns or name not in LEARNED}
            headers = check_headers(path, file.headers, shapes, self._spec.env_name)
            *held, last = file.in_order(self._state_shapes) or [""]  # rewards are computed as the last one is read
            kept = {name: np.empty(*file.headers[name]) for name in held}
            for name in file.in_order(shapes):
                for first, block in file.blocks(name):
                    rows = slice(first, first + len(block))
                    checked = check_block(path, name, block, headers[name], first)
                    if name in kept:
                        kept[name][rows] = block
                    elif name == last:
                        state = {other: array[rows] for other, array in kept.items()} | {name: block}
                        columns["rewards"][rows], columns["masks"][rows] = self._rewards(state)
                    elif name in columns:
                        columns[name][rows] = checked
                    else:
                        ends[rows] |= checked != 0
            check_trajectories(path, ~ends, ends)
            if "actions" in columns:
                check_actions(path, columns["actions"])
                to_learn(columns["actions"])
            return file.sha256()

    def _rewards(self, state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of the task, and masks."""
        from ogbench.relabel_utils import relabel_dataset

        relabel_dataset(self._spec.gym_id, self._env, state)
        return state["rewards"], state["masks"]
