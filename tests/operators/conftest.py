"""A fake AWS account whose clock moves with every call, and a registered model that can be deployed."""

import os
import shutil

import boto3
import pytest

from tests import faults
from tests.toy import register_versions


@pytest.fixture(scope="session", autouse=True)
def faults_page():
    """Write docs/faults.md where the environment asks for it, once all tests have run."""
    yield
    if target := os.environ.get("SML_WRITE_FAULTS"):
        faults.write(target)


@pytest.fixture
def cloud(fake_aws, monkeypatch):
    """Each call takes half a minute of the virtual clock, so that an operator that polls sees its job go on.

    One try per call: what is tested is the operator, not botocore's patience.
    """
    from airflow_provider_sml.hooks.clients import forget_clients

    forget_clients()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fake_aws.clock.per_call = 30
    yield fake_aws
    forget_clients()


@pytest.fixture
def google(fake_google, monkeypatch):
    """The same for a fake project of Google Cloud."""
    from airflow_provider_sml.cloud.google import GoogleJob
    from airflow_provider_sml.hooks.clients import forget_clients

    forget_clients()
    monkeypatch.setattr(GoogleJob, "patience", 0.0)
    fake_google.clock.per_call = 30
    yield fake_google
    forget_clients()


@pytest.fixture(scope="session")
def toy_registry(tmp_path_factory):
    """The folder of a registry with three versions of the model ``toy``, and of their sample."""
    return register_versions(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def toy(toy_registry, tmp_path, fake_s3):
    """A copy of that registry for one test, and the bucket of its models."""
    root = tmp_path / "toy"
    shutil.copytree(toy_registry, root)  # the copies share the artefacts, which nothing changes
    boto3.client(
        "s3", endpoint_url=fake_s3, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    ).create_bucket(Bucket="models")
    return root
