"""Samples: which days a model is trained, validated and tested on, and which rows of them it sees.

The training window is thinned, the later windows are not: an evaluation on part of the rows would say less for no gain.
The same snapshot, windows, method, rate and seed give the same rows, so a sample is made once and found again.

A row is kept by the hash of its entity (``by``), so all rows of an entity stay together and a higher rate keeps all
that a lower one kept. The hash is ``substr(md5(seed|by...), 1, 8)`` compared as text with the rate in hexadecimal,
which Spark, DuckDB and BigQuery compute alike.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml.contract.dataset import LABEL
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.refs import SampleRef

SPLITS = ("train", "validate", "test")
#: Files of each split. A fixed number, so that a worker's share does not depend on the machine.
SHARDS = 8

Window = tuple[dt.date, dt.date]


def windows(as_of: dt.date, train: int, validate: int, test: int, label_delay: dt.timedelta) -> dict[str, Window]:
    """The days of each split, one after the other and never overlapping.

    :param as_of: the last day of data there is.
    :param train: days of the training window.
    :param validate: days after it, for early stopping.
    :param test: days after those, for the evaluation.
    :param label_delay: how long after the event its label is known; later days are left out.
    :returns: first and last day, inclusive, by split.
    """
    last = as_of - dt.timedelta(days=math.ceil(label_delay / dt.timedelta(days=1)))
    found: dict[str, Window] = {}
    for split, days in (("test", test), ("validate", validate), ("train", train)):
        first = last - dt.timedelta(days=days - 1)
        found[split] = (first, last)
        last = first - dt.timedelta(days=1)
    return {split: found[split] for split in SPLITS}


def keep_sql(by: Sequence[str], rate: float, seed: int, dialect: str = "duckdb") -> str:
    """SQL that is true for the rows to keep.

    :param by: columns whose values name an entity; NULL counts as a value.
    :param rate: share of the entities to keep, 0 to 1.
    :param seed: another seed keeps other entities.
    """
    limit = round(rate * 2**32)
    if limit >= 2**32:
        return "TRUE"
    kind = "VARCHAR" if dialect == "duckdb" else "STRING"
    parts = [f"coalesce(CAST({identifier(name, dialect)} AS {kind}), '')" for name in by]  # type: ignore[arg-type]
    entity = " || '|' || ".join([f"'{seed}'", *parts])
    return f"substr(md5({entity}), 1, 8) < '{limit:08x}'"


def draw(
    lake: Lake,
    table: str,
    split_windows: Mapping[str, Window],
    *,
    snapshot_id: int | None = None,
    method: str = "hash",
    by: Sequence[str] = (),
    rate: float = 1.0,
    seed: int = 7,
) -> SampleRef:
    """Draw a sample, or find the one drawn before.

    :param lake: where the table is; samples lie beside its tables.
    :param table: name of the table.
    :param split_windows: first and last day of each split; a window without a published day is refused.
    :param snapshot_id: snapshot to draw from; None for the current one.
    :param method: ``all`` or ``hash``.
    :param by: columns that name an entity, for ``hash``.
    :param rate: share of the entities kept in training, above 0 to 1.
    :param seed: of the hash.
    :raises ConfigurationError: when the arguments do not fit.
    :raises DataError: when a split has no labelled row.
    """
    rate = _check(lake, table, method, by, rate)
    snapshot_id = snapshot_id or lake.snapshot_id(table)
    decides = {
        "table": table, "snapshot_id": snapshot_id, "method": method, "by": list(by), "rate": rate, "seed": seed,
        "windows": {split: [day.isoformat() for day in window] for split, window in split_windows.items()},
        "shards": SHARDS,
    }  # fmt: skip
    sample_id = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(lake.location) / "samples" / table / sample_id
    if not (folder / "manifest.json").exists():
        temporary = folder.with_name(f"{sample_id}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            manifest = decides | _write(lake, decides, split_windows, temporary)
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
            if not folder.exists():
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    return SampleRef(
        uri=str(folder),
        sample_id=sample_id,
        table=table,
        snapshot_id=int(manifest["snapshot_id"]),
        method=method,
        rate=rate,
        rows=manifest["rows"],
    )


def read_manifest(sample: SampleRef) -> dict[str, Any]:
    """The manifest of a sample: what decided it, its rows, population and files."""
    return dict(json.loads((Path(sample.uri) / "manifest.json").read_text()))


def split_files(sample: SampleRef, split: str) -> list[Path]:
    """The files of a split, in a fixed order."""
    return sorted((Path(sample.uri) / split).glob("*.parquet"))


def _check(lake: Lake, table: str, method: str, by: Sequence[str], rate: float) -> float:
    if method not in ("all", "hash"):
        raise ConfigurationError("the sampling method is unknown", expected="all or hash", found=method)
    if method == "all":
        return 1.0
    if not 0 < rate <= 1:
        raise ConfigurationError("the sampling rate is no share", expected="above 0 and at most 1", found=rate)
    columns = lake.columns(table)
    unknown = [name for name in by if name not in columns]
    if unknown or not by:
        raise ConfigurationError(
            "hash sampling keeps entities",
            expected=f"by: columns of {table}: {', '.join(columns)}",
            found=unknown or "none",
        )
    return rate


def _write(lake: Lake, decides: Mapping[str, Any], split_windows: Mapping[str, Window], folder: Path) -> dict[str, Any]:
    """Write the splits; gives rows, population and files."""
    import duckdb

    rows: dict[str, int] = {}
    population: dict[str, int] = {}
    spill = str(folder.with_suffix(".spill"))
    with duckdb.connect(config={"temp_directory": spill}) as connection:
        for split, (first, last) in split_windows.items():
            files = [file.path for file in lake.files(decides["table"], decides["snapshot_id"], first, last)]
            if files:
                source = "read_parquet(?, union_by_name=true, hive_partitioning=false, file_row_number=true)"
                where = f"{LABEL} IS NOT NULL"
                counted = connection.execute(f"SELECT count(*) FROM {source} WHERE {where}", [files]).fetchone()
                population[split] = int(counted[0]) if counted else 0
                thinned = split == "train" and decides["method"] == "hash"
                keep = keep_sql(decides["by"], decides["rate"], decides["seed"]) if thinned else "TRUE"
                (folder / split).mkdir(parents=True)
                connection.execute(
                    f"CREATE OR REPLACE TEMP TABLE kept AS SELECT * FROM {source} WHERE {where} AND {keep}", [files]
                )
                for shard in range(SHARDS):
                    connection.execute(
                        "COPY (SELECT * EXCLUDE (file_row_number) FROM kept "
                        f"WHERE file_row_number % {SHARDS} = {shard}) "
                        f"TO '{folder / split / f'{shard:03d}.parquet'}' (FORMAT parquet, COMPRESSION zstd)"
                    )
                written = connection.execute(
                    "SELECT count(*) FROM read_parquet(?)", [str(folder / split / "*.parquet")]
                ).fetchone()
                rows[split] = int(written[0]) if written else 0
            if not rows.get(split):
                have = sorted(lake.days(decides["table"], decides["snapshot_id"]))
                raise DataError(
                    f"the {split} window has no labelled row",
                    expected=f"rows of {decides['table']} from {first} to {last}",
                    found=f"days from {have[0]} to {have[-1]}" if have else "no day at all",
                    todo="ingest more days, or shorten train.window, train.validate and train.test",
                )
    shutil.rmtree(spill, ignore_errors=True)
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.parquet"))
    }
    return {"rows": rows, "population": population, "files": digests}
