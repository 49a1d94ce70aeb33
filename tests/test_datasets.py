"""Loading real files, damaged files, and downloads from a server on this machine."""

import functools
import gc
import http.server
import io
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import weakref

from common import mujoco_versions
from common.arguments import RunArgs
from common.data import check, npz, ogbench_npz, sources
from common.env_ids import resolve
from common.errors import UserError
from common.files import sha256

import equinox as eqx
import jax
import numpy as np
import ogbench
import pytest
from conftest import REPOSITORY

CUBE = resolve("cube-single")


make_env = functools.cache(ogbench_npz.make_env)


@pytest.fixture(autouse=True)
def one_environment_of_each_kind(monkeypatch):
    """They are asked for the width of observations, and to relabel; making one takes longer than most tests here."""
    monkeypatch.setattr(ogbench_npz, "make_env", make_env)


def altered(source: pathlib.Path, folder: pathlib.Path, **changes) -> pathlib.Path:
    """A copy of a real file with arrays replaced, or left out (None)."""
    arrays = dict(np.load(source)) | changes
    path = folder / "altered.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.slow(10)
def test_a_real_file_becomes_transitions(cube_file):
    data, _ = ogbench_npz.read(CUBE, cube_file)
    usual = ogbench.load_dataset(str(cube_file))  # the package's own (s, a, s') layout
    np.testing.assert_array_equal(data.observations[data.transitions], usual["observations"])
    np.testing.assert_array_equal(data.observations[data.transitions + 1], usual["next_observations"])
    np.testing.assert_allclose(data.actions[data.transitions], usual["actions"], atol=1.1e-5)
    assert np.abs(data.actions).max() <= 1 - 1e-5
    assert {leaf.dtype for leaf in (data.observations, data.actions, data.rewards, data.masks)} == {
        np.dtype(np.float32)
    }
    assert data.transitions.dtype == np.int32


@pytest.mark.slow(10)
def test_rewards_count_unmet_goals_and_masks_mark_success(cube_file):
    # Default task of cube-single: the cube at (0.50, 0, 0.02) (OGBench, task 2), within 4 cm.
    with np.load(cube_file) as file:
        cube = file["qpos"][:, 14:17]
    solved = np.linalg.norm(cube - [0.50, 0.0, 0.02], axis=-1) <= 0.04
    data, _ = ogbench_npz.read(CUBE, cube_file)
    np.testing.assert_array_equal(data.rewards, solved - 1.0)
    np.testing.assert_array_equal(data.masks, 1.0 - solved)


def test_the_task_changes_the_rewards(pointmaze_file):
    data = [ogbench_npz.read(resolve(f"pointmaze-medium-task{i}"), pointmaze_file)[0] for i in (1, 2)]
    assert not np.array_equal(data[0].rewards, data[1].rewards)
    np.testing.assert_array_equal(data[0].observations, data[1].observations)


def poke(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[len(array) // 2] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"actions": None}, "actions is missing"),
        (lambda a: {"qpos": None}, "qpos is missing"),
        (lambda a: {"observations": a["observations"][:, :-1]}, r"observations has shape \(2002, 27\)"),
        (lambda a: {"actions": a["actions"][:-1]}, r"2001 rows of actions but 2002 of observations"),
        (
            lambda a: {"observations": poke(a["observations"], np.nan)},
            "NaN or infinity in observations, first in row 35",
        ),
        (lambda a: {"qpos": poke(a["qpos"], np.inf)}, "NaN or infinity in qpos"),
        (lambda a: {"actions": poke(a["actions"], -1.5)}, r"actions must lie in \[-1, 1\], the largest is 1.5"),
        (lambda a: {"terminals": np.zeros((2002, 2))}, r"terminals has shape \(2002, 2\)"),
        (lambda a: {"terminals": np.zeros_like(a["terminals"])}, "the last trajectory does not end"),
        (lambda a: {key: value[:0] for key, value in a.items()}, "holds no transition"),
        (
            lambda a: {key: value[:1] for key, value in a.items()} | {"terminals": np.ones(1, bool)},
            "holds no transition",
        ),
    ],
)
@pytest.mark.slow(10)
def test_unsound_data_is_refused(cube_file, tmp_path, change, message):
    path = altered(cube_file, tmp_path, **change(dict(np.load(cube_file))))
    with pytest.raises(UserError, match=message):
        ogbench_npz.read(CUBE, path)


