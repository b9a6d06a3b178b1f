"""Airflow's plugin of this package: the page "Models" in the navigation, and the receiver of MLflow's webhooks.

Every component of Airflow imports this module, so it imports next to nothing: the pages and FastAPI come in only where
``fastapi_apps`` is read, which the API server does. Nothing here raises for a library that is missing; the page is then
absent and the log says why.

It adds no listeners, macros, timetables or middlewares, and writes nothing.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

try:
    from airflow.sdk.plugins_manager import AirflowPlugin
except ImportError:  # Airflow 3.1
    from airflow.plugins_manager import AirflowPlugin

PREFIX = "/sml"
#: Outside Airflow's log-in: a signature lets a request in.
WEBHOOKS = "/sml-webhooks"

log = logging.getLogger(__name__)


@functools.cache
def _apps() -> list[dict[str, Any]]:
    try:
        from airflow_provider_sml.ui.app import create_app
    except ImportError as error:
        log.warning("The page Models of airflow-provider-sml is left out: %s", error)
        return []
    apps = [{"app": create_app(), "url_prefix": PREFIX, "name": "SML models"}]
    try:
        from airflow_provider_sml.ui.webhooks import create_receiver
    except ImportError as error:
        log.warning("The receiver of MLflow's webhooks is left out: %s", error)
    else:
        apps.append({"app": create_receiver(), "url_prefix": WEBHOOKS, "name": "SML webhooks"})
    return apps


class _WhenRead:
    """An attribute that is made when it is read, of the class or of an instance: Airflow does both."""

    def __get__(self, plugin: object, owner: type) -> list[dict[str, Any]]:
        return _apps()


class SmlPlugin(AirflowPlugin):
    """A page of the project's models inside Airflow's own page, under Airflow's log-in and permissions.

    The addresses are relative to Airflow's own, so that it may lie under any path.
    """

    name = "sml"
    fastapi_apps = _WhenRead()
    external_views = [  # noqa: RUF012 - Airflow asks for a list, and may remove from it
        {
            "name": "Models",
            "href": f"{PREFIX.removeprefix('/')}/",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "models",
            "icon": f"{PREFIX.removeprefix('/')}/static/models.svg",
            "icon_dark_mode": f"{PREFIX.removeprefix('/')}/static/models-dark.svg",
        }
    ]
