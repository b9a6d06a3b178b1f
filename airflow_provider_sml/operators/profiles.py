"""Profiles of a table's days made by Spark, before the report of drift asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.operators.monitoring import ChampionOperator
from airflow_provider_sml.operators.openlineage import Data, table
from airflow_provider_sml.operators.spark import SparkPlanOperator
from airflow_provider_sml.refs import ProfilesRef

if TYPE_CHECKING:
    import datetime as dt

    from airflow.sdk import Context

    from airflow_provider_sml.ml.monitoring.night_profiles import NightProfiles, Unread


class ProfilePartitionsOperator(ChampionOperator, SparkPlanOperator):
    """Profiles published days for the model in production with Spark, where ``DriftReportOperator`` finds them.

    With the same settings as its own that operator then reads no row of a day that it compares or compares with. What
    has its profile is not profiled again, and where all have, no job is submitted. Features are counted by Spark's
    Python workers where they have Python 3.11, NumPy, PyArrow and pydantic, and by SQL, at three to four times the
    cost, where they lack one. The scores that a task before it has logged are left to the report, which reads that one
    column; without segments these are those of ``ScorePartitionsOperator``. Other scores are computed by the workers
    where they have pandas and the model's library too; where they lack one the log says so, and the report computes
    them.

    :param reference: what the days are compared with, as of ``DriftReportOperator``: its days are profiled too.
    :param segment: a stored column by which the rows are judged apart as well, as of ``DriftReportOperator``.
    :param leave_out: features that are not compared.
    """

    template_fields: Sequence[str] = (*ChampionOperator.template_fields, *SparkPlanOperator.template_fields)
    ui_color = SparkPlanOperator.ui_color
    operator_extra_links = SparkPlanOperator.operator_extra_links
    __doc__ = f"{__doc__}\n{ChampionOperator.__doc__}\n{SparkPlanOperator.__doc__}"
    #: The profiles, and what is there of none, once this try has looked.
    _lacking: tuple[NightProfiles, Unread]

    def __init__(
        self, *, reference: str = "training", segment: str | None = None, leave_out: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.reference = reference
        self.segment = segment
        self.leave_out = leave_out

    def run(self, context: Context) -> Any:
        """Submit a job for the days that lack a profile, or attach to it; none where all have theirs."""
        profiles, days = self._wanted()
        self._lacking = profiles, profiles.unread(days)
        if not any(self._lacking[1]):
            self.log.info("all that is published of %d days has its profile", len(days))
            return ProfilesRef(self.name, self.table or self.name, [], [])
        return super().run(context)

    def job(self, context: Context) -> Adapter:
        """The job that profiles what lacks a profile."""
        from airflow_provider_sml.ml.etl.plan import spark_conf
        from airflow_provider_sml.ml.monitoring.spark_profiles import write_plan

        profiles, unread = self._lacking
        lake, name = self.open_lake(self.lake), self.table or self.name
        output = self.stage(context, lake, name)
        files = write_plan(lake, name, profiles, unread, output)
        days = sorted({file.day for file in files})
        self.log.info("%s: %d days are profiled, from %s to %s", name, len(days), days[0], days[-1])
        size = sum(file.bytes for file in files)
        return self.application(context, lake, output, spark_conf(profiles.bundle.dataset), {"table": name}, size)

    def finish(self, context: Context, result: dict[str, Any]) -> ProfilesRef:
        """Keep the profiles."""
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.monitoring.spark_profiles import take

        super().finish(context, result)
        features, scores, reason = take(self.open_lake(self.lake), storage.place(result["uri"]))
        if reason:
            self.log.warning(
                "the report will compute scores itself: Spark's Python workers cannot load the model (%s); they need "
                "Python 3.11, numpy, pandas, pyarrow, pydantic and the model's library", reason,
            )  # fmt: skip
        self.log.info("%d days have profiles of their features, %d of their scores", len(features), len(scores))
        return ProfilesRef(
            self.name, result["table"], [day.isoformat() for day in features], [day.isoformat() for day in scores]
        )

    def datasets(self, result: ProfilesRef) -> tuple[list[Data], list[Data]]:
        """The table; what comes of it is no dataset of its own."""
        return [table(self.lake, result.table)], []

    def _wanted(self) -> tuple[NightProfiles, list[dt.date]]:
        """The profiles for the model in production, and the days that the report will ask for."""
        from airflow_provider_sml.ml.monitoring.night_profiles import NightProfiles
        from airflow_provider_sml.ml.monitoring.reference import Reference

        version, scorer, tags = self.champion()
        lake, name = self.open_lake(self.lake), self.table or self.name
        profiles = NightProfiles(lake, name, scorer, self.leave_out, self.segment)
        reference, sample = Reference.parse(self.reference), self.drawn(version, tags)
        nights = self.days()
        days = {day for night in nights for day in [night, *profiles.days_of(reference, night, sample)]}
        return profiles, sorted(days)
