"""Each night: score the day, log the predictions, report drift."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.compat import AirflowSkipException
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import ModelLink, NightLink
from airflow_provider_sml.ml.contract.interval import parse_interval
from airflow_provider_sml.ml.contract.quantities import duration
from airflow_provider_sml.operators.base import SmlOperator, sample_of
from airflow_provider_sml.operators.openlineage import Data, drawn, parent, registered, table
from airflow_provider_sml.refs import ModelVersionRef, ReportRef, SnapshotRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.bundle import Scorer
    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.monitoring.night_profiles import Elsewhere
    from airflow_provider_sml.ml.monitoring.profile import Profile
    from airflow_provider_sml.ml.monitoring.profile_sql import Column

    _Night = Callable[[dt.date, Sequence[Mapping[str, Any]]], ReportRef]

#: A monitor that fell behind catches up by this many nights in one run.
MOST_NIGHTS = 7
#: How far back the performance of each night looks for labels that have arrived.
LOOK_BACK = dt.timedelta(days=28)


class ChampionOperator(SmlOperator):
    """What the operators of each night share: the days, the table and the model in production.

    :param name: registered model.
    :param table: table of the lake; the model's name when None.
    :param first: first day; the last published one when empty.
    :param last: last day, inclusive; like ``first`` when empty.
    :param lake: location of the lake, or the id of its connection.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """

    template_fields: Sequence[str] = ("name", "table", "first", "last", "lake", "mlflow")
    ui_color = "#fde0ef"

    def __init__(
        self,
        *,
        name: str,
        table: str | None = None,
        first: str = "",
        last: str = "",
        lake: str = LakeHook.default_conn_name,
        mlflow: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.table = table
        self.first = first
        self.last = last
        self.lake = lake
        self.mlflow = mlflow

    def days(self) -> list[dt.date]:
        """The days to look at, at most ``MOST_NIGHTS`` of them, the last ones."""
        published = sorted(LakeHook(self.lake).get_conn().days(self.table or self.name))
        if not published:
            raise ConfigurationError(f"the table {self.table or self.name} has no data", todo="run the ingest first")
        if not self.first:
            return published[-1:]
        first, last = parse_interval(self.first, self.last or self.first)
        return [day for day in published if first <= day <= last][-MOST_NIGHTS:] or [last]

    def champion(self) -> tuple[ModelVersionRef, Scorer, dict[str, str]]:
        """The version in production, its scorer and its tags."""
        from airflow_provider_sml.ml.bundle import Scorer
        from airflow_provider_sml.ml.registry import CHAMPION

        registry = MlflowHook(self.mlflow).get_conn()
        version = registry.version(self.name, alias=CHAMPION)
        if version is None:
            raise AirflowSkipException(f"{self.name} has no champion yet; there is nothing to monitor")
        return version, Scorer(registry.bundle(version)), registry.tags(version)

    def drawn(self, version: ModelVersionRef, tags: Mapping[str, str]) -> Path:
        """Where the rows lie that the version was trained on.

        :param tags: of the version.
        """
        return LakeHook(tags.get("lake", self.lake)).place(sample_of(version, tags))


class ScorePartitionsOperator(ChampionOperator):
    """Scores published days with the champion and publishes the predictions to ``TABLE_predictions``."""

    __doc__ = f"{__doc__}\n{ChampionOperator.__doc__}"

    def run(self, context: Context) -> SnapshotRef:
        """Score day by day."""
        from airflow_provider_sml.ml.monitoring import predictions

        version, scorer, _ = self.champion()
        lake = self.open_lake(self.lake)
        table = self.table or self.name
        key = scorer.bundle.dataset.contract.key
        self._used, self._scored = version, 0
        snapshot = None
        for day in self.days():
            rows, content = predictions.scored_day(lake, table, day, scorer)
            snapshot = predictions.log_predictions(lake, table, rows, key, version.version, scorer, day, content)
            if not snapshot.rows:
                self.log.warning("%s is not published, or has no rows: there is nothing to score", day)
            self._scored += snapshot.rows
            self.log.info("%s: %s rows scored by version %s", day, f"{snapshot.rows:,}", version.version)
        assert snapshot is not None
        return snapshot

    def datasets(self, result: SnapshotRef) -> tuple[list[Data], list[Data]]:
        """The table and the model that scored it, and the predictions."""
        return (
            [table(result.lake, self.table or self.name, rows=self._scored), registered(self._used)],
            [table(result.lake, result.table, rows=self._scored, version=str(result.snapshot_id))],
        )


class DriftReportOperator(ChampionOperator):
    """Compares published days with a reference, and writes a report for each.

    :param share: share of the columns that must have drifted for a night of drift.
    :param numeric: limit for numbers: Wasserstein distance in standard deviations.
    :param category: limit for categories: Jensen-Shannon distance (natural logarithm), 0 to 0.83.
    :param reference: what a day is compared with: ``training`` (the rows that the champion was trained on),
        ``trailing 28 days`` (the days before), ``season 15 days`` (those around the same weekday a year ago).
    :param source: ``profiles`` compares all rows, by profiles that are kept in the lake; ``sample`` gives a drawn
        sample to Evidently's own preset, with ``training`` as the reference.
    :param rows: rows drawn from each side at most; of ``sample`` only.
    :param false_discovery: share of the columns told as drifted that may be so by chance (Benjamini-Hochberg); None
        leaves that control out. Of ``profiles`` only.
    :param segment: a stored column of few values by which the rows are judged apart as well. Of ``profiles`` only.
    :param min_rows: segments of fewer rows are not judged.
    :param warehouse: the warehouse whose copy of the table the features are profiled in, where that is BigQuery;
        the lake's files are read, by DuckDB, when None.
    :param leave_out: features that are not compared.
    :param label_known_after: how long after the event its label is known.
    :param reports: folder of the reports.
    :param keep: reports of nights, and profiles of days, so many days before the last one reported are removed, unless
        they are of the reference; None keeps them all.
    """

    template_fields: Sequence[str] = (*ChampionOperator.template_fields, "reports")
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), NightLink())
    __doc__ = f"{__doc__}\n{ChampionOperator.__doc__}"

    def __init__(
        self,
        *,
        share: float = 0.3,
        numeric: float = 0.1,
        category: float = 0.1,
        reference: str = "training",
        source: Literal["profiles", "sample"] = "profiles",
        rows: int = 5_000,
        false_discovery: float | None = 0.05,
        segment: str | None = None,
        min_rows: int = 200,
        warehouse: str | None = None,
        leave_out: Sequence[str] = (),
        label_known_after: str | dt.timedelta = "0 days",
        reports: str | None = None,
        keep: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reference = reference
        self.source = source
        self.false_discovery = false_discovery
        self.segment = segment
        self.min_rows = min_rows
        self.warehouse = warehouse
        self.keep = keep
        self.share = share
        self.numeric = numeric
        self.category = category
        self.rows = rows
        self.leave_out = leave_out
        self.label_known_after = label_known_after
        self.reports = reports

    def run(self, context: Context) -> ReportRef:
        """Report night by night; gives the last one."""
        from airflow_provider_sml.ml.monitoring import performance, profile_report
        from airflow_provider_sml.ml.monitoring.nightly import KEPT

        version, scorer, tags = self.champion()
        lake = LakeHook(self.lake).get_conn()
        table = self.table or self.name
        sample = self.drawn(version, tags)
        folder = report_folder(self.reports, self.name, "nights")
        self._used, self._drawn = version, sample_of(version, tags)
        key, kept = scorer.bundle.dataset.contract.key, folder.parent / "performance" / KEPT
        days = self.days()
        compare = self._profiles if self.source == "profiles" else self._sample
        night = compare(lake, table, sample, scorer, version.version, folder, days)
        report = None
        for day in days:
            past = performance.mature_days(day, duration(self.label_known_after), LOOK_BACK)
            report = night(day, performance.realised(lake, table, key, past, kept))
            drifted = f": {', '.join(report.drifted)}" if report.drifted else ""
            self.log.info("%s: %s, %.0f %% of the columns drifted%s", day, report.verdict, 100 * report.share, drifted)
        assert report is not None
        if self.keep is not None:
            profile_report.expire_reports(folder, days[-1] - dt.timedelta(days=self.keep))
        return report

    def datasets(self, result: ReportRef) -> tuple[list[Data], list[Data]]:
        """The table, the version and the rows that it was trained on, and the folder of the reports."""
        night = table(self.lake, self.table or self.name, rows=result.rows)
        return (
            [night, registered(self._used), drawn(self._drawn)],
            [Data(parent(result.uri), version=result.day)],
        )

    def _profiles(
        self, lake: Lake, table: str, sample: Path, scorer: Scorer, version: str, folder: Path, days: Sequence[dt.date]
    ) -> _Night:
        """Reports of whole nights, by profiles."""
        from airflow_provider_sml.ml.monitoring import night_profiles, profile_report, profile_store
        from airflow_provider_sml.ml.monitoring.reference import Reference
        from airflow_provider_sml.ml.monitoring.verdicts import Rules

        rules = Rules(
            self.share, self.numeric, self.category, false_discovery=self.false_discovery, min_rows=self.min_rows
        )
        reference = Reference.parse(self.reference)
        profiles = night_profiles.NightProfiles(
            lake, table, scorer, self.leave_out, self.segment, self._elsewhere(lake, table), "bigquery"
        )
        schema = night_profiles.schema_findings(lake, table, scorer.bundle.dataset)

        def night(day: dt.date, performance: Sequence[Mapping[str, Any]]) -> ReportRef:
            against = profiles.against(reference, day, sample)
            found = profile_report.report(
                self.name, version, day, against, profiles.nights([day]).get(day), rules, folder, performance, schema
            )
            if self.keep is not None and day == days[-1]:
                oldest = min(days[0] - dt.timedelta(days=self.keep), against.oldest or day)
                removed = profile_store.expire(lake, table, oldest)
                self.log.info("%s profiles of days before %s were removed", removed, oldest)
            return found

        return night

    def _elsewhere(self, lake: Lake, table: str) -> Elsewhere | None:
        """What profiles the features in the warehouse; None where they are read from the lake."""
        from airflow_provider_sml.hooks.warehouse import BigQueryPlace, WarehouseHook

        place = WarehouseHook(self.warehouse).get_conn() if self.warehouse else None
        if not isinstance(place, BigQueryPlace):
            return None
        counts = lake.days(table)

        def profiled(day: dt.date, columns: Sequence[Column], segment: str | None) -> Profile | None:
            return place.profile(table, day, counts.get(day, 0), columns, segment)

        return profiled

    def _sample(
        self, lake: Lake, table: str, sample: Path, scorer: Scorer, version: str, folder: Path, days: Sequence[dt.date]
    ) -> _Night:
        """Reports of a sample of each night, by Evidently's own preset."""
        from airflow_provider_sml.ml.monitoring import drift, predictions

        limits = drift.Limits(self.share, self.numeric, self.category)
        old = predictions.drawn_training(sample, scorer, self.rows)

        def night(day: dt.date, performance: Sequence[Mapping[str, Any]]) -> ReportRef:
            new = predictions.drawn_day(lake, table, day, scorer, self.rows)
            return drift.report(
                self.name, version, day, old.rows, new.rows, scorer, limits, folder, of=(old.of, new.of),
                leave_out=self.leave_out, performance=performance,
            )  # fmt: skip

        return night
