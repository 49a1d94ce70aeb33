"""The grammar of --env-id against Gymnasium's registry."""

import json

from common import envs
from common.env_ids import D4RL_MINARI_IDS, OGBENCH_DATASET_TYPES, EnvSpec, known_names, resolve
from common.errors import UserError
from common.mujoco_versions import changes

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("given_name", "name", "gym_id", "dataset_name"),
    [
        ("cube-double", "cube-double-play-singletask-v0", "cube-double-singletask-v0", "cube-double-play-v0"),
        (
            "cube-double-task3",
            "cube-double-play-singletask-task3-v0",
            "cube-double-singletask-task3-v0",
            "cube-double-play-v0",
        ),
        (
            "antmaze-large-stitch-task2",
            "antmaze-large-stitch-singletask-task2-v0",
            "antmaze-large-singletask-task2-v0",
            "antmaze-large-stitch-v0",
        ),
        ("cube-single-noisy", "cube-single-noisy-singletask-v0", "cube-single-singletask-v0", "cube-single-noisy-v0"),
        (
            "cube-double-play-singletask-task2-v0",
            "cube-double-play-singletask-task2-v0",
            "cube-double-singletask-task2-v0",
            "cube-double-play-v0",
        ),
        (
            "antmaze-giant",
            "antmaze-giant-navigate-singletask-v0",
            "antmaze-giant-singletask-v0",
            "antmaze-giant-navigate-v0",
        ),
    ],
)
def test_ogbench_names(given_name, name, gym_id, dataset_name):
    spec = resolve(given_name)
    assert (spec.suite, spec.name, spec.gym_id, spec.dataset_name) == ("ogbench", name, gym_id, dataset_name)


@pytest.mark.parametrize(
    ("given_name", "minari_id", "family"),
    [
        ("antmaze-umaze", "D4RL/antmaze/umaze-v1", "antmaze-umaze"),
        ("antmaze-medium-play-v2", "D4RL/antmaze/medium-play-v1", "antmaze-medium-play"),
        ("pen-human-v1", "D4RL/pen/human-v2", "pen-human"),
        ("D4RL/pen/human-v2", "D4RL/pen/human-v2", "pen-human"),
        ("mujoco/hopper/expert-v0", "mujoco/hopper/expert-v0", "mujoco/hopper/expert-v0"),
    ],
)
def test_d4rl_names(given_name, minari_id, family):
    spec = resolve(given_name)
    assert (spec.suite, spec.name, spec.family) == ("d4rl", minari_id, family)


def test_every_ogbench_name_is_a_registered_environment():
    envs.make_env("cube-single-v0").close()  # registers them
    for name in known_names():
        spec = resolve(name)
        if spec.suite == "ogbench":
            assert spec.gym_id in gymnasium.registry, name


@given(st.sampled_from(known_names()))
def test_canonical_and_short_names_resolve_to_themselves(name):
    spec = resolve(name)
    assert resolve(spec.name) == spec
    assert resolve(spec.short_name) == spec


@given(
    st.sampled_from(sorted(OGBENCH_DATASET_TYPES)),
    st.sampled_from(["play", "noisy", "navigate", "stitch", "explore"]),
    st.integers(-1, 9),
)
@pytest.mark.slow(2)
def test_only_existing_combinations_resolve(env_name, dataset_type, task):
    name = f"{env_name}-{dataset_type}-task{task}"
    if dataset_type in OGBENCH_DATASET_TYPES[env_name] and 1 <= task <= 5:
        spec = resolve(name)
        assert (spec.env_name, spec.dataset_type, spec.task) == (env_name, dataset_type, task)
    else:
        with pytest.raises(UserError):
            resolve(name)


@pytest.mark.slow(2)
@given(st.text(max_size=40))
def test_any_other_text_is_an_error_in_one_line(text):
    try:
        spec = resolve(text)
    except UserError as error:
        assert "--env-id" in str(error)
    else:
        assert spec.suite == "d4rl" or text.startswith(spec.env_name)


