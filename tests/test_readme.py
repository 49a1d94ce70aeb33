"""README.md: its commands are understood by the programs that they call."""

import re
import shlex
import stat

import antmaze
import drol
import fql
import loading
import make
import physics
import pixels
import plot
import speed
import sweep
import table
from common import command_line
from common.data import collect, d4rl_check

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
PAGES = "".join(
    page.read_text()
    for page in (REPOSITORY / "README.md", REPOSITORY / "common/README.md", *sorted(REPOSITORY.glob("results/**/*.md")))
)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL) for line in block.splitlines()]
PROGRAMS = {
    "drol.py": drol.Args,
    "fql.py": fql.Args,
    "common.data.collect": collect.Args,
    "common.data.d4rl_check": d4rl_check.Args,
    "results/plot.py": plot.PlotArgs,
    "results/table.py": table.TableArgs,
    "results/experiments/loading.py": loading.LoadingArgs,
    "results/experiments/physics.py": physics.PhysicsArgs,
    "results/experiments/pixels.py": pixels.PixelArgs,
    "results/experiments/speed.py": speed.SpeedArgs,
    "results/experiments/make.py": make.MakeArgs,
    "results/experiments/antmaze.py": antmaze.AntmazeArgs,
    "results/sweep.py": sweep.SweepArgs,
}


def arguments(line: str) -> tuple[type, list[str]] | None:
    words = shlex.split(line)
    for name, args_class in PROGRAMS.items():
        if name in words:
            return args_class, words[words.index(name) + 1 :]
    return None


# Those of a line that has several, and of a shell's loop with a value for its variable.
SINGLE = [re.sub(r"\$\w+", "1", part) for line in COMMANDS for part in re.split("&&|;", line)]


@pytest.mark.parametrize("line", [line for line in SINGLE if arguments(line)])
def test_the_arguments_exist(line):
    args_class, words = arguments(line)
    if args_class is sweep.SweepArgs:  # which passes on those of the scripts
        args, passed_on = sweep.parse(words)
        assert sweep.grid(args, passed_on)
    else:
        assert isinstance(command_line.read(args_class, args=words), args_class)


def test_both_first_commands_do_all_their_set_up():
    main, tests = COMMANDS[:2]
    set_up = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python"
    assert main == f"{set_up} drol.py --env-id cube-double"
    assert tests == f"{set_up} -m pytest"


def test_ci_runs_the_readmes_test_command():
    script = REPOSITORY / ".ci" / "run"
    assert "README.md" in script.read_text()
    assert script.stat().st_mode & stat.S_IXUSR


def test_every_option_named_in_the_text_exists():
    known = {name.replace("_", "-") for args_class in PROGRAMS.values() for name in args_class.__dataclass_fields__}
    known |= {"help"}
    for option in re.findall(r"--([a-z][a-z0-9-]+)", PAGES):
        assert option.removeprefix("no-") in known, option
