"""Parameters of ours beside XGBoost's: what they do to a model, and that those that do not fit are refused."""

from pathlib import Path

import numpy as np
import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.trainer import Training, train
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

FEATURES = DATASET.feature_list


@pytest.fixture(scope="module")
def local():
    with cluster("local") as client:
        yield client


@pytest.fixture
def fit(local, shop_sample, tmp_path):
    """Trains with some parameters; gives the bundle."""

    def fit(**params):
        model = train(Training(DATASET, shop_sample, PARAMS | params), local, tmp_path / "models", lambda line: None)
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
