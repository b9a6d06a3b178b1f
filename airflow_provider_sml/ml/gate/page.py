"""The verdict as one HTML page, and as the few lines of Markdown that a person decides by."""

from __future__ import annotations

from airflow_provider_sml.ml.gate.verdict import Verdict
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.refs import ApprovalRef

#: Passed checks that the form shows; a failed one is always shown.
_MOST_SHOWN = 30


def verdict_page(verdict: Verdict, approval: ApprovalRef | None = None) -> str:
    """The page as HTML.

    :param verdict: what the gate said.
    :param approval: what a person decided; None where nobody was asked, or has not answered.
    """
    page = Page(f"Gate of {verdict.name} version {verdict.version}")
    passed = len(verdict.checks) - len(verdict.failed)
    word = "Passed" if verdict.passed else "Not passed"
    page.text(f"{word}: {passed} of {len(verdict.checks)} checks.", "good" if verdict.passed else "bad")
    if approval is not None:
        said = f"{_decided(approval)}{f': {approval.comment}' if approval.comment else ''}"
        page.text(f"{said}.", "good" if approval.decision == "approved" else "bad")
    page.table(
        ["Check", "", "Found", "Asked for", "To do"],
        [(c.name, "✓" if c.passed else "✗", c.value, c.limit, "" if c.passed else c.todo) for c in verdict.checks],
    )
    for note in verdict.notes:
        page.text(note, "note")
    against = f", beside champion version {verdict.champion}" if verdict.champion else ""
    return page.text(f"Model {verdict.model_id}{against}, judged at {verdict.time}.", "note").render()


def _decided(approval: ApprovalRef) -> str:
    if approval.decision == "unanswered":
        return f"Nobody had answered by {approval.time}"
    who = f"by {approval.by}" if approval.by else "because nobody answered in time,"
    return f"{approval.decision.capitalize()} {who} at {approval.time}"


def verdict_markdown(verdict: Verdict, link: str = "") -> str:
    """The evidence as Markdown, for the form in which a person decides.

    :param verdict: what the gate said.
    :param link: address of the page; empty for none.
    """
    failed = len(verdict.failed)
    lines = [
        f"**{verdict.name} version {verdict.version}**: {len(verdict.checks) - failed} of {len(verdict.checks)} "
        f"checks passed. Champion now: {f'version {verdict.champion}' if verdict.champion else 'none'}.",
        "",
        "| Check | | Found | Asked for |",
        "|---|---|---|---|",
    ]
    shown = [*verdict.failed, *[check for check in verdict.checks if check.passed][:_MOST_SHOWN]]
    lines += [
        f"| {_cell(check.name)} | {'✓' if check.passed else '✗'} | {_cell(check.value)} | {_cell(check.limit)} |"
        for check in shown
    ]
    if len(shown) < len(verdict.checks):
        lines += ["", f"{len(verdict.checks) - len(shown)} more checks passed; the page shows them all."]
    lines += ["", f"Model {verdict.model_id}, judged at {verdict.time}."]
    return "\n".join([*lines, "", f"[The whole evidence]({link})"] if link else lines)


def _cell(text: str) -> str:
    """Text of a cell: what comes from data may not make markup."""
    for sign in "\\`*_[]<>|!#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
