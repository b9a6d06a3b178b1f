"""The base of the sensors: one check, asked in a worker's slot or by the triggerer."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink, BaseSensorOperator, PokeReturnValue

from airflow_provider_sml.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_sml.errors import ConfigurationError, SmlError
from airflow_provider_sml.hooks import checks
from airflow_provider_sml.links.pages import ModelLink

if TYPE_CHECKING:
    from airflow.sdk import Context


class CheckSensor(BaseSensorOperator):
    """Waits for a check of ``hooks.checks``; a subclass names it and gives its arguments.

    ``timeout`` is the deadline, in seconds; with ``soft_fail`` the task is skipped at it rather than failed. The task's
    result is what the check tells of what came.

    :param deferrable: wait in the triggerer rather than in a worker slot.
    """

    check: str
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(),)

    def __init__(self, *, deferrable: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable

    def arguments(self) -> dict[str, Any]:
        """Arguments of the check: plain JSON.

        :raises ConfigurationError: when waiting does not mend them.
        """
        raise NotImplementedError

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        try:
            found = getattr(checks, self.check)(**self.arguments())
        except ConfigurationError as error:  # waiting does not mend it
            raise AirflowFailException(str(error)) from error
        self.log.info("%s", found.told)
        return PokeReturnValue(is_done=found.done, xcom_value=found.facts if found.done else None)

    def execute(self, context: Context) -> Any:
        """Wait here, or hand the waiting to the triggerer unless it is over at once."""
        if not self.deferrable:
            return super().execute(context)
        found = self.poke(context)
        if found.is_done:
            return found.xcom_value
        from airflow_provider_sml.triggers.poll import PollTrigger

        trigger = PollTrigger(self.check, self.arguments(), self.poke_interval, time.time() + self.timeout)
        # The trigger keeps the deadline itself and says what is missing; Airflow's own limit is the net below it.
        net = timedelta(seconds=self.timeout + 10 * self.poke_interval + 60)
        self.defer(trigger=trigger, method_name="resume", timeout=net)

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the trigger's event."""
        self.log.info("%s", event["told"])
        if event["done"]:
            return event["facts"]
        if event["retryable"]:
            raise SmlError(event["told"])
        if self.soft_fail:
            raise AirflowSkipException(event["told"])
        if event["told"].startswith("the deadline"):
            raise AirflowSensorTimeout(event["told"])
        raise AirflowFailException(event["told"])
