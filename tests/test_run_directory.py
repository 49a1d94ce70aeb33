"""Logs and checkpoints on disk."""

import dataclasses
import json
import os
import pathlib

import drol
from common import algorithms, files, run_directory
from common.checkpoints import DAMAGE, Checkpoints
from common.env_ids import resolve
from common.errors import UserError
from common.run_directory import Checkpoint, RunDirectory, read_config
from common.runs import Runs
from common.scores import score_metric, scores
from common.seeds import Seeds
from common.tables import read_table

import jax.numpy as jnp
import numpy as np
import pytest
from toys import completed, new_run


def create(path: pathlib.Path) -> RunDirectory:
    return new_run(path, drol, *completed(drol, drol.Args(env_id="cube-single", dataset_path=pathlib.Path("a/b.npz"))))


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return create(tmp_path / "run")


def reopen(run: RunDirectory) -> RunDirectory:
    run._lock.close()
    return RunDirectory.open(run.path, "drol")


TREE = {"a": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(7)}


def test_arguments_survive_the_config(run):
    reopened = reopen(run)
    args = reopened.read_args(drol.Args)
    assert json.loads(json.dumps(dataclasses.asdict(args), default=str)) == reopened.config["args"]
    assert args.hidden_sizes == (512, 512, 512, 512)
    assert args.dataset_path == pathlib.Path("a/b.npz")
    assert (args.bc_coef, args.run_dir) == (10.0, None)
    assert reopened.config["versions"]["jax"]


def test_what_is_not_a_run_is_refused(run, tmp_path):
    for start in (lambda: RunDirectory.open(run.path, "drol"), lambda: create(run.path)):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
            start()
    run.log("train", {"step": 1, "critic/loss": 1.0})
    run._lock.close()
    with pytest.raises(UserError, match="holds a run"):
        create(run.path)
    with pytest.raises(UserError, match=r"a run of drol\.py, not of fql\.py"):
        RunDirectory.open(run.path, "fql")
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="not a run directory"):
            RunDirectory.open(folder, "drol")
    (run.path / "config.json").write_text('{"algorithm": "drol"')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        RunDirectory.open(run.path, "drol")
    (run.path / "config.json").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(UserError, match=r"config\.json is damaged") as refused:
        RunDirectory.open(run.path, "drol")
    assert len(str(refused.value)) < 400


def test_a_run_that_was_killed_before_its_first_row_makes_room_for_the_next(run, tmp_path):
    run._lock.close()
    (run.path / ".tmp-config.json").write_text("half of it")
    again = create(run.path)
    assert read_config(run.path)["id"] == again.config["id"] != run.config["id"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".lock").touch()
    create(tmp_path / "killed")


def test_a_folder_is_taken_before_its_settings_are_written(tmp_path, monkeypatch):
    def write_while_another_starts(path, write):
        monkeypatch.setattr(run_directory, "write_whole", files.write_whole)
        with pytest.raises(UserError, match="in use by process"):
            create(tmp_path / "run")
        assert not path.exists()
        files.write_whole(path, write)

    monkeypatch.setattr(run_directory, "write_whole", write_while_another_starts)
    run = create(tmp_path / "run")
    assert read_config(run.path) == run.config


def test_an_argument_that_a_run_did_not_have_takes_its_default_and_an_unknown_one_is_refused(run, capsys):
    del run.config["args"]["tau"]
    assert run.read_args(drol.Args).tau == drol.Args().tau
    assert "take their defaults: --tau 0.005" in capsys.readouterr().out
    run.config["args"]["num_winners"] = 2
    with pytest.raises(UserError, match="this one has no --num-winners"):
        run.read_args(drol.Args)


