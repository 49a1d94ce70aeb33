"""drol.py as its users meet it: another process, real data, kills, signals, nonsense."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import drol
from common import command_line
from common.arguments import flag, from_command_line
from common.errors import UserError
from common.tables import read_table

import numpy as np
import pytest
from conftest import REPOSITORY, command, run_script

UPDATES, EVAL_INTERVAL = 2000, 1000  # takes long enough to be killed in the middle
SMALL = ("--env-id", "odd_envs:Slow-v0", "--hidden-sizes", 8, "--batch-size", 8, "--eval-workers", 1)
RUN = (*SMALL, "--offline-steps", UPDATES, "--log-interval", 100, "--eval-interval", EVAL_INTERVAL)
RUN = (*RUN, "--eval-episodes", 2)
REPRODUCIBLE = ("train.csv", "eval.csv")


@pytest.fixture
def unbroken(point_file, once, here) -> pathlib.Path:
    """A run that nothing happens to."""

    def make(folder: pathlib.Path) -> None:
        result = here(*RUN, "--dataset-path", point_file, "--run-dir", folder)
        assert result.returncode == 0, result.stderr

    return once("unbroken", make)


def newest(run: pathlib.Path) -> pathlib.Path:
    return max((run / "checkpoints").glob("step-*.npz"))


def step_of(checkpoint: pathlib.Path) -> int:
    return int(checkpoint.stem.split("-")[1])


def assert_same_run(run: pathlib.Path, reference: pathlib.Path) -> None:
    for name in REPRODUCIBLE:
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    assert newest(run).name == newest(reference).name
    with np.load(newest(run)) as actual, np.load(newest(reference)) as expected:
        assert set(actual) == set(expected)
        for key in expected:
            np.testing.assert_array_equal(actual[key], expected[key], strict=True)
    assert [row["step"] for row in read_table(run / "time.csv")] == list(range(100, UPDATES + 1, 100))


@pytest.fixture
def start():
    """Start drol.py in a process group of its own, which does not outlive the test."""
    processes = []

    def start(*args: object, script: str = "drol.py", variables: dict[str, str] | None = None) -> subprocess.Popen:
        process = subprocess.Popen(
            command(*args, script=script),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")} | (variables or {}),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def wait_for(condition, process: subprocess.Popen, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def logged_rows(run: pathlib.Path) -> int:
    path = run / "train.csv"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow(34)
def test_whatever_befalls_a_run_it_goes_on_to_the_same_bits(start, unbroken, point_file, tmp_path, here, refusal):
    """Killed, killed during an evaluation and its newest checkpoint damaged, Ctrl-C, stopped during an evaluation.

    All but one sitting load what the one before compiled.
    """
    path = tmp_path / "run"

    def kill(process: subprocess.Popen) -> str:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate(timeout=60)[0]

    def stop(process: subprocess.Popen, signal_number: int) -> str:
        os.killpg(process.pid, signal_number)  # as a terminal does: to every process of the group
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
        assert "Traceback" not in out
        assert f"--resume {path}" in out
        return out

    # Any time after the folder appears, maybe before the first checkpoint.
    run = (*RUN, "--dataset-path", point_file, "--run-dir", path, "--save-minutes", 0, "--eval-workers", 2)
    process = start(*run)
    wait_for((path / "config.json").exists, process)
    delay = 1.5 * random.random()
    time.sleep(delay)
    kill(process)
    print(f"killed {delay:.3f} s after its begin, with {logged_rows(path)} rows")  # shown where the test fails

    # While an evaluation runs beside training, which is ahead of it by now; and the newest checkpoint did not survive
    # whole.
    process = start("--resume", path)
    wait_for(lambda: logged_rows(path) > 1 + EVAL_INTERVAL // 100, process)
    assert "is damaged" not in kill(process)
    assert not (path / "eval.csv").exists()
    assert (path / "checkpoints" / f"step-{EVAL_INTERVAL:09d}.npz").exists()
    assert step_of(newest(path)) > EVAL_INTERVAL
    content = newest(path).read_bytes()
    newest(path).write_bytes(content[: len(content) // 2])

    # Ctrl-C, in the middle of a log interval. While it runs, nobody else may go on with it.
    process = start("--resume", path, variables={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    rows = logged_rows(path)
    wait_for(lambda: logged_rows(path) > rows, process)
    process.send_signal(signal.SIGSTOP)
    assert f"in use by process {process.pid} on" in refusal("--resume", path)
    process.send_signal(signal.SIGCONT)
    assert "is damaged" in stop(process, signal.SIGINT)
    assert 100 * (rows - 1) <= step_of(newest(path)) < UPDATES

    # Stopped while the last evaluation runs.
    process = start("--resume", path)
    wait_for(lambda: (path / "eval.csv").exists() and step_of(newest(path)) == UPDATES, process)
    stop(process, signal.SIGTERM)
    assert [row["step"] for row in read_table(path / "eval.csv")] == [EVAL_INTERVAL]

    result = here("--resume", path)
    assert result.returncode == 0, result.stderr
    assert_same_run(path, unbroken)
    assert [step_of(file) for file in sorted((path / "checkpoints").iterdir())] == [UPDATES - 50, UPDATES]
    assert "done: success" in here("--resume", path).stdout  # finished: nothing to do
    assert_same_run(path, unbroken)


@pytest.mark.slow(4)
def test_a_second_ctrl_c_stops_at_once(start, point_file, tmp_path):
    # One chunk of this takes far longer than the test waits.
    slow = ("--hidden-sizes", 1024, 1024, "--batch-size", 4096, "--env-id", "odd_envs:Film-v0", "--eval-workers", 1)
    process = start(*slow, "--dataset-path", point_file, "--run-dir", tmp_path / "run")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, list(os.sched_getaffinity(0))[:1])  # it would keep all of them busy
    while "compiling" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(3)  # compiled, and inside the first chunk
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + signal.SIGINT
    assert "once more stops at once" in out
    assert "Traceback" not in out


@pytest.mark.slow(2)
def test_ctrl_c_during_a_collection_is_one_line(tmp_path):
    arguments = ("--env-id", "pointmaze-medium", "--episodes", 500, "--workers", 2, "--dataset-dir", tmp_path)
    process = subprocess.Popen(
        command(*arguments, module="common.data.collect"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()  # the announcement
    said = ""
    while not re.search(r"\| [1-9]", said):  # the progress bar: an episode has come, and the workers are at the next
        said += process.stderr.read(1) or pytest.fail(said)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "error: interrupted"
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


NONSENSE = [
    (("--env-id", "cube-dubble"), "the nearest known names are cube-double"),
    (("--env-id", "pen-human", "--data-source", "collect"), "cannot be collected here"),
    (("--batch-size", 0), "--batch-size 0: out of range"),
    (("--discount", 1.5), "--discount 1.5: out of range"),
    (("--num-candidates", 0), "--num-candidates 0: out of range"),
    (("--hidden-sizes", 0, 8), "--hidden-sizes"),
    (("--offline-steps", -5), "--offline-steps -5: out of range"),
    (("--collect-episodes", 0), "--collect-episodes 0: out of range"),
    (("--dataset-path", "no/such/file.npz"), "no such file"),
    (("--resume", "no/such/run"), "not a run directory"),
    (("--resume", "tests"), "not a run directory"),
    (("--resume", "tests", "--seed", 3), "--resume takes no --seed"),
    (("--video", "film.mp4"), "--video film.mp4: belongs to --evaluate"),
    (("--evaluate", "tests", "--video", "film.avi"), "a name that ends in .mp4 or .gif"),
    (("--env-id", "humanoidmaze-large", "--data-source", "collect"), "no oracle collects"),
]


@pytest.mark.parametrize(("args", "message"), NONSENSE, ids=lambda value: " ".join(map(str, value))[:40])
def test_nonsense_is_refused_in_one_line(args, message, tmp_path, refusal):
    assert message in refusal(*args, *(() if "--resume" in args else ("--dataset-dir", tmp_path)))


def test_whole_numbers_are_taken_as_people_write_them(monkeypatch):
    words = (
        "--offline-steps",
        "1e6",
        "--batch-size=2.56e2",
        "--hidden-sizes",
        "1e2",
        "64",
        "--seed",
        "3.0",
        "--tau",
        "5e-3",
    )
    monkeypatch.setattr(sys, "argv", ["drol.py", *words, "--collect-episodes", "None", "--run-dir", "1e3"])
    args = from_command_line(drol.Args)
    assert (args.offline_steps, args.batch_size, args.hidden_sizes, args.seed) == (1_000_000, 256, (100, 64), 3)
    assert (args.tau, args.collect_episodes, args.run_dir) == (0.005, None, pathlib.Path("1e3"))
    assert all(type(value) is int for value in (args.offline_steps, args.batch_size, *args.hidden_sizes))


@pytest.mark.parametrize(
    "args",
    [("--no-such-option",), ("--batch-size", "many"), ("--batch-size", "2.5"), ("--seed", "1e-1"), ("--q-agg", "max")],
)
def test_unknown_and_ill_typed_arguments_have_status_2(args, capsys):
    with pytest.raises(SystemExit) as stopped:  # tyro answers in a box of several lines
        command_line.read(drol.Args, args=[str(arg) for arg in args])
    assert stopped.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_damaged_data_is_refused(pointmaze_file, tmp_path, refusal):
    path = tmp_path / "half.npz"
    path.write_bytes(pointmaze_file.read_bytes()[:5000])
    assert refusal("--env-id", "pointmaze-medium", "--dataset-path", path).startswith(
        f"error: {path}: damaged or not an npz file"
    )


@pytest.mark.slow(7)
def test_a_taken_run_directory_is_refused(unbroken, point_file, refusal):
    message = refusal(*RUN, "--dataset-path", point_file, "--run-dir", unbroken)
    assert f"go on with it: --resume {unbroken}" in message


def test_a_diverging_loss_stops_the_run(point_file, tmp_path, refusal):
    huge = ("--bc-coef", 3e38, "--q-coef", 3e38)
    message = refusal(*RUN, "--dataset-path", point_file, "--run-dir", tmp_path / "run", *huge)
    assert "not finite (seed 0, update " in message
    assert "last good checkpoint" in message or "before its first checkpoint" in message


@pytest.mark.slow(2)
@pytest.mark.skipif(
    not pathlib.Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full"
)
def test_a_full_disk_is_one_line(point_file, tmp_path, refusal, after_update):
    path = tmp_path / "run"

    def fill() -> None:
        (path / "full").symlink_to("/dev/full")
        (path / "full").replace(path / "train.csv")

    after_update(100, fill)
    message = refusal(*RUN, "--dataset-path", point_file, "--run-dir", path)
    assert "No space left on device" in message


def assert_close_runs(run: pathlib.Path, reference: pathlib.Path) -> None:
    """Programs for several seeds add up in another order than the program for one."""
    actual, expected = (read_table(path / "train.csv") for path in (run, reference))
    assert len(actual) == len(expected) > 0
    for row, other in zip(actual, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert newest(run).name == newest(reference).name
    with np.load(newest(run)) as actual, np.load(newest(reference)) as expected:
        for key in expected:
            scale = np.abs(expected[key]).max(initial=1)
            np.testing.assert_allclose(actual[key], expected[key], rtol=1e-4, atol=1e-6 * scale, err_msg=key)


def without_newest_checkpoint(run: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """A copy of a run that goes on from the checkpoint before its last."""
    shutil.copytree(run, path)
    newest(path).unlink()
    return path


@pytest.mark.slow(11)
def test_seeds_go_on_together_to_the_same_bits_or_alone(point_file, tmp_path, here):
    """Three seeds on two devices, with the data on the host; then one of them on one device, which holds the data."""
    settings = ("--env-id", "odd_envs:Film-v0", "--hidden-sizes", 8, "--batch-size", 8, "--flow-steps", 2)
    settings = (*settings, "--offline-steps", 150, "--log-interval", 50, "--eval-episodes", 2, "--eval-workers", 1)
    settings = (*settings, "--save-minutes", 0, "--dataset-path", point_file)
    settings = (*settings, "--seed", 5, "--num-seeds", 3, "--data-memory", "host")
    together = here(*settings, "--run-dir", tmp_path / "whole", script="fql.py")
    assert together.returncode == 0, together.stderr
    assert "seeds        5, 6, 7 (2 on each of 2 devices, 1 of 4 places empty)" in together.stdout
    assert together.stdout.count("done: success") == 3
    runs = sorted((tmp_path / "whole").iterdir())
    assert [run.name for run in runs] == ["seed5", "seed6", "seed7"]

    halves = [without_newest_checkpoint(run, tmp_path / "half" / run.name) for run in runs]
    gone_on = here("--resume", *halves, script="fql.py")
    assert gone_on.returncode == 0, gone_on.stderr
    for half, run in zip(halves, runs, strict=True):
        for name in REPRODUCIBLE:
            assert (half / name).read_bytes() == (run / name).read_bytes()

    alone = without_newest_checkpoint(runs[1], tmp_path / "alone")
    config = (alone / "config.json").read_text()
    (alone / "config.json").write_text(config.replace('"data_memory": "host"', '"data_memory": "device"'))
    gone_on = here("--resume", alone, script="fql.py")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "on the host" in together.stdout
    assert "on the host" not in gone_on.stdout
    assert_close_runs(alone, runs[1])
    evaluations = [read_table(path / "eval.csv") for path in (alone, runs[1])]
    assert evaluations[0][0] == pytest.approx(evaluations[1][0], rel=1e-3)


TWO_SITTINGS = """
import pathlib, shutil, sys
import fql
data, whole, half = map(pathlib.Path, sys.argv[1:])
small = {"hidden_sizes": (16,), "batch_size": 8, "flow_steps": 2, "eval_episodes": 1, "eval_workers": 1}
steps = {"offline_steps": 300, "log_interval": 100, "eval_interval": 150, "save_minutes": 0}
fql.main(fql.Args(env_id="pointmaze-medium", dataset_path=data, run_dir=whole, **small, **steps))
shutil.copytree(whole, half)
(half / "checkpoints" / "step-000000300.npz").unlink()
print("AGAIN")
fql.main(fql.Args(resume=(half,)))
"""


@pytest.mark.slow(22)
def test_a_run_says_what_it_does_leaves_logs_goes_on_and_is_not_taken_for_drol(pointmaze_file, tmp_path, refusal):
    """Compiled as it is for users. Minari's packages, which OGBench does not need, are hidden from it."""
    (tmp_path / "hidden").mkdir()
    for package in ("minari", "h5py", "gymnasium_robotics"):
        (tmp_path / "hidden" / f"{package}.py").write_text(f"raise ImportError('not here', name='{package}')\n")
    (tmp_path / "program.py").write_text(TWO_SITTINGS)
    path, half = tmp_path / "run", tmp_path / "half"
    users = {"XLA_FLAGS": "", "PYTHONPATH": f"{tmp_path / 'hidden'}{os.pathsep}{REPOSITORY}"}
    result = run_script(pointmaze_file, path, half, script=tmp_path / "program.py", variables=users)
    assert result.returncode == 0, result.stderr
    for expected in (
        "pointmaze-medium-navigate-singletask-v0",
        f"collected: 4 (official: 1000) episodes, seed 0 ({pointmaze_file})",
        "alpha 10.0 (default)",
        "offline_steps 300 (given)",
        "(cpu)",
        str(path),
        "nothing is published for pointmaze-medium-navigate; tune --alpha",
        "one update takes",
        "done: success (%)",
        "after 150, 300 updates",
    ):
        assert expected in result.stdout.partition("AGAIN")[0], expected
    train, evaluations = read_table(path / "train.csv"), read_table(path / "eval.csv")
    assert [row["step"] for row in train] == [100, 200, 300]
    assert [row["step"] for row in evaluations] == [150, 300]
    assert train[-1]["actor/flow_loss"] < train[0]["actor/flow_loss"]
    assert {"actor/flow_loss", "actor/distill_loss"} < set(train[0])
    config = json.loads((path / "config.json").read_text())
    assert config["dataset"]["source"] == "collected"
    assert config["args"]["alpha"] == 10
    assert len(list((path / "checkpoints").iterdir())) <= 2
    for name in REPRODUCIBLE:
        assert (half / name).read_bytes() == (path / name).read_bytes()
    assert "a run of fql.py, not of drol.py" in refusal("--resume", half)


