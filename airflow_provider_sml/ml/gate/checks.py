"""The checks on an evaluation: limits of measures, the champion on the same rows, recalibration, the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml.gate import slices
from airflow_provider_sml.ml.gate.settings import MEASURES
from airflow_provider_sml.ml.gate.verdict import Check

_UNMEASURED = "was not measured"
_NAMES = {"auc": "auc", "log_loss": "log loss", "brier": "brier", "ece": "calibration"}
_TODO = {
    "auc": "train on more days or better features; look at the slices",
    "log_loss": "look at the calibration first, then at features and days",
    "brier": "look at the calibration first, then at features and days",
    "ece": "the scores are no probabilities: train on days more like the test window, or recalibrate",
    "own": "look at what this metric counts, and train by it: train.metrics, or the class weights",
}


def checks(
    evaluation: Mapping[str, Any], settings: Mapping[str, Any], rival: str | None, folder: Path | None
) -> Iterator[Check]:
    """All checks on an evaluation.

    :param evaluation: the content of ``evaluation.json``.
    :param settings: the gate of the spec.
    :param rival: the version in production, when it is another one.
    :param folder: where the evaluation lies, with its predictions.
    """
    for measure in MEASURES:
        # AUC has a limit always: a model that ranks no better than chance is never deployed.
        wanted = settings.get(measure) or ({"min": 0.5} if measure == "auc" else {})
        yield from _limits(measure, evaluation.get(measure), wanted)
        if wanted.get("not_worse_than"):
            yield _against_champion(measure, evaluation.get("champion"), wanted, rival, measure == "auc")
    yield from _own(evaluation, settings.get("own") or {}, rival)
    yield _recalibration(evaluation.get("recalibration"))
    if baseline := settings.get("baseline"):
        yield _against_baseline(evaluation.get("baseline"), baseline)
    if wanted := settings.get("slices"):
        yield from slices.limits(evaluation.get("slices") or [], wanted)
        if wanted.get("not_worse_than"):
            yield from _slices_against_champion(evaluation, wanted, rival, folder)


def _shown(interval: Mapping[str, float], sign: str = "") -> str:
    return f"{interval['value']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"


def _limits(measure: str, found: Mapping[str, float] | None, wanted: Mapping[str, Any]) -> Iterator[Check]:
    """The interval's worse end against the limit. Of the ECE it is the value: chance moves its interval upward."""
    if measure == "auc":
        minimum = 0.5 if wanted.get("min") is None else float(wanted["min"])
        value, good = _UNMEASURED if found is None else _shown(found), found is not None and found["low"] >= minimum
        yield Check("auc", good, value, f"lower end at least {minimum:g}", _TODO["auc"])
    elif (most := wanted.get("max")) is not None:
        end, words = ("value", "at most") if measure == "ece" else ("high", "upper end at most")
        title = "ECE " if measure == "ece" else ""
        value = _UNMEASURED if found is None else f"{title}{_shown(found)}"
        yield Check(
            _NAMES[measure], found is not None and found[end] <= most, value, f"{words} {most:g}", _TODO[measure]
        )


def _own(evaluation: Mapping[str, Any], settings: Mapping[str, Any], rival: str | None) -> Iterator[Check]:
    """Metrics of one's own, each in the direction that its spec tells."""
    measured = {metric["function"]: metric for metric in evaluation.get("own") or []}
    for name, wanted in settings.items():
        found = measured.get(name)
        value = _UNMEASURED if found is None else _shown(found)
        todo = f"name {name} in train.metrics" if found is None else _TODO["own"]
        if (least := wanted.get("min")) is not None:
            good = found is not None and found["low"] >= least
            yield Check(name, good, value, f"lower end at least {least:g}", todo)
        if (most := wanted.get("max")) is not None:
            good = found is not None and found["high"] <= most
            yield Check(name, good, value, f"upper end at most {most:g}", todo)
        if wanted.get("not_worse_than"):
            if found is None:
                yield Check(f"{name} against champion", False, value, "not worse than the champion", todo)
            else:
                rising = found["higher_is_better"]
                yield _against_champion(name, evaluation.get("champion"), wanted, rival, rising)


def _recalibration(found: Mapping[str, Any] | None) -> Check:
    """The model must carry the correction that its sample asks for; one that says nothing of it is not trusted."""
    model, sample = (found or {}).get("model"), (found or {}).get("sample")
    return Check(
        "recalibration",
        model is not None and model == sample,
        "not recorded" if model is None else f"odds times {model:g}",
        "as the sample was drawn" if sample is None else f"odds times {sample:g}, as the sample was drawn",
        "train the model with this version of airflow-provider-sml",
    )


def _against_champion(
    measure: str, compared: Mapping[str, Any] | None, wanted: Mapping[str, Any], rival: str | None, rising: bool
) -> Check:
    """Non-inferiority: the 95 % interval of the paired difference must lie on the good side of the margin.

    :param measure: name in the comparison.
    :param compared: the evaluation's comparison.
    :param wanted: settings of the measure.
    :param rival: the version in production, when it is another one.
    :param rising: whether more is better.
    """
    name, margin = f"{_NAMES.get(measure, measure)} against champion", wanted.get("margin") or 0.0
    limit = f"lower end of the difference at least {-margin:g}"
    if not rising:
        limit = f"upper end of the difference at most {margin:g}"
    todo = "keep the champion; look at what the new training days lack"
    if problem := _not_comparable(compared, rival):
        return Check(name, False, problem[0], limit, problem[1])
    if compared is None:
        return Check(name, True, "there is no other champion", limit, todo)
    gap = compared["difference"].get(measure)
    if gap is None:
        return Check(name, False, _UNMEASURED, limit, "evaluate again with this version of airflow-provider-sml")
    good = gap["low"] >= -margin if rising else gap["high"] <= margin
    return Check(name, good, f"{_shown(gap, '+')} against version {compared['version']}", limit, todo)


def _not_comparable(compared: Mapping[str, Any] | None, rival: str | None) -> tuple[str, str] | None:
    """Why there is no comparison with the version that is in production now, and what to do."""
    if rival is not None and (compared is None or compared["version"] != rival):
        found = "was compared with none" if compared is None else f"was compared with version {compared['version']}"
        return f"{found}; version {rival} is the champion", "evaluate again"
    if compared is not None and not compared["comparable"]:
        return f"version {compared['version']} needs {', '.join(compared['missing'])}", "keep those columns"
    return None


def _slices_against_champion(
    evaluation: Mapping[str, Any], wanted: Mapping[str, Any], rival: str | None, folder: Path | None
) -> Iterator[Check]:
    compared = evaluation.get("champion")
    name, group = "slices against champion", "slices.champion"
    if problem := _not_comparable(compared, rival):
        yield Check(name, False, problem[0], "no significant loss", problem[1], group)
    elif compared is None:
        yield Check(name, True, "there is no other champion", "no significant loss", "", group)
    else:
        yield from slices.against_champion(evaluation.get("predictions"), folder, wanted, compared["version"])


def _against_baseline(baseline: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Check:
    margin = wanted.get("margin") or 0.0
    limit = f"lower end of the difference at least {margin:g}"
    todo = "a table of rates does as well: give the model better features"
    if baseline is None:
        return Check("baseline", False, _UNMEASURED, limit, "evaluate with a baseline")
    gap = baseline["difference"]["auc"]
    return Check("baseline", gap["low"] >= margin, f"{_shown(gap, '+')} against {baseline['auc']:.4f}", limit, todo)
