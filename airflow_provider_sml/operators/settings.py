"""Whether settings that a person wrote as a mapping are of the types that an adapter takes."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sml.errors import ConfigurationError

_WORDS: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", tuple: "a list",
    Sequence: "a list", Mapping: "a mapping", dict: "a mapping", type(None): "nothing",
}  # fmt: skip


def check_types(kind: str, adapter: type, settings: Mapping[str, Any]) -> None:
    """Refuse settings of a wrong type.

    :param kind: what they are settings of, for the message.
    :param adapter: dataclass whose annotations say the types.
    :param settings: by name of its fields; others are not looked at.
    :raises ConfigurationError: for the first that is wrong.
    """
    hints = typing.get_type_hints(adapter)
    for name, value in settings.items():
        if name in hints and not _fits(value, hints[name]):
            raise ConfigurationError(
                f"the setting {name} of {kind} is of another type", expected=" or ".join(_words(hints[name])),
                found=repr(value),
            )  # fmt: skip


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence):
        parts = isinstance(value, list | tuple)
        return parts and (not inner or all(_fits(part, inner[0]) for part in value))
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and (not inner or all(_fits(part, inner[1]) for part in value.values()))
    return isinstance(value, origin) if origin in _WORDS else True


def _words(hint: Any) -> Iterator[str]:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in inner:
            yield from _words(one)
    elif origin in (list, tuple, Sequence) and inner and inner[0] in _WORDS:
        yield f"{_WORDS[origin]}, each {_WORDS[inner[0]]}"
    elif origin in (Mapping, dict) and inner and inner[1] in _WORDS:
        yield f"{_WORDS[origin]} of names, each to {_WORDS[inner[1]]}"
    else:
        yield _WORDS.get(origin, str(hint))
