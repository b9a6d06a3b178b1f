"""The gate: every check at its limit, missing evidence, settings that name no check, and what is written."""

import dataclasses
import json

import pytest

from airflow_provider_sml.errors import ConfigurationError, IntegrityError
from airflow_provider_sml.ml.gate import Check, Served, Verdict, judge
from airflow_provider_sml.refs import ModelVersionRef

VERSION = ModelVersionRef("sqlite:///x", "orders", "2", "run", "m2")
GAP = {"value": 0.0, "low": -0.01, "high": 0.01}
EVALUATION = {
    "model_id": "m2",
    "auc": {"value": 0.75, "low": 0.7, "high": 0.8},
    "ece": {"value": 0.05, "low": 0.05, "high": 0.07},
    "log_loss": {"value": 0.5, "low": 0.45, "high": 0.55},
    "brier": {"value": 0.2, "low": 0.19, "high": 0.21},
    "own": [
        {"function": "m:cost", "higher_is_better": False, "value": 3.0, "low": 2.5, "high": 3.5},
        {"function": "m:won", "higher_is_better": True, "value": 7.0, "low": 6.5, "high": 7.5},
    ],
    "recalibration": {"model": 1.0, "sample": 1.0},
    "baseline": {"auc": 0.6, "difference": {"auc": {"value": 0.15, "low": 0.1, "high": 0.2}}},
    "champion": {
        "version": "1",
        "comparable": True,
        "auc": 0.75,
        "difference": {
            "auc": GAP,
            "log_loss": {"value": 0.01, "low": -0.02, "high": 0.04},
            "brier": GAP,
            "ece": GAP,
            "m:cost": {"value": 0.1, "low": -0.1, "high": 0.3},
            "m:won": {"value": 0.1, "low": -0.2, "high": 0.3},
        },
    },
    "slices": [
        {"column": "city", "value": "Bern", "rows": 100, "auc": 0.6},
        {"column": "city", "value": "Oslo", "rows": 20, "auc": 0.4},
        {"column": "shop", "value": "a", "rows": 90, "auc": None},
    ],
}
RIVAL = {"auc": {"not_worse_than": "champion", "margin": 0.01}}


def against(measure, margin):
    return {measure: {"not_worse_than": "champion", "margin": margin}}


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
        ({"log_loss": {"max": 0.55}}, {"auc": True, "log loss": True}),
        ({"log_loss": {"max": 0.549}}, {"auc": True, "log loss": False}),
        ({"brier": {"max": 0.21}}, {"auc": True, "brier": True}),
        ({"own": {"m:cost": {"max": 3.5}, "m:won": {"min": 6.5}}}, {"auc": True, "m:cost": True, "m:won": True}),
        ({"own": {"m:cost": {"max": 3.4}, "m:won": {"min": 6.6}}}, {"auc": True, "m:cost": False, "m:won": False}),
        ({"own": {"m:lost": {"max": 9}}}, {"auc": True, "m:lost": False}),
        ({"baseline": {"margin": 0.1}}, {"auc": True, "baseline": True}),
        ({"baseline": {"margin": 0.11}}, {"auc": True, "baseline": False}),
        (RIVAL, {"auc": True, "auc against champion": True}),
        ({"auc": {"not_worse_than": "champion", "margin": 0.009}}, {"auc": True, "auc against champion": False}),
        (against("log_loss", 0.04), {"auc": True, "log loss against champion": True}),
        (against("log_loss", 0.039), {"auc": True, "log loss against champion": False}),
        (against("brier", 0.01), {"auc": True, "brier against champion": True}),
        (against("ece", 0.009), {"auc": True, "calibration against champion": False}),
        ({"own": against("m:cost", 0.3)}, {"auc": True, "m:cost against champion": True}),
        ({"own": against("m:cost", 0.29)}, {"auc": True, "m:cost against champion": False}),
        ({"own": against("m:won", 0.2)}, {"auc": True, "m:won against champion": True}),
        ({"own": against("m:won", 0.19)}, {"auc": True, "m:won against champion": False}),
        ({"own": against("m:lost", 1)}, {"auc": True, "m:lost against champion": False}),
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
    assert check(tmp_path, RIVAL, rival=None) == {"auc": True, "auc against champion": True}
    verdict = judge(VERSION, EVALUATION | {"champion": None}, RIVAL, tmp_path, None)
    assert verdict.passed and verdict.checks == 3


def test_a_comparison_with_an_earlier_champion_does_not_count(tmp_path):
    assert check(tmp_path, RIVAL, rival="9") == {"auc": True, "auc against champion": False}
    assert "was compared with version 1; version 9 is the champion" in (tmp_path / "gate.html").read_text()


