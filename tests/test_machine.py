"""What a machine lacks is said in one line, with exit status 2, before any data is touched."""

import dataclasses
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import time
import types

import drol
from common import machine, minari_envs, processes
from common.env_ids import resolve
from common.errors import UserError, expanded
from common.run_directory import RunDirectory
from common.runs import Runs
from common.seeds import Seeds
from common.session import Session

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, command, run_script
from toys import completed


def test_compile_options_that_this_xla_lacks_are_left_out():
    options = {"xla_backend_optimization_level": 0, "xla_no_xla_has_this": True}
    assert machine.known_options(options) == {"xla_backend_optimization_level": 0}
    for known in (machine.quick_to_compile(), machine.quick_to_run(), machine.single_threaded()):
        assert jax.jit(lambda x: 2 * x, compiler_options=known)(3) == 6


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "finds no device to compute on with JAX_PLATFORMS=cuda; unset it"),
        ({"MUJOCO_GL": "nonsense"}, "MuJoCo does not start with MUJOCO_GL=nonsense; unset it"),
    ],
)
@pytest.mark.slow(2)
def test_variables_that_do_not_fit_the_machine(variables, message, tmp_path):
    result = run_script("--env-id", "pointmaze-medium", "--dataset-dir", tmp_path / "data", variables=variables)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_accelerator_alone_gets_the_cpu_beside_it(monkeypatch):
    """Policies are evaluated there; `JAX_PLATFORMS=cuda` is what containers have. JAX asks only before it has begun."""
    asked = []
    accelerator = types.SimpleNamespace(platform="gpu")
    monkeypatch.setattr(jax, "devices", lambda: asked.append(jax.config.jax_platforms) or [accelerator])
    for platforms, expected in (("cuda", "cuda,cpu"), ("cuda,cpu", "cuda,cpu"), ("cpu", "cpu"), (None, None)):
        jax.config.update("jax_platforms", platforms)
        machine.check()
        assert asked.pop() == expected
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}),
        ("No such compile option: 'xla_gpu_command_buffer_scheduling_mode'", {}),
        ("While setting option xla_gpu_command_buffer_scheduling_mode, 'CONCURRENT' is not a valid enum value.", {}),
    ],
)
def test_kernels_run_side_by_side_where_xla_can(error, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    class Lowered:
        def lower(self, _):
            return self

        def compile(self):
            if error:
                raise jax.errors.JaxRuntimeError(error)

    monkeypatch.setattr(jax, "jit", lambda *_, **__: Lowered())
    machine._is_known.cache_clear()
    assert machine.quick_to_run() == expected
    machine._is_known.cache_clear()


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/a.slice/job", {"cpu.max": "4 1", "a.slice/cpu.max": "30000 10000", "a.slice/job/cpu.max": "max 1"}, 3),
        ("0::/seen/by/the/host", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpuset:/\n3:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "25000", "cpu/job/cpu.cfs_period_us": "50000"}, 1),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpu:/\n0::/x", {"unified/x/cpu.max": "500000 100000", "cpu/cpu.cfs_quota_us": "nonsense"}, 5),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_a_containers_quota_of_cpu_time_counts(own, files, expected, tmp_path, monkeypatch):
    """Of both versions of control groups; half a core is one."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n" if own else "")
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3, 11)), raising=False)
    assert processes.usable_cores() == list(range(3, 3 + expected))
    assert processes.available_cores() == expected


IN_A_NAMESPACE = """
from common import evaluation
from common.data import episodes
from common.env_ids import resolve
from common.errors import UserError
for start in (
    lambda: evaluation.Evaluator(resolve("cube-single"), 8, seeds=[0], workers=2),
    lambda: episodes.collect_episodes(None, range(1), 1, seed=0, workers=1, path=None, hint=""),
):
    try:
        start()
    except UserError as error:
        print(error)
