"""A registered version is trained again from its lineage, by ``dag.test()``: the same bytes, or how far apart."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airflow_provider_sml import __version__
from airflow_provider_sml.errors import ConfigurationError, IntegrityError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.registry import CHAMPION, Registry, example_rows
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data, metrics
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.reproduction import training_of
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.refs import ReproductionRef
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

LIFE = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.reproduction import ReproduceModelOperator
    from airflow_provider_sml.operators.sampling import SampleOperator
    from airflow_provider_sml.operators.training import RegisterModelOperator, TrainXGBoostOperator

    with DAG("life", schedule=None, start_date=datetime(2026, 1, 1)):
        sample = SampleOperator(task_id="sample", table="orders", lake={lake!r}, train="11 days", validate="3 days",
                                test="3 days", as_of={as_of!r})
        model = TrainXGBoostOperator(task_id="train", sample=sample.output, dataset={dataset!r}, workers={workers},
                                     hyperparameters={params!r}, cluster={cluster!r}, checkpoint_rounds=7)
        version = RegisterModelOperator(task_id="register", model=model.output, sample=sample.output, name="orders",
                                        mlflow={mlflow!r})
        ReproduceModelOperator(task_id="again", name="orders", version=version.output, mlflow={mlflow!r})
"""
AGAIN = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.reproduction import ReproduceModelOperator

    with DAG("again", schedule=None, start_date=datetime(2026, 1, 1)):
        ReproduceModelOperator(task_id="again", name="orders", version={version!r}, mlflow={mlflow!r})
"""


@pytest.fixture(scope="module")
def shop_model_drawn(shop_sample, tmp_path_factory):
    """A model whose rows are drawn at random, and its bundle."""
    training = Training(DATASET, shop_sample, PARAMS | {"subsample": 0.5}, every=7)
    with cluster("local") as client:
        model = train(training, client, tmp_path_factory.mktemp("models"), lambda line: None)
    return model, Bundle.read(Path(model.uri))


@pytest.fixture
def recorded(shop_model_drawn, shop_sample):
    """The model's bundle and tags as registration leaves them; what is changed to None is missing."""

    def recorded(tags=None, **lineage):
        bundle = shop_model_drawn[1]
        told = {key: value for key, value in (bundle.lineage | lineage).items() if value is not None}
        known = {"sample_uri": shop_sample.uri, "lake": shop_sample.lake, "code_version": __version__} | (tags or {})
        return replace(bundle, lineage=told), {key: value for key, value in known.items() if value is not None}

    return recorded


def places(lake, registry):
    """All files beside the lake's tables, and the number of runs and versions."""
    with registry._client() as client:
        experiment = client.get_experiment_by_name("orders").experiment_id
        made = len(client.search_runs([experiment])), len(client.search_model_versions("name = 'orders'"))
    return made, sorted(str(path) for path in Path(lake.location).rglob("*") if path.is_file())


@pytest.mark.parametrize(("workers", "where"), [(1, "local"), pytest.param(2, "processes", marks=pytest.mark.slow)])
def test_a_registered_version_is_trained_again_to_the_same_bytes(dag_project, shop_lake, tmp_path, workers, where):
    mlflow = str(tmp_path / "mlflow")
    settings = {
        "lake": shop_lake.location, "dataset": DATASET.model_dump(mode="json"), "mlflow": mlflow, "workers": workers,
        "cluster": where, "params": PARAMS | {"subsample": 0.5, "seed": 40 + workers}, "as_of": "2026-03-17",
    }  # fmt: skip
    found = dag_project.run(dag_project.write("life.py", LIFE.format(**settings)), "life")
    assert found.state == "success", found.tasks
    told = found.results["again"]
    assert told["equal"] and told["digest"] == found.results["train"]["digest"]
    assert (told["max_difference"], told["auc_difference"], told["log_loss_difference"]) == (0, 0, 0)
    assert told["moved"] == [] and told["rows"] == found.results["sample"]["rows"]["test"]
    assert len(json.dumps(told)) < 600

    before = places(shop_lake, Registry(mlflow))
    file = dag_project.write("again.py", AGAIN.format(version="1", mlflow=mlflow))
    assert dag_project.run(file, "again").results["again"] == told
    assert places(shop_lake, Registry(mlflow)) == before


