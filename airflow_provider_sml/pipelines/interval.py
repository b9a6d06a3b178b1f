"""Which days a run is about; macros of the pipelines' templates.

A person's choice in the trigger form comes first, then what the events say that started the run, then the days that
ended within the run's interval.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any


def ingest_day(which: str, params: Mapping[str, Any], dag_run: Any) -> str:
    """First or last day to ingest.

    :param which: ``first`` or ``last``.
    :param params: of the run: ``first_day`` and ``last_day`` may be given.
    :param dag_run: the run; without a choice its days are those that its data interval began with and that have ended
        when it ends: one day for a daily schedule, seven for a weekly one, Friday to Sunday for a Monday's after
        working days. A run without an interval is about the day before.
    """
    first, last = params.get("first_day"), params.get("last_day")
    if first or last:
        chosen = first or last if which == "first" else last or first
        return str(chosen)
    due: dt.datetime = dag_run.data_interval_end or dag_run.logical_date or dag_run.run_after
    ended = (due - dt.timedelta(days=1)).date()
    began = dag_run.data_interval_start
    return (min(began.date(), ended) if which == "first" and began else ended).isoformat()


def monitor_day(which: str, params: Mapping[str, Any], events: Mapping[Any, Any]) -> str:
    """First or last day to monitor; empty for the last one that is published.

    :param which: ``first`` or ``last``.
    :param params: of the run: ``day`` and ``last_day`` may be given; one of them alone is the only day.
    :param events: the asset events that started the run; each tells the days that were published.
    """
    first, last = params.get("day"), params.get("last_day")
    if first or last:
        return str((first or last) if which == "first" else (last or first))
    told = [event.extra[which] for found in events.values() for event in found if which in (event.extra or {})]
    if not told:
        return ""
    return str(min(told) if which == "first" else max(told))


def deploy_version(params: Mapping[str, Any], events: Mapping[Any, Any]) -> str:
    """Version to deploy; empty for the challenger.

    :param params: of the run: ``version`` may be given.
    :param events: the asset events that started the run; the last one's version counts.
    """
    if params.get("version"):
        return str(params["version"])
    told = [event for found in events.values() for event in found if "version" in (event.extra or {})]
    return str(max(told, key=lambda event: event.timestamp).extra["version"]) if told else ""


MACROS = {"ingest_day": ingest_day, "monitor_day": monitor_day, "deploy_version": deploy_version}
