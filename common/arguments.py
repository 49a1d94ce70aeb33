"""What every run is told: the arguments that all scripts have, their ranges, and what was left unset."""

import dataclasses
import functools
import json
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import tyro
from pydantic import Field

from common import machine
from common.env_ids import EnvSpec, resolve
from common.errors import UserError

# Ranges stand beside the type, and are checked whoever makes the arguments.
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DataSource = Literal["auto", "download", "collect"]

EVAL_EPISODES = 50
OF_TODAY = ("dataset_path", "dataset_dir")  # where the data of a run is by now: goes with --resume and --evaluate


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """Arguments of a run, whatever it trains. Strings and lists are taken for paths, numbers and tuples."""

    # Run
    env_id: str = "cube-double"
    """Environment and task: cube-double-task3, antmaze-large, pen-human, my_envs:Reach-v0 (README: Names)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random in this run, except the collection of data."""
    num_seeds: Count = 1
    """Train the seeds SEED, SEED + 1, .. together. Each becomes a run of its own."""
    run_dir: pathlib.Path | None = None
    """Folder for logs and checkpoints (with several seeds: of the folders seed0, seed1, ..); under runs/ if unset."""
    resume: tuple[pathlib.Path, ...] = ()
    """Go on with the run in this folder, to the same bits as if it had never stopped, or with several runs that
    differ in the seed alone. Takes no other argument, but for where the data is now."""
    evaluate: pathlib.Path | None = None
    """Evaluate what the run in this folder has learned, without training. Takes evaluation arguments alone."""
    video: pathlib.Path | None = None
    """With --evaluate: write the first episodes to this file (.mp4, .gif)."""
    print_config: bool = False
    """Print the resolved settings as JSON and exit, without touching any data."""

    # Data
    data_source: DataSource = "auto"
    """auto: a file that is there, else the official server, else its mirror, else collect it here."""
    dataset_path: pathlib.Path | None = None
    """Train on this file (OGBench's npz format; transitions, for an environment of one's own) or folder (Minari)."""
    dataset_dir: pathlib.Path = pathlib.Path("~/.ogbench/data")
    """Folder that is searched, downloaded to and collected into (Minari's is MINARI_DATASETS_PATH)."""
    own_rewards: bool = False
    """OGBench: take the file's own rewards and masks, instead of computing those of the task."""
    collect_episodes: Count | None = None
    """Episodes to collect, when data has to be collected; OGBench's own number if unset, 100 of Adroit (pen: 300)."""
    collect_workers: Count | None = None
    """Worker processes for collection; one for each CPU core if unset."""
    data_memory: Literal["auto", "device", "host"] = "auto"
    """Where the data set lies: on the device if it fits there, else on the host, which sends batches ahead."""

    # Evaluation, logs and checkpoints
    eval_interval: Count = 100_000
    """Updates between evaluations; the last update is always evaluated."""
    eval_episodes: Count | None = None
    """Episodes an evaluation: 50; of --evaluate, as many as the run's."""
    eval_workers: Count | None = None
    """Processes for evaluation, which goes on beside training; one for each CPU core if unset."""
    log_interval: Annotated[int, Field(ge=1, le=10**6)] = 1_000
    """Updates between rows of train.csv; a row holds means over the interval."""
    save_minutes: Weight = 5.0
    """Wall-clock minutes between checkpoints. A run that is stopped politely, or ends, saves anyway."""
    track: bool = False
    """Send logs to Weights & Biases as well."""
    wandb_project: str = "one-step-offline-rl"
    """Weights & Biases project."""

    # Fine-tuning online
    online_steps: Annotated[int, Field(ge=0, lt=10**9)] = 0
    """Fine-tuning after the offline updates: steps in the environment, with one update each."""
    buffer_size: Count = 2_000_000
    """Transitions in the replay buffer: the data set, and what is collected online, the oldest overwritten."""
    balanced_sampling: bool = False
    """Draw half of each online batch from the data set, and half from what was collected online."""

    def __post_init__(self) -> None:
        """Raises `UserError` for a value of another type, or out of its range."""
        for name, value in in_their_types(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        if self.seed + self.num_seeds > 2**31:
            raise UserError(f"--num-seeds {self.num_seeds}: out of range (from seed {self.seed} on)")


@functools.cache
def _adapters(args_class: type) -> dict[str, pydantic.TypeAdapter]:
    hints = typing.get_type_hints(args_class, include_extras=True)
    return {field.name: pydantic.TypeAdapter(hints[field.name]) for field in dataclasses.fields(args_class)}


def in_their_types(args_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in the types that their class declares, as from a JSON file: strings as paths, lists as tuples.

    Raises:
        UserError: a value of another type, or out of its range.
    """
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _adapters(args_class)[name].validate_python(value)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Input ")
            raise UserError(f"{flag(name)} {value}: out of range ({problem})") from error
    return converted


Args = typing.TypeVar("Args", bound=RunArgs)
# (arguments, environment) -> 'published' or 'default', and the values of what is tabulated, the one to tune first
Published = Callable[[Any, EnvSpec], tuple[str, dict[str, Any]]]


def flag(name: str) -> str:
    """'--bc-coef'."""
    return f"--{name.replace('_', '-')}"


def from_command_line(args_class: type[Args]) -> Args:
    """The arguments that the program was started with.

    As tyro reads them, or as the agent of a Weights & Biases sweep writes them: --drol-star=False, --hidden-sizes=[8].
    """
    flags = {field.name for field in dataclasses.fields(args_class) if isinstance(field.default, bool)}
    words = []
    for word in sys.argv[1:]:
        match = re.fullmatch(r"--([\w-]+)=(true|false)", word, re.IGNORECASE)
        if match and match[1].replace("-", "_") in flags:
            words.append(f"--{match[1]}" if match[2].lower() == "true" else f"--no-{match[1]}")
        elif match := re.fullmatch(r"(--[\w-]+)=\[(.*)\]", word):
            words += [match[1], *match[2].replace(",", " ").split()]
        else:
            words.append(word)
    args = tyro.cli(args_class, args=words)
    if args.evaluate is not None:
        machine.use_cpu_alone()  # where policies are evaluated; nothing else is to be done
    return args


def complete(args: Args, spec: EnvSpec, published_settings: Published) -> tuple[Args, dict[str, str]]:
    """Fill in what was left unset.

    Returns:
        Arguments without None among what the papers tabulate, and where the value of each of these came from: 'given',
        'published' or 'default'.
    """
    origin, settings = published_settings(args, spec)
    unset = {name: value for name, value in settings.items() if getattr(args, name) is None}
    origins = {name: origin if name in unset else "given" for name in settings}
    return dataclasses.replace(args, eval_episodes=args.eval_episodes or EVAL_EPISODES, **unset), origins


def print_config(args: RunArgs, published_settings: Published) -> None:
    """Print what the arguments of a new run resolve to, as JSON. Raises `UserError` if they name one that is there."""
    if args.resume or args.evaluate or args.video:
        raise UserError("--print-config is about a new run; one that is there has its settings in its config.json")
    spec = resolve(args.env_id, args.dataset_path)
    args, origins = complete(args, spec, published_settings)
    config = {"environment": spec.name, "args": dataclasses.asdict(args), "origins": origins}
    print(json.dumps(config, indent=2, default=str))


def check_alone(args: RunArgs) -> None:
    """Raises `UserError` if --resume, --evaluate or --video has company that it does not take."""
    if args.resume and args != type(args)(resume=args.resume, **{name: getattr(args, name) for name in OF_TODAY}):
        raise UserError("--resume takes all other settings from the run; give no other argument")
    if args.video is not None and (args.evaluate is None or args.video.suffix not in (".mp4", ".gif")):
        raise UserError(f"--video {args.video}: belongs to --evaluate, and to a name that ends in .mp4 or .gif")
    if args.video is not None and not args.video.parent.is_dir():
        raise UserError(f"--video {args.video}: there is no folder {args.video.parent}")


def for_evaluation(trained: Args, given: Args) -> Args:
    """The arguments of a run that is to be evaluated, with what was given beside --evaluate instead.

    It takes what has no part in what was learned: `eval_episodes`, `eval_workers`, and what is named inference_*. All
    of these are None unless they are given.

    Raises:
        UserError: something else was given.
    """
    changes = {}
    for name, value in vars(given).items():
        if name in ("evaluate", "video", *OF_TODAY):
            changes[name] = value
        elif value == type(given).__dataclass_fields__[name].default:
            continue
        elif name in ("eval_episodes", "eval_workers") or name.startswith("inference_"):
            changes[name] = value
        else:
            raise UserError(f"--evaluate takes no {flag(name)}: it does not change what was learned")
    return dataclasses.replace(trained, **changes)
