"""experiments/accelerator.py: what is known is on disk, whatever becomes of the rest."""

import json
import tarfile
import time

import accelerator

import pytest


def read(folder):
    return [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]


@pytest.fixture
def args(tmp_path):
    return accelerator.AcceleratorArgs(tmp_path, width=8, depth=1, updates=20)


def test_a_program_that_fails_is_a_fact_and_the_others_go_on(args):
    def fails():
        raise RuntimeError("no such option")

    programs = {
        "a": fails,
        "b": lambda: accelerator.Program(lambda: 1 / 0, 1),
        "c": lambda: accelerator.Program(lambda: time.sleep(0.02), 2),
    }
    accelerator.measure(args, accelerator.Facts(args.out), "stage", programs)
    facts = read(args.out)
    assert [fact["program"] for fact in facts if "error" in fact] == ["a", "b"]
    (timed,) = (fact for fact in facts if "ms" in fact)
    assert timed["program"] == "c"
    assert 10 <= timed["ms"] < 100  # 20 ms of 2 updates
    assert sorted(timed["all"])[2] == timed["ms"]


@pytest.mark.slow(4)
def test_a_real_program_its_facts_and_its_table(args):
    facts = accelerator.Facts(args.out)
    facts(device="a card", platform="cpu", jax="1.2", hidden_sizes=[8])
    programs = {"DROL(16)": lambda: accelerator.loop(args, accelerator.drol)}
    ready = accelerator.measure(args, facts, "one seed", programs)
    assert int(ready["DROL(16)"].call().step[0]) == 20 * (1 + accelerator.ROUNDS + 1)
    with tarfile.open(args.out / "programs.tar") as archive:
        assert archive.getnames() == ["one-seed-drol-16.txt.gz"]
        assert b"while" in accelerator.gzip.decompress(archive.extractfile("one-seed-drol-16.txt.gz").read())
    accelerator.render(args.out)
    table = (args.out / "facts.md").read_text()
    assert table.startswith("a card, jax 1.2; batch 256, hidden sizes 8; medians of 5.")
    assert "| one seed | DROL(16)  |" in table


def test_kernels_of_a_trace_are_those_on_a_device(tmp_path):
    trace = {
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
            {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "Stream #14(Compute)"}},
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": 8, "args": {"name": "XLA Ops"}},
            {"ph": "X", "name": "gemm", "pid": 1, "tid": 7, "dur": 3.0},
            {"ph": "X", "name": "gemm", "pid": 1, "tid": 7, "dur": 4.0},
            {"ph": "X", "name": "gelu", "pid": 1, "tid": 7, "dur": 1.0},
            {"ph": "X", "name": "gemm", "pid": 1, "tid": 8, "dur": 100.0},  # the same again, by XLA's name
            {"ph": "X", "name": "python", "pid": 2, "tid": 7, "dur": 100.0},
        ]
    }
    folder = tmp_path / "plugins" / "today"
    folder.mkdir(parents=True)
    (folder / "perfetto_trace.json.gz").write_bytes(accelerator.gzip.compress(json.dumps(trace).encode()))
    assert accelerator.kernel_durations(tmp_path) == {"gemm": (7.0, 2), "gelu": (1.0, 1)}


def test_out_of_time_it_says_what_was_left_out_and_few_files_remain(tmp_path):
    accelerator.main(accelerator.AcceleratorArgs(tmp_path, seconds=0))
    first, *skipped, last = read(tmp_path)
    assert first["device"] == "cpu"
    assert [fact["stage"] for fact in skipped] == ["one seed", "eight seeds", "profile"]
    assert all(fact["skipped"] for fact in skipped)
    assert last["measured"]
    assert {path.name for path in tmp_path.iterdir()} == {"facts.jsonl", "facts.md"}
