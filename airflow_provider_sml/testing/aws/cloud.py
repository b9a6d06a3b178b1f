"""The fake AWS as one object: its clock, faults, calls, bill and services, and how clients are pointed at it."""

from __future__ import annotations

from typing import Any

from airflow_provider_sml.testing.aws.autoscaling import Autoscaling
from airflow_provider_sml.testing.aws.emr import EmrServerless
from airflow_provider_sml.testing.aws.hosting import Hosting
from airflow_provider_sml.testing.aws.model_packages import ModelPackages
from airflow_provider_sml.testing.aws.redshift import RedshiftData
from airflow_provider_sml.testing.aws.runtime import Runtime
from airflow_provider_sml.testing.aws.server import Server
from airflow_provider_sml.testing.aws.training import Training
from airflow_provider_sml.testing.aws.watch import CloudWatch, Logs
from airflow_provider_sml.testing.core import FakeCloud, VirtualClock


class SageMaker(Training, ModelPackages, Hosting):
    """Training jobs, model packages, models, endpoint configurations and endpoints."""

    def list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tags of any of them."""
        kind, _, name = request["ResourceArn"].rpartition(":")[2].partition("/")
        return {"Tags": self.job_tags(name) if kind == "training-job" else self.tags_of(kind, name)}


class FakeAws(FakeCloud):
    """A fake AWS account in one region, served on the loopback interface until it is closed.

    Unmodified clients (boto3, aiobotocore, Airflow's hooks) reach it by the environment variables of ``environment``.
    Buckets are not served here: give the address of a moto server as ``s3``.

    :param clock: the clock; one that stands still when None.
    :param s3: address of a server of S3, IAM and STS; None for none.
    :param port: port; 0 takes a free one.
    :param region: the region.
    :param account: the account's number.
    """

    def __init__(
        self,
        clock: VirtualClock | None = None,
        s3: str | None = None,
        port: int = 0,
        region: str = "us-east-1",
        account: str = "123456789012",
    ) -> None:
        super().__init__(clock)
        self.s3, self.region, self.account = s3, region, account
        self.cloudwatch = CloudWatch(self)
        self.logs = Logs(self)
        self.sagemaker = SageMaker(self)
        self.runtime = Runtime(self)
        self.autoscaling = Autoscaling(self)
        self.emr = EmrServerless(self)
        self.redshift = RedshiftData(self)
        self.services = {
            "sagemaker": self.sagemaker,
            "sagemaker-runtime": self.runtime,
            "emr-serverless": self.emr,
            "cloudwatch": self.cloudwatch,
            "logs": self.logs,
            "application-autoscaling": self.autoscaling,
            "redshift-data": self.redshift,
        }
        self._server = Server(self, port)
        self.url = self._server.url

    def arn(self, service: str, what: str) -> str:
        """The ARN of something in this account."""
        region = "" if service == "iam" else self.region
        return f"arn:aws:{service}:{region}:{self.account}:{what}"

    def environment(self) -> dict[str, str]:
        """What points clients here: addresses, a region, and credentials that are worth nothing elsewhere."""
        here = ("SAGEMAKER", "SAGEMAKER_RUNTIME", "EMR_SERVERLESS", "CLOUDWATCH", "CLOUDWATCH_LOGS",
                "APPLICATION_AUTO_SCALING", "REDSHIFT_DATA")  # fmt: skip
        found = {f"AWS_ENDPOINT_URL_{name}": self.url for name in here}
        if self.s3:
            found |= {f"AWS_ENDPOINT_URL_{name}": self.s3 for name in ("S3", "STS", "IAM", "KMS", "EC2")}
        return found | {
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def connections(self) -> dict[str, str]:
        """The usual connection, which takes everything from the environment."""
        return {"AIRFLOW_CONN_AWS_DEFAULT": "aws://"}

    def client(self, service: str) -> Any:
        """A plain boto3 client that is pointed here, for tests.

        :param service: as boto3 calls it.
        """
        import boto3

        address = self.url if service in self.services else self.s3
        return boto3.client(
            service, endpoint_url=address, region_name=self.region, aws_access_key_id="fake",
            aws_secret_access_key="fake",
        )  # fmt: skip

    def close(self) -> None:
        """End the server, and the containers that it started."""
        self._server.close()
        self.runtime.close()
