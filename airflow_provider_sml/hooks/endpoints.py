"""Where an endpoint in a cloud is, from what an operator or a sensor is given."""

from __future__ import annotations

from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.clients import google_project

#: Target -> the connection that is taken when none is named.
CONNECTIONS = {"sagemaker": "aws_default", "vertex": "google_cloud_default"}


def endpoint_place(target: str, endpoint: str, conn_id: str, region: str, project: str) -> dict[str, Any]:
    """Where an endpoint is, as the adapters take it.

    :param target: ``sagemaker`` or ``vertex``.
    :param endpoint: name of the endpoint.
    :param conn_id: connection of the cloud; the target's usual one when empty.
    :param region: the region; of SageMaker the connection's when empty.
    :param project: of Vertex AI; the connection's when empty.
    :raises ConfigurationError: when the target is not known, or lacks its region.
    """
    if target not in CONNECTIONS:
        raise ConfigurationError(
            f"endpoints of {target!r} are not known here", expected=", ".join(CONNECTIONS), found=target
        )
    place = {"name": endpoint, "connection": conn_id or CONNECTIONS[target], "region": region}
    if target == "sagemaker":
        return place
    if not region:
        raise ConfigurationError(
            "Vertex AI is a service of regions", expected="region: such as europe-west1", found="none"
        )
    return place | {"project": project or google_project(place["connection"])}
