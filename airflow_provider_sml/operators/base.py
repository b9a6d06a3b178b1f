"""What every operator of this package shares: results in XCom, errors worth a retry, links, lineage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseOperatorLink

from airflow_provider_sml.compat import AirflowFailException
from airflow_provider_sml.errors import ConfigurationError, SmlError
from airflow_provider_sml.links.pages import ModelLink
from airflow_provider_sml.operators.cost import KEY, Cost
from airflow_provider_sml.operators.openlineage import Data, lineage_of
from airflow_provider_sml.refs import ModelVersionRef, Ref

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.registry import Registry


class SmlOperator(BaseOperator):
    """Base of the operators: a subclass writes ``run`` and gives back a value object.

    An error that a retry cannot mend (a wrong configuration, data that breaks its contract, a gate that was not passed)
    fails the task at once; every other error is left to Airflow's retries.

    :param encryption: ``required`` refuses to write to a lake whose connection names no KMS key; ``none`` does not ask.
    """

    ui_color = "#e4f0f5"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(),)
    #: What ``run`` gave, once it has.
    _made: Any = None

    def __init__(self, *, encryption: str = "none", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encryption = encryption

    def open_lake(self, lake: str) -> Lake:
        """The lake, to be written to.

        :param lake: its location, or the id of its connection.
        :raises ConfigurationError: when encryption is required and the lake has no key.
        """
        from airflow_provider_sml.hooks.lake import LakeHook

        opened = LakeHook(lake).get_conn()
        if self.encryption == "required":
            opened.require_encryption()
        return opened

    def execute(self, context: Context) -> Any:
        """Run, and give the result to XCom as a plain dictionary."""
        return self.guarded(self.run, context)

    def run(self, context: Context) -> Any:
        """The work of the operator."""
        raise NotImplementedError

    def guarded(self, work: Any, *arguments: Any) -> Any:
        """Do some of the work with the errors and results of ``execute``."""
        try:
            result = self._made = work(*arguments)
        except SmlError as error:
            if error.retryable:
                raise
            raise AirflowFailException(f"{type(error).__name__}: {error}") from error
        if told := self.costs(result):
            arguments[0]["ti"].xcom_push(key=KEY, value=[asdict(cost) for cost in told])
        return result.to_xcom() if isinstance(result, Ref) else result

    def datasets(self, result: Any) -> tuple[list[Data], list[Data]]:
        """What a finished task read and wrote, for OpenLineage.

        :param result: what ``run`` gave.
        """
        return [], []

    def costs(self, result: Any) -> list[Cost]:
        """What a finished task cost, for ``CostReportOperator``.

        :param result: what ``run`` gave.
        """
        return []

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """What OpenLineage's provider asks of a task that has ended."""
        return None if self._made is None else lineage_of(*self.datasets(self._made))


def run_key(context: Context) -> list[str]:
    """What names this task's work across tries: dag, task, run and map index."""
    instance = context["ti"]
    parts = [instance.dag_id, instance.task_id, instance.run_id]
    return parts if instance.map_index is None or instance.map_index < 0 else [*parts, str(instance.map_index)]


def lineage(context: Context) -> dict[str, str]:
    """Where a result comes from, for snapshots and model versions."""
    from airflow_provider_sml import __version__

    instance = context["ti"]
    return {"dag_id": instance.dag_id, "run_id": instance.run_id, "code_version": __version__}


def bundle_version(context: Context) -> dict[str, str]:
    """Version of the bundle that the DAG is from, such as a commit of git; nothing where Airflow has none."""
    version = getattr(getattr(context["ti"], "bundle_instance", None), "version", None)
    return {"bundle_version": str(version)} if version else {}


def mover(context: Context) -> str:
    """Who moves an alias, for the model's history: task and run, and the person who started the run by hand."""
    person = getattr(context.get("dag_run"), "triggering_user_name", None)
    return "/".join(run_key(context)) + (f" of {person}" if person else "")


def announce(context: Context, extra: dict[str, Any]) -> None:
    """Put facts on the events of the task's outlets, for the DAGs that they start."""
    for outlet in context["task"].outlets:
        context["outlet_events"][outlet].extra.update(extra)


def find_version(registry: Registry, name: str, version: Any) -> ModelVersionRef:
    """A version that a person or a task names.

    :param registry: where it is.
    :param name: registered model.
    :param version: its number, an alias, or the output of a task that registered it; the champion when empty.
    :raises ConfigurationError: when there is none, or it is of another model.
    """
    from airflow_provider_sml.ml.registry import CHAMPION

    text = str(version or CHAMPION)
    if text.replace("-", "").replace("_", "").isalnum():
        wanted = {"version": text} if text.isdigit() else {"alias": text}
    else:
        given = ModelVersionRef.load(version)
        if given.name != name:
            raise ConfigurationError("the version is of another model", expected=f"one of {name}", found=given.name)
        wanted = {"version": given.version}
    found = registry.version(name, **wanted)
    if found is None:
        raise ConfigurationError(
            f"{name} has no such version", expected=" ".join([*wanted, *wanted.values()]), found="none",
            todo="look at its versions in MLflow; train and register one first",
        )  # fmt: skip
    return found


def sample_of(version: ModelVersionRef, tags: Mapping[str, str]) -> str:
    """Where the sample of a version lies.

    :raises ConfigurationError: when the version was registered without it.
    """
    if "sample_uri" not in tags:
        raise ConfigurationError(
            f"{version.name} version {version.version} does not say which sample it was trained on",
            expected="the tag sml.sample_uri",
            found="none",
            todo="register it by RegisterModelOperator",
        )
    return tags["sample_uri"]
