"""Sweeps: the grid, jobs that fail or are killed, and the same sweep here and on a real Slurm."""

import concurrent.futures
import contextlib
import csv
import errno
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jobs
import sweep
import table
from common.errors import UserError
from common.tables import read_table

import pytest
from conftest import REPOSITORY, run_script

UPDATES = 3000  # two seconds, in which a training can be disturbed
TASK, ALGORITHMS = "pointmaze-medium-task3", ("drol", "fql")
TOY = ("--hidden-sizes", 8, 8, "--batch-size", 8, "--offline-steps", UPDATES, "--eval-episodes", 1)
TOY = (*TOY, "--eval-workers", 1, "--log-interval", 100, "--save-minutes", 0.01)
TOY = (*TOY, "--data-source", "collect", "--collect-episodes", 4)
SLURM = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "slurmd", "munged")]


def grid(*words: str, **settings) -> list[sweep.Method]:
    return sweep.grid(sweep.SweepArgs(**settings), [str(word) for word in words])


# The grid


def test_jobs_side_by_side_share_the_cores(monkeypatch):
    """Each would start an evaluation process on every core."""
    monkeypatch.setattr(jobs, "usable_cores", lambda: [0, 1, 4, 5, 7])
    place = jobs.Place("gpu 0")
    assert [p.cores for p in jobs.sharing_cores([place] * 2)] == [(0, 4, 7), (1, 5)]
    assert [p.cores for p in jobs.sharing_cores([place] * 7)][4:] == [(7,), (0,), (1,)]
    monkeypatch.setattr(sweep, "gpus", lambda: ["0", "3"])
    args = sweep.SweepArgs(folder=pathlib.Path("x"), jobs_per_gpu=2)
    places = sweep.places_here(args)
    assert sorted(core for p in places for core in p.cores) == [0, 1, 4, 5, 7]
    assert [dict(p.variables)["CUDA_VISIBLE_DEVICES"] for p in places] == ["0", "3", "0", "3"]


def test_the_grid_of_the_paper_has_its_published_settings():
    with (REPOSITORY / "results" / "paper" / "hyperparameters.csv").open() as file:
        published = {row["family"]: row for row in csv.DictReader(file)}
    methods = grid(tasks=("paper",))
    assert len(methods) == 68 * 3
    assert len({method.name for method in methods}) == 68 * 3
    seen = set()
    for method in methods:
        algorithm, spec = method.name.split(f"-{method.task}")[0], sweep.resolve(method.task)
        row, column = published[spec.family], algorithm.split("-")[0]
        settings = re.findall(r"(\w+) (\S+) \((\w+)\)", method.settings)
        values = {name: value for name, value, _ in settings}
        assert {origin for *_, origin in settings} == {"published"}, method.name
        assert float(values["discount"]) == float(row[f"{column}_discount"]), method.name
        assert values["q_agg"] == row[f"{column}_q_agg"], method.name
        assert values["offline_steps"] == str(method.updates) == row["offline_steps"], method.name
        if algorithm == "fql":
            assert float(values["alpha"]) == float(row["fql_alpha"]), method.name
        else:
            k = row["drol_k_tuned" if algorithm == "drol-star" else "drol_k"]
            assert float(values["bc_coef"]) == float(row["drol_bc_coef"]), method.name
            assert values["num_candidates"] == k and method.name.endswith(f"-k{k}"), method.name
        star = ["--drol-star"] if algorithm == "drol-star" else []
        assert method.script == f"{column}.py" and method.options == ("--env-id", spec.name, *star)
        seen.add((spec.family, spec.task, algorithm))
    of_states = {family: row for family, row in published.items() if not family.startswith("visual-")}  # Table 1's
    tasks = {family: 5 if row["suite"] == "ogbench" else 1 for family, row in of_states.items()}
    expected = {
        (family, task if number > 1 else None, algorithm)
        for family, number in tasks.items()
        for task in range(1, number + 1)
        for algorithm in ("drol", "drol-star", "fql")
    }
    assert seen == expected


