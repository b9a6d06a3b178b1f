"""Writes the reference of the documentation from docstrings and models, when the site is built.

An MkDocs hook (``hooks:`` in mkdocs.yml): a line ``<!-- reference: NAME -->`` in a page becomes the tables of NAME, one
of ``REFERENCES``; ``<!-- example: NAME -->`` becomes a file of this repository, one of ``EXAMPLES``. Nothing
generated is kept in the repository, so the reference cannot fall behind. Pages stay readable without it.

    python scripts/reference.py operators     prints what the site shows
"""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "airflow_provider_sml"
MARKER = re.compile(r"^<!-- (reference|example): (\w+) -->$", re.MULTILINE)
#: The modules of the Airflow surface, and the class that marks what a DAG author uses.
SURFACE = {
    "operators": "Operators",
    "sensors": "Sensors",
    "triggers": "Triggers",
    "notifications": "Notifications",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the markers of a page; MkDocs calls this."""
    return MARKER.sub(lambda match: {"reference": REFERENCES, "example": EXAMPLES}[match[1]][match[2]](), markdown)


@dataclass(frozen=True)
class Doc:
    """A docstring in parts.

    :param text: everything before the first field.
    :param params: text of each ``:param name:``.
    :param raises: what ``:raises`` says.
    """

    text: str
    params: dict[str, str]
    raises: list[str]

    @classmethod
    def of(cls, thing: Any) -> Doc:
        """The docstring of a class or a function, taken apart."""
        text, *fields = re.split(r"\n[ \t]*(?=:\w+)", inspect.cleandoc(thing.__doc__ or ""))
        params: dict[str, str] = {}
        raises: list[str] = []
        for block in fields:
            field = re.match(r":(\w+)\s*(\w*):\s*(.*)", block.partition("\n\n")[0], re.DOTALL)
            if field and field[1] == "param":
                params.setdefault(field[2], " ".join(field[3].split()))
            elif field and field[1] == "raises":
                raises.append(f"`{field[2]}` {' '.join(field[3].split())}")
        return cls(text.strip(), params, raises)

    @property
    def markdown(self) -> str:
        """The text as Markdown: double back-quotes and literal blocks are reStructuredText's."""
        paragraphs = []
        for paragraph in self.text.split("\n\n"):
            paragraphs.append(paragraph if paragraph.startswith("    ") else _inline(paragraph))
        return "\n\n".join(paragraphs).replace("::\n", ":\n")


def _inline(text: str) -> str:
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return _inline(" ".join(text.split())).replace("|", "\\|")


def modules(part: str) -> Iterator[Any]:
    """Every module of a part of the package."""
    package = importlib.import_module(f"{PACKAGE}.{part}")
    for found in sorted(pkgutil.walk_packages(package.__path__, package.__name__ + "."), key=lambda item: item.name):
        yield importlib.import_module(found.name)


def public_classes(part: str) -> list[type]:
    """The classes that the modules of a part define for DAG authors."""
    suffixes = ("Operator", "Sensor", "Trigger", "Notifier")
    return [
        value
        for module in modules(part)
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and name.endswith(suffixes)
        and not name.startswith("_")
        and name not in ("SmlOperator", "RemoteJobOperator")
    ]


def operators() -> str:
    """Operators, sensors, triggers and notifications with their parameters."""
    parts = []
    for part, title in SURFACE.items():
        classes = public_classes(part)
        if classes:
            parts.append(f"## {title}")
        parts += [_class(value) for value in classes]
    return "\n\n".join(parts)


def _class(value: type) -> str:
    doc = Doc.of(value)
    described: dict[str, str] = {}
    for base in reversed(value.__mro__):
        described |= Doc.of(base).params if base.__module__.startswith(PACKAGE) else {}
    lines = [f"### {value.__name__}", f"`from {value.__module__} import {value.__name__}`", doc.markdown]
    rows = []
    templated = set(getattr(value, "template_fields", ()))
    for parameter in _parameters(value):
        default = "required" if parameter.default is parameter.empty else f"`{_argument(parameter.default)}`"
        mark = " *" if parameter.name in templated else ""
        rows.append(f"| `{parameter.name}`{mark} | {default} | {_cell(described.get(parameter.name, ''))} |")
    if rows:
        lines.append("\n".join(["| parameter | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(line for line in lines if line)


def _argument(value: Any) -> str:
    return _duration(value) if isinstance(value, dt.timedelta) else repr(value)


def _parameters(value: type) -> list[inspect.Parameter]:
    """The parameters of our own constructors along the bases, without Airflow's."""
    found: dict[str, inspect.Parameter] = {}
    for base in value.__mro__:
        if not base.__module__.startswith(PACKAGE) or "__init__" not in vars(base):
            continue
        for name, parameter in inspect.signature(inspect.unwrap(vars(base)["__init__"])).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
    return list(found.values())


def spec() -> str:
    """The keys of a spec, part by part, from its models."""
    from airflow_provider_sml.pipelines.spec import PipelineSpec

    parts, seen = [], set()

    def visit(model: Any, path: str) -> None:
        if model in seen:
            return
        seen.add(model)
        doc = Doc.of(model)
        described: dict[str, str] = {}
        for base in reversed(model.__mro__):
            described |= Doc.of(base).params if base.__module__.startswith(PACKAGE) else {}
        rows, inner = [], []
        for name, field in model.model_fields.items():
            key = field.alias or name
            default = "required" if field.is_required() else f"`{_default(field)}`"
            rows.append(f"| `{key}` | {default} | {_cell(described.get(key, ''))} |")
            for nested, many in _models(field.annotation):
                inner.append((nested, f"{path}.{key}{many}" if path else f"{key}{many}"))
        title = f"### `{path}`" if path else "### The file"
        parts.append(
            "\n\n".join([title, doc.markdown, "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows)])
        )
        for nested, where in inner:
            visit(nested, where)

    visit(PipelineSpec, "")
    return "\n\n".join(parts)


def _default(field: Any) -> str:
    """A key's default as YAML has it."""
    value = field.get_default(call_default_factory=True)
    if hasattr(type(value), "model_fields"):
        return "as below"
    if isinstance(value, dt.timedelta):
        return _duration(value)
    return json.dumps(value, default=str) if not isinstance(value, str) or not value else value


def _duration(value: dt.timedelta) -> str:
    seconds = int(value.total_seconds())
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


def _models(annotation: Any) -> Iterator[tuple[Any, str]]:
    """The models within a type, with how their place is written: ``[]`` in a list, ``.NAME`` in a mapping."""
    if inspect.isclass(annotation) and hasattr(annotation, "model_fields"):
        yield annotation, ""
        return
    origin = typing.get_origin(annotation)
    mark = {list: "[]", dict: ".NAME"}.get(origin, "") if inspect.isclass(origin) else ""
    for argument in typing.get_args(annotation):
        for nested, inner in _models(argument):
            yield nested, mark + inner


def expressions() -> str:
    """The functions of the expression language."""
    from airflow_provider_sml.ml.expressions import functions

    meaning = next(part for part in (inspect.getdoc(functions) or "").split("\n\n") if part.startswith("- "))
    written = "\n".join(function.usage for function in functions.FUNCTIONS.values())
    return f"```text\n{written}\n```\n\n{_inline(meaning)}"


def connections() -> str:
    """The connection types with the fields of their forms."""
    from airflow_provider_sml.get_provider_info import get_provider_info

    parts = []
    for kind in get_provider_info()["connection-types"]:
        behaviour = kind.get("ui-field-behaviour", {})
        hidden, names = set(behaviour.get("hidden-fields", ())), behaviour.get("relabeling", {})
        shown = behaviour.get("placeholders", {})
        rows = [
            f"| {names.get(name, name.capitalize())} | {_cell(shown.get(name, ''))} |"
            for name in ("host", "login", "password", "port", "schema")
            if name not in hidden
        ]
        for field in kind.get("conn-fields", {}).values():
            rows.append(f"| {field['label']} | {_cell(field.get('description', ''))} |")
        head = f"### `{kind['connection-type']}`: {kind['hook-name']}"
        parts.append("\n\n".join([head, "| field | meaning |\n|---|---|\n" + "\n".join(rows)]))
    return "\n\n".join(parts)


def measurements() -> str:
    """What the benchmarks found last, a table each, after what the first lines of the benchmark say."""
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        code = (ROOT / "benchmarks" / f"{path.stem}.py").read_text()
        about = inspect.cleandoc(re.match(r'"""(.*?)"""', code, re.DOTALL)[1])  # type: ignore[index]
        columns = ("case", "metric", "ours", "baseline", "ratio", "goal")
        lines = [columns, ["---"] * len(columns)]
        lines += [[_cell(_figure(row[name])) for name in columns] for row in json.loads(path.read_text())]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        again = f"`make bench NAME={path.stem}` measures it again."
        parts.append(f"## {path.stem.capitalize()}\n\n{about}\n\n{table}\n\n{again}")
    return "\n\n".join(parts)


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def source(path: str, language: str) -> str:
    """A file of this repository as a code block."""
    return f"```{language}\n{(ROOT / path).read_text().rstrip()}\n```"


def lineage() -> str:
    """The tags of a version."""
    from airflow_provider_sml.ml.registry.lineage import TAG, TAGS

    rows = [f"| `{TAG}{name}` | {_cell(text)} |" for name, text in TAGS.items()]
    return "\n".join(["| tag | what it says |", "|---|---|", *rows])


EXAMPLES: dict[str, Callable[[], str]] = {
    "spec": lambda: source("include/pipelines/flights.yaml", "yaml"),
    "champion": lambda: source("airflow_provider_sml/example_dags/example_champion.py", "python"),
    "churn": lambda: source("airflow_provider_sml/example_dags/example_churn.py", "python"),
}
REFERENCES: dict[str, Callable[[], str]] = {
    "operators": operators,
    "spec": spec,
    "expressions": expressions,
    "connections": connections,
    "measurements": measurements,
    "lineage": lineage,
}

if __name__ == "__main__":
    print(REFERENCES[sys.argv[1]]())
