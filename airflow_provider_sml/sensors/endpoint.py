"""Waiting for an endpoint in a cloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from airflow_provider_sml.compat import AirflowFailException
from airflow_provider_sml.errors import JobError

if TYPE_CHECKING:
    from airflow.sdk import Context


class EndpointSensor(BaseSensorOperator):
    """Waits until a SageMaker endpoint is in service, and serves a certain version where one is named.

    In service alone says little: after a roll-back an endpoint is in service with the old version. It changes nothing.

    :param endpoint: name of the endpoint.
    :param version: version of the model that it must serve; any when empty.
    :param conn_id: the AWS connection.
    :param region: the region; the connection's when empty.
    """

    template_fields: Sequence[str] = ("endpoint", "version", "conn_id", "region")
    ui_color = "#c9ead9"

    def __init__(
        self, *, endpoint: str, version: str = "", conn_id: str = "aws_default", region: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.version = version
        self.conn_id = conn_id
        self.region = region

    def poke(self, context: Context) -> bool:
        """Look once; a passing failure of AWS is not yet an answer."""
        from airflow_provider_sml.cloud.sagemaker_changes import SageMakerRemoval
        from airflow_provider_sml.hooks.clients import connected

        try:
            found = connected(
                SageMakerRemoval(name=self.endpoint, connection=self.conn_id, region=self.region)
            ).endpoint()
        except JobError as error:
            self.log.warning("endpoint %s could not be asked: %s", self.endpoint, error)
            return False
        if found is None:
            self.log.info("there is no endpoint %s yet", self.endpoint)
            return False
        status, config = found["EndpointStatus"], found.get("EndpointConfigName", "")
        self.log.info("endpoint %s is %s, config %s", self.endpoint, status, config)
        if status in ("Failed", "UpdateRollbackFailed"):
            raise AirflowFailException(f"endpoint {self.endpoint} is {status}: {found.get('FailureReason', '')}")
        serves = not self.version or f"-v{self.version}-" in config
        return status == "InService" and serves
