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

from common import command_line, machine
from common.env_ids import EnvSpec, resolve
from common.errors import UserError
from common.roles import Needs, Role, said, with_role

import pydantic
from pydantic import Field

# Ranges stand beside the type, and are checked whoever makes the arguments.
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DataSource = Literal["auto", "download", "collect"]
NO_IMAGES_ONLINE = "--online-steps: nobody fine-tunes from images, the reference implementations refuse it, too"
UNSET = {"eval_interval": 100_000, "eval_episodes": 50, "save_minutes": 5.0}  # what is taken for None


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """Arguments of a run, whatever it trains. Strings and lists are taken for paths, numbers and tuples."""

    # Run
    env_id: Annotated[str, Role.RUN] = "cube-double"
    """Environment and task: cube-double-task3, antmaze-large, pen-human, my_envs:Reach-v0 (README: Names and data)."""
    seed: Annotated[int, Field(ge=0, lt=2**31), Role.RUN] = 0
    """Seed of everything random in this run, except the collection of data."""
    num_seeds: Annotated[Count, Role.RUN] = 1
    """Train the seeds SEED, SEED + 1, .. together. Each becomes a run of its own."""
    run_dir: Annotated[pathlib.Path | None, Role.RUN] = None
    """Folder for logs and checkpoints (with several seeds: of the folders seed0, seed1, ..); under runs/ if unset."""
    resume: Annotated[tuple[pathlib.Path, ...], Role.RUN] = ()
    """Go on with the run in this folder, to the same bits as if it had never stopped, or with several runs that
    differ in the seed alone; with more --offline-steps or --online-steps further; in another --run-dir with a copy."""
    evaluate: Annotated[pathlib.Path | None, Role.RUN, Role.EVALUATE] = None
    """Evaluate what the run in this folder has learned, without training. Takes evaluation arguments alone."""
    video: Annotated[pathlib.Path | None, Role.RUN, Role.EVALUATE] = None
    """With --evaluate: write the first episodes to this file (.mp4, .gif)."""
    video_episodes: Annotated[Count | None, Role.RUN, Role.EVALUATE, Needs("video")] = None
    """Episodes to film; three if unset, and no more than are evaluated."""
    print_config: Annotated[bool, Role.RUN] = False
    """Print the resolved settings as JSON and exit, without touching any data."""

    # Data
    data_source: Annotated[DataSource, Role.DATA] = "auto"
    """auto: a file that is there, else the official server, else its mirror, else collect it here."""
    dataset_path: Annotated[pathlib.Path | None, Role.PLACE] = None
    """Train on this file (OGBench's npz, D4RL's HDF5, transitions for one's own environment) or folder (Minari's, or of
    OGBench's shards)."""
    num_shards: Annotated[Count | None, Role.DATA] = None
    """Of a folder of shards, take the first N; all of them if unset."""
    dataset_dir: Annotated[pathlib.Path, Role.PLACE] = pathlib.Path("~/.ogbench/data")
    """Folder that is searched, downloaded to and collected into (Minari's is MINARI_DATASETS_PATH, that of D4RL's own
    files D4RL_DATASET_DIR)."""
    own_rewards: bool = False
    """OGBench: take the file's own rewards and masks, instead of computing those of the task."""
    collect_episodes: Annotated[Count | None, Role.DATA] = None
    """Episodes to collect, when data has to be collected; OGBench's own number if unset, 100 of Adroit (pen: 300)."""
    collect_workers: Annotated[Count | None, Role.DATA, Role.HOW, Role.RESUME] = None
    """Worker processes for collection; one for each CPU core if unset."""
    frame_stack: Count | None = None
    """Of images: the last frames, so many, are an observation (published: 3 on visual tasks); one if unset."""
    p_aug: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of images: probability that a batch is cropped at random (published: 0.5 on visual tasks); 0 if unset."""
    data_memory: Annotated[machine.DataMemory, Role.HOW, Role.RESUME] = "auto"
    """Where the data set lies: on the device if it fits there, else on the host, which sends batches ahead; shards that
    do not fit there either are mapped from files made beside them on the disk."""

    # Evaluation and logging
    eval_interval: Annotated[Count | None, Role.JUDGING, Role.RESUME] = None
    """Updates between evaluations, 100,000 if unset; the last update is always evaluated."""
    eval_episodes: Annotated[Count | None, Role.JUDGING, Role.EVALUATE, Role.RESUME] = None
    """Episodes an evaluation: 50; of --evaluate, as many as the run's."""
    eval_workers: Annotated[Count | None, Role.HOW, Role.EVALUATE, Role.RESUME] = None
    """Processes for evaluation, which goes on beside training; one for each CPU core if unset."""
    log_interval: Annotated[int, Field(ge=1, le=10**6), Role.HOW] = 1_000
    """Updates between rows of train.csv; a row holds means over the interval."""
    save_minutes: Annotated[Weight | None, Role.HOW, Role.RESUME] = None
    """Wall-clock minutes between checkpoints, 5 if unset. A run that is stopped politely, or ends, saves anyway."""
    track: Annotated[bool, Role.HOW, Role.RESUME] = False
    """Send logs to Weights & Biases as well."""
    wandb_project: Annotated[str, Role.HOW, Role.RESUME, Needs("track")] = "one-step-offline-rl"
    """Weights & Biases project."""

    # Online fine-tuning
    online_steps: Annotated[int, Field(ge=0, lt=10**9), Role.SIZE, Role.RESUME] = 0
    """Fine-tuning after the offline updates: steps in the environment, with one update each."""
    buffer_size: Annotated[Count, Needs("online_steps")] = 2_000_000
    """Transitions in the replay buffer: the data set, and what is collected online, the oldest overwritten."""
    balanced_sampling: Annotated[bool, Needs("online_steps")] = False
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
    title, *_ = (sys.modules[args_class.__module__].__doc__ or "").splitlines()
    args = command_line.read(args_class, args=words, description=f"{title} {args_class.__doc__}")
    if args.evaluate is not None:
        machine.use_cpu_alone()  # where policies are evaluated; nothing else is to be done
    return args


