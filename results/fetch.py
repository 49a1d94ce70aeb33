"""Make a data set be there, without training on it: found, downloaded or collected, checked, and said where.

python results/fetch.py --env-id cube-double
"""

import clone  # noqa: F401 (first: it lets this import the clone's modules)
from common import command_line
from common.arguments import RunArgs
from common.data import sources
from common.env_ids import resolve
from common.errors import exit_in_one_line


def main(args: RunArgs) -> None:
    """As the scripts load it, so that what they would refuse is refused here. Only arguments of data have a part."""
    dataset, provenance = sources.load(resolve(args.env_id, args.dataset_path), args)
    print(f"{sources.describe(provenance)}: {dataset.describe_size()}")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(RunArgs)))
