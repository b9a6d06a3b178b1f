"""What the adapters of Kubernetes share: how to ask the API server, and what a pod waits for that does not start."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, ClassVar

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError, JobError

#: Seconds for one answer of the API server: to connect, and to read.
_ANSWER = (10.0, 60.0)


class KubernetesAdapter(Adapter):
    """Base of the adapters of Kubernetes.

    :param name: of the job or the cluster.
    :param namespace: that its objects are in.
    :param connection: id of the Airflow connection to the cluster.
    """

    provider: ClassVar[str] = "kubernetes"

    name: str
    namespace: str
    connection: str

    def api(self, group: str = "core", fresh: bool = False) -> Any:
        """The client of a group of the API.

        :param group: ``core`` or ``batch``.
        :param fresh: with new credentials.
        """
        assert self.clients is not None
        return self.clients.client(group, fresh)

    def call(self, verb: str, *arguments: Any, group: str = "core", missing: Any = ..., **more: Any) -> Any:
        """Ask the API server.

        :param verb: method of the client, for objects of a namespace.
        :param group: that it is in.
        :param missing: given back when there is no such thing; an error when it is left out.
        :raises ConfigurationError: when the server refuses it.
        :raises JobError: when it does not answer, or cannot.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        more.setdefault("_request_timeout", _ANSWER)
        for fresh in (False, True):
            try:
                return getattr(self.api(group, fresh), verb)(*arguments, namespace=self.namespace, **more)
            except ApiException as error:
                if error.status == 404 and missing is not ...:
                    return missing
                if error.status == 401 and not fresh:  # the token has expired: once more with a new one
                    continue
                raise _api_error(self.name, verb, error) from error
            except HTTPError as error:
                raise JobError(f"the cluster of {self.name} does not answer", found=error) from error
        raise AssertionError


def waits_for(pod: Any) -> str:
    """What a pending pod waits for; empty when it does not tell.

    :param pod: a ``V1Pod``.
    """
    for container in pod.status.container_statuses or []:
        if container.state and container.state.waiting:
            waiting = container.state.waiting
            return ": ".join(filter(None, [waiting.reason, waiting.message]))
    told = [one for one in pod.status.conditions or [] if one.status == "False" and one.reason == "Unschedulable"]
    return f"Unschedulable: {told[0].message}" if told else ""


def label_values(tags: dict[str, str]) -> dict[str, str]:
    """Those of the tags that may be values of labels.

    :param tags: by key.
    """
    fits = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
    return {key: value for key, value in tags.items() if fits.fullmatch(value)}


def _api_error(name: str, verb: str, error: Any) -> Exception:
    said = f"{error.status} {error.reason}"
    with contextlib.suppress(TypeError, ValueError, KeyError):
        said += f": {json.loads(error.body)['message']}"
    if error.status in (400, 401, 403, 404, 422):
        return ConfigurationError(
            f"the cluster refuses {verb} for {name}", found=said, todo="see the connection, the namespace and its roles"
        )
    return JobError(f"the cluster did not do {verb} for {name}", found=said)
