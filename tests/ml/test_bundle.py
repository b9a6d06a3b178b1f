"""The bundle: written and read back as it was, refused when it is anything else; and the scores of its scorer."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from airflow_provider_sml.errors import IntegrityError
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, MODEL_FILE, Bundle, Scorer, encode_feature, feature_types
from airflow_provider_sml.ml.expressions.vectors import Vector
from airflow_provider_sml.ml.training import data
from tests.ml.test_lake_shops import DATASET, fit
from tests.trained import rows_of


@pytest.fixture(scope="module")
def bundle():
    return fit(rows_of(0, 3), lineage={"table": "orders", "snapshot_id": 12, "params": {"eta": 0.3}})


def edit(folder, **changes):
    path = folder / BUNDLE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(bundle, tmp_path):
    bundle.write(tmp_path / "model")
    again = Bundle.read(tmp_path / "model")
    assert again == bundle and again.digest == bundle.digest
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [BUNDLE_FILE, MODEL_FILE]
    again.write(tmp_path / "copy")
    for name in (BUNDLE_FILE, MODEL_FILE):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_its_text_shows_no_model(bundle):
    assert len(repr(bundle)) < 20_000 and "model=b" not in repr(bundle)


def test_a_folder_that_was_written_half_is_no_bundle(bundle, tmp_path):
    bundle.write(tmp_path)
    (tmp_path / BUNDLE_FILE).unlink()
    with pytest.raises(IntegrityError, match=r"holds no model bundle(.|\n)*model\.ubj and bundle\.json"):
        Bundle.read(tmp_path)


def test_changed_bytes_are_seen(bundle, tmp_path):
    bundle.write(tmp_path)
    model = bytearray((tmp_path / MODEL_FILE).read_bytes())
    model[100] ^= 1
    (tmp_path / MODEL_FILE).write_bytes(model)
    with pytest.raises(IntegrityError, match=f"has changed(.|\n)*{bundle.digest}"):
        Bundle.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, r"another format(.|\n)*format 1; found: 2(.|\n)*install the version"),
        ({"digest": None}, "has changed"),
        ({"dataset": {"name": "orders"}}, "is damaged"),
        ({"dataset": None}, "is damaged"),
    ],
)
def test_another_description_is_refused(bundle, tmp_path, changes, words):
    bundle.write(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(IntegrityError, match=words):
        Bundle.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_description_that_is_none(bundle, tmp_path, text):
    bundle.write(tmp_path)
    (tmp_path / BUNDLE_FILE).write_text(text)
    with pytest.raises(IntegrityError):
        Bundle.read(tmp_path)


def test_a_description_that_lacks_something(bundle, tmp_path):
    bundle.write(tmp_path)
    described = json.loads((tmp_path / BUNDLE_FILE).read_text())
    del described["rounds"]
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(described))
    with pytest.raises(IntegrityError, match=r"damaged(.|\n)*rounds"):
        Bundle.read(tmp_path)


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_raw_rows_and_stored_features_get_the_same_scores(bundle):
    table, scorer = rows_of(3, 4), Scorer(bundle, threads=1)
    raw = scorer.score(data.vectors(table, scorer.columns))
    stored = scorer.score_features(data.matrix(table, DATASET.feature_list))
    assert np.array_equal(raw, stored) and raw.dtype == np.float64
    assert 0 < raw.min() < raw.max() < 1
    assert set(scorer.columns) == {"ordered", "weight", "weather.rain", "shops.opened", "city"}


def test_the_categories_codes_are_the_contracts_positions():
    city = next(feature for feature in DATASET.feature_list if feature.name == "city")
    vector = Vector.of(["Rome", None, "Bern", "Oslo", "Paris"], "string")
    found = encode_feature(city, vector).tolist()
    assert found[0] == 2 and found[2:4] == [0, 1] and math.isnan(found[1]) and math.isnan(found[4])
    assert feature_types(DATASET.feature_list) == ["q", "q", "q", "q", "c"]


def test_the_number_of_threads_changes_no_score(bundle):
    matrix = data.matrix(rows_of(3, 5), DATASET.feature_list)
    assert np.array_equal(Scorer(bundle, 1).score_features(matrix), Scorer(bundle).score_features(matrix))


def test_a_bundle_with_another_dataset_has_the_same_model(bundle):
    assert replace(bundle, name="else").digest == bundle.digest
