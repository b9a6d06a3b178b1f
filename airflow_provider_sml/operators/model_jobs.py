"""Training one of this package's models as a job of a service: its request before, its model afterwards.

``SageMakerTrainOperator`` and ``VertexTrainOperator`` take it as ``training``. The job runs the image of
``docker/scoring.Dockerfile``, reads the sample from the lake, and writes the model bundle where the service wants it;
the task then brings the bundle into the lake, where a training of its own would have put it. So what follows is the
same wherever a model was trained: the same sample, parameters, seed and number of workers give the same model, and one
that is there already is taken again without a job.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml import errors
from airflow_provider_sml.cloud.remote_job import Adapter, Step, failure
from airflow_provider_sml.errors import ConfigurationError, IntegrityError, SmlError, did_you_mean
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.operators.cost import Cost, training_cost
from airflow_provider_sml.operators.remote_job import RemoteJobOperator
from airflow_provider_sml.operators.training_inputs import searched, start_version
from airflow_provider_sml.refs import ModelRef, SampleRef, TrainingJobRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.training.trainer import Training

#: What a retry cannot mend, as the container tells it.
_KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SmlError)]
_FINAL = re.compile(rf"\b({'|'.join(kind.__name__ for kind in _KINDS if not kind.retryable)}): ")
_LAKE = "{lake}"


@dataclass(frozen=True, kw_only=True)
class ModelTraining:
    """What a job trains; the values are those of ``TrainXGBoostOperator``.

    :param sample: what ``SampleOperator`` gave.
    :param dataset: features and label.
    :param hyperparameters: XGBoost's parameters and ours.
    :param workers: machines; the rows are split over them.
    :param models: folder for the model bundles; beside the sample's lake when None.
    :param checkpoint_rounds: rounds between checkpoints.
    :param checkpoint_seconds: seconds between checkpoints, whichever comes first; 0 for rounds only.
    :param warm_start: a registered version to start from: its number, ``champion``, or the output of a task.
    :param name: registered model of ``warm_start``; the dataset's name when empty.
    :param mlflow: address or folder of MLflow, or the id of its connection, for ``warm_start``.
    :param usd_per_hour: what one machine costs in an hour, for what interruptions cost.
    :param open_lake: opens the lake, to be written to.
    """

    sample: Any
    dataset: Any
    hyperparameters: Any = field(default_factory=dict)
    workers: int = 1
    models: str | None = None
    checkpoint_rounds: int = 50
    checkpoint_seconds: float = 60.0
    warm_start: Any = ""
    name: str = ""
    mlflow: str = MlflowHook.default_conn_name
    usd_per_hour: float = 0.0
    open_lake: Callable[[str], Lake] = field(repr=False)

    @classmethod
    def load(cls, values: Mapping[str, Any], dataset: Any, open_lake: Callable[[str], Lake]) -> ModelTraining:
        """Take the values of an operator.

        :raises ConfigurationError: naming one that there is not, or that is missing.
        """
        known = {item.name for item in fields(cls)} - {"open_lake", "dataset"}
        unknown = sorted(set(values) - known)
        missing = [name for name, there in (("sample", values.get("sample")), ("dataset", dataset)) if not there]
        if unknown or missing:
            raise ConfigurationError(
                "what the job trains is not described rightly", expected=f"dataset, and {', '.join(sorted(known))}",
                found=f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}",
                todo=did_you_mean(unknown[0], known) if unknown else None,
            )  # fmt: skip
        return cls(**values, dataset=dataset, open_lake=open_lake)

    @cached_property
    def lake(self) -> Lake:
        """The lake of the sample, with its store mounted."""
        return self.open_lake(SampleRef.load(self.sample).lake)

    @cached_property
    def training(self) -> Training:
        """The training, as the task itself would do it."""
        from airflow_provider_sml.ml.contract.dataset import Dataset
        from airflow_provider_sml.ml.training.trainer import Training

        dataset = Dataset.load(self.dataset)
        self.lake.location  # noqa: B018 - opening the lake mounts its store
        return Training(
            dataset, SampleRef.load(self.sample), dict(searched(self.hyperparameters)), self.workers,
            every=self.checkpoint_rounds, seconds=self.checkpoint_seconds, usd_per_hour=self.usd_per_hour,
            warm_start=start_version(self.warm_start, self.name or dataset.name, self.mlflow),
        )  # fmt: skip

    def located(self, address: str) -> str:
        """An address with ``{lake}`` filled in."""
        return address.replace(_LAKE, self.lake.location)

    def below(self, address: str) -> str:
        """A folder of this model below an address: other models never meet there."""
        return f"{self.located(address).rstrip('/')}/{self.training.dataset.name}/{self.training.model_id}"

    def known(self) -> ModelRef | None:
        """The model, when it has been trained before."""
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle

        folder = storage.find_folder(self._place)
        if folder is None or not (folder / BUNDLE_FILE).exists():
            return None
        return self._ref(str(folder), Bundle.read(folder))

    @property
    def request(self) -> str:
        """Address of the request's folder, beside the lake's tables."""
        return f"{self.lake.location}/requests/{self.training.dataset.name}/{self.training.model_id}"

    @property
    def store(self) -> str:
        """How the lake's store is reached, as JSON without credentials."""
        from airflow_provider_sml.ml.training.request import store_settings

        return json.dumps(store_settings(self.lake.store), sort_keys=True)

    def write_request(self, scheme: str) -> None:
        """Check the training and write its request.

        :param scheme: of the stores that the service reaches, such as ``s3``.
        :raises ConfigurationError: when the parameters are wrong, or the lake is out of reach.
        """
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.training.request import write_request
        from airflow_provider_sml.ml.training.trainer import check_settings

        sample = SampleRef.load(self.sample).uri
        for what, address in (("the lake", self.lake.location), ("the sample", sample)):
            if not address.startswith(f"{scheme}://"):
                raise ConfigurationError(
                    f"{what} is out of reach of the training job", expected=f"an address in {scheme}://", found=address,
                    todo="give the lake a place there, or train on this machine (cluster: local)",
                )  # fmt: skip
        check_settings(self.training)
        write_request(self.training, storage.place(self.request))

    def take(self, bundle: Mapping[str, bytes], job: TrainingJobRef) -> ModelRef:
        """Bring the model of a job into the lake.

        :param bundle: files of the bundle by name.
        :param job: what it cost; it becomes part of the model's lineage.
        :raises IntegrityError: when it is no bundle, or another model.
        """
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.bundle import Bundle

        with tempfile.TemporaryDirectory(prefix="sml-model-") as folder:
            for name, content in bundle.items():
                (Path(folder) / name).write_bytes(content)
            made = Bundle.read(Path(folder))
        if made.model_id != self.training.model_id:
            raise IntegrityError(
                f"the job {job.job} left another model", expected=self.training.model_id, found=made.model_id,
                todo="look what the image is; it has to be that of docker/scoring.Dockerfile",
            )  # fmt: skip
        facts = {key: value for key, value in asdict(job).items() if value not in (None, "")}
        made = replace(made, lineage={**made.lineage, "job": facts})
        filled = storage.fresh_folder(self._place)
        made.write(filled)
        return self._ref(str(storage.settle(filled, self._place)), made)

    @property
    def _place(self) -> Path:
        """Where the model lies, under the name that ``storage.settle`` gives."""
        from airflow_provider_sml.ml import storage

        base = self.models or f"{self.lake.location}/models/{self.training.dataset.name}"
        return storage.place(self.located(base)) / self.training.model_id

    def _ref(self, uri: str, bundle: Any) -> ModelRef:
        from airflow_provider_sml.ml.training.toll import TOLL

        sample = SampleRef.load(self.sample)
        return ModelRef(
            uri=uri, model_id=bundle.model_id, digest=bundle.digest, sample_id=sample.sample_id, rounds=bundle.rounds,
            lake=sample.lake, toll={name: value for name in TOLL if (value := bundle.lineage.get(name))},
        )  # fmt: skip


