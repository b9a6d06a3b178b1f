"""Names that Airflow 3.1, the floor of this package, has in another place than later versions."""

from __future__ import annotations

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
    "AirflowSkipException",
]  # fmt: skip
