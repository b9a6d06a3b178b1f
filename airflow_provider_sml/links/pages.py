"""Links from a task to the pages of what it made: the model, its search, gate, evaluation or night, and MLflow's.

Airflow computes a link when the task ends, failed ones too, and keeps it in XCom. It is made of what the task was given
and what it gave; where that does not name a page, there is no link. Nothing is opened or looked up here.

The pages of a model are served by this package's plugin (``ui.plugin``) under Airflow's own address.
"""

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.compat import configuration

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

#: Key in XCom of the page of a remote job.
CONSOLE = "sml_console"
#: Where the plugin's pages lie below Airflow's address.
PREFIX = "/sml"

#: What each kind of value object says of a page: the field of the object by the fact.
_FACTS = {
    "staged": {"name": "table"},
    "snapshot": {"name": "table"},
    "sample": {"name": "table"},
    "search": {"search_id": "search_id"},
    "sample_plan": {"curve": "uri"},
    "model": {"model_id": "model_id"},
    "evaluation": {"model_id": "model_id"},
    "model_version": {"name": "name", "version": "version", "registry": "registry"},
    "verdict": {"name": "name", "version": "version"},
    "approval": {"name": "name", "version": "version"},
    "endpoint": {"name": "model", "version": "version"},
    "report": {"name": "model", "day": "day"},
    "performance": {"name": "model", "day": "day"},
    "costs": {"name": "name", "costs": "run"},
    "lineage": {"name": "name", "lineage": "subject"},
}


def facts(operator: BaseOperator, result: Any) -> dict[str, str]:
    """What a task says of pages: ``name``, ``version``, ``search_id``, ``model_id``, ``day``, ``registry``.

    :param operator: with its templates rendered.
    :param result: what it gave to XCom; None when it failed.
    """
    found: dict[str, str] = {}
    name = getattr(operator, "name", None)
    if isinstance(name, str) and name:
        found["name"] = name
    given = (getattr(operator, field, None) for field in operator.template_fields)
    for value in _objects([result, *given]):
        for fact, field in _FACTS.get(value["kind"], {}).items():
            if value.get(field):
                found.setdefault(fact, str(value[field]))
    dataset = getattr(operator, "dataset", None)
    named = dataset.get("name") if isinstance(dataset, Mapping) else getattr(dataset, "name", None)
    if named:
        found.setdefault("name", str(named))
    for field in ("table", "endpoint"):  # those of a model have its name unless somebody gave them another
        own = getattr(operator, field, None)
        if isinstance(own, str) and own:
            found.setdefault("name", own.rpartition(".")[2])
    return found


def _objects(values: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Those of the values that are value objects, whatever form they have."""
    for value in values:
        if isinstance(value, str) and value.startswith("{"):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        elif hasattr(value, "to_xcom"):
            value = value.to_xcom()
        if isinstance(value, Mapping) and "kind" in value:
            yield value


class _PageLink(BaseOperatorLink):
    """A link that follows from the facts of a task; empty where they do not suffice."""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The address, or an empty text.

        :param operator: the task's operator.
        :param ti_key: what names the task instance.
        """
        from airflow.sdk.execution_time.xcom import XCom

        return self.address(facts(operator, XCom.get_value(ti_key=ti_key, key="return_value")))

    @abstractmethod
    def address(self, found: Mapping[str, str]) -> str:
        """The address by the facts."""


def _page(*parts: str | None) -> str:
    """The address of a page of the plugin, below Airflow's own; empty when a part is not known."""
    if not all(parts):
        return ""
    base = str(configuration().get("api", "base_url", fallback="") or "").rstrip("/")
    return base + PREFIX + "".join(f"/{quote(part or '', safe='')}" for part in parts)


class ModelLink(_PageLink):
    """The model's page."""

    name = "Model"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name."""
        return _page("models", found.get("name"))


class GateLink(_PageLink):
    """The gate's page of a version."""

    name = "Gate"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and the version."""
        return _page("models", found.get("name"), "gate", found.get("version"))


class EvaluationLink(_PageLink):
    """The evaluation's page of a model."""

    name = "Evaluation"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and its id."""
        return _page("models", found.get("name"), "evaluation", found.get("model_id"))


class SearchLink(_PageLink):
    """The page of a search for hyper-parameters."""

    name = "Search"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and the search's id."""
        return _page("models", found.get("name"), "search", found.get("search_id"))


class SamplingLink(_PageLink):
    """The page of the curve that a sampling rate was chosen by."""

    name = "Sampling curve"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and the day of the curve, which its folder is named by."""
        return _page("models", found.get("name"), "sample", found.get("curve", "").rstrip("/").rpartition("/")[2])


class NightLink(_PageLink):
    """The drift report's page of a night."""

    name = "Drift report"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and the day."""
        return _page("models", found.get("name"), "nights", found.get("day"))


class PerformanceLink(_PageLink):
    """The page of a night's performance."""

    name = "Performance"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and the day."""
        return _page("models", found.get("name"), "performance", found.get("day"))


class DecisionLink(_PageLink):
    """The page of what was decided on a night."""

    name = "Decision"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and the day."""
        return _page("models", found.get("name"), "decisions", found.get("day"))


class CostLink(_PageLink):
    """The page of what a run cost."""

    name = "Costs"

    def address(self, found: Mapping[str, str]) -> str:
        """By what the report stands with, and the run."""
        return _page("models", found.get("name"), "costs", found.get("costs"))


class LineageLink(_PageLink):
    """The page of a report on lineage."""

    name = "Lineage"

    def address(self, found: Mapping[str, str]) -> str:
        """By the model's name and what the report is of."""
        return _page("models", found.get("name"), "lineage", found.get("lineage"))


class ConsoleLink(BaseOperatorLink):
    """The job's page at the service that runs it, as soon as it runs there."""

    name = "Console"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The address that the task put into XCom when it had submitted the job; empty before, and where is none."""
        from airflow.sdk.execution_time.xcom import XCom

        return str(XCom.get_value(ti_key=ti_key, key=CONSOLE) or "")


class MlflowLink(_PageLink):
    """MLflow's own page of a version, where the registry is a server; an embedded one has no page."""

    name = "MLflow"

    def address(self, found: Mapping[str, str]) -> str:
        """By the registry's address, the model's name and the version."""
        try:
            parts = urlsplit(found.get("registry", ""))
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return ""
        if parts.scheme not in ("http", "https") or not parts.hostname or not {"name", "version"} <= set(found):
            return ""
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # the user's part is left out
        model, version = quote(found["name"], safe=""), quote(found["version"], safe="")
        return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}/#/models/{model}/versions/{version}"
