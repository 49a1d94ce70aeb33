"""Files that several processes write at once, and locks."""

import errno
import fcntl
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

from common import files

import numpy as np
import pytest
from conftest import REPOSITORY

WRITE = """
import pathlib, sys, time
import numpy as np
from common.files import write_whole
folder, value, start = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rows = np.full(300_000, value)
for pair in range(5):
    time.sleep(max(0, start + 0.1 * pair - time.time()))  # from the same instant as the other process
    write_whole(folder / f"{pair}.npz", lambda temporary: np.savez(temporary, rows=rows))
"""


def test_of_two_processes_that_write_a_file_at_once_one_wins_whole(tmp_path):
    start = str(time.time() + 2)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), str(value), start], cwd=REPOSITORY)
        for value in (1, 2)
    ]
    assert [writer.wait(timeout=30) for writer in writers] == [0, 0]
    for pair in range(5):
        with np.load(tmp_path / f"{pair}.npz") as arrays:
            assert set(np.unique(arrays["rows"])) in ({1}, {2})
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_failed_write_names_the_file_that_was_meant(tmp_path):
    def fail(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        files.write_whole(tmp_path / "a.npz", fail)
    assert caught.value.filename == str(tmp_path / "a.npz")


MAKE = """
import pathlib, sys, time
from common.files import making
path = pathlib.Path(sys.argv[1])
with making(path):
    print("has the lock", flush=True)
    if not path.exists():
        time.sleep(float(sys.argv[2]))
        path.write_text("made")
        print("made it")
"""


def maker(path: pathlib.Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", MAKE, str(path), str(seconds)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_one_process_makes_and_the_others_wait_for_it_by_name(tmp_path):
    first = maker(tmp_path / "data", 1.5)
    assert first.stdout.readline() == "has the lock\n"
    others = [maker(tmp_path / "data", 1.5) for _ in range(2)]
    assert first.communicate(timeout=20)[0] == "made it\n"
    for other in others:
        out = other.communicate(timeout=20)[0]
        assert f"waiting for process {first.pid} on " in out
        assert "made it" not in out


def test_a_lock_whose_holder_was_killed_is_no_obstacle(tmp_path):
    first = maker(tmp_path / "data", 60)
    assert first.stdout.readline() == "has the lock\n"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    second = maker(tmp_path / "data", 0)
    assert second.communicate(timeout=20)[0] == "has the lock\nmade it\n"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with files.making(tmp_path / "data"):
        pass
    assert f"warning: {tmp_path}: no locks on this file system ({os.strerror(code)})" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_does_not_sync_is_used_and_one_that_is_full_is_named(tmp_path, monkeypatch, code):
    """Some refuse it of folders alone."""

    def only(is_refused, code) -> None:
        def fsync(file: int) -> None:
            if is_refused(os.fstat(file).st_mode):
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    for name, is_refused in {"folders": stat.S_ISDIR, "all": lambda mode: True}.items():
        only(is_refused, code)
        files.write_whole(tmp_path / name, lambda temporary: temporary.write_text("whole"))
        assert (tmp_path / name).read_text() == "whole"
    only(stat.S_ISREG, errno.ENOSPC)
    with pytest.raises(OSError, match=r"No space left.*full"):
        files.write_whole(tmp_path / "full", lambda temporary: temporary.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "folders"]


def test_what_is_whole_but_cannot_be_renamed_is_kept_and_named(tmp_path):
    (tmp_path / "name").mkdir()  # in the way
    (tmp_path / "name" / "full").touch()

    def folder(temporary: pathlib.Path) -> pathlib.Path:
        (temporary / "made").mkdir()
        (temporary / "made" / "data").write_text("whole")
        return temporary / "made"

    with pytest.raises(OSError, match="whole, but under another name") as caught:
        files.write_whole(tmp_path / "name", lambda temporary: temporary.write_text("whole"))
    assert caught.value.filename == str(tmp_path / "name")
    assert pathlib.Path(caught.value.strerror.split(": ")[-1]).read_text() == "whole"
    with pytest.raises(OSError, match="whole, but under another name") as caught:
        files.write_whole_folder(tmp_path / "name", folder)
    assert (pathlib.Path(caught.value.strerror.split(": ")[-1]) / "data").read_text() == "whole"
    files.write_whole_folder(tmp_path / "other", folder)
    assert (tmp_path / "other" / "data").read_text() == "whole"
    assert len(list(tmp_path.glob(".tmp-*"))) == 2


def test_names_as_long_as_the_file_system_takes_them_and_no_lock_is_taken_for_data(tmp_path):
    path = tmp_path / f"{'x' * 245}.npz"
    with files.making(path):
        files.write_whole(path, lambda temporary: np.savez(temporary, rows=np.arange(3)))
    assert list(tmp_path.glob("*.npz")) == [path]