@pytest.mark.slow(2)
def test_a_dry_run_of_the_paper_takes_less_than_five_seconds_and_writes_nothing(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ("--tasks", "paper", "--seeds", 8, "--dry-run", "--folder", tmp_path / "sweep")
    result = run_script(*words, script="results/sweep.py", variables={"PYTHONPATH": hide(tmp_path, "submitit")})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5  # however busy the machine is
    assert "204 methods, 1632 jobs: 1632 new" in result.stdout
    assert not (tmp_path / "sweep").exists()


def hide(folder: pathlib.Path, package: str) -> str:
    (folder / "hidden").mkdir()
    (folder / "hidden" / f"{package}.py").write_text("raise ImportError('not to be imported')\n")
    return str(folder / "hidden")


def test_lists_of_values_are_a_product_and_belong_to_the_algorithms_that_have_them():
    names = [m.name for m in grid("--num-candidates", 1, 4, "--tau", 0.01, 0.005, tasks=("cube-double",))]
    assert names == [
        *("drol-cube-double-k1-tau0.01", "drol-cube-double-k1-tau0.005"),
        *("drol-cube-double-k4-tau0.01", "drol-cube-double-k4-tau0.005"),
        *("fql-cube-double-tau0.01", "fql-cube-double-tau0.005"),
        *("drol-star-cube-double-k64-tau0.01", "drol-star-cube-double-k64-tau0.005"),
    ]
    sizes = grid("--hidden-sizes", 8, 8, "--hidden-sizes", 16, algorithms=("fql",))
    assert [m.name for m in sizes] == ["fql-cube-double-hidden-sizes8x8", "fql-cube-double-hidden-sizes16"]
    flags = grid("--normalize-q-loss", "--no-normalize-q-loss", algorithms=("fql",))
    assert [m.name for m in flags] == ["fql-cube-double-normalize-q-loss", "fql-cube-double-no-normalize-q-loss"]


def test_what_is_given_is_in_the_name_but_for_what_has_no_part_in_what_is_learned():
    (method,) = grid("--bc-coef", 1, "--eval-workers", 3, algorithms=("drol",))
    assert method.name == "drol-cube-double-k16-bc-coef1"
    assert method.options == ("--env-id", "cube-double-play-singletask-v0", "--bc-coef", "1", "--eval-workers", "3")


def test_a_name_does_not_depend_on_how_it_is_said():
    (method,) = grid("--tau", 0.01, "--bc-coef", 3, algorithms=("drol",))
    assert grid("--bc_coef", 3, "--tau", 0.01, algorithms=("drol",))[0].name == method.name
    for one, other in (("--offline-steps 1e6", "--offline_steps 1000000"), ("--tau .010", "--tau 1e-2")):
        names = [[method.name for method in grid(*words.split(), algorithms=("drol",))] for words in (one, other)]
        assert names[0] == names[1]
    assert "tau0.01" in names[0][0]
    collected, downloaded = grid("--data-source", "collect", "download", algorithms=("drol",))
    assert collected.name != downloaded.name


def test_each_data_set_has_a_job_of_its_own(tmp_path):
    methods = grid("--data-source", "collect", "--collect-episodes", 100, 300, tasks=("scene", "scene-task1"))
    names = [job.name for job in sweep.data_jobs(tmp_path, methods)]
    assert names == [f"data-scene-play-collect-{episodes}" for episodes in (100, 300)]


@pytest.mark.parametrize(
    "words", [("--nonsense", 1), ("--seed", 1), ("3",), ("--num-candidates", 0), ("--eval-workers", 1, 2)]
)
def test_arguments_that_no_script_has_or_the_sweep_gives_or_no_name_has_are_refused(words):
    with pytest.raises(UserError):
        grid(*words)
    with pytest.raises(UserError):
        sweep.SweepArgs(seeds=0)


def test_groups_of_the_table_and_names_are_tasks_once():
    assert [spec.short_name for spec in sweep.tasks_named(["cube-double-task2", "ogbench/cube-double"])] == [
        f"cube-double-task{task}" for task in (2, 1, 3, 4, 5)
    ]
    assert [spec.name for spec in sweep.tasks_named(["scene", "scene-task2"])] == ["scene-play-singletask-v0"]
    assert len(sweep.tasks_named(["d4rl"])) == 18 and len(sweep.tasks_named(["ogbench", "paper"])) == 68


# Jobs


def test_seeds_go_on_together_as_they_began(tmp_path):
    begun = {2: [2, 3], 3: [2, 3], 6: [6, 7], 9: [9, 10], 10: [10]}  # 7 is gone, 10 was made again alone
    for seed, together in begun.items():
        run = tmp_path / "x" / f"seed{seed}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"seeds_together": together}))
    assert jobs.together(tmp_path, "x", range(11), 3) == [(0, 1), (2, 3), (4, 5), (6,), (7, 8), (9,), (10,)]
    assert jobs.together(tmp_path, "x", range(3), 3) == [(0, 1), (2, 3)]  # with 3, although it was not asked for
    assert jobs.together(tmp_path, "y", range(7), 3) == [(0, 1, 2), (3, 4, 5), (6,)]


@pytest.fixture
def make_job(tmp_path) -> Callable[..., jobs.Job]:
    def make_job(name: str, program: str) -> jobs.Job:
        script = tmp_path / f"{name}.py"
        script.write_text(program)
        return jobs.Job(tmp_path / "sweep", name, str(script), ())

    return make_job


def work(members: list[jobs.Job], attempts: int = 1, places: list[jobs.Place] | None = None) -> tuple[list, list[str]]:
    said: list[str] = []
    failed, _ = jobs.Supervisor(attempts, said.append).work(members, places or [jobs.Place("here")])
    return failed, said


def test_a_job_that_fails_is_tried_again_after_the_others_and_then_named_with_its_last_line(make_job):
    bad = make_job("bad", "print('first')\nraise SystemExit('error: no such thing')")
    good = make_job("good", "print('well')")
    failed, said = work([bad, good], attempts=2)
    assert failed == [bad] and bad.failure.attempts == 2 and bad.failure.line == "error: no such thing"
    assert [line.split(":")[0] for line in said] == [
        *("started on here", "failed (will be tried again)", "started on here", "done"),
        *("started on here", "failed (given up)"),
    ]
    assert good.failure is None
    assert sweep.failures([good, bad])[0].startswith("bad: failed 2 times, last on ")


def test_a_job_that_is_killed_succeeds_at_its_second_attempt(make_job, tmp_path):
    once = tmp_path / "once"
    program = f"import os, pathlib\nonce = pathlib.Path({str(once)!r})\nif not once.exists():\n"
    program += "    once.touch(); print('alive', flush=True); os.kill(os.getpid(), 9)\n"
    job = make_job("killed", program)
    failed, said = work([job], attempts=2)
    assert failed == [] and job.failure is None
    assert "killed by SIGKILL after: alive" in said[1]


def test_a_job_without_room_for_its_note_is_given_up_and_named_and_the_others_go_on(make_job, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "bad.failed")

    bad, good = make_job("bad", "raise SystemExit('error: no such thing')"), make_job("good", "print('well')")
    monkeypatch.setattr(jobs, "write_whole", full)
    failed, said = work([bad, good], attempts=2)
    assert failed == [bad] and sum("started" in line for line in said) == 3
    assert "failed (given up): bad: error: no such thing" in said and "done: good" in " ".join(said)
    assert "no note of that can be written (No space left on device: bad.failed): bad" in said


def test_a_job_that_cannot_be_started_is_named_and_the_others_go_on(make_job):
    bad, good = make_job("bad", "print('well')"), make_job("good", "print('well')")
    (bad.log.parent / "bad.log").mkdir(parents=True)
    failed, said = work([bad, good])
    assert failed == [bad]
    assert said[0].startswith("failed (given up): bad: it cannot be started (Is a directory: ")
    assert "done: good" in said[-1]


LONG = "import os, pathlib, time; pathlib.Path({!r}).write_text(str(os.getpid())); time.sleep(60)"


def is_running(pid_file: pathlib.Path) -> bool:
    """Zombies are not."""
    status = pathlib.Path(f"/proc/{pid_file.read_text()}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow(1)
def test_whatever_ends_the_supervisor_its_jobs_end_with_it(make_job, tmp_path):
    here, killed = tmp_path / "here", tmp_path / "killed"
    bad, long = make_job("bad", "import time; time.sleep(1)"), make_job("long", LONG.format(str(here)))

    def say(line: str) -> None:
        if "done: bad" in line:
            wait_for(lambda: here.exists() and here.read_text() != "")
            raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        jobs.Supervisor(1, say).work([long, bad], [jobs.Place("here")] * 2)
    assert not is_running(here)

    job = make_job("killed", LONG.format(str(killed)))
    program = f"import jobs, pathlib; job = jobs.Job(pathlib.Path({str(job.sweep)!r}), 'killed', {job.script!r}, ())"
    program += "; jobs.Supervisor(1).work([job], [jobs.Place('there')])"
    variables = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'results'}"}
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | variables) as supervisor:
        wait_for(lambda: killed.exists() and killed.read_text() != "")
        supervisor.kill()
    if sys.platform == "linux":
        wait_for(lambda: not is_running(killed), timeout=10)


