"""Make a data set be there, without training on it: found, downloaded or collected, checked, and said where.

python results/fetch.py --env-id cube-double
"""

import clone  # noqa: F401 (first: it lets this import the clone's modules)
from common import command_line, datasets
from common.arguments import RunArgs
from common.env_ids import resolve
from common.errors import exit_in_one_line
from common.processes import available_cores


def main(args: RunArgs) -> None:
    """As the scripts load it, so that what they would refuse is refused here. Only arguments of data have a part."""
    dataset, provenance = datasets.load(
        resolve(args.env_id),
        dataset_path=args.dataset_path,
        dataset_dir=args.dataset_dir,
        source=args.data_source,
        collect_episodes=args.collect_episodes,
        collect_workers=args.collect_workers or available_cores(),
    )
    print(f"{datasets.describe(provenance)}: {dataset.describe_size()}")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(RunArgs)))