evaluation.Evaluator(resolve("cube-single"), 8, seeds=[0], workers=1)
"""


@pytest.mark.parametrize(
    ("option", "reason"), [("size=4k", "No space left on device"), ("ro", "Read-only file system")]
)
@pytest.mark.slow(2)
def test_what_is_full_or_read_only_is_named_before_training(option, reason):
    script = f"mount -t tmpfs -o {option} tmpfs /dev/shm && exec {sys.executable} -c '{IN_A_NAMESPACE}'"
    command = ["unshare", "--mount", "bash", "-c", script]
    if shutil.which("unshare") is None or subprocess.run([*command[:-1], "mount -t tmpfs tmpfs /dev/shm"]).returncode:
        pytest.skip("this user cannot have a /dev/shm of its own")
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    problem = f"processes cannot have locks in common ({reason}: /dev/shm); make room there"
    assert result.stdout.splitlines() == [f"{problem}, or take --eval-workers 1, which needs none", problem]


def test_jit_has_to_be_on():
    jax.config.update("jax_disable_jit", True)
    try:
        with pytest.raises(UserError, match="JAX_DISABLE_JIT is set"):
            machine.check()
    finally:
        jax.config.update("jax_disable_jit", False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_numpy_rank_promotion", "raise"),
    ],
)
def test_numbers_are_the_same_whatever_another_project_left_in_the_environment(name, value, capsys):
    def numbers() -> jax.Array:
        return jax.random.normal(jax.random.key(0), (3, 2)) + jnp.arange(2)

    expected, ours = numbers(), getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        machine.check()
        assert numbers().dtype == expected.dtype
        np.testing.assert_array_equal(numbers(), expected)
    finally:
        jax.config.update(name, ours)
    assert f"note: {name.upper()} is {value}; this computes with {ours} all the same" in capsys.readouterr().out


def test_a_user_without_a_home_folder(monkeypatch):
    """As `docker run --user` makes one."""
    monkeypatch.delenv("HOME")

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="no home folder; set HOME"):
        expanded(pathlib.Path("~/.ogbench/data"))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    with pytest.raises(UserError, match="MINARI_DATASETS_PATH"):  # Minari itself makes a folder named ~
        minari_envs.local_path("D4RL/pen/human-v2")


def test_a_run_folder_that_cannot_be_made(refusal, tmp_path):
    assert "cannot write there" in refusal("--run-dir", "/proc/nowhere/run", "--dataset-dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow(2)
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_output(closed):
    result = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} drol.py --print-config {closed}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stdout + result.stderr == (
        "error: standard output or standard error is closed; send it to /dev/null instead\n"
    )


def test_ctrl_c_while_it_imports():
    process = subprocess.Popen(
        command("--env-id", "nonsense"), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    if maps.exists():  # as soon as it is at the libraries
        while "numpy" not in maps.read_text():
            time.sleep(0.005)
    else:
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "error: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("backend", "batch_size", "expected"),
    [
        ("cpu", 256, 50),
        ("gpu", 256, 1000),  # a log interval: no gap between dispatches shows
        ("gpu", 8192, 91),  # of two seeds: 512 MB are 96 updates of 8192 (2 * 37 + 5 + 2) numbers, and 1000 / 11 is 91
        ("gpu", 10**7, 1),
    ],
)
def test_a_chunk_is_as_long_as_what_shows_progress_and_the_memory_allow(
    backend, batch_size, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    args, _ = completed(drol, drol.Args(batch_size=batch_size, offline_steps=10**6))
    sizes = {"observation": 37, "action": 5}
    config = {"environment": dataclasses.asdict(resolve("cube-double")), "origins": {}, "args": {"seed": 0}}
    runs = Runs([RunDirectory(tmp_path, config | {"sizes": sizes})], args, None, is_new=False)
    session = Session(runs, Seeds([0, 1]))
    assert session.end_of_chunk(0) == expected
    assert session.end_of_chunk(999) == 1000


def test_metrics_of_a_chunk_are_copied_all_at_once(monkeypatch):
    """Each copy of its own waits for the device."""
    copies, device_get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: copies.append(tree) or device_get(tree))
    seeds = Seeds([0, 1])
    metrics = {name: jnp.arange(6.0).reshape(2, 3) for name in "abc"}
    gathered = seeds.gather(metrics)
    assert len(copies) == 1
    assert {name: type(leaf) for name, leaf in gathered.items()} == dict.fromkeys("abc", np.ndarray)
    np.testing.assert_array_equal(gathered["b"], metrics["b"])
