"""Fixtures: real data, collected once for the whole suite. Annotated shapes and types are checked at run time."""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"  # whatever is there: each test process would take three quarters of a GPU

# Before the hook: what a module under it imports for the first time is compiled from source, all of JAX included.
import equinox  # noqa: F401
import gymnasium
import hypothesis
import jax
import numpy as np
import odd_envs
import optax  # noqa: F401
import pytest
from jax.interpreters import mlir
from jaxtyping import install_import_hook

REPOSITORY = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

# What Python compiles of a module is kept, or each of a hundred processes spends up to two seconds on that again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Nearly all the time of these tests goes into compiling tiny programs, here and in the processes that are started.
# XLA leaves out here what makes programs run fast; a chunk compiles six times faster. Before JAX is used, hence asked
# for in another process, and once for all that run tests.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
RUNS_LONG = " --xla_backend_optimization_level=1"  # beside them, for batches of 256: runs five times faster
# What one of these processes compiles, the others load, the next time too: JAX tells programs apart by all that they
# are made of, but for the processor. (pytest --cache-clear removes it.)
CACHE = REPOSITORY / ".pytest_cache" / "d"  # where pytest keeps things between runs
if "PYTEST_XDIST_WORKER" not in os.environ:
    ask = f"""
import pathlib
from common import compiled, machine
folder = pathlib.Path({str(CACHE)!r}, "compiled-" + compiled.processor())
compiled.forget_oldest(folder)
print(folder, *(f"--{{o}}={{v}}" for o, v in machine.known_options({QUICK}).items()), sep="\\n")
"""
    told = subprocess.run([sys.executable, "-c", ask], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    folder, *flags = told.stdout.splitlines()
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
jax.config.update("jax_num_cpu_devices", 2)  # for seeds to be spread over; one alone takes the first

# JAX's own rounds of random bits compile faster than ours; the bits are the same (test_threefry.py).
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mlir, "register_lowering", lambda *_, **__: None)
    from common import threefry  # noqa: F401

# Before the hook, too: 100,000 calls go through the syntax trees of all modules.
from common import algorithms  # noqa: E402, F401

install_import_hook(["drol", "fql", "common"], "beartype.beartype")

import drol  # noqa: E402
import fql  # noqa: E402
from common.arguments import from_command_line  # noqa: E402
from common.data import collect  # noqa: E402
from common.env_ids import resolve  # noqa: E402
from common.envs import make_env  # noqa: E402
from common.errors import exit_in_one_line  # noqa: E402
from common.session import Session  # noqa: E402

SHORT = "pointmaze-medium-singletask-v0"

hypothesis.settings.register_profile("default", deadline=None, max_examples=50)  # the machine may be busy
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end, no process waits for another."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("slow")), default=0))


def shared_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One for all processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """Make a folder for all processes that run tests: whoever comes second finds it made."""

    def once(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        folder = shared_temporary_folder(tmp_path_factory) / name
        made = folder.with_name(f"{name}.made")
        with folder.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                make(folder)
                made.touch()
        return folder

    return once


def collected(env_id: str, once: Callable[..., pathlib.Path], episodes: int, **sizes: int) -> pathlib.Path:
    spec = resolve(env_id)
    folder = once(env_id, lambda folder: collect.collect_data(spec, folder, episodes=episodes, **sizes))
    return collect.collected_path(spec, folder, episodes, 0)


@pytest.fixture(scope="session")
def pointmaze_file(once: Callable[..., pathlib.Path]) -> pathlib.Path:
    """pointmaze-medium, 4 episodes of 1001 steps, and beside it one to validate on."""
    return collected("pointmaze-medium", once, 4, val_episodes=1, workers=1)


@pytest.fixture(scope="session")
def cube_file(once: Callable[..., pathlib.Path]) -> pathlib.Path:
    """cube-single, 2 episodes of 1001 steps."""
    return collected("cube-single", once, 2, val_episodes=0, workers=1)


@pytest.fixture(scope="session")
def point_file(once: Callable[..., pathlib.Path]) -> pathlib.Path:
    """Of odd_envs:Film-v0, whose episodes have 20 steps, and which takes no time to import: for whole processes."""

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        np.savez(folder / "point.npz", **odd_envs.data())

    return once("point", make) / "point.npz"


def copy_repository(folder: pathlib.Path) -> pathlib.Path:
    """A copy of what is run, without results: to be edited."""
    raw = shutil.ignore_patterns("drol-*", "fql-*", "seed[0-9]*", "*.p[dn][fg]", "__pycache__")
    for name in ("common", "results", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=raw)
    for file in REPOSITORY.glob("[!.]*.*"):
        if file.is_file():
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def here(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess]:
    """Run drol.py (or fql.py) in this process, to its end: no other has to start, and import everything again."""

    def here(*args: object, script: str = "drol.py") -> subprocess.CompletedProcess:
        algorithm, status = {"drol.py": drol, "fql.py": fql}[script], 0
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capsys.readouterr()
        try:
            exit_in_one_line(lambda: algorithm.main(from_command_line(algorithm.Args)))
        except SystemExit as stopped:
            status = stopped.code
        return subprocess.CompletedProcess(sys.argv, status, *capsys.readouterr())

    return here


@pytest.fixture
def after_update(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have something happen in a training of this process, once it has logged a row of so many updates."""

    def after_update(step: int, happen: Callable[[], object]) -> None:
        log = Session.log

        def log_and_happen(session: Session, end: int, *rest: object) -> None:
            log(session, end, *rest)
            if end == step:
                happen()

        monkeypatch.setattr(Session, "log", log_and_happen)

    return after_update


@pytest.fixture
def refusal(here: Callable[..., subprocess.CompletedProcess]) -> Callable[..., str]:
    """What drol.py answers, in one line and with exit status 2, to arguments that it refuses; in this process."""

    def refusal(*args: object) -> str:
        result = here(*args)
        assert result.returncode == 2
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: ")
        return line

    return refusal


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the point maze, in this process: 1000 steps of a policy that has learned nothing take a second."""
    make_env(SHORT).close()  # registers it
    monkeypatch.setattr(gymnasium.spec(SHORT), "max_episode_steps", 50)


def command(*args: object, script: str = "drol.py", module: str | None = None) -> list[str]:
    program = ["-m", module] if module else [script]
    return [sys.executable, *program, *map(str, args)]


def run_script(
    *args: object, cwd: pathlib.Path = REPOSITORY, variables: dict[str, str] | None = None, **program: str
) -> subprocess.CompletedProcess:
    """Run drol.py (or another script, or a module) in another process, to its end."""
    env = os.environ | (variables or {})
    return subprocess.run(command(*args, **program), cwd=cwd, capture_output=True, text=True, timeout=600, env=env)
