"""Instances of EC2 for a cluster, through boto3 against moto: what is asked for, found again, and removed."""

import os
import subprocess

import boto3
import pytest

from airflow_provider_sml.cloud.aws import AwsRefused
from airflow_provider_sml.cloud.dask_ec2 import Ec2Machines, user_data
from airflow_provider_sml.cloud.machine_script import MachineScript
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.testing.machines import Ec2Door

SCRIPT = MachineScript(["true"])


@pytest.fixture
def door(fake_aws, monkeypatch):
    from airflow_provider_sml.cloud import aws

    door = Ec2Door(fake_aws.s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", door.address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    aws._client.cache_clear()
    yield door
    door.close()
    aws._client.cache_clear()


@pytest.fixture
def ec2(door):
    return boto3.client("ec2")


@pytest.fixture
def make(ec2):
    ami = ec2.describe_images()["Images"][0]["ImageId"]

    def machines(name="orders-train", **changes):
        return Ec2Machines(**{"name": name, "types": ["m7i.large"], "ami": ami, "tags": {"dag_id": "orders"}} | changes)

    return machines


def described(ec2, *ids):
    found = ec2.describe_instances(InstanceIds=list(ids))["Reservations"]
    return [instance for reservation in found for instance in reservation["Instances"]]


def test_an_instance_is_asked_for_with_every_setting(ec2, make, door):
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    iam = boto3.client("iam")
    iam.create_instance_profile(InstanceProfileName="trainer")
    machines = make(
        subnets=[subnet], security_groups=[group], kms_key="alias/ml", disk_gb=200, max_price=0.5,
        instance_profile="trainer",
    )  # fmt: skip
    assert machines.run(2, True, SCRIPT) == 2
    first, second = described(ec2, *machines.alive())
    assert first["InstanceLifecycle"] == "spot" and first["SubnetId"] == subnet
    assert {"sml-cluster", "Name", "dag_id"} <= {tag["Key"] for tag in first["Tags"]}
    asked, other = [request for request in door.requests if request["Action"] == ["RunInstances"]]
    assert asked["ClientToken"] != other["ClientToken"]
    for name, value in {
        "InstanceInitiatedShutdownBehavior": "terminate", "MetadataOptions.HttpTokens": "required",
        "InstanceMarketOptions.SpotOptions.SpotInstanceType": "one-time",
        "InstanceMarketOptions.SpotOptions.MaxPrice": "0.5", "IamInstanceProfile.Name": "trainer",
        "BlockDeviceMapping.1.Ebs.Encrypted": "true", "BlockDeviceMapping.1.Ebs.KmsKeyId": "alias/ml",
        "BlockDeviceMapping.1.Ebs.VolumeSize": "200", "TagSpecification.3.ResourceType": "spot-instances-request",
    }.items():  # fmt: skip
        assert asked[name] == [value], name
    kept = ec2.describe_instance_attribute(InstanceId=second["InstanceId"], Attribute="userData")
    assert user_data(kept["UserData"]["Value"]) == SCRIPT.text()
    assert machines.remove() == sorted([first["InstanceId"], second["InstanceId"]]) and machines.alive() == []


def test_where_there_is_no_room_the_next_zone_and_type_are_tried(ec2, make, door):
    near, far = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]][:2]
    door.full |= {f"m7i.large {near}": "InsufficientInstanceCapacity", f"m7i.large {far}": "VcpuLimitExceeded"}
    machines = make(types=["m7i.large", "m6i.large"], subnets=[near, far])
    assert machines.run(1, True, SCRIPT) == 1
    assert described(ec2, *machines.alive())[0]["InstanceType"] == "m6i.large"
    door.full["m6i.large"] = "MaxSpotInstanceCountExceeded"
    assert machines.run(3, True, SCRIPT) == 0
    assert machines.why().split("; ") == [
        f"m7i.large {near}: InsufficientInstanceCapacity", f"m7i.large {far}: VcpuLimitExceeded",
        f"m6i.large {near}: MaxSpotInstanceCountExceeded", f"m6i.large {far}: MaxSpotInstanceCountExceeded",
    ]  # fmt: skip
    assert len(machines.remove()) == 1


