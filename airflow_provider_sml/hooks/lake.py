"""The connection to the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_provider_sml.hooks.places import find_connection, home, is_location

if TYPE_CHECKING:
    from airflow_provider_sml.ml.lake import Lake


class LakeHook(BaseHook):
    """Opens the lake.

    :param lake: its location, or the id of a connection of type ``sml_lake``.
    """

    conn_name_attr = "lake"
    default_conn_name = "sml_lake"
    conn_type = "sml_lake"
    hook_name = "SML lake"

    def __init__(self, lake: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lake = lake

    def get_conn(self) -> Lake:
        """The lake."""
        from airflow_provider_sml.ml.lake import Lake

        return Lake(self.location())

    def location(self) -> str:
        """Where the lake is."""
        if is_location(self.lake):
            return self.lake
        connection = find_connection(self.lake, self.default_conn_name)
        location = connection.extra_dejson.get("location") if connection else None
        return location or f"{home()}/lake"

    def test_connection(self) -> tuple[bool, str]:
        """Whether the lake opens, for the button in the UI."""
        try:
            tables = self.get_conn().tables()
        except Exception as error:
            return False, str(error)
        return True, f"{self.location()}: {len(tables)} tables"
