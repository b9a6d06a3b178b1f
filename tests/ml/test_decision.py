"""What follows the nights: a pure function of those that are stored, in whatever order they are filled in."""

import datetime as dt
import json
import random
from dataclasses import replace

import pytest

from airflow_provider_sml.ml.monitoring.decision import MOST_EXCESS, Night, Override, Policy, causes, decide, decide_all
from airflow_provider_sml.ml.monitoring.nights import StoredNights

FIRST = dt.date(2026, 3, 1)
FREE = Policy((1, 1), cool_down=0, budget=None)
HOLD, FORCE = Override("hold", "Ada"), Override("force", "Ada")
LETTERS = {"q": "quiet", "i": "info", "w": "warning", "c": "critical"}


def nights(letters, policy=FREE, version="1", **words):
    """A night a letter: quiet, info, warning, critical; ``n3=HOLD`` is what a person said of the fourth."""
    return [
        Night(
            FIRST + dt.timedelta(days=n), version,
            [] if letter == "q" else [{"kind": "drift", "severity": LETTERS[letter], "text": f"night {n}"}],
            policy=policy, override=words.get(f"n{n}"),
        )
        for n, letter in enumerate(letters)
    ]  # fmt: skip


def actions(*stored):
    return "".join({"none": "-", "alert": "a", "retrain": "R"}[one.action] for one in decide_all(*stored))


@pytest.mark.parametrize(
    ("letters", "policy", "expected"),
    [
        ("wqw", FREE, "R-R"),
        ("iwc", replace(FREE, severity="critical"), "--R"),
        ("iq", replace(FREE, severity="info"), "R-"),
        ("wwqqw", replace(FREE, nights=(3, 5)), "----R"),
        ("wwqqw", replace(FREE, nights=(3, 4)), "-----"),
        ("wq", replace(FREE, nights=(1, 2)), "RR"),
        ("wwwwww", replace(FREE, cool_down=3), "RaaRaa"),
        ("wwwwwww", replace(FREE, budget=2, budget_days=5), "RRaaaRR"),
        ("wwwwww", replace(FREE, cool_down=2, budget=2, budget_days=30), "RaRaaa"),
    ],
)
def test_nights_severity_cool_down_and_budget(letters, policy, expected):
    assert actions(nights(letters, policy)) == expected


def test_a_person_holds_or_forces_and_what_is_forced_counts():
    policy = replace(FREE, cool_down=3, budget=2, budget_days=30)
    assert actions(nights("wwww", policy, n0=HOLD)) == "aRaa"
    assert actions(nights("qwwwq", policy, n0=FORCE)) == "RaaR-"
    assert actions(nights("wwwww", policy, n1=FORCE, n2=FORCE)) == "RRRaa", "a person goes before the budget"
    held = decide(nights("w", n0=HOLD))
    assert held.because == "1 night counted; training is held back by Ada" and held.override["by"] == "Ada"
    assert decide(nights("q", n0=HOLD)).action == "none"


def test_nights_of_a_replaced_version_count_no_more_but_what_they_asked_for_does():
    policy = replace(FREE, nights=(2, 3), cool_down=4)
    old = nights("www", policy)
    new = [replace(night, version="2", day=night.day + dt.timedelta(days=3)) for night in nights("wwww", policy)]
    assert actions(old + new) == "-Ra-aR" + "a"
    assert decide(old + new[:2]).counted == ["2026-03-04", "2026-03-05"]


def test_later_nights_change_nothing_and_the_order_does_not_matter():
    policy = replace(FREE, nights=(2, 4), cool_down=3, budget=3, budget_days=12)
    chance = random.Random(5)
    stored = nights("".join(chance.choice("qiwc") for _ in range(60)), policy, n7=HOLD, n9=FORCE)
    whole = decide_all(stored)
    for number in (1, 8, 10, 33, 60):
        shuffled = chance.sample(stored[:number], number)
        assert decide(shuffled) == whole[number - 1]


def test_causes_are_ranked_by_drift_times_importance():
    night = Night(
        FIRST, "1", columns={"wind": 1.5, "rain": 4.0, "hour": 90.0, "score": 50.0},
        importance={"wind": 0.6, "rain": 0.3, "hour": 0.01, "carrier": 0.09},
    )  # fmt: skip
    found = causes([night, replace(night, columns={"wind": 3.0})])
    assert [(one["feature"], one["nights"]) for one in found] == [("wind", 2), ("rain", 1), ("hour", 1)]
    assert found[0]["weight"] == pytest.approx((1.5 + 3) * 0.6 / ((1.5 + 3) * 0.6 + 4 * 0.3 + 10 * 0.01), abs=1e-4)
    assert found[2]["excess"] == MOST_EXCESS
    plain = causes([replace(night, importance={})])
    assert [one["feature"] for one in plain] == ["hour", "rain", "wind"], "nobody knows what matters"
    reasons = decide(
        [replace(night, findings=[{"kind": "drift", "severity": "warning", "text": "much drifted"}])]
    ).reasons()
    assert reasons["causes"][0].startswith("rain (") and len(json.dumps(reasons)) < 1000


