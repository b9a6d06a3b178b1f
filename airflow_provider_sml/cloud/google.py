"""What the adapters of Google Cloud share: clients, and errors told apart by what a retry can mend.

Credentials never come here: an adapter holds the id of a connection, and who runs it (an operator, a trigger) connects
it to clients made from that connection. Without that, clients come from Google's default credentials. Google's
libraries retry few calls by themselves; here a failure that passes is waited for some seconds, and what still fails
becomes an error of ours.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError, JobError, require

Answer = TypeVar("Answer")
#: Seconds that one call may take.
CALL_SECONDS = 60.0
_VERTEX = "google.cloud.aiplatform_v1"
#: Library, class and host of the clients that take a region; without a host the service is one for all regions.
REGIONAL = {
    "dataproc": ("google.cloud.dataproc_v1", "BatchControllerClient", "dataproc"),
    "vertex_jobs": (_VERTEX, "JobServiceClient", "aiplatform"),
    "vertex_models": (_VERTEX, "ModelServiceClient", "aiplatform"),
    "vertex_endpoints": (_VERTEX, "EndpointServiceClient", "aiplatform"),
    "vertex_predictions": (_VERTEX, "PredictionServiceClient", "aiplatform"),
    "monitoring": ("google.cloud.monitoring_v3", "MetricServiceClient", ""),
}
#: Class of Compute Engine's clients, which serve every zone.
COMPUTE = {"compute": "InstancesClient", "compute_operations": "ZoneOperationsClient"}


class GoogleRefused(ConfigurationError):
    """Google Cloud refused a call for what it asks.

    :param code: name of the status code, such as ``INVALID_ARGUMENT``.
    :param said: the service's message.
    """

    def __init__(self, action: str, code: str, said: str, todo: str | None = None) -> None:
        self.code, self.said = code, said
        super().__init__(f"Google Cloud refused {action}: {code}", found=said, todo=todo)


class GoogleUnavailable(JobError):
    """A call failed for a reason that passes: throttling, a failure inside Google Cloud, a lost connection."""


class GoogleQuota(JobError):
    """A quota of the project is reached; it may be free later, or must be raised."""


class GoogleClients:
    """Clients of given credentials.

    :param region: of the regional services.
    :param credentials: of google-auth; Google's default ones (``GOOGLE_APPLICATION_CREDENTIALS``, gcloud, the machine's
        own) when None.
    :param project: of Cloud Storage's client; the credentials' own when empty.
    """

    def __init__(self, region: str, credentials: Any = None, project: str = "") -> None:
        self.region, self.credentials, self.project = region, credentials, project
        self._made: dict[str, Any] = {}

    def client(self, service: str, fresh: bool = False) -> Any:
        """A client: ``storage``, or one of ``REGIONAL`` or ``COMPUTE``.

        :param service: its short name.
        :param fresh: make it anew, with new credentials.
        """
        if fresh or service not in self._made:
            self._made[service] = self._make(service)
        return self._made[service]

    def _make(self, service: str) -> Any:
        import importlib

        if service == "storage":
            require("google.cloud.storage", "google")
            storage = importlib.import_module("google.cloud.storage")
            return storage.Client(project=self.project or None, credentials=self.credentials)
        if service in COMPUTE:
            return compute_client(service, self.credentials)
        return regional_client(service, self.region, self.credentials)


def regional_client(service: str, region: str, credentials: Any = None) -> Any:
    """A client that speaks to one region.

    :param service: one of ``REGIONAL``.
    :param region: such as ``europe-west1``.
    :param credentials: of google-auth; Google's default ones when None.
    """
    import importlib

    module, name, host = REGIONAL[service]
    require(module, "google")
    kind = getattr(importlib.import_module(module), name)
    options = {"api_endpoint": f"{region}-{host}.googleapis.com:443"} if host else None
    return kind(credentials=credentials, client_options=options)


def compute_client(service: str, credentials: Any = None, endpoint: str | None = None) -> Any:
    """A client of Compute Engine.

    :param service: one of ``COMPUTE``.
    :param credentials: of google-auth; Google's default ones when None.
    :param endpoint: address of an emulator; None for Google's own.
    """
    require("google.cloud.compute_v1", "google")
    from google.cloud import compute_v1

    options = {"api_endpoint": endpoint} if endpoint else None
    return getattr(compute_v1, COMPUTE[service])(credentials=credentials, client_options=options)


@functools.lru_cache(maxsize=16)
def _default_clients(region: str) -> GoogleClients:
    return GoogleClients(region)


@dataclass(frozen=True, kw_only=True)
class GoogleJob(Adapter):
    """Base of the adapters of Google Cloud.

    :param name: of the job or the endpoint.
    :param project: id of the project that it runs in.
    :param region: such as ``europe-west1``.
    :param connection: id of the Airflow connection.
    :param labels: of everything that is made; brought into the form that labels have.
    :param prices: USD, over those of ``cloud.prices``.
    """

    provider: ClassVar[str] = "google"
    #: Seconds that failures which pass are waited for in one call.
    patience: ClassVar[float] = 20.0

    name: str
    project: str
    region: str
    connection: str = "google_cloud_default"
    labels: Mapping[str, str]
    prices: Mapping[str, float]

    def ask(self, service: str, action: str, question: Callable[[Any], Any]) -> Any:
        """Ask a service; an expired token is renewed once, a failure that passes is waited for.

        :param service: ``storage``, or one of ``REGIONAL``.
        :param action: what is asked, for messages and permissions, such as ``dataproc.batches.create``.
        :param question: calls the client; must be safe to repeat.
        :raises GoogleRefused: when Google Cloud will not do it.
        :raises GoogleQuota: when a quota is reached.
        :raises GoogleUnavailable: when it may work later.
        """
        from google.api_core.exceptions import Unauthenticated, Unauthorized

        clients = self.clients or _default_clients(self.region)
        for fresh in (False, True):
            try:
                client = clients.client(service, fresh)
                return self._patient(functools.partial(apart, question))(client)
            except Exception as error:
                expired = isinstance(error, Unauthenticated | Unauthorized)
                if expired and not fresh:
                    continue
                raise _translated(action, error) from error
        raise AssertionError("the second try returns or raises")

    def keep(self, uri: str, content: bytes, kms_key: str = "") -> None:
        """Write an object of Cloud Storage unless it is there.

        :param uri: its address; it must name its content, because another content under it stays.
        :param content: its bytes.
        :param kms_key: full name of the Cloud KMS key that encrypts it; the bucket's default when empty.
        """
        from google.api_core.exceptions import PreconditionFailed

        place = urlsplit(uri)

        def write(client: Any) -> None:
            blob = client.bucket(place.netloc).blob(place.path.lstrip("/"), kms_key_name=kms_key or None)
            with contextlib.suppress(PreconditionFailed):  # it is there
                blob.upload_from_string(content, if_generation_match=0, timeout=CALL_SECONDS, retry=None)

        self.ask("storage", "storage.objects.create", write)

    def fetch(self, uri: str) -> bytes:
        """The content of an object of Cloud Storage.

        :param uri: its address.
        """
        place = urlsplit(uri)

        def read(client: Any) -> bytes:
            blob = client.bucket(place.netloc).blob(place.path.lstrip("/"))
            content: bytes = blob.download_as_bytes(timeout=CALL_SECONDS, retry=None)
            return content

        content: bytes = self.ask("storage", "storage.objects.get", read)
        return content

    def _patient(self, question: Callable[[Any], Any]) -> Callable[[Any], Any]:
        from google.api_core.retry import Retry

        if self.patience <= 0:
            return question
        retry = Retry(predicate=_passes, initial=0.5, maximum=8.0, timeout=self.patience)
        patient: Callable[[Any], Any] = retry(question)
        return patient


def apart(call: Callable[..., Answer], *arguments: Any) -> Answer:
    """Make a call in a thread of its own, and wait for it.

    Airflow ends a task whose time is over by an exception out of a signal's handler, which Python runs in the main
    thread, wherever that is. Inside of gRPC such an exception damages the memory of the process: the next call aborts
    it, and with it the cancellation of what the task has started. Inside of ``threading.Condition``, by which futures
    and ``Thread.start`` wait, it becomes another one ("release unlocked lock"). Here it meets the wait for a plain
    lock, which it may leave at any time, and goes on once the call has ended, so that nothing is asked for behind the
    back of the cancellation.

    :param call: what to call; it must end by itself in some time.
    :param arguments: of the call.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []
    ended = _thread.allocate_lock()

    def run() -> None:
        try:
            answers.append(call(*arguments))
        except BaseException as error:  # it is the caller's, whatever it is
            errors.append(error)
        finally:
            ended.release()

    ended.acquire()
    try:
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError as error:  # there is no room for a thread
            errors.append(error)
            ended.release()
        ended.acquire()
    finally:
        while not (answers or errors):
            time.sleep(0.01)
    if errors:
        raise errors[0]
    return answers[0]


