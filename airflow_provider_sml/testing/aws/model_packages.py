"""SageMaker's model registry: groups of model packages, their versions, and the approval of each version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.aws.errors import AwsError, invalid
from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_"
#: Members of the request that are no part of what is kept.
_NOT_KEPT = ("Tags", "ClientToken", "ModelPackageName")
_SUMMARY = (
    "ModelPackageName", "ModelPackageGroupName", "ModelPackageVersion", "ModelPackageArn", "ModelPackageDescription",
    "CreationTime", "ModelPackageStatus", "ModelApprovalStatus", "ModelLifeCycle", "ModelPackageRegistrationType",
)  # fmt: skip


class ModelPackages:
    """The operations on model packages and their groups.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("sagemaker", "The model packages of a group are numbered from 1; a number is not given again.",
                  DOCUMENTED, "https://docs.aws.amazon.com/sagemaker/latest/dg/model-registry-models.html"),
        Behaviour("sagemaker", "A model package of a group waits for approval (PendingManualApproval) unless its "
                  "request says otherwise, and UpdateModelPackage approves or rejects it.", DOCUMENTED,
                  f"{_API}CreateModelPackage.html"),
        Behaviour("sagemaker", "CreateModelPackage with the ClientToken of an earlier one gives that one.", DOCUMENTED,
                  f"{_API}CreateModelPackage.html"),
        Behaviour("sagemaker", "A model package is in a group, or has a name of its own, not both.", DOCUMENTED,
                  f"{_API}CreateModelPackage.html"),
        Behaviour("sagemaker", "A group that has model packages cannot be deleted: ConflictException.", DOCUMENTED,
                  f"{_API}DeleteModelPackageGroup.html"),
        Behaviour("sagemaker", "Tags are for the group: a model package in a group takes none.", REPORTED,
                  "https://github.com/aws-controllers-k8s/sagemaker-controller/pull/54"),
        Behaviour("sagemaker", "A model package is Completed at once; nothing is validated or scanned.", ASSUMED,
                  "validation jobs are for the marketplace"),
        Behaviour("sagemaker", "A model may be made of a model package only when that is Approved.", ASSUMED,
                  "the developer guide asks for the approval first and does not say what happens without it"),
        Behaviour("sagemaker", "A group or a model package that is not there is a ValidationException.", ASSUMED,
                  "as everything else of this service"),
    )  # fmt: skip

    def __init__(self, cloud: FakeAws) -> None:
        super().__init__(cloud)  # type: ignore[call-arg]  # the rest of SageMaker
        self.cloud = cloud
        self.package_groups: dict[str, dict[str, Any]] = {}
        #: By ARN.
        self.packages: dict[str, dict[str, Any]] = {}
        self._group_tags: dict[str, list[dict[str, str]]] = {}
        self._numbers: dict[str, int] = {}
        self._tokens: dict[str, str] = {}

    # --- groups ---------------------------------------------------------------------------------------------------

    def create_model_package_group(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ModelPackageGroupName"]
        arn = self.cloud.arn("sagemaker", f"model-package-group/{name}")
        if name in self.package_groups:
            raise invalid(f"Model Package Group already exists: {arn}")
        kept = {key: value for key, value in request.items() if key != "Tags"}
        self.package_groups[name] = kept | {
            "ModelPackageGroupArn": arn, "CreationTime": self.cloud.clock.moment(), "CreatedBy": {},
            "ModelPackageGroupStatus": "Completed",
        }  # fmt: skip
        self._group_tags[name] = list(request.get("Tags", []))
        return {"ModelPackageGroupArn": arn}

    def describe_model_package_group(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._group(request["ModelPackageGroupName"])

    def list_model_package_groups(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = request.get("NameContains", "")
        found = [
            {key: value for key, value in group.items() if key != "CreatedBy"}
            for name, group in self.package_groups.items()
            if wanted in name
        ]
        return {"ModelPackageGroupSummaryList": found[: request.get("MaxResults", 100)]}

    def delete_model_package_group(self, request: dict[str, Any]) -> None:
        name = self._group(request["ModelPackageGroupName"])["ModelPackageGroupName"]
        if any(package.get("ModelPackageGroupName") == name for package in self.packages.values()):
            raise AwsError("ConflictException", f"Model Package Group {name} still has model packages; delete them")
        del self.package_groups[name]

    # --- packages -------------------------------------------------------------------------------------------------

    def create_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        group, name, token = (
            request.get(key) for key in ("ModelPackageGroupName", "ModelPackageName", "ClientToken")
        )  # fmt: skip
        if token in self._tokens:
            return {"ModelPackageArn": self._tokens[token]}
        if bool(group) == bool(name):
            raise invalid("Give either a ModelPackageGroupName or a ModelPackageName")
        kept = {key: value for key, value in request.items() if key not in _NOT_KEPT}
        if group:
            group = self._group(group)["ModelPackageGroupName"]
            if request.get("Tags"):
                raise invalid("Tags are not supported for versioned model packages; tag the model package group")
            number = self._numbers[group] = self._numbers.get(group, 0) + 1
            arn, name = self.cloud.arn("sagemaker", f"model-package/{group}/{number}"), group
            kept |= {"ModelPackageGroupName": group, "ModelPackageVersion": number}
            kept.setdefault("ModelApprovalStatus", "PendingManualApproval")
        else:
            arn = self.cloud.arn("sagemaker", f"model-package/{name}")
            if arn in self.packages:
                raise AwsError("ConflictException", f"Model package already exists: {arn}")
        self.packages[arn] = kept | {
            "ModelPackageName": name, "ModelPackageArn": arn, "CreationTime": self.cloud.clock.moment(),
            "ModelPackageStatus": "Completed", "ModelPackageStatusDetails": {"ValidationStatuses": []},
        }  # fmt: skip
        if token:
            self._tokens[token] = arn
        return {"ModelPackageArn": arn}

    def describe_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._package(request["ModelPackageName"])

    def list_model_packages(self, request: dict[str, Any]) -> dict[str, Any]:
        group, approval = request.get("ModelPackageGroupName"), request.get("ModelApprovalStatus")
        if group is not None:
            group = self._group(group)["ModelPackageGroupName"]
        kind, wanted = request.get("ModelPackageType", "Unversioned" if group is None else "Versioned"), []
        for package in sorted(self.packages.values(), key=_order, reverse=request.get("SortOrder") != "Ascending"):
            versioned = "ModelPackageGroupName" in package
            fits = kind == "Both" or versioned is (kind == "Versioned")
            fits = fits and group in (None, package.get("ModelPackageGroupName"))
            if fits and approval in (None, package.get("ModelApprovalStatus")):
                wanted.append({key: package[key] for key in _SUMMARY if key in package})
        return {"ModelPackageSummaryList": wanted[: request.get("MaxResults", 100)]}

    def update_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        package = self._package(request["ModelPackageArn"])
        properties = package.get("CustomerMetadataProperties", {}) | request.get("CustomerMetadataProperties", {})
        for key in request.get("CustomerMetadataPropertiesToRemove", []):
            properties.pop(key, None)
        for key in ("ModelApprovalStatus", "ApprovalDescription", "InferenceSpecification", "SourceUri"):
            if key in request:
                package[key] = request[key]
        package |= {"LastModifiedTime": self.cloud.clock.moment()}
        package |= {"CustomerMetadataProperties": properties} if properties else {}
        return {"ModelPackageArn": package["ModelPackageArn"]}

    def delete_model_package(self, request: dict[str, Any]) -> None:
        del self.packages[self._package(request["ModelPackageName"])["ModelPackageArn"]]

    # --- the parts ------------------------------------------------------------------------------------------------

    def create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        """A model; the model packages that it is made of must be there and approved."""
        for container in _containers(request):
            if package := container.get("ModelPackageName"):
                self._container_of(package)
        made: dict[str, Any] = super().create_model(request)  # type: ignore[misc]
        return made

    def tags_of(self, kind: str, name: str) -> list[dict[str, str]]:
        """Tags of a group, or of what the rest of the service has."""
        if kind == "model-package-group":
            self._group(name)
            return self._group_tags[name]
        found: list[dict[str, str]] = super().tags_of(kind, name)  # type: ignore[misc]
        return found

    def served(self, model: str) -> dict[str, Any] | None:
        """What a model was created with, the model package's container in the place of its name; None without one."""
        request: dict[str, Any] | None = self.models.get(model)  # type: ignore[attr-defined]
        if request is None:
            return None
        first = _containers(request)[0]
        found = self._container_of(first["ModelPackageName"]) if "ModelPackageName" in first else {}
        return request | {"PrimaryContainer": {**found, **first}}

    def _container_of(self, package: str) -> dict[str, Any]:
        """The container that an approved model package describes."""
        found = self._package(package)
        if found.get("ModelApprovalStatus", "Approved") != "Approved":
            raise invalid(f"Model package {found['ModelPackageArn']} is {found['ModelApprovalStatus']}, not Approved")
        container: dict[str, Any] = found.get("InferenceSpecification", {"Containers": [{}]})["Containers"][0]
        return {key: container[key] for key in ("Image", "ModelDataUrl", "Environment") if key in container}

    def _group(self, name: str) -> dict[str, Any]:
        found = self.package_groups.get(name.rpartition("/")[2])
        if found is None:
            raise invalid(f"Model Package Group {name} does not exist.")
        return found

    def _package(self, name: str) -> dict[str, Any]:
        arn = name if name.startswith("arn:") else self.cloud.arn("sagemaker", f"model-package/{name}")
        found = self.packages.get(arn)
        if found is None:
            raise invalid(f"ModelPackage {arn} does not exist.")
        return found


def _order(package: dict[str, Any]) -> tuple[Any, int]:
    return package["CreationTime"], package.get("ModelPackageVersion", 0)


def _containers(request: dict[str, Any]) -> list[dict[str, Any]]:
    first = request.get("PrimaryContainer")
    return [first] if first else list(request.get("Containers", []))