def test_other_bytes_are_told_with_their_distance(dag_project, recorded, shop_model_drawn, shop_sample, tmp_path):
    model, bundle = shop_model_drawn
    changed, tags = recorded(
        {"code_version": "0.0.1"}, params=bundle.lineage["params"] | {"max_depth": 2}, xgboost=None
    )
    changed.write(tmp_path / "bundle")
    registry = Registry(str(tmp_path / "mlflow"))
    example = example_rows(data.read(split_files(shop_sample, "test")[0], DATASET.feature_list)[0])
    version = registry.register("orders", replace(model, uri=str(tmp_path / "bundle")), example, lineage=tags)
    registry.set_alias(version, CHAMPION)
    file = dag_project.write("again.py", AGAIN.format(version="", mlflow=str(tmp_path / "mlflow")))
    told = ReproductionRef.load(dag_project.run(file, "again").results["again"])
    with cluster("local") as client:
        settings = PARAMS | {"subsample": 0.5, "max_depth": 2}
        other = train(Training(DATASET, shop_sample, settings, every=7), client, tmp_path / "other", lambda line: None)
    assert not told.equal and told.digest == other.digest and told.rounds == other.rounds
    rows = [data.read(path, DATASET.feature_list) for path in split_files(shop_sample, "test")]
    labels = np.concatenate([part for _, part in rows])
    before, after = (
        Scorer(one).score_features(np.concatenate([part for part, _ in rows]))
        for one in (bundle, Bundle.read(Path(other.uri)))
    )
    assert told.rows == len(labels) and told.max_difference == np.abs(after - before).max() > 0.001
    assert told.auc_difference == metrics.auc(labels, after) - metrics.auc(labels, before)
    assert told.log_loss_difference == metrics.log_loss(labels, after) - metrics.log_loss(labels, before)
    assert told.moved[0] == f"code_version: 0.0.1, now {__version__}" and told.moved[1].startswith("xgboost: not rec")

    for missing in ("9", "winner"):
        file = dag_project.write("again.py", AGAIN.format(version=missing, mlflow=str(tmp_path / "mlflow")))
        assert dag_project.run(file, "again").state == "failed"


@pytest.mark.parametrize(
    ("tags", "lineage", "words"),
    [
        ({}, {"workers": None, "sample_id": None}, "no sample_id, workers"),
        ({}, {"params": None}, "no params"),
        ({}, {"params": {"max_depth": 3}}, "no params.seed"),
        ({}, {"checkpoint_rounds": None}, "no checkpoint_rounds"),
        ({"sample_uri": None}, {}, "no the tag sml.sample_uri"),
    ],
)
def test_a_lineage_that_is_not_whole_is_refused_and_named(recorded, shop_lake, tags, lineage, words):
    with pytest.raises(ConfigurationError, match=rf"lineage of orders is not whole(.|\n)*found: {words}\n"):
        training_of("orders", *recorded(tags, **lineage), shop_lake)


def test_rounds_between_checkpoints_are_asked_for_only_where_they_decide(recorded, shop_model_drawn, shop_lake):
    params = shop_model_drawn[1].lineage["params"] | {"subsample": 1.0}
    found = training_of("orders", *recorded(params=params, checkpoint_rounds=None), shop_lake)
    assert found.settings == params


@pytest.mark.parametrize(
    ("lineage", "words"),
    [
        ({"snapshot_id": 77}, r"snapshot 77 of orders(.|\n)*found: \d+ other snapshots"),
        ({"table": "customers"}, r"snapshot \d+ of customers(.|\n)*found: no such table"),
    ],
)
def test_a_snapshot_that_is_gone_is_refused_and_named(recorded, shop_lake, lineage, words):
    with pytest.raises(ConfigurationError, match=rf"the snapshot that orders was trained on is gone(.|\n)*{words}"):
        training_of("orders", *recorded(**lineage), shop_lake)


def test_a_sample_that_is_gone_or_changed_is_refused_and_named(recorded, shop_lake, shop_sample, tmp_path):
    copy = tmp_path / "sample"
    shutil.copytree(shop_sample.uri, copy)
    bundle, tags = recorded({"sample_uri": str(copy)})
    assert training_of("orders", bundle, tags, shop_lake).sample == replace(shop_sample, uri=str(copy))
    file = next((copy / "train").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=rf"is not the one(.|\n)*train/{file.name} changed"):
        training_of("orders", bundle, tags, shop_lake)
    file.unlink()
    with pytest.raises(ConfigurationError, match=rf"is gone(.|\n)*{shop_sample.sample_id}(.|\n)*train/{file.name}"):
        training_of("orders", bundle, tags, shop_lake)
    shutil.rmtree(copy)
    with pytest.raises(ConfigurationError, match=r"is gone(.|\n)*manifest.json"):
        training_of("orders", bundle, tags, shop_lake)
