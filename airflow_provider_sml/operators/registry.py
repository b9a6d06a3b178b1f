"""What is done to a registered model apart from registering and deploying it: its aliases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.links.pages import MlflowLink, ModelLink
from airflow_provider_sml.operators.base import SmlOperator, find_version, mover
from airflow_provider_sml.refs import ModelVersionRef

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The alias that goes with what serves; ``PromoteModelOperator`` and ``RollbackModelOperator`` move both.
_SERVING = "champion"


class SetAliasOperator(SmlOperator):
    """Points an alias of a registered model at a version; a repeat finds it there.

    The alias ``champion`` is refused: it says what serves, and moves together with the endpoint.

    :param name: registered model.
    :param alias: the alias, such as ``staging``.
    :param version: version number, another alias, or the output of a task that registered it.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """

    template_fields: Sequence[str] = ("name", "alias", "version", "mlflow")
    ui_color = "#cfe2f3"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), MlflowLink())

    def __init__(
        self,
        *,
        name: str,
        alias: str,
        version: Any,
        mlflow: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.alias = alias
        self.version = version
        self.mlflow = mlflow

    def run(self, context: Context) -> ModelVersionRef:
        """Look the version up, and point the alias at it."""
        if self.alias == _SERVING:
            raise ConfigurationError(
                f"the alias {_SERVING} is not set by itself", expected="an alias that says nothing of what serves",
                found=self.alias, todo="take PromoteModelOperator, which deploys the version and then moves the alias",
            )  # fmt: skip
        registry = MlflowHook(self.mlflow).get_conn()
        version = find_version(registry, self.name, self.version)
        before = registry.version(self.name, alias=self.alias)
        if before != version:
            line = registry.set_alias(version, self.alias, mover(context), {"model_id": version.model_id})
            self.log.info("line %s of the history", line.hash if line else "none")
        was = f", before {before.version}" if before and before != version else ""
        self.log.info("%s of %s is version %s%s", self.alias, self.name, version.version, was)
        return version
