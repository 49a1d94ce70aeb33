"""A label is a claim: what changed a result is in the name under which it is averaged, drawn and tabulated."""

import contextlib
import functools
import importlib.util
import io
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import drol
import fql
import plot
import runs
import sweep
import table
from common import algorithms
from common.arguments import complete, for_evaluation
from common.env_ids import resolve
from common.errors import UserError
from common.roles import Role, with_role
from common.run_directory import read_config
from common.tables import read_table

import numpy as np
import pytest
from conftest import REPOSITORY, copy_repository, run_script
from toys import CODE, write_run

TOP_1, TOP_2 = "winner = distances.argmin(axis=1)", "winner = distances.argsort(axis=1)[:, 1]"  # an experiment
METRIC = '        "actor/q_mean": q.mean(),\n'
NEW_METRIC = METRIC + '        "actor/one": jnp.ones(()),\n'


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@contextlib.contextmanager
def as_repository(copy: pathlib.Path) -> Iterator[None]:
    """What runs in this process is recorded as what is in the copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "REPOSITORY", copy)
        patch.setattr(algorithms, "code_of", code_now)
        patch.setattr(algorithms, "fingerprint", fingerprint)
        yield


code_now = algorithms.code_of.__wrapped__  # else it is asked once in a process
fingerprint = functools.cache(algorithms.fingerprint)  # of the same text the same


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> pathlib.Path:
    """What is edited below, committed, as if it were the whole repository."""
    folder = tmp_path_factory.mktemp("copy")
    (folder / "common").mkdir()
    for name in ("drol.py", "fql.py", "common/seeds.py", "common/exploration.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    return committed(folder)


def committed(folder: pathlib.Path) -> pathlib.Path:
    for words in (("init", "-q"), ("add", "drol.py", "fql.py", "common"), ("commit", "-q", "-m", "as it is")):
        git = ("git", "-c", "user.name=x", "-c", "user.email=x@y.z", "-c", "commit.gpgsign=false")
        subprocess.run([*git, *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def code_of(copy):
    """What a run that starts in the copy records, once some text of it has been replaced."""

    def code_of(*edits: tuple[str, str, str], script: str = "drol") -> dict:
        before = {file: (copy / file).read_text() for file, *_ in edits}
        try:
            for file, old, new in edits:
                edit(copy / file, old, new)
            with as_repository(copy):
                return algorithms.code_of(script)
        finally:
            for file, text in before.items():
                (copy / file).write_text(text)

    return code_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a run that was made by some code."""

    def run(name: str, code: dict = CODE, **settings) -> pathlib.Path:
        monkeypatch.setattr(algorithms, "code_of", lambda name: code)
        return write_run(tmp_path / name, **settings)

    return run


def methods(*paths: pathlib.Path) -> dict[str, list[int]]:
    """Method -> its seeds, on one task; every run is in one of them, and in the table and the legend."""
    comparison = runs.read(list(paths))
    (task,) = comparison.tasks
    names = {name: [run.seed for run in members] for name, members in comparison.tasks[task].items()}
    assert [row[1] for row in table.task_table(comparison, 50).rows] == list(names)
    (legend,) = [legend for part in plot.draw(comparison, "updates").subfigs for legend in part.legends]
    labels = [" ".join(text.get_text().split()).rsplit(", ", 1)[0] for text in legend.get_texts()]
    assert set(map(comparison.label, names)) <= {*labels, *(text.get_text() for text in legend.get_texts())}
    return names


# Arguments

ADDED = """
import json, pathlib, sys
sys.path[:0] = ["results", "tests"]
import plot, runs, sweep, table
from toys import write_run

folder, answers = pathlib.Path(sys.argv[1]), {}
for script, name in (("drol", "weight_decay"), ("fql", "momentum")):
    for seed, value in enumerate((0.0, 0.5)):
        write_run(folder / script / str(seed), algorithm=script, seed=seed, **{name: value})
    comparison = runs.read([folder / script])
    (legend,) = [legend for part in plot.draw(comparison, "updates").subfigs for legend in part.legends]
    answers[script] = {
        "grouping": {method: [run.seed for run in of] for method, of in comparison.tasks["cube-single"].items()},
        "legend": [" ".join(text.get_text().split()) for text in legend.get_texts()],
        "table": [row[1] for row in table.task_table(comparison, 50).rows],
        "sweep": [m.name for m in sweep.grid(sweep.SweepArgs(algorithms=(script,)), [f"--{name}", "0.0", "0.5"])],
    }
print(json.dumps(answers))
"""


