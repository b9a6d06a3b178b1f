"""What a person may say when a DAG of a model is triggered by hand: typed fields with help texts and defaults.

Airflow draws its form of them and refuses what does not fit. Every field has a default, so that a run can be started
without touching any.
"""

from __future__ import annotations

from airflow.sdk import Param

from airflow_provider_sml.operators.decision import CHOICES
from airflow_provider_sml.operators.monitoring import MOST_NIGHTS
from airflow_provider_sml.operators.training_services import SERVICES
from airflow_provider_sml.pipelines.spec import PipelineSpec, Train

_TARGETS = {
    "local": "a server on the machine of the task",
    "sagemaker": "an endpoint of SageMaker",
    "vertex": "an endpoint of Vertex AI",
}
_CLUSTERS = {
    "local": "in the task's own process",
    "processes": "worker processes on the task's machine",
    "cuda": "a worker for each GPU of the task's machine",
}


def day(title: str, description: str) -> Param:
    """A day that may be left empty."""
    return Param(None, type=["string", "null"], format="date", title=title, description=description)


def ingest_params() -> dict[str, Param]:
    """The days to ingest."""
    return {
        "first_day": day("First day", "Of a range, ingested in one Spark job. Empty: the last day alone, or without "
                         "one the days that just ended."),
        "last_day": day("Last day", "Inclusive. Empty: the first day alone."),
    }  # fmt: skip


def train_params(spec: PipelineSpec) -> dict[str, Param]:
    """The last day of data; where there is a choice, the share of the rows and the cluster."""
    params = {"as_of": day("As of", "The last day of data to use. Empty: the last published day.")}
    if spec.sample.method != "all":
        params["rate"] = _rate(spec)
    if clusters := training_clusters(spec.train):
        told = "; ".join(f"{name}: {_CLUSTERS.get(name, 'the Dask of that connection')}" for name in clusters)
        params["cluster"] = Param(
            spec.train.cluster, type="string", enum=clusters, title="Training cluster",
            description=f"Where the workers run ({told}). Others need their settings in the spec.",
        )  # fmt: skip
    return params


def training_clusters(train: Train) -> list[str]:
    """Where a single training may run: where the spec says, or on the machine of its task; empty without a choice.

    A cluster that is made for the task and a service that trains by itself have settings, spare capacity and prices
    that fit nothing else.

    :param train: of the spec.
    """
    if not isinstance(train.place, str) or train.cluster in SERVICES:
        return []
    one = train.workers == 1 and (train.search is None or train.search.parallel == 1)  # local has one worker
    clusters = list(dict.fromkeys([train.cluster, *(["local"] if one else []), "processes"]))
    return clusters if len(clusters) > 1 else []


def _rate(spec: PipelineSpec) -> Param:
    """The share of the rows that the sample keeps."""
    auto = spec.sample.rate == "auto"
    share = f"the {', '.join(spec.sample.by)}, all rows of each" if spec.sample.method == "hash" else "the rows"
    return Param(
        None if auto else spec.sample.rate, type=["number", "null"] if auto else "number", exclusiveMinimum=0,
        maximum=1, title="Sample rate",
        description=f"Share of {share}, to train on; 1 for all." + (" Empty: planned." if auto else ""),
    )  # fmt: skip


def deploy_params(spec: PipelineSpec) -> dict[str, Param]:
    """The version, where to, and whether it is only tried on paper."""
    targets = list(dict.fromkeys([spec.deploy.target, "local"]))
    told = "; ".join(f"{target}: {_TARGETS[target]}" for target in targets)
    return {
        "version": Param(
            None, type=["string", "null"], pattern=r"^\d+$", title="Version",
            description="Number of the version to deploy, for instance an older one to go back to. Empty: the one that "
                        "passed last.",
        ),
        "target": Param(
            spec.deploy.target, type="string", enum=targets, title="Target",
            description=f"Where it is to serve ({told}). Others need their settings in the spec.",
        ),
        "dry_run": Param(
            False, type="boolean", title="Dry run",
            description="Only write into the task's log what would be done and what it would cost; the task is then "
                        "skipped, and nothing is changed.",
        ),
    }  # fmt: skip


def monitor_params() -> dict[str, Param]:
    """The days to look at, and a person's word on training."""
    return {
        "day": day("Day", "A published day to look at, again or for the first time, or the first of several. Empty: "
                   "the days that started this run, or without them the last published one."),
        "last_day": day("Last day", f"Inclusive; the last {MOST_NIGHTS} days of a range are looked at. Empty: the day "
                        "alone."),
        "retraining": Param(
            None, type=["string", "null"], enum=[None, *CHOICES], title="Retraining",
            values_display={"null": "as decided"},
            description="hold: this night asks for no training. force: it does, whatever was found. auto: takes back "
                        "what was said of it before.",
        ),
    }  # fmt: skip
