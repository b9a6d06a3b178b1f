"""What a task cost, as it puts it into XCom for the report of its DAG run (``operators.costs``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Key of a task's costs in XCom: a list of dictionaries.
KEY = "sml_costs"


@dataclass(frozen=True)
class Cost:
    """What something cost; estimates, in USD.

    :param what: in words, such as ``SageMaker training, 2 x ml.m5.xlarge, spot``.
    :param usd: what it cost; None when nobody has a price.
    :param saved_usd: what it would have cost more on demand.
    :param savings_percent: ``(1 - billable / training seconds) * 100`` (SageMaker's documentation, "Managed Spot
        Training in Amazon SageMaker AI"), or by the price of spare capacity.
    :param seconds: that it took.
    :param billable_seconds: of these.
    :param usd_per_hour: what goes on costing, of an endpoint.
    """

    what: str
    usd: float | None = None
    saved_usd: float | None = None
    savings_percent: float | None = None
    seconds: float | None = None
    billable_seconds: float | None = None
    usd_per_hour: float | None = None

    def __str__(self) -> str:
        cost = f"{self.usd_per_hour:.4f} USD an hour" if self.usd_per_hour is not None else f"{self.usd or 0:.4f} USD"
        unknown = self.usd is None and self.usd_per_hour is None
        saved = f", {self.savings_percent:.1f} % saved" if self.savings_percent else ""
        return f"{self.what}: {'no price is known' if unknown else cost}{saved}"


def told_by(instance: Any, task: str) -> list[Cost]:
    """What a task of the run told, of all its map indexes.

    :param instance: the task instance that asks.
    :param task: id of the task that is asked.
    """
    found = instance.xcom_pull(task_ids=[task], key=KEY) or []
    return [Cost(**each) for told in found for each in (told or []) if isinstance(each, Mapping)]


def costs_before(context: Context) -> dict[str, str]:
    """What the tasks upstream of this one told of costs: ``cost_usd``, their sum, and ``cost_unknown``, how many have
    no price.

    :param context: of the task.
    """
    told = [cost for task in sorted(context["task"].get_flat_relative_ids(upstream=True))
            for cost in told_by(context["ti"], task)]  # fmt: skip
    return {
        "cost_usd": f"{sum(cost.usd or 0.0 for cost in told):.4f}",
        "cost_unknown": str(sum(cost.usd is None and cost.usd_per_hour is None for cost in told)),
    }


def training_cost(service: str, job: Any) -> Cost:
    """Of a training job in a cloud.

    :param service: in words.
    :param job: a ``TrainingJobRef``.
    """
    saved = None
    if job.cost_usd is not None and job.savings_percent is not None and job.savings_percent < 100:
        saved = round(job.cost_usd * job.savings_percent / (100 - job.savings_percent), 4)
    return Cost(
        what=f"{service}, {job.count} x {job.instance}{', spot' if job.spot else ''}", usd=job.cost_usd,
        saved_usd=saved, savings_percent=job.savings_percent, seconds=job.training_seconds,
        billable_seconds=job.billable_seconds,
    )  # fmt: skip


def usage_cost(usage: Mapping[str, Any] | None) -> list[Cost]:
    """Of a Spark job whose service tells what it used.

    :param usage: ``job``, ``cost_usd`` and what it was computed from; None for a job that costs nothing by itself.
    """
    return [Cost(what=f"Spark job {usage['job']}", usd=usage["cost_usd"])] if usage else []
