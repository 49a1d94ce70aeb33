"""Folders of shards: many files that are one data set, found, downloaded one by one, damaged."""

import functools
import http.server
import os
import pathlib
import signal
import threading

import table
from common import machine, processes
from common.arguments import RunArgs
from common.data import ogbench_npz, recipes, sources
from common.env_ids import SHARDS_100M, resolve
from common.errors import UserError
from common.files import sha256
from common.policy import load_policy

import jax
import numpy as np
import pytest

MAZE = resolve("pointmaze-medium")
make_env = functools.cache(ogbench_npz.make_env)


@pytest.fixture(autouse=True)
def one_environment_of_each_kind(monkeypatch):
    monkeypatch.setattr(ogbench_npz, "make_env", make_env)


@pytest.fixture
def folder(pointmaze_file, tmp_path) -> pathlib.Path:
    """A shard an episode, and one to validate on, as OGBench's are named."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with np.load(pointmaze_file) as file:
        for shard in range(4):
            rows = slice(1001 * shard, 1001 * (shard + 1))
            np.savez_compressed(folder / f"maze-v0-{shard:03}.npz", **{name: file[name][rows] for name in file})
        np.savez(folder / "maze-v0-000-val.npz", **{name: file[name][:1001] for name in file})
    return folder


def load(folder: pathlib.Path, **arguments):
    return sources.load(MAZE, RunArgs(dataset_path=folder, **arguments))


def test_shards_are_one_data_set(folder, pointmaze_file):
    data, origin = load(folder)
    whole, _ = sources.load(MAZE, RunArgs(dataset_path=pointmaze_file))
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(array, getattr(data, name), err_msg=name)
    paths = [path for path in folder.iterdir() if "val" not in path.name]
    assert origin["shards"] == 4
    assert origin["bytes"] == sum(path.stat().st_size for path in paths)
    assert sources.describe(origin) == f"file: 4 shards, 4,000 transitions ({folder})"
    for number, path in enumerate(sorted(paths)):  # by any names: what is in them counts, not what they are called
        path.rename(folder / f"{number}x.npz")
    assert load(folder)[1]["sha256"] == origin["sha256"]


def test_the_first_shards(folder):
    two, origin = load(folder, num_shards=2)
    four, whole = load(folder)
    np.testing.assert_array_equal(two.observations, four.observations[:2002])
    np.testing.assert_array_equal(two.transitions, four.transitions[:2000])
    assert origin["sha256"] != whole["sha256"]
    (folder / "maze-v0-003.npz").write_bytes(b"never looked at")
    assert load(folder, num_shards=2)[1] == origin
    with pytest.raises(UserError, match=r"--num-shards 5: .*shards has 4$"):
        load(folder, num_shards=5)


def test_a_file_has_no_shards(pointmaze_file):
    with pytest.raises(UserError, match="--num-shards 2 is for a folder of OGBench's shards"):
        load(pointmaze_file, num_shards=2)
    with pytest.raises(UserError, match="--num-shards 2 is for a folder of OGBench's shards"):
        sources.load(MAZE, RunArgs(num_shards=2, dataset_dir=pathlib.Path("/proc/nowhere")))  # before it is looked for


def test_a_shard_that_is_missing_in_between_is_named(folder):
    (folder / "maze-v0-001.npz").unlink()
    with pytest.raises(UserError, match=r"maze-v0-001.npz is missing, between maze-v0-000.npz and maze-v0-002.npz"):
        load(folder)
    assert load(folder, num_shards=1)[1]["shards"] == 1


def test_a_damaged_shard_is_named(folder):
    path = folder / "maze-v0-002.npz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"maze-v0-002.npz: damaged or not an npz file"):
            load(folder)
    with np.load(folder / "maze-v0-001.npz") as file:
        np.savez(path, **(dict(file) | {"observations": np.zeros((1001, 28), np.float32)}))
    with pytest.raises(UserError, match=r"maze-v0-002.npz: observations has shape \(1001, 28\)"):
        load(folder)
    with np.load(folder / "maze-v0-001.npz") as file:
        np.savez(path, **{name: file[name][:500] for name in file})
    with pytest.raises(UserError, match=r"maze-v0-002.npz: the last trajectory does not end"):
        load(folder)


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match="it holds neither npz shards nor a Minari data set"):
        load(tmp_path)


def test_names():
    spec = resolve("cube-quadruple-play-100m-task3")
    assert spec == resolve("cube-quadruple-100m-task3") == resolve("cube-quadruple-play-100m-singletask-task3-v0")
    assert (spec.dataset_name, spec.gym_id) == ("cube-quadruple-play-100m-v0", "cube-quadruple-singletask-task3-v0")
    assert spec.short_name == "cube-quadruple-play-100m-task3"
    assert spec.family == "cube-quadruple-play-100m"  # what is published of another size of data is not of this one
    assert resolve("cube-quadruple-noisy-100m").short_name == "cube-quadruple-noisy-100m"
    assert resolve("cube-quadruple-task3").short_name == "cube-quadruple-task3"
    with pytest.raises(
        UserError, match="there are 100 million transitions of humanoidmaze-giant-navigate, cube-double-"
    ):
        resolve("cube-single-100m")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder of a server of a set of three shards; there is no mirror."""
    folder = tmp_path / "server" / "cube-double-play-100m-v0"
    folder.mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(sources, "OFFICIAL_SERVER", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(sources, "MIRROR", "http://127.0.0.1:9")
    monkeypatch.setitem(SHARDS_100M, "cube-double-play", 3)
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.slow(3)
def test_shards_are_downloaded_by_number_and_none_of_them_twice(server, tmp_path, capfd):
    np.random.seed(0)
    episode = recipes.manipulation(resolve("cube-double"), 30)()
    np.savez(server / "cube-double-play-v0-000.npz", **episode)
    np.savez(server / "cube-double-play-v0-001.npz", **{name: array[::-1] for name, array in episode.items()})
    args, spec = RunArgs(dataset_dir=tmp_path / "d"), resolve("cube-double-play-100m")
    with pytest.raises(UserError, match=r"could not download cube-double-play-v0-001.npz; .*shards that have arrived"):
        sources.load(spec, args)  # its last row does not end a trajectory
    np.savez(server / "cube-double-play-v0-001.npz", **episode)
    np.savez(server / "cube-double-play-v0-002.npz", **episode)
    capfd.readouterr()
    data, origin = sources.load(spec, args)
    assert capfd.readouterr().out.count("downloaded http") == 2
    assert sources.describe_source(origin) == "official: 3 shards, 87 transitions"
    assert pathlib.Path(origin["path"]) == tmp_path / "d" / "cube-double-play-100m-v0"
    assert origin["sha256"] == sources.load(spec, args)[1]["sha256"]
    assert "downloaded http" not in capfd.readouterr().out
    first, partial = sources.load(spec, RunArgs(dataset_dir=tmp_path / "d", num_shards=1))
    np.testing.assert_array_equal(first.rewards, data.rewards[:30])
    digest = sha256(tmp_path / "d" / "cube-double-play-100m-v0" / "cube-double-play-v0-000.npz")
    assert partial["shards"] == 1
    assert partial["sha256"] != digest  # a set of one shard is not called by the name of a file


def test_what_has_no_room_in_memory_is_mapped_from_the_disk(folder, monkeypatch, capsys):
    usual, origin = load(folder)
    monkeypatch.setattr(machine, "free_memory", lambda: usual.num_bytes)
    assert not isinstance(load(folder, data_memory="host")[0].observations, np.memmap)  # as it was asked for
    mapped, same = load(folder)
    assert same == origin
    assert machine.place_data("auto", mapped) == "disk"
    for name in ("observations", "actions", "rewards", "masks", "transitions"):
        array = getattr(usual, name)
        assert isinstance(getattr(mapped, name), np.memmap)
        np.testing.assert_array_equal(array, getattr(mapped, name), err_msg=name)
    monkeypatch.setattr(ogbench_npz, "read_files", None)  # from now on nothing is read but where it is said
    np.testing.assert_array_equal(load(folder)[0].actions, usual.actions)
    assert load(folder, num_shards=4)[1] == origin
    assert "found" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(machine, "free_memory", lambda: usual.num_bytes)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    spec = resolve("pointmaze-medium-task3")
    other, in_memory = (sources.load(spec, RunArgs(dataset_path=folder, data_memory=m))[0] for m in ("disk", "host"))
    np.testing.assert_array_equal(other.rewards, in_memory.rewards)
    assert not np.array_equal(other.rewards, usual.rewards)
    assert all(path.stat().st_mtime_ns == made for path, made in files.items())  # what tasks have in common is kept
    assert len(list(folder.rglob("*.npy"))) == len(files) + 2
    (folder / "maze-v0-003.npz").write_bytes((folder / "maze-v0-002.npz").read_bytes())
    assert load(folder)[1]["sha256"] != origin["sha256"]  # another shard, other arrays


def test_maps_of_a_kill_are_removed_and_damaged_ones_named(folder):
    _, origin = load(folder, data_memory="disk")
    (arrays,) = (path.parent for path in folder.rglob("observations.npy"))
    (arrays / "sha256.json").unlink()
    (arrays / ".tmp-0.npy").write_bytes(b"left")
    assert load(folder, data_memory="disk")[1] == origin
    assert not list(arrays.glob(".tmp-*"))
    (arrays / "actions.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"\.arrays/.*: damaged .*; remove it, and it is made anew"):
        load(folder, data_memory="disk")
    with pytest.raises(UserError, match="--data-memory disk is for a folder of OGBench's shards"):
        load(next(folder.glob("*.npz")), data_memory="disk")


@pytest.mark.slow(10)
@pytest.mark.usefixtures("short_episodes")
def test_a_run_on_shards_goes_on_wherever_they_lie_and_is_tabulated(folder, here, after_update, tmp_path, capsys):
    sizes = ("--hidden-sizes", 8, "--batch-size", 8, "--eval-episodes", 1, "--eval-workers", 1)
    steps = ("--offline-steps", 100, "--log-interval", 50, "--save-minutes", 0, "--num-shards", 3)
    words = ("--env-id", "pointmaze-medium", "--dataset-path", folder, *sizes, *steps, "--run-dir")
    whole = here(*words, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    after_update(50, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert "saved at update 50" in here(*words, tmp_path / "stopped").stdout
    resumed = here("--resume", tmp_path / "stopped", "--data-memory", "disk")
    assert resumed.returncode == 0, resumed.stderr
    assert "on the disk" in resumed.stdout
    for name in ("train.csv", "eval.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    policy = load_policy(tmp_path / "stopped")
    assert policy(np.zeros(2, np.float32), jax.random.key(0)).shape == (2,)
    table.main(table.TableArgs((tmp_path / "whole",)))
    assert "file: 3 shards, 3,000 transitions" in capsys.readouterr().out
    for path in folder.glob("*.npz"):
        path.unlink()
    gone = here("--resume", tmp_path / "stopped", "--offline-steps", 150)
    assert gone.returncode == 2
    assert gone.stderr.startswith(f"error: {folder}: it holds neither npz shards nor")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 8000 * 1024),
        ("0::/", {"memory.max": "max", "memory.current": "5"}, 8000 * 1024),
        # What is kept of files makes room.
        ("0::/", {"memory.max": "9000", "memory.current": "8000", "memory.stat": "anon 1\ninactive_file 3000"}, 4000),
        ("0::/a", {"a/memory.max": "max", "memory.max": "700", "memory.current": "200"}, 500),
        ("4:cpu:/\n3:memory:/", {"memory/memory.limit_in_bytes": "90", "memory/memory.usage_in_bytes": "50"}, 40),
    ],
)
def test_free_memory_is_what_a_container_has_left(own, files, expected, tmp_path, monkeypatch):
    for name, text in (files | {"own": own, "meminfo": "MemFree: 1 kB\nMemAvailable:    8000 kB\n"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n" if text else "")
    for name, path in {"CGROUPS": "", "OWN_CGROUPS": "own", "MEMORY": "meminfo"}.items():
        monkeypatch.setattr(processes, name, tmp_path / path)
    assert processes.free_memory() == expected