@pytest.mark.slow(7)
def test_changed_data_is_noticed_on_resume(unbroken, point_file, tmp_path, refusal):
    shutil.copytree(unbroken, tmp_path / "run")
    data = tmp_path / "data.npz"  # the run finds this where its data was
    np.savez(data, **{key: value[:20] for key, value in np.load(point_file).items()})
    config = (tmp_path / "run" / "config.json").read_text()
    assert str(point_file) in config
    (tmp_path / "run" / "config.json").write_text(config.replace(str(point_file), str(data)))
    assert "SHA-256 differs" in refusal("--resume", tmp_path / "run")


@pytest.mark.slow(7)
def test_a_program_evaluates_a_run_with_other_settings_also_in_a_thread(unbroken, capsys, monkeypatch):
    """The command line is not read again, and signals belong to the main thread."""
    monkeypatch.setattr(sys, "argv", ["notebook", "--no-such-option"])
    args = drol.Args(evaluate=unbroken, eval_episodes=1, eval_workers=1)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        (outcome,) = thread.submit(drol.main, args).result()
    assert (outcome.path, outcome.step) == (unbroken, UPDATES)
    assert f"after update {UPDATES:,}, 1 episode: " in capsys.readouterr().out
    with pytest.raises(UserError, match="--evaluate takes no --tau"):
        drol.main(drol.Args(evaluate=unbroken, tau=0.5))


