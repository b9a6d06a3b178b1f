"""Slices against the champion: Holm's correction, what the tests find and leave alone, and the kept predictions."""

import json

import numpy as np
import pyarrow as pa
import pytest

from airflow_provider_sml.ml.gate import Verdict, judge
from airflow_provider_sml.ml.gate.slices import against_champion, holm
from airflow_provider_sml.ml.training import evaluation, metrics
from airflow_provider_sml.refs import ModelVersionRef
from tests.ml.test_lake_shops import fit
from tests.trained import rows_of


def test_holm_multiplies_the_smallest_by_their_number_and_steps_down():
    # The example of Holm's procedure with four tests: 0.01 * 4, 0.02 * 3, 0.03 * 2 raised to 0.06, 0.04 raised.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.2, 0.9, 0.5]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([]) == [] and holm([0.3]) == [0.3]


def draw(slices, rows, worse=(), seed=0, noise=0.15):
    """Labels, two models' scores that know as much of them, and the slices; in some ours know nothing."""
    random = np.random.default_rng(seed)
    where = np.repeat(np.arange(slices), rows)
    labels = random.integers(0, 2, slices * rows).astype(float)
    signal = 0.35 + 0.3 * labels
    scores, others = (np.clip(signal + random.normal(0, noise, len(labels)), 0, 1) for _ in "12")
    lost = np.isin(where, worse)
    scores[lost] = random.random(int(lost.sum()))
    return labels, scores, others, pa.array([f"s{number:02d}" for number in where])


def judged(folder, labels, scores, others, values, **wanted):
    folder.mkdir(exist_ok=True)
    kept = evaluation._keep(folder, labels, scores, others, {"shop": values})
    settings = {"by": ["shop"], "min_rows": 100} | wanted
    return {check.name.split(" = ")[-1].split()[0]: check for check in against_champion(kept, folder, settings, "1")}


@pytest.mark.parametrize("measure", ["auc", "log_loss"])
def test_slices_that_lost_are_found_among_many_and_the_others_left_alone(tmp_path, measure):
    checks = judged(tmp_path, *draw(20, 300, worse=(3, 11)), measure=measure, margin=0.02)
    assert len(checks) == 20
    assert [name for name, check in checks.items() if not check.passed] == ["s03", "s11"]
    assert "of 20 slices (Holm)" in checks["s03"].value and "beyond 0.02" in checks["s03"].limit


def test_a_loss_within_the_margin_is_allowed(tmp_path):
    assert all(check.passed for check in judged(tmp_path, *draw(3, 300, worse=(1,)), margin=0.9).values())


def test_the_same_predictions_lose_nothing(tmp_path):
    labels, scores, _, values = draw(3, 200)
    checks = judged(tmp_path, labels, scores, scores, values)
    assert all(check.passed and ", p 1 of" in check.value for check in checks.values())


def test_a_version_that_is_worse_in_no_slice_is_seldom_refused():
    """Without the correction about two of three would be: ``1 - 0.95 ** 20``."""
    refused = uncorrected = 0
    for seed in range(25):
        p_values = []
        labels, scores, others, _ = draw(20, 120, seed=seed)
        for part in np.split(np.arange(len(labels)), 20):
            gap, error, share = metrics.spread(labels[part], scores[part], others[part], "auc", repeats=50)
            assert share == 1
            p_values.append(_one_sided(gap / error))
        refused += min(holm(p_values)) < 0.05
        uncorrected += min(p_values) < 0.05
    assert refused <= 4 and uncorrected >= 12, (refused, uncorrected)


def _one_sided(z):
    from scipy.stats import norm

    return float(norm.cdf(z))


def test_the_standard_error_is_that_of_the_mean_where_the_measure_is_a_mean():
    labels, scores, others, _ = draw(1, 1000)
    gap, error, _ = metrics.spread(labels, scores, others, "brier", repeats=400)
    apart = (scores - labels) ** 2 - (others - labels) ** 2
    assert gap == pytest.approx(apart.mean()) and error == pytest.approx(apart.std() / np.sqrt(1000), rel=0.1)