def test_a_method_whose_name_is_too_long_is_left_out_and_the_others_are_shown(tmp_path, capsys):
    """At the dry run already; 255 bytes is what file systems take, and a note of a failure has the longest name."""
    words = ["--algorithms", "fql", "--folder", str(tmp_path / "x"), "--hidden-sizes", "8"]
    layers = len("fql-cube-double-hidden-sizes-seed0-7.failed")
    fits, too_long = ([f"{10 ** (n - 1)}"] for n in (255 - layers, 256 - layers))
    sweep.main([*words, "--dry-run", "--hidden-sizes", *fits])
    assert "left out" not in capsys.readouterr().err
    with pytest.raises(UserError, match="1 of 2 methods were left out: their names are too long"):
        sweep.main([*words, "--dry-run", "--hidden-sizes", *too_long])
    out, err = capsys.readouterr()
    assert "1 methods, 8 jobs: 8 new" in out
    assert err.startswith("left out: fql-cube-double-hidden-sizes1000")
    assert f"has 256 bytes, and {tmp_path} takes 255; name fewer settings" in err


def test_jobs_that_share_a_gpu_run_at_once_each_with_its_share_of_the_memory(make_job, tmp_path):
    program = """
        import os, pathlib, time
        folder, me = pathlib.Path({folder!r}), {me}
        (folder / f"here{{me}}").write_text(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
        deadline = time.monotonic() + 30
        while not (folder / f"here{{1 - me}}").exists():
            assert time.monotonic() < deadline, "the other one does not come"
            time.sleep(0.02)
    """.replace("\n        ", "\n")
    pair = [make_job(f"job{me}", program.format(folder=str(tmp_path), me=me)) for me in (0, 1)]
    failed, _ = work(pair, places=[jobs.Place("gpu 0", jobs.sharing_a_gpu(2))] * 2)
    assert failed == []
    assert (tmp_path / "here0").read_text() == (tmp_path / "here1").read_text() == "0.45"
    assert jobs.sharing_a_gpu(1) == ()