@pytest.mark.slow(7)
def test_data_that_has_moved_is_named_on_resume(unbroken, point_file, tmp_path, refusal, capsys):
    data = tmp_path / "elsewhere"
    data.mkdir()
    shutil.copy(point_file, data / point_file.name)
    np.savez(data / "other.npz", **{key: value[:20] for key, value in np.load(point_file).items()})

    def moved(name: str) -> pathlib.Path:
        """A copy of the run, whose data is not where it was."""
        run = shutil.copytree(unbroken, tmp_path / name)
        config = (run / "config.json").read_text()
        (run / "config.json").write_text(config.replace(str(point_file), f"/nowhere/{point_file.name}"))
        return run

    for name, given in {"path": {"dataset_path": data / point_file.name}, "folder": {"dataset_dir": data}}.items():
        (outcome,) = drol.main(drol.Args(resume=(moved(name),), **given))
        assert (outcome.path, outcome.step) == (tmp_path / name, UPDATES)
        assert "done: success" in capsys.readouterr().out
    assert "no such file" in refusal("--resume", moved("lost"))
    assert "SHA-256 differs" in refusal("--resume", moved("other"), "--dataset-path", data / "other.npz")


def test_print_config_touches_no_data(capsys):
    drol.main(drol.Args(env_id="antmaze-giant", drol_star=True, print_config=True))
    config = json.loads(capsys.readouterr().out)
    assert config["environment"] == "antmaze-giant-navigate-singletask-v0"
    assert (config["args"]["bc_coef"], config["args"]["num_candidates"], config["args"]["q_agg"]) == (0.03, 1, "min")


