"""From a version to an endpoint that serves it: on this machine, or in a cloud by a target of its own.

The alias moves last, after the endpoint serves the version and has given the stored scores. What fails before leaves
the old version serving, and nothing new behind. A task that dies, or whose MLflow does, between the endpoint and the
alias has left a mark on the version (``sml.going_live``); the retry, or the next deployment to that endpoint, moves the
alias before anything else.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.cloud.remote_job import Adapter, Step, failure
from airflow_provider_sml.compat import AirflowSkipException
from airflow_provider_sml.errors import ConfigurationError, DeploymentRolledBack, JobError, SmlError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import home
from airflow_provider_sml.links.pages import ConsoleLink, GateLink, MlflowLink, ModelLink
from airflow_provider_sml.operators.base import announce, lineage, mover, run_key, sample_of
from airflow_provider_sml.operators.cost import Cost
from airflow_provider_sml.operators.deployment_targets import Deployment, Target
from airflow_provider_sml.operators.deployment_targets import target as target_of
from airflow_provider_sml.operators.deployment_targets import told as target_told
from airflow_provider_sml.operators.openlineage import Data, registered
from airflow_provider_sml.operators.remote_job import RemoteJobOperator
from airflow_provider_sml.refs import EndpointRef, ModelVersionRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.registry import Registry


class DeployModelOperator(RemoteJobOperator):
    """Deploys a version and makes it the champion.

    The new version takes over only when it serves, and the alias moves only when it gives the stored model's scores on
    stored rows through the endpoint. When anything fails the old one serves on, no alias moves, and what was made new
    is deleted. A repeat finds the version serving and only mends the alias.

    On this machine the new server starts beside the old one. In a cloud a roll-out (canary, linear, ...) is a remote
    job: it survives a crash of the task, and can be waited for in the triggerer. A version that is only tried beside
    the champion (``mode`` ab or shadow in the settings) gets no alias.

    :param name: registered model.
    :param version: version number, or the output of a task that registered it; the challenger when empty.
    :param target: ``local``, or one of ``deployment_targets.TARGETS``.
    :param settings: of that target; see ``deployment_targets.sagemaker`` and ``deployment_targets.vertex``.
    :param port: port of a local endpoint on the loopback interface.
    :param endpoint: name of the endpoint; the model's when None.
    :param parity_rows: stored rows whose scores must agree.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param endpoints: folder for the state and logs of local endpoints, and for models on their way to a cloud.
    :param plan: print the exact calls and the estimated cost, and change nothing; a task with outlets, whose events
        would tell of a deployment, is then skipped.
    """

    template_fields: Sequence[str] = (
        "name", "version", "target", "settings", "port", "endpoint", "mlflow", "endpoints", "plan",
    )  # fmt: skip
    ui_color = "#c9ead9"
    operator_extra_links: Collection[BaseOperatorLink] = (
        ModelLink(), GateLink(), MlflowLink(), ConsoleLink(),
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        version: Any = "",
        target: str = "local",
        settings: Mapping[str, Any] | None = None,
        port: int | str = 8500,
        endpoint: str | None = None,
        parity_rows: int = 200,
        mlflow: str = MlflowHook.default_conn_name,
        endpoints: str | None = None,
        plan: bool | str = False,
        poll_interval: float = 15.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poll_interval=poll_interval, **kwargs)
        self.name = name
        self.version = version
        self.target = target
        self.settings = settings or {}
        self.port = port
        self.endpoint = endpoint
        self.parity_rows = parity_rows
        self.mlflow = mlflow
        self.endpoints = endpoints
        self.plan = plan

    def run(self, context: Context) -> Any:
        """Roll the version out, then move the alias."""
        if self.planned:
            return self._show_plan(context)
        self._settle(context)
        if self.target == "local":
            return self._run_locally(context)
        return self._or_rejected(context, super().run, context)

    @property
    def planned(self) -> bool:
        """Whether nothing is to be changed; a template gives ``plan`` as text."""
        return str(self.plan).strip().lower() == "true"

    def _show_plan(self, context: Context) -> Any:
        from airflow_provider_sml.operators.plan import show

        version = self._version(self._registry(), context)
        local = self.target == "local"
        calls, cost = self._local_plan(version) if local else self._target(context, version).plan()
        shown = show(self.log, f"endpoint {self.endpoint or self.name}", calls, cost)
        if not context["task"].outlets:
            return shown
        context["ti"].xcom_push(key="plan", value=shown)
        raise AirflowSkipException(
            f"dry run: {self.name} version {version.version} was not deployed; the plan is above"
        )

    # --- on this machine ------------------------------------------------------------------------------------------

    def _run_locally(self, context: Context) -> EndpointRef:
        from airflow_provider_sml.ml.serving.local import LocalEndpoint
        from airflow_provider_sml.ml.serving.parity import check_parity

        registry = self._registry()
        version = self._version(registry, context)
        endpoint = LocalEndpoint(self._root(), self.endpoint or self.name, int(self.port))
        folder = self._folder(version)
        rows, scores = self._stored(registry, version)
        if endpoint.serves(version.version, version.model_id):
            self.log.info("version %s serves already", version.version)
            checked = check_parity(endpoint.url, rows, scores)
        else:
            with endpoint.start_candidate(folder, self.name, version.version) as candidate:
                checked = check_parity(candidate.url, rows, scores)
                self._mark(registry, version)
                candidate.go_live()
        return self._champion(context, registry, version, endpoint.url, checked.rows)

    def _local_plan(self, version: ModelVersionRef) -> tuple[list[tuple[str, str, dict[str, Any]]], str]:
        """What a deployment on this machine would do."""
        from airflow_provider_sml.ml.serving.local import LocalEndpoint

        endpoint = LocalEndpoint(self._root(), self.endpoint or self.name, int(self.port))
        parity = ("local", "check_parity", {"rows": self.parity_rows})
        alias = ("mlflow", "set_alias", {"name": self.name, "alias": "champion", "version": version.version})
        if endpoint.serves(version.version, version.model_id):
            return [parity, alias], "nothing: it serves already"
        start = ("local", "start_candidate", {"version": version.version, "port": int(self.port)})
        return [start, parity, ("local", "go_live", {"url": endpoint.url}), alias], "nothing: it runs on this machine"

    # --- in a cloud -----------------------------------------------------------------------------------------------

    def job(self, context: Context) -> Adapter:
        """The roll-out of the target, with the model brought to it."""
        registry = self._registry()
        version = self._version(registry, context)
        target = self._target(context, version)
        rollout = target.rollout()
        registry.bundle(version, self._folder(version))
        target.upload(self._folder(version))
        return rollout

    def finish(self, context: Context, result: dict[str, Any]) -> EndpointRef:
        """Check parity through the endpoint, and take the version back when it fails; then move the alias."""
        from airflow_provider_sml.ml.serving.parity import compare

        self._hourly = result.get("cost_usd_per_hour")
        registry = self._registry()
        version = self._version(registry, context)
        target = self._target(context, version)
        compared = 0
        try:
            rows, scores = self._stored(registry, version)
            if target.score(rows[:1]) is not None:
                compared = compare(target.address(), rows, scores, lambda part: target.score(part) or []).rows
        except SmlError as error:
            raise DeploymentRolledBack(
                f"{self.name} version {version.version} was taken back: endpoint {self.endpoint or self.name} "
                f"{target.undo(result)}", found=str(error), todo="mend that, and clear this task",
            ) from error  # fmt: skip
        if not target.replaces:
            self.log.info("version %s runs beside the champion; no alias moves", version.version)
            self._tell(context, registry, version, target.address())
            return self._ref(version, target.address(), compared)
        self._mark(registry, version)
        ref = self._champion(context, registry, version, target.address(), compared)
        target.complete(result)
        return ref

    def _resume(self, context: Context, event: dict[str, Any]) -> Any:
        return self._or_rejected(context, super()._resume, context, event)

    def _or_rejected(self, context: Context, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do some of the work; a version that it takes back is rejected in the target's own registry."""
        try:
            return work(*arguments)
        except DeploymentRolledBack as error:
            try:
                self._target(context, self._version(self._registry(), context)).rejected(f"it was taken back: {error}")
            except SmlError as also:  # the reason for the roll-back is what matters
                self.log.warning("the version could not be rejected in the registry of %s: %s", self.target, also)
            raise

    #: USD per hour of what the roll-out made.
    _hourly: float | None = None

    #: The version that was deployed, once it is.
    _used: ModelVersionRef | None = None

    def datasets(self, result: Any) -> tuple[list[Data], list[Data]]:
        """The version, and the endpoint that serves it; nothing for a plan."""
        if not isinstance(result, EndpointRef) or self._used is None:
            return [], []
        served = Data("sagemaker://endpoints", result.name) if result.target == "sagemaker" else Data(result.url)
        return [registered(self._used)], [replace(served, version=result.version)]

    def costs(self, result: Any) -> list[Cost]:
        """What the endpoint costs from now on; what runs on this machine costs nothing by itself."""
        if not isinstance(result, EndpointRef) or self.target == "local":
            return []
        return [Cost(what=f"endpoint {result.name} at {result.target}", usd_per_hour=self._hourly)]

    def failed(self, step: Step) -> JobError | DeploymentRolledBack:
        """A roll-out that ended on the old version has an error of its own."""
        return failure(step) if step.retryable else DeploymentRolledBack(step.message)

    def _target(self, context: Context, version: ModelVersionRef) -> Target:
        deployment = Deployment(
            endpoint=self.endpoint or self.name,
            model=self.name,
            version=version.version,
            model_id=version.model_id,
            settings=self._settings(),
            tags=lineage(context) | {"model": self.name},
            bundle=self._folder(version),
        )
        return target_of(self.target, deployment)

    # --- both -----------------------------------------------------------------------------------------------------

    def _settings(self) -> Mapping[str, Any]:
        return self.settings

    def _registry(self) -> Registry:
        return MlflowHook(self.mlflow).get_conn()

    def _root(self) -> Path:
        return Path(self.endpoints or f"{home()}/endpoints")

    def _folder(self, version: ModelVersionRef) -> Path:
        return self._root() / (self.endpoint or self.name) / "models" / version.model_id

    def _stored(self, registry: Registry, version: ModelVersionRef) -> tuple[list[dict[str, Any]], list[float]]:
        """Stored rows of the version, and their scores."""
        from airflow_provider_sml.ml.serving.stored import stored_rows

        bundle = registry.bundle(version, self._folder(version))
        tags = registry.tags(version)
        sample = LakeHook(tags.get("lake", "")).place(sample_of(version, tags))
        return stored_rows(bundle, sample, self.parity_rows)

    def _mark(self, registry: Registry, version: ModelVersionRef) -> None:
        """From here on the alias has to follow, whatever becomes of this task."""
        registry.set_tags(version, {"going_live": self.endpoint or self.name})

    def _settle(self, context: Context) -> None:
        """Move the alias to a version that went live while the alias could not be moved.

        In a cloud the mark is made when the roll-out has ended and the scores agree. On this machine it is made just
        before the endpoint changes, so the endpoint is asked whether it has.
        """
        from airflow_provider_sml.ml.serving.local import LocalEndpoint

        name, registry = self.endpoint or self.name, self._registry()
        for version in registry.tagged(self.name, "going_live", name):
            if self.target == "local":
                endpoint = LocalEndpoint(self._root(), name, int(self.port))
                if not endpoint.serves(version.version, version.model_id):
                    continue
            self.log.warning("version %s serves already, and the alias did not follow; it does now", version.version)
            self._promote(context, registry, version, {"endpoint": name, "settled": "the task that deployed it died"})

    def _champion(
        self, context: Context, registry: Registry, version: ModelVersionRef, url: str, rows: int
    ) -> EndpointRef:
        """Make the version the champion."""
        self._promote(context, registry, version, {"endpoint": url, "parity_rows": str(rows)})
        self.log.info(
            "%s version %s is the champion and serves at %s; %d of %d stored rows agree", self.name, version.version,
            url, rows, rows,
        )  # fmt: skip
        announce(context, {"version": version.version})
        return self._ref(version, url, rows)

    def _promote(
        self, context: Context, registry: Registry, version: ModelVersionRef, evidence: Mapping[str, str]
    ) -> None:
        """Move the alias, with what the move rests on: what was checked here, and what stands on the version.

        Tags whose names begin with ``gate`` or ``approv`` are what the gate and whoever approved left there.
        """
        from airflow_provider_sml.ml.registry import CHAMPION

        tags = registry.tags(version)
        told = {"digest": tags.get("digest", ""), "operator": type(self).__name__, **evidence}
        found = sorted((key for key in tags if key.startswith(("gate", "approv"))), key=lambda key: (len(key) > 8, key))
        told |= {key: tags[key] for key in found}
        line = registry.set_alias(version, CHAMPION, mover(context), told)
        deployed = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        registry.set_tags(version, {"deployed": deployed, "withdrawn_by": "", "going_live": ""})
        if line is not None or not tags.get(self._place_tag):
            self._tell(context, registry, version, evidence["endpoint"])
        if line is not None:
            self.log.info("line %s of the history of %s", line.hash, self.name)

    def _tell(self, context: Context, registry: Registry, version: ModelVersionRef, address: str) -> None:
        """Write on the version where it serves since when, for the page of the model."""
        told = target_told(self.target, {} if self.target == "local" else self._settings(), address)
        told |= {"since": dt.datetime.now(dt.UTC).isoformat(), "run": "/".join(run_key(context)[:3])}
        registry.set_tags(version, {self._place_tag: json.dumps(told)})

    @property
    def _place_tag(self) -> str:
        return f"endpoint.{self.target}.{self.endpoint or self.name}"

    def _ref(self, version: ModelVersionRef, url: str, rows: int) -> EndpointRef:
        self._used = version
        return EndpointRef(
            name=self.endpoint or self.name,
            target=self.target,
            url=url,
            model=self.name,
            version=version.version,
            parity_rows=rows,
        )

    def _version(self, registry: Registry, context: Context) -> ModelVersionRef:
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
        tags = registry.tags(found)
        if (approval := tags.get("approval")) and approval != "approved":
            raise ConfigurationError(
                f"{self.name} version {found.version} was not approved",
                expected="approval: approved",
                found=f"approval: {approval}",
                todo="answer the task that asks; where it has ended, clear it to ask again",
            )
        if tags.get("gate") == "failed":
            raise ConfigurationError(
                f"{self.name} version {found.version} did not pass its gate",
                expected="a version that passed",
                found="gate: failed",
                todo="read its gate report; train another",
            )
        return found


