"""The plugin as Airflow's components load it: light, and never in the way."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_importing_it_brings_in_nothing_but_airflow(airflow_db) -> None:
    program = (
        "import sys; from airflow_provider_sml._version import __version__\n"
        "try:\n    from airflow.sdk.plugins_manager import AirflowPlugin\n"
        "except ImportError:\n    from airflow.plugins_manager import AirflowPlugin\n"
        "before = set(sys.modules); import airflow_provider_sml.ui.plugin as module\n"
        "module.SmlPlugin()\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    brought = done.stderr.splitlines()[-1].split()
    assert brought == ["airflow_provider_sml.ui", "airflow_provider_sml.ui.plugin"]


def test_airflow_takes_it(airflow_db) -> None:
    from airflow.plugins_manager import get_plugin_info

    [info] = [plugin for plugin in get_plugin_info() if plugin["name"] == "sml"]
    assert "airflow-provider-sml" in str(info["source"])
    assert [(app["url_prefix"], app["app"]) for app in info["fastapi_apps"]] == [
        ("/sml", "fastapi.applications.FastAPI"),
        ("/sml-webhooks", "fastapi.applications.FastAPI"),
    ]
    [view] = info["external_views"]
    assert (view["name"], view["href"], view["destination"]) == ("Models", "sml/", "nav")


def test_class_and_instance_give_the_same_app(airflow_db) -> None:
    from airflow_provider_sml.ui.plugin import SmlPlugin

    assert SmlPlugin.fastapi_apps[0]["app"] is SmlPlugin().fastapi_apps[0]["app"]


def test_a_missing_library_leaves_the_page_out(
    airflow_db, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow_provider_sml.ui import plugin

    plugin._apps.cache_clear()
    monkeypatch.setitem(sys.modules, "airflow_provider_sml.ui.app", None)
    try:
        assert plugin.SmlPlugin().fastapi_apps == []
    finally:
        plugin._apps.cache_clear()
    assert "The page Models of airflow-provider-sml is left out" in caplog.text
