"""The algorithm files: scripts at the top level that name an ALGORITHM. Yours is one of them as soon as it is there."""

import functools
import hashlib
import importlib
import pathlib
import subprocess
from types import ModuleType

from common.errors import UserError
from common.files import sha256

REPOSITORY = pathlib.Path(__file__).parents[1]


def names() -> list[str]:
    """Of every algorithm file there is, in alphabetical order: 'drol', 'fql'."""
    return sorted(path.stem for path in REPOSITORY.glob("*.py") if "\nALGORITHM = " in path.read_text())


def load(name: str) -> ModuleType:
    """The module of an algorithm.

    Raises:
        UserError: there is no such file here.
    """
    if name not in names():
        raise UserError(f"there is no {name}.py here; there are {', '.join(f'{each}.py' for each in names())}")
    return importlib.import_module(name)


@functools.cache
def code_of(name: str) -> dict[str, str | None]:
    """What a run is made by.

    Returns:
        `commit` (None outside of a repository); `script` and `common`, the SHA-256 of the file and of all modules in
        common/.
    """
    if name not in names():
        raise UserError(f"ALGORITHM is {name!r}, so its file has to be {name}.py, beside common/")
    modules = "".join(sha256(path) for path in sorted((REPOSITORY / "common").glob("*.py")))
    return {
        "commit": _commit(),
        "script": sha256(REPOSITORY / f"{name}.py"),
        "common": hashlib.sha256(modules.encode()).hexdigest(),
    }


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(REPOSITORY), "rev-parse", "--show-toplevel", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    # A copy in somebody else's repository has no commit of its own.
    return answer[1] if len(answer) == 2 and pathlib.Path(answer[0]).resolve() == REPOSITORY.resolve() else None