@pytest.mark.slow(5)
def test_an_argument_that_says_nothing_counts_everywhere(tmp_path):
    """One that all scripts have, and one of a script."""
    copy = copy_repository(tmp_path / "repository")
    field = '    {}: Weight = 0.0\n    """A new argument."""\n'
    online = "    # Online fine-tuning\n"
    edit(copy / "common" / "arguments.py", online, online + field.format("weight_decay"))
    own = "    # FQL\n"
    edit(copy / "fql.py", own, own + field.format("momentum"))
    (copy / "added.py").write_text(ADDED)
    result = run_script(tmp_path / "runs", script="added.py", cwd=copy, variables={"PYTHONPATH": "tests"})
    assert result.returncode == 0, result.stdout + result.stderr
    for script, named in json.loads(result.stdout).items():
        plain, label = {"drol": ("DROL(16)", "weight_decay 0.5"), "fql": ("FQL", "momentum 0.5")}[script]
        assert named["grouping"] == {plain: [0], f"{plain}, {label}": [1]}
        assert {f"{plain}, 1 seed", f"{plain}, {label}, 1 seed"} <= set(named["legend"])
        assert named["table"] == [plain, f"{plain}, {label}"]
        name, k = label.split()[0].replace("_", "-"), {"drol": "-k16", "fql": ""}[script]
        assert named["sweep"] == [f"{script}-cube-double{k}-{name}{value}" for value in (0, 0.5)]


def test_what_has_no_part_in_what_is_learned_is_not_in_a_name(run):
    how = {"log_interval": 7, "save_minutes": 1.0, "eval_workers": 3, "data_memory": "host", "track": True}
    assert methods(run("a", seed=0), run("b", seed=1, **how)) == {"DROL(16)": [0, 1]}


def test_values_that_differ_in_the_last_digit_are_not_averaged(run):
    assert len(methods(run("a", tau=0.01), run("b", seed=1, tau=0.010000001))) == 2


def test_every_argument_of_a_run_says_what_it_is_or_counts():
    for script in (drol, fql):
        of = {role: with_role(script.Args, role) for role in Role}
        assert of[Role.SIZE] == {"offline_steps", "online_steps", "hidden_sizes", "encoder_sizes"}
        assert of[Role.JUDGING] == {"eval_interval", "eval_episodes"}
        counts = set(vars(script.Args())) - set().union(*(of[role] for role in Role if role is not Role.EVALUATE))
        assert {"own_rewards", "buffer_size", "balanced_sampling", "batch_size", "tau", "discount"} <= counts
        assert all(getattr(script.Args(), name) is None for name in of[Role.EVALUATE])


@pytest.mark.parametrize(
    ("script", "settings", "needed"),
    [
        (drol, {"inference_density_top_k": 4}, "--inference-num-samples of at least 2"),
        (drol, {"inference_density_top_k": 4, "inference_num_samples": 1}, "--inference-num-samples of at least 2"),
        (drol, {"inference_q_agg": "min"}, "--inference-num-samples of at least 2"),
        *((script, {"balanced_sampling": True}, "--online-steps") for script in (drol, fql)),
        *((script, {"buffer_size": 9}, "--online-steps") for script in (drol, fql)),
        *((script, {"wandb_project": "x"}, "--track") for script in (drol, fql)),
    ],
)
def test_what_does_nothing_without_another_is_refused(script, settings, needed):
    said = f"--{next(iter(settings)).replace('_', '-')} does nothing without {needed}$"
    with pytest.raises(UserError, match=said):
        complete(script.Args(**settings), resolve("cube-single"), script.published_settings)
    others = {"inference_num_samples": 8} if script is drol else {}
    settings = settings | others | {"online_steps": 9, "track": True}
    complete(script.Args(**settings), resolve("cube-single"), script.published_settings)


