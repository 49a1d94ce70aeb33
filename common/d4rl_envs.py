"""D4RL's environments without mujoco-py: AntMaze on OGBench's ant, Adroit on gymnasium-robotics' hands, locomotion.

For policies of D4RL's own files: `gymnasium.make("common.d4rl_envs:d4rl-antmaze-umaze")`, or d4rl-pen-human. Ant and
hands are D4RL's; here are start, goal, reward, end and horizon (https://github.com/Farama-Foundation/D4RL). Locomotion
is Gymnasium's v4, D4RL's but for the simulator (v5 has other rewards). Trap: gymnasium-robotics' AntMaze is another
robot, with another time step, torque and contacts.
"""

import pathlib
import tempfile
import xml.etree.ElementTree as ElementTree
from typing import Any

from common.env_ids import D4RL_FILE_NAMES, LOCOMOTION
from common.minari_envs import register_environments

import gymnasium
import numpy as np
from ogbench.locomaze.ant import AntEnv

CELL_M = 4.0
MAZES = {  # '#' walls, 'S' start, at (0, 0), 'G' goal
    "umaze": ["#####", "#S  #", "### #", "#G  #", "#####"],
    "medium": ["########", "#S ##  #", "#  #   #", "##   ###", "#  #   #", "# #  # #", "#   # G#", "########"],
    "large": [
        "############",
        "#S   #     #",
        "# ## # # # #",
        "#      #   #",
        "# #### ### #",
        "#  # #     #",
        "## # # # ###",
        "#  #   # G #",
        "############",
    ],
}
GOAL_RADIUS_M = 0.5
HORIZONS = {"umaze": 700, "medium": 1000, "large": 1000, "pen": 100, "door": 200, "hammer": 200, "relocate": 200}
LOCOMOTION_ENVS = {
    "hopper": "hopper_v4:HopperEnv",
    "halfcheetah": "half_cheetah_v4:HalfCheetahEnv",
    "walker2d": "walker2d_v4:Walker2dEnv",
}
DROPPED_M = 0.075  # height of the pen


def _centre(row: float | np.integer, column: float | np.integer) -> np.ndarray:
    """Of a cell, in metres; the start's is the origin."""
    return CELL_M * (np.array([column, row]) - 1)


class AntMaze(AntEnv):
    """An ant from one corner to a goal, drawn anew in its cell for each episode. It does not observe the goal.

    Observations are position and velocity [29]; the reward is 1 within 0.5 m of the goal, where the episode ends.
    """

    def __init__(self, maze: str, **kwargs: Any):
        """Args:
        maze: of `MAZES`.
        **kwargs: of `AntEnv`.
        """
        cells = np.array([list(row) for row in MAZES[maze]])
        self.goal = self._goal_cell = _centre(*np.argwhere(cells == "G")[0])
        tree = ElementTree.parse(self.xml_file)
        world = tree.find("worldbody")
        for cell in np.argwhere(cells == "#"):
            place = {"pos": "{} {} 1".format(*_centre(*cell)), "size": f"{CELL_M / 2} {CELL_M / 2} 1"}
            ElementTree.SubElement(world, "geom", type="box", material="wall", contype="1", conaffinity="1", **place)
        disc = {"type": "cylinder", "size": f"{GOAL_RADIUS_M} .05", "pos": "0 0 .05"}
        ElementTree.SubElement(world, "geom", name="target", material="target", contype="0", conaffinity="0", **disc)
        middle = _centre(*(np.array(cells.shape) - 1) / 2)
        camera = {"lookat": np.array([*middle, 0]), "distance": 1.2 * CELL_M * max(cells.shape), "elevation": -90}
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "maze.xml"
            tree.write(path)
            super().__init__(xml_file=str(path), default_camera_config=camera, **kwargs)

    def reset_model(self) -> np.ndarray:
        """Start at the origin, up to noise, with another goal."""
        draw = self.np_random.uniform
        self.goal = self._goal_cell + draw(0, CELL_M / 4, 2) + draw(0, CELL_M / 8, 2)  # D4RL does both
        self.model.geom("target").pos[:2] = self.goal
        return super().reset_model()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, float]]:
        """Take a step, of 0.1 s."""
        observation = super().step(action)[0]
        reached = bool(np.linalg.norm(self.get_xy() - self.goal) <= GOAL_RADIUS_M)
        return observation, float(reached), reached, False, {"success": float(reached)}


class Hand(gymnasium.Wrapper):
    """An `AdroitHand*-v1` with D4RL's rewards, and with the end of an episode where the pen is dropped."""

    def __init__(self, hand: str, **kwargs: Any):
        """Args:
        hand: 'pen', 'door', 'hammer' or 'relocate'.
        **kwargs: of the environment.
        """
        register_environments()
        env = gymnasium.make(f"AdroitHand{hand.capitalize()}-v1", disable_env_checker=True, **kwargs)
        super().__init__(env.unwrapped)  # without its time limit
        self.hand = hand

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        data = self.unwrapped.data
        if self.hand == "pen":
            terminated = bool(data.body("Object").xpos[2] < DROPPED_M)
        else:
            # D4RL has -0.1 |palm - object|, gymnasium-robotics 1.2.1 to 1.4.2 the other sign.
            there = data.site("S_handle") if self.hand == "door" else data.body("Object")
            reward -= 0.2 * np.linalg.norm(data.site("S_grasp").xpos - there.xpos)
        return observation, reward, terminated, truncated, info


def _register(name: str) -> None:
    robot, what = name.split("-")[:2]
    if robot in LOCOMOTION:
        entry, kwargs, horizon = f"gymnasium.envs.mujoco.{LOCOMOTION_ENVS[robot]}", {}, 1000
    elif robot == "antmaze":
        entry, kwargs, horizon = AntMaze, {"maze": what}, HORIZONS[what]
    else:
        entry, kwargs, horizon = Hand, {"hand": robot}, HORIZONS[robot]
    gymnasium.register(f"d4rl-{name}", entry, max_episode_steps=horizon, kwargs=kwargs)


for _name in D4RL_FILE_NAMES:
    _register(_name)
