"""Command lines, with numbers as people write them, and help under the headings of the class."""

import ast
import collections
import dataclasses
import functools
import inspect
import pathlib
import textwrap
import typing
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

NAMES = {int: "INT", float: "FLOAT", str: "STR", pathlib.Path: "PATH"}  # as tyro calls them

ArgsClass = typing.TypeVar("ArgsClass")
_REGISTRY = ConstructorRegistry()


def whole_number(word: str) -> int:
    """Of '1000000', '1e6' or '1.5e3'. Raises `ValueError` where it is none."""
    try:
        return int(word)
    except ValueError:
        if not (value := float(word)).is_integer():
            raise ValueError(f"{word} is not a whole number") from None
        return int(value)


@_REGISTRY.primitive_rule
def _int_rule(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if type_info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole_number(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def read(args_class: type[ArgsClass], **options: Any) -> Any:
    """What `tyro.cli` returns; whole numbers may have an exponent, and --help has a box for each heading of the class.

    Args:
        args_class: a dataclass; a comment on a line of its own ('# Data') is the heading of the fields below it.
        options: of `tyro.cli`.
    """
    options = {"description": args_class.__doc__, "config": (tyro.conf.OmitArgPrefixes,)} | options
    with _REGISTRY:
        found = tyro.cli(_boxes(args_class), **options)
    filled, *unknown = found if isinstance(found, tuple) else (found,)
    args = args_class(**collections.ChainMap(*(vars(box) for box in vars(filled).values())))
    return (args, *unknown) if unknown else args


@functools.cache
def _boxes(args_class: type) -> type:
    """A dataclass of dataclasses, one for each heading: what tyro makes boxes of."""
    hints, headings, boxes = typing.get_type_hints(args_class, include_extras=True), _headings(args_class), {}
    for field in dataclasses.fields(args_class):
        heading, text = headings[field.name]
        shown = tyro.conf.arg(help=text, metavar=_metavar(hints[field.name]), help_behavior_hint=_hint)
        default = dataclasses.field(default=field.default, default_factory=field.default_factory)
        boxes.setdefault(heading, []).append((field.name, Annotated[hints[field.name], shown], default))
    return dataclasses.make_dataclass(
        args_class.__name__,
        [
            (f"box{i}", Annotated[dataclasses.make_dataclass(f"Box{i}", fields), tyro.conf.arg(name=heading)])
            for i, (heading, fields) in enumerate(boxes.items())
        ],
    )


def _headings(args_class: type) -> dict[str, tuple[str, str]]:
    """Field -> the heading above it and the string below it, in the source of the class, or of those it is based on."""
    found = {}
    for part in filter(dataclasses.is_dataclass, reversed(args_class.__mro__)):
        source = textwrap.dedent(inspect.getsource(part))
        headings = [(i, line.strip("# ")) for i, line in enumerate(source.splitlines(), 1) if line.startswith("    # ")]
        body = ast.parse(source).body[0].body
        for field, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                above = [heading for i, heading in headings if i < field.lineno]
                text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
                found[field.target.id] = (above or [""])[-1], " ".join(text.split())
    return found


def _metavar(hint: Any) -> str | None:
    """'INT' of `int | None`, which tyro calls '{None}|INT'; None of what it names well."""
    types = _types(hint)
    if type(None) not in types:
        return None
    choices = [typing.get_args(each) for each in types if typing.get_origin(each) is Literal]
    names = [f"{{{','.join(map(str, each))}}}" for each in choices] + [NAMES[each] for each in types if each in NAMES]
    return names[0] if names else None


def _hint(default: str) -> str:
    """What help says of a default; of None, and of nothing, the text says what it stands for."""
    return "" if default in ("None", "") else f"(default: {default})"


def canonical(args_class: type, name: str, word: str) -> str:
    """A word that is a value of this argument; of a number, however it is written, always the same."""
    if not {int, float} & _types(typing.get_type_hints(args_class)[name]):
        return word
    try:
        value = float(word)
    except ValueError:  # None, say
        return word
    return str(whole_number(word)) if value.is_integer() else repr(value)


def _types(hint: Any) -> set[Any]:
    return {hint}.union(*map(_types, typing.get_args(hint)))
