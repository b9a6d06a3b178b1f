"""Reads a spec file and says of every mistake where it is: file, line, what was expected, what was found.

A profile beside the file (``flights.production.yaml`` for the profile ``production``) is laid over it; it changes
places, sizes, schedules and alerts, and never what the model is. The profile is the one asked for, or that of the
environment variable ``SML_PROFILE``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from airflow_provider_sml.errors import ConfigurationError, SmlError, did_you_mean
from airflow_provider_sml.ml.contract.dataset import Place, dotted
from airflow_provider_sml.ml.contract.model import A_NAME
from airflow_provider_sml.pipelines import schema
from airflow_provider_sml.pipelines.checks import problems
from airflow_provider_sml.pipelines.document import Document, PipelineSpecError, read_document
from airflow_provider_sml.pipelines.spec import PipelineSpec

__all__ = ["PROFILE", "PipelineSpecError", "load_spec"]

PROFILE = "SML_PROFILE"
#: What a profile may change. The rest is what the model is: it must be the same wherever it is trained and served.
PROFILE_KEYS = (
    "alert_again_after", "alerts", "deploy", "encryption", "monitor", "owner", "places", "runbook", "sample",
    "schedule", "source", "spark", "train", "warehouse",
)  # fmt: skip


def load_spec(path: str | Path, profile: str | None = None) -> PipelineSpec:
    """Read and check a spec.

    :param path: of the YAML file.
    :param profile: name of a profile beside it; the environment's when None, none when empty.
    :raises PipelineSpecError: with every mistake and its line.
    """
    path = Path(path)
    document = read_document(path)
    profile = profile if profile is not None else os.environ.get(PROFILE)
    mistakes: list[tuple[Place, SmlError]] = []
    if profile:
        over = read_document(_profile_file(path, profile))
        _refuse(over, _not_of_a_profile(over.value))
        document = document.overlay(over)
    try:
        spec = PipelineSpec.model_validate(document.value)
    except ValidationError as error:
        mistakes = list(_structure(error, document.value))
    else:
        mistakes = problems(spec)
    _refuse(document, mistakes)
    return spec


def _refuse(document: Document, mistakes: list[tuple[Place, SmlError]]) -> None:
    """Raise one error that tells every mistake with its line, in the order of the lines."""
    if mistakes:
        mistakes.sort(key=lambda mistake: document.line(mistake[0]))
        raise PipelineSpecError("\n".join(f"{document.where(place)}: {mistake}" for place, mistake in mistakes))


def _profile_file(path: Path, profile: str) -> Path:
    known = sorted(
        file.name.removeprefix(f"{path.stem}.").removesuffix(path.suffix)
        for file in path.parent.glob(f"{path.stem}.*{path.suffix}")
    )
    if profile not in known:
        raise PipelineSpecError(
            f"{path} has no profile {profile}",
            expected=f"one of {', '.join(known)}" if known else f"a file {path.stem}.{profile}{path.suffix} beside it",
            found=profile if known else "none",
            todo=did_you_mean(profile, known),
        )
    return path.with_name(f"{path.stem}.{profile}{path.suffix}")


def _not_of_a_profile(value: Any) -> list[tuple[Place, SmlError]]:
    known = set(PipelineSpec.model_fields) - set(PROFILE_KEYS)
    return [
        (
            (key,),
            ConfigurationError(
                f"a profile cannot change {key}",
                expected=f"one of {', '.join(PROFILE_KEYS)}; of gate its approval alone",
                found=key,
                todo="change it in the spec itself: a model is the same wherever it runs",
            ),
        )
        for key in (value if isinstance(value, dict) else ())
        # Who decides on a version may differ from place to place; what it must fulfil may not.
        if key in known and not (key == "gate" and isinstance(value[key], dict) and set(value[key]) == {"approval"})
    ]


def _structure(error: ValidationError, value: Any) -> Iterator[tuple[Place, SmlError]]:
    """Pydantic's errors in our words, one a place."""
    seen: set[Place] = set()
    for item in error.errors(include_url=False):
        kind, context, place = item["type"], item.get("ctx", {}), _place(item["loc"], value)
        if kind == "misfit" and context["key"]:
            place = (*place, context["key"])
        elif kind != "misfit" and place != item["loc"]:
            kind = "key" if item["loc"][-1] == "[key]" else "alternative"
        if place not in seen:
            seen.add(place)
            yield place, _mistake(place, kind, context, _at(value, place))


def _mistake(place: Place, kind: str, context: dict[str, Any], found: Any) -> SmlError:
    name = dotted(place) or "the file"
    if kind == "extra_forbidden":
        allowed = schema.keys_at(place[:-1])
        return ConfigurationError(
            f"{name} is not a key of the spec",
            expected=f"one of {', '.join(allowed)}",
            found=place[-1],
            todo=did_you_mean(place[-1], allowed),
        )
    if kind == "missing":
        meaning = schema.meaning_at(place)
        return ConfigurationError(f"{name} is missing", expected=schema.expected_at(place) + meaning)
    if kind == "misfit":
        return ConfigurationError(
            f"{name} is wrong",
            expected=context["expected"],
            found=context["found"] if context["key"] else _shown(found),
            todo=context["todo"] or None,
        )
    if kind == "key":
        return ConfigurationError(f"{name} cannot be a name", expected=A_NAME, found=place[-1])
    return ConfigurationError(
        f"{name} is wrong",
        expected=schema.expected_at(place),
        found=_shown(found),
        todo=did_you_mean(found, schema.words_at(place)) if isinstance(found, str) else None,
    )


def _place(location: tuple[int | str, ...], value: Any) -> Place:
    """Pydantic's location as far as it names places of the file.

    It names the members of unions between the keys, where the file has nothing; the mistake is then told of the whole.
    """
    place: list[int | str] = []
    for part in location:
        if _holds(value, part):
            value = value[part]
        elif isinstance(value, dict) and part in schema.keys_at(tuple(place)):  # a missing key is the last part
            value = None
        else:
            break
        place.append(part)
    return tuple(place)


def _holds(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _at(value: Any, place: Place) -> Any:
    for part in place:
        value = value.get(part) if isinstance(value, dict) else value[part]
    return value


def _shown(value: Any) -> str:
    """A value as it could stand in YAML, shortened."""
    if value is None:
        return "nothing"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    text = " ".join(text.removesuffix("\n").removesuffix("...").split())
    return text if len(text) <= 80 else text[:77] + "..."
