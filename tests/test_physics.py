"""Whether this MuJoCo moves every environment as the chosen one did, and what is said and named where one does not.

physics.npz holds states with what oracles, experts, or random actions set as control in them, and where a control step
led under the version that it names; results/experiments/physics.py makes it.
"""

import contextlib
import pathlib
import shutil
from importlib import metadata

import drol
import physics
from common import mujoco_versions
from common.data import collect, hands
from common.env_ids import resolve
from common.errors import UserError
from common.runs import Runs

import numpy as np
import pytest


@pytest.mark.slow(2)
@pytest.mark.parametrize("env_id", physics.PARTS)
def test_this_mujoco_moves_recorded_states_as_the_chosen_one_did(env_id):
    with np.load(pathlib.Path(__file__).with_name("physics.npz")) as file:
        states = {name.split("/")[1]: file[name] for name in file if name.startswith(f"{env_id}/")}
        chosen = file["version"]
    apart = np.abs(physics.step(env_id, states) - states["after"]).max(axis=1)  # metres, radians
    otherwise = apart > 1e-4
    # Solvers stop early and processors round: now and then a contact is decided otherwise.
    assert otherwise.mean() < 0.1, (
        f"MuJoCo {mujoco_versions.installed()} moves {env_id} otherwise than {chosen} did, from {otherwise.sum()} of "
        f'{otherwise.size} states, by up to {apart.max():.2g}: pip install "mujoco<3.3"; or, if this version is meant, '
        "common/mujoco_versions.py has to know what changed"
    )


def install(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "version", lambda name, real=metadata.version: version if name == "mujoco" else real(name)
    )


def test_collections_have_a_name_for_each_physics(monkeypatch):
    def names() -> list[str]:
        paths = [collect.collected_path(resolve(e), pathlib.Path(), 9, 0) for e in ("cube-double", "pointmaze-large")]
        return [*(path.name for path in paths), hands.dataset_id(resolve("relocate-expert"), 9, seed=0)]

    for version, of_cube, of_hand in (
        ("3.1.6", "", ""),
        ("3.2.7", "", ""),
        ("3.3.7", "-mujoco3.3", ""),
        ("3.4.0", "-mujoco3.4", ""),
        ("3.10.0", "-mujoco3.5", "-mujoco3.5"),
        ("4.0.0", "-mujoco3.5", "-mujoco3.5"),
    ):
        install(version, monkeypatch)
        cube, point = (
            f"cube-double-play-v0-collected-9-seed0{of_cube}.npz",
            "pointmaze-large-navigate-v0-collected-9-seed0.npz",
        )
        assert names() == [cube, point, f"collected/relocate/expert-9-seed0{of_hand}-v0"]


def test_what_differs_between_versions():
    def unlike(env_id: str, data: str | None, evaluation: str) -> str | None:
        return mujoco_versions.difference(resolve(env_id), {"versions": {"mujoco": data}} if data else {}, evaluation)

    assert unlike("cube-double", "3.2.7", "3.1.6") is None
    assert unlike("cube-double", None, "3.2.7") is None
    assert unlike("antmaze-large", None, "3.4.0") is None
    assert unlike("scene", "3.3.7", "3.4.0") == (
        "MuJoCo 3.4.0 moves it otherwise than that of the papers (3.2 or before) and of the data (3.3.7): "
        "contacts of convex meshes (since 3.3), contacts of boxes with boxes (since 3.4)"
    )
    assert unlike("puzzle-3x3", "3.3.7", "3.2.7") == (
        "MuJoCo 3.2.7 moves it otherwise than that of the data (3.3.7): contacts of convex meshes (since 3.3)"
    )
    official = unlike("cube-single", mujoco_versions.OFFICIAL_MUJOCO["ogbench"], "4.0.0")
    assert official.startswith("MuJoCo 4.0.0 moves it otherwise than that of the data (3.2 or before): contacts of ")
    assert official.endswith("the arm where an actuator is at its limit (since 3.5)")
    assert unlike("pointmaze-medium", "3.2.7", "4.0.0") is unlike("humanoidmaze-large", "3.2.7", "4.0.0") is None
    assert unlike("pen-human", None, "4.0.0") is None  # of Minari's own data it is not known
    assert "contacts with a margin (since 3.5)" in unlike("pen-expert", "3.2.7", "4.0.0")


def test_an_environment_of_ones_own_is_none_of_them_whatever_its_name():
    assert mujoco_versions.changes(resolve("door_envs:Open-v0"), "4.0.0") == []
    assert mujoco_versions.changes(resolve("door-expert"), "4.0.0") != []


@pytest.mark.slow(10)
def test_a_run_of_another_physics_says_so_and_goes_on_in_its_own_alone(cube_file, tmp_path, monkeypatch, capsys):
    def begin(**arguments) -> str:
        begin = Runs.reopen if "resume" in arguments else Runs.start
        with contextlib.closing(begin(drol.Args(**arguments), "drol", drol.published_settings)) as runs:
            runs.load_dataset()
        return capsys.readouterr().out

    data = tmp_path / "cube.npz"
    shutil.copyfile(cube_file, data)  # with nothing beside it that says who made it
    install("3.2.7", monkeypatch)
    assert "MuJoCo" not in begin(env_id="cube-single", dataset_path=data, run_dir=tmp_path / "run")
    install("4.0.0", monkeypatch)
    with pytest.raises(UserError, match=r"evaluated with MuJoCo 3\.2\.7, and 4\.0\.0 moves cube-single otherwise: pip"):
        begin(resume=(tmp_path / "run",))
    lines = begin(env_id="cube-single", dataset_path=data, run_dir=tmp_path / "other").splitlines()
    (note,) = [line for line in lines if line.startswith("note: MuJoCo")]
    assert note.startswith("note: MuJoCo 4.0.0 moves it otherwise than that of the papers (3.2 or before): contacts")
    assert note.endswith('pip install "mujoco<3.3"')
