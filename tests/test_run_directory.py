"""Logs and checkpoints on disk."""

import dataclasses
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import drol
from common import checkpoints
from common.env_ids import resolve
from common.errors import UserError
from common.run_directory import (
    RunDirectory,
    last_common_step,
    missed_evaluations,
    new_paths,
    print_outcome,
    read_table,
    score_metric,
    shared_args,
)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    spec = resolve("cube-single")
    args, origins = drol.resolve_settings(drol.Args(env_id="cube-single", dataset_path=pathlib.Path("a/b.npz")), spec)
    provenance = {"source": "file", "path": "x.npz", "sha256": "0"}
    return RunDirectory.create(tmp_path / "run", "drol", spec, args, origins, provenance, [0])


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
    with pytest.raises(UserError, match="in use by another process"):
        RunDirectory.open(run.path, "drol")
    with pytest.raises(UserError, match="holds a run"):
        RunDirectory.create(run.path, "drol", resolve("scene"), drol.Args(), {}, {}, [0])
    with pytest.raises(UserError, match=r"a run of drol\.py, not of fql\.py"):
        RunDirectory.open(run.path, "fql")
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="not a run directory"):
            RunDirectory.open(folder, "drol")
    (run.path / "config.json").write_text('{"algorithm": "drol"')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        RunDirectory.open(run.path, "drol")


def test_another_versions_arguments_are_named(run):
    del run.config["args"]["tau"]
    with pytest.raises(UserError, match="arguments that differ: tau"):
        run.read_args(drol.Args)


def test_other_data_is_refused(run):
    run.check_data({"path": "x.npz", "sha256": "0"})
    with pytest.raises(UserError, match="SHA-256 differs"):
        run.check_data({"path": "x.npz", "sha256": "1"})


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


def test_rewinding_removes_what_a_kill_or_a_power_cut_left(run):
    for step in (10, 20):
        run.log("train", {"step": step, "critic/loss": 1.0})
        run.save(step, TREE)
    (run.path / "checkpoints" / "step-000000030.npz").write_bytes(b"damaged")
    (run.path / "checkpoints" / ".tmp-step-000000040.npz").write_bytes(b"half")
    with (run.path / "train.csv").open("ab") as file:
        file.write(b"\0\0\0\xff\n50,1\n")
    with pytest.raises(UserError, match="row 3 is damaged"):
        read_table(run.path / "train.csv")
    run.rewind(20)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["step-000000010.npz", "step-000000020.npz"]
    assert [row["step"] for row in read_table(run.path / "train.csv")] == [10, 20]


def test_a_kill_during_the_first_checkpoint_leaves_a_run_that_starts_again(run):
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / ".tmp-step-000000010.npz").write_bytes(b"half")
    assert last_common_step([run], TREE) == 0


def test_a_checkpoint_is_kept_until_its_evaluation_is_logged(run):
    run.config["args"] |= {"offline_steps": 100, "eval_interval": 20}
    for step in (10, 20, 30, 40):
        run.save(step, {**TREE, "step": jnp.int32(step)})
    assert run.checkpoint_steps() == [20, 30, 40]
    assert [run.is_due(step) for step in (0, 10, 20, 100)] == [False, False, True, True]
    ((step, (state,)),) = missed_evaluations([run], TREE)  # that of 40 is the resumed loop's own
    assert (step, state["step"]) == (20, 20)
    run.log("eval", {"step": 20, "evaluation/success": 1.0})
    run.save(50, TREE)
    assert run.checkpoint_steps() == [40, 50]
    assert list(reopen(run).evaluations) == [20]


def test_an_evaluation_without_a_sound_checkpoint_is_given_up_in_one_line(run, capsys):
    run.config["args"] |= {"offline_steps": 100, "eval_interval": 20}
    for step in (20, 30):
        run.save(step, TREE)
    (run.path / "checkpoints" / "step-000000020.npz").write_bytes(b"damaged")
    assert list(missed_evaluations([run], TREE)) == []
    assert "the evaluation after update 20 is lost" in capsys.readouterr().err


def seed_runs(tmp_path, **different) -> list[RunDirectory]:
    spec = resolve("cube-single")
    runs = []
    for seed in (0, 1):
        args, origins = drol.resolve_settings(drol.Args(seed=seed, **(different if seed == 1 else {})), spec)
        provenance = {"source": "file", "path": "x.npz", "sha256": "0"}
        runs.append(RunDirectory.create(tmp_path / f"seed{seed}", "drol", spec, args, origins, provenance, [0, 1]))
    return runs


def test_seeds_go_on_from_the_newest_checkpoint_that_all_have(tmp_path):
    runs = seed_runs(tmp_path)
    assert shared_args(runs, drol.Args) == runs[0].read_args(drol.Args)
    assert last_common_step(runs, TREE) == 0
    for step in (10, 20):
        for run in runs:
            run.save(step, TREE)
    runs[0].save(30, TREE)  # killed before the other seed's was written
    assert last_common_step(runs, TREE) == 20
    runs[0].save(40, TREE)
    with pytest.raises(UserError, match=r"resume each of them alone: .*seed0 at 40, .*seed1 at 20"):
        last_common_step(runs, TREE)


