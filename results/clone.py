"""Where the clone is. Importing this lets a script of results/ import what lies there, from wherever it is run."""

import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"

sys.path.insert(0, str(REPOSITORY))
