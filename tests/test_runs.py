"""Runs of several seeds that go on as one."""

import collections
import shutil
import sys
import types
from typing import NamedTuple

import drol
from common.checkpoints import Checkpoints
from common.env_ids import resolve
from common.errors import UserError
from common.run_directory import Checkpoint, Learned, RunDirectory
from common.runs import Runs, new_paths
from common.seeds import Seeds

import jax.numpy as jnp
import numpy as np
import pytest
from toys import completed, new_run

STATE = {"a": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(7)}  # of one seed
CHECKPOINT = Checkpoint(STATE)


def stacked(*states: dict) -> dict:
    return {name: np.stack([state[name] for state in states]) for name in STATE}


def together(each: list[RunDirectory]) -> Runs:
    return Runs(each, each[0].read_args(drol.Args), None, is_new=False)


def restored(each: list[RunDirectory]) -> tuple[Runs, dict]:
    """Runs that go on where they stand, and their states."""
    runs = together(each)
    return runs, runs.restore(Seeds(runs.seeds), stacked(*[STATE for _ in each]), None)[0]


def directories(tmp_path, seeds=(0, 1), **different) -> list[RunDirectory]:
    """Of these seeds; `different` are arguments of the last one alone."""
    runs = []
    for seed in seeds:
        given = drol.Args(env_id="cube-single", seed=seed, **(different if seed == seeds[-1] else {}))
        runs.append(new_run(tmp_path / f"seed{seed}", drol, *completed(drol, given), seeds_together=seeds))
    return runs


def evaluated_every_20(tmp_path, **kwargs) -> list[RunDirectory]:
    runs = directories(tmp_path, **kwargs)
    for run in runs:
        run.config["args"] |= {"offline_steps": 100, "eval_interval": 20}
    return runs


def test_a_kill_during_the_first_checkpoint_leaves_a_run_that_starts_again(tmp_path):
    (run,) = directories(tmp_path, seeds=[0])
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / ".tmp-step-000000010.npz").write_bytes(b"half")
    assert together([run]).last_common_step(CHECKPOINT) == 0


def test_an_evaluation_without_a_sound_checkpoint_is_given_up_in_one_line(tmp_path, capsys):
    (run,) = evaluated_every_20(tmp_path, seeds=[0])
    for step in (20, 30):
        run.save(step, CHECKPOINT)
    (run.path / "checkpoints" / "step-000000020.npz").write_bytes(b"damaged")
    runs, _ = restored([run])
    assert list(runs.missed_evaluations()) == []
    assert "the evaluation after update 20 is lost" in capsys.readouterr().err


def test_seeds_go_on_from_the_newest_checkpoint_that_all_have(tmp_path):
    each = directories(tmp_path)
    runs = together(each)
    assert runs.seeds == [0, 1]
    assert runs.last_common_step(CHECKPOINT) == 0
    states = stacked(*({"a": i * STATE["a"], "step": np.int32(10)} for i in (1, 2, 3)))
    runs.save(10, states, None)  # with an empty place beside the two seeds
    each[0].save(20, CHECKPOINT)  # killed before the other seed's was written
    runs, gone_on = restored(each)
    assert runs.step == 10
    np.testing.assert_array_equal(gone_on["a"], states["a"][:2])
    assert [run.checkpoints.steps() for run in each] == [[10], [10]]
    for step in (30, 40):
        each[0].save(step, CHECKPOINT)
    with pytest.raises(UserError, match=r"resume each of them alone: .*seed0 at 40, .*seed1 at 10"):
        runs.last_common_step(CHECKPOINT)


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path):
    (run,) = directories(tmp_path, seeds=[0])
    runs = together([run])
    runs.save(10, stacked(STATE), None)
    written = (run.path / "checkpoints" / "step-000000010.npz").stat().st_ino  # a new file would be another one
    runs.save(10, stacked(STATE), None)
    assert (run.path / "checkpoints" / "step-000000010.npz").stat().st_ino == written


def test_seeds_killed_between_their_first_checkpoints_begin_again(tmp_path):
    each = directories(tmp_path)
    each[0].save(10, CHECKPOINT)
    assert together(each).last_common_step(CHECKPOINT) == 0