def complete(args: Args, spec: EnvSpec, published_settings: Published) -> tuple[Args, dict[str, str]]:
    """Fill in what was left unset.

    Returns:
        Arguments without None among what the papers tabulate, and where the value of each of these came from: 'given',
        'published' or 'default'.

    Raises:
        UserError: an argument does nothing without another, or does not go with one.
    """
    check_needs(args)
    if args.own_rewards and args.online_steps > 0:
        raise UserError("--own-rewards and --online-steps: the environment has other rewards than the file")
    if spec.is_visual and args.online_steps > 0:
        raise UserError(NO_IMAGES_ONLINE)
    origin, settings = published_settings(args, spec)
    unset = {name: value for name, value in (UNSET | settings).items() if getattr(args, name) is None}
    origins = {name: origin if name in unset else "given" for name in settings}
    return dataclasses.replace(args, **unset), origins


def print_config(args: RunArgs, published_settings: Published) -> None:
    """Print what the arguments of a new run resolve to, and which of them are the paper's, as JSON.

    Raises:
        UserError: they name a run that is there.
    """
    if args.resume or args.evaluate or args.video:
        raise UserError("--print-config is about a new run; one that is there has its settings in its config.json")
    spec, asked = resolve(args.env_id, args.dataset_path), given(args)
    args, origins = complete(args, spec, published_settings)
    # What is not tabulated, since it is the same everywhere, is by default the paper's.
    decide = vars(args).keys() - with_role(type(args), Role.RUN, Role.DATA, Role.PLACE, Role.HOW)
    origins = {
        name: origins.get(name, "given" if name in asked else "published") for name in vars(args) if name in decide
    }
    config = {"environment": spec.name, "args": dataclasses.asdict(args), "origins": origins}
    print(json.dumps(config, indent=2, default=str))


def given(args: RunArgs) -> dict[str, Any]:
    """The arguments that are not what they are by default."""
    default = type(args)()
    return {name: value for name, value in vars(args).items() if value != getattr(default, name)}


def check_needs(args: RunArgs) -> None:
    """Raises `UserError` if an argument that is given does nothing, for want of another."""
    for name, needs in said(type(args)):
        if isinstance(needs, Needs) and name in given(args) and not needs.are_met(getattr(args, needs.name)):
            least = f" of at least {needs.at_least}" if needs.at_least > 1 else ""
            raise UserError(f"{flag(name)} does nothing without {flag(needs.name)}{least}")


def check_alone(args: RunArgs) -> None:
    """Raises `UserError` if --resume, --evaluate or --video has company that it does not take."""
    with_resume = with_role(type(args), Role.PLACE, Role.RESUME) | {"resume", "run_dir"}
    if args.resume and (refused := sorted(given(args).keys() - with_resume)):
        raise UserError(f"--resume takes no {flag(refused[0])}: the run has it already, and keeps it")
    if args.video is not None and (args.evaluate is None or args.video.suffix not in (".mp4", ".gif")):
        raise UserError(f"--video {args.video}: belongs to --evaluate, and to a name that ends in .mp4 or .gif")
    if args.video is not None and not args.video.parent.is_dir():
        raise UserError(f"--video {args.video}: there is no folder {args.video.parent}")


def for_resuming(trained: Args, asked: Args, step: int) -> Args:
    """The arguments of a run that is to go on, with what was given beside --resume instead.

    Args:
        trained: those of the run.
        asked: as given.
        step: updates so far.

    Raises:
        UserError: a part of the training would become shorter, or longer when the next has begun.
    """
    may_change = with_role(type(asked), Role.RESUME)
    args = dataclasses.replace(trained, **{n: value for n, value in given(asked).items() if n in may_change})
    for name in ("offline_steps", "online_steps"):
        if (now := getattr(args, name)) < (before := getattr(trained, name)):
            raise UserError(f"{flag(name)} {now}: the run has {before:,}, and can be trained longer, not shorter")
    if args.offline_steps > trained.offline_steps and step > trained.offline_steps:
        begun = f"fine-tuning online has begun after {trained.offline_steps:,}"
        raise UserError(f"--offline-steps {args.offline_steps}: {begun}; --online-steps can be more")
    return args


def for_evaluation(trained: Args, asked: Args) -> Args:
    """The arguments of a run that is to be evaluated, with what was given beside --evaluate instead.

    Raises:
        UserError: something was given that --evaluate does not take, or that does nothing.
    """
    changes = given(asked)
    if refused := [name for name in changes if name not in with_role(type(asked), Role.EVALUATE, Role.PLACE)]:
        raise UserError(f"--evaluate takes no {flag(refused[0])}: it does not change what was learned")
    args = dataclasses.replace(trained, **changes)
    check_needs(args)
    return args
