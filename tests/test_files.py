"""Files that several processes write at once, and locks."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY

from common import files

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
