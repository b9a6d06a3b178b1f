"""The profiles of the days of a table, for the model in production: made once, where the data is, and kept in the lake.

Features are computed and profiled from the lake's files (``parquet_profile``), or by BigQuery over the published table.
Of the score the model alone knows: it is read from the logged predictions where those were made of the day's very files
by this model, and computed otherwise, batch by batch, from the columns that the model asks for. Features and score
are kept apart, so that a new version of the model leaves the profiles of its features as they are.

A column that the table has no more, or does not have yet, is left out; ``schema_findings`` tells of it.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.contract import Dataset, Feature
from airflow_provider_sml.ml.expressions import Dialect, Type, identifier, physical
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.reading import batches
from airflow_provider_sml.ml.monitoring.drift import SCORE
from airflow_provider_sml.ml.monitoring.parquet_profile import ParquetRows, of_parquet
from airflow_provider_sml.ml.monitoring.predictions import logged_files
from airflow_provider_sml.ml.monitoring.profile import Kind, Profile, beside, merge, of_batches
from airflow_provider_sml.ml.monitoring.profile_sql import Column
from airflow_provider_sml.ml.monitoring.profile_store import ProfileStore, content
from airflow_provider_sml.ml.monitoring.reference import Reference, training_nights
from airflow_provider_sml.ml.monitoring.score_profile import score_profile
from airflow_provider_sml.ml.monitoring.verdicts import Finding

#: Profiles a day's features somewhere else than over the lake's files; None where that cannot be done now.
Elsewhere = Callable[[dt.date, Sequence[Column], "str | None"], "Profile | None"]
#: Rows scored at once.
BATCH = 65_536
#: Days before a night that are looked at for such as are missing.
_WEEK = 7

#: Iceberg's types by our names.
_TYPES = {"long": "int", "int": "int", "double": "double", "float": "double", "string": "string",
          "boolean": "boolean", "timestamp": "timestamp", "timestamptz": "timestamp", "date": "date"}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Against:
    """What a night is compared with.

    :param reference: how it was asked for.
    :param profile: of its rows; None where there are none.
    :param nights: profiles of ordinary nights, by which p-values are told.
    :param missing: days that are not published: of its window, or, of training, of the week before the night.
    :param oldest: the first day whose profile was asked for; None for none.
    """

    reference: Reference
    profile: Profile | None
    nights: Sequence[Profile] = ()
    missing: Sequence[dt.date] = ()
    oldest: dt.date | None = None


class Unread(NamedTuple):
    """Days whose rows nobody has profiled yet, each with the name of its content as ``profile_store.content`` gives it.

    :param features: days without a profile of their features.
    :param scores: days without a profile of their score, and without logged scores to make it of.
    """

    features: dict[dt.date, str]
    scores: dict[dt.date, str]


class NightProfiles:
    """Profiles of the days of one table for one model.

    :param lake: where the table is.
    :param table: its name.
    :param scorer: of the version in production.
    :param leave_out: features that are not compared.
    :param segment: a stored column by whose values the rows are profiled apart as well.
    :param elsewhere: profiles features where a copy of the table is; the lake's files are read when None.
    :param dialect: of the SQL that ``elsewhere`` takes.
    """

    def __init__(
        self,
        lake: Lake,
        table: str,
        scorer: Scorer,
        leave_out: Sequence[str] = (),
        segment: str | None = None,
        elsewhere: Elsewhere | None = None,
        dialect: Dialect = "duckdb",
    ) -> None:
        self._lake, self._table, self._scorer = lake, table, scorer
        self._features = [feature for feature in scorer.features if feature.name not in leave_out]
        self._segment = segment and physical(segment)
        self._elsewhere, self._dialect = elsewhere, dialect
        self._columns = set(lake.columns(table)) if lake.exists(table) else set()
        meanings = {feature.name: [_kind(feature), feature.expression.text] for feature in self._features}
        #: What decides the profiles of features, and of the score, beside the rows: see ``ProfileStore``.
        self.of_features = {"features": meanings, "segment": self._segment}
        self.of_score = {"score of": scorer.bundle.model_id, "segment": self._segment}

    def nights(self, days: Sequence[dt.date]) -> dict[dt.date, Profile]:
        """The profile of each of the days that is published, read or made; in their order."""
        features = ProfileStore(self._lake, self._table, self.of_features).days(days, self._features_of)
        scores = ProfileStore(self._lake, self._table, self.of_score).days(days, self._score_of)
        return {day: self._beside(features[day], scores[day]) for day in sorted(features) if day in scores}

    def training(self, sample: Path) -> Profile:
        """The profile of the rows that the model was trained on, kept like a day's under the sample's name.

        :param sample: place of the sample.
        """
        files = sorted(str(path) for path in (sample / "train").glob("*.parquet"))
        name = content(files)
        features = ProfileStore(self._lake, "samples", self.of_features)
        scores = ProfileStore(self._lake, "samples", self.of_score)
        return self._beside(
            features.named(name, lambda: self._features_in(files)), scores.named(name, lambda: self._score_in(files))
        )

    def against(self, reference: Reference, day: dt.date, sample: Path) -> Against:
        """What a night is compared with.

        :param reference: as it was asked for.
        :param day: the night.
        :param sample: place of the rows that the model was trained on.
        """
        wanted = self.days_of(reference, day, sample)
        made = self.nights(wanted)
        window = list(made.values())
        if reference.kind == "training":
            return Against(reference, self.training(sample), window, self._gaps(day), min(made, default=None))
        missing = [one for one in wanted if one not in made]
        return Against(reference, merge(window) if window else None, window, missing, min(wanted))

    def days_of(self, reference: Reference, day: dt.date, sample: Path) -> list[dt.date]:
        """The days whose profiles ``against`` asks for: the window, or, of training, the last days of the sample.

        :param reference: as it was asked for.
        :param day: the night.
        :param sample: place of the rows that the model was trained on.
        """
        if reference.kind != "training":
            return reference.window(day)
        try:
            return training_nights(json.loads((sample / "manifest.json").read_text())["windows"])
        except (FileNotFoundError, KeyError):
            return []

    def unread(self, days: Sequence[dt.date]) -> Unread:
        """What ``nights`` would have to read rows of the table for.

        :param days: the days; those that are not published are left out.
        """
        features = ProfileStore(self._lake, self._table, self.of_features).lacking(days) if self._features else {}
        if not set(self.score_columns) <= self._columns:
            return Unread(features, {})
        scores = ProfileStore(self._lake, self._table, self.of_score).lacking(days)
        return Unread(features, {day: of for day, of in scores.items() if not self._logged(day, of)})

    def columns(self, dialect: Dialect) -> list[Column]:
        """The features that can be computed from the table's columns.

        :param dialect: of the engine that is to compute them.
        """
        return self._sql(dialect, self._columns)

    @property
    def features(self) -> list[Feature]:
        """Those of ``columns``."""
        return self._computable(self._columns)

    @property
    def types(self) -> dict[str, Type]:
        """Type of each column that features are computed from, joined ones as ``join.column``."""
        return {name: values.type for name, values in self._scorer.bundle.dataset.request_columns.items()}

    @property
    def bundle(self) -> Bundle:
        """The model whose scores are profiled."""
        return self._scorer.bundle

    @property
    def segment(self) -> str | None:
        """The column of the segments; None where there are none, or the table has no such column."""
        return self._segment if self._segment in self._columns else None

    @property
    def score_columns(self) -> list[str]:
        """The columns of the table that the score, and its segments, are computed from."""
        wanted = [physical(name) for name in self._scorer.columns]
        return list(dict.fromkeys([*wanted, *([self._segment] if self._segment else [])]))

    # --- the parts ------------------------------------------------------------------------------------------------

    def _beside(self, features: Profile, score: Profile) -> Profile:
        """Two profiles of the same rows as one, the columns in the order of the features."""
        return beside(features, score, [feature.name for feature in self._features] + [SCORE])

    def _gaps(self, day: dt.date) -> list[dt.date]:
        """The days of the week before a night that are not published, though days before them are."""
        published = set(self._lake.days(self._table))
        week = Reference("trailing", _WEEK).window(day)
        return [one for one in week if published and one > min(published) and one not in published]

    def _sql(self, dialect: Dialect, known: Iterable[str]) -> list[Column]:
        """What to profile of ``_computable``."""
        return [
            Column(feature.name, _kind(feature), _expression(feature, dialect), _stored(feature))
            for feature in self._computable(known)
        ]

    def _computable(self, known: Iterable[str]) -> list[Feature]:
        """The features that can be computed from the columns that are known."""
        known = set(known)
        return [one for one in self._features if {physical(name) for name in one.expression.columns} <= known]

    def _features_of(self, day: dt.date) -> Profile:
        if self._elsewhere is not None:
            columns = self.columns(self._dialect)
            segment = self._segment and identifier(self._segment, self._dialect)
            made = self._elsewhere(day, columns, segment)
            if made is not None:
                return made
            log.warning("%s of %s is profiled from the lake's files: the copy elsewhere has other rows",
                        day, self._table)  # fmt: skip
        files = [file.path for file in self._lake.files(self._table, None, day, day)]
        return of_parquet(files, self._sql("duckdb", self._columns), self.segment, self._columns)

    def _features_in(self, files: Sequence[str]) -> Profile:
        with ParquetRows(files) as rows:
            known = set(rows.names)
        segment = self._segment if self._segment in known else None
        return of_parquet(files, self._sql("duckdb", known), segment, known)

    def _logged(self, day: dt.date, content: str) -> list[str]:
        """The files of a day's scores where its profile can be read from them."""
        if self._segment is not None:
            return []
        return logged_files(self._lake, self._table, day, content, self._scorer.bundle.model_id)

    def _score_of(self, day: dt.date) -> Profile:
        files = self._lake.files(self._table, None, day, day)
        logged = self._logged(day, content(file.path for file in files))
        if logged:
            return of_batches((storage.read_table(path, [SCORE]) for path in logged), {SCORE: "number"})
        if not {physical(name) for name in self._scorer.columns} <= self._columns:
            return Profile(sum(file.rows for file in files), {})
        read = batches(self._lake, self._table, columns=self.score_columns, first=day, last=day, rows=BATCH)
        return score_profile(self._scorer, (pa.table(batch) for batch in read), self._segment)

    def _score_in(self, files: Sequence[str]) -> Profile:
        return score_profile(self._scorer, _tables(files, self.score_columns), self._segment)