def test_small_slices_are_not_judged_and_those_of_one_label_fail(tmp_path):
    labels, scores, others, values = draw(3, 200)
    labels[:200] = 0
    checks = judged(tmp_path / "one", labels[:450], scores[:450], others[:450], values[:450])
    assert {name: check.passed for name, check in checks.items()} == {"s00": False, "s01": True}
    assert checks["s00"].value == "the rows have too few of one label"
    none = judged(tmp_path / "two", labels, scores, others, values, min_rows=1000)
    assert [(name, check.passed) for name, check in none.items()] == [("slices", False)]


# --- the kept predictions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(shop_sample, tmp_path_factory):
    """An evaluation against a weaker champion, by city."""
    model, weak = fit(rows_of(0, 8)), fit(rows_of(0, 1), rounds=1)
    folder = tmp_path_factory.mktemp("evaluated")
    evaluation.evaluate(model, shop_sample, folder, slices=["city"], min_rows=50, champion=("1", weak))
    return ModelVersionRef("sqlite:///x", "orders", "2", "run", model.model_id), folder


WANTED = {"slices": {"by": ["city"], "min_rows": 50, "not_worse_than": "champion", "margin": 0.05}}


def verdict(evaluated, folder, settings, evidence=None, **changed):
    version, kept = evaluated
    found = json.loads((kept / "evaluation.json").read_text()) | {"recalibration": {"model": 1.0, "sample": 1.0}}
    judge(version, found | changed, settings, folder, "1", evidence=evidence or kept)
    return {check.name: check for check in Verdict.read(folder).checks if "against" in check.name}


def test_an_evaluation_keeps_what_the_gate_compares_slices_by(evaluated, tmp_path):
    checks = verdict(evaluated, tmp_path, WANTED)
    assert set(checks) == {f"slice city = {city} against champion" for city in ("Bern", "Oslo", "Rome")}
    assert all(check.passed for check in checks.values())
    assert verdict(evaluated, tmp_path, WANTED) == checks, "the draws are the same each time"
    names = pa.parquet.read_schema(evaluated[1] / "predictions.parquet").names
    assert names == ["label", "score", "champion", "by city"], "no key, and no other column"


@pytest.mark.parametrize("spoil", ["gone", "changed", "other columns", "not kept"])
def test_predictions_that_are_not_those_of_the_evaluation_fail(evaluated, tmp_path, spoil):
    _, kept = evaluated
    other, found = tmp_path / "kept", json.loads((kept / "evaluation.json").read_text())
    other.mkdir()
    if spoil != "gone":
        content = (kept / "predictions.parquet").read_bytes()
        (other / "predictions.parquet").write_bytes(content + b"x" * (spoil == "changed"))
    changed = {"other columns": found["predictions"] | {"columns": ["shop"]}, "not kept": None}
    checks = verdict(
        evaluated, tmp_path, WANTED, other, predictions=changed.get(spoil, found["predictions"])
    )  # fmt: skip
    [check] = checks.values()
    words = {
        "gone": "cannot be read: No such file", "changed": "are not those of the evaluation",
        "other columns": "were kept without city", "not kept": "were not kept",
    }  # fmt: skip
    assert not check.passed and words[spoil] in check.value and check.todo.startswith("evaluate again")


def test_slices_are_not_compared_with_an_earlier_champion(evaluated, tmp_path):
    version, kept = evaluated
    found = json.loads((kept / "evaluation.json").read_text())
    judge(version, found, WANTED, tmp_path, "9", evidence=kept)
    [check] = [check for check in Verdict.read(tmp_path).checks if "against" in check.name]
    assert not check.passed and check.value == "was compared with version 1; version 9 is the champion"
