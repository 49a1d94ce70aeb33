"""What is compiled is kept on disk, where that can be."""

import os
import pathlib
from collections.abc import Iterator

from common import compiled

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Iterator[pathlib.Path]:
    """The folder of caches of a user for whom JAX keeps nothing yet."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "MIN_COMPILE_S", 0)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_what_one_process_compiled_another_one_loads(caches):
    def run() -> float:
        def program(x: jax.Array) -> jax.Array:  # another each time, as in another process
            return jnp.sin(x) @ jnp.cos(x).T + caches.stat().st_ino  # not compiled by a test before

        return float(jax.jit(program)(jnp.ones((7, 5))).sum())

    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    compiled.keep()
    first = run()
    (folder,) = (caches / "one-step-rl").iterdir()
    assert [file.name for file in folder.glob("jit_program-*")]
    assert folder.stat().st_mode & 0o077 == 0  # what lies there is run
    assert not hits
    assert run() == first
    assert hits
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:100])  # whoever wrote it was killed
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert run() == first


def test_nothing_is_kept_where_nothing_can_be_written(caches, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir is None


def test_jax_s_own_variable_decides(caches, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(caches / "elsewhere"))
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir is None  # JAX reads the variable itself, when it is imported
    assert not any(caches.iterdir())


def test_the_oldest_programs_are_forgotten(caches, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_KEPT", 5)
    compiled.keep()
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    for age in range(6):
        (folder / f"{age}-cache").touch()
        os.utime(folder / f"{age}-cache", (0, 100 - age))
    (folder / "of_another_kind").touch()
    jax.config.update("jax_compilation_cache_dir", None)
    compiled.keep()
    assert {file.name for file in folder.iterdir()} == {"0-cache", "1-cache", "2-cache", "of_another_kind"}


def test_each_kind_of_processor_has_a_folder(tmp_path, monkeypatch):
    def folder(flags: str, megahertz: int, model: str = "Xeon") -> str:
        text = (
            f"processor\t: 0\nmodel name\t: {model}\ncpu MHz\t\t: {megahertz}\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        )
        (tmp_path / "cpuinfo").write_text(text)
        return compiled.processor()

    monkeypatch.setattr(compiled, "CPUS", tmp_path / "cpuinfo")
    assert folder("avx2", 2000) == folder("avx2", 2400)
    assert len({folder("avx2", 2000), folder("avx2 avx512f", 2000), folder("avx2", 2000, "EPYC")}) == 3
    monkeypatch.setattr(compiled, "CPUS", tmp_path / "not_linux")
    assert len(compiled.processor()) == 8
