"""Training on SageMaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_sml.cloud.remote_job import job_name
from airflow_provider_sml.errors import ConfigurationError, SmlError, did_you_mean
from airflow_provider_sml.hooks.clients import connected
from airflow_provider_sml.operators.base import lineage, run_key
from airflow_provider_sml.operators.model_jobs import TrainingJobOperator, refuse_given, unpacked
from airflow_provider_sml.operators.openlineage import Data
from airflow_provider_sml.operators.training_inputs import training_datasets
from airflow_provider_sml.refs import ModelRef, SampleRef, TrainingJobRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.cloud.sagemaker_training import SageMakerTrainingJob


class SageMakerTrainOperator(TrainingJobOperator):
    """Runs a training job on SageMaker, on spot machines where wanted.

    One job for one task, whatever happens: its name follows from the DAG run, a retry attaches, a job that completed
    is taken again only when its specification is the same. When there is no capacity, the next machine type of the
    list is taken. Killing the task stops the job. Spot is refused without a place for checkpoints.

    :param image: the training container.
    :param role: ARN of the role that it runs as.
    :param output_path: S3 folder of the model.
    :param instances: machine types, the preferred one first.
    :param inputs: S3 folder of each channel.
    :param hyperparameters: given to the container.
    :param spot: use managed spot training.
    :param checkpoint: S3 folder of the checkpoints.
    :param options: further values of ``cloud.sagemaker_training.SageMakerTrainingJob``: ``count``, ``max_runtime``
        (seconds), ``kms_key``, ``subnets``, ``on_demand_last``, ``prices`` and the others.
    :param aws_conn_id: the AWS connection.
    :param region: the region; the connection's when empty.
    :param training: one of this package's models, which the image of ``docker/scoring.Dockerfile`` trains: the values
        of ``operators.model_jobs.ModelTraining`` but the dataset, such as ``sample``, ``hyperparameters`` and
        ``workers``, which is the number of machines. The result is then the model in the lake, as
        ``TrainXGBoostOperator`` gives it. ``{lake}`` in ``output_path`` and ``checkpoint`` stands for the lake's place.
    :param dataset: features and label, with ``training``.
    :param plan: print the exact request and the highest cost, and change nothing.
    """

    template_fields: Sequence[str] = (
        "image", "role", "output_path", "instances", "inputs", "hyperparameters", "checkpoint", "options", "region",
        "training",
    )  # fmt: skip
    ui_color = "#f8d7da"
    service, scheme = "SageMaker", "s3"

    def __init__(
        self,
        *,
        image: str,
        role: str,
        output_path: str,
        instances: Sequence[str],
        inputs: Mapping[str, str] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        spot: bool = False,
        checkpoint: str = "",
        options: Mapping[str, Any] | None = None,
        aws_conn_id: str = "aws_default",
        region: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image = image
        self.role = role
        self.output_path = output_path
        self.instances = instances
        self.inputs = inputs or {}
        self.hyperparameters = hyperparameters or {}
        self.spot = spot
        self.checkpoint = checkpoint
        self.options = options or {}
        self.aws_conn_id = aws_conn_id
        self.region = region

    def training_job(self, context: Context) -> SageMakerTrainingJob:
        from airflow_provider_sml.cloud.sagemaker_training import NAME_LIMIT, SageMakerTrainingJob

        taken = ("name", "connection", "region", "image", "role", "output", "instances", "inputs", "hyperparameters",
                 "spot", "checkpoint")  # fmt: skip
        known = {item.name for item in fields(SageMakerTrainingJob)} - set(taken)
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise ConfigurationError(
                "there are no such options of a SageMaker training job",
                expected=", ".join(sorted(known)), found=", ".join(unknown),
                todo=did_you_mean(unknown[0], known),
            )  # fmt: skip
        options = dict(self.options)
        job = SageMakerTrainingJob(
            name=job_name(*run_key(context), limit=NAME_LIMIT),
            connection=self.aws_conn_id,
            region=self.region,
            image=self.image,
            role=self.role,
            output=self.output_path,
            instances=list(self.instances),
            inputs=dict(self.inputs),
            hyperparameters={key: str(value) for key, value in self.hyperparameters.items()},
            spot=self.spot,
            checkpoint=self.checkpoint,
            tags=lineage(context) | dict(options.pop("tags", {})),
            **options,
        )
        return self._of_model(job) if self.training else job

    def _of_model(self, job: SageMakerTrainingJob) -> SageMakerTrainingJob:
        """The job that trains a model of ours: told by its request, and without a network by copies of the data."""
        refuse_given(
            {
                "inputs": job.inputs,
                "hyperparameters": job.hyperparameters,
                "count": "count" in self.options,
                "script": job.script,
            },
            "training",
        )
        model = self.model_training
        copies = {"request": f"{model.request}/", "sample": f"{SampleRef.load(model.sample).uri}/"}
        return replace(
            job, hyperparameters={"request": model.request, "store": model.store}, count=model.workers,
            inputs=copies if job.network_isolation else {}, output=model.below(job.output),
            checkpoint=model.below(job.checkpoint) if job.checkpoint else "",
        )  # fmt: skip

    def show_plan(self, job: SageMakerTrainingJob) -> Any:
        """Print the exact request and the highest cost."""
        from airflow_provider_sml.cloud.prices import estimate
        from airflow_provider_sml.operators.plan import show

        hours = job.max_runtime * job.count / 3600
        most = estimate(job.instances[0], hours, job.prices)
        cost = f"at most {most:,.2f} USD" if most is not None else f"no price is known for {job.instances[0]}"
        call = ("sagemaker", "create_training_job", job.request(job.name))
        return show(self.log, f"training job {job.name}", [call], f"{cost}, after {hours:g} hours on demand")

    def finish(self, context: Context, result: dict[str, Any]) -> TrainingJobRef | ModelRef:
        """What was trained, and what it cost."""
        ref = self._ended = TrainingJobRef(**result)
        cost = "unknown" if ref.cost_usd is None else f"{ref.cost_usd:,.4f} USD"
        self.log.info(
            "job %s on %d x %s: %d s of training, %d s billed, %d interruptions, %.1f %% saved, cost %s",
            ref.job, ref.count, ref.instance, ref.training_seconds, ref.billable_seconds, ref.interruptions,
            ref.savings_percent, cost,
        )  # fmt: skip
        return self._taken(connected(self.training_job(context)), ref) if self.training else ref

    def _taken(self, job: SageMakerTrainingJob, ref: TrainingJobRef) -> ModelRef:
        """The model of the job, brought into the lake; its checkpoints are not needed any more."""
        place = urlsplit(ref.model)
        archive = job.call("s3", "get_object", Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()
        model = self.model_training.take(unpacked(archive, ref.job), ref)
        if job.checkpoint:
            kept = urlsplit(job.checkpoint)
            try:
                found = job.call("s3", "list_objects_v2", Bucket=kept.netloc, Prefix=f"{kept.path.strip('/')}/")
                for each in found.get("Contents", []):
                    job.call("s3", "delete_object", Bucket=kept.netloc, Key=each["Key"])
            except SmlError as error:
                self.log.warning("the checkpoints in %s stay: %s", job.checkpoint, error)
        return model

    def datasets(self, result: Any) -> tuple[list[Data], list[Data]]:
        """The channels' folders, and the folder that the job's model lies in; of a model of ours its sample and itself.
        Nothing for a plan."""
        if isinstance(result, ModelRef) and self.training:
            return training_datasets(self.training["sample"], result)
        if not isinstance(result, TrainingJobRef):
            return [], []
        read = [Data(uri) for uri in self.inputs.values()]
        return read, [Data(self.output_path, version=result.job)]
