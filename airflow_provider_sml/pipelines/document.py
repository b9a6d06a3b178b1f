"""YAML that remembers on which line each value stands.

The YAML is version 1.2 where 1.1 surprises: only ``true`` and ``false`` are booleans (``NO`` is Norway), ``12:30``,
``2026-01-31`` and ``007`` are texts, and ``1e-3`` is a number. Nothing but text, numbers, booleans, lists and mappings
can be made. It knows nothing of what a spec may say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.dataset import Place


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

    def line(self, place: Place) -> tuple[Path, int]:
        """File and line of a place, or of the nearest thing around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def where(self, place: Place) -> str:
        """``file:line`` of a place."""
        path, line = self.line(place)
        return f"{path}:{line}"

    def overlay(self, other: Document) -> Document:
        """This document with another's values laid over it, mapping by mapping; lists are replaced."""
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


class SpecLoader(yaml.SafeLoader):
    """Safe YAML with the plain values of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:0|[1-9][0-9]*)?\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.|(?=[eE])))(?:[eE][-+]?[0-9]+)?$",
     "-+.0123456789"),
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("merge", r"^<<$", "<"),
):  # fmt: skip
    SpecLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read_document(path: Path) -> Document:
    """Read a YAML file with the line of every value.

    :raises PipelineSpecError: when it cannot be read, is not YAML, is empty, or is not a mapping with each key once.
    """
    text = _text(path)
    loader = SpecLoader(text)
    try:
        node = loader.get_single_node()
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value.strip()):
            raise PipelineSpecError(f"{path}:1: the file is empty", expected="a mapping that starts with name: ...")
        document = Document(None, {})
        _note_lines(node, (), _Notes(path, document.lines, loader.flatten_mapping))
        document.value = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(error, path, text) from error
    finally:
        loader.dispose()
    return document


def _not_yaml(error: yaml.YAMLError, path: Path, text: str) -> PipelineSpecError:
    mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", None) or error)
    context = str(getattr(error, "context", None) or "")
    if "flow" in context or "quoted" in context:  # what was opened there is not closed well; the parser saw it later
        mark = getattr(error, "context_mark", None) or mark
    line = mark.line if mark else 0
    lines = text.splitlines() or [""]
    return PipelineSpecError(
        f"{path}:{line + 1}: this is not YAML: {problem.splitlines()[0].removeprefix('but ')}",
        expected="one mapping, indented with blanks; texts with ': ', ' #', or one of {}[]&*!|>%@` in front are quoted",
        found=lines[min(line, len(lines) - 1)].strip(),
    )


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PipelineSpecError(
            f"{path} cannot be read", expected="a spec file in YAML", found=error.strerror, todo="check the path"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PipelineSpecError(
            f"{path}:{line}: this is not text", expected="UTF-8", found=f"the byte 0x{error.object[error.start]:02x}"
        ) from error
    bad = yaml.SafeLoader.NON_PRINTABLE.search(text)
    if bad:
        line = text.count("\n", 0, bad.start()) + 1
        raise PipelineSpecError(f"{path}:{line}: this is not text", expected="UTF-8", found=repr(bad.group()))
    return text


@dataclass(frozen=True)
class _Notes:
    """Where lines are noted.

    :param path: of the file.
    :param lines: by place.
    :param flatten: replaces a mapping's ``<<`` by what it stands for.
    :param around: the nodes that the present one lies in.
    """

    path: Path
    lines: dict[Place, tuple[Path, int]]
    flatten: Callable[[yaml.MappingNode], None]
    around: list[yaml.Node] = field(default_factory=list)


def _note_lines(node: yaml.Node, place: Place, notes: _Notes) -> None:
    line = node.start_mark.line + 1
    notes.lines.setdefault(place, (notes.path, line))
    if any(node is outer for outer in notes.around):
        raise PipelineSpecError(f"{notes.path}:{line}: this value contains itself", todo="write it without the alias")
    notes.around.append(node)
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, notes.path)
        notes.flatten(node)
        for key, value in node.value:
            notes.lines[(*place, key.value)] = (notes.path, key.start_mark.line + 1)
            _note_lines(value, (*place, key.value), notes)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _note_lines(value, (*place, position), notes)
    notes.around.pop()


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            found = (key.value or "nothing") if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise PipelineSpecError(
                f"{path}:{line}: a key is not a word", expected="a name before the colon", found=found
            )
        if key.value in seen:
            raise PipelineSpecError(
                f"{path}:{line}: {key.value} stands here twice",
                expected="each key once",
                found=f"{key.value} on line {seen[key.value]} as well",
                todo="keep one of the two",
            )
        seen[key.value] = line