def test_a_run_whose_checkpoints_are_gone_keeps_its_logs(tmp_path):
    each = evaluated_every_20(tmp_path)
    for run in each:
        run.save(20, CHECKPOINT)
        run.log("eval", {"step": 20, "evaluation/success": 1.0})
    logs = [(run.path / "eval.csv").read_bytes() for run in each]
    for gone in each:  # of one of them, then of both
        shutil.rmtree(gone.path / "checkpoints")
        with pytest.raises(UserError, match=r"seed0.* without checkpoints; put them back"):
            restored(each)
    assert [(run.path / "eval.csv").read_bytes() for run in each] == logs


def test_runs_that_began_apart_do_not_begin_again_because_one_of_them_has_to(tmp_path):
    a, b = directories(tmp_path / "a", seeds=[0]), directories(tmp_path / "b", seeds=[1])
    a[0].save(10, CHECKPOINT)
    with pytest.raises(UserError, match="resume each of them alone"):
        restored([*a, *b])
    assert a[0].checkpoints.steps() == [10]


def test_an_evaluation_that_one_seed_has_logged_is_made_up_for_by_the_other(tmp_path):
    each = evaluated_every_20(tmp_path)
    for run in each:
        for step in (20, 30, 40, 50):
            run.save(step, Checkpoint({**STATE, "step": jnp.int32(step)}))
    for step in (20, 40):
        each[0].log("eval", {"step": step, "evaluation/success": 1.0})  # its checkpoint of 20 goes
    assert (each[0].checkpoints.steps(), each[1].checkpoints.steps()) == ([40, 50], [20, 40, 50])
    runs, _ = restored(each)
    missed = [(step, states["step"].tolist()) for step, states in runs.missed_evaluations()]
    assert missed == [(20, [20, 20]), (40, [40, 40])]
    assert runs.evaluation_is_due(20)
    logged = runs.log_evaluation(20, [{"evaluation/success": 2.0}, {"evaluation/success": 3.0}])
    assert logged == [{"evaluation/success": 3.0}]
    assert [run.evaluations[20]["evaluation/success"] for run in each] == [1.0, 3.0]  # no row twice
    assert not runs.evaluation_is_due(20)


def test_runs_that_differ_in_more_than_the_seed_do_not_go_on_together(tmp_path):
    paths = []
    for run in directories(tmp_path, tau=0.5):
        run.close()
        paths.append(run.path)
    with pytest.raises(UserError, match="they differ in --tau"):
        Runs.reopen(drol.Args(resume=tuple(paths)), "drol", drol.published_settings)


def test_each_seed_has_a_folder_of_its_own(tmp_path):
    spec = resolve("cube-single")
    (run,) = directories(tmp_path, seeds=[0])
    assert new_paths(tmp_path / "new", "drol", spec, [7]) == [tmp_path / "new"]
    assert new_paths(tmp_path / "new", "drol", spec, [7, 8]) == [tmp_path / "new/seed7", tmp_path / "new/seed8"]
    assert len({path.name.split("-seed")[1] for path in new_paths(None, "drol", spec, [7, 8])}) == 2
    assert new_paths(None, "drol", spec, [7]) != new_paths(None, "drol", spec, [7])  # of jobs of the same second
    run.log("train", {"step": 1, "critic/loss": 1.0})
    with pytest.raises(UserError, match="holds a run"):
        new_paths(run.path, "drol", spec, [0])


def test_a_checkpoint_that_is_pruned_while_it_is_read_gives_way_to_the_next(tmp_path, monkeypatch):
    """And of each only the parameters are read: another optimiser's state beside them does not matter."""
    (run,) = directories(tmp_path, seeds=[0])
    init_state = lambda key: Learned({"a": jnp.zeros(2)})  # noqa: E731
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.newest_params(init_state)

    class State(NamedTuple):
        params: dict
        moments: jnp.ndarray

    def save(step):
        run.save(step, Checkpoint(State({"a": jnp.full(2, step, jnp.float32)}, moments=jnp.zeros(3))))

    for step in (10, 20):
        save(step)
    restore, calls = Checkpoints.restore, []

    def train_on(checkpoints, step, like):
        calls.append(step)
        if len(calls) in (1, 3):  # two updates while the first file is opened, two before the newest is read again
            for _ in range(2):
                save(run.checkpoints.steps()[-1] + 10)
        return restore(checkpoints, step, like)

    monkeypatch.setattr(Checkpoints, "restore", train_on)
    step, params = run.newest_params(init_state)
    assert step == params["a"][0] >= 40


