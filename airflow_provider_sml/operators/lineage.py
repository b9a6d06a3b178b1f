"""Lineage as a task: from a version to the data and runs that made it, and from data to the versions that saw it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import LineageLink, ModelLink
from airflow_provider_sml.operators.base import SmlOperator, find_version
from airflow_provider_sml.refs import LineageRef

if TYPE_CHECKING:
    from airflow.sdk import Context


class LineageReportOperator(SmlOperator):
    """Writes a report on lineage, ``lineage.json`` and a page: of a version, or of data.

    With ``name`` alone it is of a version: its data, training, software, run, quality and the moves of its aliases, the
    versions that it was started from, and those that were started from it. With ``table`` it is of data: every version
    that saw the snapshot, the day, or anything of the table, in which split, and when it was the champion. Nothing is
    changed; a repeat writes the report again.

    :param name: registered model; with ``table``, only its versions are looked at.
    :param version: version number, an alias, or the output of a task that registered it; the champion when empty.
    :param table: table of the lake, for a report of data.
    :param snapshot: Iceberg's id of a snapshot of the table; empty for any.
    :param day: day of the table, ``YYYY-MM-DD``; empty for any.
    :param lake: location of the lake, or the id of its connection: the report then says whether the data are still
        what the versions saw. Empty to look at MLflow alone.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = ("name", "version", "table", "snapshot", "day", "lake", "mlflow", "reports")
    ui_color = "#dbe7c9"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), LineageLink())

    def __init__(
        self,
        *,
        name: str = "",
        version: Any = "",
        table: str = "",
        snapshot: str | int = "",
        day: str = "",
        lake: str = "",
        mlflow: str = MlflowHook.default_conn_name,
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.version = version
        self.table = table
        self.snapshot = snapshot
        self.day = day
        self.lake = lake
        self.mlflow = mlflow
        self.reports = reports

    def run(self, context: Context) -> LineageRef:
        """Walk, write, count."""
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.registry import report

        if not self.name and not self.table:
            raise ConfigurationError("the report is of nothing", expected="name, or table", found="neither")
        registry = MlflowHook(self.mlflow).get_conn()
        lake = LakeHook(self.lake).get_conn() if self.lake else None
        if self.table:
            found = report.of_data(registry, self.table, str(self.snapshot), self._day(), lake, self.name)
            subject = "-".join(str(part) for part in (self.snapshot, self.day) if part) or "all"
            versions = len(found["versions"])
        else:
            version = find_version(registry, self.name, self.version)
            found = report.of_version(registry, version, lake)
            subject, versions = version.version, 1 + len(found["ancestors"]) + len(found["descendants"])
        folder = report_folder(self.reports, self.table or self.name, "lineage", subject)
        storage.write(folder / "lineage.html", report.page(found))
        storage.write(folder / "lineage.json", json.dumps(found, indent=1))
        self.log.info("%s: %d versions, %s", subject, versions, folder / "lineage.html")
        return LineageRef(uri=str(folder), name=self.table or self.name, subject=subject, versions=versions)

    def _day(self) -> dt.date | None:
        try:
            return dt.date.fromisoformat(self.day) if self.day else None
        except ValueError as error:
            raise ConfigurationError("day is no day", expected="YYYY-MM-DD", found=self.day) from error