class TrainingJobOperator(RemoteJobOperator):
    """What the operators of services that train share: a model of ours is trained once, and brought into the lake.

    :param training: the values of ``ModelTraining`` but the dataset; None where the image trains something else.
    :param dataset: features and label, with ``training``.
    :param plan: print the exact request and the highest cost, and change nothing.
    """

    #: The service's name in costs, and the scheme of the stores that it reaches.
    service: str
    scheme: str
    #: The job that ended, for what it cost.
    _ended: TrainingJobRef | None = None

    def __init__(
        self,
        *,
        training: Mapping[str, Any] | None = None,
        dataset: Any = None,
        plan: bool = False,
        poll_interval: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poll_interval=poll_interval, **kwargs)
        self.training = training
        self.dataset = dataset
        self.plan = plan

    @abstractmethod
    def training_job(self, context: Context) -> Any:
        """The adapter of the job; asks the service nothing."""

    @abstractmethod
    def show_plan(self, job: Any) -> Any:
        """Print the exact request and the highest cost of a job."""

    @property
    def model_training(self) -> ModelTraining:
        """What is trained of ours."""
        return ModelTraining.load(self.training or {}, self.dataset, self.open_lake)

    def job(self, context: Context) -> Adapter:
        """The training job, with its request written where it trains a model of ours."""
        job: Adapter = self._checked(context)
        if self.training:
            self.model_training.write_request(self.scheme)
        return job

    def run(self, context: Context) -> Any:
        """Train, or print the plan."""
        if self.plan:
            return self.show_plan(self._checked(context))
        found = self.model_training.known() if self.training else None
        if found:
            self.log.info("model %s was trained before and is used again", found.model_id)
        return found or super().run(context)

    def failed(self, step: Step) -> Exception:
        """The error of a job that failed; what the training itself refuses is not tried again."""
        final = bool(self.training) and _FINAL.search(step.message)
        return failure(replace(step, retryable=False) if final else step)

    def costs(self, result: Any) -> list[Cost]:
        """What the job cost; nothing for a plan."""
        return [training_cost(f"{self.service} training", self._ended)] if self._ended else []

    def _checked(self, context: Context) -> Any:
        job = self.training_job(context)
        job.check()
        return job


def unpacked(archive: bytes, job: str) -> dict[str, bytes]:
    """The files of a ``model.tar.gz``.

    :param archive: its bytes.
    :param job: that left it, for the message.
    :raises IntegrityError: when it is damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            files = {member.name: packed.extractfile(member) for member in packed if member.isfile()}
            return {Path(name).name: file.read() for name, file in files.items() if file}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise IntegrityError(f"the model of job {job} is damaged", expected="a model.tar.gz", found=error) from error


def refuse_given(given: Mapping[str, Any], what: str) -> None:
    """Refuse values of an operator that ``training`` decides.

    :param given: by name.
    :param what: decides them.
    """
    if found := sorted(name for name, value in given.items() if value):
        raise ConfigurationError(
            f"{what} decides {', '.join(found)}", expected="none of them beside training", found=", ".join(found)
        )
