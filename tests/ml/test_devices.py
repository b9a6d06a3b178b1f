"""GPUs up to the call of the device: which one, its memory, where rows are put, what is recorded. No GPU is needed."""

import sys
import threading
import types

import numpy as np
import pytest
import xgboost
from xgboost.tracker import RabitTracker

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.training import devices
from airflow_provider_sml.ml.training.cluster import Cluster
from airflow_provider_sml.ml.training.memory import plan_gpu_memory
from airflow_provider_sml.ml.training.reproduction import other_device
from airflow_provider_sml.ml.training.trainer import Training, train
from tests.ml.test_interruptions import PLAIN, boost, work
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

GB = 10**9


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with four GPUs, as far as its files tell, and an XGBoost that says that it can use them."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "_DEV", tmp_path)
    monkeypatch.setattr(xgboost, "build_info", lambda: {"USE_CUDA": True})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def cupy(machine, monkeypatch):
    """A stand-in for CuPy that notes what is put on the GPU, and leaves it where it is."""
    put = []
    module = types.ModuleType("cupy")
    module.asarray = lambda array: put.append(array) or array
    module.cuda = types.SimpleNamespace(Device=lambda: types.SimpleNamespace(mem_info=(40 * GB, 80 * GB)))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return put


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,3", ["2", "3"]),
        ("", []),
        ("-1", []),
        ("1,-1,2", ["1"]),
        ("GPU-8f,", ["GPU-8f"]),
    ],
)
def test_a_process_sees_the_gpus_that_it_is_given(machine, monkeypatch, visible, seen):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.gpus() == seen
    assert devices.resolve_device("auto") == ("cuda" if seen else "cpu")
    if not seen:
        with pytest.raises(ConfigurationError, match="no GPU, XGBoost built with CUDA"):
            devices.resolve_device("cuda")


def test_ranks_of_which_one_has_no_gpu_train_without(machine, monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: ["0"] if threading.current_thread().name == "gpu" else [])
    tracker = RabitTracker(n_workers=2, host_ip="127.0.0.1", sortby="task")
    tracker.start()
    agreed = {}

    def rank(number):
        with xgboost.collective.CommunicatorContext(**tracker.worker_args(), dmlc_task_id=str(number)):
            agreed[number] = devices.agreed_device("auto")

    threads = [threading.Thread(target=rank, args=(number,), name=name) for number, name in enumerate(("gpu", "cpu"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    tracker.free()
    assert agreed == {0: "cpu", 1: "cpu"}
    assert devices.resolve_device("cpu") == "cpu"


def test_the_memory_of_the_own_gpu_is_asked_for(machine, cupy, monkeypatch, tmp_path):
    assert devices.gpu_memory() == 40 * GB
    monkeypatch.setitem(sys.modules, "cupy", None)
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --id=2 ] && echo 16000\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,0,1")
    assert devices.gpu_memory() == 16000 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ConfigurationError, match=r"memory of the GPU is not known(.|\n)*xgboost-gpu"):
        devices.gpu_memory()


def test_the_plan_goes_from_the_gpu_to_the_host_to_a_refusal():
    inside = plan_gpu_memory(100_000_000, 17, 64 * GB, 40 * GB, batch=10**6)
    assert (inside.mode, inside.device, inside.disk) == ("memory", "cuda", 0)
    assert inside.needed < 2 * GB < inside.gpu_needed < 32 * GB
    assert "of 40.0 GB on the GPU" in str(inside)
    outside = plan_gpu_memory(300_000_000, 17, 64 * GB, 40 * GB, batch=10**6)
    assert outside.mode == "external" and outside.disk == 0 and 10 * GB < outside.needed < 40 * GB
    with pytest.raises(ConfigurationError, match=r"one worker's GPU(.|\n)*more workers"):
        plan_gpu_memory(300_000_000, 17, 8 * GB, 40 * GB, batch=10**6)
    with pytest.raises(ConfigurationError, match="install CuPy"):
        plan_gpu_memory(300_000_000, 17, 64 * GB, 40 * GB, batch=10**6, direct=False)
    # without CuPy the matrix is made on the host first
    assert plan_gpu_memory(10**7, 17, 64 * GB, 40 * GB, batch=10**6, direct=False).needed > 1.2 * GB


@pytest.mark.parametrize("mode", ["memory", "external"])
def test_rows_are_put_on_the_gpu_as_they_are_read(cupy, shop_sample, tmp_path, monkeypatch, mode):
    asked = []

    class Booster(xgboost.Booster):
        def __init__(self, params, **rest):
            asked.append(params["device"])
            super().__init__(params | {"device": "cpu"}, **rest)

    monkeypatch.setattr(xgboost, "Booster", Booster)
    if mode == "external":  # values of a kilobyte, as it were
        monkeypatch.setattr("airflow_provider_sml.ml.training.memory.GPU_VALUE", 1000.0)
    todo = work(shop_sample, tmp_path, PLAIN, rows=[10**7])
    todo.settings["device"] = "auto"
    done = boost(todo)
    assert (done.device, done.memory.mode, done.memory.device) == ("cuda", mode, "cuda")
    assert set(asked) == {"cuda"}
    assert {array.shape[1] for array in cupy} == {len(DATASET.feature_list)} and cupy[0].dtype == np.float32
    host = boost(work(shop_sample, tmp_path / "host", PLAIN))
    assert host.device == "cpu" and host.model == done.model


def test_the_device_that_was_used_is_recorded(shop_sample, tmp_path):
    with Cluster("local") as cluster:
        model = train(Training(DATASET, shop_sample, PARAMS | {"rounds": 3}), cluster, tmp_path, lambda line: None)
    lineage = Bundle.read(tmp_path / model.model_id).lineage
    assert lineage["params"]["device"] == "auto" and lineage["device"] == "cpu"


def test_a_cluster_of_gpus_has_a_worker_each(machine, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"needs dask-cuda(.|\n)*xgboost-gpu"):
        Cluster("cuda", 4)
    with pytest.raises(ConfigurationError, match=r"too few GPUs(.|\n)*expected: 5, one a worker; found: 4"):
        Cluster("cuda", 5)
    from distributed import LocalCluster

    asked = []

    def local_cuda_cluster(device_memory_limit, host, **settings):
        asked.append(settings | {"device_memory_limit": device_memory_limit, "host": host})
        return LocalCluster(processes=False, **settings)

    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster = local_cuda_cluster
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    with Cluster("cuda", 2) as cluster:
        assert len(cluster.client.scheduler_info(n_workers=-1)["workers"]) == 2
    (settings,) = asked
    assert settings["n_workers"] == 2 and settings["host"] == "127.0.0.1" and settings["device_memory_limit"] == 0


def test_a_repeat_tells_when_its_device_is_another_one():
    def bundle(**lineage):
        return types.SimpleNamespace(lineage=lineage)

    assert other_device(bundle(device="cuda"), bundle(device="cpu")) == ["device: cuda, now cpu"]
    assert other_device(bundle(device="cpu"), bundle(device="cpu")) == []
    assert other_device(bundle(), bundle(device="cpu")) == []  # trained before devices were recorded
