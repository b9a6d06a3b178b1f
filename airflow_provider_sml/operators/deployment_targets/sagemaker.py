"""SageMaker as a deployment target: the bundle goes to S3, an endpoint serves it, scores are asked through it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sml.cloud.sagemaker_endpoint import SageMakerRollout
from airflow_provider_sml.cloud.sagemaker_packages import APPROVED, ModelPackage
from airflow_provider_sml.cloud.sagemaker_spec import CHALLENGER, EndpointSpec
from airflow_provider_sml.cloud.source_archive import pack, pack_files
from airflow_provider_sml.errors import ConfigurationError, DeploymentError, SmlError
from airflow_provider_sml.hooks.clients import connected
from airflow_provider_sml.operators.deployment_targets import Deployment

_RUNTIME, _CHAMPION = "sagemaker-runtime", "it is the champion"
#: Settings that are the target's own; all others are those of ``EndpointSpec``.
_OWN = ("aws_conn_id", "region", "artifacts", "prices", "model_package_group")


class SageMakerTarget:
    """Deploys to SageMaker.

    Settings: ``artifacts`` (S3 folder of the models), ``aws_conn_id``, ``region``, ``prices``,
    ``model_package_group`` (a group of SageMaker's model registry, in which the version is registered, approved when it
    has become the champion, and rejected when it was taken back), and those of
    ``cloud.sagemaker_spec.EndpointSpec``. An asynchronous endpoint is asked through S3, below its output folder.

    :param deployment: what is deployed.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be right."""
        if not str(settings.get("artifacts", "")).startswith("s3://"):
            raise ConfigurationError(
                "SageMaker reads models from S3", expected="artifacts: an S3 folder", found=settings.get("artifacts")
            )
        EndpointSpec.load(_spec(settings, "s3://bucket/model.tar.gz"))

    @cached_property
    def _rollout(self) -> SageMakerRollout:
        given, deployment = self.deployment.settings, self.deployment
        self.check(given)  # before anything is uploaded
        rollout: SageMakerRollout = connected(
            SageMakerRollout(
                name=deployment.endpoint,
                version=deployment.version,
                spec=_spec(given, self._place),
                connection=given.get("aws_conn_id", "aws_default"),
                region=given.get("region", ""),
                tags=deployment.tags,
                prices=given.get("prices", {}),
            )
        )
        return rollout

    @property
    def _place(self) -> str:
        base = str(self.deployment.settings["artifacts"]).rstrip("/")
        kind = "/xgboost" if self.deployment.settings.get("container") == "xgboost" else ""
        return f"{base}/{self.deployment.model}/{self.deployment.model_id}{kind}/model.tar.gz"

    @property
    def replaces(self) -> bool:
        """Whether the version becomes the one that serves."""
        return self._rollout.what.mode == "replace"

    def upload(self, bundle: Path) -> None:
        """Put the bundle to S3 as the archive that SageMaker unpacks; the same bundle is always the same bytes."""
        from airflow_provider_sml.ml.bundle import Bundle
        from airflow_provider_sml.ml.serving.xgboost_container import MODEL_FILE, booster_of

        ours = self._rollout.what.container == "ours"
        packed = pack(bundle) if ours else pack_files({MODEL_FILE: booster_of(Bundle.read(bundle))})
        self._rollout.call("s3", "put_object", Body=packed, **self._object())
        if self._package:
            self._package.propose(self._rollout)

    def _object(self) -> dict[str, str]:
        """Where the archive goes, and the key that encrypts it."""
        place, key = urlsplit(self._place), self._rollout.what.kms_key
        locked = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}
        return {"Bucket": place.netloc, "Key": place.path.lstrip("/"), **locked}

    def rollout(self) -> SageMakerRollout:
        """The roll-out."""
        return self._rollout

    def plan(self) -> tuple[list[tuple[str, str, dict[str, Any]]], str]:
        """The exact calls, and the cost per hour."""
        current = self._rollout.endpoint()
        calls: list[tuple[str, str, dict[str, Any]]] = [("s3", "put_object", self._object())]
        calls += self._package.calls(self._rollout.aws_tags()) if self._package else []
        calls += self._rollout.calls(current) + self._rollout.scaling_calls(self._rollout.config(current))
        if self._package and self.replaces:
            calls.append(self._package.decision("of that model package", APPROVED, _CHAMPION))
        cost = self._rollout.hourly_cost()
        by_use = "by use: it is serverless" if self._rollout.what.serverless else "unknown: no price for the machine"
        return calls, by_use if cost is None else f"{cost:,.4f} USD per hour while it serves"

    def address(self) -> str:
        """The endpoint's name as SageMaker's runtime takes it."""
        return f"sagemaker://{self.deployment.endpoint}"

    def score(self, rows: list[dict[str, Any]]) -> list[float] | None:
        """Scores of the new version; None for a shadow, whose answers nobody gets."""
        from airflow_provider_sml.ml.serving.parity import predictions
        from airflow_provider_sml.ml.serving.xgboost_container import csv_scores

        what = self._rollout.what
        if what.mode == "shadow":
            return None
        body, kind = self._question(rows)
        if what.asynchronous:
            answer = self._ask_through_s3(body, kind)
        else:
            chosen = {"TargetVariant": CHALLENGER} if what.mode == "ab" else {}
            try:
                answer = self._rollout.call(
                    _RUNTIME, "invoke_endpoint", EndpointName=self.deployment.endpoint, Body=body,
                    ContentType=kind, Accept=kind, **chosen,
                )["Body"].read()  # fmt: skip
            except SmlError as error:
                raise DeploymentError(f"{self.address()} refuses stored rows", found=str(error)) from error
        if what.container == "xgboost":
            return csv_scores(self.address(), answer, len(rows))
        return predictions(self.address(), answer, len(rows))

    def _question(self, rows: list[dict[str, Any]]) -> tuple[bytes, str]:
        """Body and content type of a request for scores."""
        if self._rollout.what.container == "ours":
            return json.dumps({"instances": rows}).encode(), "application/json"
        from airflow_provider_sml.ml.bundle import Bundle
        from airflow_provider_sml.ml.serving.xgboost_container import CONTENT, csv_request

        return csv_request(Bundle.read(self.deployment.bundle), rows), CONTENT

    def complete(self, result: Mapping[str, Any]) -> None:
        """Approve the version in SageMaker's own registry, where that is wanted.

        Nothing else: SageMaker has ended the old machines, and the old configuration is the way back.
        """
        if self._package:
            self._package.approve(self._rollout, _CHAMPION)

    def rejected(self, reason: str) -> None:
        """Reject the version in SageMaker's own registry, where it is."""
        if self._package:
            self._package.reject(self._rollout, reason)

    @property
    def _package(self) -> ModelPackage | None:
        group, what, deployment = (
            self.deployment.settings.get("model_package_group"),
            self._rollout.what,
            self.deployment,
        )
        if not group:
            return None
        return ModelPackage(
            group=group, version=f"{deployment.model} version {deployment.version}, {deployment.model_id}",
            image=what.image, model_data=what.model_data,
            properties={"version": deployment.version, "model_id": deployment.model_id, **deployment.tags},
        )  # fmt: skip

    def undo(self, result: Mapping[str, Any]) -> str:
        """Take the roll-out back."""
        return self._rollout.undo(f"{result['config']}/{result['previous']}")

    def _ask_through_s3(self, body: bytes, kind: str, within: float = 900.0) -> bytes:
        """An asynchronous answer: the request is put to S3, and the output awaited there."""
        call, name = self._rollout.call, f"sml-parity-{uuid.uuid4().hex}"
        base = urlsplit(self._rollout.what.asynchronous["output"])
        key = f"{base.path.strip('/')}/{name}.json".lstrip("/")
        call("s3", "put_object", Bucket=base.netloc, Key=key, Body=body)
        place = urlsplit(
            call(
                _RUNTIME, "invoke_endpoint_async", EndpointName=self.deployment.endpoint, InferenceId=name,
                InputLocation=f"s3://{base.netloc}/{key}", ContentType=kind, Accept=kind,
            )["OutputLocation"]
        )  # fmt: skip
        end = time.monotonic() + within
        while True:
            try:
                found: bytes = call("s3", "get_object", Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()
                return found
            except ConfigurationError as error:
                if time.monotonic() > end:
                    raise DeploymentError(
                        f"{self.address()} gave no answer within {within:g} s", found=str(error),
                        todo="read the container's log, and the folder for failures",
                    ) from error  # fmt: skip
            time.sleep(5.0)


def _spec(settings: Mapping[str, Any], model_data: str) -> dict[str, Any]:
    """The values of the ``EndpointSpec`` in the settings."""
    return {key: value for key, value in settings.items() if key not in _OWN} | {"model_data": model_data}
