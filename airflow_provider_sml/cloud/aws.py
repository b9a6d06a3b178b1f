"""What the adapters of AWS share: clients, and errors told apart by what a retry can mend.

Credentials never come here: an adapter holds the id of a connection, and who runs it (an operator, a trigger) connects
it to clients made from that connection. Without that, clients come from boto3's own chain of credentials. Calls are
retried by botocore; what still fails becomes an error of ours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError, JobError, require

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "UnrecognizedClientException"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "MissingAuthenticationToken"}
_QUOTA = {"ResourceLimitExceeded", "ServiceQuotaExceededException", "LimitExceededException"}
_THROTTLED = {"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}


class AwsRefused(ConfigurationError):
    """AWS refused a call for what it asks.

    :param code: AWS's code, such as ``ValidationException``.
    :param said: AWS's message.
    """

    def __init__(self, action: str, code: str, said: str, todo: str | None = None) -> None:
        self.code, self.said = code, said
        super().__init__(f"AWS refused {action}: {code}", found=said, todo=todo)


class AwsUnavailable(JobError):
    """A call failed for a reason that passes: throttling, a failure inside AWS, a lost connection."""


class AwsQuota(JobError):
    """A quota of the account is reached; it may be free later, or must be raised."""


class AwsClients:
    """Clients of boto3's own chain of credentials.

    :param region: the region; the environment's when empty.
    """

    def __init__(self, region: str = "") -> None:
        self.region = region

    def client(self, service: str, fresh: bool = False) -> Any:
        """A client.

        :param service: as boto3 calls it.
        :param fresh: make it anew, with new credentials.
        """
        require("boto3", "amazon")
        if fresh:
            _client.cache_clear()
        return _client(service, self.region)


@functools.lru_cache(maxsize=64)
def _client(service: str, region: str) -> Any:
    import boto3

    return boto3.client(service, region_name=region or None)


@dataclass(frozen=True, kw_only=True)
class AwsJob(Adapter):
    """Base of the adapters of AWS.

    :param name: of the job or the endpoint.
    :param connection: id of the Airflow connection.
    :param region: the region; the connection's when empty.
    :param tags: tags of everything that is made.
    :param prices: USD per hour, over those of ``cloud.prices``.
    """

    provider: ClassVar[str] = "aws"

    name: str
    connection: str = "aws_default"
    region: str = ""
    tags: Mapping[str, str]
    prices: Mapping[str, float]

    def call(self, service: str, operation: str, **params: Any) -> Any:
        """Call AWS; an expired token is renewed once.

        :param service: as boto3 calls it.
        :param operation: such as ``describe_endpoint``.
        :raises AwsRefused: when AWS will not do it.
        :raises AwsQuota: when a quota is reached.
        :raises AwsUnavailable: when it may work later.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        clients = self.clients or AwsClients(self.region)
        action = f"{service}:{operation}"
        for fresh in (False, True):
            try:
                return getattr(clients.client(service, fresh), operation)(**params)
            except ClientError as error:
                if not fresh and error.response["Error"]["Code"] in _EXPIRED:
                    continue
                raise _translated(action, error) from error
            except BotoCoreError as error:
                if type(error).__name__ in ("ParamValidationError", "NoRegionError", "UnknownServiceError"):
                    raise AwsRefused(action, type(error).__name__, str(error)) from error
                raise AwsUnavailable(f"{action} failed: {error}") from error
        raise AssertionError("the second try returns or raises")

    def console(self, path: str) -> str:
        """A page of the console of this region; empty when the region is not known.

        The host is that of the region's partition (AWS, "AWS Management Console" and the guides to the partitions).

        :param path: below the host, with ``{region}`` in it.
        """
        region = self.region or self._region()
        if not region:
            return ""
        host = {"cn": "console.amazonaws.cn", "us-gov": "console.amazonaws-us-gov.com"}.get(
            region.rpartition("-")[0].rpartition("-")[0], f"{region}.console.aws.amazon.com"
        )
        return f"https://{host}/{path.format(region=quote(region, safe=''))}"

    def _region(self) -> str:
        """The region of the connection."""
        try:
            return str((self.clients or AwsClients()).client("sts").meta.region_name or "")
        except Exception:  # a page to look at is no reason to fail
            return ""

    def aws_tags(self, **more: str) -> list[dict[str, str]]:
        """The tags as SageMaker takes them, at most 50 of them."""
        return [{"Key": key, "Value": str(value)[:256]} for key, value in {**self.tags, **more}.items() if value][:50]


def _translated(action: str, error: Any) -> ConfigurationError | JobError:
    code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _DENIED:
        return AwsRefused(action, code, said, f"grant {action.replace('_', '')} to the role of the connection")
    if code in _QUOTA:
        return AwsQuota(f"{action} met a quota", found=said, todo="free some, or raise the quota in Service Quotas")
    # 501 is a fake that does not implement the operation
    if code in _THROTTLED | _EXPIRED or status == 429 or (status >= 500 and status != 501):
        return AwsUnavailable(f"{action} failed: {code}: {said}")
    return AwsRefused(action, code, said)
