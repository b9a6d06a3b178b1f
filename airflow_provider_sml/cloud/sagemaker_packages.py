"""Versions in SageMaker's model registry: a deployed version as an approved model package of a group.

SageMaker numbers the packages of a group itself, so a version is told by its description: a repeat finds it. MLflow
stays the registry that decides; the package tells those who look into SageMaker alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.cloud.aws import AwsJob, AwsRefused
from airflow_provider_sml.cloud.remote_job import spec_hash

_SERVICE = "sagemaker"


@dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """A version to be registered.

    :param group: name of the group; it is made when it is not there.
    :param version: what tells the version from all others, in words.
    :param image: the scoring container.
    :param model_data: S3 address of its model.tar.gz.
    :param properties: facts about it, for those who look.
    """

    group: str
    version: str
    image: str
    model_data: str
    properties: Mapping[str, str] = field(default_factory=dict)

    def calls(self, tags: list[dict[str, str]]) -> list[tuple[str, str, dict[str, Any]]]:
        """The calls that register it where nothing is there yet: service, operation and parameters.

        :param tags: of a new group; the packages of a group take none.
        """
        specification = {
            "Containers": [{"Image": self.image, "ModelDataUrl": self.model_data}],
            "SupportedContentTypes": ["application/json"], "SupportedResponseMIMETypes": ["application/json"],
        }  # fmt: skip
        package = {
            "ModelPackageGroupName": self.group, "ModelPackageDescription": self.version,
            "InferenceSpecification": specification, "ModelApprovalStatus": "Approved",
            "CustomerMetadataProperties": {key: str(value)[:256] for key, value in self.properties.items() if value},
            "ClientToken": spec_hash([self.group, self.version, self.image, self.model_data]),
        }  # fmt: skip
        return [
            (_SERVICE, "create_model_package_group", {"ModelPackageGroupName": self.group, "Tags": tags}),
            (_SERVICE, "create_model_package", package),
        ]

    def register(self, job: AwsJob) -> str:
        """Register it unless it is there, and see that it is approved; gives its ARN.

        :param job: whose connection asks AWS, and whose tags a new group gets.
        """
        group, package = self.calls(job.aws_tags())
        try:
            job.call(_SERVICE, "describe_model_package_group", ModelPackageGroupName=self.group)
        except AwsRefused as error:
            if "does not exist" not in error.said:
                raise
            self._make_group(job, group[2])
        for found in self._packages(job):
            if found.get("ModelPackageDescription") == self.version:
                arn = str(found["ModelPackageArn"])
                if found.get("ModelApprovalStatus") != "Approved":
                    job.call(_SERVICE, "update_model_package", ModelPackageArn=arn, ModelApprovalStatus="Approved")
                return arn
        return str(job.call(_SERVICE, "create_model_package", **package[2])["ModelPackageArn"])

    def _make_group(self, job: AwsJob, request: dict[str, Any]) -> None:
        try:
            job.call(_SERVICE, "create_model_package_group", **request)
        except AwsRefused as error:  # by a call of our own whose reply was lost, or by another task
            if "already exists" not in error.said:
                raise

    def _packages(self, job: AwsJob) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            page = job.call(
                _SERVICE, "list_model_packages", ModelPackageGroupName=self.group, MaxResults=100, **more
            )  # fmt: skip
            found += page["ModelPackageSummaryList"]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}