def test_gymnasiums_own_names_go_with_a_file_and_those_with_a_namespace_do_not_mean_minaris_then(tmp_path):
    file = tmp_path / "data.npz"
    file.touch()
    gymnasium.register("cases/Namespaced-v0", "nowhere:Nothing")
    for name in ("HalfCheetah-v5", "Pendulum-v1", "cases/Namespaced-v0"):
        assert resolve(name, file) == EnvSpec("gymnasium", name, name, name)
    assert resolve("HalfCheetah-v5").suite == "gymnasium"  # that its data has to be given is said when it is looked for
    assert resolve("cases/Namespaced-v0").suite == "d4rl"
    with pytest.raises(UserError, match=r"nearest known names are .*HalfCheetah-v5"):
        resolve("HalfCheeta-v5", file)
    assert resolve("cube-double", file).suite == "ogbench"


def test_minaris_names_without_a_namespace_are_its_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(UserError, match="no such environment"):
        resolve("mcar-plain-v0")
    (tmp_path / "mcar-plain-v0" / "data").mkdir(parents=True)
    assert resolve("mcar-plain-v0").name == "mcar-plain-v0"


def test_a_minari_data_set_in_a_folder_knows_its_id(tmp_path):
    for dataset_id, family in (("mcar-plain-v0", "mcar-plain-v0"), ("D4RL/pen/human-v2", "pen-human")):
        folder = tmp_path / family
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "metadata.json").write_text(json.dumps({"dataset_id": dataset_id}))
        assert resolve("cube-double", folder).family == family  # the default, as if nothing had been given
        assert resolve(dataset_id, folder).name == dataset_id
    assert resolve("door-human", folder).family == "door-human"  # of which the data will be refused
    assert resolve("cube-double", tmp_path).suite == "ogbench"
    with pytest.raises(UserError, match=r"d4rl-hopper-medium is its own file, .* another: mujoco/hopper/medium-v0"):
        resolve("hopper-medium-v2")


def test_every_environment_of_the_package_has_a_name():
    envs.make_env("cube-single-v0").close()  # registers them
    single = {name for name in gymnasium.registry if name.endswith("-singletask-v0")}
    assert single == {f"{env_name}-singletask-v0" for env_name in OGBENCH_DATASET_TYPES}


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UserError, match=r"cube-dubble: no such environment.*cube-double"):
        resolve("cube-dubble")
    with pytest.raises(UserError, match=r"has no data set type 'navigate'; it has play, noisy"):
        resolve("cube-double-navigate")
    assert len(D4RL_MINARI_IDS) == 18


def test_visual_names_are_those_of_the_package_and_of_the_same_world():
    import ogbench  # noqa: F401 (registers them)

    visual = [name for name in OGBENCH_DATASET_TYPES if name.startswith("visual-")]
    assert len(visual) == 17
    spec = resolve("visual-cube-single-noisy-task2")
    assert (spec.is_visual, spec.world, spec.gym_id) == (True, "cube-single", "visual-cube-single-singletask-task2-v0")
    assert (spec.dataset_name, spec.short_name) == ("visual-cube-single-noisy-v0", "visual-cube-single-noisy-task2")
    for name in visual:
        visual_spec, spec = resolve(name), resolve(name.removeprefix("visual-"))
        assert (visual_spec.dataset_type, visual_spec.task_number) == (spec.dataset_type, spec.task_number)
        assert changes(visual_spec, "4.0.0") == changes(spec, "4.0.0")
        assert visual_spec.is_visual and not spec.is_visual
        for task in range(1, 6):
            assert resolve(f"{name}-task{task}").gym_id in gymnasium.registry
    with pytest.raises(UserError, match="powderworld's actions are discrete"):
        resolve("powderworld-easy")
    with pytest.raises(UserError, match="no such environment"):
        resolve("visual-pointmaze-medium")
