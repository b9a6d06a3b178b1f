"""What a DAG run cost and what spare capacity saved: each task tells its own, a report adds them up.

A task puts what it cost into XCom under a key of its own, as plain numbers; estimates are made where the prices are
known (``cloud.prices``, and the ``prices`` of each operator). What nobody has a price for is listed and counted as
unknown, never as nothing. A task that failed tells no cost, and neither does Airflow's own worker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import CostLink
from airflow_provider_sml.operators.base import SmlOperator
from airflow_provider_sml.operators.cost import Cost, told_by
from airflow_provider_sml.refs import CostReportRef

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass(frozen=True)
class _Row:
    """What one task told.

    :param task: its id.
    :param cost: what it cost.
    """

    task: str
    cost: Cost


class CostReportOperator(SmlOperator):
    """Adds up what the tasks of a DAG run cost, and what spot machines saved; writes ``costs.json`` and a page.

    Make it a teardown (``CostReportOperator(...).as_teardown()``): it then also runs after a task that failed, and the
    run still counts as failed. A repeat writes the same again.

    :param name: model that the report stands with; the DAG's id when empty.
    :param task_ids: tasks that are counted; all of the DAG when empty.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = ("name", "task_ids", "reports")
    ui_color = "#f3e9c8"
    operator_extra_links: Collection[BaseOperatorLink] = (CostLink(),)

    def __init__(
        self, *, name: str = "", task_ids: Sequence[str] = (), reports: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.task_ids = task_ids
        self.reports = reports

    def run(self, context: Context) -> CostReportRef:
        """Collect, add up, write."""
        instance: Any = context["ti"]
        own = instance.task_id
        tasks = [task for task in (self.task_ids or sorted(context["dag"].task_ids)) if task != own]
        rows = [_Row(task, cost) for task in tasks for cost in told_by(instance, task)]
        name = self.name or instance.dag_id
        folder = report_folder(self.reports, name, "costs", _plain(instance.run_id))
        totals = total([row.cost for row in rows])
        _write(folder, (instance.dag_id, instance.run_id), rows, totals)
        for row in rows:
            self.log.info("%s: %s", row.task, row.cost)
        self.log.info(
            "%d tasks cost %.4f USD and saved %.4f; %d without a price%s", len({row.task for row in rows}),
            totals["usd"], totals["saved_usd"], totals["unknown"],
            f"; {totals['usd_per_hour']:.4f} USD an hour go on" if totals["usd_per_hour"] else "",
        )  # fmt: skip
        return CostReportRef(
            uri=str(folder), name=name, run=folder.name, dag_id=instance.dag_id, run_id=instance.run_id, **totals
        )  # fmt: skip


def total(costs: Iterable[Cost]) -> dict[str, Any]:
    """The sums of a report: ``usd``, ``saved_usd``, ``unknown`` (costs without a price), ``usd_per_hour``.

    :param costs: of the tasks.
    """
    known = list(costs)
    return {
        "usd": round(sum(cost.usd or 0.0 for cost in known), 4),
        "saved_usd": round(sum(cost.saved_usd or 0.0 for cost in known), 4),
        "unknown": sum(cost.usd is None and cost.usd_per_hour is None for cost in known),
        "usd_per_hour": round(sum(cost.usd_per_hour or 0.0 for cost in known), 4),
    }


def _plain(text: str) -> str:
    """A run's id as a folder's name and part of an address."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[-64:].strip("-")


def _write(folder: Path, run: tuple[str, str], rows: Sequence[_Row], totals: Mapping[str, Any]) -> None:
    from airflow_provider_sml.ml import storage
    from airflow_provider_sml.ml.page import Page

    page = Page(f"Costs: {', '.join(run)}")
    page.text(f"{totals['usd']:.4f} USD; {totals['saved_usd']:.4f} USD saved against machines on demand.")
    if totals["usd_per_hour"]:
        page.text(f"{totals['usd_per_hour']:.4f} USD an hour go on until what was deployed is deleted.", "bad")
    if totals["unknown"]:
        page.text(f"{totals['unknown']} costs have no price: they are not in the sums.", "bad")
    shown = [
        (
            row.task, row.cost.what, _seconds(row.cost.seconds), _seconds(row.cost.billable_seconds),
            _percent(row.cost.savings_percent), _usd(row.cost.usd), _usd(row.cost.saved_usd),
            _usd(row.cost.usd_per_hour),
        )
        for row in rows
    ]  # fmt: skip
    page.table(["Task", "What", "Seconds", "Billed", "Saved", "USD", "USD saved", "USD an hour"], shown)
    page.text(
        "Estimates by a table of prices that can be replaced; the bill decides. Saved: (1 - billed / training seconds) "
        "x 100, as SageMaker tells it for managed spot training; elsewhere by the price of spare capacity.", "note",
    )  # fmt: skip
    told: dict[str, Any] = {"dag_id": run[0], "run_id": run[1], "totals": dict(totals)}
    told["tasks"] = [{"task": row.task, **asdict(row.cost)} for row in rows]
    storage.write(folder / "costs.html", page.render())
    storage.write(folder / "costs.json", json.dumps(told, indent=1))


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _usd(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
