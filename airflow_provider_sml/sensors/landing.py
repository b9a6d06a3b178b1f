"""Waits for files that an upstream system lands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from airflow_provider_sml.compat import AirflowFailException
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.ml.contract.interval import parse_interval

if TYPE_CHECKING:
    from airflow.sdk import Context


class LandedFilesSensor(BaseSensorOperator):
    """Waits until every file that a dataset needs for some days has landed.

    It looks for the files by name only: upstream must write to another name and rename, so that a file is whole when it
    is there. Local file systems only.

    :param dataset: the source and its joins.
    :param first: first day, ``YYYY-MM-DD``.
    :param last: last day, inclusive.
    :param places: values of the places that paths name.
    """

    template_fields: Sequence[str] = ("first", "last", "places")
    ui_color = "#e8e8e8"

    def __init__(
        self,
        *,
        dataset: Dataset | Mapping[str, Any],
        first: str,
        last: str,
        places: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.first = first
        self.last = last
        self.places = places or {}

    def poke(self, context: Context) -> bool:
        """Whether all files are there."""
        from airflow_provider_sml.ml.etl.plan import landed_paths

        try:
            first, last = parse_interval(self.first, self.last)
            paths = landed_paths(Dataset.load(self.dataset), self.places, first, last)
        except ConfigurationError as error:  # waiting does not mend it
            raise AirflowFailException(str(error)) from error
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            self.log.info("%d of %d files have not landed, the first is %s", len(missing), len(paths), missing[0])
        return not missing
