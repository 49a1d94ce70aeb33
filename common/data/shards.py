"""Folders of npz shards, which are one data set: OGBench's of a hundred million transitions, or one's own."""

import hashlib
import itertools
import json
import math
import pathlib
import re
import uuid
from collections.abc import Collection
from importlib import metadata
from typing import Any

from common import machine
from common.data import npz, ogbench_npz
from common.env_ids import EnvSpec
from common.errors import UserError
from common.files import DAMAGE, check_folder, making, write_whole
from common.machine import DataMemory
from common.replay import Dataset

import numpy as np


def find(folder: pathlib.Path, num_shards: int | None) -> list[pathlib.Path]:
    """Those of a folder, or the first of them, in the order of their names. Validation files (*-val.npz) are none.

    Raises:
        UserError: there are none, or fewer; where they are numbered, one is missing in between.
    """
    names = (path.name for path in folder.glob("*.npz") if path.is_file())
    paths = [folder / name for name in sorted(names) if not name.endswith("-val.npz") and not name.startswith(".")]
    if not paths:
        raise UserError(f"{folder}: it holds neither npz shards nor a Minari data set")
    if num_shards is not None and num_shards > len(paths):
        raise UserError(f"--num-shards {num_shards}: {folder} has {len(paths)}")
    paths = paths[:num_shards]
    numbered = [re.fullmatch(r"(.*?)(\d+)\.npz", path.name) for path in paths]
    if all(numbered) and len({(match[1], len(match[2])) for match in numbered}) == 1:
        for before, after in itertools.pairwise(numbered):
            if int(after[2]) != int(before[2]) + 1:
                missing = f"{before[1]}{int(before[2]) + 1:0{len(before[2])}}.npz"
                raise UserError(f"{folder}: {missing} is missing, between {before[0]} and {after[0]}")
    return paths


class Maps:
    """The arrays of a data set in files beside its shards, to be mapped into memory where they have no room there.

    They are one set for all tasks, but for rewards and masks. A shard that is another one makes them others.
    """

    def __init__(self, paths: list[pathlib.Path], task: str, names: Collection[str]):
        """Args:
        paths: shards, in one folder.
        task: what rewards and masks are of.
        names: of the arrays.
        """
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
        self.folder = paths[0].parent / ".arrays" / key
        of_task = {"rewards": f"rewards-{task}", "masks": f"masks-{task}"}
        self._files = {name: self.folder / f"{of_task.get(name, name)}.npy" for name in names}
        self._digests = self.folder / "sha256.json"
        self._new: dict[str, tuple[pathlib.Path, np.ndarray]] = {}

    @property
    def missing(self) -> list[str]:
        """Names of the arrays that are yet to be made."""
        return [name for name, path in self._files.items() if not (path.is_file() and self._digests.is_file())]

    def allocate(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in a file that has no name yet."""
        path = self.folder / f".tmp-{uuid.uuid4().hex}.npy"
        self._new[name] = path, np.lib.format.open_memmap(path, "w+", dtype, shape)
        return self._new[name][1]

    def keep(self, digests: list[str]) -> None:
        """Give what was allocated, and is filled now, its name; and write down the SHA-256 of each shard."""
        for name, (path, array) in self._new.items():
            array.flush()
            path.replace(self._files[name])
        write_whole(self._digests, lambda path: path.write_text(json.dumps(digests)))
        self._new = {}

    def drop(self) -> None:
        """Remove what has no name, of others that were killed, too."""
        for debris in self.folder.glob(".tmp-*"):
            debris.unlink()

    def open(self) -> tuple[Dataset, list[str]]:
        """The data set, and the SHA-256 of each shard. Raises `UserError` if a file is damaged."""
        try:
            arrays = {name: np.load(path, mmap_mode="r") for name, path in self._files.items()}
            return Dataset(**arrays), json.loads(self._digests.read_text())
        except (*DAMAGE, OSError) as error:
            raise UserError(f"{self.folder}: damaged ({error}); remove it, and it is made anew") from error


def read(
    spec: EnvSpec, paths: list[pathlib.Path], own_rewards: bool, data_memory: DataMemory
) -> tuple[Dataset, list[str]]:
    """The data set of shards in one folder, and the SHA-256 of each; errors as of `ogbench_npz.read_files`.

    Where memory has no room for it, it is made once in files beside the shards, and is mapped from there.
    """
    num_bytes = _num_bytes(paths)
    if machine.fits_on_host(data_memory, num_bytes):
        columns, digests = ogbench_npz.read_files(spec, paths, own_rewards)
        return Dataset(**columns), digests
    task = "own" if own_rewards else f"{spec.gym_id}-ogbench{metadata.version('ogbench')}"
    maps = Maps(paths, task, ogbench_npz.columns_of(spec))
    check_folder(maps.folder, num_bytes if maps.missing else 0)
    with making(maps.folder / "arrays"):
        made = "made" if maps.missing else "found"
        print(f"data: {num_bytes / 1e6:,.0f} MB, mapped from the disk: {made} in {maps.folder}", flush=True)
        if maps.missing:
            maps.drop()  # what a kill left
            try:
                maps.keep(ogbench_npz.read_files(spec, paths, own_rewards, maps.missing, maps.allocate)[1])
            finally:
                maps.drop()
    return maps.open()


def _num_bytes(paths: list[pathlib.Path]) -> int:
    """Of the data set of shards: observations and actions, and of each row reward, mask and number."""
    total = 0
    for path in paths:
        with npz.opened(path) as file:
            headers = [file.headers.get(name) for name in ("observations", "actions")]
            for header in filter(None, headers):
                of_number = 1 if header.dtype == np.uint8 else 4  # images stay bytes, all else becomes float32
                total += of_number * math.prod(header.shape) + 6 * header.shape[0]
    return total


def provenance(
    folder: pathlib.Path, paths: list[pathlib.Path], digests: list[str], sources: list[dict[str, Any]], transitions: int
) -> dict[str, Any]:
    """Where shards came from together.

    Args:
        folder: that they lie in.
        paths: the shards.
        digests: the SHA-256 of each.
        sources: what is known of how each was made.
        transitions: of all of them.
    """
    first, *others = sources
    common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    if all("episodes" in source for source in sources):
        common["episodes"] = sum(source["episodes"] for source in sources)
    return (
        {"source": "file"}
        | common
        | {
            "path": str(folder.absolute()),
            "sha256": hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(),
            "shards": len(paths),
            "bytes": sum(path.stat().st_size for path in paths),
            "transitions": transitions,
        }
    )
