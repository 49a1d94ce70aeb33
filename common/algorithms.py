"""The algorithm files: scripts at the top level that name an ALGORITHM. Yours is one of them as soon as it is there."""

import ast
import functools
import hashlib
import importlib
import pathlib
import subprocess
from types import ModuleType
from typing import Any

from common.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[1]


def names() -> list[str]:
    """Of every algorithm file there is, in alphabetical order: 'drol', 'fql'."""
    return sorted(path.stem for path in REPOSITORY.glob("*.py") if "\nALGORITHM = " in path.read_text("utf-8"))


def load(name: str) -> ModuleType:
    """The module of an algorithm.

    Raises:
        UserError: there is no such file here.
    """
    if name not in names():
        raise UserError(f"there is no {name}.py here; there are {', '.join(f'{each}.py' for each in names())}")
    return importlib.import_module(name)


@functools.cache  # at the start: what is edited later, while data is collected, is not what runs
def code_of(name: str) -> dict[str, str | bool | None]:
    """What a run is made by.

    Returns:
        `script` and `common`, the `fingerprint` of the file and of all modules in common/; `commit`, None outside of a
        repository; `dirty`, whether any file in the repository differed from it; `modified`, whether the script did
        other things than the commit's.
    """
    if name not in names():
        raise UserError(f"ALGORITHM is {name!r}, so its file has to be {name}.py, beside common/")
    script = fingerprint((REPOSITORY / f"{name}.py").read_text())
    modules = sorted((REPOSITORY / "common").rglob("*.py"))
    common = "".join(f"{path.relative_to(REPOSITORY)} {fingerprint(path.read_text())}\n" for path in modules)
    top_level, _, commit = (_git("rev-parse", "--show-toplevel", "HEAD") or "").strip().partition("\n")
    # A copy in somebody else's repository has no commit of its own.
    is_own = bool(commit) and pathlib.Path(top_level).resolve() == REPOSITORY.resolve()
    committed = _git("show", f"HEAD:{name}.py") if is_own else None  # None: the commit does not have it
    return {
        "script": script,
        "common": hashlib.sha256(common.encode()).hexdigest(),
        "commit": commit if is_own else None,
        "dirty": is_own and bool(_git("status", "--porcelain", "--untracked-files=no")),
        "modified": is_own and (committed is None or fingerprint(committed) != script),
    }


def fingerprint(source: str) -> str:
    """SHA-256 of what Python code does: the same whatever its comments, docstrings and layout, in every Python."""
    return hashlib.sha256(ascii(_structure(ast.parse(source))).encode()).hexdigest()


def _structure(node: Any) -> Any:
    """Of a syntax tree, without docstrings (of fields, too), and without what is empty: Pythons differ in that."""
    if isinstance(node, list):
        return [_structure(each) for each in node if not _is_docstring(each)]
    if isinstance(node, ast.JoinedStr):  # Python 3.12 has empty pieces in format specifications
        node.values = [piece for piece in node.values if getattr(piece, "value", None) != ""]
    if isinstance(node, ast.AST):
        fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
        return [type(node).__name__, *((name, _structure(value)) for name, value in fields.items())]
    return node


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _git(*words: str) -> str | None:
    """What git answers about this repository; None if it refuses, or is not here."""
    try:
        command = ["git", "-C", str(REPOSITORY), *words]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
