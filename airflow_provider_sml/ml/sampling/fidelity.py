"""How faithful a sample is: its training rows against all rows of the training window, column by column.

Numbers are compared over twenty bins of equal share of the population, categories over their values, both by the
population stability index and the Jensen-Shannon distance; the label's rate and the coverage of segments come beside.
DuckDB counts both sides; nothing but counts leaves it. A difference that the method makes on purpose (the label's rate
after negative down-sampling) is reported like any other.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import LABEL, Dataset, Feature
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.sampling.draw import read_manifest, split_files
from airflow_provider_sml.refs import SampleRef

if TYPE_CHECKING:
    import duckdb

    from airflow_provider_sml.ml.lake import Lake

BINS = 20
#: A bin that is empty on one side counts as this share, so that the index stays finite.
_FLOOR = 1e-4
_SOURCE = "read_parquet(?, union_by_name=true, hive_partitioning=false)"


def compare(
    connection: duckdb.DuckDBPyConnection,
    population: Sequence[str],
    sample: Sequence[str],
    features: Sequence[Feature],
    segments: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare a sample with its population.

    :param connection: DuckDB, with the file systems of the files.
    :param population: parquet files of the whole training window.
    :param sample: parquet files of the sample's training split.
    :param features: the columns to compare.
    :param segments: columns whose values ought to be covered.
    :returns: ``columns`` (name, psi, js: both 0 for the same distribution), ``label_rate`` of both sides, and
        ``segments``: of each the number of values in the population, those missing in the sample, and the fewest rows.
    """
    sides = {"population": list(population), "sample": list(sample)}
    where = f"WHERE {LABEL} IS NOT NULL"
    columns = []
    for feature in features:
        counts = _counts(connection, feature, sides, where)
        shares = np.maximum(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), 0)
        columns.append({"name": feature.name, "psi": psi(shares[0], shares[1]), "js": js(shares[0], shares[1])})
    rates = {
        side: float(connection.execute(f"SELECT avg({LABEL}) FROM {_SOURCE} {where}", [files]).fetchall()[0][0] or 0)
        for side, files in sides.items()
    }
    return {
        "columns": sorted(columns, key=lambda column: -float(column["js"])),
        "label_rate": rates,
        "segments": [_segment(connection, name, sides, where) for name in segments],
    }


def report(lake: Lake, sample: SampleRef, dataset: Dataset) -> dict[str, Any]:
    """Compare a drawn sample with all rows of its training window, and write ``fidelity.json`` beside its manifest.

    :param lake: where the sample's table is.
    :param sample: the sample.
    :param dataset: its features are compared; its categories are the segments.
    """
    path = storage.place(sample.uri) / "fidelity.json"
    if not path.exists():
        first, last = (dt.date.fromisoformat(day) for day in read_manifest(sample)["windows"]["train"])
        population = [file.path for file in lake.files(sample.table, sample.snapshot_id, first, last)]
        files = [str(file) for file in split_files(sample, "train")]
        segments = [feature.name for feature in dataset.feature_list if feature.categories is not None]
        with storage.connect_duckdb([sample.uri]) as connection:
            found = compare(connection, population, files, dataset.feature_list, segments)
        storage.write(path, json.dumps(found, indent=1))
    return dict(json.loads(path.read_text()))


def psi(expected: np.ndarray, found: np.ndarray) -> float:
    """Population stability index of two distributions over the same bins: ``sum((f - e) * ln(f / e))`` (Siddiqi 2006,
    "Credit Risk Scorecards"); below 0.1 is usually read as the same.

    :param expected: shares, shape (bins,).
    :param found: shares, shape (bins,).
    """
    e, f = np.maximum(expected, _FLOOR), np.maximum(found, _FLOOR)
    return float(np.sum((f - e) * np.log(f / e)))


def js(expected: np.ndarray, found: np.ndarray) -> float:
    """Jensen-Shannon distance to base 2 of two distributions, 0 to 1 (Lin 1991)."""
    middle = (expected + found) / 2

    def divergence(side: np.ndarray) -> float:
        inside = side > 0
        return float(np.sum(side[inside] * np.log2(side[inside] / middle[inside])))

    return float(np.sqrt(max((divergence(expected) + divergence(found)) / 2, 0.0)))


def _counts(
    connection: duckdb.DuckDBPyConnection, feature: Feature, sides: dict[str, list[str]], where: str
) -> np.ndarray:
    """Rows by bin: shape (2, bins), population first; NULL is a bin of its own."""
    name = identifier(feature.name, "duckdb")
    if feature.categories is None:
        shares = ", ".join(f"{n / BINS:g}" for n in range(1, BINS))
        [(cuts,)] = connection.execute(
            f"SELECT approx_quantile({name}, [{shares}]) FROM {_SOURCE} {where}", [sides["population"]]
        ).fetchall()
        edges = sorted({float(edge) for edge in cuts or []})
        value = "+".join([f"(CASE WHEN {name} > {edge!r} THEN 1 ELSE 0 END)" for edge in edges]) or "0"
        value = f"CASE WHEN {name} IS NULL THEN NULL ELSE {value} END"
    else:
        value = name
    counted = [
        dict(
            connection.execute(f"SELECT {value} AS bin, count(*) FROM {_SOURCE} {where} GROUP BY 1", [files]).fetchall()
        )
        for files in sides.values()
    ]
    bins = sorted(set(counted[0]) | set(counted[1]), key=lambda found: (found is None, found))
    return np.array([[side.get(found, 0) for found in bins] for side in counted], dtype=float)


def _segment(
    connection: duckdb.DuckDBPyConnection, column: str, sides: dict[str, list[str]], where: str
) -> dict[str, Any]:
    name = identifier(column, "duckdb")
    rows = f"(SELECT {name} AS value, count(*) AS n FROM {_SOURCE} {where} GROUP BY 1)"
    [(values, missing, fewest)] = connection.execute(
        f"SELECT count(*), count(*) FILTER (s.n IS NULL), coalesce(min(s.n), 0) FROM {rows} p "
        f"LEFT JOIN {rows} s ON p.value IS NOT DISTINCT FROM s.value",
        [sides["population"], sides["sample"]],
    ).fetchall()
    return {"column": column, "values": values, "missing": missing, "fewest_rows": fewest}