def test_a_run_remembers_all_the_code_that_it_was_trained_with(run, monkeypatch, capsys):
    """As a list, from which update on; what came after the update that it goes on from is trained again."""

    def goes_on(step: int, script: str, common: str = "b") -> list[tuple[int, str, str]]:
        code = {"script": script, "common": common, "commit": "abcdef0123456789", "dirty": True, "modified": True}
        monkeypatch.setattr(algorithms, "code_of", lambda name: code)
        run.note_changes_of_code()
        run.rewind(step)
        assert read_config(run.path) == run.config
        return [(each["step"], each["script"], each["common"]) for each in run.config["code"]]

    assert run.config["code"] == [{"step": 0} | algorithms.code_of("drol")]
    run.note_changes_of_code()
    assert capsys.readouterr().out == ""
    assert goes_on(0, "a") == [(0, "a", "b")]  # from the beginning
    capsys.readouterr()
    assert goes_on(20, "c") == [(0, "a", "b"), (20, "c", "b")]
    said = f"note: drol.py changed since {run.path} was trained (with commit abcdef0123)\n"
    assert capsys.readouterr().out == said
    assert goes_on(40, "c") == [(0, "a", "b"), (20, "c", "b")]
    assert goes_on(40, "c", "d") == [(0, "a", "b"), (20, "c", "b"), (40, "c", "d")]
    assert goes_on(20, "a") == [(0, "a", "b")]


def test_other_data_is_refused(run):
    run.check_data({"path": "x.npz", "sha256": "0"})
    with pytest.raises(UserError, match="SHA-256 differs"):
        run.check_data({"path": "x.npz", "sha256": "1"})


@pytest.mark.parametrize("table", ["train", "eval"])
def test_a_metric_that_comes_later_has_empty_cells_before_and_none_is_lost(run, table):
    path = run.path / f"{table}.csv"
    run.log(table, {"step": 10, "a": 2.5, "b": 1.0})
    run.log(table, {"step": 20, "a": 3.0, "new": 7.0})
    again = reopen(run)
    again.rewind(20)
    again.log(table, {"step": 30, "new": 8.0, "b": 4.0, "newer": 9.0})
    assert path.read_text() == "step,a,b,new,newer\n10,2.5,1,,\n20,3,,7,\n30,,4,8,9\n"
    again.rewind(30)
    assert path.read_text() == "step,a,b,new,newer\n10,2.5,1,,\n20,3,,7,\n30,,4,8,9\n"
    assert read_table(path)[1] == {"step": 20, "a": 3.0, "new": 7.0}
    again.rewind(10)
    assert read_table(path) == [{"step": 10, "a": 2.5, "b": 1.0}]


def test_where_no_success_is_reported_there_was_none():
    """Some environments report it only where there is one. A score that is not there otherwise is not made up."""
    rows = [{"step": 10, "evaluation/return": 2.5}, {"step": 20, "evaluation/success": 50.0, "evaluation/return": 3.0}]
    assert scores(rows) == {10: 0, 20: 50}
    rows[1]["evaluation/normalized_score"] = 4.0
    assert scores(rows) == {20: 4}


def test_a_run_that_was_closed_can_be_opened_again_in_the_same_process(run):
    run.close()
    RunDirectory.open(run.path, "drol")


def test_rewinding_drops_later_rows_and_half_a_row(run):
    for step in (10, 20, 30):
        run.log("train", {"step": step, "critic/loss": step / 7})
        run.log("time", {"step": step, "time/seconds": float(step)})
    run.log("eval", {"step": 20, "evaluation/success": 50.0})
    run.log("eval", {"step": 30, "evaluation/success": 60.0})
    as_it_was = (run.path / "train.csv").read_text()
    with (run.path / "train.csv").open("a") as file:
        file.write("4,0.1")  # a killed process: half of '40,0.123'
    again = reopen(run)
    again.rewind(20)
    assert [row["step"] for row in read_table(run.path / "train.csv")] == [10, 20]
    assert list(again.evaluations) == [20]
    assert again.seconds == 20
    again.log("train", {"step": 30, "critic/loss": 30 / 7})
    assert (run.path / "train.csv").read_text() == as_it_was
    again.rewind(0)
    again.log("train", {"step": 10, "critic/loss": 10 / 7})
    assert (run.path / "train.csv").read_text() == "".join(as_it_was.splitlines(keepends=True)[:2])