def test_slurm_parameters_come_from_a_file_and_the_command_line(tmp_path):
    file = tmp_path / "cluster.toml"
    file.write_text('partition = "gpu"\ntime = 60\nadditional_parameters = { nice = 100 }\n')
    parameters = sweep.slurm_parameters(sweep.SweepArgs(slurm_config=file, slurm=("time=720", "constraint=a100")))
    assert parameters["partition"] == "gpu" and parameters["time"] == 720 and parameters["constraint"] == "a100"
    assert parameters["additional_parameters"] == {"nice": 100}
    words = ("setup=module load cuda", "exclusive=True", "use_srun=false")
    parameters = sweep.slurm_parameters(sweep.SweepArgs(slurm=words))
    assert parameters["setup"] == ["module load cuda"]
    assert parameters["exclusive"] is True and parameters["use_srun"] is False
    with pytest.raises(UserError, match="time=12:00:00: minutes"):
        sweep.slurm_parameters(sweep.SweepArgs(slurm=("time=12:00:00",)))
    with pytest.raises(UserError, match="not KEY=VALUE"):
        sweep.slurm_parameters(sweep.SweepArgs(slurm=("gpu",)))


# The whole, here and on Slurm: what is disturbed in one is left in peace in the other


def toy(folder: pathlib.Path, data: pathlib.Path, *more: object) -> list[str]:
    """Arguments of a sweep of two algorithms and two seeds."""
    words = ("--tasks", TASK, "--algorithms", *ALGORITHMS, "--seeds", 2, "--seeds-per-job", 2, "--folder", folder)
    return [str(word) for word in (*words, *TOY, "--dataset-dir", data, *more)]


METHODS = [method.name for method in sweep.grid(*sweep.parse(toy("", "")))]


@contextlib.contextmanager
def sweeping(words: list[str]) -> Iterator[subprocess.Popen]:
    """In another process, which does not outlive the test."""
    command = [sys.executable, str(REPOSITORY / "results" / "sweep.py"), *words]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            for _ in range(2):  # the second ends its jobs at once
                process.terminate()
                time.sleep(0.2)


def rows(folder: pathlib.Path, method: str) -> int:
    table = folder / method / "seed1" / "train.csv"
    return table.read_text().count("\n") if table.exists() else 0


def wait_for(condition: Callable[[], bool], timeout: float = 600, pause: float = 0.05) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(pause)


