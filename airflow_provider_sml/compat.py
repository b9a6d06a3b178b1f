"""Names that Airflow 3.1, the floor of this package, has in another place than later versions."""

from __future__ import annotations

from typing import Any

from airflow.sdk.exceptions import AirflowRuntimeError

try:
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )
except ImportError:  # Airflow 3.1
    from airflow.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )

__all__ = [
    "AirflowFailException", "AirflowNotFoundException", "AirflowRuntimeError", "AirflowSensorTimeout",
    "AirflowSkipException", "configuration",
]  # fmt: skip


def configuration() -> Any:
    """Airflow's settings, for tasks and triggers; imported only when they are asked for."""
    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # Airflow 3.1
        from airflow.configuration import conf
    return conf