class PromoteModelOperator(DeployModelOperator):
    """Makes a version that was tried beside the champion the one that serves all, alias and endpoint together.

    It is a deployment that replaces what serves, with the settings of the test but its ``mode``. Parameters as those
    of ``DeployModelOperator``.
    """

    ui_color = "#b7e1cd"

    def _settings(self) -> Mapping[str, Any]:
        return {key: value for key, value in self.settings.items() if key != "mode"}


class RollbackModelOperator(DeployModelOperator):
    """Goes back to the version that was the champion before, alias and endpoint together.

    Without ``version`` it is the version that was deployed last before the champion and was not taken back itself. It
    goes the way of every deployment, parity included. Parameters as those of ``DeployModelOperator``.
    """

    ui_color = "#f5d6c6"

    def _version(self, registry: Registry, context: Context) -> ModelVersionRef:
        from airflow_provider_sml.ml.registry import CHAMPION

        if self.version:
            return super()._version(registry, context)
        key = "/".join(run_key(context))
        deployed = {ref.version: (ref, registry.tags(ref)) for ref in registry.deployed(self.name)}
        for _, tags in deployed.values():
            if tags.get("withdrawn_by") == key:  # an earlier try of this task has chosen
                return deployed[tags["withdrawn_for"]][0]
        champion = registry.version(self.name, alias=CHAMPION)
        earlier = [
            ref for ref, tags in deployed.values()
            if not tags.get("withdrawn_by") and champion is not None and ref.version != champion.version
        ]  # fmt: skip
        if champion is None or not earlier:
            raise ConfigurationError(
                f"{self.name} has no earlier version to go back to", expected="a version that was deployed before",
                found=f"only version {champion.version}" if champion else "no champion",
            )  # fmt: skip
        if not self.planned:
            registry.set_tags(champion, {"withdrawn_for": earlier[0].version, "withdrawn_by": key})
        return earlier[0]

    def finish(self, context: Context, result: dict[str, Any]) -> EndpointRef:
        """Go back; then the version that was withdrawn is rejected in the target's own registry."""
        ref, registry, key = super().finish(context, result), self._registry(), "/".join(run_key(context))
        for version in registry.tagged(self.name, "withdrawn_by", key):
            self._target(context, version).rejected(f"it was taken back for version {ref.version}")
        return ref