# --- stored nights ----------------------------------------------------------------------------------------------------

POLICY = Policy((2, 3), cool_down=3, budget=2, budget_days=30)


def lay(folder, number, verdict="drift", auc_lost=False, version="1"):
    """What a night's two reports say."""
    day = FIRST + dt.timedelta(days=number)
    for kind in ("nights", "performance"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    columns = [{"name": "rain", "value": 0.4, "threshold": 0.1, "drifted": verdict == "drift"},
               {"name": "city", "value": None, "threshold": None, "drifted": verdict == "drift"}]  # fmt: skip
    drifted = ["city", "rain"] if verdict == "drift" else []
    missing = [{"kind": "missing_partitions", "subject": "", "text": "a day is missing"}] if number == 1 else []
    drift = {"version": version, "verdict": verdict, "share": 0.4, "drifted": drifted, "columns": columns}
    drift |= {"findings": missing}
    (folder / f"nights/{day}.json").write_text(json.dumps(drift))
    lost = [{"kind": "performance", "severity": "critical", "text": "AUC lost"}] if auc_lost else []
    worth = {"version": version, "findings": lost, "importance": {"rain": 0.7, "city": 0.1}}
    (folder / f"performance/{day}.json").write_text(json.dumps(worth))
    return day


def kept(folder):
    return {path.name: path.read_bytes() for path in (folder / "decisions").glob("????-??-??.*")}


def test_nights_filled_in_again_in_any_order_give_the_same_files(tmp_path):
    days = [lay(tmp_path, n, "drift" if n % 4 else "quiet", n == 6) for n in range(12)]
    stored = StoredNights(tmp_path)
    for n, day in enumerate(days):
        [made] = stored.settle(day, POLICY, HOLD if n == 3 else None)
        assert made.day == str(day)
    first = kept(tmp_path)
    assert len(first) == 24
    for day in random.Random(3).sample(days, len(days)):
        stored.settle(day, POLICY)
    assert kept(tmp_path) == first, "what a person said is stored with the night"
    stored.settle(days[3], POLICY, "auto")
    assert kept(tmp_path) != first


def test_a_monitor_that_fell_behind_decides_the_nights_between(tmp_path):
    days = [lay(tmp_path, n) for n in range(3)]
    made = StoredNights(tmp_path).settle(days[2], POLICY)
    assert [(one.day, one.action) for one in made] == [
        ("2026-03-01", "none"), ("2026-03-02", "retrain"), ("2026-03-03", "alert"),
    ]  # fmt: skip
    lay(tmp_path, 30)
    made = StoredNights(tmp_path).settle(lay(tmp_path, 50), POLICY)
    assert [one.day for one in made] == ["2026-04-20"], "a month ago is history"


def test_labels_make_a_night_critical_and_damage_hides_no_other_night(tmp_path):
    lay(tmp_path, 0)
    day = lay(tmp_path, 1, "quiet", auc_lost=True)
    (tmp_path / f"nights/{FIRST}.json").write_text("{")
    stored = StoredNights(tmp_path)
    decision = stored.settle(day, replace(POLICY, nights=(1, 2)))[-1]
    assert (decision.severity, decision.action, decision.counted) == ("critical", "retrain", [str(day)])
    assert [finding["text"] for finding in decision.findings] == ["AUC lost", "a day is missing"]
    assert any(problem.startswith(f"nights/{FIRST}.json") for problem in stored.damaged)
    page = (tmp_path / f"decisions/{day}.html").read_text()
    assert "Training is asked for" in page and "AUC lost" in page


def test_a_policy_that_changes_leaves_earlier_nights_as_they_were_decided(tmp_path):
    days = [lay(tmp_path, n) for n in range(3)]
    for day in days[:2]:
        StoredNights(tmp_path).settle(day, POLICY)
    strict = replace(POLICY, severity="critical")
    assert StoredNights(tmp_path).settle(days[2], strict)[-1].asked_before == ["2026-03-02"]