@pytest.mark.slow(10)
def test_actions_that_exceed_their_bounds_by_rounding_are_clipped(cube_file, tmp_path):
    actions = np.load(cube_file)["actions"]
    data, _ = ogbench_npz.read(CUBE, altered(cube_file, tmp_path, actions=poke(actions, 1 + 1e-6)))
    assert np.abs(data.actions).max() <= 1
    with pytest.raises(UserError, match=r"the largest is 1\.0002"):
        ogbench_npz.read(CUBE, altered(cube_file, tmp_path, actions=poke(actions, 1.0002)))


@pytest.mark.slow(10)
def test_rewards_of_ones_own_are_not_used_and_it_is_said(cube_file, tmp_path, capsys):
    path = altered(cube_file, tmp_path, rewards=np.full(2002, 7.0), masks=np.zeros(2002))
    ours, usual = (ogbench_npz.read(CUBE, each)[0].rewards for each in (path, cube_file))
    np.testing.assert_array_equal(ours, usual)
    assert f"note: rewards and masks of {path} are not used" in capsys.readouterr().out


@pytest.mark.slow(10)
def test_no_flipped_bit_of_an_arrays_header_is_read(cube_file, tmp_path):
    path = altered(cube_file, tmp_path)
    content = bytearray(path.read_bytes())
    header = content.index(b"\x93NUMPY")
    for bit in range(0, 8 * 128, 7):
        content[header + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        content[header + bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match="damaged or not an npz file"):
            ogbench_npz.read(CUBE, path)


@pytest.mark.slow(10)
def test_damaged_files_are_refused(cube_file, tmp_path):
    whole = cube_file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:-100], b"", b"not an npz file", bytes(flipped)):
        path = tmp_path / "damaged.npz"
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or not an npz file"):
            ogbench_npz.read(CUBE, path)


@pytest.mark.slow(2)
def test_another_environments_file_is_refused(pointmaze_file):
    with pytest.raises(UserError, match="cube-single needs"):
        ogbench_npz.read(CUBE, pointmaze_file)


# Where data comes from. The servers are this machine's own.


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Folders of an official server and a mirror on 127.0.0.1."""
    folders = []
    started = []
    for name in ("OFFICIAL_SERVER", "MIRROR"):
        folder = tmp_path / name
        folder.mkdir()
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(sources, name, f"http://127.0.0.1:{server.server_port}")
        folders.append(folder)
        started.append(server)
    yield folders
    for server in started:
        server.shutdown()
        server.server_close()


def locate(dataset_dir, source="auto", episodes=1, env_id="pointmaze-medium"):
    args = RunArgs(dataset_dir=dataset_dir, data_source=source, collect_episodes=episodes, collect_workers=1)
    return sources.load(resolve(env_id), args)[1]


def test_download_from_the_official_server_then_from_disk(servers, pointmaze_file, tmp_path, capfd):
    name = "pointmaze-medium-navigate-v0.npz"
    (servers[0] / name).write_bytes(pointmaze_file.read_bytes())
    origin = locate(tmp_path / "d")
    assert origin["source"] == "official"
    assert origin["versions"]["mujoco"] == mujoco_versions.OFFICIAL_MUJOCO["ogbench"]
    assert pathlib.Path(origin["path"]).name == name
    (servers[0] / name).unlink()
    assert locate(tmp_path / "d") == origin  # found, and still known to be official
    out = capfd.readouterr().out
    assert out.count("downloaded") == 1
    assert "found" in out


def test_the_mirror_stands_in_and_says_so(servers, pointmaze_file, tmp_path, capfd):
    (servers[1] / "pointmaze-medium-navigate-v0.npz").write_bytes(pointmaze_file.read_bytes())
    assert locate(tmp_path / "d")["source"] == "mirror"
    lines = capfd.readouterr().out.splitlines()
    assert sum("HTTP status 404" in line for line in lines) == 1


def test_a_download_that_trickles_is_given_up(servers, pointmaze_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sources, "SLOW_AFTER_S", 0)
    monkeypatch.setattr(sources, "SLOW_BYTES_A_SECOND", 10**12)  # to which any server trickles
    (servers[0] / "pointmaze-medium-navigate-v0.npz").write_bytes(pointmaze_file.read_bytes())
    assert locate(tmp_path / "d")["source"] == "collected"
    assert "no answer in time" in capfd.readouterr().out


def test_a_damaged_download_never_takes_the_name_and_collection_follows(servers, pointmaze_file, tmp_path, capfd):
    name = "pointmaze-medium-navigate-v0.npz"
    (servers[0] / name).write_bytes(pointmaze_file.read_bytes()[:-1000])
    (servers[1] / name).write_text("<html>come back later</html>")
    origin = locate(tmp_path / "d")
    assert (origin["source"], origin["episodes"], origin["seed"]) == ("collected", 1, 0)
    assert not (tmp_path / "d" / name).exists()
    assert capfd.readouterr().out.count("is damaged") == 2
    assert locate(tmp_path / "d") == origin  # found, not collected again
    assert "collecting" not in capfd.readouterr().out


@pytest.mark.slow(10)
def test_a_zip_that_is_not_the_environments_data_never_takes_its_name(
    servers, cube_file, pointmaze_file, tmp_path, capfd
):
    name = "pointmaze-medium-navigate-v0.npz"
    np.savez(servers[0] / name, page=np.zeros(3))
    (servers[1] / name).write_bytes(cube_file.read_bytes())
    assert locate(tmp_path / "d")["source"] == "collected"
    assert not (tmp_path / "d" / name).exists()
    assert capfd.readouterr().out.count("not the expected data") == 2


LOAD = """
import pathlib, sys
from common.arguments import RunArgs
from common.data import sources
from common.env_ids import resolve
sources.OFFICIAL_SERVER = sources.MIRROR = "http://127.0.0.1:9"
if __name__ == "__main__":
    spec, folder = resolve("pointmaze-medium"), pathlib.Path(sys.argv[1])
    print(sources.load(spec, RunArgs(dataset_dir=folder, collect_episodes=1, collect_workers=1))[1]["sha256"])
