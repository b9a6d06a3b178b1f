"""The planner of the sampling rate, and the fidelity of a sample: against what is known to be right."""

import json

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import jensenshannon

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.sampling import fidelity, planner
from tests import shops
from tests.ml.test_lake_shops import DATASET, stored_day

POPULATION = 200_000
HELD = 4_000


def learner(loss_at):
    """A learner whose scores grow better with the rows as ``loss_at`` says: noise on the truth of the same rows."""
    generator = np.random.default_rng(1)
    signal, asked = generator.normal(size=HELD), []
    labels = (signal + generator.normal(size=HELD) > 0).astype(float)

    def measure(rate, seed):
        asked.append((rate, seed))
        rows = int(rate * POPULATION)
        noise = np.random.default_rng(seed + 100).normal(size=HELD)
        return planner.Trial(rows, rate * 10, labels, signal + loss_at(rows) * noise)

    return measure, asked


def test_a_curve_is_found_again():
    rows = np.array([100, 200, 400, 800, 1600, 3200.0])
    a, b, c = planner.fit_curve(rows, 0.8 - 3 * rows**-0.5)
    assert a == pytest.approx(0.8, abs=0.002) and c == pytest.approx(0.5, abs=0.05)
    assert b * 100**-c == pytest.approx(0.3, abs=0.01)
    flat = planner.fit_curve(rows, np.full(6, 0.7))
    assert flat[0] == pytest.approx(0.7) and flat[1] == pytest.approx(0, abs=1e-9)
    assert planner.fit_curve(rows, 0.9 - rows * 1e-4)[1] == 0  # a model that grows worse is not extrapolated


def test_a_learner_that_needs_few_rows_gets_few():
    measure, asked = learner(lambda rows: 0.05)
    plan = planner.plan_rate(measure, POPULATION, tolerance=0.01)
    assert plan.found and plan.rate <= 0.08 and plan.chosen.loss <= 0.01
    assert (0.64, 0) not in asked  # the search ended early
    assert len({seed for rate, seed in asked if rate == 0.02}) == 3


def test_a_learner_that_needs_every_row_gets_every_row(tmp_path):
    measure, asked = learner(lambda rows: 40 * rows**-0.35)
    told = []
    plan = planner.plan_rate(measure, POPULATION, tolerance=0.0005, log=told.append)
    assert not plan.found and plan.rate == 1.0 and plan.chosen is None
    assert [point.rate for point in plan.points] == list(planner.RATES) and (0.64, 0) in asked
    losses = [point.loss for point in plan.points]
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0.0005
    assert plan.full_seconds == pytest.approx(10) and len(told) == 6
    plan.write(tmp_path)
    page = (tmp_path / "plan.html").read_text()
    assert "No rate loses less than 0.0005" in page and "<svg" in page and "<polygon" in page
    assert json.loads((tmp_path / "plan.json").read_text())["rate"] == 1.0


def test_the_expected_loss_is_the_true_one():
    """The noise falls with the rows, so the true loss at each rate can be computed from very many rows."""

    def level(rows):
        return 6 * rows**-0.3

    measure, _ = learner(level)
    plan = planner.plan_rate(measure, POPULATION, tolerance=0.004)
    generator = np.random.default_rng(9)
    signal = generator.normal(size=400_000)
    labels = (signal + generator.normal(size=400_000) > 0).astype(float)

    def true_auc(rows):
        return planner.metrics.auc(labels, signal + level(rows) * generator.normal(size=400_000))

    for point in plan.points[2:]:
        assert point.loss == pytest.approx(true_auc(POPULATION) - true_auc(point.rows), abs=0.006)


def test_what_cannot_carry_a_curve_is_refused():
    measure, _ = learner(lambda rows: 1)
    with pytest.raises(ConfigurationError, match=r"at least 4 rising rates"):
        planner.plan_rate(measure, POPULATION, rates=(0.1, 0.2))
    with pytest.raises(ConfigurationError, match=r"rows of both classes(.|\n)*0 positives"):
        planner.plan_rate(lambda rate, seed: planner.Trial(5, 1, np.zeros(9), np.zeros(9)), POPULATION)


# --- fidelity ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fidelity")
    table = pa.concat_tables([stored_day(day, 400) for day in shops.days(5)])
    pq.write_table(table, folder / "all.parquet")
    return folder, table


def compare(folder, table, segments=("shop",)):
    pq.write_table(table, folder / "some.parquet")
    with duckdb.connect() as connection:
        return fidelity.compare(
            connection, [str(folder / "all.parquet")], [str(folder / "some.parquet")], DATASET.feature_list, segments
        )


def test_the_population_is_faithful_to_itself(population):
    folder, table = population
    found = compare(folder, table)
    assert [column["psi"] for column in found["columns"]] == [0.0] * len(DATASET.feature_list)
    assert found["label_rate"]["sample"] == found["label_rate"]["population"] > 0
    assert found["segments"] == [
        {"column": "shop", "values": 20, "missing": 0, "fewest_rows": found["segments"][0]["fewest_rows"]}
    ]


def test_a_fair_sample_differs_little_and_a_skewed_one_much(population):
    folder, table = population
    fair = compare(folder, table.take(np.random.default_rng(3).permutation(table.num_rows)[:800]))
    assert max(column["psi"] for column in fair["columns"]) < 0.1
    heavy = compare(folder, table.filter(pa.compute.greater(table.column("weight"), 20)))
    assert heavy["columns"][0]["name"] == "weight" and heavy["columns"][0]["psi"] > 1
    assert heavy["label_rate"]["sample"] > heavy["label_rate"]["population"]


def test_missing_segments_are_counted(population):
    folder, table = population
    few = table.filter(pa.compute.is_in(table.column("shop"), value_set=pa.array(["shop-01", "shop-02"])))
    assert compare(folder, few)["segments"][0]["missing"] == 18


def test_the_distances_are_those_of_the_books():
    expected, found = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert fidelity.js(expected, found) == pytest.approx(jensenshannon(expected, found, base=2))
    assert fidelity.psi(expected, found) == pytest.approx(2 * 0.3 * np.log(2.5))
    assert fidelity.js(expected, expected) == 0.0
    assert fidelity.js(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(1)
