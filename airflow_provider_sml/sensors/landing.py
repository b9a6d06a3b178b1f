"""Waits for files that an upstream system lands."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.ml.contract.interval import parse_interval
from airflow_provider_sml.ml.contract.quantities import duration
from airflow_provider_sml.sensors.base import CheckSensor


class LandedFilesSensor(CheckSensor):
    """Waits until every file that a dataset needs for some days has landed, on a disk, S3 or Google Cloud Storage.

    Without a rule the files count as whole by their name alone: upstream must write to another name and rename, or put
    an object at once. The task's result tells the files, their bytes, and how late the last one was.

    :param dataset: the source and its joins.
    :param first: first day, ``YYYY-MM-DD``.
    :param last: last day, inclusive.
    :param places: values of the places that paths name.
    :param marker: name of a file that upstream writes last beside the others, such as ``_SUCCESS``.
    :param count: fewest files behind a pattern or in a folder.
    :param quiet: how long no file may have been written, such as ``"5m"``.
    :param due: how long after the last day's end its files ought to be there; later ones are told as late.
    :param lake: the lake whose store reaches paths on an object store: its location, or the id of its connection.
    :param deferrable: wait in the triggerer rather than in a worker slot.
    """

    template_fields: Sequence[str] = ("first", "last", "places", "lake")
    ui_color = "#e8e8e8"
    check = "landed"

    def __init__(
        self,
        *,
        dataset: Dataset | Mapping[str, Any],
        first: str,
        last: str,
        places: Mapping[str, str] | None = None,
        marker: str | None = None,
        count: int = 1,
        quiet: str | dt.timedelta = "0s",
        due: str | dt.timedelta = "0s",
        lake: str = LakeHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, **kwargs)
        self.dataset = dataset
        self.first = first
        self.last = last
        self.places = places or {}
        self.marker = marker
        self.count = count
        self.quiet = quiet
        self.due = due
        self.lake = lake

    def arguments(self) -> dict[str, Any]:
        """The paths and the rule."""
        from airflow_provider_sml.ml.etl.plan import landed_paths

        first, last = parse_interval(self.first, self.last)
        due = dt.datetime.combine(last, dt.time(), dt.UTC) + dt.timedelta(days=1) + duration(self.due)
        return {
            "paths": landed_paths(Dataset.load(self.dataset), self.places, first, last),
            "rule": {"marker": self.marker, "count": self.count, "quiet": duration(self.quiet).total_seconds()},
            "lake": self.lake,
            "due": due.isoformat(),
        }
