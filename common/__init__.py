"""Everything that is not the algorithm: environments, data sets, collection, evaluation, run directories."""

import gc
import os
import pathlib
import signal
import sys

# Imports and traces leave millions of objects that stay. Looking for garbage among them took a fifth of a start.
gc.set_threshold(100_000)


def interrupted(*_: object) -> None:
    """End in one line."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)


# A script at the top level imports this package before all others, which take seconds. Ctrl-C meanwhile is one line and
# nothing else: some of them swallow a KeyboardInterrupt, or turn it into an ImportError.
_script = getattr(sys.modules["__main__"], "__file__", None)  # none in a notebook, where Ctrl-C is the notebook's
if _script is not None and pathlib.Path(_script).resolve().parent == pathlib.Path(__file__).resolve().parents[1]:
    signal.signal(signal.SIGINT, interrupted)