def test_rewinding_removes_what_a_kill_or_a_power_cut_left(run, capsys):
    for step in (10, 20):
        run.log("train", {"step": step, "critic/loss": 1.0})
        run.save(step, Checkpoint(TREE))
    (run.path / "checkpoints" / "step-000000030.npz").write_bytes(b"damaged")
    (run.path / "checkpoints" / ".tmp-step-000000040.npz").write_bytes(b"half")
    with (run.path / "train.csv").open("ab") as file:
        file.write(b"\0\0\0\xff\n50,1\n")
    with pytest.raises(UserError, match="row 3 is damaged"):
        read_table(run.path / "train.csv")
    run.rewind(20)
    assert capsys.readouterr().err == ""  # it was written after the checkpoint: nothing is lost
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["step-000000010.npz", "step-000000020.npz"]
    assert [row["step"] for row in read_table(run.path / "train.csv")] == [10, 20]


def test_rows_that_were_written_and_cannot_be_read_are_named_and_kept_beside(run, capsys):
    run.config["args"] |= {"offline_steps": 50, "eval_interval": 20, "log_interval": 10}
    for step in (10, 20, 30, 40, 50):
        run.log("train", {"step": step, "critic/loss": step / 7})
        if run.is_due(step):
            run.log("eval", {"step": step, "evaluation/success": float(step)})
        run.save(step, Checkpoint(TREE))
    for table, row in (("train", 2), ("eval", 1)):
        path = run.path / f"{table}.csv"
        lines = path.read_text().splitlines(keepends=True)
        lines[row] = lines[row].replace(".", "\0") if table == "train" else "2\n"
        path.write_text("".join(lines))
    damaged = (run.path / "train.csv").read_text()
    run.rewind(50)
    assert [row["step"] for row in read_table(run.path / "train.csv")] == [10, 30, 40, 50]
    assert list(run.evaluations) == [40, 50]
    train, evaluation = capsys.readouterr().err.splitlines()
    assert "train.csv is damaged: the rows after updates 20 cannot be read" in train
    assert "eval.csv is damaged: the rows after updates 20 cannot be read" in evaluation
    assert pathlib.Path(train.rsplit(" ", 1)[1]).read_text() == damaged


def test_a_checkpoint_is_kept_until_its_evaluation_is_logged(run):
    run.config["args"] |= {"offline_steps": 100, "eval_interval": 20}
    for step in (10, 20, 30, 40):
        run.save(step, Checkpoint({**TREE, "step": jnp.int32(step)}))
    assert run.checkpoints.steps() == [20, 30, 40]
    assert [run.is_due(step) for step in (0, 10, 20, 100)] == [False, False, True, True]
    runs = Runs([run], run.read_args(drol.Args), None, is_new=False)
    runs.restore(Seeds(runs.seeds), {name: np.asarray(leaf)[None] for name, leaf in TREE.items()}, None)
    missed = [(step, states["step"].tolist()) for step, states in runs.missed_evaluations()]
    assert missed == [(20, [20]), (40, [40])]
    run.log("eval", {"step": 20, "evaluation/success": 1.0})
    run.save(50, Checkpoint(TREE))
    assert run.checkpoints.steps() == [40, 50]
    assert list(reopen(run).evaluations) == [20]


def test_a_state_that_is_not_finite_is_not_saved(run):
    run.save(10, Checkpoint(TREE))
    with pytest.raises(UserError, match=r"'a'.* is not finite after update 20.*step-000000010"):
        run.save(20, Checkpoint({**TREE, "a": jnp.array([[1.0, jnp.nan]])}))


