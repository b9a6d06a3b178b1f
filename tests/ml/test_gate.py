"""The gate: every check at its limit, missing evidence, settings that name no check, and what is written."""

import json

import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.gate import judge
from airflow_provider_sml.refs import ModelVersionRef

VERSION = ModelVersionRef("sqlite:///x", "orders", "2", "run", "m2")
GAP = {"value": 0.0, "low": -0.01, "high": 0.01}
EVALUATION = {
    "model_id": "m2",
    "auc": {"value": 0.75, "low": 0.7, "high": 0.8},
    "ece": {"value": 0.05, "low": 0.05, "high": 0.07},
    "recalibration": {"model": 1.0, "sample": 1.0},
    "baseline": {"auc": 0.6, "difference": {"auc": {"value": 0.15, "low": 0.1, "high": 0.2}}},
    "champion": {"version": "1", "comparable": True, "auc": 0.75, "difference": {"auc": GAP}},
    "slices": [
        {"column": "city", "value": "Bern", "rows": 100, "auc": 0.6},
        {"column": "city", "value": "Oslo", "rows": 20, "auc": 0.4},
        {"column": "shop", "value": "a", "rows": 90, "auc": None},
    ],
}
RIVAL = {"auc": {"not_worse_than": "champion", "margin": 0.01}}


def check(folder, settings, rival="1", **changes):
    """Names and outcomes of the checks."""
    verdict = judge(VERSION, EVALUATION | changes, settings, folder, rival)
    written = json.loads((folder / "gate.json").read_text())
    assert written["passed"] == verdict.passed and len(written["checks"]) == verdict.checks
    assert [c["name"] for c in written["checks"] if not c["passed"]] == verdict.failed
    return {c["name"]: c["passed"] for c in written["checks"] if c["name"] != "recalibration"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"auc": True}),
        ({"auc": {"min": 0.7}}, {"auc": True}),
        ({"auc": {"min": 0.701}}, {"auc": False}),
        ({"ece": {"max": 0.05}}, {"auc": True, "calibration": True}),
        ({"ece": {"max": 0.049}}, {"auc": True, "calibration": False}),
        ({"baseline": {"margin": 0.1}}, {"auc": True, "baseline": True}),
        ({"baseline": {"margin": 0.11}}, {"auc": True, "baseline": False}),
        (RIVAL, {"auc": True, "champion": True}),
        ({"auc": {"not_worse_than": "champion", "margin": 0.009}}, {"auc": True, "champion": False}),
        (
            {"slices": {"by": ["city"], "min_rows": 20, "min_auc": 0.5}},
            {"auc": True, "slice city = Bern": True, "slice city = Oslo": False},
        ),
        ({"slices": {"by": ["city"], "min_rows": 21, "min_auc": 0.6}}, {"auc": True, "slice city = Bern": True}),
        ({"slices": {"by": ["city"], "min_rows": 101}}, {"auc": True, "slice city": False}),
        ({"slices": {"by": ["shop"], "min_rows": 1}}, {"auc": True, "slice shop = a": False}),
        ({"ece": None, "baseline": None, "slices": None, "later": None}, {"auc": True}),
    ],
)
def test_each_check_at_its_limit(tmp_path, settings, expected):
    assert check(tmp_path, settings) == expected


@pytest.mark.parametrize("missing", ["auc", "ece", "baseline", "slices", "champion"])
def test_missing_evidence_fails(tmp_path, missing):
    settings = {
        "auc": {"not_worse_than": "champion", "margin": 0.1}, "ece": {"max": 1}, "baseline": {"margin": 0},
        "slices": {"by": ["city"], "min_rows": 50},
    }  # fmt: skip
    assert all(check(tmp_path, settings).values())
    found = check(tmp_path, settings, **{missing: None})
    assert sum(not passed for passed in found.values()) == 1


