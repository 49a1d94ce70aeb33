"""Make every figure and table of results/ again, from the raw CSV files beside them.

python results/experiments/make.py
"""

import dataclasses
import pathlib

import accelerator
import antmaze
import basics
import candidates
import families
import mechanism
import physics
import pixels
import plot
import speed
import table
import toy
from common import command_line
from common.errors import exit_in_one_line


@dataclasses.dataclass(frozen=True)
class MakeArgs:
    """Make every figure and table of results/ again, from the raw CSV files beside them."""

    folder: pathlib.Path = basics.RESULTS
    """Folder with the raw files; what is made from them is written into it."""


def main(args: MakeArgs) -> None:
    """One experiment after the other."""
    comparison = args.folder / "comparison"
    plot.main(plot.PlotArgs((comparison,), comparison / "updates"))
    plot.main(plot.PlotArgs((comparison,), comparison / "minutes", x="minutes"))
    table.main(table.TableArgs((comparison,), comparison / "table"))
    for folder in (args.folder / name for name in ("d4rl", "adroit", "scene")):
        plot.main(plot.PlotArgs((folder,), folder / "updates"))
        table.main(table.TableArgs((folder,), folder / "table"))
    hammer = sorted(args.folder.glob("adroit/*-hammer-*"))
    plot.main(plot.PlotArgs((args.folder / "imitation", *hammer), args.folder / "imitation" / "hammer"))
    plot.main(plot.PlotArgs((args.folder / "families" / "compared",), args.folder / "families" / "updates"))
    families.render(args.folder / "families")
    for folder in ("quick-start", "online", "antmaze", "hammer"):
        plot.main(plot.PlotArgs((args.folder / folder,), args.folder / folder / "updates"))
    for file in sorted((args.folder / "antmaze").glob("*-goals.csv")):
        antmaze.render(file.parent, file.name.removesuffix("-goals.csv"))
    candidates.main(candidates.CandidateArgs(args.folder / "candidates"))
    cube = args.folder / "cube-single"
    candidates.main(candidates.CandidateArgs(cube, metrics=("score", "pairwise_distance", "bc_loss")))
    plot.main(plot.PlotArgs((cube / "all-tasks" / "drol-task1", *sorted(cube.glob("task1-k*"))), cube / "task1"))
    plot.main(plot.PlotArgs((cube / "all-tasks",), cube / "updates"))
    table.main(table.TableArgs((cube / "all-tasks",), cube / "table"))
    toy.render(args.folder / "toy")
    mechanism.render(args.folder / "mechanism")
    for name in ("speed", "small"):
        speed.render(args.folder / "speed" / name)
    accelerator.render(args.folder / "gpu")
    physics.render(args.folder / "physics")
    pixels.render(args.folder / "pixels")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(MakeArgs)))
