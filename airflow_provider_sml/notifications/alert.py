"""Provisional: replaced by the real notifier."""

from typing import Any

from airflow.sdk import BaseNotifier


class AlertNotifier(BaseNotifier):
    """Provisional."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def notify(self, context: Any) -> None:
        """Provisional."""
