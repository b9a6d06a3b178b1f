"""Waits for days of a table in the lake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml.contract.interval import parse_interval
from airflow_provider_sml.sensors.base import CheckSensor


class PublishedDaysSensor(CheckSensor):
    """Waits until days of a lake table are published, or until the table has a newer snapshot than one already seen.

    The task's result tells the snapshot and its rows of those days.

    :param table: name of the table.
    :param first: first day, ``YYYY-MM-DD``; empty for any day.
    :param last: last day, inclusive; like ``first`` when empty.
    :param newer_than: id of the snapshot that has been seen; empty when any will do.
    :param lake: location of the lake, or the id of its connection.
    :param deferrable: wait in the triggerer rather than in a worker slot.
    """

    template_fields: Sequence[str] = ("table", "first", "last", "newer_than", "lake")
    ui_color = "#e8e8e8"
    check = "published"

    def __init__(
        self,
        *,
        table: str,
        first: str = "",
        last: str = "",
        newer_than: str | int = "",
        lake: str = LakeHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, **kwargs)
        self.table = table
        self.first = first
        self.last = last
        self.newer_than = newer_than
        self.lake = lake

    def arguments(self) -> dict[str, Any]:
        """The days and the snapshot."""
        first = last = ""
        if self.first:
            first, last = (day.isoformat() for day in parse_interval(self.first, self.last or self.first))
        newer = str(self.newer_than).strip()
        if newer and not newer.isdigit():
            raise ConfigurationError("newer_than is no snapshot's id", expected="a whole number", found=newer)
        return {
            "table": self.table, "first": first, "last": last, "newer_than": int(newer) if newer else None,
            "lake": self.lake,
        }  # fmt: skip
