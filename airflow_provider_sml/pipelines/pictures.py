"""What each DAG does, drawn in text for its page in Airflow; with the names and numbers of the spec."""

from __future__ import annotations

from airflow_provider_sml.pipelines.spec import PipelineSpec
from airflow_provider_sml.pipelines.spec_gate import Approval


def picture(stage: str, spec: PipelineSpec) -> str:
    """The picture of a DAG.

    :param stage: ``ingest``, ``train``, ``deploy`` or ``monitor``.
    :param spec: of the model.
    """
    return {"ingest": _ingest, "train": _train, "deploy": _deploy, "monitor": _monitor}[stage](spec)


def nights(spec: PipelineSpec) -> str:
    """How many nights must have drifted before something is done."""
    wanted, of = spec.monitor.drift.nights
    return "the night" if of == 1 else f"{wanted} of the last {of} nights"


def _draw(*steps: str) -> str:
    """Things and what is done to them in turn, from top to bottom."""
    lines = [steps[0]]
    for work, thing in zip(steps[1::2], steps[2::2], strict=True):
        lines += [f"      |  {work}" if work else "      |", "      v", thing]
    return "\n".join(lines)


def _start(schedule: str | None) -> str:
    return f"starts: {schedule or 'by hand'}"


def _ingest(spec: PipelineSpec) -> str:
    limit = f"{100 * spec.contract.limits.bad_rows:g} %"
    steps = [
        _start(spec.schedule.ingest),
        "waits until they have landed",
        "raw files of the days",
        "Spark: cast, check, look up, derive features       --> bad rows: quarantine, with reasons",
        "staging",
        f"audit; more than {limit} of bad rows stop it here     --> readers keep the old rows",
        f"lake, table {spec.name}, one snapshot",
    ]
    steps += ["", "warehouse"] if spec.places.warehouse else []
    return _draw(*steps, "", f"{spec.name}_monitor" + ("" if spec.schedule.monitor else ", by hand"))


def _train(spec: PipelineSpec) -> str:
    train, sample, schedule = spec.train, spec.sample, spec.schedule.train
    starts = [schedule] if schedule else []
    starts += [f"drift, found by {spec.name}_monitor"] if spec.monitor.then == "retrain" else []
    rate = "a planned share" if sample.rate == "auto" else f"{100 * sample.rate:g} %"
    kept = "all" if sample.method == "all" else f"{rate} of {', '.join(sample.by) or 'the rows'}, {sample.method}"
    days = f"{train.window.days} days to train on ({kept}), {train.validate_.days} to stop early, "
    days += f"{train.test.days} to judge"
    search = []
    if train.search:
        search = [
            f"Optuna: {train.search.budget}, {train.search.parallel} at once",
            f"hyper-parameters: {', '.join(train.search.space)}",
        ]
    asked = []
    if spec.gate.approval != "none":
        asked = [_approval(spec.gate.approval), "approved version"]
    return _draw(
        _start(", or ".join(starts)),
        "",
        f"lake, table {spec.name}",
        days,
        "sample",
        *search,
        "XGBoost",
        "model",
        "evaluate on the last days, register in MLflow",
        "version, with its lineage",
        "gate: limits, champion, slices, the stored model   --> not passed: the task fails, nothing changes",
        "challenger",
        *asked,
        "",
        f"{spec.name}_deploy",
    )


def _approval(approval: Approval) -> str:
    """Who is asked, and what happens without an answer."""
    who = ", ".join(user if isinstance(user, str) else user.name for user in approval.by) or "a person"
    who = who if len(who) <= 40 else f"one of {len(approval.by)} people"
    without = ""
    if approval.within is not None:
        ends = {"reject": "rejected", "approve": "approved", "fail": "the task fails"}[approval.on_no_answer]
        without = f"; no answer in {approval.within.total_seconds() / 3600:g} h: {ends}"
    return f"{who} decides{without}"


def _deploy(spec: PipelineSpec) -> str:
    return _draw(
        _start("a version that passed the gate"),
        "",
        "version",
        "started beside the one that serves",
        f"candidate, which scores {spec.deploy.parity_rows} stored rows",
        "agrees with training, is healthy                   --> if not: the one that serves stays",
        f"endpoint on port {spec.deploy.port}",
        "",
        "champion",
    )


def compared_with(spec: PipelineSpec) -> str:
    """What nights are compared with, in words."""
    reference = spec.monitor.reference
    return "the rows of training" if reference == "training" else f"other days ({reference})"


def _monitor(spec: PipelineSpec) -> str:
    follows = f"alert, and {spec.name}_train" if spec.monitor.then == "retrain" else "alert"
    profiled = ["day and score", "Spark: what has no profile yet"] if spec.monitor.profile_in == "spark" else []
    return _draw(
        _start("each published day" if spec.schedule.monitor else None),
        "",
        f"lake, table {spec.name}: the day",
        "score with the champion                            --> lake, predictions",
        *profiled,
        f"day and score against {compared_with(spec)}",
        f"drift when {100 * spec.monitor.drift.share:g} % of the columns moved",
        "report, as HTML and as JSON",
        f"{nights(spec)} drifted",
        follows,
    )
