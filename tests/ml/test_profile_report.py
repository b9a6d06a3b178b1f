"""The nightly report over all rows: Evidently's page from profiles, the same verdicts as its own preset on the rows."""

import datetime as dt
import json
from pathlib import Path

import pytest

from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.monitoring import drift, predictions, profile_report
from airflow_provider_sml.ml.monitoring.verdicts import Rules, judge
from tests.trained import NIGHT, STORM

RULES = Rules(share=0.15, numeric=0.5, category=0.2, false_discovery=None)


@pytest.fixture(scope="module")
def scorer(shop_model):
    return Scorer(Bundle.read(Path(shop_model.uri)))


@pytest.fixture(scope="module")
def profiles(shop_lake, shop_sample, scorer):
    kinds = profile_report.kinds(scorer)
    old = profile_report.reference(shop_lake, Path(shop_sample.uri), scorer, kinds)
    return old, profile_report.nights(shop_lake, "orders", scorer, kinds, [NIGHT, STORM])


def test_the_verdicts_are_those_of_evidentlys_preset_on_all_rows(shop_lake, shop_sample, scorer, profiles, tmp_path):
    old, nights = profiles
    rows = predictions.scored(predictions.reference_rows(Path(shop_sample.uri)), scorer)
    limits = drift.Limits(share=0.15, numeric=0.5, category=0.2)
    for day, verdict in ((NIGHT, "quiet"), (STORM, "drift")):
        found = profile_report.report("orders", "1", day, old, nights[day], RULES, tmp_path / "whole")
        night = predictions.scored(predictions.read_days(shop_lake, "orders", day, day), scorer)
        stock = drift.report("orders", "1", day, rows, night, scorer, limits, tmp_path / "stock")
        assert (found.verdict, found.share, found.drifted) == (stock.verdict, stock.share, stock.drifted)
        assert found.verdict == verdict and found.rows == stock.rows
        texts = [(tmp_path / kind / f"{day}.json").read_text() for kind in ("whole", "stock")]
        mine, its = ({c["name"]: c["value"] for c in json.loads(text)["columns"]} for text in texts)
        assert mine == pytest.approx(its, rel=0.01, abs=0.002)
    text = (tmp_path / "whole" / f"{STORM}.html").read_text()
    assert "Drift: " in text and "all of them" in text and str(old.rows) in text


def test_the_page_passes_its_test_as_the_verdict_says_and_no_row_is_read(profiles):
    from airflow_provider_sml.ml.monitoring.evidently_profiles import ProfileDataset, page

    old, nights = profiles
    for day, passed in ((NIGHT, "SUCCESS"), (STORM, "FAIL")):
        found = judge(old, nights[day], RULES)
        (test,) = page(found, old, nights[day], RULES.share).dict()["tests"]
        assert str(test["status"]).endswith(passed)
    with pytest.raises(NotImplementedError, match="no rows"):
        ProfileDataset(old, found).as_dataframe()


def test_a_night_that_is_not_there_is_a_report_and_no_error(profiles, tmp_path):
    old, _ = profiles
    found = profile_report.report("orders", "1", NIGHT, old, None, RULES, tmp_path)
    result = json.loads((tmp_path / f"{NIGHT}.json").read_text())
    assert (found.verdict, found.rows, found.drifted) == ("quiet", 0, [])
    assert [item["kind"] for item in result["findings"]] == ["missing_partitions", "empty_night"]
    assert "no rows" in (tmp_path / f"{NIGHT}.html").read_text()


def test_reports_before_a_day_are_removed_and_nothing_else(tmp_path):
    day = dt.date(2026, 3, 1)
    for name in ("2026-02-28.html", "2026-02-28.json", "2026-03-01.html", "notes.html", "2026-02-28.txt"):
        (tmp_path / name).touch()
    assert profile_report.expire_reports(tmp_path, day) == ["2026-02-28.html", "2026-02-28.json"]
    assert len(list(tmp_path.iterdir())) == 3
