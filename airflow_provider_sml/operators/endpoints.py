"""What is done to an endpoint in a cloud apart from deployments: its traffic, its removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.operators.remote_job import RemoteJobOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The targets whose endpoints are changed here.
_TARGETS = ("sagemaker",)


class _EndpointOperator(RemoteJobOperator):
    template_fields: Sequence[str] = ("endpoint", "target", "conn_id", "region")

    def __init__(
        self,
        *,
        endpoint: str,
        target: str = "sagemaker",
        conn_id: str = "aws_default",
        region: str = "",
        poll_interval: float = 15.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poll_interval=poll_interval, **kwargs)
        self.endpoint = endpoint
        self.target = target
        self.conn_id = conn_id
        self.region = region

    def _place(self) -> dict[str, Any]:
        if self.target not in _TARGETS:
            raise ConfigurationError(
                f"endpoints of {self.target!r} are not changed so", expected=", ".join(_TARGETS), found=self.target
            )
        return {"name": self.endpoint, "connection": self.conn_id, "region": self.region}


class SetTrafficOperator(_EndpointOperator):
    """Shares the traffic of an endpoint out among its variants; a repeat finds it so.

    :param endpoint: name of the endpoint.
    :param weights: by variant, such as ``{"champion": 80, "challenger": 20}``; only their proportions count.
    :param target: ``sagemaker``.
    :param conn_id: connection of the cloud.
    :param region: the region; the connection's when empty.
    """

    template_fields: Sequence[str] = (*_EndpointOperator.template_fields, "weights")
    ui_color = "#c9ead9"

    def __init__(self, *, weights: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights = weights

    def job(self, context: Context) -> Adapter:
        """The change of weights."""
        place = self._place()
        from airflow_provider_sml.cloud.sagemaker_changes import SageMakerTraffic

        return SageMakerTraffic(**place, weights={name: float(weight) for name, weight in self.weights.items()})


class DeleteEndpointOperator(_EndpointOperator):
    """Deletes an endpoint with its scaling, configuration and models; one that is gone already is well.

    The registered versions and their artefacts stay, so that it can be deployed again.

    :param endpoint: name of the endpoint.
    :param models: delete the cloud's models, too.
    :param target: ``sagemaker``.
    :param conn_id: connection of the cloud.
    :param region: the region; the connection's when empty.
    """

    ui_color = "#eeeeee"

    def __init__(self, *, models: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.models = models

    def job(self, context: Context) -> Adapter:
        """The removal."""
        place = self._place()
        from airflow_provider_sml.cloud.sagemaker_changes import SageMakerRemoval

        return SageMakerRemoval(**place, models=self.models)
