"""Workers of a Dask cluster on Compute Engine: one instance a worker, on spot or standard, gone with the task.

Instances carry the label ``sml-cluster`` from the moment that they exist; whoever opens a cluster of the same label
deletes them first. An instance also ends by itself: its worker ends when the scheduler is gone; the script then deletes
the instance where its service account may (``compute.instances.delete``), and elsewhere shuts it down, when only its
disk is left. Compute Engine itself deletes it when it preempts it, and after ``hours``.

The script, in the instance's metadata, holds the certificate and key by which a worker is let in by this one scheduler,
made for this cluster alone. It can be read by who may ``compute.instances.get`` and by what runs on the instance. Do
not grant that widely.

API facts: Compute Engine API reference, ``instances.insert`` (``requestId``, ``scheduling``); "Troubleshooting resource
availability errors". That there is no room shows in the operation, not in the answer.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_sml.cloud.google import (
    CALL_SECONDS,
    GoogleJob,
    GoogleQuota,
    GoogleRefused,
    GoogleUnavailable,
    label,
)
from airflow_provider_sml.cloud.machine_script import MachineScript
from airflow_provider_sml.errors import ConfigurationError, JobError

LABEL = "sml-cluster"
#: What another type of machine, or another zone, may have room for.
_FULL = ("ZONE_RESOURCE_POOL_EXHAUSTED", "QUOTA_EXCEEDED", "RESOURCE_POOL_EXHAUSTED", "quotaExceeded", "STOCKOUT")
_ALIVE = ("PROVISIONING", "STAGING", "RUNNING", "REPAIRING")
#: Seconds that an instance has to get its place; then it is looked for among the others.
_PLACING = 60.0
_PULSE = 0.5
_BYTES = 256 * 1024
_METADATA = "${SML_GCE_METADATA:-http://metadata.google.internal}/computeMetadata/v1/instance"
_ASK = f"curl -sf -m 5 -H 'Metadata-Flavor: Google' \"{_METADATA}"
#: Deletes the machine that it runs on; a shutdown alone would leave its disk.
_LAST = (
    f'token=$({_ASK}/service-accounts/default/token" | sed -n \'s/.*"access_token":"\\([^"]*\\)".*/\\1/p\') || true',
    f'[ -z "$token" ] || curl -sf -m 20 -X DELETE -H "Authorization: Bearer $token" '
    f'"https://compute.googleapis.com/compute/v1/$({_ASK}/zone")/instances/$({_ASK}/name")" || true',
)


@dataclass(frozen=True, kw_only=True)
class GceMachines(GoogleJob):
    """The instances of one cluster.

    :param name: label of the cluster, the same for each try of the task.
    :param region: that the zones are in.
    :param zones: such as ``europe-west1-b``; the next one is tried where there is no room.
    :param types: of the machines, such as ``n2-standard-16``; all zones are tried before the next type.
    :param disk_image: image of the boot disk, such as ``projects/cos-cloud/global/images/family/cos-stable``.
    :param template: name of an instance template, whose settings these here go over.
    :param subnetwork: name or path; the default network when empty.
    :param external_ip: give the machines an address outside; without one they need Cloud NAT for what is outside.
    :param network_tags: for firewalls.
    :param service_account: that the workers run as; none, and so no access to Cloud Storage, when empty.
    :param kms_key: full name of the Cloud KMS key that encrypts the boot disk.
    :param disk_gb: size of the boot disk; the image's when 0.
    :param accelerator: type of GPUs that are put to it, for machine types that have none of their own.
    :param accelerators: how many.
    :param hours: after which Compute Engine deletes a machine.
    """

    zones: list[str]
    types: list[str]
    disk_image: str = ""
    template: str = ""
    subnetwork: str = ""
    external_ip: bool = False
    network_tags: list[str] = field(default_factory=list)
    service_account: str = ""
    kms_key: str = ""
    disk_gb: int = 0
    accelerator: str = ""
    accelerators: int = 1
    hours: float = 24.0
    labels: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, given in (("zones", self.zones), ("types of machines", self.types)):
            if not given:
                raise ConfigurationError(f"Compute Engine needs {what}", expected="a list", found="none")
        if not self.disk_image and not self.template:
            raise ConfigurationError(
                "Compute Engine needs an image", expected="disk_image or template", found="neither"
            )

    def run(self, count: int, spot: bool, script: MachineScript) -> int:
        """Start instances; gives how many were to be had.

        :param count: how many.
        :param spot: on spare capacity.
        :param script: what each of them does.
        :raises ConfigurationError: when Compute Engine refuses what is asked for.
        """
        text = replace(script, last=(*script.last, *_LAST)).text()
        if len(text.encode()) > _BYTES:
            raise ConfigurationError(
                "the script of the machines is too long for Compute Engine", expected=f"{_BYTES:,} bytes",
                found=f"{len(text.encode()):,}", todo="put what prepares a machine into its image",
            )  # fmt: skip
        self._refused.clear()
        left = count
        for kind in self.types:
            for zone in self.zones:
                # All are asked for before the first is waited for.
                asked = [self._insert(zone, kind, spot, text) for _ in range(left)]
                until = time.monotonic() + _PLACING
                left -= sum(self._placed(zone, kind, operation, until) for operation in asked if operation)
                if not left:
                    return count
        return count - left

    def alive(self) -> list[str]:
        """Names of the instances that run or are about to."""
        return [instance.name for _, instance in self._listed() if instance.status in _ALIVE]

    def remove(self) -> list[str]:
        """Delete all instances of this label, also those of earlier tries; gives their names."""
        from google.cloud.compute_v1 import DeleteInstanceRequest

        gone = []
        for zone, instance in self._listed():
            request = DeleteInstanceRequest(
                project=self.project, zone=zone, instance=instance.name, request_id=str(uuid.uuid4())
            )
            with contextlib.suppress(_Gone):
                self._ask("compute", "compute.instances.delete", "delete_unary", request)
            gone.append(instance.name)
        return sorted(gone)

    def why(self) -> str:
        """What keeps machines from coming, as far as Compute Engine has told; empty when it has not."""
        return "; ".join(f"{what}: {said}" for what, said in self._refused.items())

    def _insert(self, zone: str, kind: str, spot: bool, text: str) -> Any:
        """The operation; None where a quota refuses at once."""
        from google.cloud.compute_v1 import InsertInstanceRequest

        request = InsertInstanceRequest(
            project=self.project, zone=zone, request_id=str(uuid.uuid4()),
            instance_resource=self._instance(zone, kind, spot, text),
        )  # fmt: skip
        if self.template:
            request.source_instance_template = f"projects/{self.project}/global/instanceTemplates/{self.template}"
        try:
            return self._ask("compute", "compute.instances.create", "insert_unary", request)
        except (GoogleRefused, GoogleQuota, GoogleUnavailable) as error:
            if not any(code in str(error) for code in (*_FULL, "uota")):
                raise
            self._refused[f"{kind} {zone}"] = "QUOTA_EXCEEDED"
            return None

    def _placed(self, zone: str, kind: str, operation: Any, until: float) -> bool:
        """Whether an instance got its place; one that takes its time has."""
        from google.cloud.compute_v1 import GetZoneOperationRequest, Operation

        while operation.status != Operation.Status.DONE:
            if time.monotonic() > until:
                return True
            time.sleep(_PULSE)
            request = GetZoneOperationRequest(project=self.project, zone=zone, operation=operation.name)
            operation = self._ask("compute_operations", "compute.zoneOperations.get", "get", request)
        errors = list(operation.error.errors)
        if not errors:
            return True
        full = [error for error in errors if error.code.startswith(_FULL)]
        if not full:
            said = "; ".join(f"{error.code}: {error.message}" for error in errors)
            raise JobError(f"Compute Engine could not make an instance of {kind} in {zone}", found=said)
        self._refused[f"{kind} {zone}"] = full[0].code
        return False

    def _listed(self) -> list[tuple[str, Any]]:
        from google.cloud.compute_v1 import ListInstancesRequest

        found = []
        for zone in self.zones:
            request = ListInstancesRequest(
                project=self.project, zone=zone, filter=f"labels.{LABEL}={label(self.name)}"
            )  # a page has 500
            found += [(zone, instance) for instance in self._ask("compute", "compute.instances.list", "list", request)]
        return found

    def _ask(self, service: str, action: str, method: str, request: Any) -> Any:
        from google.api_core.exceptions import NotFound

        def question(client: Any) -> Any:
            answer = getattr(client, method)(request, timeout=CALL_SECONDS, retry=None)
            return list(answer) if method == "list" else answer

        try:
            return self.ask(service, action, question)
        except GoogleRefused as error:
            if isinstance(error.__cause__, NotFound) and method == "delete_unary":
                raise _Gone from error
            raise

    def _instance(self, zone: str, kind: str, spot: bool, text: str) -> Any:
        from google.cloud import compute_v1 as compute

        own = {label(key): label(str(value)) for key, value in self.labels.items() if value}
        # A name can be used by one instance at a time: each gets another ending.
        found = compute.Instance(
            name=f"{label(self.name).replace('_', '-')[:54].rstrip('-')}-{uuid.uuid4().hex[:8]}",
            machine_type=f"zones/{zone}/machineTypes/{kind}",
            labels=own | {LABEL: label(self.name)},
            metadata=compute.Metadata(items=[compute.Items(key="startup-script", value=text)]),
            tags=compute.Tags(items=self.network_tags),
            scheduling=compute.Scheduling(
                provisioning_model="SPOT" if spot else "STANDARD", instance_termination_action="DELETE",
                max_run_duration=compute.Duration(seconds=round(self.hours * 3600)), automatic_restart=False,
                on_host_maintenance="TERMINATE",
            ),
        )  # fmt: skip
        if self.disk_image:
            found.disks = [self._disk(zone)]
        if self.subnetwork or self.external_ip or not self.template:
            found.network_interfaces = [self._interface()]
        if self.service_account:
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            found.service_accounts = [compute.ServiceAccount(email=self.service_account, scopes=scopes)]
        if self.accelerator:
            path = f"projects/{self.project}/zones/{zone}/acceleratorTypes/{self.accelerator}"
            found.guest_accelerators = [
                compute.AcceleratorConfig(accelerator_type=path, accelerator_count=self.accelerators)
            ]
        return found

    def _interface(self) -> Any:
        from google.cloud import compute_v1 as compute

        found = compute.NetworkInterface()
        if self.subnetwork:
            whole = "/" in self.subnetwork
            found.subnetwork = self.subnetwork if whole else f"regions/{self.region}/subnetworks/{self.subnetwork}"
        else:
            found.network = "global/networks/default"
        if self.external_ip:
            found.access_configs = [compute.AccessConfig(type_="ONE_TO_ONE_NAT", name="External NAT")]
        return found

    def _disk(self, zone: str) -> Any:
        from google.cloud import compute_v1 as compute

        made = compute.AttachedDiskInitializeParams(source_image=self.disk_image)
        if self.disk_gb:
            made.disk_size_gb = self.disk_gb
        disk = compute.AttachedDisk(boot=True, auto_delete=True, initialize_params=made)
        if self.kms_key:
            disk.disk_encryption_key = compute.CustomerEncryptionKey(kms_key_name=self.kms_key)
        return disk


class _Gone(Exception):
    """The instance is there no more."""
