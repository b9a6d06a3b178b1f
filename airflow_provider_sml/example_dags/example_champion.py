"""A DAG that runs whenever another version of a model becomes the champion, whoever made it so.

The alias is looked at every minute by a watcher of Airflow's; a webhook of MLflow's may tell it at once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_sml.triggers.alias import alias_asset, moved_to


# [START champion]
@dag(
    schedule=[alias_asset("flights", "champion")],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["sml", "example"],
)
def example_champion() -> None:
    @task
    def versions(triggering_asset_events: Any = None) -> list[str]:
        """The versions that became the champion since the last run; none when it was started by hand."""
        events = [event for events in dict(triggering_asset_events or {}).values() for event in events]
        return [moved_to(event)["version"] for event in events]

    versions()


# [END champion]
example_champion()
