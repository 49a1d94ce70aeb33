"""Which MuJoCo versions move an environment alike: measured by results/experiments/physics.py, watched by a test."""

import dataclasses
import re
from importlib import metadata
from typing import Any

from common.env_ids import VISUAL, EnvSpec

OFFICIAL_MUJOCO = {  # of the data, and of the papers
    "ogbench": "3.2 or before",  # made in 2024; ogbench asks for 3.1.6 or later
    "d4rl_hdf5": "2.1 or before",  # mujoco-py has no other
}


@dataclasses.dataclass(frozen=True)
class Change:
    """From a state on, with the same action, MuJoCo moves some environments otherwise than before.

    Attributes:
        since: the first version, (major, minor).
        what: moves otherwise, for people.
        families: beginnings of `EnvSpec.family`.
    """

    since: tuple[int, int]
    what: str
    families: tuple[str, ...]


ARM, ANT = ("cube", "scene", "puzzle"), ("antmaze", "antsoccer")
CHANGES = (
    Change((3, 3), "contacts of convex meshes", (*ARM, "door", "hammer", "pen")),
    Change((3, 4), "contacts of boxes with boxes", ARM),
    Change((3, 5), "the arm where an actuator is at its limit", ARM),
    Change((3, 5), "contacts with a margin", (*ANT, "door", "hammer", "pen", "relocate")),
)


def installed() -> str:
    """The version of the MuJoCo that runs the environments here."""
    return metadata.version("mujoco")


def changes(spec: EnvSpec, version: str) -> list[Change]:
    """How this version ('4.0.0') moves an environment otherwise than the first; nothing of environments not listed."""
    number = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if spec.suite == "gymnasium":  # an environment of one's own, whatever its name begins with
        return []
    family = spec.family.removeprefix(VISUAL)
    return [change for change in CHANGES if family.startswith(change.families) and change.since <= number]


def note_difference(spec: EnvSpec, dataset: dict[str, Any]) -> None:
    """Say it at the start of what evaluates here, if there is one (`difference`)."""
    if unlike := difference(spec, dataset, installed()):
        before = '; to have it as before: pip install "mujoco<3.3"' if changes(spec, installed()) else ""
        print(f"note: {unlike}{before}", flush=True)


def suffix(spec: EnvSpec) -> str:
    """In names of what is collected here: '-mujoco3.5' with 3.5 or later, empty with what reproduces the papers."""
    made_with = changes(spec, installed())
    return "-mujoco{}.{}".format(*made_with[-1].since) if made_with else ""


def describe(spec: EnvSpec, version: str) -> str:
    """To tell runs apart by: 'since MuJoCo 3.5'; 'first' before any change."""
    made_with = changes(spec, version)
    return "since MuJoCo {}.{}".format(*made_with[-1].since) if made_with else "first"


def difference(spec: EnvSpec, dataset: dict[str, Any], version: str) -> str | None:
    """How the evaluation differs from what made the data, and from the papers; None if it does not.

    Args:
        spec: environment.
        dataset: provenance of the data; nothing is known of data without `versions`.
        version: of the MuJoCo that evaluates.

    Returns:
        'MuJoCo 4.0.0 moves it otherwise than that of the data (3.3.7): contacts of boxes with boxes (since 3.4)'.
    """
    others = {OFFICIAL_MUJOCO[spec.suite]: "the papers"} if spec.suite in OFFICIAL_MUJOCO else {}
    if data_version := dataset.get("versions", {}).get("mujoco"):
        others[data_version] = "the data"
    ours = set(changes(spec, version))
    unlike = {other: who for other, who in others.items() if set(changes(spec, other)) != ours}
    if not unlike:
        return None
    between = set().union(*(ours.symmetric_difference(changes(spec, other)) for other in unlike))
    what = ", ".join("{} (since {}.{})".format(c.what, *c.since) for c in CHANGES if c in between)
    whose = " and of ".join(f"{who} ({other})" for other, who in unlike.items())
    return f"MuJoCo {version} moves it otherwise than that of {whose}: {what}"