@pytest.mark.parametrize("found", [None, {"model": None, "sample": 1.0}, {"model": 1.0, "sample": 0.5}])
def test_a_model_without_the_correction_of_its_sample_fails(tmp_path, found):
    assert judge(VERSION, EVALUATION | {"recalibration": found}, {}, tmp_path).failed == ["recalibration"]


@pytest.mark.parametrize("part", ["auc", "ece"])
def test_what_is_no_number_fails(tmp_path, part):
    nan = float("nan")
    value = {"value": nan, "low": nan, "high": nan}
    assert list(check(tmp_path, {"ece": {"max": 1}}, **{part: value}).values()).count(False) == 1


def test_the_evidence_must_be_of_this_model(tmp_path):
    assert check(tmp_path, {}, model_id="m1") == {"evidence": False, "auc": True}


# --- the champion -----------------------------------------------------------------------------------------------------


def test_without_a_champion_there_is_nothing_to_compare(tmp_path):
    assert check(tmp_path, RIVAL, rival=None) == {"auc": True, "champion": True}
    verdict = judge(VERSION, EVALUATION | {"champion": None}, RIVAL, tmp_path, None)
    assert verdict.passed and verdict.checks == 3


def test_a_comparison_with_an_earlier_champion_does_not_count(tmp_path):
    assert check(tmp_path, RIVAL, rival="9") == {"auc": True, "champion": False}
    assert "was compared with version 1; version 9 is the champion" in (tmp_path / "gate.html").read_text()


def test_an_evaluation_that_was_not_compared_does_not_pass_beside_a_champion(tmp_path):
    verdict = judge(VERSION, EVALUATION | {"champion": None}, RIVAL, tmp_path, "1")
    assert verdict.failed == ["champion"]


@pytest.mark.parametrize("compared", [EVALUATION["champion"], None])
def test_a_champion_that_is_judged_again_passes_by_what_it_was_judged_by(tmp_path, compared):
    assert judge(VERSION, EVALUATION | {"champion": compared}, RIVAL, tmp_path, VERSION.version).passed


def test_a_champion_that_cannot_be_compared_fails(tmp_path):
    lost = {"version": "1", "comparable": False, "missing": ["weather.rain"]}
    verdict = judge(VERSION, EVALUATION | {"champion": lost}, RIVAL, tmp_path, "1")
    assert verdict.failed == ["champion"]
    assert "version 1 needs weather.rain" in (tmp_path / "gate.html").read_text()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aucc": {"min": 0.9}}, "no aucc"),
        ({"auc": {"minimum": 0.9}}, "no minimum"),
        ({"auc": 0.9}, "no 0.9"),
        ({"auc": {"not_worse_than": "baseline"}}, "expected: champion; found: baseline"),
        ({"ece": {}}, None),
        ({"ece": {"max": None}}, "gate.ece lacks max"),
        ({"slices": {"min_auc": 0.5}}, "gate.slices lacks by"),
    ],
)
def test_settings_that_are_no_check_are_refused(tmp_path, settings, words):
    if words is None:  # an empty section asks for nothing
        assert check(tmp_path, settings) == {"auc": True}
        return
    with pytest.raises(ConfigurationError, match=words):
        judge(VERSION, EVALUATION, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_page_tells_what_to_do_and_escapes(tmp_path):
    slices = [{"column": "city", "value": "<script>x</script>", "rows": 50, "auc": 0.1}]
    verdict = judge(VERSION, EVALUATION | {"slices": slices}, {"slices": {"by": ["city"]}}, tmp_path)
    page = (tmp_path / "gate.html").read_text()
    assert not verdict.passed and "Not passed: 2 of 3 checks." in page
    assert "look at their features and labels" in page and "<script" not in page and "&lt;script&gt;" in page
    assert verdict.uri == str(tmp_path)


def test_judging_again_gives_the_same_verdict(tmp_path):
    one, two = (judge(VERSION, EVALUATION, RIVAL, tmp_path, "1") for _ in "12")
    assert one == two and sorted(path.name for path in tmp_path.iterdir()) == ["gate.html", "gate.json"]
