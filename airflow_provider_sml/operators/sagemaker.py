"""Training on SageMaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.remote_job import Adapter, job_name
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.operators.base import lineage, run_key
from airflow_provider_sml.operators.cost import Cost, training_cost
from airflow_provider_sml.operators.openlineage import Data
from airflow_provider_sml.operators.remote_job import RemoteJobOperator
from airflow_provider_sml.refs import TrainingJobRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.cloud.sagemaker_training import SageMakerTrainingJob


class SageMakerTrainOperator(RemoteJobOperator):
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
    :param plan: print the exact request and the highest cost, and change nothing.
    """

    template_fields: Sequence[str] = (
        "image", "role", "output_path", "instances", "inputs", "hyperparameters", "checkpoint", "options", "region",
    )  # fmt: skip
    ui_color = "#f8d7da"

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
        plan: bool = False,
        poll_interval: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poll_interval=poll_interval, **kwargs)
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
        self.plan = plan

    def job(self, context: Context) -> Adapter:
        """The training job."""
        return self._job(context)

    def _job(self, context: Context) -> SageMakerTrainingJob:
        from airflow_provider_sml.cloud.sagemaker_training import NAME_LIMIT, SageMakerTrainingJob

        known = {item.name for item in fields(SageMakerTrainingJob)} - {"name", "connection"}
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise ConfigurationError(
                "there are no such options of a SageMaker training job",
                expected=", ".join(sorted(known)), found=", ".join(unknown),
            )  # fmt: skip
        options = dict(self.options)
        return SageMakerTrainingJob(
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

    def run(self, context: Context) -> Any:
        """Train, or print the plan."""
        if not self.plan:
            return super().run(context)
        from airflow_provider_sml.cloud.prices import estimate
        from airflow_provider_sml.operators.plan import show

        job = self._job(context)
        job.check()
        hours = job.max_runtime * job.count / 3600
        most = estimate(job.instances[0], hours, job.prices)
        cost = f"at most {most:,.2f} USD" if most is not None else f"no price is known for {job.instances[0]}"
        call = ("sagemaker", "create_training_job", job.request(job.name))
        return show(self.log, f"training job {job.name}", [call], f"{cost}, after {hours:g} hours on demand")

    def finish(self, context: Context, result: dict[str, Any]) -> TrainingJobRef:
        """What was trained, and what it cost."""
        ref = TrainingJobRef(**result)
        cost = "unknown" if ref.cost_usd is None else f"{ref.cost_usd:,.4f} USD"
        self.log.info(
            "job %s on %d x %s: %d s of training, %d s billed, %d interruptions, %.1f %% saved, cost %s",
            ref.job, ref.count, ref.instance, ref.training_seconds, ref.billable_seconds, ref.interruptions,
            ref.savings_percent, cost,
        )  # fmt: skip
        return ref

    def costs(self, result: Any) -> list[Cost]:
        """What the job cost; nothing for a plan."""
        return [training_cost("SageMaker training", result)] if isinstance(result, TrainingJobRef) else []

    def datasets(self, result: Any) -> tuple[list[Data], list[Data]]:
        """The channels' folders, and the folder that the job's model lies in; nothing for a plan."""
        if not isinstance(result, TrainingJobRef):
            return [], []
        read = [Data(uri) for uri in self.inputs.values()]
        return read, [Data(self.output_path, version=result.job)]
