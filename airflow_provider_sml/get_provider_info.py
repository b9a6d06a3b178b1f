"""What Airflow asks of an installed provider: connection types with their forms, notifications, configuration."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": ["string", "null"]}


def get_provider_info() -> dict[str, Any]:
    """The provider's description, by the schema of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-sml",
        "name": "SML",
        "description": "The whole life of a model: ETL, lake, training, registry, gate, deployment, monitoring.",
        "connection-types": [
            {
                "connection-type": "sml_lake",
                "hook-class-name": "airflow_provider_sml.hooks.lake.LakeHook",
                "hook-name": "SML lake",
                "conn-fields": {
                    "location": {
                        "label": "Location",
                        "description": "Folder of the lake, such as /data/lake",
                        "schema": _TEXT,
                    }
                },
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "port", "login", "password", "schema", "extra"],
                    "relabeling": {},
                    "placeholders": {},
                },
            },
            {
                "connection-type": "mlflow",
                "hook-class-name": "airflow_provider_sml.hooks.mlflow.MlflowHook",
                "hook-name": "MLflow",
                "conn-fields": {
                    "tracking_uri": {
                        "label": "Tracking URI",
                        "description": "Address of the server, such as https://mlflow.example.com, or a local folder",
                        "schema": _TEXT,
                    }
                },
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "port", "schema", "extra"],
                    "relabeling": {"login": "User", "password": "Password or token"},
                    "placeholders": {"login": "empty: the password is a token"},
                },
            },
            {
                "connection-type": "dask",
                "hook-class-name": "airflow_provider_sml.hooks.dask.DaskHook",
                "hook-name": "Dask scheduler",
                "conn-fields": {},
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "password", "extra"],
                    "relabeling": {"schema": "Protocol"},
                    "placeholders": {"schema": "tcp or tls", "port": "8786"},
                },
            },
        ],
        "notifications": ["airflow_provider_sml.notifications.alert.AlertNotifier"],
        "config": {
            "sml": {
                "description": "Settings of airflow-provider-sml.",
                "options": {
                    "home": {
                        "description": (
                            "Folder of the embedded lake, MLflow store, endpoints and reports, for operators that are "
                            "given no place. Empty: the folder sml in Airflow's home."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "/data/sml",
                        "default": "",
                    }
                },
            }
        },
    }
