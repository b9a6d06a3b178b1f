"""Slices: each against a limit of its own, and all together against the champion.

Among many slices some look worse than the champion by chance alone. So each is tested for being worse by more than the
margin, and the p-values are corrected for their number (Holm 1979): the chance that a version without any worse slice
is refused stays at ``alpha``, however many slices there are. What this cannot see are losses of slices that are too
small to show them; ``min_rows`` says which are not judged, and the verdict tells of those.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.gate.settings import MEASURES
from airflow_provider_sml.ml.gate.verdict import Check
from airflow_provider_sml.ml.training import metrics

ALPHA = 0.05
#: Share of the bootstrap's draws that must have a value.
_ENOUGH = 0.5


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests by Holm's step-down procedure.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may be below one before it. Rejecting those
    below ``alpha`` keeps the chance of any false rejection at ``alpha``, whatever the tests' dependence (Holm 1979, "A
    Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 65-70).

    :param p_values: 0 to 1.
    :returns: in the order given, 0 to 1.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def limits(found: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> Iterator[Check]:
    """Each slice's AUC against the smallest that is allowed.

    :param found: the evaluation's slices.
    :param wanted: ``gate.slices``.
    """
    minimum = wanted.get("min_auc") if wanted.get("min_auc") is not None else 0.5
    limit = f"AUC at least {minimum:g}"
    for column in wanted["by"]:
        measured = [item for item in found if item["column"] == column and item["rows"] >= _min_rows(wanted)]
        if not measured:
            yield Check(
                f"slice {column}", False, "no slice is large enough", limit, "lower gate.slices.min_rows",
                f"slices.{column}",
            )  # fmt: skip
        for item in measured:
            auc = item["auc"]
            yield Check(
                f"slice {column} = {item['value']}",
                auc is not None and auc >= minimum,
                f"{'only one label' if auc is None else f'AUC {auc:.4f}'} on {item['rows']:,} rows",
                limit,
                "the model fails these rows: look at their features and labels"
                if auc is not None
                else "lengthen the test window, or raise gate.slices.min_rows",
                f"slices.{column}",
            )


@dataclass(frozen=True)
class _Slice:
    """A slice that was tested.

    :param column: whose value it is.
    :param value: the value.
    :param rows: how many.
    :param gap: the version's measure minus the champion's.
    :param p: chance of such a loss when the version is not worse by more than the margin; None where the rows do not
        allow the measure.
    """

    column: str
    value: str
    rows: int
    gap: float
    p: float | None


def against_champion(
    recorded: Mapping[str, Any] | None, folder: Path | None, wanted: Mapping[str, Any], version: str
) -> Iterator[Check]:
    """Each slice against the champion on the same rows, corrected for the number of slices.

    :param recorded: what the evaluation says of the predictions that lie beside it.
    :param folder: where it lies; None when nobody knows.
    :param wanted: ``gate.slices``.
    :param version: of the champion.
    """
    measure, margin = wanted.get("measure") or "auc", wanted.get("margin") or 0.0
    alpha = wanted.get("alpha") or ALPHA
    limit = f"no significant loss of {MEASURES[measure]} beyond {margin:g}"
    problem, table = _predictions(recorded, folder, wanted["by"])
    if table is None:
        yield Check(
            "slices against champion", False, problem, limit,
            "evaluate again with this version of airflow-provider-sml", "slices.champion",
        )  # fmt: skip
        return
    found = [
        part for column in wanted["by"] for part in _tested(table, column, measure, margin, _min_rows(wanted))
    ]  # fmt: skip
    tested = [part for part in found if part.p is not None]
    adjusted = iter(holm([part.p for part in tested if part.p is not None]))
    if not found:
        yield Check(
            "slices against champion", False, "no slice is large enough", limit, "lower gate.slices.min_rows",
            "slices.champion",
        )  # fmt: skip
    for part in found:
        p = None if part.p is None else next(adjusted)
        said = f"{part.gap:+.4f} against version {version} on {part.rows:,} rows, "
        yield Check(
            f"slice {part.column} = {part.value} against champion",
            p is not None and p >= alpha,
            "the rows have too few of one label" if p is None else f"{said}p {p:.3g} of {len(tested)} slices (Holm)",
            f"{limit} (p at least {alpha:g})",
            "lengthen the test window, or raise gate.slices.min_rows" if p is None
            else "these rows were predicted better before: look at what the new training days lack of them",
            "slices.champion",
        )  # fmt: skip


def _min_rows(wanted: Mapping[str, Any]) -> int:
    return int(wanted.get("min_rows") or 0)


def _predictions(
    recorded: Mapping[str, Any] | None, folder: Path | None, by: Sequence[str]
) -> tuple[str, dict[str, np.ndarray] | None]:
    """The kept predictions by column; or what is wrong with them. Only the columns that are asked for are read."""
    if not recorded or folder is None:
        return "the predictions were not kept", None
    lacking = [name for name in by if name not in recorded["columns"]]
    if lacking:
        return f"the predictions were kept without {', '.join(lacking)}", None
    path = folder / recorded["file"]
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != recorded["sha256"]:
            return "the predictions are not those of the evaluation", None
        table = storage.read_table(path, ["label", "score", "champion", *(f"by {name}" for name in by)])
    except OSError as error:
        return f"the predictions cannot be read: {error.strerror or error}", None
    numbers = {name: table.column(name).to_numpy() for name in ("label", "score", "champion")}
    codes = {
        name: table.column(f"by {name}").combine_chunks().dictionary_encode() for name in by
    }  # fmt: skip
    return "", numbers | {
        key: value
        for name, code in codes.items()
        for key, value in (
            (f"codes {name}", code.indices.to_numpy()), (f"names {name}", np.array(code.dictionary.to_pylist())),
        )
    }  # fmt: skip


def _tested(
    table: Mapping[str, np.ndarray], column: str, measure: str, margin: float, min_rows: int
) -> Iterator[_Slice]:
    """The slices of one column, tested one after the other."""
    codes, names = table[f"codes {column}"], table[f"names {column}"]
    counts = np.bincount(codes, minlength=len(names))
    for number in sorted(np.flatnonzero(counts >= max(min_rows, 1)), key=lambda position: str(names[position])):
        inside = codes == number
        labels, scores, others = (table[name][inside] for name in ("label", "score", "champion"))
        gap, error, share = metrics.spread(labels, scores, others, measure)
        loss = (-gap if measure == "auc" else gap) - margin
        known = not math.isnan(gap) and share >= _ENOUGH
        yield _Slice(column, str(names[number]), int(counts[number]), gap, _chance(loss, error) if known else None)


def _chance(loss: float, error: float) -> float:
    """One-sided p-value of a loss by its normal interval (Efron and Tibshirani 1993, chapter 13).

    The bootstrap's standard error is used, not its percentiles: those of a few hundred draws end at one in a few
    hundred, too coarse for the smallest of many p-values.
    """
    if error == 0:
        return 0.0 if loss > 0 else 1.0
    return 0.5 * math.erfc(loss / error / math.sqrt(2))
