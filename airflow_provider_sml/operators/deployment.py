"""From a version to an endpoint that serves it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import home
from airflow_provider_sml.links.pages import GateLink, MlflowLink, ModelLink
from airflow_provider_sml.operators.base import SmlOperator, announce, sample_of
from airflow_provider_sml.refs import EndpointRef, ModelVersionRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.registry import Registry


class DeployModelOperator(SmlOperator):
    """Deploys a version to the local scoring server and makes it the champion.

    The new server starts beside the old one; it takes over only after it is healthy and gives the stored model's scores
    on stored rows. When anything fails, the old one serves on and no alias moves. A repeat finds the version serving
    and only mends the alias.

    :param name: registered model.
    :param version: version number, or the output of a task that registered it; the challenger when empty.
    :param port: port of the endpoint on the loopback interface.
    :param endpoint: name of the endpoint; the model's when None.
    :param parity_rows: stored rows whose scores must agree.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param endpoints: folder for the state and logs of local endpoints.
    """

    template_fields: Sequence[str] = ("name", "version", "port", "endpoint", "mlflow", "endpoints")
    ui_color = "#c9ead9"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), GateLink(), MlflowLink())

    def __init__(
        self,
        *,
        name: str,
        version: Any = "",
        port: int | str = 8500,
        endpoint: str | None = None,
        parity_rows: int = 200,
        mlflow: str = MlflowHook.default_conn_name,
        endpoints: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.version = version
        self.port = port
        self.endpoint = endpoint
        self.parity_rows = parity_rows
        self.mlflow = mlflow
        self.endpoints = endpoints

    def run(self, context: Context) -> EndpointRef:
        """Roll the version out, then move the alias."""
        from airflow_provider_sml.ml.registry import CHAMPION
        from airflow_provider_sml.ml.serving.local import LocalEndpoint
        from airflow_provider_sml.ml.serving.parity import check_parity
        from airflow_provider_sml.ml.serving.stored import stored_rows

        registry = MlflowHook(self.mlflow).get_conn()
        version = self._version(registry)
        root = Path(self.endpoints or f"{home()}/endpoints")
        endpoint = LocalEndpoint(root, self.endpoint or self.name, int(self.port))
        folder = root / endpoint.name / "models" / version.model_id
        bundle = registry.bundle(version, folder)
        tags = registry.tags(version)
        sample = LakeHook(tags.get("lake", "")).place(sample_of(version, tags))
        rows, scores = stored_rows(bundle, sample, self.parity_rows)
        if endpoint.serves(version.version, version.model_id):
            self.log.info("version %s serves already", version.version)
            checked = check_parity(endpoint.url, rows, scores)
        else:
            with endpoint.start_candidate(folder, self.name, version.version) as candidate:
                checked = check_parity(candidate.url, rows, scores)
                candidate.go_live()
        registry.set_alias(version, CHAMPION)
        registry.set_tags(version, {"deployed": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})
        self.log.info(
            "%s version %s is the champion and serves at %s; %d of %d stored rows agree", self.name, version.version,
            endpoint.url, checked.rows, checked.rows,
        )  # fmt: skip
        announce(context, {"version": version.version})
        return EndpointRef(
            name=endpoint.name,
            target="local",
            url=endpoint.url,
            model=self.name,
            version=version.version,
            parity_rows=checked.rows,
        )

    def _version(self, registry: Registry) -> ModelVersionRef:
        from airflow_provider_sml.ml.registry import CHALLENGER

        if self.version and not str(self.version).isdigit():
            given = ModelVersionRef.load(self.version)
            if given.name != self.name:
                raise ConfigurationError(
                    "the version is of another model", expected=f"a version of {self.name}", found=given.name
                )
            wanted = {"version": given.version}
        else:
            wanted = {"version": str(self.version)} if self.version else {"alias": CHALLENGER}
        found = registry.version(self.name, **wanted)
        if found is None:
            raise ConfigurationError(
                f"{self.name} has no version to deploy",
                expected=" ".join(["one with the", *wanted, *wanted.values()]),
                found="none",
                todo="train and register one first",
            )
        if registry.tags(found).get("gate") == "failed":
            raise ConfigurationError(
                f"{self.name} version {found.version} did not pass its gate",
                expected="a version that passed",
                found="gate: failed",
                todo="read its gate report; train another",
            )
        return found
