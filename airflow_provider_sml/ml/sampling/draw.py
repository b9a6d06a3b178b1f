"""Draws samples: which days a model is trained, validated and tested on, and which of their rows it sees.

The training split is thinned by a method, the later ones are not: an evaluation on part of the rows would say less for
no gain. The same snapshot, windows, method and seed give the same files, so a sample is made once and found again.

One pass: DuckDB scans and filters the snapshot's files, and the rows stream on as Arrow batches into the files of the
split, so memory holds a few batches (``stratified`` sorts in DuckDB, which spills to disk; ``reservoir`` holds its
rows). What the manifest does not name does not exist: it is written last.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract.dataset import LABEL
from airflow_provider_sml.ml.contract.quantities import whole_days
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.lake import LakeFile
from airflow_provider_sml.ml.sampling.leakage import check_splits
from airflow_provider_sml.ml.sampling.methods import WEIGHT, Method, hash_sql
from airflow_provider_sml.ml.sampling.reservoir import reservoir
from airflow_provider_sml.refs import SampleRef

if TYPE_CHECKING:
    import duckdb

SPLITS = ("train", "validate", "test")
#: Files of each split. A fixed number, so that a worker's share does not depend on the machine.
SHARDS = 8
#: Rows that go to the shards at a time; a row group of each file holds ``_CHUNK / SHARDS``.
_CHUNK = SHARDS * 32_768

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
    last = as_of - dt.timedelta(days=whole_days(label_delay))
    found: dict[str, Window] = {}
    for split, days in (("test", test), ("validate", validate), ("train", train)):
        first = last - dt.timedelta(days=days - 1)
        found[split] = (first, last)
        last = first - dt.timedelta(days=1)
    return {split: found[split] for split in SPLITS}


def draw(
    lake: Lake,
    table: str,
    split_windows: Mapping[str, Window],
    *,
    snapshot_id: int | None = None,
    method: Method | str = "hash",
    groups: Sequence[str] = (),
    **settings: Any,
) -> SampleRef:
    """Draw a sample, or find the one drawn before.

    :param lake: where the table is; samples lie beside its tables.
    :param table: name of the table.
    :param split_windows: first and last day of each split; a window without a published day is refused.
    :param snapshot_id: snapshot to draw from; None for the current one.
    :param method: a ``Method``, or its name, with its other fields as ``settings`` (``by``, ``rate``, ``seed`` ...).
    :param groups: columns that name an entity which may stand in one split only, whatever its days; the splits then
        share all the days, in the proportion of their windows, and are of entities instead.
    :raises ConfigurationError: when the arguments do not fit.
    :raises DataError: when a split has no labelled row.
    """
    if isinstance(method, str):
        given: dict[str, Any] = {"name": method, **settings}
        method = Method(**given | {name: tuple(settings.get(name, ())) for name in ("by", "key")})
    columns = lake.columns(table)
    method.check(columns)
    if unknown := [name for name in groups if name not in columns]:
        raise ConfigurationError("groups names unknown columns", expected=", ".join(columns), found=unknown)
    drawing = _Drawing(
        lake, table, snapshot_id or lake.snapshot_id(table) or 0, dict(split_windows), method, tuple(groups)
    )
    name = lake.root / "samples" / table / drawing.sample_id
    folder = storage.find_folder(name)
    if folder is None:
        filled = storage.fresh_folder(name)
        try:
            manifest = drawing.decides | drawing.write(filled)
            storage.write(filled / "manifest.json", json.dumps(manifest, indent=1))
            folder = storage.settle(filled, name)
        except BaseException:
            storage.remove_folder(filled)
            raise
    manifest = json.loads((folder / "manifest.json").read_text())
    return SampleRef(
        uri=str(folder),
        sample_id=drawing.sample_id,
        table=table,
        snapshot_id=int(manifest["snapshot_id"]),
        method=method.name,
        rate=method.rate,
        rows=manifest["rows"],
        lake=lake.name,
    )


def read_manifest(sample: SampleRef) -> dict[str, Any]:
    """The manifest of a sample: what decided it, its rows, population, recalibration and files."""
    return dict(json.loads((storage.place(sample.uri) / "manifest.json").read_text()))


def split_files(sample: SampleRef, split: str) -> list[Path]:
    """The files of a split, in a fixed order."""
    return sorted((storage.place(sample.uri) / split).glob("*.parquet"))


@dataclass(frozen=True)
class _Drawing:
    """One draw: what decides it, and how it is written."""

    lake: Lake
    table: str
    snapshot_id: int
    windows: dict[str, Window]
    method: Method
    groups: tuple[str, ...]
    rows: dict[str, int] = field(default_factory=dict)
    population: dict[str, int] = field(default_factory=dict)

    @property
    def decides(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "snapshot_id": self.snapshot_id,
            **self.method.describe(),
            "windows": {split: [day.isoformat() for day in window] for split, window in self.windows.items()},
            "groups": list(self.groups),
            "shards": SHARDS,
        }

    @property
    def sample_id(self) -> str:
        return hashlib.sha256(json.dumps(self.decides, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _span(self) -> Window:
        days = [day for window in self.windows.values() for day in window]
        return min(days), max(days)

    @cached_property
    def _files(self) -> list[LakeFile]:
        """Of all splits, planned once."""
        return self.lake.files(self.table, self.snapshot_id, *self._span)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the splits; gives rows, population and files."""
        spill = tempfile.mkdtemp(prefix="sample-") if storage.is_remote(folder) else str(folder.with_suffix(".spill"))
        written: dict[str, list[str]] = {}
        with storage.connect_duckdb([folder], {"temp_directory": spill}) as connection:
            for split in self.windows:
                written[split] = self._write_split(connection, split, folder)
                if not self.rows[split]:
                    raise self._empty(split)
            check_splits(connection, written, self.groups)
        shutil.rmtree(spill, ignore_errors=True)
        digests = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.parquet"))
        }
        return {
            "rows": self.rows, "population": self.population, "recalibration": self.method.recalibration,
            "files": digests,
        }  # fmt: skip

    def _write_split(self, connection: duckdb.DuckDBPyConnection, split: str, folder: Path) -> list[str]:
        first, last = self._span if self.groups else self.windows[split]
        chosen = [file for file in self._files if first <= file.day <= last]
        files = [file.path for file in chosen]
        self.rows[split] = self.population[split] = 0
        if not files:
            return []
        source = "read_parquet(?, union_by_name=true, hive_partitioning=false)"
        where = f"{LABEL} IS NOT NULL{self._of_split(split)}"
        query = f"SELECT * FROM {source} WHERE {where}"
        thinned = split == "train" and self.method.name != "all"
        if thinned:
            if not self.groups and all(LABEL in file.nulls for file in chosen):  # the lake has counted them
                self.population[split] = sum(file.rows - file.nulls[LABEL] for file in chosen)
            else:
                [(count,)] = connection.execute(f"SELECT count(*) FROM {source} WHERE {where}", [files]).fetchall()
                self.population[split] = int(count)
            weight, quota = self.method.weight(self.windows["train"][1]), self.method.quota()
            query = f"SELECT *{f', {weight} AS {WEIGHT}' if weight else ''} FROM {source} WHERE {where}"
            query += f" AND {self.method.keep()}" + (f" QUALIFY {quota}" if quota else "")
            if quota:  # a window function loses the order of the stream
                query = f"SELECT * FROM ({query}) ORDER BY {hash_sql(self.method.key, self.method.seed)}"
        stream: Iterator[pa.RecordBatch] = iter(connection.sql(query, params=[files]).to_arrow_reader(_CHUNK))
        if thinned and self.method.name == "reservoir" and self.method.size:
            kept = reservoir(stream, self.method.size, self.method.seed)
            stream = iter(kept.to_batches() if kept is not None else [])
        paths, self.rows[split] = write_shards(stream, folder / split)
        self.population[split] = self.population[split] or self.rows[split]
        return paths

    def _of_split(self, split: str) -> str:
        """SQL that adds the entities of a split, when the splits are of entities: a range of their hashes."""
        if not self.groups:
            return ""
        lengths = [(last - first).days + 1 for first, last in self.windows.values()]
        ends = [round(2**32 * sum(lengths[: n + 1]) / sum(lengths)) for n in range(len(lengths))]
        number = list(self.windows).index(split)
        entity = hash_sql(self.groups, f"{self.method.seed}-split")
        low = f" AND {entity} >= '{ends[number - 1]:08x}'" if number else ""
        return low + (f" AND {entity} < '{ends[number]:08x}'" if number + 1 < len(ends) else "")

    def _empty(self, split: str) -> DataError:
        have = sorted(self.lake.days(self.table, self.snapshot_id))
        first, last = self.windows[split]
        if self.population[split]:
            found = f"{self.population[split]:,} labelled rows, of which the method kept none"
            todo = "raise the rate"
        else:
            found = f"days from {have[0]} to {have[-1]}" if have else "no day at all"
            todo = "ingest more days, or shorten train.window, train.validate and train.test"
        return DataError(
            f"the {split} window has no labelled row", expected=f"rows of {self.table} from {first} to {last}",
            found=found, todo=todo,
        )  # fmt: skip


