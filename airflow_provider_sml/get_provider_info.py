"""What Airflow asks of an installed provider: connection types with their forms, links, notifications, settings."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": ["string", "null"]}
_SECRET = {"type": ["string", "null"], "format": "password"}
#: Airflow 3.3's button Test sends port 0 where there is none, and its server then refuses, for the stored port is
#: another one: such a connection is tested only when its port is 0. The hooks take 0 for none.
_PORT = "Port: 0 lets Test work"


def _field(label: str, description: str, schema: dict[str, Any] = _TEXT) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": schema}


_LAKE_FIELDS = {
    "location": _field("Location", "Folder, or address on S3 or Google Cloud Storage: /data/lake, s3://bucket/lake"),
    "storage_conn_id": _field("Storage connection", "Id of an aws or google_cloud_platform connection to the store"),
    "access_key": _field("Access key", "Of an S3 store, where no storage connection is named; empty: the environment"),
    "secret_key": _field("Secret key", "That goes with the access key", _SECRET),
    "endpoint": _field("Endpoint", "Address of a store that is not Amazon's or Google's own"),
    "region": _field("Region", "AWS region of the store, and of Glue"),
    "kms_key": _field("KMS key", "Everything is encrypted with it: ARN on AWS, full name of the key on Google"),
    "catalog": _field(
        "Catalog",
        "sqlite serves one machine; several need postgres, glue or rest",
        {"type": ["string", "null"], "enum": ["sqlite", "postgres", "glue", "rest", None]},
    ),
    "catalog_uri": _field("Catalog address", "Of PostgreSQL, of a REST catalog, or the path of SQLite's file"),
    "namespace": _field("Namespace", "Of the tables in the catalog; lake when empty"),
    "catalog_properties": _field("Catalog properties", 'More of them as JSON: {"warehouse": "prod"}'),
}


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
                "conn-fields": _LAKE_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "extra"],
                    "relabeling": {"login": "Catalog user", "password": "Catalog password or token", "port": _PORT},
                    "placeholders": {
                        "port": "0",
                        "location": "s3://bucket/lake",
                        "catalog_uri": "postgresql://host:5432/database",
                        "region": "eu-central-1",
                        "kms_key": "arn:aws:kms:...",
                    },
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
                    },
                    "webhook_secret": _field(
                        "Webhook secret",
                        "Of a webhook of this server that calls /sml-webhooks/mlflow when an alias moves",
                        _SECRET,
                    ),
                },
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "extra"],
                    "relabeling": {"login": "User", "password": "Password or token", "port": _PORT},
                    "placeholders": {"login": "empty: the password is a token", "port": "0"},
                },
            },
            {
                "connection-type": "dask",
                "hook-class-name": "airflow_provider_sml.hooks.dask.DaskHook",
                "hook-name": "Dask scheduler or gateway",
                "conn-fields": {
                    "auth": _field(
                        "Log-in of a gateway",
                        "Basic takes login and password, jupyterhub and token take the password as the token",
                        {"type": ["string", "null"], "enum": ["basic", "kerberos", "jupyterhub", "token", None]},
                    ),
                    "proxy_address": _field(
                        "Proxy of a gateway", "host:port of its proxy of schedulers, where it is not at its own address"
                    ),
                },
                "ui-field-behaviour": {
                    "hidden-fields": ["extra"],
                    "relabeling": {"schema": "Protocol"},
                    "placeholders": {"schema": "tcp or tls; https or http of a Dask Gateway", "port": "8786"},
                },
            },
        ],
        "extra-links": [
            f"airflow_provider_sml.links.pages.{name}"
            for name in (
                "ModelLink",
                "GateLink",
                "SearchLink",
                "SamplingLink",
                "EvaluationLink",
                "NightLink",
                "PerformanceLink",
                "DecisionLink",
                "CostLink",
                "LineageLink",
                "ConsoleLink",
                "MlflowLink",
            )
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
