"""Data files in OGBench's format, official or collected, relabelled for one task."""

import contextlib
import pathlib

from common.data.check import CUTS, Rows, check, lay_out, note_unread
from common.env_ids import EnvSpec
from common.envs import make_env
from common.files import read_npz
from common.replay import Dataset

import numpy as np


def read(spec: EnvSpec, path: pathlib.Path, own_rewards: bool = False) -> Dataset:
    """Read a file of trajectories, and relabel it with the rewards and masks of one task.

    The relabelling is the ogbench package's own: reward = -(number of unmet sub-goals), mask 0 on success, both on the
    state before the step. Rewards and masks that the file has are not used, and it says so; or they are, if asked for.
    The last row of a trajectory starts no transition.

    Raises:
        UserError: the file is damaged, lacks a key, or holds what cannot be this environment's data.
    """
    from ogbench.relabel_utils import relabel_dataset

    data = read_npz(path)
    cuts, own = ([name for name in names if name in data] for names in (CUTS, ("rewards", "masks")))
    with contextlib.closing(make_env(spec.gym_id)) as env:
        env.reset()
        state = env.unwrapped.data
        shapes = {"observations": env.observation_space.shape, "actions": env.action_space.shape, "terminals": ()}
        shapes |= {"qpos": state.qpos.shape, "qvel": state.qvel.shape, **dict.fromkeys(cuts, ())}
        if spec.env_name.startswith(("scene", "puzzle")):
            shapes["button_states"] = (env.unwrapped._num_buttons,)
        note_unread(path, data.keys() - shapes.keys() - set(own))
        rows = check(path, data, shapes, spec.env_name)
        if own_rewards:
            wanted = {"observations": shapes["observations"], "rewards": (), "masks": ()}
            rows |= check(path, data, wanted, "--own-rewards")
        else:
            if own:
                unused = f"{' and '.join(own)} of {path} are not used"
                print(f"note: {unused}: those of {spec.name} are computed instead (else: --own-rewards)", flush=True)
            relabel_dataset(spec.gym_id, env, data)
            rows |= {"rewards": data["rewards"], "masks": data["masks"]}
    ends = np.any([rows[name] != 0 for name in ("terminals", *cuts)], axis=0)
    names = ("observations", "actions", "rewards", "masks")
    return lay_out(path, Rows(*(rows[name] for name in names), starts=~ends, ends=ends))
