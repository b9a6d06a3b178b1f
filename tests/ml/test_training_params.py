"""Parameters of ours beside XGBoost's: what they do to a model, and that those that do not fit are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.bundle import Bundle, Scorer, feature_types
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.sampling import WEIGHT, split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.runner import Work, run_rank
from airflow_provider_sml.ml.training.trainer import DEFAULTS, Training, train
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS, make_sample, rows_of

FEATURES = DATASET.feature_list


@pytest.fixture(scope="module")
def local():
    with cluster("local") as client:
        yield client


@pytest.fixture
def fit(local, shop_sample, tmp_path):
    """Trains with some parameters; gives the bundle."""

    def fit(sample=shop_sample, client=local, workers=1, **params):
        training = Training(DATASET, sample, PARAMS | params, workers)
        model = train(training, client, tmp_path / "models", lambda line: None)
        return Bundle.read(Path(model.uri))

    return fit


def moves(bundle, sample, name):
    """Smallest and largest step of the score while one feature of the test rows grows."""
    rows = data.read(split_files(sample, "test")[0], FEATURES)[0][:50]
    position = [feature.name for feature in FEATURES].index(name)
    scores = []
    for value in np.linspace(np.nanmin(rows[:, position]), np.nanmax(rows[:, position]), 40):
        rows[:, position] = value
        scores.append(Scorer(bundle).score_features(rows))
    steps = np.diff(scores, axis=0)
    return steps.min(), steps.max()


# --- monotone constraints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "rain"])
def test_a_score_moves_with_a_feature_in_the_one_direction_only(fit, shop_sample, name):
    low, high = moves(fit(), shop_sample, name)
    assert low < 0 < high, "left alone it goes both ways"
    bundle = fit(monotone={name: 1})
    low, high = moves(bundle, shop_sample, name)
    assert 0 <= low < high
    low, high = moves(fit(monotone={name: -1}), shop_sample, name)
    assert low <= high <= 0
    low, high = moves(bundle, shop_sample, "hour")
    assert low < 0 < high, "the other features are free"
    assert bundle.lineage["params"]["monotone"] == {name: 1}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"monotone": {"wieght": 1}}, r"names wieght(.|\n)*one of hour, weight, rain, age; found(.|\n)*mean weight\?"),
        ({"monotone": {"city": 1}}, "found: city, a category, whose values have no order"),
        ({"monotone": {"weight": 2}}, r"train.monotone.weight(.|\n)*1 where the score may only rise(.|\n)*found: 2"),
        ({"monotone": {"weight": True}}, "found: True"),
        ({"monotone": "weight"}, r"monotone is no mapping(.|\n)*1 or -1 by feature"),
        ({"monotone": {"weight": 1}, "monotone_constraints": "(0,1,0,0,0)"}, "say twice"),
    ],
)
def test_monotone_constraints_that_do_not_fit(shop_sample, tmp_path, params, words):
    with pytest.raises(ConfigurationError, match=words):
        train(Training(DATASET, shop_sample, PARAMS | params), None, tmp_path, print)  # no cluster is asked
    assert not list(tmp_path.iterdir())


# --- class weights ----------------------------------------------------------------------------------------------------


def rows(sample, split):
    """Features and labels of a split."""
    read = [data.read(path, FEATURES) for path in split_files(sample, split)]
    return np.concatenate([part for part, _ in read]), np.concatenate([part for _, part in read])


def rare(table, keep=0.15):
    """The rows with few of the positive ones left."""
    labels = table.column(LABEL).to_numpy()
    return table.filter((labels == 0) | (np.random.default_rng(3).random(len(labels)) < keep))


@pytest.fixture
def rare_sample(tmp_path):
    splits = {"train": rare(rows_of(0, 11)), "validate": rare(rows_of(11, 14)), "test": rare(rows_of(14, 17))}
    return make_sample(tmp_path / "rare", splits)


@pytest.mark.parametrize("weights", ["balanced", {"negative": 0.5, "positive": 4}])
def test_rows_weigh_what_their_label_says_and_scores_stay_probabilities(fit, rare_sample, weights):
    bundle = fit(rare_sample, class_weights=weights)
    values, labels = rows(rare_sample, "train")
    share = {1: labels.mean(), 0: 1 - labels.mean()}
    told = bundle.lineage["class_weights"]
    expected = {"negative": 0.5 / share[0], "positive": 0.5 / share[1]} if weights == "balanced" else weights
    assert told == pytest.approx(expected) and share[1] < 0.2

    # XGBoost alone, given the weights row by row
    each = np.where(labels == 1, told["positive"], told["negative"])
    names, types = [feature.name for feature in FEATURES], feature_types(FEATURES)
    matrix = xgboost.DMatrix(
        values, labels, weight=each, feature_names=names, feature_types=types, enable_categorical=True
    )
    params = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 3, "learning_rate": 0.1, "seed": 7}
    alone = xgboost.train(params, matrix, bundle.rounds)
    tested, truth = rows(rare_sample, "test")
    there = xgboost.DMatrix(tested, feature_names=names, feature_types=types, enable_categorical=True)
    raw, plain = Scorer(bundle).raw_scores(tested), Scorer(fit(rare_sample)).raw_scores(tested)
    assert np.abs(raw - alone.predict(there)).mean() < 0.01 < 0.1 < np.abs(raw - plain).mean()

    scores = Scorer(bundle).score_features(tested)
    assert bundle.recalibration == pytest.approx(told["negative"] / told["positive"])
    assert abs(scores.mean() - truth.mean()) < 0.05 < 0.2 < abs(raw.mean() - truth.mean())


def test_all_workers_weigh_by_the_labels_of_all(fit, tmp_path):
    """One worker has the rows of one label only, so that its own shares would say nothing."""
    table = rare(rows_of(0, 11))
    labels = table.column(LABEL).to_numpy()
    parts = {"train": table, "validate": rare(rows_of(11, 14)), "test": rows_of(14, 17)}
    sample = make_sample(tmp_path / "parted", parts, 2)
    for path, label in zip(split_files(sample, "train"), (0, 1), strict=True):
        pq.write_table(table.filter(labels == label), path)
    alone = fit(sample, class_weights="balanced")
    with cluster("processes", workers=2) as client:
        together = fit(sample, client, 2, class_weights="balanced")
    assert together.lineage["class_weights"] == alone.lineage["class_weights"]
    assert together.recalibration == alone.recalibration
    values, _ = rows(sample, "test")
    found = [Scorer(bundle).raw_scores(values) for bundle in (alone, together)]
    assert np.abs(found[0] - found[1]).mean() < 0.03 and np.corrcoef(*found)[0, 1] > 0.95


@pytest.mark.parametrize("decay", [False, True])
def test_external_memory_and_a_file_without_rows_change_no_byte(rare_sample, monkeypatch, decay):
    for number, path in enumerate(split_files(rare_sample, "train")):
        table = pq.read_table(path)
        if decay:
            table = table.append_column(WEIGHT, pa.array(np.linspace(0.2, 1, table.num_rows)))
        pq.write_table(table.slice(0, 0) if number == 1 else table, path)
    files = [[split_files(rare_sample, split)] for split in ("train", "validate")]
    settings = DEFAULTS | PARAMS | {"device": "cpu"}

    def boost(count, **changes):
        work = Work("t", FEATURES, settings | changes, *files, [count])
        return run_rank(0, work, None, 1, lambda line: None)

    inside = boost(2000, class_weights="balanced")
    plain = boost(2000)
    monkeypatch.setattr("airflow_provider_sml.ml.training.runner.memory_limit", lambda sharing: 900 * 10**6)
    outside = boost(10**7, class_weights="balanced")
    assert (inside.memory.mode, outside.memory.mode) == ("memory", "external")
    assert inside.model == outside.model != plain.model
    assert inside.label_weights == outside.label_weights


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            {"class_weights": "balance"},
            r"balanced, or \{negative: a number, positive: a number\} above 0; found: balance",
        ),
        ({"class_weights": {"positive": 2}}, r"found: \{'positive': 2\}"),
        ({"class_weights": {"negative": 1, "positive": 0}}, "above 0; found"),
        ({"class_weights": {"negative": True, "positive": 2}}, "above 0; found"),
        ({"class_weights": {"negative": 1, "positive": float("nan")}}, "above 0; found"),
        ({"class_weights": "balanced", "scale_pos_weight": 2}, r"twice(.|\n)*class_weights or scale_pos_weight"),
    ],
)
def test_class_weights_that_do_not_fit(shop_sample, tmp_path, params, words):
    with pytest.raises(ConfigurationError, match=words):
        train(Training(DATASET, shop_sample, PARAMS | params), None, tmp_path, print)
    assert not list(tmp_path.iterdir())
