"""Command lines, with numbers as people write them."""

import typing
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

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


def read(args_class: type[ArgsClass], **options: Any) -> ArgsClass:
    """`tyro.cli`; whole numbers may have an exponent."""
    with _REGISTRY:
        return tyro.cli(args_class, **options)


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
