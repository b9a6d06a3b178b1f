"""What is done to an endpoint in a cloud apart from deployments: its traffic, its removal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.hooks.endpoints import endpoint_place
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.operators.remote_job import RemoteJobOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class _EndpointOperator(RemoteJobOperator):
    template_fields: Sequence[str] = ("endpoint", "target", "conn_id", "region", "project", "model", "mlflow")

    def __init__(
        self,
        *,
        endpoint: str,
        target: str = "sagemaker",
        conn_id: str = "",
        region: str = "",
        project: str = "",
        model: str = "",
        mlflow: str = MlflowHook.default_conn_name,
        plan: bool = False,
        poll_interval: float = 15.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poll_interval=poll_interval, **kwargs)
        self.endpoint = endpoint
        self.target = target
        self.conn_id = conn_id
        self.region = region
        self.project = project
        self.model = model
        self.mlflow = mlflow
        self.plan = plan

    #: What a plan says of the cost.
    _cost = ""

    def run(self, context: Context) -> Any:
        """Change the endpoint, or print the plan."""
        if not self.plan:
            return super().run(context)
        from airflow_provider_sml.hooks.clients import connected
        from airflow_provider_sml.operators.plan import show

        job: Any = connected(self.job(context))
        return show(self.log, f"endpoint {self.endpoint}", job.plan(), self._cost)

    def finish(self, context: Context, result: dict[str, Any]) -> dict[str, Any]:
        """Tell the page of the model, which asks no cloud, what became of the endpoint; a retry tells it, too."""
        if self.model:
            registry, tag = MlflowHook(self.mlflow).get_conn(), f"endpoint.{self.target}.{self.endpoint}"
            for row in registry.described(f"name = '{self.model}'"):
                told = row["tags"].get(tag)
                if told and (version := registry.version(self.model, version=row["version"])):
                    registry.set_tags(version, {tag: self._told_now(row["version"], told, result)})
        return result

    def _told_now(self, version: str, told: str, result: dict[str, Any]) -> str:
        """What a version is to say of the endpoint from now on.

        :param version: number of the version.
        :param told: what its deployment wrote.
        :param result: of the change.
        """
        raise NotImplementedError

    def _place(self) -> dict[str, Any]:
        return endpoint_place(self.target, self.endpoint, self.conn_id, self.region, self.project)


class SetTrafficOperator(_EndpointOperator):
    """Shares the traffic of an endpoint out among its variants or versions; a repeat finds it so.

    :param endpoint: name of the endpoint.
    :param weights: on SageMaker by variant, such as ``{"champion": 80, "challenger": 20}``; on Vertex AI by version of
        the model or id of a deployed model, such as ``{"1": 80, "2": 20}``. Only their proportions count.
    :param target: ``sagemaker`` or ``vertex``.
    :param conn_id: connection of the cloud; ``aws_default`` or ``google_cloud_default`` when empty.
    :param region: the region; of SageMaker the connection's when empty.
    :param project: of Vertex AI; the connection's when empty.
    :param model: registered model that the endpoint serves, whose page is then right at once; empty for none.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param plan: print the exact calls that are left to make, and change nothing.
    """

    template_fields: Sequence[str] = (*_EndpointOperator.template_fields, "weights")
    ui_color = "#c9ead9"
    _cost = "as before: no machine comes or goes"

    def __init__(self, *, weights: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights = weights

    def job(self, context: Context) -> Adapter:
        """The change of weights."""
        place = self._place()
        weights = {name: float(weight) for name, weight in self.weights.items()}
        if self.target == "vertex":
            from airflow_provider_sml.cloud.vertex_changes import VertexTraffic

            return VertexTraffic(**place, weights=weights)
        from airflow_provider_sml.cloud.sagemaker_changes import SageMakerTraffic

        return SageMakerTraffic(**place, weights=weights)

    def _told_now(self, version: str, told: str, result: dict[str, Any]) -> str:
        """The share of a version under an A/B test; the champion has what the others leave."""
        weights, deployment = result["weights"], json.loads(told)
        name = version if self.target == "vertex" else "challenger"
        if deployment.get("mode") != "ab" or name not in weights:
            return told
        share = 100 * weights[name] / sum(weights.values())
        return json.dumps(deployment | {"percent": round(share, 2)})


class DeleteEndpointOperator(_EndpointOperator):
    """Deletes an endpoint with its scaling, configuration and models; one that is gone already is well.

    The registered versions and their artefacts stay, so that it can be deployed again.

    :param endpoint: name of the endpoint.
    :param models: delete the cloud's models, too.
    :param target: ``sagemaker`` or ``vertex``.
    :param conn_id: connection of the cloud; ``aws_default`` or ``google_cloud_default`` when empty.
    :param region: the region; of SageMaker the connection's when empty.
    :param project: of Vertex AI; the connection's when empty.
    :param model: registered model that the endpoint serves, whose page is then right at once; empty for none.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param plan: print the exact calls that are left to make, and change nothing.
    """

    ui_color = "#eeeeee"
    _cost = "nothing any more, of this endpoint"

    def __init__(self, *, models: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.models = models

    def job(self, context: Context) -> Adapter:
        """The removal."""
        place = self._place()
        if self.target == "vertex":
            from airflow_provider_sml.cloud.vertex_changes import VertexRemoval

            return VertexRemoval(**place, models=self.models)
        from airflow_provider_sml.cloud.sagemaker_changes import SageMakerRemoval

        return SageMakerRemoval(**place, models=self.models)

    def _told_now(self, version: str, told: str, result: dict[str, Any]) -> str:
        """Nothing: it serves there no more."""
        return ""
