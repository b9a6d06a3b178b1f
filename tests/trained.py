"""A lake of the shops, a sample and a model trained on it, made once for the whole run without Spark; a plugin."""

import contextlib
import datetime as dt
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml import sampling
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.refs import SampleRef
from tests import shops
from tests.ml.test_lake_shops import DATASET, publish, stored_day

DAYS = shops.days(17)
#: The next two days, which the model has not seen: one as always, one of storm.
NIGHT, STORM = shops.days(2, DAYS[-1] + dt.timedelta(days=1))
PARAMS = {"max_depth": 3, "rounds": 40, "early_stopping": 5}


def rows_of(first: int, last: int, rows: int = 120) -> pa.Table:
    """The rows of some days, from the first to before the last."""
    return pa.concat_tables([stored_day(day, rows) for day in DAYS[first:last]])


def make_sample(folder: Path, splits: Mapping[str, pa.Table], shards: int = 4) -> SampleRef:
    """A sample of given rows as ``sampling.draw`` lays it down; every so-manieth row goes to one shard."""
    content = hashlib.sha256()
    for split, table in splits.items():
        (folder / split).mkdir(parents=True)
        for shard in range(shards):
            part = table.take(pa.array(range(shard, table.num_rows, shards), pa.int64()))
            pq.write_table(part, folder / split / f"{shard:03d}.parquet")
            content.update((folder / split / f"{shard:03d}.parquet").read_bytes())
    windows = {split: [DAYS[0].isoformat(), DAYS[-1].isoformat()] for split in splits}
    (folder / "manifest.json").write_text(json.dumps({"windows": windows}))
    rows = {split: table.num_rows for split, table in splits.items()}
    return SampleRef(str(folder), content.hexdigest()[:12], "orders", 1, "all", 1.0, rows)


@pytest.fixture
def nothing_left():
    """After the test no process is there that was not there before it, and no thread that watches for notices."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    yield
    made = [child for child in me.children(recursive=True) if child not in before and not _of_python(child, me)]
    _, alive = psutil.wait_procs(made, timeout=15)
    assert [_command(child) for child in alive] == []
    assert not [thread for thread in threading.enumerate() if thread.name == "sml-interruption"]


def _of_python(process, me):
    """Python's own helpers of multiprocessing, one a process, which stay; what is forked from one looks like it."""
    if not any(name in _command(process) for name in ("resource_tracker", "forkserver")):
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.ppid() == me.pid
    return True


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="session")
def shop_lake(tmp_path_factory):
    """Seventeen ordinary days, then a quiet one and a stormy one."""
    lake = Lake(str(tmp_path_factory.mktemp("trained") / "lake"))
    tables = {day: stored_day(day, 120) for day in DAYS}
    publish(lake, tables | {NIGHT: stored_day(NIGHT, 120), STORM: stored_day(STORM, 120, stormy=True)})
    return lake


@pytest.fixture(scope="session")
def shop_sample(shop_lake):
    """All rows of the seventeen days: eleven to train, three to stop early, three to test."""
    windows = sampling.windows(DAYS[-1], 11, 3, 3, dt.timedelta(0))
    return sampling.draw(shop_lake, "orders", windows, method="all")


@pytest.fixture(scope="session")
def shop_model(shop_sample):
    """A model of that sample."""
    models = Path(shop_sample.uri).parents[2] / "models" / "orders"
    with cluster("local") as client:
        return train(Training(DATASET, shop_sample, PARAMS), client, models, lambda line: None)
