"""What Airflow asks of an installed provider: connection types, extra links, configuration, the plugin."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's description, by the schema of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-sml",
        "name": "SML",
        "description": "The whole life of a model: ETL, lake, training, registry, gate, deployment, monitoring.",
    }