def _kind(feature: Feature) -> Kind:
    return "number" if feature.categories is None else "category"


def _stored(feature: Feature) -> str | None:
    """The stored column that a feature is."""
    expression = feature.expression
    return physical(next(iter(expression.columns))) if expression.is_column else None


def _expression(feature: Feature, dialect: Dialect) -> str:
    text = feature.expression.sql(dialect)
    if feature.expression.type == "boolean":  # which BigQuery casts to no number
        return f"CASE WHEN {text} THEN 1 WHEN NOT ({text}) THEN 0 END"
    return text


def _tables(files: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of parquet files, some at a time."""
    import pyarrow.parquet as pq

    for path in files:
        with storage.place(path).open("rb") as handle, pq.ParquetFile(handle) as file:
            known = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH, columns=known):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])


def column_types(lake: Lake, table: str) -> dict[str, str]:
    """The type of each column of a table, by our names; empty for one that we have no name for."""
    return {field.name: _TYPES.get(str(field.field_type), "") for field in lake.load(table).schema().fields}


def schema_findings(lake: Lake, table: str, dataset: Dataset) -> list[Finding]:
    """How a table's columns differ from those that a model was made for.

    :param table: of the lake.
    :param dataset: of the model.
    """
    if not lake.exists(table):
        return []
    columns = column_types(lake, table)
    known = {physical(name): kind for name, kind in dataset.table_columns}
    asked = {physical(name) for name in dataset.request_columns}
    found = []
    for name in sorted(asked - set(columns)):
        found.append(Finding("schema", name, f"{name} is gone from the table; the model asks for it"))
    if fresh := sorted(set(columns) - set(known)):
        found.append(Finding("schema", ", ".join(fresh), f"new in the table since training: {', '.join(fresh)}"))
    for name in sorted(name for name, kind in known.items() if name in columns and columns[name] != kind):
        found.append(Finding("schema", name, f"{name} was of type {known[name]} in training, and is {columns[name]}"))
    return found