"""


@pytest.mark.slow(6)
def test_of_several_processes_one_collects_and_the_others_use_it(tmp_path):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, tmp_path / "d"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outs = [job.communicate(timeout=120)[0] for job in jobs]
    assert len({out.splitlines()[-1] for out in outs}) == 1
    assert sum("collecting" in out for out in outs) == 1
    assert sum("found" in out for out in outs) == 2


def test_a_folder_without_room_is_noticed_before_anything_is_collected(tmp_path, monkeypatch, capfd):
    with pytest.raises(UserError, match=r"cannot write to /proc/nowhere: .*--dataset-dir"):
        locate(pathlib.Path("/proc/nowhere"), source="collect")
    usage = shutil.disk_usage(tmp_path)._replace(free=10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="0 MB are free, the data may need 0 MB"):
        locate(tmp_path, source="collect")
    assert "collecting" not in capfd.readouterr().out


def test_a_known_checksum_is_enforced(servers, pointmaze_file, tmp_path, monkeypatch):
    name = "pointmaze-medium-navigate-v0.npz"
    monkeypatch.setitem(sources.KNOWN_SHA256, name, "0" * 64)
    for folder in servers:
        (folder / name).write_bytes(pointmaze_file.read_bytes())
    with pytest.raises(UserError, match="could not download pointmaze-medium"):
        locate(tmp_path / "d", source="download")


def test_without_a_connection_each_failure_is_one_line(tmp_path, monkeypatch, capfd):
    for name in ("OFFICIAL_SERVER", "MIRROR"):
        monkeypatch.setattr(sources, name, "http://127.0.0.1:9")  # nobody listens on the discard port
    assert locate(tmp_path)["source"] == "collected"
    failures = [line for line in capfd.readouterr().out.splitlines() if "127.0.0.1" in line]
    assert len(failures) == 2
    assert all("no connection" in line for line in failures)
    with pytest.raises(UserError, match="no oracle collects"):
        locate(tmp_path, env_id="humanoidmaze-large")


@pytest.mark.slow(1)
def test_a_smaller_collection_is_not_taken_for_a_larger_one(tmp_path, monkeypatch):
    for name in ("OFFICIAL_SERVER", "MIRROR"):
        monkeypatch.setattr(sources, name, "http://127.0.0.1:9")
    small = locate(tmp_path, source="collect", episodes=1)
    larger = locate(tmp_path, source="auto", episodes=2)
    assert (small["episodes"], larger["episodes"]) == (1, 2)
    assert small["path"] != larger["path"]
    assert not (tmp_path / "pointmaze-medium-navigate-v0.npz").exists()


@pytest.mark.parametrize("record", ["[]", "{}", '{"source": "official"}', '{"source": "x", "sha256": "0"}', "\0"])
def test_an_unrelated_json_file_is_not_believed(pointmaze_file, tmp_path, record):
    path = tmp_path / "data.npz"
    path.write_bytes(pointmaze_file.read_bytes())
    path.with_suffix(".json").write_text(record)
    origin = sources.provenance(path, sha256(path))
    assert origin["source"] == "file"
    assert str(path) in sources.describe(origin)


def test_a_replaced_file_loses_its_provenance(pointmaze_file, tmp_path):
    path = tmp_path / pointmaze_file.name
    path.write_bytes(pointmaze_file.read_bytes())
    path.with_suffix(".json").write_bytes(pointmaze_file.with_suffix(".json").read_bytes())
    assert sources.provenance(path, sha256(path))["source"] == "collected"
    np.savez(path, **{key: value[:1001] for key, value in np.load(pointmaze_file).items()})
    assert sources.provenance(path, sha256(path))["source"] == "file"
    path.with_suffix(".json").write_text("{ damaged")
    assert sources.provenance(path, sha256(path))["source"] == "file"
    assert json.loads(pointmaze_file.with_suffix(".json").read_text())["sha256"]


@pytest.mark.slow(5)
def test_what_a_device_has_a_copy_of_leaves_the_host(pointmaze_file, here, after_update, tmp_path, monkeypatch):
    load, host, left = sources.load, [], []

    def load_out_of_line(spec, args):
        data, origin = load(spec, args)
        numbers = np.empty(data.observations.size + 1, np.float32)[1:].reshape(data.observations.shape)
        numbers[:] = data.observations  # where no device takes them as they are
        host.extend(weakref.ref(each) for each in (numbers, data.observations))
        return eqx.tree_at(lambda dataset: dataset.observations, data, numbers), origin

    monkeypatch.setattr(sources, "load", load_out_of_line)
    after_update(50, lambda: left.append((gc.collect(), [each() is None for each in host])[1]))
    sizes = ("--hidden-sizes", 8, "--batch-size", 8, "--eval-episodes", 1, "--eval-workers", 1)
    steps = ("--offline-steps", 50, "--log-interval", 50, "--dataset-path", pointmaze_file)
    result = here("--env-id", "pointmaze-medium", *sizes, *steps, "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert left == [[True, True]]


def test_a_cpu_takes_what_a_reader_gives_without_a_copy(pointmaze_file):
    data, _ = ogbench_npz.read(resolve("pointmaze-medium"), pointmaze_file)
    for array in jax.tree.leaves(data):
        assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a"), ("b",), ()])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_hash_of_a_file_does_not_depend_on_what_is_read_of_it(save, order, tmp_path):
    """Also where an archive was written into a pipe, so that sizes come after the members."""
    arrays = {"a": np.arange(3e5).reshape(-1, 3), "b": np.asfortranarray(np.ones((5, 4))), "c": np.array(7)}
    into = io.BytesIO()
    into.seekable = lambda: False
    into.tell = into.seek = lambda *_: (_ for _ in ()).throw(io.UnsupportedOperation())
    save(into, **arrays)
    (tmp_path / "piped.npz").write_bytes(into.getvalue())
    save(tmp_path / "usual.npz", **arrays)
    for path in (tmp_path / "piped.npz", tmp_path / "usual.npz"):
        with npz.opened(path) as file:
            for name in order:
                blocks = [block for _, block in file.blocks(name)]
                found = np.concatenate(blocks) if arrays[name].ndim else blocks[0]
                np.testing.assert_array_equal(found, arrays[name])
            assert file.sha256() == sha256(path)


def test_images_stay_bytes_where_they_are_read(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(50, 64, 64, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "x.npz", observations=images, masks=np.ones(50, bool))
    with npz.opened(tmp_path / "x.npz") as file:
        columns = check.read_checked("x", file, {"observations": (64, 64, 3), "masks": ()}, "a test")
    np.testing.assert_array_equal(columns["observations"], images)
    assert [column.dtype for column in columns.values()] == [np.uint8, np.float32]
