"""Instances of Compute Engine for a cluster, through Google's client against a fake of its API."""

import pytest
from google.auth.credentials import AnonymousCredentials

from airflow_provider_sml.cloud.dask_gce import GceMachines
from airflow_provider_sml.cloud.google import COMPUTE, GoogleJob, GoogleRefused, compute_client
from airflow_provider_sml.cloud.machine_script import MachineScript
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.testing.google.compute import FakeCompute

SCRIPT = MachineScript(["true"])
ZONES = ["europe-west1-b", "europe-west1-c"]


class Clients:
    """Clients of the fake."""

    def __init__(self, address):
        self.made = {service: compute_client(service, AnonymousCredentials(), address) for service in COMPUTE}

    def client(self, service, fresh=False):
        return self.made[service]


@pytest.fixture
def cloud(monkeypatch):
    monkeypatch.setattr(GoogleJob, "patience", 5.0)
    cloud = FakeCompute()
    yield cloud
    cloud.close()


@pytest.fixture
def make(cloud):
    clients = Clients(cloud.address)

    def machines(name="Orders.train", **changes):
        fixed = {
            "name": name, "project": cloud.project, "region": "europe-west1", "zones": ZONES,
            "types": ["n2-standard-16"], "disk_image": "projects/cos-cloud/global/images/family/cos-stable",
        }  # fmt: skip
        return GceMachines(**fixed | changes).connect(clients)

    return machines


def test_an_instance_is_asked_for_with_every_setting(cloud, make):
    key = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k"
    machines = make(
        subnetwork="private", network_tags=["dask"], service_account="train@p.iam.gserviceaccount.com", kms_key=key,
        disk_gb=200, accelerator="nvidia-tesla-t4", accelerators=2, hours=6, labels={"dag_id": "Orders.ETL"},
    )  # fmt: skip
    assert machines.run(2, True, SCRIPT) == 2
    first, second = cloud.requests
    assert first.request_id != second.request_id and len(machines.alive()) == 2
    asked = first.instance_resource
    assert asked.name.startswith("orders-train-") and dict(asked.labels) == {
        "sml-cluster": "orders-train", "dag_id": "orders-etl",
    }  # fmt: skip
    scheduling = asked.scheduling
    assert (scheduling.provisioning_model, scheduling.instance_termination_action) == ("SPOT", "DELETE")
    assert scheduling.max_run_duration.seconds == 6 * 3600 and scheduling.automatic_restart is False
    (disk,) = asked.disks
    assert disk.auto_delete and disk.initialize_params.disk_size_gb == 200
    assert disk.disk_encryption_key.kms_key_name == key
    (interface,) = asked.network_interfaces
    assert interface.subnetwork == "regions/europe-west1/subnetworks/private" and not interface.access_configs
    assert asked.service_accounts[0].email.startswith("train@") and list(asked.tags.items) == ["dask"]
    assert asked.guest_accelerators[0].accelerator_count == 2
    script = next(iter(cloud.scripts().values()))
    assert "-X DELETE" in script and script.index("-X DELETE") < script.index("shutdown -h now")
    assert len(machines.remove()) == 2 and cloud.instances == {}


def test_where_there_is_no_room_the_next_zone_and_type_are_tried(cloud, make):
    cloud.full = {f"n2-standard-16 {ZONES[0]}": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"}
    machines = make(types=["n2-standard-16", "n2d-standard-16"])
    assert machines.run(2, False, SCRIPT) == 2
    assert [zone for zone, _ in cloud.instances] == [ZONES[1]] * 2
    cloud.full |= {f"n2-standard-16 {ZONES[1]}": "QUOTA_EXCEEDED", f"n2d-standard-16 {ZONES[0]}": "QUOTA_EXCEEDED"}
    assert machines.run(1, False, SCRIPT) == 1
    assert (ZONES[1], "n2d-standard-16") in [
        (zone, instance.machine_type.rpartition("/")[2]) for (zone, _), instance in cloud.instances.items()
    ]
    assert machines.why() == (
        f"n2-standard-16 {ZONES[0]}: ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS; "
        f"n2-standard-16 {ZONES[1]}: QUOTA_EXCEEDED; n2d-standard-16 {ZONES[0]}: QUOTA_EXCEEDED"
    )
    assert len(machines.remove()) == 3


def test_what_an_earlier_try_left_is_found_and_nothing_else(cloud, make):
    make().run(1, False, SCRIPT)
    make("another-task").run(1, False, SCRIPT)
    cloud.lost = 1  # the request is repeated with its id, and makes no second instance
    make().run(1, False, SCRIPT)
    assert len(cloud.instances) == 3
    cloud.terminate(make().alive()[0])  # shut down by itself; its disk is left
    assert len(make().alive()) == 1
    assert len(make().remove()) == 2 and make().remove() == []
    assert len(make("another-task").alive()) == 1


def test_what_compute_engine_refuses_is_told(cloud, make):
    with pytest.raises(GoogleRefused, match=r"compute.instances.create(.|\n)*not found"):
        make(project="other").run(1, False, SCRIPT)
    for missing in ({"zones": []}, {"types": []}, {"disk_image": ""}):
        with pytest.raises(ConfigurationError, match="Compute Engine needs"):
            make(**missing)
    with pytest.raises(ConfigurationError, match="too long for Compute Engine"):
        make().run(1, False, MachineScript(["true"], {"key": "x" * 300_000}))
    assert make(disk_image="", template="trainer").run(1, False, SCRIPT) == 1
    assert cloud.requests[-1].source_instance_template.endswith("/instanceTemplates/trainer")
