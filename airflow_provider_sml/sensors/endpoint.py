"""Waiting for an endpoint in a cloud."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink, BaseSensorOperator

from airflow_provider_sml.compat import AirflowFailException
from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.links.pages import ModelLink

if TYPE_CHECKING:
    from airflow.sdk import Context


class EndpointSensor(BaseSensorOperator):
    """Waits until an endpoint is in service, and serves a certain version where one is named.

    In service alone says little: after a roll-back an endpoint is in service with the old version. On Vertex AI the
    version serves when it has all of the traffic. It changes nothing.

    :param endpoint: name of the endpoint.
    :param version: version of the model that it must serve; any when empty.
    :param target: ``sagemaker`` or ``vertex``.
    :param conn_id: connection of the cloud; ``aws_default`` or ``google_cloud_default`` when empty.
    :param region: the region; of SageMaker the connection's when empty.
    :param project: of Vertex AI; the connection's when empty.
    """

    template_fields: Sequence[str] = ("endpoint", "version", "target", "conn_id", "region", "project")
    ui_color = "#c9ead9"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(),)

    def __init__(
        self,
        *,
        endpoint: str,
        version: str = "",
        target: str = "sagemaker",
        conn_id: str = "",
        region: str = "",
        project: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.version = version
        self.target = target
        self.conn_id = conn_id
        self.region = region
        self.project = project

    def poke(self, context: Context) -> bool:
        """Look once; a passing failure of the cloud is not yet an answer."""
        from airflow_provider_sml.hooks.endpoints import endpoint_place

        try:
            place = endpoint_place(self.target, self.endpoint, self.conn_id, self.region, self.project)
            found = self._look(place)
        except JobError as error:
            self.log.warning("endpoint %s could not be asked: %s", self.endpoint, error)
            return False
        except ConfigurationError as error:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from error
        if found is None:
            self.log.info("there is no endpoint %s yet", self.endpoint)
            return False
        return self._on_vertex(found) if self.target == "vertex" else self._on_sagemaker(found)

    def _look(self, place: dict[str, Any]) -> Any:
        from airflow_provider_sml.hooks.clients import connected

        if self.target == "vertex":
            from airflow_provider_sml.cloud.vertex_changes import VertexRemoval

            return connected(VertexRemoval(**place)).endpoint()
        from airflow_provider_sml.cloud.sagemaker_changes import SageMakerRemoval

        return connected(SageMakerRemoval(**place)).endpoint()

    def _on_sagemaker(self, found: Any) -> bool:
        status, config = found["EndpointStatus"], found.get("EndpointConfigName", "")
        self.log.info("endpoint %s is %s, config %s", self.endpoint, status, config)
        if status in ("Failed", "UpdateRollbackFailed"):
            raise AirflowFailException(f"endpoint {self.endpoint} is {status}: {found.get('FailureReason', '')}")
        serves = not self.version or f"-v{self.version}-" in config
        return status == "InService" and serves

    def _on_vertex(self, found: Any) -> bool:
        from airflow_provider_sml.cloud.vertex_changes import shares

        traffic = shares(found)
        told = ", ".join(f"version {name}: {share} percent" for name, share in sorted(traffic.items()))
        self.log.info("endpoint %s: %s", self.endpoint, told or "nothing is deployed")
        return traffic.get(self.version, 0) == 100 if self.version else any(traffic.values())
