"""Models from outside: read without running what their files hold, and refused with words that help."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from airflow_provider_sml.errors import ConfigurationError, DataError, IntegrityError, SmlError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.serving.xgboost_container import booster_of
from airflow_provider_sml.ml.storage import place
from airflow_provider_sml.ml.training.imported import take
from airflow_provider_sml.ml.training.reproduction import training_of
from airflow_provider_sml.ml.training.warm_start import WarmStart
from tests.ml.test_lake_shops import DATASET
from tests.others import fitted, graph_of, training_rows

WIDTH = len(DATASET.features)


@pytest.fixture
def taken(shop_sample, tmp_path):
    """Bring in a file of some content; gives the bundle."""

    def bring(content, name, **settings):
        path = tmp_path / name
        path.write_bytes(content)
        model = take(path, DATASET, shop_sample, tmp_path / "models", **settings)
        assert take(path, DATASET, shop_sample, tmp_path / "models", **settings) == model
        return Bundle.read(place(model.uri))

    return bring


class Stranger(LogisticRegression):
    """A classifier of one's own package."""


NAME = f"{Stranger.__module__}.Stranger"


def test_a_classifier_scores_as_where_it_was_fitted(taken, shop_sample):
    rows, labels = training_rows(shop_sample)
    forest = HistGradientBoostingClassifier(max_iter=5, random_state=1).fit(rows, labels)
    trusted = skops.io.get_untrusted_types(data=skops.io.dumps(forest))
    bundle = taken(skops.io.dumps(forest), "forest.skops", trusted=trusted, recalibration=0.5)
    assert (bundle.flavour, bundle.file, bundle.recalibration) == ("sklearn", "model.skops", 0.5)
    assert np.array_equal(Scorer(bundle).raw_scores(rows), forest.predict_proba(rows)[:, 1])

    import pandas as pd

    named = LogisticRegression().fit(pd.DataFrame(np.nan_to_num(rows), columns=list(DATASET.features)), labels == 1)
    pipeline = fitted(shop_sample)
    pipeline.steps[-1] = ("last", named)  # it wants a data frame, and knows the classes False and True
    frame = pd.DataFrame(np.nan_to_num(rows[:9]), columns=list(DATASET.features))
    from airflow_provider_sml.ml.flavours import flavour

    model = flavour("sklearn").load(skops.io.dumps(named), DATASET.feature_list)
    assert np.array_equal(model.predict(np.nan_to_num(rows[:9])), named.predict_proba(frame)[:, 1])


def test_a_graph_scores_as_the_classifier_that_it_was_made_of(taken, shop_sample):
    classifier = fitted(shop_sample)
    rows, _ = training_rows(shop_sample)
    bundle = taken(graph_of(classifier, WIDTH), "graph.onnx")
    assert np.allclose(Scorer(bundle, 1).raw_scores(rows), classifier.predict_proba(rows)[:, 1], atol=1e-6)
    assert bundle.lineage["library"].startswith("onnxruntime==") and bundle.trusted == ()


def test_a_booster_from_elsewhere_is_kept_as_every_other(taken, shop_model, shop_sample):
    import xgboost

    trained = Bundle.read(place(shop_model.uri))
    booster = xgboost.Booster(model_file=bytearray(trained.model))
    bundle = taken(bytes(booster.save_raw("json")), "booster.json")
    rows, _ = training_rows(shop_sample)
    assert bundle.flavour == "xgboost" and bundle.file == "model.ubj"
    assert np.array_equal(Scorer(bundle).raw_scores(rows), Scorer(trained).raw_scores(rows))
    with pytest.raises(ConfigurationError, match="was trained elsewhere"):
        training_of("orders version 1", bundle, {}, None)