def write_shards(stream: Iterator[pa.RecordBatch], folder: Path) -> tuple[list[str], int]:
    """Deal a stream's rows to the files of a split, one after the other, so that all grow alike.

    :param stream: the rows; the same stream gives the same bytes, however it is cut into batches.
    :param folder: of the files, not there yet.
    :returns: the files, and the number of rows.
    """
    paths = [folder / f"{shard:03d}.parquet" for shard in range(SHARDS)]
    writers: list[pq.ParquetWriter] = []
    rows = 0

    def write(shard: int, chunk: pa.Table) -> None:
        writers[shard].write_table(chunk.take(np.arange(shard, chunk.num_rows, SHARDS)))

    under_way: list[Future[None]] = []
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(min(SHARDS, os.cpu_count() or 1)) as threads:
        for chunk in _chunks(stream):  # the engine reads the next piece while this one is written
            if not writers:
                writers += [opened.enter_context(storage.parquet_writer(path, chunk.schema)) for path in paths]
            for each in under_way:
                each.result()
            under_way = [threads.submit(write, shard, chunk) for shard in range(SHARDS)]
            rows += chunk.num_rows
        for each in under_way:
            each.result()
    return [str(path) for path in paths] if rows else [], rows


def _chunks(stream: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The stream in pieces of exactly ``_CHUNK`` rows, the last one shorter."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in stream:
        held.append(batch)
        count += batch.num_rows
        while count >= _CHUNK:
            table = pa.Table.from_batches(held)
            yield table.slice(0, _CHUNK).combine_chunks()
            held = table.slice(_CHUNK).to_batches()
            count -= _CHUNK
    if count:
        yield pa.Table.from_batches(held).combine_chunks()
