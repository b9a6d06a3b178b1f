"""Reads a spec file and says of every mistake where it is: file, line, what was expected, what was found.

A profile beside the file (``flights.production.yaml`` for the profile ``production``) is laid over it; it changes only
places and sizes. The profile is the one asked for, or that of the environment variable ``SML_PROFILE``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from airflow_provider_sml.errors import ConfigurationError, SmlError
from airflow_provider_sml.ml.contract.dataset import Place
from airflow_provider_sml.pipelines.spec import PipelineSpec

PROFILE = "SML_PROFILE"


class PipelineSpecError(ConfigurationError):
    """A spec file is wrong; the message holds every mistake with its line."""


@dataclass
class Document:
    """A YAML document that remembers where each value stood.

    :param value: what it says.
    :param lines: file and line by place.
    """

    value: Any
    lines: dict[Place, tuple[Path, int]] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """``file:line`` of a place, or of the nearest thing around it."""
        while place and place not in self.lines:
            place = place[:-1]
        path, line = self.lines[place]
        return f"{path}:{line}"

    def overlay(self, other: Document) -> Document:
        """This document with another's values laid over it, mapping by mapping."""
        lines = dict(self.lines)

        def lay(under: Any, over: Any, place: Place) -> Any:
            if isinstance(under, dict) and isinstance(over, dict):
                merged = dict(under)
                for key, value in over.items():
                    merged[key] = lay(under.get(key), value, (*place, key))
                return merged
            for known in [known for known in lines if known[: len(place)] == place]:
                del lines[known]
            lines.update({known: at for known, at in other.lines.items() if known[: len(place)] == place})
            return over

        return Document(lay(self.value, other.value, ()), lines)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which only true and false are booleans: ``on`` and ``no`` are words, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def load_spec(path: str | Path, profile: str | None = None) -> PipelineSpec:
    """Read and check a spec.

    :param path: of the YAML file.
    :param profile: name of a profile beside it; the environment's when None.
    :raises PipelineSpecError: with every mistake and its line.
    """
    path = Path(path)
    document = read_document(path)
    profile = profile if profile is not None else os.environ.get(PROFILE)
    if profile:
        document = document.overlay(read_document(path.with_name(f"{path.stem}.{profile}{path.suffix}")))
    mistakes: list[str] = []
    try:
        spec = PipelineSpec.model_validate(document.value)
    except ValidationError as error:
        mistakes = [f"{document.where(place)}: {text}" for place, text in _structure(error, document.value)]
    else:
        mistakes = [f"{document.where(place)}: {problem}" for place, problem in _problems(spec)]
    if mistakes:
        raise PipelineSpecError("\n".join(mistakes))
    return spec


def read_document(path: Path) -> Document:
    """Read a YAML file with the line of every value.

    :raises PipelineSpecError: when it cannot be read, or a key stands there twice.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise PipelineSpecError(
            f"{path} cannot be read", expected="a spec file in YAML", found=error.strerror, todo="check the path"
        ) from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        document = Document(None, {(): (path, 1)})
        if node is None:
            raise PipelineSpecError(f"{path}:1: the file is empty", expected="a mapping that starts with name: ...")
        _note_lines(node, (), path, document.lines)
        document.value = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise PipelineSpecError(f"{path}:{line}: this is not YAML: {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()
    return document


def _note_lines(node: yaml.Node, place: Place, path: Path, lines: dict[Place, tuple[Path, int]]) -> None:
    lines.setdefault(place, (path, node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise PipelineSpecError(f"{path}:{line}: {key.value} stands here twice", todo="keep one of the two")
            seen.add(key.value)
            lines[(*place, key.value)] = (path, line)
            _note_lines(value, (*place, key.value), path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _note_lines(value, (*place, position), path, lines)


def _problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    found = False
    for place, problem in spec.dataset.problems():
        found = True
        yield place, problem
    if found:
        return
    for place, name, allowed in spec.column_uses():
        if name not in allowed:
            close = difflib.get_close_matches(name, sorted(allowed), n=1)
            yield (
                place,
                ConfigurationError(
                    f"{'.'.join(str(part) for part in place if isinstance(part, str))} names {name}",
                    expected="one of " + ", ".join(sorted(allowed)),
                    found=name,
                    todo=f"did you mean {close[0]}?" if close else None,
                ),
            )


def _structure(error: ValidationError, value: Any) -> Iterator[tuple[Place, str]]:
    """Pydantic's errors in our words, one a place."""
    seen: set[Place] = set()
    for item in error.errors(include_url=False):
        place = _place(item["loc"], value)
        if place in seen:
            continue
        seen.add(place)
        name = ".".join(str(part) for part in place) or "the file"
        if item["type"] == "extra_forbidden":
            yield place, _unknown_key(place, name)
        elif item["type"] == "missing":
            yield place, f"{name} is missing"
        else:
            found = repr(item["input"])
            shown = found if len(found) <= 80 else found[:77] + "..."
            message = item["msg"].removeprefix("Value error, ")
            yield place, f"{name}: {message[0].lower()}{message[1:]}\n  found: {shown}"


def _place(location: tuple[int | str, ...], value: Any) -> Place:
    """The part of pydantic's location that names keys of the file, and not the members of a union."""
    place: list[int | str] = []
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if isinstance(value, dict) and (part in value or (last and isinstance(part, str) and part != "[key]")):
            place.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return tuple(place)


def _unknown_key(place: Place, name: str) -> str:
    allowed = _allowed(place[:-1])
    close = difflib.get_close_matches(str(place[-1]), allowed, n=1)
    text = f"{name} is not a key of the spec"
    if allowed:
        text += f"\n  expected: one of {', '.join(allowed)}; found: {place[-1]}"
    return text + (f"; did you mean {close[0]}?" if close else "")


def _allowed(place: Place) -> list[str]:
    """The keys that the spec knows at a place, from its JSON schema."""
    schema = PipelineSpec.model_json_schema()
    definitions = schema["$defs"]

    def resolve(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return [definitions[node["$ref"].rsplit("/", 1)[1]]]
        return [found for choice in node.get("anyOf", node.get("allOf", [])) for found in resolve(choice)] or [node]

    nodes = [schema]
    for part in place:
        following: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(part, int):
                child = node.get("items")
            else:
                child = node.get("properties", {}).get(part) or node.get("additionalProperties")
                child = child or next(iter(node.get("patternProperties", {}).values()), None)
            if isinstance(child, dict):
                following += resolve(child)
        nodes = following
    return sorted({key for node in nodes for key in node.get("properties", {})})
