"""Files that are written whole or not at all."""

import hashlib
import os
import pathlib
from collections.abc import Callable


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Let `write` fill a temporary file, flush it to the disk, and rename it to `path`.

    Whatever happens in between (a kill, a full disk), `path` is either the old file or the whole new one.

    Raises:
        OSError: the file could not be written.
    """
    temporary = path.with_name(f".tmp-{path.name}")  # with the suffix, which np.savez would add
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
