"""What the experiments share. `import basics` comes first: it lets them import the clone's modules, and results/'s."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from clone import REPOSITORY, RESULTS

__all__ = ["REPOSITORY", "RESULTS"]
