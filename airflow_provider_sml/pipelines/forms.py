"""What a person may say when a DAG of a model is triggered by hand: typed fields with help texts and defaults.

Airflow draws its form of them and refuses what does not fit. Every field has a default, so that a run can be started
without touching any.
"""

from __future__ import annotations

from airflow.sdk import Param

from airflow_provider_sml.operators.decision import CHOICES
from airflow_provider_sml.operators.monitoring import MOST_NIGHTS
from airflow_provider_sml.pipelines.spec import PipelineSpec

_TARGETS = {
    "local": "a server on the machine of the task",
    "sagemaker": "an endpoint of SageMaker",
    "vertex": "an endpoint of Vertex AI",
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
    """The last day of data, and the share of the rows where the spec draws a sample."""
    params = {"as_of": day("As of", "The last day of data to use. Empty: the last published day.")}
    if spec.sample.method == "all":
        return params
    auto = spec.sample.rate == "auto"
    share = f"the {', '.join(spec.sample.by)}, all rows of each" if spec.sample.method == "hash" else "the rows"
    params["rate"] = Param(
        None if auto else spec.sample.rate, type=["number", "null"] if auto else "number", exclusiveMinimum=0,
        maximum=1, title="Sample rate",
        description=f"Share of {share}, to train on; 1 for all." + (" Empty: planned." if auto else ""),
    )  # fmt: skip
    return params


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
            description="hold: this night asks for no training. force: it does, whatever was found. auto: takes back "
                        "what was said of it before. Empty: as decided.",
        ),
    }  # fmt: skip
