"""The grammar of `--env-id`: every accepted spelling resolves to one canonical name (README, "Names").

Quick to import, so that a misspelt name is answered at once.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import re
from typing import Literal

from common.errors import UserError, expanded

MANIPULATION = ("play", "noisy")
OGBENCH_DATASET_TYPES: dict[str, tuple[str, ...]] = {  # environment -> data set types, the default first
    **{f"pointmaze-{maze}": ("navigate", "stitch") for maze in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{maze}": ("navigate", "stitch", "explore") for maze in ("medium", "large", "teleport")},
    "antmaze-giant": ("navigate", "stitch"),
    **{f"humanoidmaze-{maze}": ("navigate", "stitch") for maze in ("medium", "large", "giant", "teleport")},
    **{f"antsoccer-{arena}": ("navigate", "stitch") for arena in ("arena", "medium")},
    **{f"cube-{number}": MANIPULATION for number in ("single", "double", "triple", "quadruple", "octuple")},
    "scene": MANIPULATION,
    **{f"puzzle-{size}": MANIPULATION for size in ("3x3", "4x4", "4x5", "4x6")},
}
SHARDS_100M = {  # of OGBench's sets of 100 million transitions: how many files each has
    "humanoidmaze-giant-navigate": 25,
    **dict.fromkeys((f"cube-{n}-play" for n in ("double", "triple", "quadruple", "octuple")), 100),
    **dict.fromkeys(("cube-quadruple-noisy", "scene-play"), 100),
    **dict.fromkeys((f"puzzle-{size}-play" for size in ("3x3", "4x4", "4x5", "4x6")), 100),
}
VISUAL = "visual-"  # before the names of those whose observations are images, of which there are fewer
OGBENCH_DATASET_TYPES |= {
    f"{VISUAL}{name}": types
    for name, types in OGBENCH_DATASET_TYPES.items()
    if name.startswith(("antmaze", "humanoidmaze", "cube", "scene", "puzzle")) and name != "cube-octuple"
}
NUM_TASKS = 5  # of every OGBench environment
DEFAULT_TASKS = {"cube": 2, "scene": 2, "puzzle-3x3": 4, "puzzle-4x4": 4, "puzzle": 2, "antsoccer": 4}  # elsewhere 1

D4RL_MINARI_IDS: dict[str, str] = {
    **{
        f"antmaze-{maze}": f"D4RL/antmaze/{maze}-v1"
        for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"{hand}-{dataset}": f"D4RL/{hand}/{dataset}-v2"
        for hand in ("pen", "door", "hammer", "relocate")
        for dataset in ("human", "cloned", "expert")
    },
}
LOCOMOTION = ("hopper", "halfcheetah", "walker2d")
# D4RL's own files: the same names, those that DROL's authors made of two of them, and locomotion.
D4RL_FILE_NAMES = (
    *D4RL_MINARI_IDS,
    *(f"{hand}-human-expert" for hand in ("pen", "door", "hammer", "relocate")),
    *(
        f"{robot}-{dataset}"
        for robot in LOCOMOTION
        for dataset in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    ),
)
HDF5_SUFFIXES = (".hdf5", ".h5")


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """One task and the data set that goes with it.

    Attributes:
        suite: 'ogbench', 'd4rl' (through Minari), 'd4rl_hdf5' (D4RL's own files), 'gymnasium', with data of one's own.
        name: OGBench's single-task name ('cube-double-play-singletask-v0'), the Minari id, 'd4rl-pen-human' of D4RL's
            own file, or Gymnasium's id.
        family: the row of the published settings that it belongs to ('cube-double-play', 'pen-human'); the name itself
            where there is none. OGBench's data set.
        env_name: OGBench environment without task ('cube-double'); elsewhere the name.
        dataset_type: OGBench data set type ('play'); empty for D4RL.
        task: OGBench task 1..5; None is the environment's default task. None for D4RL.
        size: '100m' of OGBench's sets of 100 million transitions; else empty.
    """

    suite: Literal["ogbench", "d4rl", "d4rl_hdf5", "gymnasium"]
    name: str
    family: str
    env_name: str
    dataset_type: str = ""
    task: int | None = None
    size: str = ""

    @property
    def dataset_name(self) -> str:
        """Stem of the official file, 'cube-double-play-v0'; or a folder, 'cube-double-play-100m-v0' (OGBench only)."""
        return f"{self.family}-v0"

    @property
    def shard_names(self) -> list[str]:
        """Of the files of a set of 100 million transitions: 'cube-double-play-v0-000.npz', ..; empty of another set."""
        base = self.family.removesuffix(f"-{self.size}")
        return [f"{base}-v0-{number:03}.npz" for number in range(SHARDS_100M[base])] if self.size else []

    @property
    def gym_id(self) -> str:
        """Gymnasium id of the single-task environment (OGBench only)."""
        task = "" if self.task is None else f"-task{self.task}"
        return f"{self.env_name}-singletask{task}-v0"

    @property
    def is_visual(self) -> bool:
        """Whether it is one of OGBench's that are observed in images."""
        return self.suite == "ogbench" and self.env_name.startswith(VISUAL)

    @property
    def world(self) -> str:
        """The OGBench environment, however it is observed: 'cube-double' of 'visual-cube-double', too."""
        return self.env_name.removeprefix(VISUAL)

    @property
    def task_number(self) -> int:
        """The number of its task, also where the name leaves it to OGBench (OGBench only)."""
        defaults = (number for prefix, number in DEFAULT_TASKS.items() if self.world.startswith(prefix))
        return self.task or next(defaults, 1)

    @property
    def short_name(self) -> str:
        """What `--env-id` and file names use: 'cube-double-task3', 'cube-single-noisy', 'd4rl-pen-human'."""
        if self.suite == "d4rl_hdf5":
            return self.name
        if self.suite != "ogbench":
            return re.sub("[/:]", "-", self.family)
        is_default = self.dataset_type == OGBENCH_DATASET_TYPES[self.env_name][0] and not self.size
        dataset_type = "" if is_default else self.family.removeprefix(self.env_name)
        task = "" if self.task is None else f"-task{self.task}"
        return f"{self.env_name}{dataset_type}{task}"


def resolve(env_id: str, dataset_path: pathlib.Path | None = None) -> EnvSpec:
    """Resolve any accepted spelling of an environment.

    Args:
        env_id: a short name ('cube-double', 'cube-double-task3', 'antmaze-large-stitch-task2', 'pen-human'), OGBench's
            own ('cube-double-play-singletask-task2-v0') or that of a set of 100 million transitions
            ('cube-double-play-100m'), a D4RL name with or without a version suffix, which is Minari's data
            ('pen-human-v1') or, after 'd4rl-', D4RL's own file, a Minari id, or Gymnasium's id ('HalfCheetah-v5'),
            where need be with the module that registers it ('my_envs:Reach-v0').
        dataset_path: a Minari data set, a folder, knows its own id, whatever it is: no other needs to be named. With an
            HDF5 file D4RL's names mean its own files.

    Raises:
        UserError: no such environment, with the nearest known names.
    """
    if dataset_path is not None and (own_id := minari_id(expanded(dataset_path))) is not None:
        for name in (env_id, own_id):  # whether the one that is named is this one is seen when it is read
            with contextlib.suppress(UserError):
                if (spec := resolve(name)).suite == "d4rl":
                    return spec
        return EnvSpec("d4rl", own_id, own_id, own_id)

    is_hdf5 = dataset_path is not None and dataset_path.suffix in HDF5_SUFFIXES
    d4rl = re.fullmatch(rf"(d4rl-)?({'|'.join(D4RL_FILE_NAMES)})(?:-(v\d+))?", env_id)
    if d4rl and (d4rl[1] or is_hdf5):
        version = "v2" if d4rl[2].startswith(("antmaze", *LOCOMOTION)) else "v1"
        if d4rl[3] not in (None, version):
            is_maze = d4rl[2].startswith("antmaze")
            older = "; in v0 trajectories end where its timeouts do not say so" if is_maze else ""
            raise UserError(f"--env-id {env_id}: of D4RL's files of this name {version} is read{older}")
        return EnvSpec("d4rl_hdf5", f"d4rl-{d4rl[2]}", d4rl[2], f"d4rl-{d4rl[2]}")

    # 'antmaze-medium-play' is D4RL's: OGBench's antmaze has no play data.
    d4rl_name = re.sub(r"-v\d+$", "", env_id)
    if d4rl_name in D4RL_MINARI_IDS:
        return EnvSpec("d4rl", D4RL_MINARI_IDS[d4rl_name], d4rl_name, D4RL_MINARI_IDS[d4rl_name])
    is_file = dataset_path is not None and expanded(dataset_path).is_file()
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/[\w.-]+-v\d+", env_id) and not is_file:  # namespace/.../name-version
        families = {own: family for family, own in D4RL_MINARI_IDS.items()}
        return EnvSpec("d4rl", env_id, families.get(env_id, env_id), env_id)

    if re.fullmatch(r"[\w.]+:[\w./-]+", env_id):
        return EnvSpec("gymnasium", env_id, env_id, env_id)

    if (ogbench := _resolve_ogbench(env_id)) is not None:
        return ogbench
    if (minari_root() / env_id / "data").is_dir() and not is_file:  # a data set of one's own, without a namespace
        return EnvSpec("d4rl", env_id, env_id, env_id)
    if env_id in (known_to_gymnasium := gymnasium_ids()):
        return EnvSpec("gymnasium", env_id, env_id, env_id)
    raise UserError(f"--env-id {env_id}: {_why_unknown(env_id, known_names() + known_to_gymnasium)}")


def _resolve_ogbench(env_id: str) -> EnvSpec | None:
    """None if this is no name of OGBench's. Raises `UserError` if its environment has no such data."""
    match = re.fullmatch(
        rf"({'|'.join(sorted(OGBENCH_DATASET_TYPES, key=len, reverse=True))})"
        rf"(?:-([a-z]+?))??(?:-(100m))?(?:-singletask)?(?:-task([1-{NUM_TASKS}]))?(?:-v0)?",
        env_id,
    )
    if match is None:
        return None
    env_name, dataset_type, size, task = match.groups()
    dataset_types = OGBENCH_DATASET_TYPES[env_name]
    dataset_type = dataset_type or dataset_types[0]
    if dataset_type not in dataset_types:
        raise UserError(
            f"--env-id {env_id}: {env_name} has no data set type '{dataset_type}'; it has {', '.join(dataset_types)}"
        )
    family, infix = f"{env_name}-{dataset_type}", "" if task is None else f"-task{task}"
    if size is not None and family not in SHARDS_100M:
        raise UserError(f"--env-id {env_id}: there are 100 million transitions of {', '.join(SHARDS_100M)}")
    family += f"-{size}" if size else ""
    number = None if task is None else int(task)
    return EnvSpec("ogbench", f"{family}-singletask{infix}-v0", family, env_name, dataset_type, number, size or "")


def _why_unknown(env_id: str, names: list[str]) -> str:
    """What to say of a name that nothing has."""
    if match := re.fullmatch(r"(hopper|halfcheetah|walker2d|ant)-([a-z-]+)(-v\d+)?", env_id):
        nearest = f"mujoco/{match[1]}/{'expert' if match[2].endswith('expert') else 'medium'}-v0"
        own = f"d4rl-{match[1]}-{match[2]} is its own file, and " if f"{match[1]}-{match[2]}" in D4RL_FILE_NAMES else ""
        return f"D4RL's data is not in Minari; {own}the nearest there is another: {nearest}"
    if env_id.startswith("powderworld"):
        return "powderworld's actions are discrete, and those of these algorithms are vectors of real numbers"
    nearest = difflib.get_close_matches(env_id, names, n=4, cutoff=0.5) or ["cube-double", "pen-human"]
    return f"no such environment; the nearest known names are {', '.join(nearest)}"


def gymnasium_ids() -> list[str]:
    """Of the environments that Gymnasium knows by itself, and those that this program has registered."""
    import gymnasium  # not before it is needed, to answer at once

    return list(gymnasium.registry)


def minari_id(path: pathlib.Path) -> str | None:
    """The id of the Minari data set in a folder; None if it holds none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((path / "data" / "metadata.json").read_text())["dataset_id"])
    return None


def minari_root() -> pathlib.Path:
    """Where Minari keeps its data sets. Raises `UserError` where nobody knows the home folder."""
    if folder := os.environ.get("MINARI_DATASETS_PATH"):
        return pathlib.Path(folder)  # as it is, like Minari
    return expanded(pathlib.Path("~/.minari/datasets"))


def known_names() -> list[str]:
    """Every short name that `resolve` accepts, e.g. for error messages."""
    names = [*D4RL_MINARI_IDS, *(f"d4rl-{name}" for name in D4RL_FILE_NAMES), *(f"{name}-100m" for name in SHARDS_100M)]
    for env_name, dataset_types in OGBENCH_DATASET_TYPES.items():
        tasks = ["", *(f"-task{task}" for task in range(1, NUM_TASKS + 1))]
        names += [
            f"{env_name}{dataset_type}{task}"
            for dataset_type in ("", *(f"-{kind}" for kind in dataset_types))
            for task in tasks
        ]
    return names
