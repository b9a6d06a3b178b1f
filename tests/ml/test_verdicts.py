"""Distances from profiles are those of scipy on the raw rows; verdicts do not hang on how many rows or columns."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.monitoring import distances, verdicts
from airflow_provider_sml.ml.monitoring.profile import of_batches
from airflow_provider_sml.ml.monitoring.reference import Reference, training_nights
from airflow_provider_sml.ml.monitoring.sketch import RELATIVE_ERROR, Numbers

KINDS = {"x": "number", "y": "number", "c": "category"}


def rows(seed, size=4000, shift=0.0, cities="abc", weights=None, gaps=0.0):
    draw = np.random.default_rng(seed)
    x = draw.normal(50 + shift, 5, size)
    return pa.table(
        {
            "x": pa.array(x, mask=draw.random(size) < gaps),
            "y": draw.lognormal(size=size),
            "c": pa.array(draw.choice(list(cities), size, p=weights)),
        }
    )


def profile(*args, segment=None, **settings):
    return of_batches([rows(*args, **settings)], KINDS, segment=segment)


@pytest.mark.parametrize(("shift", "sizes"), [(0, (500, 700)), (1, (3000, 200)), (40, (100, 100))])
def test_distances_are_those_of_scipy_within_the_bound_of_the_sketch(shift, sizes):
    one, two = rows(1, sizes[0]), rows(2, sizes[1], shift=shift, weights=[0.5, 0.4, 0.1])
    for name in ("x", "y"):
        a, b = (table.column(name).to_numpy() for table in (one, two))
        old, new = Numbers.of(a), Numbers.of(b)
        bound = RELATIVE_ERROR * (np.abs(a).mean() + np.abs(b).mean()) / a.std()
        assert abs(distances.wasserstein(old, new) - stats.wasserstein_distance(a, b) / a.std()) <= bound
        exact = stats.ks_2samp(a, b, method="asymp")
        found = distances.kolmogorov_smirnov(old, new)
        assert found == pytest.approx(exact.statistic, abs=0.02)
        assert distances.ks_p_value(exact.statistic, *sizes) == pytest.approx(exact.pvalue, rel=0.2, abs=1e-3)
    sides = [np.array([table.column("c").to_pylist().count(c) for c in "abc"], float) for table in (one, two)]
    assert distances.jensen_shannon(*sides) == pytest.approx(jensenshannon(*sides))
    exact = stats.chi2_contingency(np.stack(sides), correction=False)
    assert distances.chi_square(*sides)[:2] == pytest.approx((exact.statistic, exact.pvalue))
    assert distances.chi_square(*sides)[2] == pytest.approx(stats.contingency.association(np.stack(sides).astype(int)))
    p, q = (side / side.sum() for side in sides)
    assert distances.psi(*sides) == pytest.approx(stats.entropy(q, p) + stats.entropy(p, q))


def test_the_false_discovery_control_is_scipys():
    p = np.random.default_rng(1).random(30) ** 3
    assert distances.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert distances.benjamini_hochberg([]) == []


def test_many_rows_alone_raise_no_alarm_and_a_small_night_none_by_chance():
    rules = verdicts.Rules()
    found = verdicts.judge(profile(1, 400_000), profile(2, 400_000, shift=0.2), rules)
    (x,) = [column for column in found.columns if column.name == "x"]
    assert x.p_value < 1e-10 and not x.drifted and found.verdict == "quiet"
    few = [verdicts.judge(profile(1), profile(seed, 20), rules) for seed in range(30)]
    loose = verdicts.Rules(false_discovery=None)
    without = [verdicts.judge(profile(1), profile(seed, 20), loose) for seed in range(30)]
    assert sum(len(night.drifted) for night in few) <= 3
    assert sum(len(night.drifted) for night in without) >= 30
    moved = verdicts.judge(profile(1), profile(3, shift=5), rules)
    assert moved.drifted == ["x"] and moved.verdict == "drift"


def test_what_nights_differ_by_is_no_drift():
    nights = [profile(seed, 300, shift=np.random.default_rng(seed).normal() * 2) for seed in range(30)]
    reference = profile(99, 20_000)
    usual = profile(5000, 300, shift=1.5)
    assert verdicts.judge(reference, usual, verdicts.Rules()).drifted == ["x"]  # by rows every night is odd
    assert verdicts.judge(reference, usual, verdicts.Rules(), nights).drifted == []
    assert verdicts.judge(reference, profile(5000, 300, shift=25), verdicts.Rules(), nights).drifted == ["x"]


@pytest.mark.parametrize("method", ["psi", "ks", "jensenshannon", "cramers_v"])
def test_every_method_tells_a_moved_column_from_one_that_did_not(method):
    rules = verdicts.Rules(numeric_method=method, category_method=method if method != "ks" else "psi", category=0.2,
                           numeric=0.2)  # fmt: skip
    found = verdicts.judge(profile(1), profile(2, shift=8, weights=[0.9, 0.05, 0.05]), rules)
    assert set(found.drifted) == {"x", "c"}
    assert verdicts.judge(profile(1), profile(2), rules).drifted == []


def test_odd_nights_are_findings():
    rules = verdicts.Rules()
    night = profile(2, cities="abd")
    found = verdicts.judge(profile(1), night, rules)
    assert found.drifted == ["c"] and [f.kind for f in found.findings] == ["new_category"]
    assert "'d'" in found.findings[0].text
    found = verdicts.judge(profile(1), of_batches([], KINDS), rules, missing=[dt.date(2026, 1, 3)])
    assert (found.verdict, [f.kind for f in found.findings]) == ("quiet", ["missing_partitions", "empty_night"])
    changed = of_batches([rows(2)], {"x": "number", "c": "category"})
    found = verdicts.judge(profile(1), changed, rules)
    assert [f.kind for f in found.findings] == ["column_gone"] and found.drifted == ["y"]
    found = verdicts.judge(changed, profile(2), rules)
    assert [f.kind for f in found.findings] == ["column_new"] and found.drifted == []
    found = verdicts.judge(profile(1), profile(2, gaps=0.4), rules)
    assert found.drifted == ["x"]
    found = verdicts.judge(profile(1), profile(2, gaps=1.1), rules)
    assert found.drifted == ["x"] and found.columns[0].method == "no value on one side"


def test_segments_of_enough_rows_are_judged():
    weights = [0.7, 0.29, 0.01]
    one, two = (profile(seed, segment="c", weights=weights) for seed in (1, 2))
    found = verdicts.judge(one, two, verdicts.Rules(numeric=0.3))
    assert set(found.segments) == {"a", "b"} and found.segments["a"].verdict == "quiet"
    assert [f.subject for f in found.findings] == ["c"]


def test_windows():
    day = dt.date(2026, 3, 10)
    assert Reference.parse("trailing 2 days").window(day) == [dt.date(2026, 3, 8), dt.date(2026, 3, 9)]
    season = Reference.parse("season").window(day)
    assert season[7] == dt.date(2025, 3, 11) and season[7].weekday() == day.weekday() and len(season) == 15
    assert [str(Reference.parse(text)) for text in ("training", "trailing", "season 1 day")] == [
        "training", "trailing 28 days", "season 1 days",
    ]  # fmt: skip
    for wrong in ("", "training 3 days", "trailing 0 days", "trailing 3", "last week"):
        with pytest.raises(ConfigurationError, match="no reference of nights"):
            Reference.parse(wrong)
    nights = training_nights({"train": ["2026-01-01", "2026-02-20"], "test": ["2026-02-21", "2026-03-01"]})
    assert (nights[0], nights[-1], len(nights)) == (dt.date(2026, 2, 2), dt.date(2026, 3, 1), 28)
