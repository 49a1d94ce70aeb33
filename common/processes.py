"""What a machine gives to processes: CPU cores, no more than a container's quota, and locks, which are in /dev/shm."""

import math
import multiprocessing
import os
import pathlib
import re
from collections.abc import Iterator

from common.errors import UserError

CGROUPS = pathlib.Path("/sys/fs/cgroup")
OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")
MEMORY = pathlib.Path("/proc/meminfo")


def usable_cores() -> list[int]:
    """Their numbers; the first ones of those that it is pinned to, where there is a quota."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return cores[: max(1, math.ceil(min(quotas(), default=len(cores))))]


def available_cores() -> int:
    """How many there are."""
    return len(usable_cores())


def quotas() -> list[float]:
    """Of each control group that this process is in, and that has one: cores' worth of time."""
    found = []
    for folder, is_v2 in _groups("cpu"):
        if is_v2:
            words = _read(folder / "cpu.max").split()  # 'max 100000' or '50000 100000'
        else:
            words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]  # -1: none
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            found.append(int(words[0]) / int(words[1]))
    return found


def free_memory() -> int:
    """Bytes that processes here may still take; what the system keeps of files would make room."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read(MEMORY), re.MULTILINE)
    free = [1024 * int(available[1]) if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, is_v2 in _groups("memory"):
        names = ("max", "current") if is_v2 else ("limit_in_bytes", "usage_in_bytes")
        limit, used = (_read(folder / f"memory.{name}").strip() for name in names)
        files = re.findall(r"^(?:in)?active_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        if limit.isdigit() and used.isdigit():  # not 'max'
            free.append(int(limit) - int(used) + sum(map(int, files)))
    return min(free)


def _groups(controller: str) -> Iterator[tuple[pathlib.Path, bool]]:
    """Folders of the control groups that this process is in, and whether they are of the second version.

    A group obeys those above it, too. Inside of a container the path of its group may be the host's, and only the
    root is to be seen.
    """
    for line in _read(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        is_v2 = controllers == ""
        if not is_v2 and controller not in controllers.split(","):
            continue
        roots = [CGROUPS, CGROUPS / "unified"] if is_v2 else [CGROUPS / controllers, CGROUPS / controller]
        groups = [pathlib.PurePosixPath(path), *pathlib.PurePosixPath(path).parents]
        yield from ((folder, is_v2) for folder in {root / group.relative_to("/") for root in roots for group in groups})


def check_locks(advice: str) -> None:
    """Raises `UserError` where processes cannot have locks in common, with what is to be done."""
    try:
        multiprocessing.get_context("spawn").Queue().close()
    except (OSError, ImportError) as error:  # the latter where there is no /dev/shm
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"processes cannot have locks in common ({reason}: /dev/shm); {advice}") from error


def _read(path: pathlib.Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
