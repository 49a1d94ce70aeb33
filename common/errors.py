"""Errors that a person can act on: one line that says what is wrong, where, and what to do."""

import os
import pathlib
import signal
import sys
from collections.abc import Callable

import common

OUT_OF_MEMORY = "out of memory; smaller --batch-size, --hidden-sizes or --log-interval need less"


class UserError(Exception):
    """Bad input or a failing machine, described in one line. Ends a program with exit status 2, without a traceback."""


def describe_os_error(error: OSError) -> str:
    """'No space left on device: runs/x/train.csv', the useful part of an `OSError`."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def expanded(path: pathlib.Path) -> pathlib.Path:
    """The path with ~ replaced. Raises `UserError` where nobody knows the home folder, as in some containers."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: this user has no home folder; set HOME, or --dataset-dir (Minari's: MINARI_DATASETS_PATH)"
        ) from error


def exit_in_one_line(program: Callable[[], object]) -> None:
    """Run a program; what a person can mend ends it in one line on stderr instead of a traceback."""
    if sys.stdout is None or sys.stderr is None:  # started with >&- or 2>&-
        sys.stderr = sys.stderr or sys.stdout or sys.exit(2)
        sys.exit(_report("standard output or standard error is closed; send it to /dev/null instead", 2))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # of characters that a terminal, or a name that is no text, lacks
    if signal.getsignal(signal.SIGINT) is common.interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        program()
    except UserError as error:
        sys.exit(_report(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted", 130))
    except BrokenPipeError:  # e.g. `python drol.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_report("the reader of the output went away", 2))
    except OSError as error:  # a full disk, a read-only folder
        sys.exit(_report(describe_os_error(error), 2))
    except MemoryError:
        sys.exit(_report(OUT_OF_MEMORY, 2))
    except RuntimeError as error:  # XLA's
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(_report(OUT_OF_MEMORY, 2))


def _report(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status
