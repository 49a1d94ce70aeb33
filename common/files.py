"""Files that are written whole or not at all, and made by one process at a time."""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import socket
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Let `write` fill a temporary file, flush it to the disk, and rename it to `path`.

    Whatever happens in between (a kill, a full disk, another process that writes the same), `path` is either the old
    file or one whole new one.

    Raises:
        OSError: the file could not be written; it says which.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")  # with the suffix, which np.savez would add
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def check_archive(path: pathlib.Path) -> None:
    """Compare every member of a zip or npz file with its CRC-32.

    `np.load` does not: it stops before the end of a member whose header claims less, and shifts what follows.

    Raises:
        zipfile.BadZipFile, OSError, ...: it is damaged, or not such a file.
    """
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"bad CRC-32 of {name}")


def try_lock(path: pathlib.Path) -> io.TextIOWrapper | None:
    """Take a lock file; it is held until it is closed, or this process ends, however it ends.

    Where the file system has no locks it goes on without one, and says so.

    Returns:
        The open lock file; None if another process has it, which `holder_of` names.

    Raises:
        OSError: the lock file cannot be opened.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        problem = f"no locks on this file system ({error.strerror}): let no other process write there meanwhile"
        print(f"warning: {path.parent}: {problem}", file=sys.stderr, flush=True)
        return file
    with contextlib.suppress(OSError):  # a full disk; the name is for messages only
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def holder_of(path: pathlib.Path) -> str:
    """Who holds a lock file, for a message: 'process 4711 on node3'."""
    return path.read_text(errors="replace") or "another process"


@contextlib.contextmanager
def making(path: pathlib.Path) -> Iterator[None]:
    """Let one process at a time make `path`, a file or a folder; the others wait here, and say for whom.

    Look whether `path` is there inside the block: whoever came first has made it.

    Raises:
        OSError: the lock file cannot be written beside `path`.
    """
    lock_path, said = path.with_name(f".lock-{path.name}"), None
    while (lock := try_lock(lock_path)) is None:
        holder = holder_of(lock_path)
        if holder != said:
            print(f"waiting for {holder}, which makes {path}", flush=True)
            said = holder
        time.sleep(0.2)
    with lock:
        yield
