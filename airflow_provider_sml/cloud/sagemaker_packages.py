"""Versions in SageMaker's model registry: a version that is deployed, as a model package of a group.

It waits for approval while it is rolled out, is approved when it has become the champion, and rejected when it was
taken back. SageMaker numbers the packages of a group itself, so a version is told by its description: a repeat finds
it. MLflow stays the registry that decides; the package tells those who look into SageMaker alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.cloud.aws import AwsJob, AwsRefused
from airflow_provider_sml.cloud.remote_job import spec_hash

_SERVICE = "sagemaker"
PENDING, APPROVED, REJECTED = "PendingManualApproval", "Approved", "Rejected"


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
            "InferenceSpecification": specification, "ModelApprovalStatus": PENDING,
            "CustomerMetadataProperties": {key: str(value)[:256] for key, value in self.properties.items() if value},
            "ClientToken": spec_hash([self.group, self.version, self.image, self.model_data]),
        }  # fmt: skip
        return [
            (_SERVICE, "create_model_package_group", {"ModelPackageGroupName": self.group, "Tags": tags}),
            (_SERVICE, "create_model_package", package),
        ]

    def propose(self, job: AwsJob) -> str:
        """Register it unless it is there; one that was rejected waits for approval again. Gives its ARN.

        :param job: whose connection asks AWS, and whose tags a new group gets.
        """
        group, package = self.calls(job.aws_tags())
        try:
            job.call(_SERVICE, "describe_model_package_group", ModelPackageGroupName=self.group)
        except AwsRefused as error:
            if "does not exist" not in error.said:
                raise
            self._make_group(job, group[2])
        if (found := self._found(job)) is None:
            return str(job.call(_SERVICE, "create_model_package", **package[2])["ModelPackageArn"])
        if found.get("ModelApprovalStatus") == REJECTED:
            self._decide(job, found["ModelPackageArn"], PENDING, "it is deployed again")
        return str(found["ModelPackageArn"])

    def approve(self, job: AwsJob, reason: str) -> None:
        """Approve it; it is registered first where it is not there.

        :param reason: in words.
        """
        found = self._found(job) or {"ModelPackageArn": self.propose(job)}
        if found.get("ModelApprovalStatus") != APPROVED:
            self._decide(job, found["ModelPackageArn"], APPROVED, reason)

    def reject(self, job: AwsJob, reason: str) -> None:
        """Reject it, where it is there and is not rejected already.

        :param reason: in words.
        """
        found = self._found(job)
        if found is not None and found.get("ModelApprovalStatus") != REJECTED:
            self._decide(job, found["ModelPackageArn"], REJECTED, reason)

    def decision(self, arn: str, status: str, reason: str) -> tuple[str, str, dict[str, Any]]:
        """The call that decides on it.

        :param arn: of the package.
        """
        decided = {"ModelPackageArn": arn, "ModelApprovalStatus": status, "ApprovalDescription": reason[:1024]}
        return _SERVICE, "update_model_package", decided

    def _decide(self, job: AwsJob, arn: str, status: str, reason: str) -> None:
        service, operation, params = self.decision(arn, status, reason)
        job.call(service, operation, **params)

    def _found(self, job: AwsJob) -> dict[str, Any] | None:
        return next((item for item in self._packages(job) if item.get("ModelPackageDescription") == self.version), None)

    def _make_group(self, job: AwsJob, request: dict[str, Any]) -> None:
        try:
            job.call(_SERVICE, "create_model_package_group", **request)
        except AwsRefused as error:  # by a call of our own whose reply was lost, or by another task
            if "already exists" not in error.said:
                raise

    def _packages(self, job: AwsJob) -> list[dict[str, Any]]:
        """The packages of the group; none where there is no group."""
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            try:
                page = job.call(
                    _SERVICE, "list_model_packages", ModelPackageGroupName=self.group, MaxResults=100, **more
                )  # fmt: skip
            except AwsRefused as error:
                if "does not exist" not in error.said:
                    raise
                return found
            found += page["ModelPackageSummaryList"]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}
