"""The published scores: Table 1 of arXiv 2604.22229 (see paper/README.md)."""

import csv

from clone import RESULTS
from common.env_ids import D4RL_MINARI_IDS, EnvSpec

TABLE = RESULTS / "paper" / "results.csv"


def published_scores() -> dict[tuple[str, str], tuple[float, float]]:
    """(group, method) -> mean and deviation over tasks and seeds, of the success rate or normalised score in percent.

    Groups are called 'ogbench/cube-double', methods 'DROL(16)'; a deviation that is not published is nan.
    """
    with TABLE.open() as file:
        return {
            (row["group"], row["method"]): (float(row["mean"]), float(row["std"] or "nan"))
            for row in csv.DictReader(file)
            if row["mean"]
        }


def num_tasks() -> dict[str, int]:
    """Group -> its number of tasks, in the order of the table."""
    with TABLE.open() as file:
        return {row["group"]: int(row["tasks"]) for row in csv.DictReader(file)}


def group_of(spec: EnvSpec) -> str | None:
    """The table's group that a task belongs to; None if it has none, as for cube-single-noisy."""
    if spec.suite in ("d4rl", "d4rl_hdf5"):
        group = "d4rl/antmaze" if spec.family.startswith("antmaze") else "d4rl/adroit"
        return group if spec.family in D4RL_MINARI_IDS else None
    group = f"ogbench/{spec.env_name}"
    is_papers = spec.dataset_type in ("play", "navigate") and not spec.size
    return group if is_papers and group in num_tasks() else None
