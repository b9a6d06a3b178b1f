"""Vertex AI as a deployment target: the bundle goes to Cloud Storage, an endpoint serves it, scores are asked there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sml.cloud.google import CALL_SECONDS
from airflow_provider_sml.cloud.vertex_endpoint import VertexRollout
from airflow_provider_sml.cloud.vertex_plan import Call, planned
from airflow_provider_sml.cloud.vertex_spec import VertexSpec, version_key
from airflow_provider_sml.errors import ConfigurationError, DeploymentError, SmlError
from airflow_provider_sml.hooks.clients import connected, google_project
from airflow_provider_sml.operators.deployment_targets import Deployment

#: Settings that are the target's own; all others are those of ``VertexSpec``.
_OWN = ("gcp_conn_id", "project", "region", "artifacts", "prices")
#: Chance hides a version with one percent of the traffic from so many questions once in 20,000 times.
_MOST_QUESTIONS = 1000
_CONNECTION = "google_cloud_default"


class VertexTarget:
    """Deploys to Vertex AI.

    Settings: ``artifacts`` (folder of the models in Cloud Storage), ``region``, ``gcp_conn_id``, ``project`` (the
    connection's when absent), ``prices``, and those of ``cloud.vertex_spec.VertexSpec``.

    :param deployment: what is deployed.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be right."""
        if not str(settings.get("artifacts", "")).startswith("gs://"):
            raise ConfigurationError(
                "Vertex AI reads models from Cloud Storage", expected="artifacts: a folder in Cloud Storage",
                found=settings.get("artifacts"),
            )  # fmt: skip
        if not settings.get("region"):
            raise ConfigurationError(
                "Vertex AI is a service of regions", expected="region: such as europe-west1", found="none"
            )
        VertexSpec.load(_spec(settings, "gs://bucket/folder"))

    @cached_property
    def _rollout(self) -> VertexRollout:
        given, deployment = self.deployment.settings, self.deployment
        self.check(given)  # before anything is uploaded
        connection = given.get("gcp_conn_id", _CONNECTION)
        rollout: VertexRollout = connected(
            VertexRollout(
                name=deployment.endpoint,
                model=deployment.model,
                version=deployment.version,
                spec=_spec(given, self._place),
                connection=connection,
                project=given.get("project") or google_project(connection),
                region=given["region"],
                labels=deployment.tags,
                prices=given.get("prices", {}),
            )
        )
        return rollout

    @property
    def replaces(self) -> bool:
        """Whether the version becomes the one that serves."""
        return self._rollout.what.mode == "replace"

    @property
    def _place(self) -> str:
        base = str(self.deployment.settings["artifacts"]).rstrip("/")
        kind = "/xgboost" if self.deployment.settings.get("container") == "xgboost" else ""
        return f"{base}/{self.deployment.model}/{self.deployment.model_id}{kind}"

    def upload(self, bundle: Path) -> None:
        """Put the model to Cloud Storage; its folder names its content, so what is there stays."""
        from airflow_provider_sml.ml.bundle import Bundle
        from airflow_provider_sml.ml.serving.xgboost_container import VERTEX_MODEL_FILE, nameless_booster_of

        files = {path.name: path.read_bytes() for path in sorted(bundle.iterdir()) if path.is_file()}
        if self._rollout.what.container == "xgboost":
            files = {VERTEX_MODEL_FILE: nameless_booster_of(Bundle.read(bundle))}
        for name, content in files.items():
            self._rollout.keep(f"{self._place}/{name}", content, self._rollout.what.kms_key)

    def rollout(self) -> VertexRollout:
        """The roll-out."""
        return self._rollout

    def plan(self) -> tuple[list[tuple[str, str, dict[str, Any]]], str]:
        """The exact calls, and the cost per hour."""
        from airflow_provider_sml.ml.bundle import BUNDLE_FILE
        from airflow_provider_sml.ml.serving.xgboost_container import VERTEX_MODEL_FILE

        cost = self._rollout.what.hourly_cost(self._rollout.prices)
        told = "unknown: no price for the machine" if cost is None else f"{cost:,.4f} USD per hour while it serves"
        own, place = self._rollout.what.container == "ours", urlsplit(self._place)
        objects = [
            {"bucket": place.netloc, "name": f"{place.path.lstrip('/')}/{file}", "ifGenerationMatch": 0}
            for file in ((BUNDLE_FILE, "model.*") if own else (VERTEX_MODEL_FILE,))
        ]
        uploads: list[Call] = [("storage", "objects.insert", request) for request in objects]
        return [*uploads, *planned(self._rollout, self._rollout.endpoint())], told

    def address(self) -> str:
        """The endpoint's full name as Vertex AI's prediction service takes it."""
        return f"vertex://{self._rollout.path}"

    def score(self, rows: list[dict[str, Any]]) -> list[float] | None:
        """Scores of the new version: through its own answers where it shares the traffic, else it has all by now."""
        from airflow_provider_sml.ml.serving.parity import predictions

        if not self.replaces:
            return self._of_ours(rows)
        question = json.dumps({"instances": self._instances(rows)}).encode()
        body = {"data": question, "content_type": "application/json"}
        try:
            answer = self._rollout.call("predictions", "raw_predict", endpoint=self._rollout.path, http_body=body)
        except SmlError as error:
            raise DeploymentError(f"{self.address()} refuses stored rows", found=str(error)) from error
        return predictions(self.address(), answer.data, len(rows))

    def _instances(self, rows: list[dict[str, Any]]) -> list[Any]:
        """The rows as the container takes them: raw columns, or lists of features."""
        if self._rollout.what.container == "ours":
            return list(rows)
        from airflow_provider_sml.ml.bundle import Bundle
        from airflow_provider_sml.ml.serving.xgboost_container import list_request

        return list_request(Bundle.read(self.deployment.bundle), rows)

    def _of_ours(self, rows: list[dict[str, Any]]) -> list[float]:
        """Ask until the new version answers: Vertex AI chooses by the traffic, and tells who did."""
        from google.cloud import aiplatform_v1
        from google.protobuf import json_format, struct_pb2

        ours = {part.id for part in self._rollout.parts}
        request = aiplatform_v1.PredictRequest(endpoint=self._rollout.path)
        values = [json_format.ParseDict(row, struct_pb2.Value()) for row in self._instances(rows)]
        aiplatform_v1.PredictRequest.pb(request).instances.extend(values)
        question = lambda client: client.predict(request, timeout=CALL_SECONDS, retry=None)  # noqa: E731
        for _ in range(_MOST_QUESTIONS):
            try:
                answer = self._rollout.ask("vertex_predictions", "aiplatform.endpoints.predict", question)
            except SmlError as error:
                raise DeploymentError(f"{self.address()} refuses stored rows", found=str(error)) from error
            if answer.deployed_model_id in ours:
                return [float(score) for score in answer.predictions]
        raise DeploymentError(
            f"{self.address()} was asked {_MOST_QUESTIONS} times, and the new version never answered",
            expected=f"{self._rollout.what.percent} percent of the answers", found="none",
        )  # fmt: skip

    def complete(self, result: Mapping[str, Any]) -> None:
        """Undeploy what served before, and move the aliases of the Vertex AI model."""
        self._rollout.complete()

    def rejected(self, reason: str) -> None:
        """Nothing: Vertex AI's registry knows no approval, and the version is deleted."""

    def undo(self, result: Mapping[str, Any]) -> str:
        """Take the roll-out back."""
        return self._rollout.undo()


def _spec(settings: Mapping[str, Any], artifact: str) -> dict[str, Any]:
    """The values of the ``VertexSpec`` in the settings."""
    return {key: value for key, value in settings.items() if key not in _OWN} | {"artifact": artifact}


def deployed_ids(deployment: Deployment) -> list[str]:
    """The ids that the deployed models of a version have.

    :param deployment: of the version, with the settings that it was deployed by.
    """
    what = VertexSpec.load(_spec(deployment.settings, VertexTarget(deployment)._place))
    return [part.id for part in what.parts(version_key(deployment.version, what))]
