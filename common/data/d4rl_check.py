"""How far the simulator here is from the one that made a D4RL file: its states are set, and what follows is compared.

    python -m common.data.d4rl_check --env-id d4rl-antmaze-umaze --dataset-path FILE.hdf5

D4RL's files hold the state of the simulator beside the observations (`infos/qpos`, `infos/qvel`), of which a step with
the row's action should make the next row's observation. To be compared between versions of MuJoCo.
"""

import contextlib
import dataclasses
import pathlib
from typing import Any

from common import command_line, mujoco_versions
from common.data.d4rl_hdf5 import opened_by_h5py
from common.env_ids import resolve
from common.envs import make_env
from common.errors import UserError, exit_in_one_line, expanded

import gymnasium
import numpy as np

TRIED = 50  # steps that tell whether a row has the state before its action, or after it
STATE = ("qpos", "qvel")
OF_HANDS = {"pen": ("desired_orien",), "door": ("door_body_pos",), "hammer": ("board_pos",)}  # beside STATE


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare MuJoCo's steps here with those in one of D4RL's own files."""

    env_id: str
    """Environment of the file, e.g. d4rl-antmaze-umaze, d4rl-door-human, d4rl-hopper-medium."""
    dataset_path: pathlib.Path
    """The HDF5 file."""
    steps: int = 1000
    """Steps to compare, drawn from the whole file."""


def main(args: Args) -> None:
    """Set states, step, and say how far the observations are from the next rows."""
    path = expanded(args.dataset_path)
    spec = resolve(args.env_id, path)
    if spec.suite != "d4rl_hdf5":
        raise UserError(f"--env-id {args.env_id}: not one of D4RL's own files")
    with contextlib.closing(make_env(f"common.d4rl_envs:{spec.name}")) as env, opened_by_h5py(path) as file:
        robot = spec.family.split("-")[0]
        infos = (*STATE, *OF_HANDS.get(robot, ()))
        wanted = ["observations", "actions", *(f"infos/{name}" for name in infos)]
        if robot == "relocate" or (missing := [name for name in wanted if name not in file]):
            problem = "the place of its object" if robot == "relocate" else ", ".join(missing)
            raise UserError(f"{path}: it has no {problem}, so that its states cannot be set again")
        env.reset(seed=0)
        cuts = [np.asarray(file[name]).ravel() != 0 for name in ("terminals", "timeouts") if name in file]
        goes_on = ~np.any([*cuts, np.zeros(len(file["actions"]), bool)], axis=0)[:-1]
        rows = np.flatnonzero(goes_on[1:] & goes_on[:-1]) + 1  # one that follows another, and that another follows
        if not rows.size:
            raise UserError(f"{path}: no row follows another")
        rows = np.sort(np.random.default_rng(0).choice(rows, min(args.steps, rows.size), replace=False))
        few = rows[:: max(len(rows) // TRIED, 1)]
        lag = min((0, 1), key=lambda lag: np.median(compare(env, file, infos, few, lag)[0]))
        apart, moved = compare(env, file, infos, rows, lag)
    when = "before its action" if lag == 0 else "after its action"
    official = mujoco_versions.OFFICIAL_MUJOCO["d4rl_hdf5"]
    print(f"{spec.name}: {len(rows):,} steps of {path}, whose rows have the state {when}")
    print(f"MuJoCo {mujoco_versions.installed()} (the file's: {official}); largest number of an observation:")
    for name, values in (("it is off by", apart), ("while a step moves it by", moved)):
        quantiles = "{:.3g} (median), {:.3g} (95 %), {:.3g} (at most)".format(*np.quantile(values, (0.5, 0.95, 1)))
        print(f"  {name} {quantiles}")


def compare(
    env: gymnasium.Env, file: Any, infos: tuple[str, ...], rows: np.ndarray, lag: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far steps are from a file's.

    Args:
        env: environment.
        file: of h5py.
        infos: names of the arrays of states.
        rows: whose actions are taken, in ascending order.
        lag: 0 where a row has the state before its action, 1 where it has the one after it.

    Returns:
        Of each step the largest difference of its observation from the next row's, and that of two rows in the file.
    """
    simulator = env.unwrapped
    states = {name: file[f"infos/{name}"][rows - lag].astype(np.float64) for name in infos}
    actions, before, after = file["actions"][rows], file["observations"][rows], file["observations"][rows + 1]
    found = []
    for row, action in enumerate(actions):
        state = {name: values[row] for name, values in states.items()}
        if hasattr(simulator, "set_env_state"):
            simulator.set_env_state(state)
        else:
            simulator.set_state(state["qpos"], state["qvel"])
        simulator.data.qacc_warmstart[:] = 0
        found.append(simulator.step(np.clip(action, -1, 1))[0])
    return np.abs(np.array(found) - after).max(axis=1), np.abs(after - before).max(axis=1)


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(Args, prog="python -m common.data.d4rl_check")))
