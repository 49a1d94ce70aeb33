"""What a run is called: all that could have changed what was learned is in it."""

import dataclasses
import hashlib
import json
from typing import Any

from common import algorithms, mujoco_versions
from common.arguments import RunArgs, in_their_types
from common.env_ids import EnvSpec
from common.roles import Role, with_role

# What makes two collections the same experiment. Their files need not be the same to the bit: a simulation rounds
# differently on another processor.
RECIPE = ("episodes", "episode_steps", "seed", "oracle", "policy", "renderer", "versions")


@dataclasses.dataclass(frozen=True)
class Identity:
    """Of a run of one seed."""

    algorithm: str
    """The name that its script gives itself, with all that is not the paper's: 'DROL(16)', 'DROL*', 'FQL', 'DROL(16),
    tau 0.01'; 'DROL(16), fine-tuned' if an online part follows; 'DROL(16), modified' if its script was not its
    commit's; 'DROL(16), script 0a1b2c then 3d4e5f' if it went on with another script."""
    settings: dict[str, Any]
    """What runs that are averaged have to agree in; the data by its SHA-256, collected data by its recipe."""
    budget: dict[str, str]
    """What methods that are compared should have in common."""
    size: str
    """Where it is another one than the paper's: 'hidden_sizes 64 64, offline_steps 12000'."""
    script: str
    """What its script does, by six digits; 'unknown'."""
    common: str
    """The same of common/."""


def identify(config: dict[str, Any]) -> Identity:
    """Of the run with this config.json. An argument that it did not have yet takes its default.

    Raises:
        KeyError, TypeError, ValueError, UserError: it is damaged.
    """
    args, name, others, size = config["args"], config["algorithm"], [], []
    spec, mujoco = EnvSpec(**config["environment"]), config["versions"].get("mujoco")
    algorithm = algorithms.load(name) if name in algorithms.names() else None
    args_class = algorithm.Args if algorithm else RunArgs
    defaults = {field.name: field.default for field in dataclasses.fields(args_class)}
    apart = with_role(args_class, Role.RUN, Role.HOW, Role.DATA, Role.PLACE)
    settings = {setting: value for setting, value in (defaults | args).items() if setting not in apart}
    sizes, judging = with_role(args_class, Role.SIZE), with_role(args_class, Role.JUDGING)
    if algorithm:
        taken = args_class(**in_their_types(args_class, {n: settings[n] for n in settings if n in defaults}))
        _, published = algorithm.published_settings(taken, spec)
        paper, name = defaults | published, algorithm.method(taken)
        for setting, value in settings.items():
            said = f"{setting} {describe_value(value)}"
            if setting not in defaults:  # and what was off changed nothing
                others += [said] * bool(value)
            elif describe_value(value) == describe_value(paper[setting]) or setting in judging:
                continue
            elif setting in sizes:
                size += [said] * (setting != "online_steps")  # of which the name says 'fine-tuned'
            elif algorithm.method(dataclasses.replace(taken, **{setting: paper[setting]})) == name:
                others.append(said)  # else the name says it
    modified = ["modified"] * any(code["modified"] for code in config["code"])
    fine_tuned, script = ["fine-tuned"] * (args["online_steps"] > 0), _versions(config["code"], "script")
    went_on = [f"script {script}"] * (" then " in script)
    return Identity(
        algorithm=", ".join([name, *modified, *others, *fine_tuned, *went_on]),
        settings=settings
        | {
            "data": _identity_of_data(config["dataset"]),
            "physics": mujoco_versions.describe(spec, mujoco) if mujoco else "unknown",
        },
        budget={n: describe_value(value) for n, value in settings.items() if n in sizes | judging},
        size=", ".join(size),
        script=script,
        common=_versions(config["code"], "common"),
    )


def describe_value(value: Any) -> str:
    """A setting for people: '256 256', '0.3', '45000'."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _versions(code: list[dict[str, Any]], part: str) -> str:
    """'0a1b2c'; '0a1b2c then 3d4e5f'."""
    return " then ".join(dict.fromkeys(each[part][:6] if each[part] else "unknown" for each in code))


def _identity_of_data(dataset: dict[str, Any]) -> str:
    """Its SHA-256; where it was collected by a known recipe, that of the recipe."""
    if dataset["source"] == "collected" and "versions" in dataset and ("oracle" in dataset or "policy" in dataset):
        recipe = json.dumps({name: dataset.get(name) for name in RECIPE}, sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()
    return dataset["sha256"]
