"""What the experiments share. `import basics` comes first: it lets them import the clone's modules, and results/'s."""

import csv
import pathlib
import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from clone import REPOSITORY, RESULTS
from common.arguments import complete
from common.env_ids import resolve

__all__ = ["REPOSITORY", "RESULTS", "read_csv", "settings", "write_csv"]


def settings(algorithm: types.ModuleType, env_id: str = "cube-double", **given: Any) -> Any:
    """The algorithm's arguments: those that are given, for the rest what is published for the environment."""
    args = algorithm.Args(env_id=env_id, **given)
    return complete(args, resolve(env_id), algorithm.published_settings)[0]


def write_csv(path: pathlib.Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A CSV file, its folder if need be, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: pathlib.Path) -> np.ndarray:
    """The rows of a CSV file without commas in its cells, as records: a column is `rows["name"]`, numbers if it can."""
    return np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
