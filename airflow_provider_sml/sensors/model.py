"""Waiting for what the registry tells of a model: a new version, an alias that moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.sensors.base import CheckSensor


class ModelVersionSensor(CheckSensor):
    """Waits until a registered model has a version that is newer than one already seen.

    The task's result is the newest such version, as ``RegisterModelOperator`` gives it.

    :param name: registered model.
    :param newer_than: number of the version that has been seen; empty when any will do.
    :param gate: ``passed`` or ``failed``: what its gate must have said; empty when it does not matter.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param deferrable: wait in the triggerer rather than in a worker slot.
    """

    template_fields: Sequence[str] = ("name", "newer_than", "gate", "mlflow")
    ui_color = "#cfe2f3"
    check = "registered"

    def __init__(
        self,
        *,
        name: str,
        newer_than: str | int = "",
        gate: str = "",
        mlflow: str = MlflowHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, **kwargs)
        self.name = name
        self.newer_than = newer_than
        self.gate = gate
        self.mlflow = mlflow

    def arguments(self) -> dict[str, Any]:
        """The model and what has been seen of it."""
        if self.gate not in ("", "passed", "failed"):
            raise ConfigurationError("gate says nothing that a gate says", expected="passed or failed", found=self.gate)
        return {
            "name": self.name, "newer_than": int(_number("newer_than", self.newer_than) or 0), "gate": self.gate,
            "mlflow": self.mlflow,
        }  # fmt: skip


class ModelAliasSensor(CheckSensor):
    """Waits until an alias of a registered model points to a version: to any, to a certain one, or to another one.

    The task's result is that version, as ``RegisterModelOperator`` gives it.

    :param name: registered model.
    :param alias: the alias.
    :param version: number of the version that it must point to; empty for any.
    :param other_than: number of the version that has been seen; empty when any will do.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param deferrable: wait in the triggerer rather than in a worker slot.
    """

    template_fields: Sequence[str] = ("name", "alias", "version", "other_than", "mlflow")
    ui_color = "#cfe2f3"
    check = "pointed"

    def __init__(
        self,
        *,
        name: str,
        alias: str = "champion",
        version: str | int = "",
        other_than: str | int = "",
        mlflow: str = MlflowHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, **kwargs)
        self.name = name
        self.alias = alias
        self.version = version
        self.other_than = other_than
        self.mlflow = mlflow

    def arguments(self) -> dict[str, Any]:
        """The alias and what has been seen of it."""
        version, other = _number("version", self.version), _number("other_than", self.other_than)
        if version and version == other:
            raise ConfigurationError(
                "the alias is to point to a version, and not to it", expected="version or other_than",
                found=f"{version} in both",
            )  # fmt: skip
        return {
            "name": self.name, "alias": self.alias, "version": version, "other_than": other, "mlflow": self.mlflow,
        }  # fmt: skip


def _number(what: str, value: str | int) -> str:
    text = str(value).strip()
    if text and not text.isdigit():
        raise ConfigurationError(f"{what} is no number of a version", expected="a whole number, or nothing", found=text)
    return text