def _passes(error: Exception) -> bool:
    """Whether a failure may be gone in a moment; what exceeds a quota is not."""
    from google.api_core import exceptions as google
    from google.auth.exceptions import TransportError
    from requests.exceptions import ConnectionError, Timeout

    if isinstance(error, google.MethodNotImplemented) or _over_quota(error):
        return False
    # 499 is a call that gRPC gave up, 409 ABORTED one that met another
    passing = (google.ServerError, google.TooManyRequests, google.Aborted, google.Cancelled, google.RetryError)
    return isinstance(error, (*passing, TransportError, ConnectionError, Timeout))


def _over_quota(error: Exception) -> bool:
    """Whether a quota of the project is used up; one of requests per minute is throttling."""
    from google.api_core.exceptions import TooManyRequests

    said = str(error).lower()
    return isinstance(error, TooManyRequests) and "quota" in said and "per minute" not in said


def _translated(action: str, error: Exception) -> Exception:
    from google.api_core import exceptions as google
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    said = str(getattr(error, "message", None) or error)
    if isinstance(error, google.RetryError) and isinstance(error.cause, Exception):
        return _translated(action, error.cause)
    if _over_quota(error):
        todo = "wait, or raise the quota under IAM & Admin > Quotas"
        return GoogleQuota(f"{action} met a quota", found=said, todo=todo)
    if _passes(error) or isinstance(error, google.Unauthorized):
        return GoogleUnavailable(f"{action} failed: {_code(error)}: {said}")
    if isinstance(error, google.Forbidden):
        return GoogleRefused(action, _code(error), said, f"grant {action} to the account of the connection")
    if isinstance(error, google.GoogleAPICallError):
        return GoogleRefused(action, _code(error), said)
    if isinstance(error, GoogleAuthError):
        if getattr(error, "retryable", False):
            return GoogleUnavailable(f"{action} failed: {said}")
        found = "none" if isinstance(error, DefaultCredentialsError) else said
        return GoogleRefused(action, "credentials", found, "check the connection's key file or credential")
    if isinstance(error, ValueError | TypeError):  # a field that the client library does not know
        return GoogleRefused(action, type(error).__name__, said)
    return error


def _code(error: Any) -> str:
    status = getattr(error, "grpc_status_code", None)
    return status.name if status is not None else type(error).__name__


def label(text: str) -> str:
    """A text as the value of a label: small letters, digits, ``-`` and ``_``, at most 63 of them."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-")[:63].rstrip("-")
