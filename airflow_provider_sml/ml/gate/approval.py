"""What a person decided on a verdict, kept beside it: ``approval.json``, and a line on its page."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_provider_sml.errors import SmlError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.gate.page import verdict_page
from airflow_provider_sml.ml.gate.verdict import APPROVAL_FILE, PAGE_FILE, Verdict
from airflow_provider_sml.refs import ApprovalRef


def record_approval(folder: Path, verdict: Verdict, approval: ApprovalRef) -> None:
    """Keep a decision.

    :param folder: of the verdict.
    :param verdict: what was decided on.
    :param approval: the decision.
    """
    kept = {"judged": verdict.time, "approval": approval.to_xcom()}
    storage.write(folder / APPROVAL_FILE, json.dumps(kept, indent=1))
    storage.write(folder / PAGE_FILE, verdict_page(verdict, approval))


def kept_approval(folder: Path, verdict: Verdict) -> ApprovalRef | None:
    """The decision on this very verdict; None when there is none, or none that can be read.

    :param folder: of the verdict.
    :param verdict: what was decided on.
    """
    try:
        kept = json.loads((folder / APPROVAL_FILE).read_text())
        return ApprovalRef.load(kept["approval"]) if kept["judged"] == verdict.time else None
    except (OSError, ValueError, LookupError, TypeError, SmlError):
        return None


def forget_approval(folder: Path) -> None:
    """Remove a decision, because the question is asked anew.

    :param folder: of the verdict.
    """
    (folder / APPROVAL_FILE).unlink(missing_ok=True)
