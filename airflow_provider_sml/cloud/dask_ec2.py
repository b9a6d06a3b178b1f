"""Workers of a Dask cluster on EC2: one instance a worker, on spot or on demand, gone with the task.

Made with boto3 itself: ``dask-cloudprovider``, which would do this, had no release for 14 months (November 2026), keeps
neither tags nor tokens to find what a killed driver left, and puts the scheduler on a machine of its own.

Every instance ends by itself: its worker ends when the scheduler is gone, the script then shuts the machine down, and a
shutdown terminates it. Instances carry the tag ``sml-cluster`` from the moment that they exist; whoever opens a cluster
of the same label terminates them first.

User data holds the certificate and key by which a worker is let in by this one scheduler, made for this cluster alone.
It can be read by who may ``ec2:DescribeInstanceAttribute`` and by what runs on the instance. Do not grant that widely.

API facts: Amazon EC2 API Reference, RunInstances ("Ensuring idempotency", "Error codes"); a token that was used by an
instance that is gone gives that instance again, so each request has a token of its own.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.cloud.aws import AwsJob, AwsQuota, AwsRefused, AwsUnavailable
from airflow_provider_sml.cloud.machine_script import MachineScript
from airflow_provider_sml.errors import ConfigurationError, SmlError

TAG = "sml-cluster"
#: What another type of instance, or another zone, may have room for.
_FULL = {
    "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity", "SpotMaxPriceTooLow",
    "SpotMaxPriceTooHigh", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded",
    "InsufficientFreeAddressesInSubnet", "UnfulfillableCapacity", "Unsupported",
}  # fmt: skip
#: Seconds that DescribeInstances may not know an instance yet.
_UNSEEN = 60.0
_BYTES = 16 * 1024
_ALIVE = ("pending", "running")


@dataclass(frozen=True, kw_only=True)
class Ec2Machines(AwsJob):
    """The instances of one cluster.

    :param name: label of the cluster, the same for each try of the task.
    :param types: of the instances; the next one is tried where there is no room for the one before.
    :param ami: image of the machines, such as ``ami-0123`` or ``resolve:ssm:/aws/service/...``; the launch template's
        when empty.
    :param launch_template: name or id (``lt-...``) of a launch template, whose settings these here go over.
    :param launch_version: of the template.
    :param subnets: each is tried for each type; the template's, or the default one, when empty.
    :param security_groups: ids.
    :param instance_profile: name or ARN of the IAM instance profile: what a worker may read and write.
    :param key_name: SSH key; none when empty.
    :param kms_key: that encrypts the root volume; it is encrypted with the account's own in any case where a key or a
        size is given.
    :param disk_gb: size of the root volume; the image's when 0.
    :param max_price: USD per hour for a spot instance; the on-demand price when 0.
    """

    types: list[str]
    ami: str = ""
    launch_template: str = ""
    launch_version: str = "$Default"
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    instance_profile: str = ""
    key_name: str = ""
    kms_key: str = ""
    disk_gb: int = 0
    max_price: float = 0.0
    tags: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    _made: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    _refused: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.types:
            raise ConfigurationError("EC2 needs types of instances", expected="types: [m7i.4xlarge, ...]", found="none")
        if not self.ami and not self.launch_template:
            raise ConfigurationError("EC2 needs an image", expected="ami or launch_template", found="neither")

    def run(self, count: int, spot: bool, script: MachineScript) -> int:
        """Start instances; gives how many were to be had.

        :param count: how many.
        :param spot: on spare capacity.
        :param script: what each of them does.
        :raises ConfigurationError: when EC2 refuses what is asked for.
        """
        data = script.text().encode()
        if len(data) > _BYTES:
            raise ConfigurationError(
                "the script of the machines is too long for EC2", expected=f"{_BYTES:,} bytes", found=f"{len(data):,}",
                todo="put what prepares a machine into its image",
            )  # fmt: skip
        request = self._request(spot) | {"UserData": data.decode()}
        self._refused.clear()
        for number in range(count):
            if not self._one(request):
                return number
        return count

    def alive(self) -> list[str]:
        """Ids of the instances that run or are about to."""
        found = {instance["InstanceId"]: instance for instance in self._described()}
        for name, instance in found.items():
            said = instance.get("StateReason", {}).get("Message")
            if name in self._made and instance["State"]["Name"] not in _ALIVE and said:
                self._refused[name] = said
        return [name for name, instance in found.items() if instance["State"]["Name"] in _ALIVE] + self._unseen(found)

    def remove(self) -> list[str]:
        """Terminate all instances of this label, also those of earlier tries; gives their ids."""
        found = {instance["InstanceId"]: instance["State"]["Name"] for instance in self._described()}
        gone = [name for name, state in found.items() if state not in ("shutting-down", "terminated")]
        gone = sorted(gone + self._unseen(found))
        if gone:
            self.call("ec2", "terminate_instances", InstanceIds=gone)
        self._made.clear()
        return gone

    def _unseen(self, found: Mapping[str, Any]) -> list[str]:
        """Instances that were started, and that DescribeInstances does not know yet."""
        now = time.monotonic()
        return [name for name, made in self._made.items() if name not in found and now - made < _UNSEEN]

    def why(self) -> str:
        """What keeps machines from coming, or has ended them, as far as EC2 has told; empty when it has not."""
        return "; ".join(dict.fromkeys(f"{what}: {said}" for what, said in self._refused.items()))

    def _one(self, request: dict[str, Any]) -> bool:
        for kind in self.types:
            for subnet in self.subnets or [""]:
                try:
                    made = self.call(
                        "ec2", "run_instances", **request, InstanceType=kind, ClientToken=uuid.uuid4().hex,
                        **({"SubnetId": subnet} if subnet else {}),
                    )  # fmt: skip
                except (AwsRefused, AwsQuota, AwsUnavailable) as error:
                    code = _code(error)
                    if code not in _FULL:
                        raise
                    self._refused[" ".join(filter(None, (kind, subnet)))] = code
                else:
                    self._made.update((instance["InstanceId"], time.monotonic()) for instance in made["Instances"])
                    return True
        return False

    def _request(self, spot: bool) -> dict[str, Any]:
        tags = self.aws_tags(**{TAG: self.name, "Name": self.name})
        kinds = ["instance", "volume", *(["spot-instances-request"] if spot else [])]
        found: dict[str, Any] = {
            "MinCount": 1, "MaxCount": 1, "InstanceInitiatedShutdownBehavior": "terminate",
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in kinds],
            # A container that shares the host's network is one hop away as well.
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
        }  # fmt: skip
        if spot:
            price = {"MaxPrice": f"{self.max_price:g}"} if self.max_price else {}
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate", **price}
            found["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        if self.ami:
            found["ImageId"] = self.ami
        if self.launch_template:
            key = "LaunchTemplateId" if self.launch_template.startswith("lt-") else "LaunchTemplateName"
            found["LaunchTemplate"] = {key: self.launch_template, "Version": self.launch_version}
        if self.security_groups:
            found["SecurityGroupIds"] = self.security_groups
        if self.key_name:
            found["KeyName"] = self.key_name
        if self.instance_profile:
            found["IamInstanceProfile"] = {"Arn" if ":" in self.instance_profile else "Name": self.instance_profile}
        if self.kms_key or self.disk_gb:
            found["BlockDeviceMappings"] = [{"DeviceName": self._root_device(), "Ebs": self._volume()}]
        return found

    def _volume(self) -> dict[str, Any]:
        volume: dict[str, Any] = {"Encrypted": True, "VolumeType": "gp3", "DeleteOnTermination": True}
        if self.kms_key:
            volume["KmsKeyId"] = self.kms_key
        return volume | ({"VolumeSize": self.disk_gb} if self.disk_gb else {})

    def _root_device(self) -> str:
        if not self.ami.startswith("ami-"):
            return "/dev/xvda"  # Amazon Linux's own; the image cannot be asked by such a name
        images = self.call("ec2", "describe_images", ImageIds=[self.ami])["Images"]
        return str(images[0].get("RootDeviceName") or "/dev/xvda") if images else "/dev/xvda"

    def _described(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        filters = [{"Name": f"tag:{TAG}", "Values": [self.name]}]
        while True:
            page = self.call("ec2", "describe_instances", Filters=filters, **more)
            found += [instance for reservation in page["Reservations"] for instance in reservation["Instances"]]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}


def user_data(encoded: str) -> str:
    """User data as EC2 keeps it, as text."""
    return base64.b64decode(encoded).decode()


def _code(error: SmlError) -> str:
    """EC2's own code of an error."""
    response: Mapping[str, Any] = getattr(error.__cause__, "response", {})
    return str(response.get("Error", {}).get("Code", ""))
