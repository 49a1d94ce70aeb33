"""Checkpoints: the whole training state in one npz file, written whole or not at all, the last two kept."""

import pathlib
import sys
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from common.errors import UserError
from common.files import write_whole

KEEP = 2

# What `np.load` and the zip format raise on a truncated or altered file (every array in an npz file has a CRC-32).
_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def save(folder: pathlib.Path, step: int, tree: Any) -> pathlib.Path:
    """Write a pytree of arrays as `step-000012000.npz`, one entry a leaf, named by its path in the tree.

    Raises:
        OSError: the file could not be written.
        UserError: a number is not finite: the state is not worth keeping.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.npz"
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not finite after update {step}; the run is stopped, {last_good(folder)}")
    write_whole(path, lambda temporary: np.savez(temporary, **arrays))
    for old in by_step(folder)[:-KEEP]:
        old.unlink()
    return path


def last_good(folder: pathlib.Path) -> str:
    """Where the last good state is, for a message."""
    paths = by_step(folder)
    return f"the last good checkpoint is {paths[-1]}" if paths else "before its first checkpoint"


def restore_latest(folder: pathlib.Path, like: Any) -> Any:
    """Read the newest sound checkpoint; a damaged one is named on stderr and the one before it is used.

    Args:
        folder: where `save` wrote.
        like: a pytree of the same structure, shapes and dtypes.

    Raises:
        UserError: there is no sound checkpoint.
    """
    paths = by_step(folder)
    for path in reversed(paths):
        try:
            return restore(path, like)
        except _DAMAGE as error:
            print(f"warning: {path} is damaged ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
    problem = f"all {len(paths)} checkpoints in {folder} are damaged" if paths else f"no checkpoint in {folder}"
    raise UserError(f"{problem}; nothing can be resumed, start the run anew")


def restore(path: pathlib.Path, like: Any) -> Any:
    """Read one checkpoint into the structure of `like`."""
    with np.load(path) as arrays:
        leaves = []
        for name, leaf in _named_leaves(like).items():
            array = arrays[name]
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, expected {leaf.dtype}{leaf.shape}")
            leaves.append(array if isinstance(leaf, np.ndarray) else jax.numpy.array(array))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def by_step(folder: pathlib.Path) -> list[pathlib.Path]:
    """All checkpoints, the newest last."""
    return sorted(folder.glob("step-*.npz"))
