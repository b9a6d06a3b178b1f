"""How a place is given to an operator: as a location, or as the id of a connection.

A value with a slash is a location. Everything else is a connection's id; where the default one is not defined, the
embedded place below ``[sml] home`` is taken, so that everything runs on a laptop with no set-up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_sml.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Connection


def is_location(value: str) -> bool:
    """Whether a value is a path or an address, and not the id of a connection."""
    return "/" in value or os.sep in value


def home() -> str:
    """The folder of the embedded places: ``[sml] home``, or ``sml`` in Airflow's home."""
    from airflow_provider_sml.compat import configuration

    configured = configuration().get("sml", "home", fallback="")
    return str(configured or os.path.join(os.path.expanduser(os.environ.get("AIRFLOW_HOME", "~/airflow")), "sml"))


def report_folder(reports: str | None, *parts: str) -> Path:
    """A folder of reports.

    :param reports: folder of all reports, as an operator was given it; ``reports`` below ``home`` when None.
    :param parts: what leads to the folder below it, such as the model's name and the kind of report.
    """
    return reached(reports or f"{home()}/reports").joinpath(*parts)


def reached(location: str) -> Path:
    """A place by its path or address, ready to be read and written.

    On an object store that nothing has been mounted of yet, such as a lake, it is reached through ``aws_default`` or
    ``google_cloud_default`` where there is such a connection, else by the environment's own credentials.

    :param location: a path, or an ``s3://`` or ``gs://`` address.
    """
    from airflow_provider_sml.ml import storage

    if storage.is_remote(location) and not storage.is_reached(location):
        from airflow_provider_sml.hooks.lake import mount_store

        mount_store(location)
    return storage.place(location)


def find_connection(conn_id: str, default: str) -> Connection | None:
    """A connection by its id.

    :param conn_id: the id asked for.
    :param default: the id that may be missing; None is given for it then.
    :raises ConfigurationError: when another one is missing.
    """
    from airflow.sdk import BaseHook

    from airflow_provider_sml.compat import AirflowNotFoundException, AirflowRuntimeError

    try:
        return BaseHook.get_connection(conn_id)
    except (AirflowNotFoundException, AirflowRuntimeError) as error:
        if conn_id == default:
            return None
        raise ConfigurationError(
            f"there is no connection {conn_id}",
            expected="a connection's id, or a location with a slash in it",
            found=conn_id,
            todo=f"add the connection in the UI under Admin > Connections, or set AIRFLOW_CONN_{conn_id.upper()}",
        ) from error


def local_emulator(variable: str) -> str | None:
    """The address of an emulator, which credentials are sent to: it must be on this machine.

    :param variable: the environment variable that may name it.
    :raises ConfigurationError: when it is elsewhere.
    """
    address = os.environ.get(variable)
    if not address:
        return None
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigurationError(
            f"{variable} leads away from this machine", expected="an address of the loopback interface, or none",
            found=address, todo=f"unset {variable}: the service itself needs no address",
        )  # fmt: skip
    return address
