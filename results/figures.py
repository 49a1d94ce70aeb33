"""How figures look, and how they are saved."""

import pathlib
from collections.abc import Sequence

from common.files import write_whole

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})
plt.rcParams["svg.hashsalt"] = "one-step-offline-rl"  # else its ids are drawn at random
plt.rcParams["text.parse_math"] = False  # names of runs and tasks are no formulas


def save(figure: plt.Figure, path: pathlib.Path, formats: Sequence[str] = ("pdf", "png")) -> list[pathlib.Path]:
    """As PATH.pdf, PATH.png, .., which are returned; no date inside: the same runs give the same file."""
    paths = [path.with_name(f"{path.name}.{ending}") for ending in formats]
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in paths:
        metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(each.suffix)
        write_whole(each, lambda file, metadata=metadata: figure.savefig(file, dpi=160, metadata=metadata))
    plt.close(figure)
    return paths
