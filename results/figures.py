"""How figures look, and how they are saved."""

import pathlib

from common.files import write_whole

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})
plt.rcParams["text.parse_math"] = False  # names of runs and tasks are no formulas


def save(figure: plt.Figure, path: pathlib.Path) -> list[pathlib.Path]:
    """As PATH.pdf and PATH.png, which are returned; no date inside: the same runs give the same file."""
    paths = [path.with_name(path.name + ending) for ending in (".pdf", ".png")]
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in paths:
        metadata = {"CreationDate": None} if each.suffix == ".pdf" else None
        write_whole(each, lambda file, metadata=metadata: figure.savefig(file, dpi=160, metadata=metadata))
    plt.close(figure)
    return paths
