"""What serves a model right now, asked where it runs.

A local endpoint is asked on this machine: where the API server runs on another one than the endpoint, the page says
that nothing answers here. It looks and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow_provider_sml.ui.project import Model


@dataclass(frozen=True)
class Live:
    """What serves a model.

    :param state: ``serving``, ``silent`` (deployed, but it does not answer here), ``none`` (never deployed) or
        ``unknown``.
    :param version: the version that is recorded as live.
    :param url: address of ``POST /invocations``.
    :param since: since when, ISO 8601.
    :param note: what else a reader should know.
    """

    state: Literal["serving", "silent", "none", "unknown"]
    version: str | None = None
    url: str | None = None
    since: str | None = None
    note: str | None = None


def look(model: Model) -> Live:
    """What serves a model; takes two seconds at most, and never raises."""
    folder = model.place(model.spec.places.endpoints)
    if folder is None:
        return Live("unknown", note="the endpoints' folder is not on this machine")
    try:
        from airflow_provider_sml.ml.serving.local import LocalEndpoint
    except ImportError as error:
        return Live("unknown", note=f"{error.name} is missing: pip install 'airflow-provider-sml[serving]'")
    try:
        endpoint = LocalEndpoint.load(folder, model.name)
        if endpoint is None:
            return Live("none")
        status = endpoint.status()
    except Exception as error:  # a damaged record must not take the page away
        return Live("unknown", note=f"{type(error).__name__}: {error}")
    live = status.live
    if live is None:
        return Live("silent", url=status.url, note="its server does not run on this machine")
    note = None if status.healthy else "its server runs, but the public port does not answer with this version"
    if status.candidate is not None and status.healthy:
        note = f"version {status.candidate.version} is being rolled out"
    return Live("serving" if status.healthy else "silent", live.version, status.url, live.since, note)
