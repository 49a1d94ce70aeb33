"""Make a data set be there, without training on it: found, downloaded or collected, checked, and said where.

python results/fetch.py --env-id cube-double
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tyro

from common import datasets
from common.arguments import Count, DataSource
from common.env_ids import resolve
from common.errors import exit_in_one_line
from common.machine import available_cores


@dataclasses.dataclass(frozen=True)
class Args:
    """Fetch or collect the data set of an environment, as the training scripts would."""

    env_id: str
    """Environment; its task does not matter."""
    data_source: DataSource = "auto"
    """auto: a file that is there, else the official server, else its mirror, else collect it here."""
    dataset_dir: pathlib.Path = pathlib.Path("~/.ogbench/data")
    """Folder that is searched, downloaded to and collected into (Minari's is MINARI_DATASETS_PATH)."""
    collect_episodes: Count | None = None
    """Episodes to collect, when data has to be collected; OGBench's own number if unset."""
    collect_workers: Count | None = None
    """Worker processes for collection; one for each CPU core if unset."""


def main(args: Args) -> None:
    """As the scripts load it, so that what they would refuse is refused here."""
    dataset, provenance = datasets.load(
        resolve(args.env_id),
        dataset_path=None,
        dataset_dir=args.dataset_dir,
        source=args.data_source,
        collect_episodes=args.collect_episodes,
        collect_workers=args.collect_workers or available_cores(),
    )
    print(f"{datasets.describe(provenance)}: {dataset.describe_size()}")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(tyro.cli(Args)))