def kill_trainer(folder: pathlib.Path, method: str) -> None:
    _, trainer, *_ = (folder / method / "seed0" / ".lock").read_text().split()  # process 4711 on node3
    os.kill(int(trainer), signal.SIGKILL)


@pytest.fixture(scope="session")
def swept_here(pointmaze_file, once) -> pathlib.Path:
    """On this machine, one job at a time: the first is killed, the second is stopped by Ctrl-C with the whole sweep."""

    def make(folder: pathlib.Path) -> None:
        with sweeping(toy(folder, pointmaze_file.parent, "--jobs-at-once", 1)) as process:
            wait_for(lambda: rows(folder, METHODS[0]) > 5)
            kill_trainer(folder, METHODS[0])
            wait_for(lambda: rows(folder, METHODS[1]) > 5)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "killed by SIGKILL after" in out and "stopped; the same command goes on" in out
        assert rows(folder, METHODS[1]) < UPDATES // 100
        with sweeping(toy(folder, pointmaze_file.parent)) as process:
            out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        assert "2 jobs: 1 failed, 1 stopped" in out

    return once("swept-here", make)


def check_complete(folder: pathlib.Path) -> None:
    for method in METHODS:
        for seed in (0, 1):
            steps = [row["step"] for row in read_table(folder / method / f"seed{seed}" / "eval.csv")]
            assert steps == [UPDATES]


@pytest.mark.slow(38)
def test_a_sweep_here_goes_on_after_ctrl_c_and_a_kill_to_its_table(swept_here, pointmaze_file, capsys):
    check_complete(swept_here)
    sweep.main(toy(swept_here, pointmaze_file.parent))
    assert "2 jobs: 2 done; nothing is left to do\nnothing to start\n" in capsys.readouterr().out
    table.main(table.TableArgs((swept_here,)))
    printed = capsys.readouterr().out
    assert sum(f"| {TASK} " in line for line in printed.splitlines()) == 2, printed
    sweep.main(["--folder", str(swept_here), "--status"])
    assert capsys.readouterr().out.count(f"{UPDATES:,} of {UPDATES:,}") == 2
    page = (swept_here / "status.html").read_text()
    assert page.count(f"{UPDATES:,} of {UPDATES:,}") == 2 and page.count("<svg") == 1
    assert "<script" not in page and "<img" not in page and "<link" not in page  # one file


def failing(folder: pathlib.Path, data: pathlib.Path, *more: object) -> list[str]:
    words = ("--algorithms", "drol", "--seeds", 2, "--seeds-per-job", 2, *more)
    return [str(word) for word in (*words, "--folder", folder, "--dataset-path", data)]


@pytest.mark.slow(2)
def test_a_job_without_data_is_named_with_its_last_line(tmp_path, capsys):
    missing, folder = tmp_path / "nowhere.npz", tmp_path / "x"
    with pytest.raises(UserError, match="1 of 1 jobs failed; --status names them"):
        sweep.main(failing(folder, missing, "--attempts", 1))
    sweep.main(["--folder", str(folder), "--status"])
    out = capsys.readouterr().out
    assert "  2 failed  " in out and f"error: --dataset-path {missing}: no such file" in out


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[str]:
    """A Slurm of two nodes on this machine, started by tests/slurm/start: what SLURM_CONF has to be."""
    if None in SLURM or shutil.which("sbatch") is None:
        pytest.skip("Slurm is not installed (Debian: slurmctld slurmd munge slurm-client)")
    if os.geteuid() != 0:
        pytest.skip("starting Slurm's daemons needs root")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([REPOSITORY / "tests" / "slurm" / "start", folder], check=True, timeout=60)
    yield str(folder / "slurm.conf")
    subprocess.run([REPOSITORY / "tests" / "slurm" / "stop", folder], check=True, timeout=60)


