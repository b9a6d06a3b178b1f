"""The JSON schema of a spec: for editors, and for the words in which the loader says what is allowed.

The descriptions of the keys are the ``:param`` lines of the models, so that an editor shows them. Kept as
``spec.schema.json`` beside this file; ``python -m airflow_provider_sml.pipelines schema`` prints it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from airflow_provider_sml.ml.contract.dataset import Place
from airflow_provider_sml.ml.contract.model import A_NAME, Strict
from airflow_provider_sml.ml.contract.quantities import EXPECTED
from airflow_provider_sml.pipelines.spec import PipelineSpec

Node = dict[str, Any]

_PARAM = re.compile(r"^:param (\w+): (.*(?:\n {4,}.*)*)", re.MULTILINE)
_WORDS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
          "null": "null"}  # fmt: skip
_PLURALS = {"text": "texts", "a whole number": "whole numbers", A_NAME: "names"}


@cache
def spec_schema() -> Node:
    """The JSON schema of a spec."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **PipelineSpec.model_json_schema(),
        "title": "airflow-provider-sml pipeline",
    }
    models = {model.__name__: model for model in _models(Strict)}
    for name, node in (("PipelineSpec", schema), *schema["$defs"].items()):
        _describe_keys(node, models[name])
    _close_names(schema)
    return schema


def nodes_at(place: Place) -> list[Node]:
    """What the schema allows at a place; several for alternatives, none for an unknown place."""
    nodes = _alternatives(spec_schema())
    for part in place:
        following: list[Node] = []
        for node in nodes:
            if isinstance(part, int):
                child = (node.get("prefixItems") or [])[part : part + 1] or [node.get("items")]
            else:
                patterns = list(node.get("patternProperties", {}).values())
                child = [node.get("properties", {}).get(part) or next(iter(patterns), node.get("additionalProperties"))]
            if isinstance(child[0], dict):
                following += _alternatives(child[0])
        nodes = following
    return nodes


def keys_at(place: Place) -> list[str]:
    """The keys that a mapping at a place may have; empty when they are free."""
    return sorted({key for node in nodes_at(place) for key in node.get("properties", {})})


def words_at(place: Place) -> list[str]:
    """The fixed words that may stand at a place."""
    return [str(word) for node in nodes_at(place) for word in (node.get("enum") or [node.get("const")]) if word]


def expected_at(place: Place) -> str:
    """In words what may stand at a place."""
    nodes = nodes_at(place)
    return _either([node for node in nodes if node.get("type") != "null"] or nodes)


def meaning_at(place: Place) -> str:
    """What the key at a place means, in parentheses; empty when nothing is written about it."""
    for node in nodes_at(place[:-1]):
        if text := node.get("properties", {}).get(place[-1], {}).get("description"):
            return f" ({text.rstrip('.')})"
    return ""


def _either(nodes: list[Node]) -> str:
    return " or ".join(dict.fromkeys(_words(node) for node in nodes))


def _words(node: Node) -> str:
    if EXPECTED in node:
        return str(node[EXPECTED])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        *first, last = map(str, node["enum"])
        return f"{', '.join(first)} or {last}"
    kind = node.get("type")
    if kind == "object":
        return _mapping_words(node)
    if kind == "array":
        if "prefixItems" in node:
            return "[" + ", ".join(_either(_alternatives(item)) for item in node["prefixItems"]) + "]"
        items = _either(_alternatives(node["items"]))
        return "a list of " + _PLURALS.get(items, items)
    words = _WORDS[str(kind)]
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f"{words} from {low:g} to {high:g}"
    for key, word in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "up to")):
        if key in node:
            words += f" {word} {node[key]:g}"
    return words


def _mapping_words(node: Node) -> str:
    properties = node.get("properties", {})
    if not properties:
        values = next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))
        return "a mapping of names to " + _either(_alternatives(values or {}))
    if len(properties) <= 2:
        return "{" + ", ".join(f"{key}: {_either(_alternatives(value))}" for key, value in properties.items()) + "}"
    return f"a mapping with keys of {', '.join(properties)}"


def _alternatives(node: Node) -> list[Node]:
    if "$ref" in node:
        return _alternatives(spec_schema()["$defs"][node["$ref"].rsplit("/", 1)[1]])
    if EXPECTED in node:
        return [node]
    choices = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
    return [found for choice in choices for found in _alternatives(choice)] if choices else [node]


def _models(base: type[Strict]) -> Iterator[type[Strict]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _close_names(node: Any) -> None:
    """Refuse keys whose names fit no pattern, as the models do."""
    if isinstance(node, dict) and "patternProperties" in node:
        node["additionalProperties"] = False
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _close_names(child)


def _describe_keys(node: Node, model: type[Strict]) -> None:
    """Put the docstring's lines about the parameters on the keys."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, Strict):
            found = _PARAM.findall(inspect.getdoc(cls) or "")
            texts |= {name: " ".join(text.split()).replace("``", "`") for name, text in found}
    node["description"] = " ".join((inspect.getdoc(model) or "").split(":param")[0].split())
    for key, child in node.get("properties", {}).items():
        child.pop("title", None)
        if key in texts:
            child["description"] = texts[key]
