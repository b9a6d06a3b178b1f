"""Connections for the tests of hooks."""

import json

import pytest


@pytest.fixture
def connect(monkeypatch):
    """Defines a connection as a deployment does, by the environment."""

    def connect(conn_id, **fields):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return connect
