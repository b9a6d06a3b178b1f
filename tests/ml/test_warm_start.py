"""Rounds on top of a registered version: its trees stay, an interruption changes no byte, a misfit is refused."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow.parquet as pq
import pytest
import xgboost

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data, metrics
from airflow_provider_sml.ml.training.checkpoint import Checkpoint
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.runner import InterruptedTraining
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.ml.training.warm_start import WarmStart
from tests.ml.test_interruptions import PLAIN, RANDOM, boost, drive, go_after, resumed, work
from tests.ml.test_lake_shops import DATASET
from tests.processes import start
from tests.trained import PARAMS, make_sample, rows_of

FEATURES = DATASET.feature_list
EXTRA = PARAMS | {"rounds": 12, "early_stopping": 12}


@pytest.fixture(scope="module")
def local():
    with cluster("local") as client:
        yield client


@pytest.fixture(scope="module")
def version(local, tmp_path_factory):
    """A version trained on the first days."""
    folder = tmp_path_factory.mktemp("version")
    sample = make_sample(folder / "sample", {"train": rows_of(0, 4), "validate": rows_of(4, 6), "test": rows_of(6, 7)})
    model = train(Training(DATASET, sample, PARAMS | {"rounds": 10}), local, folder / "models", lambda line: None)
    return WarmStart("orders", "1", Bundle.read(Path(model.uri)))


def booster(model):
    found = xgboost.Booster()
    found.load_model(bytearray(model))
    return found


def test_rounds_come_on_top_of_the_rounds_of_the_version(local, shop_sample, tmp_path, version):
    lines = []
    training = Training(DATASET, shop_sample, EXTRA, warm_start=version)
    model = train(training, local, tmp_path, lines.append)
    bundle = Bundle.read(Path(model.uri))
    before = version.bundle.rounds
    assert before < model.rounds <= before + 12
    whole = booster(bundle.model)
    assert whole.num_boosted_rounds() == model.rounds
    assert whole[:before].get_dump() == booster(version.bundle.model).get_dump()
    assert lines[0] == f"starting from the {before} rounds of orders version 1"
    assert bundle.lineage["warm_start"] == {
        "name": "orders", "version": "1", "model_id": version.bundle.model_id, "digest": version.bundle.digest,
        "rounds": before,
    }  # fmt: skip

    cold = Training(DATASET, shop_sample, EXTRA)
    assert cold.model_id != training.model_id
    read = [data.read(path, FEATURES) for path in split_files(shop_sample, "test")]
    rows, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    losses = [
        metrics.log_loss(labels, Scorer(each).score_features(rows))
        for each in (bundle, version.bundle, Bundle.read(Path(train(cold, local, tmp_path, print).uri)))
    ]
    assert losses[0] < min(losses[1:]), "better than the version alone, and than the new rounds alone"


def test_what_stops_the_rounds_is_the_loss_of_the_whole_model(local, shop_sample, tmp_path, version):
    training = Training(DATASET, shop_sample, EXTRA, warm_start=version)
    bundle = Bundle.read(Path(train(training, local, tmp_path, print).uri))
    read = [data.read(path, FEATURES) for path in split_files(shop_sample, "validate")]
    rows, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    told = bundle.lineage["history"]["logloss"]
    assert min(told) == told[bundle.rounds - version.bundle.rounds - 1]
    assert min(told) == pytest.approx(metrics.log_loss(labels, Scorer(bundle).raw_scores(rows)), abs=1e-5)


@pytest.mark.parametrize("settings", [RANDOM, PLAIN], ids=["random", "plain"])
@pytest.mark.parametrize("after", [1, 10, 17])
def test_an_interruption_changes_no_byte(shop_sample, tmp_path, settings, after, monkeypatch, version):
    whole = boost(work(shop_sample, tmp_path, settings, base=version.bundle.model))
    todo = work(shop_sample, tmp_path / "spot", settings, base=version.bundle.model)
    go_after(monkeypatch, after)
    with pytest.raises(InterruptedTraining, match=f"round {after}"):
        boost(todo)
    again = boost(resumed(todo))
    assert again.model == whole.model and again.state.best_round == whole.state.best_round
    assert booster(again.model).num_boosted_rounds() == version.bundle.rounds + again.state.best_round + 1


def test_a_driver_that_is_killed_changes_no_byte(shop_sample, tmp_path, version):
    settings = RANDOM | {"rounds": 300, "early_stopping": 300}
    todo = work(shop_sample, tmp_path / "spot", settings, base=version.bundle.model, every=30)
    (tmp_path / "work").write_bytes(cloudpickle.dumps(todo))
    driver = start(drive, tmp_path / "work")
    while driver.is_alive() and not todo.checkpoint.exists():
        time.sleep(0.01)
    driver.kill()
    driver.join()
    assert driver.exitcode == -signal.SIGKILL
    assert 0 < Checkpoint(todo.checkpoint, "t1").read()[1].rounds < 300
    again = boost(resumed(todo))
    whole = work(shop_sample, tmp_path, settings, base=version.bundle.model, every=30)
    assert again.model == boost(whole).model


def test_external_memory_changes_no_byte(shop_sample, tmp_path, monkeypatch, version):
    inside = boost(work(shop_sample, tmp_path, PLAIN, base=version.bundle.model))
    todo = work(shop_sample, tmp_path / "disk", PLAIN, rows=[10**7], base=version.bundle.model)
    monkeypatch.setattr("airflow_provider_sml.ml.training.runner.memory_limit", lambda sharing: 900 * 10**6)
    outside = boost(todo)
    assert (inside.memory.mode, outside.memory.mode) == ("memory", "external")
    assert outside.model == inside.model


def test_two_workers_of_which_one_has_no_rows_learn_what_one_learns(local, tmp_path, version):
    sample = make_sample(
        tmp_path / "sample", {"train": rows_of(0, 11), "validate": rows_of(11, 14), "test": rows_of(14, 17)}, 2
    )
    for split in ("train", "validate"):
        path = split_files(sample, split)[1]
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    alone = train(Training(DATASET, sample, EXTRA, warm_start=version), local, tmp_path / "models", print)
    with cluster("processes", workers=2) as client:
        training = Training(DATASET, sample, EXTRA, 2, warm_start=version)
        together = train(training, client, tmp_path / "models", print)
    rows = data.read(split_files(sample, "test")[0], FEATURES)[0]
    found = [Scorer(Bundle.read(Path(model.uri))).raw_scores(rows) for model in (alone, together)]
    assert together.rounds > version.bundle.rounds and np.abs(found[0] - found[1]).max() < 0.02


def changed(**parts):
    described = DATASET.model_dump()
    return type(DATASET)(**described | parts)


def columns(**changes):
    contract = DATASET.model_dump()["contract"]
    return contract | {"columns": contract["columns"] | changes}


FORMULAS = dict(DATASET.features)
CITY = DATASET.model_dump()["contract"]["columns"]["city"]


@pytest.mark.parametrize(
    ("dataset", "params", "words"),
    [
        (
            changed(features={"hour": FORMULAS["hour"]}),
            {},
            r"other features(.|\n)*hour, weight, rain(.|\n)*: hour\n",
        ),
        (changed(features=dict(reversed(FORMULAS.items()))), {}, "has other features"),
        (changed(features=FORMULAS | {"rain": "weather.rain * 2"}), {}, r"feature rain(.|\n)*found: weather.rain \* 2"),
        (
            changed(contract=columns(city=CITY | {"values": ["Bern", "Rome", "Oslo"]})),
            {},
            r"feature city(.|\n)*Bern, Oslo, Rome(.|\n)*found: city \(Bern, Rome, Oslo\)",
        ),
        (changed(label="minutes_late > 20"), {}, r"another label(.|\n)*minutes_late > 10(.|\n)*minutes_late > 20"),
        (DATASET, {"monotone": {"rain": 1}}, r"not held to train.monotone.rain(.|\n)*no constraint"),
        (DATASET, {"monotone_constraints": "(1,0,0,0,0)"}, "not held to monotone_constraints"),
    ],
)
def test_a_version_that_does_not_fit_is_refused(shop_sample, tmp_path, version, dataset, params, words):
    training = Training(dataset, shop_sample, EXTRA | params, warm_start=version)
    with pytest.raises(ConfigurationError, match=rf"orders version 1, from which(.|\n)*{words}"):
        train(training, None, tmp_path, print)  # no cluster is asked
    assert not list(tmp_path.iterdir())


def test_trees_of_another_booster_are_refused(shop_sample, tmp_path, version):
    training = Training(DATASET, shop_sample, EXTRA | {"booster": "dart"}, warm_start=version)
    with pytest.raises(ConfigurationError, match=r"trees of gbtree alone(.|\n)*found: dart"):
        train(training, None, tmp_path, print)


def test_a_version_that_was_held_to_the_constraints_fits(shop_sample, version):
    held = replace(version.bundle, lineage={"params": {"monotone": {"rain": 1, "weight": 1}}})
    replace(version, bundle=held).check(DATASET, {"monotone": {"rain": 1}})
