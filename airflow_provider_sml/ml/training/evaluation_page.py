"""The evaluation as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.ml.training.toll import told

_NAMES = {"auc": "AUC", "log_loss": "Log loss", "brier": "Brier score", "ece": "Expected calibration error"}
#: Slices that were too small, of one column, that the page names.
_MOST_SMALL = 20


def evaluation_page(result: Mapping[str, Any], pictures: Mapping[str, tuple[str, str]]) -> str:
    """The page as HTML.

    :param result: the content of ``evaluation.json``.
    :param pictures: heading and SVG by name.
    """
    page = Page(f"Evaluation of {result['model']}")
    test = result["splits"]["test"]
    page.text(f"Model {result['model_id']} on {result['rows']:,} rows from {test['from']} to {test['to']}.")
    page.table(["Measure", "Value"], _measures(result))
    page.text("In brackets: 95 % bootstrap intervals.", "note")
    _champion(page, result["champion"])
    if (toll := result["toll"]).get("interruptions"):
        page.text(f"The training survived {toll['interruptions']} interruptions. {told(toll).capitalize()}.")
    _splits(page, result)
    for name, (heading, svg) in pictures.items():
        page.heading(heading).figure(svg)
        if name == "calibration":
            _calibration(page, result)
        elif name == "lift":
            _lift(page, result)
    if "by_time" not in pictures:
        page.heading("By time")
    _by_time(page, result["by_time"])
    _slices(page, result)
    return page.render()


def _shown(interval: Mapping[str, float], sign: str = "") -> str:
    return f"{interval['value']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"


def _measures(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [(title, _shown(result[name])) for name, title in _NAMES.items()]
    rows += [
        (f"{own['function']} ({'higher' if own['higher_is_better'] else 'lower'} is better)", _shown(own))
        for own in result["own"]
    ]
    rows += [("Label rate", result["label_rate"]), ("Mean score", result["mean_score"])]
    moved = result["recalibration"]
    if moved["reliability_before"] is not None:
        before = f"before recalibration by {moved['model']:g}"
        rows += [
            (f"ECE {before}", moved["ece_before"]), (f"Log loss {before}", moved["log_loss_before"]),
            (f"Mean score {before}", moved["mean_score_before"]),
        ]  # fmt: skip
    if baseline := result["baseline"]:
        rows.append((f"AUC of the rates by {' and '.join(baseline['by'])}", baseline["auc"]))
        rows.append(("AUC minus that of the rates", _shown(baseline["difference"]["auc"], "+")))
    return rows


def _champion(page: Page, champion: Mapping[str, Any] | None) -> None:
    """How far the model lies from the champion, measure by measure."""
    if champion is None:
        return
    page.heading(f"Against champion version {champion['version']}")
    if not champion["comparable"]:
        page.text(
            f"Not compared with champion {champion['version']}: the test rows lack {', '.join(champion['missing'])}.",
            "bad",
        )
        return
    page.table(
        ["Measure", "Champion", "This model minus the champion"],
        [
            (_NAMES.get(name, name), champion.get(name), _shown(gap, "+"))
            for name, gap in champion["difference"].items()
        ],
    )
    page.text("On the same rows, by a paired bootstrap. Of log loss, Brier score and ECE less is better.", "note")


def _splits(page: Page, result: Mapping[str, Any]) -> None:
    page.heading("Windows")
    page.table(
        ["Split", "From", "To", "Rows"],
        [(split, part["from"], part["to"], part["rows"]) for split, part in result["splits"].items()],
    )
    if result["groups"]:
        groups = ", ".join(result["groups"])
        page.text(f"The splits are of entities ({groups}): they share the days, and no entity.", "note")
    else:
        page.text("The splits are of days: no day is in two of them.", "note")


def _calibration(page: Page, result: Mapping[str, Any]) -> None:
    moved = result["recalibration"]
    if moved["reliability_before"] is not None:
        page.text(f"After recalibration, which multiplied the odds by {moved['model']:g}:")
        _reliability(page, result["reliability"])
        page.text("Before it:")
    _reliability(page, moved["reliability_before"] or result["reliability"])


def _reliability(page: Page, buckets: list[dict[str, Any]]) -> None:
    page.table(
        ["Scores", "Rows", "Mean score", "Observed rate"],
        [(f"{b['from']:.1f} to {b['to']:.1f}", b["rows"], b["score"], b["rate"]) for b in buckets],
    )


def _lift(page: Page, result: Mapping[str, Any]) -> None:
    page.table(
        ["Rows by score", "Rows", "Scores", "Positives", "Rate", "Lift", "Gain"],
        [
            (
                f"part {p['part']} of {len(result['lift'])}",
                p["rows"],
                f"{p['score_from']:.4f} to {p['score_to']:.4f}",
                f"{p['positives']:,.1f}",
                p["rate"],
                p["lift"],
                p["gain"],
            )
            for p in result["lift"]
        ],
    )


def _by_time(page: Page, found: Mapping[str, Any]) -> None:
    page.table(
        [found["unit"].capitalize(), "Rows", "Label rate", "Mean score", "AUC", "Log loss", "ECE"],
        [
            (
                p["from"] if p["from"] == p["to"] else f"{p['from']} to {p['to']}",
                p["rows"],
                p["label_rate"],
                p["mean_score"],
                None if p["auc"] is None else _shown(p["auc"]),
                p["log_loss"],
                p["ece"],
            )
            for p in found["windows"]
        ],
    )
    if any(part["label_rate"] is None for part in found["windows"]):
        page.text(f"A {found['unit']} with fewer than {found['min_rows']:,} rows is not measured.", "note")


def _slices(page: Page, result: Mapping[str, Any]) -> None:
    page.heading("Slices")
    page.table(
        ["Slice", "Rows", "Label rate", "Mean score", "AUC", "Log loss", "ECE"],
        [
            (f"{s['column']} = {s['value']}", s["rows"], s["label_rate"], s["mean_score"], s["auc"], s["log_loss"],
             s["ece"])
            for s in result["slices"]
        ],
    )  # fmt: skip
    for small in result["slices_not_measured"]:
        named = small["largest"][:_MOST_SMALL]
        page.text(
            f"Not measured, because they have fewer than {result['min_rows']:,} rows: {small['values']:,} values of "
            f"{small['column']} with {small['rows']:,} rows together"
            + (f"; the {len(named)} largest:" if len(named) < small["values"] else ":")
        )
        page.table(["Slice", "Rows"], [(f"{small['column']} = {part['value']}", part["rows"]) for part in named])
