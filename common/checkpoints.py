"""Checkpoints: the whole training state in one npz file, written whole or not at all, the last two kept."""

import pathlib
import sys
from collections.abc import Collection
from typing import Any

from common import files
from common.errors import UserError
from common.files import check_archive, write_whole

import jax
import numpy as np

KEEP = 2

DAMAGE = (OSError, KeyError, *files.DAMAGE)  # also of a file that is not there, or of another structure


class Checkpoints:
    """Those of one run, `step-000012000.npz`: one entry a leaf, named by its path in the tree."""

    def __init__(self, folder: pathlib.Path):
        """Args: folder: where they lie; made when the first is written."""
        self.folder = folder

    def path(self, step: int) -> pathlib.Path:
        """Of the checkpoint after update `step`."""
        return self.folder / f"step-{step:09d}.npz"

    def steps(self) -> list[int]:
        """Updates that a checkpoint was saved after, sound or not, in order."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-?????????.npz"))

    def save(self, step: int, tree: Any, *, keep: Collection[int] = ()) -> pathlib.Path:
        """Write a pytree of arrays.

        Args:
            step: updates so far.
            tree: the state.
            keep: steps of checkpoints that are still needed, beside the last two.

        Raises:
            OSError: the file could not be written.
            UserError: a number is not finite: the state is not worth keeping.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"{name} is not finite after update {step}; the run is stopped, {self.last_good()}")
        write_whole(self.path(step), lambda temporary: np.savez(temporary, **arrays))
        self.prune(keep)
        return self.path(step)

    def prune(self, keep: Collection[int]) -> None:
        """Remove all but the last two and those of the steps to `keep`."""
        for step in self.steps()[:-KEEP]:
            if step not in keep:
                self.path(step).unlink()

    def rewind(self, step: int) -> None:
        """Remove those after update `step`, and what a kill left while one was written."""
        for later in self.steps():
            if later > step:
                self.path(later).unlink()
        for debris in self.folder.glob(".tmp-*"):
            debris.unlink()

    def last_good(self) -> str:
        """Where the last good state is, for a message."""
        steps = self.steps()
        return f"the last good checkpoint is {self.path(steps[-1])}" if steps else "before its first checkpoint"

    def restore(self, step: int, like: Any) -> Any:
        """Read the checkpoint after update `step` into the structure of `like`, as NumPy arrays.

        Raises:
            OSError, ValueError, ...: it is not there, damaged, or of another structure.
        """
        check_archive(self.path(step))
        with np.load(self.path(step)) as arrays:
            leaves = []
            for name, leaf in _named_leaves(like).items():
                array = arrays[name]
                if array.shape != leaf.shape or array.dtype != leaf.dtype:
                    raise ValueError(f"{name} is {array.dtype}{array.shape}, expected {leaf.dtype}{leaf.shape}")
                leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def restore_dict(self, step: int, name: str) -> dict[str, np.ndarray]:
        """Read one dict of arrays, whose keys need not be known, by its path in the tree, e.g. '.sums'; empty if none.

        Raises:
            OSError, ValueError, ...: the checkpoint is not there, or damaged.
        """
        with np.load(self.path(step)) as arrays:
            entries = [entry for entry in arrays.files if entry.startswith(f"{name}['")]
            return {entry.removeprefix(f"{name}['").removesuffix("']"): arrays[entry] for entry in entries}

    def sound_steps(self, like: Any) -> set[int]:
        """The steps of all that can be read; a damaged one is named on stderr.

        Args:
            like: a pytree of the same structure, shapes and dtypes.

        Raises:
            UserError: there are checkpoints, and all of them are damaged.
        """
        steps, sound = self.steps(), set()
        for step in steps:
            try:
                self.restore(step, like)
                sound.add(step)
            except FileNotFoundError:  # pruned meanwhile, by the process that trains
                continue
            except DAMAGE as error:
                problem = f"{self.path(step)} is damaged ({type(error).__name__}: {error})"
                print(f"warning: {problem}", file=sys.stderr, flush=True)
        if steps and not sound and not any(self.path(step).exists() for step in steps):
            return self.sound_steps(like)  # training went on so far that all of them are newer now
        if steps and not sound:
            problem = f"all {len(steps)} checkpoints in {self.folder} are damaged, or were written by another version"
            raise UserError(f"{problem} of the script; go on with that version, or start the run anew")
        return sound


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
