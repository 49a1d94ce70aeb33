"""What each argument is to a result, said where it is declared: `eval_workers: Annotated[int, Role.HOW] = 4`.

Plots, tables, sweeps, --evaluate and --resume read it there. An argument that says nothing counts: where it is not the
paper's, it is in the name of the method.
"""

import dataclasses
import enum
import functools
import typing
from typing import Any


class Role(enum.Enum):
    """Of an argument; it may have several."""

    SIZE = "how much: has a column of its own, and is in the name where runs of a task differ in it"
    JUDGING = "how what was learned is judged: likewise"
    RUN = "which run it is, and what is done with it"
    HOW = "how it is done: has no part in what is learned"
    DATA = "which data: runs are told apart by the data itself, folders of a sweep by this"
    PLACE = "where the data is by now: goes with --resume and --evaluate"
    EVALUATE = "goes with --evaluate; None unless it is given"
    RESUME = "may change when a run goes on; its default stands for what it was"


class Needs(typing.NamedTuple):
    """Said of an argument that does nothing unless another one has at least this value."""

    name: str
    at_least: int = 1

    def are_met(self, value: Any) -> bool:
        """Whether the other one has it: a number as large, or anything given at all."""
        return value >= self.at_least if isinstance(value, int) else value is not None


@functools.cache
def said(args_class: type) -> list[tuple[str, Any]]:
    """Arguments, each with each of the things that stand beside its type."""
    hints = typing.get_type_hints(args_class, include_extras=True)
    names = [field.name for field in dataclasses.fields(args_class)]
    return [(name, each) for name in names for each in getattr(hints[name], "__metadata__", ())]


def with_role(args_class: type, *roles: Role) -> set[str]:
    """The arguments that have any of these roles."""
    return {name for name, each in said(args_class) if isinstance(each, Role) and each in roles}