def test_the_headline_is_the_mean_of_the_last_three_and_never_the_best(tmp_path, capsys):
    (run,) = directories(tmp_path, seeds=[0])
    run.config["args"] |= {"offline_steps": 4, "eval_interval": 1}
    for step, success in [(1, 100.0), (2, 10.0), (3, 20.0), (4, 60.0)]:
        run.log("eval", {"step": step, "evaluation/success": success})
    runs = Runs([run], drol.Args(offline_steps=4), None, is_new=False)
    assert runs.outcomes(4) == [(run.path, 4, 30.0)]
    assert "success (%) 30.0, mean of the evaluations after 2, 3, 4 updates" in capsys.readouterr().out
    runs.spec = resolve("pen-human")  # the last one on D4RL's own sets
    assert runs.outcomes(4) == [(run.path, 4, 60.0)]
    assert "success (%) 60.0, evaluation after 4 updates" in capsys.readouterr().out
    for env_id in ("reach/scripted-v0", "reach:Reach-v0"):  # of everything else the same, whatever its format
        runs.spec = resolve(env_id)
        assert runs.outcomes(4) == [(run.path, 4, 30.0)]


def test_seeds_that_have_not_ended_say_how_they_go_on_together(tmp_path, capsys):
    each = evaluated_every_20(tmp_path)
    each[0].log("eval", {"step": 100, "evaluation/success": 1.0})  # the other's last evaluation was not made
    assert [outcome.score for outcome in together(each).outcomes(100)] == [None, None]
    assert f"--resume {each[0].path} {each[1].path}\n" in capsys.readouterr().out


def test_rows_are_means_of_what_was_there_to_the_same_bits_however_cut(tmp_path):
    each = directories(tmp_path)
    q = (np.random.default_rng(0).normal(size=(2, 1000))).astype(np.float32)

    def means(*cuts: int) -> list[dict[str, float]]:
        runs = together(each)
        runs.add_metrics(0, {"q": q[:, 0]})  # a single update
        for first, end in zip((1, *cuts), (*cuts, 1000), strict=True):
            runs.add_metrics(first, {"q": q[:, first:end]})
        return runs.take_means()

    whole = means()
    assert whole == means(3, 400, 401) == means(*range(2, 1000))
    np.testing.assert_allclose([row["q"] for row in whole], q.mean(1, dtype=np.float64), rtol=1e-12)

    runs = together(each)
    runs.add_metrics(0, {"q": q[:, :3]})
    runs.add_metrics(3, {"q": q[:, 3:4], "new": q[:, 3:4]})  # after a resume, in the middle of an interval
    np.testing.assert_allclose([row["new"] for row in runs.take_means()], q[:, 3], rtol=1e-12)
    runs.add_metrics(4, {"new": q[:, 4]})
    assert [list(row) for row in runs.take_means()] == [["new"], ["new"]]  # and begins anew


def test_a_metric_that_is_not_finite_is_named_with_its_seed_and_update(tmp_path):
    runs = together(directories(tmp_path, seeds=(3, 4)))
    q, r = np.ones((2, 5), np.float32), np.ones((2, 5), np.float32)
    runs.add_metrics(20, {"q": q, "r": r})
    q[1, 3] = r[1, 2] = np.inf
    with pytest.raises(UserError, match=r"not finite \(seed 4, update 28\): r; .* before its first checkpoint"):
        runs.add_metrics(25, {"q": q, "r": r})


def test_each_seed_is_a_run_of_its_own_for_weights_and_biases(tmp_path, monkeypatch):
    """And the seeds of another experiment are others, although their folders have the same names."""
    started, logged = {}, collections.defaultdict(list)

    class Recorder(types.ModuleType):
        def init(self, *, id, **settings):
            started[id] = settings
            run = types.SimpleNamespace(log=logged[id].append, finish=lambda: logged[id].append("finished"))
            run.define_metric = lambda *args, **kwargs: None
            return run

    monkeypatch.setitem(sys.modules, "wandb", Recorder("wandb"))
    for experiment in ("a", "b"):
        runs = together(directories(tmp_path / experiment))
        for run in runs.each:
            run.track("project")
        runs.log("train", 10, [{"q": 1.0}, {"q": 2.0}])
        runs.close()
    assert len(started) == 4
    assert all(settings["config"]["id"] == id for id, settings in started.items())
    assert list(logged.values()) == [[{"update": 10, "q": q}, "finished"] for q in (1.0, 2.0, 1.0, 2.0)]