def test_an_evaluation_that_was_not_compared_does_not_pass_beside_a_champion(tmp_path):
    verdict = judge(VERSION, EVALUATION | {"champion": None}, RIVAL, tmp_path, "1")
    assert verdict.failed == ["auc against champion"]


@pytest.mark.parametrize("compared", [EVALUATION["champion"], None])
def test_a_champion_that_is_judged_again_passes_by_what_it_was_judged_by(tmp_path, compared):
    assert judge(VERSION, EVALUATION | {"champion": compared}, RIVAL, tmp_path, VERSION.version).passed


def test_a_champion_that_cannot_be_compared_fails(tmp_path):
    lost = {"version": "1", "comparable": False, "missing": ["weather.rain"]}
    verdict = judge(VERSION, EVALUATION | {"champion": lost}, RIVAL, tmp_path, "1")
    assert verdict.failed == ["auc against champion"]
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
        ({"brier": {"margin": 0.1}}, "gate.brier lacks max"),
        ({"own": {"m:cost": {"margin": 0.1}}}, "gate.own.m:cost lacks min or max"),
        ({"own": {"m:cost": {"most": 0.1}}}, "no most"),
        ({"latency": {"requests": 500}}, "gate.latency lacks p50 or p99"),
        ({"size": {"max": None}}, "gate.size lacks max"),
        ({"parity": {"through": "magic"}}, "expected: process or bundle; found: magic"),
        ({"slices": {"by": ["city"], "measure": "cost"}}, "auc or log_loss or brier or ece; found: cost"),
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


def test_the_verdict_is_frozen_and_comes_back_from_its_file(tmp_path):
    judge(VERSION, EVALUATION, RIVAL | {"ece": {"max": 0.01}}, tmp_path, "1")
    verdict = Verdict.read(tmp_path)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    assert (verdict.champion, verdict.passed, [c.name for c in verdict.failed]) == ("1", False, ["calibration"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.version = "3"
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.checks[0].passed = True


@pytest.mark.parametrize("spoil", [{"passed": True}, {"checks": []}, {"checks": [{"name": "auc"}]}, {"more": 1}])
def test_a_verdict_that_was_changed_by_hand_is_refused(tmp_path, spoil):
    judge(VERSION, EVALUATION, {"ece": {"max": 0.01}}, tmp_path)
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | spoil | ({"passed": True} if "checks" in spoil else {})))
    with pytest.raises(IntegrityError, match="the verdict is damaged"):
        Verdict.read(tmp_path)


def test_the_tags_say_of_each_check_its_value_its_limit_and_what_to_do(tmp_path):
    judge(VERSION, EVALUATION, RIVAL | {"ece": {"max": 0.01}, "slices": {"by": ["city"]}}, tmp_path, "1")
    tags = Verdict.read(tmp_path).tags()
    assert tags["gate"] == "failed"
    assert tags["gate.auc"] == "passed: 0.7500 [0.7000, 0.8000]; asked for: lower end at least 0.5"
    assert tags["gate.calibration"].startswith("failed: ECE 0.0500 [0.0500, 0.0700]; asked for: at most 0.01; to do: ")
    assert tags["gate.auc_against_champion"].startswith("passed: +0.0000 [-0.0100, +0.0100] against version 1")
    assert tags["gate.slices.city"].startswith("failed: 1 of 2; slice city = Oslo: AUC 0.4000 on 20 rows")


# --- the stored model -------------------------------------------------------------------------------------------------

STORED = {"parity": {}, "size": {"max": "1 kB"}, "latency": {"p50": 0.005, "p99": "20ms"}}
SERVED = Served(size=1000, rows=200, worst=1e-6, p50=0.005, p99=0.02, requests=300)


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"size": 1001}, ["size"]),
        ({"worst": 1.1e-6}, ["parity"]),
        ({"worst": float("inf")}, ["parity"]),
        ({"p50": 0.0051}, ["latency p50"]),
        ({"p99": 0.021}, ["latency p99"]),
        ({"rows": 0, "p50": None, "p99": None, "problem": "it is gone"}, ["parity", "latency p50", "latency p99"]),
    ],
)
def test_the_stored_model_at_its_limits(tmp_path, changed, failed):
    verdict = judge(VERSION, EVALUATION, STORED, tmp_path, served=dataclasses.replace(SERVED, **changed))
    assert verdict.failed == failed
    if "problem" in changed:
        assert "was not measured: it is gone" in (tmp_path / "gate.html").read_text()


def test_a_stored_model_that_nobody_measured_fails(tmp_path):
    assert judge(VERSION, EVALUATION, STORED, tmp_path).failed == ["size", "parity", "latency p50", "latency p99"]
    assert Check("x", False, "1", "2", "mend").line == "failed: 1; asked for: 2; to do: mend"
