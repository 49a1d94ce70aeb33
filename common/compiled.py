"""Compiled programs on disk: what one process compiles, later ones load."""

import hashlib
import os
import pathlib
import platform
import tempfile

from common.errors import UserError, expanded

import jax

MIN_COMPILE_S = 0.1  # what takes longer is kept
MOST_KEPT = 2000  # programs, of about 0.3 MB
CPUS = pathlib.Path("/proc/cpuinfo")  # on Linux
MAKE = ("model name", "flags", "CPU part", "Features")  # what it says of a processor's kind


def keep() -> None:
    """Let JAX keep what it compiles from now on, unless a folder is named or none is wanted by JAX's own variables.

    JAX tells programs apart by all that they are made of, but for the processor, whose instructions they use. Machines
    that share a home have a folder for each kind. Where none can be written, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        caches = expanded(pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
        folder = caches / "one-step-rl" / f"compiled-{processor()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write there can make this process do things
        tempfile.TemporaryFile(dir=folder).close()
        forget_oldest(folder)
    except (OSError, UserError):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


def processor() -> str:
    """Eight digits for the kind of processor: its model and its instructions."""
    try:
        first, _, _ = CPUS.read_text().partition("\n\n")
        make = [line for line in first.splitlines() if line.startswith(MAKE)]
    except OSError:
        make = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *make]).encode()).hexdigest()[:8]


def forget_oldest(folder: pathlib.Path) -> None:
    """Half of the programs in a folder, when there are too many."""
    programs = list(folder.glob("*-cache"))
    if len(programs) > MOST_KEPT:
        for program in sorted(programs, key=lambda file: file.stat().st_mtime)[: len(programs) // 2]:
            program.unlink(missing_ok=True)