def test_no_code_of_a_file_runs(taken, shop_sample, tmp_path):
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    refused = [
        (pickle.dumps(Bomb()), {}, "a pickle, which can run any code"),
        (b"{}", {}, "found: something else"),
        (b"PK\x05\x06" + 18 * b"\0", {}, "the skops file is damaged"),
    ]
    rows, labels = training_rows(shop_sample)
    rows = np.nan_to_num(rows)
    shell = make_pipeline(FunctionTransformer(os.path.exists), LogisticRegression())
    shell.steps[1][1].fit(rows, labels)
    named = skops.io.get_untrusted_types(data=skops.io.dumps(shell))
    refused += [
        (skops.io.dumps(shell), {}, f"found: {named[0]}"),
        (skops.io.dumps(shell), {"trusted": named}, "types of Python itself cannot be trusted"),
        (skops.io.dumps(Stranger().fit(rows, labels)), {}, f"found: {NAME}"),
    ]
    for content, settings, said in refused:
        with pytest.raises(ConfigurationError, match=said):
            taken(content, "model.skops", **settings)
    assert not mark.exists()
    # what somebody has looked at and named is taken, and nobody can name more in the stored bundle
    robust = fitted(shop_sample)
    robust.steps[-1] = ("own", Stranger().fit(robust[:-1].transform(rows), labels))
    bundle = taken(skops.io.dumps(robust), "model.skops", trusted=[NAME])
    bundle.write(tmp_path / "stored")
    described = json.loads((tmp_path / "stored" / "bundle.json").read_text())
    described["trusted"] += ["some.package.Type"]
    (tmp_path / "stored" / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(IntegrityError, match="has changed"):
        Bundle.read(tmp_path / "stored")
    described["flavour"] = "pickle"
    (tmp_path / "stored" / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(IntegrityError, match="this version knows xgboost, sklearn, onnx"):
        Bundle.read(tmp_path / "stored")


def outside(content, folder):
    """A graph whose weights lie in another file."""
    import onnx

    model = onnx.load_model_from_string(content)
    onnx.save_model(model, folder / "split.onnx", save_as_external_data=True, size_threshold=0, location="weights",
                    convert_attribute=True)  # fmt: skip
    return (folder / "split.onnx").read_bytes()


def test_a_model_that_does_not_fit_is_refused_with_the_reason(taken, shop_sample, tmp_path):
    rows, labels = training_rows(shop_sample)
    whole, graph = np.nan_to_num(rows), graph_of(fitted(shop_sample), WIDTH)
    plain = LogisticRegression().fit(whole, labels)
    dump = skops.io.dumps
    refused = [
        (dump(plain), "a.skops", DataError, "to do: let it deal with missing values"),
        (graph_of(plain, WIDTH), "a.onnx", DataError, "gives no probability"),
        (dump(LogisticRegression().fit(whole[:, :3], labels)), "a.skops", ConfigurationError, "found: 3 features"),
        (dump(LogisticRegression().fit(whole, labels + 1)), "a.skops", ConfigurationError, r"classes \[1.0, 2.0\]"),
        (dump(LogisticRegression()), "a.skops", ConfigurationError, "the classes none"),
        (dump([1, 2]), "a.skops", ConfigurationError, "list with the classes none"),
        (graph_of(LogisticRegression().fit(whole[:, :3], labels), 3), "a.onnx", ConfigurationError, "does not take"),
        (graph_of(plain, WIDTH, zipmap=True), "a.onnx", ConfigurationError, "'zipmap': False"),
        (graph[:-30], "a.onnx", ConfigurationError, "is no ONNX model"),
        (dump(plain), "a.onnx", ConfigurationError, "is no ONNX model"),
        (graph, "a.ubj", ConfigurationError, "is no XGBoost model"),
        (graph, "a.pkl", ConfigurationError, "expected: .ubj, .skops, .onnx, .json; found: .pkl"),
    ]  # fmt: skip
    for content, name, error, said in refused:
        with pytest.raises(error, match=said):
            taken(content, name)
    for settings, said in (({"kind": "sklaern"}, "did you mean sklearn"), ({"recalibration": 0}, "above 0")):
        with pytest.raises(ConfigurationError, match=said):
            taken(dump(fitted(shop_sample)), "model.skops", **settings)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        take(tmp_path / "gone.onnx", DATASET, shop_sample, tmp_path)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_what_only_boosters_can_says_so(taken, shop_sample):
    bundle = taken(graph_of(fitted(shop_sample), WIDTH), "graph.onnx")
    for ask in (
        lambda: booster_of(bundle),
        lambda: WarmStart("orders", "1", bundle).check(DATASET, {}),
        lambda: training_of("orders version 1", bundle, {}, None),
    ):
        with pytest.raises(SmlError, match="is of xgboost models alone"):
            ask()


def test_a_forest_of_scikit_learn_names_the_types_to_trust(taken, shop_sample):
    """Which types skops trusts by itself is its own matter; what is missing is named one by one."""
    rows, labels = training_rows(shop_sample)
    forest = RandomForestClassifier(3, random_state=0).fit(np.nan_to_num(rows), labels)
    content = skops.io.dumps(forest, compression=zipfile.ZIP_DEFLATED)
    named = skops.io.get_untrusted_types(data=content)
    if named:
        with pytest.raises(ConfigurationError, match="names types that are not trusted"):
            taken(content, "forest.skops")