def test_the_normalised_score_is_the_score_where_there_is_one():
    row = {"step": 1, "evaluation/return": 9.0, "evaluation/success": 8.0, "evaluation/normalized_score": 7.0}
    assert score_metric([row]) == "evaluation/normalized_score"
    del row["evaluation/normalized_score"]
    assert score_metric([row]) == "evaluation/success"
    del row["evaluation/success"]
    assert score_metric([row]) == "evaluation/return"


def test_checkpoints_come_back_and_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        Checkpoints(tmp_path).save(step, {**TREE, "step": jnp.int32(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002.npz", "step-000000003.npz"]
    assert Checkpoints(tmp_path).sound_steps(TREE) == {2, 3}
    restored = Checkpoints(tmp_path).restore(3, TREE)
    assert restored["step"] == 3
    np.testing.assert_array_equal(restored["a"], TREE["a"])


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "other"])
def test_a_damaged_checkpoint_is_named_and_left_out(tmp_path, capsys, damage):
    Checkpoints(tmp_path).save(1, {**TREE, "step": jnp.int32(1)})
    newest = Checkpoints(tmp_path).save(2, TREE)
    content = bytearray(newest.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = b""
    elif damage == "flip":
        content[content.index(np.float32(4.0).tobytes())] ^= 1  # a bit of the array itself
    else:
        Checkpoints(tmp_path).save(2, {"a": jnp.zeros(3), "step": jnp.int32(2)})
        content = newest.read_bytes()
    newest.write_bytes(content)
    assert Checkpoints(tmp_path).sound_steps(TREE) == {1}
    assert f"{newest} is damaged" in capsys.readouterr().err


@pytest.mark.slow(1)
def test_no_flipped_bit_of_an_arrays_header_loads_other_numbers(tmp_path):
    tree = {"a": np.random.default_rng(0).standard_normal((512, 512), np.float32)}
    path = Checkpoints(tmp_path).save(1, tree)
    content = bytearray(path.read_bytes())
    header = content.index(b"\x93NUMPY")
    for bit in range(8 * 128):
        content[header + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        content[header + bit // 8] ^= 1 << bit % 8
        with pytest.raises(DAMAGE):
            Checkpoints(tmp_path).restore(1, tree)
    path.write_bytes(content)
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore(1, tree)["a"], tree["a"])


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    assert Checkpoints(tmp_path).sound_steps(TREE) == set()
    Checkpoints(tmp_path).save(1, TREE).write_bytes(b"PK")
    with pytest.raises(UserError, match="all 1 checkpoints in"):
        Checkpoints(tmp_path).sound_steps(TREE)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = Checkpoints(tmp_path).save(1, TREE)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        Checkpoints(tmp_path).save(1, {**TREE, "step": jnp.int32(9)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_says_which_file_and_how_to_go_on(run, monkeypatch):
    run.save(10, Checkpoint(TREE))

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for write in (
        lambda: run.save(20, Checkpoint(TREE)),
        lambda: run.log("eval", {"step": 20, "evaluation/success": 1.0}),
    ):
        with pytest.raises(
            UserError, match=rf"No space left on device: {run.path}/.*000010\.npz; .*--resume {run.path}"
        ):
            write()


def test_data_that_has_moved_is_found_where_it_would_be_today(run, tmp_path, monkeypatch):
    run.config["dataset"]["path"] = "/vanished/x.npz"
    run.config["args"]["dataset_dir"] = str(tmp_path)
    assert run.find_data(drol.Args()) == pathlib.Path("/vanished/x.npz")
    (tmp_path / "x.npz").touch()
    assert run.find_data(drol.Args()) == tmp_path / "x.npz"
    run.config["args"]["dataset_dir"] = "/vanished"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "home/.ogbench/data/x.npz"
    place.parent.mkdir(parents=True)
    place.touch()
    assert run.find_data(drol.Args()) == place
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    run.spec = resolve("pen-human")
    (tmp_path / "minari/D4RL/pen/human-v2").mkdir(parents=True)
    assert run.find_data(drol.Args()) == tmp_path / "minari/D4RL/pen/human-v2"
