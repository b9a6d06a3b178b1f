"""What Vertex AI takes as names, labels and keys, how it filters lists, and what its machines cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sml.testing.google.errors import GoogleError, invalid
from airflow_provider_sml.testing.google.filters import CLAUSE, COMPARE

_LABEL = re.compile(r"[\w-]{0,64}")
_KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")
#: Most replicas of a spot resource that Compute Engine restarts after it took their machines away.
MOST_RESTARTS = 6


def location(name: str) -> str:
    """A location's name, checked."""
    if not re.fullmatch(r"projects/[^/]+/locations/[a-z0-9-]+", name):
        raise invalid(f"Invalid resource name: {name}")
    return name


def resource(name: str, kind: str) -> str:
    """A resource's name, checked.

    :param kind: such as ``customJobs``.
    """
    if not re.fullmatch(rf"projects/[^/]+/locations/[a-z0-9-]+/{kind}/[^/@]+(@[\w-]+)?", name):
        raise invalid(f"Invalid resource name: {name}")
    return name


def missing(name: str) -> GoogleError:
    """What the service says of a resource that is not there."""
    return GoogleError("NOT_FOUND", f"The resource {name} is not found.")


def check_common(message: Any) -> None:
    """Refuse a display name, labels or a key that the service would refuse."""
    if len(message.display_name) > 128:
        raise invalid("display_name can be up to 128 characters long")
    if len(message.labels) > 64:
        raise invalid(f"No more than 64 labels can be associated with a resource, found {len(message.labels)}")
    for key, value in message.labels.items():
        fits = key and _LABEL.fullmatch(key) and _LABEL.fullmatch(value) and (key + value).lower() == key + value
        if not fits:
            raise invalid(f"Label '{key}={value}' may hold small letters, digits, underscores and dashes, at most 64")
    if "encryption_spec" in message and not _KEY.fullmatch(message.encryption_spec.kms_key_name):
        raise invalid(f"Invalid KMS key name: {message.encryption_spec.kms_key_name}")


def check_machine(spec: Any, what: str) -> None:
    """Refuse a machine without its parts."""
    if bool(spec.accelerator_type) != bool(spec.accelerator_count):
        raise invalid(f"{what}: accelerator_type and accelerator_count must be given together")


def check_split(split: Mapping[str, int], known: Sequence[str]) -> None:
    """Refuse a traffic split that is not whole."""
    strange = sorted(set(split) - set(known))
    if strange:
        raise invalid(f"traffic_split names DeployedModels that are not there: {', '.join(strange)}")
    if split and (sum(split.values()) != 100 or min(split.values()) < 0):
        raise invalid("The traffic percentage values must add up to 100.")


# --- lists ------------------------------------------------------------------------------------------------------------


def listed(items: Sequence[Any], request: Any, fields: Callable[[Any], Mapping[str, str]]) -> tuple[list[Any], str]:
    """A page of what fits a filter: clauses joined by AND; neither OR, NOT nor brackets are understood.

    :param items: messages of resources.
    :param request: of the list; its filter, page size and token.
    :param fields: gives the fields of a message that a filter may name.
    :returns: the page, and the token of the next one.
    """
    wanted = list(_clauses(request.filter)) if hasattr(request, "filter") else []
    found = [item for item in items if all(_fits(item, fields(item), *clause) for clause in wanted)]
    start, size = int(request.page_token or 0), min(request.page_size or 100, 1000)
    return found[start : start + size], str(start + size) if len(found) > start + size else ""


def _clauses(text: str) -> Iterator[tuple[str, str, str]]:
    for part in re.split(r"\s+AND\s+", text) if text.strip() else []:
        found = CLAUSE.fullmatch(part)
        if not found:
            raise invalid(f"Invalid list filter: {text}")
        yield found[1], found[2], found[3].strip('"')


def _fits(item: Any, fields: Mapping[str, str], name: str, sign: str, value: str) -> bool:
    if name.startswith("labels."):
        key = name.removeprefix("labels.")
        if sign == ":":
            return key in item.labels
        found = item.labels.get(key, "")
    elif name in fields:
        found = fields[name]
    else:
        raise invalid(f"Invalid list filter: {name} is not supported")
    if sign == ":":
        return bool(re.fullmatch(re.escape(value).replace(r"\*", ".*"), found))
    return COMPARE[sign](found, value)
