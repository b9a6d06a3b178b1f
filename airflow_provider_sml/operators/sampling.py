"""From a table to a sample: which days and rows a model is trained, validated and tested on, and how many."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import ModelLink, SamplingLink
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.ml.contract.interval import parse_day
from airflow_provider_sml.ml.contract.quantities import duration
from airflow_provider_sml.operators.base import SmlOperator
from airflow_provider_sml.operators.openlineage import Data, parent, table
from airflow_provider_sml.refs import SamplePlanRef, SampleRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.sampling import Method


class _SamplingOperator(SmlOperator):
    """What the two operators below share: the table, its windows and the method.

    :param table: table of the lake.
    :param as_of: the last day of data to use, ``YYYY-MM-DD``; the last published day when empty.
    :param train: length of the training window, such as ``"120 days"``.
    :param validate: length of the window after it, for early stopping.
    :param test: length of the window after that, for the evaluation.
    :param label_known_after: how long after the event its label is known.
    :param method: how training rows are chosen: ``all``, ``uniform``, ``hash`` (whole entities), ``stratified``,
        ``decay``, ``negatives`` or ``reservoir``; see ``ml.sampling.methods``.
    :param by: the columns that name an entity (``hash``) or a stratum (``stratified``).
    :param key: the columns that name a row, for methods that keep single rows.
    :param half_life: days after which a row weighs half, for ``decay``.
    :param seed: another seed keeps others.
    :param lake: location of the lake, or the id of its connection.
    """

    template_fields: Sequence[str] = ("table", "as_of", "lake")
    ui_color = "#e3dcf5"

    def __init__(
        self,
        *,
        table: str,
        as_of: str = "",
        train: str | dt.timedelta = "120 days",
        validate: str | dt.timedelta = "14 days",
        test: str | dt.timedelta = "14 days",
        label_known_after: str | dt.timedelta = "0 days",
        method: str = "all",
        by: Sequence[str] = (),
        key: Sequence[str] = (),
        half_life: str | dt.timedelta | None = None,
        seed: int = 7,
        lake: str = LakeHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.as_of = as_of
        self.train = train
        self.validate = validate
        self.test = test
        self.label_known_after = label_known_after
        self.method = method
        self.by = by
        self.key = key
        self.half_life = half_life
        self.seed = seed
        self.lake = lake

    def windows(self, lake: Lake) -> dict[str, tuple[dt.date, dt.date]]:
        """First and last day of each split."""
        from airflow_provider_sml.ml import sampling

        days = lake.days(self.table)
        if not days:
            raise ConfigurationError(
                f"the table {self.table} has no data",
                expected="published days",
                found="none",
                todo="run the ingest first",
            )
        as_of = parse_day(self.as_of, "as_of") if self.as_of else max(days)
        train, validate, test = (duration(value).days for value in (self.train, self.validate, self.test))
        return sampling.windows(as_of, train, validate, test, duration(self.label_known_after))

    def chosen(self, rate: float, size: int | None = None) -> Method:
        """The method at a rate."""
        from airflow_provider_sml.ml.sampling import Method

        half_life = duration(self.half_life).total_seconds() / 86_400 if self.half_life else None
        return Method(self.method, tuple(self.by), tuple(self.key), rate, size, half_life, self.seed)


class SampleOperator(_SamplingOperator):
    """Draws the rows that a model is trained, validated and tested on; the same ones whenever it is repeated.

    :param rate: share of the rows, entities or negatives kept in the training window, above 0 to 1, or the output of
        ``PlanSampleOperator``.
    :param size: rows to keep, for ``reservoir``.
    :param groups: columns that name an entity which may stand in one split only; the splits are then of entities.
    :param dataset: features to compare with all rows of the training window; with it the sample's ``fidelity.json``
        says how faithful it is.
    """

    template_fields: Sequence[str] = (*_SamplingOperator.template_fields, "rate")
    __doc__ = f"{__doc__}\n{_SamplingOperator.__doc__}"

    def __init__(
        self,
        *,
        rate: Any = 1.0,
        size: int | None = None,
        groups: Sequence[str] = (),
        dataset: Dataset | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.size = size
        self.groups = groups
        self.dataset = dataset

    def run(self, context: Context) -> SampleRef:
        """Find the windows and draw."""
        from airflow_provider_sml.ml import sampling

        lake = self.open_lake(self.lake)
        windows = self.windows(lake)
        method = self.chosen(_share(self.rate), self.size)
        sample = sampling.draw(lake, self.table, windows, method=method, groups=self.groups)
        for split, (first, last) in windows.items():
            self.log.info("%s: %s rows from %s to %s", split, f"{sample.rows[split]:,}", first, last)
        if self.dataset is not None:
            from airflow_provider_sml.ml.sampling.fidelity import report

            found = report(lake, sample, Dataset.load(self.dataset))
            worst = found["columns"][0]
            self.log.info(
                "fidelity: %s differs most (PSI %.4f); label rate %.4f, of all rows %.4f", worst["name"], worst["psi"],
                found["label_rate"]["sample"], found["label_rate"]["population"],
            )  # fmt: skip
        return sample

    def datasets(self, result: SampleRef) -> tuple[list[Data], list[Data]]:
        """The snapshot that was drawn from, and the sample."""
        return (
            [table(self.lake, result.table, version=str(result.snapshot_id))],
            [Data(parent(result.uri), rows=sum(result.rows.values()), version=result.sample_id)],
        )


def _share(value: Any) -> float:
    """A rate as it comes: a number, its text out of a template, or the planner's result."""
    if isinstance(value, SamplePlanRef | Mapping) or (isinstance(value, str) and value.strip().startswith("{")):
        return SamplePlanRef.load(value).rate
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigurationError(
            "the sampling rate is no number", expected="a share such as 0.25, or a planner's output", found=value
        ) from None


