"""Files that are written whole or not at all, and made by one process at a time."""

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator

from common.errors import UserError

# What NumPy and the zip format raise on truncated or altered files.
DAMAGE = (ValueError, TypeError, IndexError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # a file system has no such operation


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(file: int) -> None:
    """Let what was written reach the disk, as far as the file system does that.

    Args:
        file: descriptor.

    Raises:
        OSError: it did not, as on a full disk.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in CANNOT:
            raise


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to the disk, and rename it to `path`.

    Whatever happens in between (a kill, a full disk, another process that writes the same), `path` is either the old
    file or one whole new one.

    Raises:
        OSError: the file could not be written; it says which.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}{path.suffix}")  # the suffix, which np.savez would add
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            flush(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
    _rename(temporary, path)


def write_whole_folder(path: pathlib.Path, write: Callable[[pathlib.Path], pathlib.Path]) -> pathlib.Path:
    """`write_whole` for a folder, which `write` makes inside of a temporary one, and returns. Returns `path`."""
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent))
    try:
        made = write(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _rename(made, path)
    shutil.rmtree(temporary, ignore_errors=True)
    return path


def _rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Give a file or folder that is whole its name.

    Raises:
        OSError: it could not; the message says where it is, for it is not removed.
    """
    try:
        temporary.replace(path)
    except OSError as error:
        kept = f"{error.strerror}; whole, but under another name: {temporary}"
        raise OSError(error.errno, kept, str(path)) from error
    with contextlib.suppress(OSError):  # some have this for files alone; a power cut may take the new name back there
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
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
    lock_path, said = path.with_name(f".{path.name}.lock"), None  # not another .npz
    while (lock := try_lock(lock_path)) is None:
        holder = holder_of(lock_path)
        if holder != said:
            print(f"waiting for {holder}, which makes {path}", flush=True)
            said = holder
        time.sleep(0.2)
    with lock:
        yield


def found_or_made(
    path: pathlib.Path, find: Callable[[], pathlib.Path | None], make: Callable[[], pathlib.Path]
) -> pathlib.Path:
    """What is there; else what one process makes at `path`, while others wait for it and find it then.

    Args:
        path: file or folder.
        find: what is there, which may have another name; None if nothing is.
        make: makes it, and gives it its name when it is whole.

    Raises:
        UserError: the folder that it goes into cannot be written.
    """
    if found := find():
        return found
    check_folder(path.parent)
    with making(path):
        return find() or make()


def found(path: pathlib.Path, hint: str = "", files: Collection[pathlib.Path] = ()) -> pathlib.Path | None:
    """A data file, Minari's folder, or one that has all of its files, if it is there, which is said with a hint."""
    is_there = all(file.is_file() for file in files) if files else path.is_file() or (path / "data").is_dir()
    if not is_there:
        return None
    print(f"data: found {path}{hint}", flush=True)
    return path


def check_folder(folder: pathlib.Path, num_bytes: int = 0) -> None:
    """Make a folder for data. Raises `UserError` if it cannot be written, or so many bytes have no room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
        if (free := shutil.disk_usage(folder).free) >= num_bytes:
            return
        problem = f"{free / 1e6:.0f} MB are free, the data may need {num_bytes / 1e6:.0f} MB"
    except OSError as error:
        problem = error.strerror
    advice = "take another --dataset-dir (Minari's: MINARI_DATASETS_PATH, D4RL's: D4RL_DATASET_DIR)"
    raise UserError(f"cannot write to {folder}: {problem}; {advice}")
