"""Training where sample and checkpoints lie on an object store: real servers of S3 and Google Cloud Storage."""

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.runner import InterruptedTraining
from airflow_provider_sml.ml.training.trainer import Training, train
from tests.ml.test_interruptions import RANDOM, boost, go_after, resumed, work
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS


@pytest.fixture(params=["s3_store", "gcs_store"])
def bucket(request):
    """A bucket of a real server, reached by a mount."""
    server = request.getfixturevalue(request.param)
    found = server.bucket()
    storage.mount(found, server.store)
    return storage.place(found)


def test_a_checkpoint_on_an_object_store_is_gone_on_from(shop_sample, tmp_path, bucket, monkeypatch):
    whole = boost(work(shop_sample, tmp_path, RANDOM))
    todo = work(shop_sample, bucket / "checkpoints", RANDOM)
    with monkeypatch.context() as patched:
        go_after(patched, 31)
        with pytest.raises(InterruptedTraining):
            boost(todo)
    assert [path.name for path in (bucket / "checkpoints").iterdir()] == ["t1.ubj"]  # one object, nothing half-made
    assert resumed(todo).start[1].rounds == 30
    assert boost(resumed(todo)).model == whole.model


def test_workers_read_the_sample_from_an_object_store(shop_sample, tmp_path, bucket):
    """Each in a process of its own, by what it is given: no mount and no credential of its environment."""
    folder = bucket / "samples" / "orders" / shop_sample.sample_id
    for path in Path(shop_sample.uri).rglob("*"):
        if path.is_file():
            storage.write(folder / str(path.relative_to(shop_sample.uri)), path.read_bytes())
    settings = PARAMS | RANDOM | {"rounds": 30}
    here = Training(DATASET, shop_sample, settings, 2, every=10)
    there = replace(here, sample=replace(shop_sample, uri=str(folder)), checkpoint=bucket / "checkpoints", seconds=0)
    with cluster("processes", workers=2) as client:
        model = train(there, client, bucket / "models", lambda line: None)
        assert model.digest == train(here, client, tmp_path / "models", lambda line: None).digest
    assert storage.place(model.uri).exists() and not list((bucket / "checkpoints").glob("*"))