class PlanSampleOperator(_SamplingOperator):
    """Finds the smallest sampling rate that costs no more AUC than allowed, by training on growing samples.

    It looks at the training window only, and holds its last days out to measure on; the test window is never read.

    :param dataset: features and label.
    :param hyperparameters: XGBoost's parameters, as the training will use them.
    :param tolerance: AUC that may be lost against training on all rows.
    :param rate: a rate chosen by a person; the planner is not asked then. Empty for the planner's.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = (*_SamplingOperator.template_fields, "rate", "reports")
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), SamplingLink())
    __doc__ = f"{__doc__}\n{_SamplingOperator.__doc__}"

    def __init__(
        self,
        *,
        dataset: Dataset | Mapping[str, Any],
        hyperparameters: Mapping[str, Any] | None = None,
        tolerance: float = 0.002,
        rate: Any = "",
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.hyperparameters = hyperparameters or {}
        self.tolerance = tolerance
        self.rate = rate
        self.reports = reports

    def run(self, context: Context) -> SamplePlanRef:
        """Train the curve and choose."""
        from airflow_provider_sml.ml.sampling.learning import measure_on
        from airflow_provider_sml.ml.sampling.planner import plan_rate
        from airflow_provider_sml.ml.training.trainer import DEFAULTS

        if self.rate not in ("", None):
            return SamplePlanRef("", _share(self.rate), True, None, None, None)
        lake, dataset = LakeHook(self.lake).get_conn(), Dataset.load(self.dataset)
        window = self.windows(lake)["train"]
        settings = DEFAULTS | dict(self.hyperparameters)
        measure, population = measure_on(lake, self.table, window, dataset, settings, self.chosen(1.0))
        plan = plan_rate(measure, population, self.tolerance, log=lambda line: self.log.info("%s", line))
        folder = report_folder(self.reports, dataset.name, "sample", f"{window[1]}")
        plan.write(folder)
        point = plan.chosen
        if point:
            self.log.info("%.0f %% of the rows; expected loss of AUC %.4f", 100 * plan.rate, point.loss)
        else:
            self.log.info("no rate loses less than %g of AUC; all rows are used", plan.tolerance)
        return SamplePlanRef(
            uri=str(folder),
            rate=plan.rate,
            found=plan.found,
            loss=round(point.loss, 6) if point else None,
            loss_low=round(point.loss_low, 6) if point else None,
            loss_high=round(point.loss_high, 6) if point else None,
        )
