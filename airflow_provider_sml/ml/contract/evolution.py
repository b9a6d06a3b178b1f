"""What changed between the contract that a table was published under and the one at hand, and whether it may.

Taken and told: a new column that may be NULL, a widening (a larger range, further values at the end, NULL now allowed),
and a change of how rows are repaired. Refused with the difference: a column that is gone or of another type, a
narrowing, and whatever gives stored values another meaning (origin, privacy treatment, key of a hash, features, label,
joins, key, event time). A run that replaces every published day may change meanings, because nothing of the old one
stays; the table's columns stay what they are.

It compares statements only; what rows hold is the audit's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.contract.dataset import Dataset

Verdict = Literal["taken", "refused", "columns"]

#: The property of a table that holds its statement.
PROPERTY = "sml.contract"


@dataclass(frozen=True)
class Difference:
    """What changed.

    :param taken: changes that old rows agree with, in words.
    :param refused: changes that old rows do not agree with.
    :param columns: columns that are gone or of another type.
    """

    taken: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def statement(dataset: Dataset, keys: Mapping[str, str]) -> str:
    """What a table's rows mean, as JSON for its properties.

    :param dataset: the contract that they were written under.
    :param keys: id of the key of each connection that hashed a column.
    """
    described = dataset.model_dump(mode="json")
    contract = described["contract"]
    columns = {name: _column(column, keys) for name, column in contract["columns"].items()}
    joins = {join["name"]: {k: v for k, v in join.items() if k != "path"} for join in described["source"]["joins"]}
    meaning = {name: contract[name] for name in ("key", "event_time", "partition", "unique")}
    meaning |= {"columns": columns, "features": described["features"], "label": described["label"], "joins": joins}
    return json.dumps(meaning, sort_keys=True)


def _column(column: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    kept = {name: column[name] for name in ("type", "range", "values", "required", "privacy", "repair")}
    kept["from"] = column["source"]
    if isinstance(column["privacy"], dict) and "hash" in column["privacy"]:
        # The key makes the hash, not the name of the connection that holds it.
        kept["privacy"] = {"hash": keys.get(column["privacy"]["hash"], "?")}
    return kept


def compare(old: str, new: str) -> Difference:
    """The difference between two statements, the older one first."""
    before, after = json.loads(old), json.loads(new)
    changes: list[tuple[Verdict, str]] = [*_columns(before.pop("columns"), after.pop("columns"))]
    for part in ("features", "joins"):
        was, now = before.pop(part), after.pop(part)
        for name in sorted(was.keys() | now.keys()):
            place = f"{part}.{name}"
            if name not in was:
                changes.append(("taken", f"{place} is new"))
            elif name not in now:
                changes.append(("refused", f"{place} is gone"))
            elif was[name] != now[name]:
                changes.append(("refused", f"{place} was {_shown(was[name])} and is {_shown(now[name])}"))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            changes.append(("refused", f"{name} was {_shown(before.get(name))} and is {_shown(after.get(name))}"))
    kinds: tuple[Verdict, ...] = ("taken", "refused", "columns")
    return Difference(*(tuple(text for verdict, text in changes if verdict == kind) for kind in kinds))


def check(difference: Difference, whole: bool) -> None:
    """Refuse what old rows do not agree with.

    :param difference: what changed.
    :param whole: whether the run replaces every published day.
    :raises DataError: with the difference.
    """
    if difference.columns:
        raise DataError(
            "the table has columns that the contract has not: " + "; ".join(difference.columns),
            expected="the columns that it was published with, and new ones",
            found=f"{len(difference.columns)} changes",
            todo="keep them in the contract, or publish to a table of another name",
        )
    if difference.refused and not whole:
        raise DataError(
            "the table holds rows of another meaning: " + "; ".join(difference.refused),
            expected="a new column that may be NULL, or a widening",
            found=f"{len(difference.refused)} changes that the published rows do not agree with",
            todo="ingest all published days in one run, so that every row is made anew, take the change back, or "
            "publish to a table of another name",
        )


def _columns(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[Verdict, str]]:
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield "columns", f"column {name} is gone"
        elif name not in before:
            required = after[name]["required"]
            why = " and required, which old rows cannot fulfil" if required else ""
            yield "refused" if required else "taken", f"column {name} is new{why}"
        else:
            yield from _changes(name, before[name], after[name])


def _changes(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[Verdict, str]]:
    for part in ("type", "from", "privacy", "repair", "required", "range", "values"):
        old, new = was.get(part), now.get(part)
        if old != new:
            text = f"column {name}: {part} was {_shown(old)} and is {_shown(new)}"
            if part == "type" or (part == "privacy" and "drop" in (old, new)):
                yield "columns", text
                continue
            wider = {"repair": True, "required": not new, "range": part == "range" and _wider(old, new)}
            wider["values"] = part == "values" and _longer(old, new)
            yield "taken" if wider.get(part) else "refused", text


def _wider(old: list[float | None] | None, new: list[float | None] | None) -> bool:
    if old is None or new is None:
        return new is None
    low = new[0] is None or (old[0] is not None and new[0] <= old[0])
    high = new[1] is None or (old[1] is not None and new[1] >= old[1])
    return low and high


def _longer(old: list[Any] | None, new: list[Any] | None) -> bool:
    """Further values at the end: the positions of the old ones are the codes that models were trained on."""
    return old is not None and new is not None and new[: len(old)] == old


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
