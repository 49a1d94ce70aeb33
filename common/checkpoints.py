"""Checkpoints: the whole training state in one npz file, written whole or not at all, the last two kept."""

import pathlib
import sys
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from common.errors import UserError
from common.files import check_archive, write_whole

KEEP = 2

# What `np.load` and the zip format raise on a truncated or altered file (every array in an npz file has a CRC-32).
DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def save(folder: pathlib.Path, step: int, tree: Any, *, keep: Collection[int] = ()) -> pathlib.Path:
    """Write a pytree of arrays as `step-000012000.npz`, one entry a leaf, named by its path in the tree.

    Args:
        folder: where to.
        step: updates so far.
        tree: the state.
        keep: steps of checkpoints that are still needed, beside the last two.

    Raises:
        OSError: the file could not be written.
        UserError: a number is not finite: the state is not worth keeping.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, step)
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not finite after update {step}; the run is stopped, {last_good(folder)}")
    write_whole(path, lambda temporary: np.savez(temporary, **arrays))
    prune(folder, keep)
    return path


def prune(folder: pathlib.Path, keep: Collection[int]) -> None:
    """Remove all checkpoints but the last two and those of the steps to `keep`."""
    for old in by_step(folder)[:-KEEP]:
        if step_of(old) not in keep:
            old.unlink()


def last_good(folder: pathlib.Path) -> str:
    """Where the last good state is, for a message."""
    paths = by_step(folder)
    return f"the last good checkpoint is {paths[-1]}" if paths else "before its first checkpoint"


def sound_steps(folder: pathlib.Path, like: Any) -> set[int]:
    """The steps of all checkpoints that can be read; a damaged one is named on stderr.

    Args:
        folder: where `save` wrote.
        like: a pytree of the same structure, shapes and dtypes.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    paths, sound = by_step(folder), set()
    for path in paths:
        try:
            restore(folder, step_of(path), like)
            sound.add(step_of(path))
        except FileNotFoundError:  # pruned meanwhile, by the process that trains
            continue
        except DAMAGE as error:
            print(f"warning: {path} is damaged ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
    if paths and not sound and not any(path.exists() for path in paths):
        return sound_steps(folder, like)  # training went on so far that all of them are newer now
    if paths and not sound:
        problem = (
            f"all {len(paths)} checkpoints in {folder} are damaged, or were written by another version of the script"
        )
        raise UserError(f"{problem}; go on with that version, or start the run anew")
    return sound


def restore(folder: pathlib.Path, step: int, like: Any) -> Any:
    """Read the checkpoint of this step into the structure of `like`, as NumPy arrays.

    Raises:
        OSError, ValueError, ...: it is not there, damaged, or of another structure.
    """
    path = _path(folder, step)
    check_archive(path)
    with np.load(path) as arrays:
        leaves = []
        for name, leaf in _named_leaves(like).items():
            array = arrays[name]
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, expected {leaf.dtype}{leaf.shape}")
            leaves.append(array)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def restore_dict(folder: pathlib.Path, step: int, name: str) -> dict[str, np.ndarray]:
    """Read one dict of arrays of the checkpoint of this step: its path in the tree, e.g. '.sums'; empty if none.

    Raises:
        OSError, ValueError, ...: the checkpoint is not there, or damaged.
    """
    with np.load(_path(folder, step)) as arrays:
        keys = [
            entry.removeprefix(f"{name}['").removesuffix("']")
            for entry in arrays.files
            if entry.startswith(f"{name}['")
        ]
        return {key: arrays[f"{name}['{key}']"] for key in keys}


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def by_step(folder: pathlib.Path) -> list[pathlib.Path]:
    """All checkpoints, the newest last."""
    return sorted(folder.glob("step-?????????.npz"))


def step_of(path: pathlib.Path) -> int:
    """Updates that a checkpoint was saved after."""
    return int(path.stem.removeprefix("step-"))


def _path(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"step-{step:09d}.npz"