def test_what_an_earlier_try_left_is_found_and_nothing_else(ec2, make, door):
    make().run(2, False, SCRIPT)
    other = make("another-task")
    other.run(1, False, SCRIPT)
    door.lost = 1  # botocore repeats the request with its token; moto makes a second instance, which EC2 would not
    make().run(1, False, SCRIPT)
    assert len(make().remove()) >= 3
    assert make().alive() == [] and make().remove() == []
    assert len(other.alive()) == 1 and len(other.remove()) == 1
    assert (other.why().startswith("i-") and "user" in other.why().lower()) or other.alive() == []


def test_what_ec2_refuses_is_told(make):
    with pytest.raises(AwsRefused, match="InvalidGroup"):
        make(security_groups=["sg-0000"]).run(1, False, SCRIPT)
    with pytest.raises(ConfigurationError, match="ami or launch_template"):
        make(ami="")
    with pytest.raises(ConfigurationError, match="types of instances"):
        make(types=[])
    with pytest.raises(ConfigurationError, match="too long for EC2"):
        make().run(1, False, MachineScript(["true"], {"key": "x" * 20_000}))


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bash(tmp_path, monkeypatch):
    """Runs a script with stand-ins for what would end this machine or start a container."""
    for name, text in {"shutdown": 'echo "shutdown $*"', "docker": 'printf "[%s]" docker "$@"; echo'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lambda script: subprocess.run(["bash", "-c", script.text()], capture_output=True, text=True, timeout=30)


def test_a_script_runs_the_worker_with_its_files_and_shuts_the_machine_down(bash):
    read = 'stat -c %a "$0"; cat "$0"; echo "$1 $NAME"; dirname "$0"'
    script = MachineScript(
        ["bash", "-c", read, "{folder}/it's a key", "a b"], {"it's a key": "secret $HOME\n"}, {"NAME": "c'd"}, hours=2
    )
    lines = bash(script).stdout.splitlines()
    assert lines[:4] == ["shutdown -h +120", "600", "secret $HOME", "a b c'd"] and lines[5] == "shutdown -h now"
    assert lines[4].startswith("/dev/shm/sml.") and subprocess.run(["test", "-e", lines[4]]).returncode == 1


def test_a_script_that_fails_shuts_the_machine_down_too(bash):
    done = bash(MachineScript(["echo", "never"], prepare=["docker login", "no-such-program"]))
    assert done.stdout.splitlines() == ["shutdown -h +1440", "[docker][login]", "shutdown -h now"] and done.returncode


def test_a_container_gets_files_and_gpus_of_the_machine(bash):
    script = MachineScript(["worker", "{folder}/key"], {"key": "k"}, {"A": "b c"}, image="registry/train:1", gpus=1)
    (line,) = [line for line in bash(script).stdout.splitlines() if line.startswith("[docker]")]
    words = line.strip("[]").split("][")
    assert words[:2] == ["docker", "run"] and words[-3:-1] == ["registry/train:1", "worker"]
    folder = words[-1].removesuffix("/key")
    assert "--env=CUDA_VISIBLE_DEVICES=0" in words
    assert f"--volume={folder}:{folder}:ro" in words and "--gpus=all" in words and "--env=A=b c" in words


def test_a_machine_has_a_worker_for_each_gpu_and_ends_with_the_first(bash):
    say = 'echo "$CUDA_VISIBLE_DEVICES $1"; [ "$CUDA_VISIBLE_DEVICES" = 2 ] || exec sleep 60; sleep 1; exit 1'
    lines = bash(MachineScript(["bash", "-c", say, "x", "{threads}"], gpus=3)).stdout.splitlines()
    threads = max(1, os.cpu_count() // 3)
    assert sorted(lines[1:-1]) == [f"{number} {threads}" for number in range(3)] and lines[-1] == "shutdown -h now"
