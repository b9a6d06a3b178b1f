"""The gate: a version is deployed only when every check passes; missing evidence fails.

Most checks read the evaluation that was made at training, and the predictions kept with it; size, parity and latency
are measured on the stored model. The verdict is written as ``gate.json`` and as a page that says of each check its
value, its limit and what to do.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.gate import served as stored_model
from airflow_provider_sml.ml.gate.approval import forget_approval, kept_approval, record_approval
from airflow_provider_sml.ml.gate.checks import checks as evaluation_checks
from airflow_provider_sml.ml.gate.page import verdict_page
from airflow_provider_sml.ml.gate.served import Served
from airflow_provider_sml.ml.gate.settings import SERVED, check_settings
from airflow_provider_sml.ml.gate.verdict import PAGE_FILE, Check, Verdict
from airflow_provider_sml.refs import ModelVersionRef, VerdictRef

__all__ = [
    "SERVED",
    "Check",
    "Served",
    "Verdict",
    "check_settings",
    "forget_approval",
    "judge",
    "kept_approval",
    "record_approval",
]


def judge(
    version: ModelVersionRef,
    evaluation: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path,
    champion: str | None = None,
    *,
    evidence: Path | None = None,
    served: Served | None = None,
) -> VerdictRef:
    """Check a version and write the verdict.

    :param version: the version.
    :param evaluation: its ``evaluation.json``.
    :param settings: the gate of the spec: ``auc``, ``log_loss``, ``brier``, ``ece``, ``own``, ``baseline``, ``slices``,
        ``parity``, ``size``, ``latency``.
    :param folder: where the verdict is written.
    :param champion: the version in production now; None when there is none.
    :param evidence: the evaluation's folder, in which its predictions lie, by which slices are held against the
        champion.
    :param served: what was measured of the stored model; None when nothing was.
    :raises ConfigurationError: when the settings name what is no check: it would pass unseen.
    """
    check_settings(settings)
    # A champion that is judged again, because its training was repeated, stands as it was compared then.
    rival = None if champion == version.version else champion
    checks = [*_identity(version, evaluation), *evaluation_checks(evaluation, settings, rival, evidence)]
    checks += stored_model.checks(served, settings)
    verdict = Verdict(
        name=version.name,
        version=version.version,
        model_id=version.model_id,
        champion=rival,
        checks=tuple(checks),
        notes=tuple(_notes(evaluation, settings, served)),
        time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    verdict.write(folder)
    forget_approval(folder)  # what was decided on an earlier verdict does not stand for this one
    storage.write(folder / PAGE_FILE, verdict_page(verdict))
    return VerdictRef(
        name=version.name,
        version=version.version,
        passed=verdict.passed,
        checks=len(checks),
        failed=[check.name for check in verdict.failed],
        uri=str(folder),
    )


def _identity(version: ModelVersionRef, evaluation: Mapping[str, Any]) -> Iterator[Check]:
    if evaluation.get("model_id") != version.model_id:
        found, wanted = f"of model {evaluation.get('model_id')}", f"of model {version.model_id}"
        yield Check("evidence", False, found, wanted, "evaluate this very model")


def _notes(evaluation: Mapping[str, Any], settings: Mapping[str, Any], served: Served | None) -> Iterator[str]:
    """What was not judged, and how things were measured."""
    wanted = settings.get("slices") or {}
    for small in evaluation.get("slices_not_measured") or []:
        if small["column"] in wanted.get("by", []):
            yield (
                f"Not judged: {small['rows']:,} rows in {small['values']:,} values of {small['column']}, each below "
                f"{evaluation.get('min_rows', wanted.get('min_rows'))} rows."
            )
    if served is not None and served.requests:
        yield stored_model.note(served)
    yield "In brackets: 95 % bootstrap intervals; differences are paired, both models on the same rows of each draw."
