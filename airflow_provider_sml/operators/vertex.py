"""Training on Vertex AI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.remote_job import job_name
from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.hooks.clients import connected
from airflow_provider_sml.operators.base import lineage, run_key
from airflow_provider_sml.operators.model_jobs import TrainingJobOperator, refuse_given
from airflow_provider_sml.operators.openlineage import Data
from airflow_provider_sml.operators.training_inputs import training_datasets
from airflow_provider_sml.refs import ModelRef, TrainingJobRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.cloud.vertex_training import VertexTrainingJob


class VertexTrainOperator(TrainingJobOperator):
    """Runs a custom training job on Vertex AI, on spot machines where wanted.

    One job for one task, whatever happens: it is found by a label that follows from the DAG run, a retry attaches, a
    job that succeeded is taken again only when its specification is the same. When there is no capacity or no quota,
    the next machine of the list is taken. Killing the task cancels the job. A job that is made again goes on from the
    checkpoints in AIP_CHECKPOINT_DIR. See ``cloud.vertex_training`` for the one race that is known.

    :param image: the training container.
    :param output_path: folder in Cloud Storage; a folder of the job's own is made below it.
    :param machines: machines, the preferred one first: ``n1-standard-8``, or ``{"type": "g2-standard-8", "accelerator":
        "NVIDIA_L4", "accelerator_count": 1}``, or with ``tpu_topology``.
    :param strategy: ``on-demand``, ``spot`` or ``flex-start``.
    :param checkpoint: folder in Cloud Storage of the checkpoints; the container's SML_CHECKPOINT_DIR.
    :param command: of the container; the image's when empty.
    :param arguments: of that command.
    :param options: further values of ``cloud.vertex_training.VertexTrainingJob``: ``count``, ``max_runtime`` (seconds),
        ``service_account``, ``network``, ``kms_key``, ``environment``, ``on_demand_last``, ``prices`` and the others.
    :param gcp_conn_id: the Google Cloud connection.
    :param project: id of the project; the connection's when empty.
    :param region: such as ``europe-west1``.
    :param training: one of this package's models, which the image of ``docker/scoring.Dockerfile`` trains: the values
        of ``operators.model_jobs.ModelTraining`` but the dataset, such as ``sample``, ``hyperparameters`` and
        ``workers``, which is the number of machines. The result is then the model in the lake, as
        ``TrainXGBoostOperator`` gives it. ``{lake}`` in ``output_path`` and ``checkpoint`` stands for the lake's place.
    :param dataset: features and label, with ``training``.
    :param plan: print the exact request and the highest cost, and change nothing.
    """

    template_fields: Sequence[str] = (
        "image", "output_path", "machines", "strategy", "checkpoint", "command", "arguments", "options", "project",
        "region", "training",
    )  # fmt: skip
    ui_color = "#d2e3fc"
    service, scheme = "Vertex AI", "gs"

    def __init__(
        self,
        *,
        image: str,
        output_path: str,
        machines: Sequence[Any],
        region: str,
        strategy: str = "on-demand",
        checkpoint: str = "",
        command: Sequence[str] | None = None,
        arguments: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        gcp_conn_id: str = "google_cloud_default",
        project: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image = image
        self.output_path = output_path
        self.machines = machines
        self.region = region
        self.strategy = strategy
        self.checkpoint = checkpoint
        self.command = command or []
        self.arguments = arguments or []
        self.options = options or {}
        self.gcp_conn_id = gcp_conn_id
        self.project = project

    def training_job(self, context: Context) -> VertexTrainingJob:
        from airflow_provider_sml.cloud.vertex_training import VertexTrainingJob
        from airflow_provider_sml.hooks.clients import google_project

        taken = ("name", "connection", "project", "region", "image", "output", "machines", "strategy", "checkpoint",
                 "command", "arguments")  # fmt: skip
        known = {item.name for item in fields(VertexTrainingJob)} - set(taken)
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise ConfigurationError(
                "there are no such options of a Vertex AI job", expected=", ".join(sorted(known)),
                found=", ".join(unknown), todo=did_you_mean(unknown[0], known),
            )  # fmt: skip
        options = dict(self.options)
        job = VertexTrainingJob(
            name=job_name(*run_key(context)),
            connection=self.gcp_conn_id,
            project=self.project or google_project(self.gcp_conn_id),
            region=self.region,
            image=self.image,
            output=self.output_path,
            machines=list(self.machines),
            strategy=self.strategy,
            checkpoint=self.checkpoint,
            command=list(self.command),
            arguments=[str(item) for item in self.arguments],
            labels=lineage(context) | dict(options.pop("labels", {})),
            **options,
        )
        return self._of_model(job) if self.training else job

    def _of_model(self, job: VertexTrainingJob) -> VertexTrainingJob:
        """The job that trains a model of ours, told by its request."""
        refuse_given({"command": job.command, "arguments": job.arguments, "count": "count" in self.options}, "training")
        model = self.model_training
        return replace(
            job, arguments=["train", "--request", model.request, "--store", model.store], count=model.workers,
            output=model.located(job.output), checkpoint=model.below(job.checkpoint) if job.checkpoint else "",
        )  # fmt: skip

    def show_plan(self, job: VertexTrainingJob) -> Any:
        """Print the exact request and the highest cost."""
        from airflow_provider_sml.operators.plan import show

        most = job.highest_cost()
        cost = f"at most {most:,.2f} USD" if most is not None else "no price is known for the machine"
        call = ("aiplatform", "create_custom_job", job.request())
        hours = job.max_runtime * job.count / 3600
        return show(self.log, f"training job {job.name}", [call], f"{cost}, after {hours:g} hours on demand")

    def finish(self, context: Context, result: dict[str, Any]) -> TrainingJobRef | ModelRef:
        """What was trained, and what it cost at most."""
        ref = self._ended = TrainingJobRef(**result)
        cost = "unknown" if ref.cost_usd is None else f"at most {ref.cost_usd:,.4f} USD"
        self.log.info(
            "job %s on %d x %s%s: %d s of training, cost %s; its model is at %s", ref.job, ref.count,
            "spot " if ref.spot else "", ref.instance, ref.training_seconds, cost, ref.model,
        )  # fmt: skip
        return self._taken(connected(self.training_job(context)), ref) if self.training else ref

    def _taken(self, job: VertexTrainingJob, ref: TrainingJobRef) -> ModelRef:
        """The model of the job, brought into the lake."""
        from airflow_provider_sml.ml.bundle import BUNDLE_FILE, MODEL_FILE

        files = {name: job.fetch(f"{ref.model.rstrip('/')}/{name}") for name in (BUNDLE_FILE, MODEL_FILE)}
        return self.model_training.take(files, ref)

    def datasets(self, result: Any) -> tuple[list[Data], list[Data]]:
        """The folder that the job's model lies in; what it reads is the container's own matter. Of a model of ours its
        sample and itself. Nothing for a plan."""
        if isinstance(result, ModelRef) and self.training:
            return training_datasets(self.training["sample"], result)
        if not isinstance(result, TrainingJobRef):
            return [], []
        return [], [Data(self.output_path, version=result.job)]