def test_print_config_says_of_every_setting_whether_it_is_the_papers(capsys):
    drol.main(drol.Args(env_id="door-human", batch_size=64, print_config=True))
    origins = json.loads(capsys.readouterr().out)["origins"]
    assert {origins[name] for name in ("batch_size",)} == {"given"}
    assert {origins[name] for name in ("tau", "hidden_sizes", "learning_rate", "eval_episodes")} == {"published"}
    assert not {"seed", "run_dir", "eval_workers"} & origins.keys()  # which decide nothing


def test_help_has_a_box_for_each_heading_of_the_arguments(capsys):
    """With the words of the source, as one line reads them, and no {None}."""
    with pytest.raises(SystemExit):
        command_line.read(drol.Args, args=["--help"])
    text = capsys.readouterr().out
    assert re.findall(r"(\w[\w -]*) options +[─\n]", text) == [
        *("Run", "Data", "Evaluation and logging", "Online fine-tuning", "Training", "DROL")
    ]
    assert re.search(r"--bc-coef FLOAT +Weight of behaviour cloning", text)
    assert "None" not in text
    assert all(f" {flag(name)} " in text for name in vars(drol.Args()) if not isinstance(vars(drol.Args())[name], bool))


def test_arguments_are_read_whatever_box_they_are_in():
    assert command_line.read(drol.Args, args=["--seed", "3", "--bc-coef", "1e-2"]) == drol.Args(seed=3, bc_coef=0.01)


@pytest.mark.parametrize("run", [{"resume": (pathlib.Path("x"),)}, {"evaluate": pathlib.Path("x")}])
def test_print_config_is_about_a_new_run(run):
    with pytest.raises(UserError, match="has its settings in its config"):
        drol.main(drol.Args(print_config=True, **run))


@pytest.mark.slow(4)
def test_help_and_argument_errors_answer_quickly():
    for args, status, answer in ((("--help",), 0, "DROL: one-step offline"), (("--env-id", "nonsense"), 2, "error: ")):
        seconds = []
        while len(seconds) < 3 and min(seconds, default=3) >= 3:  # the best of three
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            result = run_script(*args)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of processor time: the machine may be busy
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(seconds) < 3, seconds
        assert result.returncode == status
        assert answer in result.stdout + result.stderr
        assert result.stderr.count("\n") == (status != 0)


def test_wandb_missing_is_one_line(point_file, tmp_path, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    message = refusal(*RUN, "--dataset-path", point_file, "--run-dir", tmp_path / "run", "--track")
    assert "pip install wandb" in message
