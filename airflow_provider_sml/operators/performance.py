"""Each night: what the scores of days with labels were worth, what those of the others probably are, and skew."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import ModelLink, PerformanceLink
from airflow_provider_sml.ml.contract.quantities import duration
from airflow_provider_sml.operators.base import sample_of
from airflow_provider_sml.operators.monitoring import ChampionOperator
from airflow_provider_sml.operators.openlineage import Data, parent, registered
from airflow_provider_sml.operators.openlineage import table as lake_table
from airflow_provider_sml.operators.served_logs import served_log
from airflow_provider_sml.refs import PerformanceRef

if TYPE_CHECKING:
    from airflow.sdk import Context


class PerformanceReportOperator(ChampionOperator):
    """Reports a published day's performance: realised where labels are known, estimated where they are not, and skew.

    :param label_known_after: how long after the event its label is known.
    :param window: how far back days are measured anew as labels come, and calibrate the estimates.
    :param auc_drop: how far below the AUC of the rows it was tested on a day's whole interval may lie.
    :param calibration: how far the mean score of the window may lie from the label's rate.
    :param coverage: share of a day's scored rows that must have a label once they are due.
    :param skew: share of the rows that may have been served with another value of a feature than the lake holds.
    :param min_rows: days of fewer labelled rows are shown, and are no finding.
    :param served: the server's prediction log, empty for none: the folder of a local one; or ``target``
        (``sagemaker``, ``vertex``), ``endpoint`` and the ``settings`` that it was deployed by, of which
        ``capture`` or ``logging`` says where its requests are logged.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = (*ChampionOperator.template_fields, "reports", "served")
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), PerformanceLink())
    __doc__ = f"{__doc__}\n{ChampionOperator.__doc__}"

    def __init__(
        self,
        *,
        label_known_after: str | dt.timedelta = "0 days",
        window: str | dt.timedelta = "28 days",
        auc_drop: float = 0.05,
        calibration: float = 0.05,
        coverage: float = 0.5,
        skew: float = 0.05,
        min_rows: int = 200,
        served: str | Mapping[str, Any] = "",
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.label_known_after = label_known_after
        self.window = window
        self.auc_drop = auc_drop
        self.calibration = calibration
        self.coverage = coverage
        self.skew = skew
        self.min_rows = min_rows
        self.served = served
        self.reports = reports

    def run(self, context: Context) -> PerformanceRef:
        """Report night by night; gives the last one."""
        from airflow_provider_sml.ml.monitoring.nightly import Watch, night_report

        version, scorer, tags = self.champion()
        lake, table, self._used = LakeHook(self.lake).get_conn(), self.table or self.name, version
        watch = Watch(
            duration(self.label_known_after), duration(self.window), self.auc_drop, self.calibration, self.coverage,
            self.skew, self.min_rows,
        )  # fmt: skip
        tested = sorted((LakeHook(tags.get("lake", self.lake)).place(sample_of(version, tags)) / "test").glob("*"))
        if not tested:
            self.log.warning("The rows that version %s was tested on are gone; nothing is compared with.", version)
        folder = report_folder(self.reports, self.name, "performance")
        served = served_log(self.served, version, scorer.bundle.model_id)
        for day in self.days():
            report = night_report(
                self.name, version.version, day, lake, table, scorer, watch, folder, tested=tested, served=served
            )
            self._tell(report)
        known = [one for one in report["realised"] if one["auc"] is not None]
        return PerformanceRef(
            model=self.name,
            day=report["day"],
            findings=[f"{one['severity']}: {one['text']}" for one in report["findings"]][:5],
            realised_day=known[-1]["day"] if known else None,
            realised_auc=round(known[-1]["auc"], 4) if known else None,
            estimated_auc=round(report["estimated"][-1]["auc"], 4) if report["estimated"] else None,
            uri=str(folder / f"{report['day']}.html"),
        )

    def datasets(self, result: PerformanceRef) -> tuple[list[Data], list[Data]]:
        """The table with the labels, the predictions and the version, and the folder of the reports."""
        name = self.table or self.name
        read = [lake_table(self.lake, name), lake_table(self.lake, f"{name}_predictions"), registered(self._used)]
        return read, [Data(parent(result.uri), version=result.day)]

    def _tell(self, report: dict[str, Any]) -> None:
        for kind, days in (("realised", report["realised"][-1:]), ("estimated", report["estimated"][-1:])):
            for day in days:
                auc = "of no meaning"
                if day["auc"] is not None:
                    auc = f"{day['auc']:.3f} [{day['auc_low']:.3f}, {day['auc_high']:.3f}]"
                self.log.info(
                    "%s: %s AUC of %s %s, log loss %.3f", report["day"], kind, day["day"], auc, day["log_loss"]
                )
        for finding in report["findings"]:
            self.log.warning("%s: %s: %s", report["day"], finding["severity"], finding["text"])