def test_what_does_nothing_is_refused_when_training_and_when_evaluating(tmp_path, run, refusal):
    alone = "--inference-density-top-k does nothing without --inference-num-samples"
    assert alone in refusal("--inference-density-top-k", 4, "--dataset-path", tmp_path / "none.npz")
    assert alone in refusal("--evaluate", run("a"), "--inference-density-top-k", 4)
    trained = drol.Args(inference_num_samples=8)  # which the run has
    assert for_evaluation(trained, drol.Args(inference_density_top_k=4)).inference_density_top_k == 4
    with pytest.raises(UserError, match="--inference-density-top-k does nothing"):
        sweep.grid(sweep.SweepArgs(algorithms=("drol",)), ["--inference-density-top-k", "4"])


# Code


def test_code_is_compared_by_what_it_does(code_of):
    """Comments, docstrings, layout, and how a number is written are not it."""
    as_it_is = code_of()
    assert as_it_is["commit"] and not as_it_is["dirty"] and not as_it_is["modified"]
    looks = (
        ("drol.py", TOP_1, "winner = distances.argmin(\n        axis=1,\n    )  # the nearest"),
        ("drol.py", "= 3e-4", "= 0.0003"),
        ("drol.py", '"""Adam\'s step size."""', '"""The step size of Adam."""'),
        ("common/seeds.py", '"""The keys of runs, each [seeds]."""', "# without a docstring"),
    )
    assert code_of(*looks) == as_it_is | {"dirty": True}
    edited = code_of(("drol.py", TOP_1, TOP_2))
    assert edited["script"] != as_it_is["script"]
    assert edited == as_it_is | {"dirty": True, "modified": True, "script": edited["script"]}
    assert code_of(("drol.py", TOP_1, TOP_2), script="fql") == code_of(script="fql") | {"dirty": True}


def test_a_modified_script_is_called_so_and_no_run_disappears(code_of, run):
    """With the same seed as an unchanged run, with another one, and alone: then not in the paper's colour and row."""
    code, modified = code_of(), code_of(("drol.py", TOP_1, TOP_2))
    old, same, other = run("old", code), run("same", modified), run("other", modified, seed=1)
    assert methods(old, same) == {"DROL(16)": [0], "DROL(16), modified": [0]}
    assert methods(old, other) == {"DROL(16)": [0], "DROL(16), modified": [1]}
    assert methods(same, other) == {"DROL(16), modified": [0, 1]}
    comparison = runs.read([same, other])
    assert not any("left out" in note for note in comparison.notes)
    assert plot.styles({"DROL(16), modified"})["DROL(16), modified"].colour not in plot.COLOURS.values()
    assert plot.styles({"DROL(16), tau 0.01"})["DROL(16), tau 0.01"].colour == plot.COLOURS["DROL(16)"]
    groups = table.group_table(comparison)
    column = groups.header.index("DROL(16)")
    assert {row[column] for row in groups.rows} == {"not run"}
    assert [row[-1] for row in table.task_table(comparison, 50).rows] == ["-"]  # nor beside the paper's number
    again = run("again", code_of(("drol.py", TOP_1, TOP_2.replace("1]", "0]"))), seed=2)
    assert sorted(methods(same, other, again).values()) == [[0, 1], [2]]


def test_runs_of_different_scripts_never_share_a_name(run):
    """Both committed: on one task, and where each was run on a task of its own."""
    a, b, unknown = CODE, CODE | {"script": "d" * 64}, CODE | {"script": None}
    pair = run("a", a), run("b", b, seed=1)
    assert methods(*pair) == {"DROL(16), script aaaaaa": [0], "DROL(16), script dddddd": [1]}
    assert "DROL(16): by 2 scripts that do other things" in " ".join(runs.read(list(pair)).notes)
    assert set(methods(pair[0], run("c", unknown))) == {"DROL(16), script aaaaaa", "DROL(16), script unknown"}
    comparison = runs.read([pair[0], run("d", b, env_id="scene")])
    assert comparison.methods == ["DROL(16), script aaaaaa", "DROL(16), script dddddd"]
    assert plot.common_tasks(comparison) == {}