def test_seeds_killed_between_their_first_checkpoints_begin_again(tmp_path):
    runs = seed_runs(tmp_path)
    runs[0].save(10, TREE)
    assert last_common_step(runs, TREE) == 0


def test_an_evaluation_that_one_seed_has_logged_is_made_up_for_by_the_other(tmp_path):
    runs = seed_runs(tmp_path)
    for run in runs:
        run.config["args"] |= {"offline_steps": 100, "eval_interval": 20}
        for step in (20, 30, 40, 50):
            run.save(step, {**TREE, "step": jnp.int32(step)})
    for step in (20, 40):
        runs[0].log("eval", {"step": step, "evaluation/success": 1.0})  # its checkpoint of 20 goes
    assert (runs[0].checkpoint_steps(), runs[1].checkpoint_steps()) == ([40, 50], [20, 40, 50])
    missed = list(missed_evaluations(runs, TREE))
    assert [(step, [int(state["step"]) for state in states]) for step, states in missed] == [
        (20, [20, 20]),
        (40, [40, 40]),
    ]


def test_runs_that_differ_in_more_than_the_seed_do_not_go_on_together(tmp_path):
    with pytest.raises(UserError, match="they differ in --tau"):
        shared_args(seed_runs(tmp_path, tau=0.5), drol.Args)


def test_each_seed_has_a_folder_of_its_own(run, tmp_path):
    spec = resolve("cube-single")
    assert new_paths(tmp_path / "new", "drol", spec, [7]) == [tmp_path / "new"]
    assert new_paths(tmp_path / "new", "drol", spec, [7, 8]) == [tmp_path / "new/seed7", tmp_path / "new/seed8"]
    assert len({path.name.split("-seed")[1] for path in new_paths(None, "drol", spec, [7, 8])}) == 2
    with pytest.raises(UserError, match="holds a run"):
        new_paths(run.path, "drol", spec, [0])


def test_a_state_that_is_not_finite_is_not_saved(run):
    run.save(10, TREE)
    with pytest.raises(UserError, match=r"'a'.* is not finite after update 20.*step-000000010"):
        run.save(20, {**TREE, "a": jnp.array([[1.0, jnp.nan]])})


def test_the_headline_is_the_mean_of_the_last_three_and_never_the_best(run, capsys):
    run.config["args"] |= {"offline_steps": 4, "eval_interval": 1}
    for step, success in [(1, 100.0), (2, 10.0), (3, 20.0), (4, 60.0)]:
        run.log("eval", {"step": step, "evaluation/success": success})
    print_outcome([run], 4, 4)
    assert "success (%) 30.0, mean of the evaluations after 2, 3, 4 updates" in capsys.readouterr().out
    run.config["environment"]["suite"] = "d4rl"
    print_outcome([run], 4, 4)
    assert "success (%) 60.0, evaluation after 4 updates" in capsys.readouterr().out


def test_the_normalised_score_is_the_score_where_there_is_one():
    row = {"step": 1, "evaluation/return": 9.0, "evaluation/success": 8.0, "evaluation/normalized_score": 7.0}
    assert score_metric([row]) == "evaluation/normalized_score"
    del row["evaluation/normalized_score"]
    assert score_metric([row]) == "evaluation/success"
    del row["evaluation/success"]
    assert score_metric([row]) == "evaluation/return"


def test_checkpoints_come_back_and_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {**TREE, "step": jnp.int32(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002.npz", "step-000000003.npz"]
    assert checkpoints.sound_steps(tmp_path, TREE) == {2, 3}
    restored = checkpoints.restore(tmp_path, 3, TREE)
    assert restored["step"] == 3
    np.testing.assert_array_equal(restored["a"], TREE["a"])


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "other"])
def test_a_damaged_checkpoint_is_named_and_left_out(tmp_path, capsys, damage):
    checkpoints.save(tmp_path, 1, {**TREE, "step": jnp.int32(1)})
    newest = checkpoints.save(tmp_path, 2, TREE)
    content = bytearray(newest.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = b""
    elif damage == "flip":
        content[content.index(np.float32(4.0).tobytes())] ^= 1  # a bit of the array itself
    else:
        checkpoints.save(tmp_path, 2, {"a": jnp.zeros(3), "step": jnp.int32(2)})
        content = newest.read_bytes()
    newest.write_bytes(content)
    assert checkpoints.sound_steps(tmp_path, TREE) == {1}
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    assert checkpoints.sound_steps(tmp_path, TREE) == set()
    checkpoints.save(tmp_path, 1, TREE).write_bytes(b"PK")
    with pytest.raises(UserError, match="all 1 checkpoints in"):
        checkpoints.sound_steps(tmp_path, TREE)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = checkpoints.save(tmp_path, 1, TREE)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path, 1, {**TREE, "step": jnp.int32(9)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
