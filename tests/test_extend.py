"""Runs that go on further than they were to."""

import dataclasses
import json
import pathlib

import drol
from common.run_directory import read_config
from common.tables import read_table

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("short_episodes")
SMALL = {"env_id": "pointmaze-medium", "hidden_sizes": (8,), "batch_size": 8, "log_interval": 10, "eval_episodes": 1}


@pytest.fixture
def train(pointmaze_file, tmp_path):
    """Of a run in a folder of this name, or of what goes on."""

    def train(name: str | None = None, **settings) -> pathlib.Path:
        new = SMALL | {"dataset_path": pointmaze_file, "eval_workers": 1, "run_dir": tmp_path / str(name)}
        (outcome, *_) = drol.main(drol.Args(**((new | settings) if name else settings)))
        return outcome.path

    return train


def newest(run: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(max((run / "checkpoints").iterdir())) as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same_bits(a: pathlib.Path, b: pathlib.Path) -> None:
    a, b = newest(a), newest(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow(5)
def test_a_run_that_is_trained_longer_is_the_run_that_had_been_started_so(train, capsys):
    longer = train("longer", offline_steps=60, eval_interval=20)
    extended = train("extended", offline_steps=30, eval_interval=50)
    capsys.readouterr()
    train(resume=(extended,), offline_steps=60, eval_interval=20)
    assert_same_bits(extended, longer)
    printed = capsys.readouterr()
    note = "goes on after update 30 with --eval-interval 20 (before: 50), --offline-steps 60 (before: 30)"
    assert f"note: {extended} {note}\n" in printed.out
    assert printed.err == ""  # nothing is taken for lost
    config = read_config(extended)
    assert config["changes"] == [{"step": 30, "eval_interval": [50, 20], "offline_steps": [30, 60]}]
    same = {name: value for name, value in config["args"].items() if name != "run_dir"}
    assert same == {name: value for name, value in read_config(longer)["args"].items() if name != "run_dir"}
    assert [row["step"] for row in read_table(extended / "eval.csv")] == [30, 40, 60]
    assert (extended / "train.csv").read_bytes() == (longer / "train.csv").read_bytes()
    train(resume=(extended,))  # once more, with nothing to do
    assert read_config(extended) == config


@pytest.mark.slow(14)
def test_a_finished_run_is_fine_tuned_twice_each_in_a_folder_of_its_own(train, tmp_path):
    offline = train("offline", offline_steps=20, num_seeds=2).parent
    paths = tuple(sorted(offline.iterdir()))
    before = [(file, file.read_bytes()) for file in sorted(offline.rglob("*.*")) if file.is_file()]
    started = train("started", offline_steps=20, online_steps=15, num_seeds=2)
    once = train(resume=paths, online_steps=15, run_dir=tmp_path / "once")
    assert once == tmp_path / "once" / "seed0"
    assert_same_bits(once, started)
    assert_same_bits(tmp_path / "once" / "seed1", started.with_name("seed1"))
    twice = train(resume=paths[:1], online_steps=5, run_dir=tmp_path / "twice")
    assert [(file, file.read_bytes()) for file, _ in before] == before
    ids = {read_config(path)["id"] for path in (*paths, once, twice)}
    assert len(ids) == 4
    assert read_config(twice)["continues"] == str(paths[0])

    # Further, with a ring that has grown around what is in it.
    ring = newest(once)
    train(resume=(once,), online_steps=25)
    grown = newest(once)
    assert grown[".replay.ring.actions"].shape == (25, 2)
    np.testing.assert_array_equal(grown[".replay.ring.actions"][:15], ring[".replay.ring.actions"])
    assert np.abs(grown[".replay.ring.actions"][15:]).min() > 0
    assert (ring[".replay.added"], grown[".replay.added"]) == (15, 25)


@pytest.mark.slow(3)
def test_what_decides_what_is_learned_stays(train, refusal):
    run = train("run", offline_steps=20, online_steps=5)
    config = (run / "config.json").read_bytes()
    for words, message in [
        (("--tau", 0.1), "--resume takes no --tau: the run has it already, and keeps it"),
        (("--offline-steps", 10), "--offline-steps 10: the run has 20, and can be trained longer, not shorter"),
        (
            ("--offline-steps", 30),
            "--offline-steps 30: fine-tuning online has begun after 20; --online-steps can be more",
        ),
        (("--online-steps", 4), "--online-steps 4: the run has 5, and can be trained longer, not shorter"),
        (("--run-dir", run), f"{run} holds a run; name another --run-dir"),
    ]:
        assert message in refusal("--resume", run, *words)
    assert (run / "config.json").read_bytes() == config


@pytest.mark.slow(2)
def test_an_older_run_has_no_changes(train):
    run = train("run", offline_steps=10)
    config = json.loads((run / "config.json").read_text())
    del config["changes"]
    (run / "config.json").write_text(json.dumps(config))
    train(resume=(run,), offline_steps=20)
    assert [change["step"] for change in read_config(run)["changes"]] == [10]
    assert dataclasses.asdict(drol.Args())["eval_interval"] is None
