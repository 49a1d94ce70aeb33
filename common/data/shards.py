"""Folders of npz shards, which are one data set: OGBench's of a hundred million transitions, or one's own."""

import hashlib
import itertools
import pathlib
import re
from typing import Any

from common.env_ids import SHARDS_100M, EnvSpec
from common.errors import UserError


def official_names(spec: EnvSpec) -> list[str]:
    """Of the shards of a set of 100 million transitions: 'cube-double-play-v0-000.npz', .."""
    base = spec.family.removesuffix(f"-{spec.size}")
    return [f"{base}-v0-{number:03}.npz" for number in range(SHARDS_100M[base])]


def find(folder: pathlib.Path, num_shards: int | None) -> list[pathlib.Path]:
    """Those of a folder, or the first of them, in the order of their names. Validation files (*-val.npz) are none.

    Raises:
        UserError: there are none, or fewer; where they are numbered, one is missing in between.
    """
    paths = sorted(path for path in folder.glob("*.npz") if not path.name.endswith("-val.npz") and path.is_file())
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