@pytest.fixture
def slurm(cluster, monkeypatch) -> Iterator[Callable[..., str]]:
    """Runs one of Slurm's commands."""
    monkeypatch.setenv("SLURM_CONF", cluster)

    def slurm(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout

    yield slurm
    slurm("scancel", "--user", "root")  # what a test that failed leaves would be in the way of the next


def start_requeued(slurm: Callable[..., str], job: str, restarts: int = 1, elsewhere: bool = False) -> None:
    """Once it is queued again, away from the node that it failed on.

    Slurm itself would wait two minutes. Within one second, a node takes it for the job that was ended there.
    """

    def is_queued() -> bool:
        text = slurm("scontrol", "show", "job", job)
        queued = f"Restarts={restarts} " in text and "JobState=PENDING" in text
        return queued and ("ExcNodeList=(null)" not in text) == elsewhere

    wait_for(is_queued, pause=0.3)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+2")


@pytest.mark.slow(60)
def test_a_sweep_on_slurm_survives_what_happens_there_to_the_same_bits(
    slurm, pointmaze_file, tmp_path, capsys, request
):
    folder, data = tmp_path / "sweep", pointmaze_file.parent

    def running() -> dict[str, str]:
        """Job -> its node."""
        return dict(line.split() for line in slurm("squeue", "-h", "-r", "-t", "running", "-o", "%i %N").splitlines())

    with sweeping(toy(folder, data, "--on", "slurm")) as process:
        assert process.wait(timeout=60) == 0
    submitted = json.loads((folder / "jobs" / "slurm.json").read_text())
    ids = [submitted[str(folder / method / "seed0")] for method in METHODS]
    assert len({job.split("_")[0] for job in ids}) == 1 and len(set(ids)) == 2  # one array
    sweep.main(toy(folder, data, "--on", "slurm"))
    assert capsys.readouterr().out.endswith("nothing to start\n")

    def goes_on(method: str) -> int:
        """Once a method has logged more than it has now; how much that is."""
        logged = rows(folder, method)
        wait_for(lambda: rows(folder, method) > logged + 3)
        return rows(folder, method)

    def signalled_then_killed(method: str, job: str) -> None:
        goes_on(method)
        slurm("scancel", "--signal", "USR2", job)  # as before a time limit, or preemption
        start_requeued(slurm, job)
        assert "saved at update" in (folder / "jobs" / f"{method}-seed0-1.log").read_text()
        assert goes_on(method) < UPDATES // 100
        kill_trainer(folder, method)
        start_requeued(slurm, job, restarts=2, elsewhere=True)

    def requeued_then_preempted(method: str, job: str) -> None:
        goes_on(method)
        slurm("scontrol", "requeue", job)
        start_requeued(slurm, job)
        assert goes_on(method) < UPDATES // 100
        slurm(
            "sbatch", "--partition", "urgent", "--nodelist", running()[job], "--output", "/dev/null", "--wrap", "true"
        )
        start_requeued(slurm, job, restarts=2)

    with concurrent.futures.ThreadPoolExecutor() as threads:  # neither knows when the other has a node
        disturbed = [
            threads.submit(disturb, *job)
            for disturb, *job in zip((signalled_then_killed, requeued_then_preempted), METHODS, ids, strict=True)
        ]
    for disturbance in disturbed:
        disturbance.result()
    wait_for(lambda: not slurm("squeue", "--noheader"), pause=0.5)

    check_complete(folder)
    swept_here = request.getfixturevalue("swept_here")  # only now: another process may be making it meanwhile
    for method in METHODS:
        for seed in (0, 1):
            for name in ("train.csv", "eval.csv"):
                mine, other = (each / method / f"seed{seed}" / name for each in (folder, swept_here))
                assert mine.read_bytes() == other.read_bytes(), mine
    sweep.main(toy(folder, data, "--on", "slurm"))
    assert capsys.readouterr().out.endswith("nothing to start\n")


@pytest.mark.slow(59)
def test_on_slurm_a_job_that_fails_is_tried_on_another_node_and_then_named(slurm, tmp_path, capsys):
    missing, folder = tmp_path / "nowhere.npz", tmp_path / "x"
    sweep.main(failing(folder, missing, "--attempts", 2, "--on", "slurm"))
    job, *_ = json.loads((folder / "jobs" / "slurm.json").read_text()).values()
    start_requeued(slurm, job, elsewhere=True)
    first = jobs.Failure(**json.loads((folder / "jobs" / "drol-cube-double-k16-seed0-1.failed").read_text()))
    wait_for(lambda: not slurm("squeue", "--noheader"), pause=0.5)
    last = jobs.Failure(**json.loads((folder / "jobs" / "drol-cube-double-k16-seed0-1.failed").read_text()))
    assert last.attempts == 2 and {first.node, last.node} == {"one", "two"}
    capsys.readouterr()
    sweep.main(["--folder", str(folder), "--status"])
    out = capsys.readouterr().out
    assert f"failed 2 times, last on {last.node}: error: --dataset-path {missing}: no such file" in out