def test_what_differs_in_common_is_said_and_no_run_of_it_is_left_out(code_of, run):
    changed = code_of(("common/exploration.py", "reward -= env.ends_at_success", "reward += env.ends_at_success"))
    assert changed["dirty"] and not changed["modified"]
    code = code_of()
    a, b, c = run("a", code), run("b", changed, seed=1), run("c", changed)
    assert methods(a, b) == {"DROL(16)": [0, 1]}
    versions = sorted(each["common"][:6] for each in (code, changed))
    assert f"unlike in cube-single: common/ {' and '.join(versions)} (DROL(16))" in runs.read([a, b]).notes
    assert sorted(methods(a, c).values()) == [[0], [0]]
    assert not any("common/" in note for note in runs.read([b, c]).notes)


def go_on(copy: pathlib.Path, run: pathlib.Path) -> None:
    """With the copy's drol.py, whatever it is by now."""
    spec = importlib.util.spec_from_file_location("drol_of_copy", copy / "drol.py")
    edited = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edited)
    with as_repository(copy):
        edited.main(edited.Args(resume=(run,)))


@pytest.fixture(scope="module")
def gone_on(point_file, once) -> pathlib.Path:
    """A run of 40 updates, of which the last 10 are those of a script with another routing and a new metric.

    In a copy of its own, which stays edited: REPOSITORY/runs/x.
    """

    def make(folder: pathlib.Path) -> None:
        copy, path = committed(copy_repository(folder)), folder / "runs" / "x"
        small = {"env_id": "odd_envs:Film-v0", "dataset_path": point_file, "hidden_sizes": (8,), "batch_size": 16}
        steps = {"offline_steps": 40, "eval_interval": 30, "log_interval": 20, "save_minutes": 99.0}
        with as_repository(copy):
            drol.main(drol.Args(**small, **steps, eval_episodes=1, eval_workers=1, run_dir=path))
        (path / "checkpoints" / "step-000000040.npz").unlink()
        shutil.copytree(path, copy / "runs" / "as_it_began")
        edit(copy / "drol.py", TOP_1, TOP_2)
        edit(copy / "drol.py", METRIC, NEW_METRIC)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            go_on(copy, path)
        assert "note: drol.py changed since" in said.getvalue()

    return once("edited", make) / "runs" / "x"


@pytest.mark.slow(12)
def test_a_run_that_went_on_with_another_script_is_called_so(gone_on):
    first, second = read_config(gone_on)["code"]
    assert (first["step"], second["step"]) == (0, 30)
    assert first["script"] != second["script"] and first["common"] == second["common"]
    assert (first["modified"], first["dirty"], second["modified"], second["dirty"]) == (False, False, True, True)
    comparison = runs.read([gone_on])
    went_on = f"script {first['script'][:6]} then {second['script'][:6]}"
    assert comparison.algorithms == [f"DROL(16), modified, batch_size 16, {went_on}"]


@pytest.mark.slow(13)
def test_a_metric_that_came_with_another_script_has_its_own_mean_and_empty_cells_before(gone_on, tmp_path, capsys):
    header, first, second = (line.split(",") for line in (gone_on / "train.csv").read_text().splitlines())
    assert len(header) == len(first) == len(second) and header[-1] == "actor/one"
    assert (first[-1], second[-1]) == ("", "1")  # of the updates 31 to 40, which have it
    before, after = (read_table(folder / "train.csv") for folder in (gone_on.with_name("as_it_began"), gone_on))
    assert before[0] == after[0]  # nothing is dropped
    assert np.isfinite(list(after[1].values())).all() and before[1].keys() < after[1].keys()
    run = shutil.copytree(gone_on, tmp_path / "x")
    (run / "checkpoints" / "step-000000040.npz").unlink()
    go_on(gone_on.parents[1], run)
    assert "damaged" not in "".join(capsys.readouterr())
    for name in ("train.csv", "eval.csv"):
        assert (run / name).read_bytes() == (gone_on / name).read_bytes()
