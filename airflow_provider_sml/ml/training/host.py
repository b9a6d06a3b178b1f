"""One machine of a training job on SageMaker or Vertex AI: where its request, checkpoints and model lie, and its part.

Each machine is one rank of the runner, in the process's own main thread, so that SIGTERM is heard. Several meet over
XGBoost's tracker on the first of them. A machine that is lost ends all ranks; the service, or the task's retry, starts
them again, and they go on from the checkpoint, which the first rank alone writes. All read it before they meet.

What SageMaker and Vertex AI tell a container is documented in "How Amazon SageMaker AI Provides Training Information"
(docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html) and "Custom training:
environment variables" and "Distributed training" (docs.cloud.google.com/vertex-ai/docs/training/code-requirements).
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, JobError, SmlError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle
from airflow_provider_sml.ml.training.request import read_request, store_of
from airflow_provider_sml.ml.training.runner import InterruptedTraining, Outcome, run_rank
from airflow_provider_sml.ml.training.toll import Ledger
from airflow_provider_sml.ml.training.trainer import Training, bundle_of, check_settings, work_of

if TYPE_CHECKING:
    from xgboost.tracker import RabitTracker

#: Where the ranks meet on the first machine; the variable names another port.
PORT, PORT_VARIABLE = 9099, "SML_TRAINING_PORT"
#: Seconds until all machines must have come.
_MEETING_SECONDS = 900
#: Seconds until a port that an attempt before this one had must be free.
_PORT_SECONDS = 180


@dataclass(frozen=True)
class Host:
    """This machine among those of its job.

    :param request: address of the request's folder.
    :param model: address of the folder of the model.
    :param checkpoint: address of the folder of the checkpoints; empty for none.
    :param store: how the lake's store is reached, as ``request.store_settings`` gives it.
    :param sample: a copy of the sample on this machine; None to read it from the lake.
    :param hosts: names of the job's machines, by rank.
    :param rank: of this one.
    :param failure: file for the reason of a failure; None for none.
    """

    request: str
    model: str
    checkpoint: str = ""
    store: Mapping[str, Any] | None = None
    sample: Path | None = None
    hosts: tuple[str, ...] = ("localhost",)
    rank: int = 0
    failure: Path | None = None


def sagemaker_host(environ: Mapping[str, str]) -> Host | None:
    """This machine as SageMaker tells it by files below ``/opt/ml``; None elsewhere.

    :param environ: SAGEMAKER_BASE_DIR in it names another folder, as in SageMaker's own training toolkit.
    """
    base = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    given = base / "input" / "config" / "hyperparameters.json"
    if not given.is_file():
        return None
    told: dict[str, str] = json.loads(given.read_text())
    if "request" not in told:
        raise ConfigurationError(
            "the job has no request", expected="the hyper-parameter request, as SageMakerTrainOperator gives it with "
            "training=...", found=", ".join(told) or "no hyper-parameters",
        )  # fmt: skip
    hosts, rank = ("localhost",), 0
    resources = given.with_name("resourceconfig.json")
    if resources.is_file():
        machines = json.loads(resources.read_text())
        hosts = tuple(machines["hosts"])
        rank = hosts.index(machines["current_host"])
    data, kept = base / "input" / "data", base / "checkpoints"
    copied = data / "sample"
    return Host(
        request=str(data / "request") if (data / "request").is_dir() else told["request"],
        model=str(base / "model"),
        checkpoint=str(kept) if kept.is_dir() else "",
        store=json.loads(told.get("store", "{}")),
        sample=copied if copied.is_dir() else None,
        hosts=hosts,
        rank=rank,
        failure=base / "output" / "failure",
    )


def vertex_host(request: str, store: Mapping[str, Any], environ: Mapping[str, str]) -> Host:
    """This machine as Vertex AI tells it by the environment.

    :param request: address of the request's folder.
    :param store: how the lake's store is reached.
    :param environ: AIP_MODEL_DIR, AIP_CHECKPOINT_DIR or SML_CHECKPOINT_DIR, CLUSTER_SPEC.
    """
    if not environ.get("AIP_MODEL_DIR"):
        raise ConfigurationError(
            "there is no place for the model", expected="AIP_MODEL_DIR, as Vertex AI sets it, or --model", found="none"
        )
    hosts, rank = ("localhost",), 0
    if environ.get("CLUSTER_SPEC"):
        told = json.loads(environ["CLUSTER_SPEC"])
        pools = sorted(told["cluster"])
        machines = [(pool, number) for pool in pools for number in range(len(told["cluster"][pool]))]
        hosts = tuple(told["cluster"][pool][number].rpartition(":")[0] for pool, number in machines)
        rank = machines.index((told["task"]["type"], int(told["task"]["index"])))
    return Host(
        request=request, model=environ["AIP_MODEL_DIR"], store=store, hosts=hosts, rank=rank,
        checkpoint=environ.get("SML_CHECKPOINT_DIR") or environ.get("AIP_CHECKPOINT_DIR", ""),
    )  # fmt: skip


def train_on(host: Host, environ: Mapping[str, str], log: Callable[[str], None]) -> None:
    """Do this machine's part; the first one writes the model.

    :param host: this machine.
    :param environ: STORAGE_EMULATOR_HOST in it means that Cloud Storage is asked without credentials.
    :param log: takes a line of progress at least every ten seconds.
    :raises SmlError: when the training is interrupted, or fails.
    """
    store = store_of(dict(host.store or {}), anonymous="STORAGE_EMULATOR_HOST" in environ)
    for place in (host.request, host.checkpoint, host.model):
        storage.mount(bucket_of(place), store)
    training = read_request(storage.place(host.request), host.sample)
    if training.workers != len(host.hosts):
        raise ConfigurationError(
            "the job has another number of machines than the training has workers", expected=training.workers,
            found=len(host.hosts),
        )  # fmt: skip
    storage.mount(bucket_of(training.sample.uri), store)
    model = storage.place(host.model)
    if (model / BUNDLE_FILE).exists() and Bundle.read(model).model_id == training.model_id:
        log(f"model {training.model_id} is there: an attempt before this one got that far")
        return
    training = replace(training, checkpoint=storage.place(host.checkpoint) if host.checkpoint else None)
    bundle = _fit(training, host, int(environ.get(PORT_VARIABLE, PORT)), log)
    if bundle is not None:
        bundle.write(model)
        _forget(training)
        log(f"model {bundle.model_id}: {bundle.rounds} rounds, digest {bundle.digest}")


def bucket_of(location: str) -> str:
    """The bucket that an address lies in; what is no address as it is.

    :param location: a path or an address.
    """
    return "/".join(location.split("/", 3)[:3]) if storage.is_remote(location) else location


def _fit(training: Training, host: Host, port: int, log: Callable[[str], None]) -> Bundle | None:
    """Boost; the model on the first rank, None on every other one."""
    from dask.system import CPU_COUNT

    check_settings(training)
    started = time.monotonic()
    checkpoint, first = training.kept, host.rank == 0
    work = replace(work_of(training, checkpoint), start=checkpoint.read() if checkpoint else None)
    state = work.start[1] if work.start else None
    if state and first:
        log(f"going on from the checkpoint of round {state.rounds}")
    ledger = Ledger(training.toll_file if first else None, state)
    ledger.start(state, training.price(spot=True))

    def told(line: str) -> None:
        if line.startswith("round "):
            ledger.tell(int(line.split()[1]))
        log(line)

    try:
        outcome = _boost(host, port, lambda tracker: run_rank(host.rank, work, tracker, CPU_COUNT, told))
    except InterruptedTraining:
        reached = checkpoint.read() if checkpoint and first else None
        ledger.interrupted(reached[1] if reached else None)
        raise
    except SmlError:
        ledger.end()
        raise
    ledger.end()
    if not first:
        return None
    if ledger.toll.interruptions:
        log(f"{ledger.toll.interruptions} interruptions survived; {ledger.toll}")
    return bundle_of(training, outcome, ledger.toll.figures(), time.monotonic() - started)


def _boost(host: Host, port: int, part: Callable[[dict[str, Any] | None], Outcome]) -> Outcome:
    try:
        with _met(host, port) as tracker:
            return part(tracker)
    except SmlError:
        raise
    except Exception as error:  # XGBoost's own, mostly of a rank that was left alone
        said = str(error).partition("Stack trace")[0].strip()[:600]
        raise JobError("training failed", found=f"{type(error).__name__}: {said}") from error


@contextlib.contextmanager
def _met(host: Host, port: int) -> Iterator[dict[str, Any] | None]:
    """What a rank needs to meet the others; the first one holds the tracker. None for one that is alone."""
    if len(host.hosts) == 1:
        yield None
        return
    address = _resolved(host.hosts[0])
    # A connection that nobody takes yet is tried again after 2, 4, 6, ... seconds: 30 tries last a quarter of an hour.
    meet: dict[str, Any] = {"dmlc_tracker_uri": address, "dmlc_tracker_port": port, "dmlc_retry": 30,
                            "dmlc_timeout": _MEETING_SECONDS}  # fmt: skip
    if host.rank:
        yield meet
        return
    tracker = _tracker(len(host.hosts), address, port)
    tracker.start()
    try:
        yield meet
        tracker.wait_for(60)  # until the others have left, too
    finally:
        tracker.free()


def _tracker(ranks: int, address: str, port: int) -> RabitTracker:
    """XGBoost's tracker. Where an attempt before this one ran in the same place, its port is free only after a minute,
    because XGBoost does not ask for it by SO_REUSEADDR."""
    from xgboost.core import XGBoostError
    from xgboost.tracker import RabitTracker

    end = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return RabitTracker(ranks, address, port, sortby="task", timeout=_MEETING_SECONDS)
        except XGBoostError as error:
            if "Address already in use" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(1)


def _resolved(name: str) -> str:
    """The address of a machine; its name is known once it has come."""
    end = time.monotonic() + _MEETING_SECONDS
    while True:
        try:
            return socket.gethostbyname(name)
        except OSError as error:
            if time.monotonic() > end:
                raise JobError(f"the machine {name} did not come", found=str(error)) from error
            time.sleep(2)


def _forget(training: Training) -> None:
    """Remove the checkpoint of a training whose model is written."""
    if checkpoint := training.kept:
        checkpoint.remove()
    if toll := training.toll_file:
        toll.unlink(missing_ok=True)
