"""From a sample to a registered version: train, evaluate, register."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import EvaluationLink, MlflowLink, ModelLink
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.operators.base import SmlOperator, bundle_version, lineage, mover
from airflow_provider_sml.operators.clusters import Where, end_made, where
from airflow_provider_sml.operators.cost import Cost, costs_before
from airflow_provider_sml.operators.openlineage import Data, drawn, parent, registered
from airflow_provider_sml.operators.training_inputs import searched, start_version, training_datasets
from airflow_provider_sml.refs import (
    EvaluationRef,
    ModelRef,
    ModelVersionRef,
    SampleRef,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.bundle import Bundle


class TrainXGBoostOperator(SmlOperator):
    """Trains a gradient-boosted model on a sample, on the workers of a Dask cluster.

    The same sample, parameters, seed and number of workers give the same model; a repeat finds it.

    :param sample: what ``SampleOperator`` gave.
    :param dataset: features and label.
    :param hyperparameters: XGBoost's parameters, with ``rounds`` and ``early_stopping``, and ``monotone``: 1 for each
        feature with which the score may only rise, -1 for each with which it may only fall; and ``class_weights``:
        ``balanced``, or ``negative`` and ``positive`` with a weight each. Scores are recalibrated for them; and
        ``metrics``: functions by import path (``package.module:function``) that take labels, scores and weights. Or
        what ``SearchHyperparametersOperator`` gave.
    :param cluster: ``local`` (in this process), ``processes``, ``cuda`` (one worker for each GPU of this machine), a
        scheduler's address, the id of its connection, or the settings of a service that makes a cluster for the task;
        see ``operators.clusters.where``.
    :param workers: workers that the rows are split over.
    :param min_workers: workers to go on with where all do not come in time; some then do the part of several, so that
        the rows stay split as they were. All of them when 0.
    :param models: folder for the model bundles; beside the sample's lake when None.
    :param device: ``auto`` (a GPU where a worker has one), ``cpu`` or ``cuda``.
    :param checkpoint: folder of the checkpoints, which all workers reach; beside the sample's lake when None.
    :param checkpoint_rounds: rounds between checkpoints. Where rows or columns are drawn at random (``subsample``,
        ``colsample_*``), it decides the model's bytes too.
    :param checkpoint_seconds: seconds between checkpoints, whichever comes first; 0 for rounds only.
    :param interruptions: lost workers that are survived within one try of the task.
    :param spot: of a cluster that is made for the task: on spare capacity, which may be taken away.
    :param on_demand_after: interruptions, over all tries of the task, after which machines on demand take the place of
        spare capacity; 0 for never. They also do where spare capacity does not come in time.
    :param on_demand_deadline: seconds after the start of the first try until that happens at the latest; 0 for never.
    :param machine: where the workers run, to notice an interruption in time: ``ec2``, ``gce`` or empty. A cluster that
        is made there is known to be.
    :param warm_start: a registered version, on top of whose rounds at most ``rounds`` come: its number,
        ``champion``, or the output of a task that registered it; empty to start from nothing. While there is no
        champion yet, the training starts from nothing as well.
    :param name: registered model of ``warm_start``; the dataset's name when empty.
    :param mlflow: address or folder of MLflow, or the id of its connection, for ``warm_start``.
    :param usd_per_hour: what one worker costs in an hour, on spare capacity where ``spot``; the log, the result and the
        lineage then tell in USD too what interruptions cost and what checkpoints spared.
    :param on_demand_usd_per_hour: what one costs that is not on spare capacity; ``usd_per_hour`` when 0.
    """

    template_fields: Sequence[str] = (
        "sample", "hyperparameters", "cluster", "models", "device", "checkpoint", "warm_start", "name", "mlflow",
    )  # fmt: skip
    ui_color = "#f8d7da"
    #: Where the workers run, once it does.
    _place: Where | None = None

    def __init__(
        self,
        *,
        sample: Any,
        dataset: Dataset | Mapping[str, Any],
        hyperparameters: Any = None,
        cluster: str | Mapping[str, Any] = "local",
        workers: int = 1,
        models: str | None = None,
        device: str = "auto",
        checkpoint: str | None = None,
        checkpoint_rounds: int = 50,
        checkpoint_seconds: float = 60.0,
        interruptions: int = 3,
        machine: str = "",
        warm_start: Any = "",
        name: str = "",
        mlflow: str = MlflowHook.default_conn_name,
        usd_per_hour: float = 0.0,
        on_demand_usd_per_hour: float = 0.0,
        min_workers: int = 0,
        spot: bool = False,
        on_demand_after: int = 0,
        on_demand_deadline: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.usd_per_hour = usd_per_hour
        self.on_demand_usd_per_hour = on_demand_usd_per_hour
        self.min_workers = min_workers
        self.spot = spot
        self.on_demand_after = on_demand_after
        self.on_demand_deadline = on_demand_deadline
        self.sample = sample
        self.dataset = dataset
        self.hyperparameters = hyperparameters or {}
        self.cluster = cluster
        self.workers = workers
        self.models = models
        self.device = device
        self.checkpoint = checkpoint
        self.checkpoint_rounds = checkpoint_rounds
        self.checkpoint_seconds = checkpoint_seconds
        self.interruptions = interruptions
        self.machine = machine
        self.warm_start = warm_start
        self.name = name
        self.mlflow = mlflow

    def run(self, context: Context) -> ModelRef:
        """Train on the cluster."""
        from airflow_provider_sml.ml.training.cluster import Cluster
        from airflow_provider_sml.ml.training.trainer import Training, train

        sample = SampleRef.load(self.sample)
        dataset = Dataset.load(self.dataset)
        place = self._place = where(self.cluster, context)
        # <lake>/samples/<table>/<id> lies beside <lake>/models/<name>
        self.open_lake(sample.lake)
        hook = LakeHook(sample.lake)
        lake = hook.place(sample.uri).parents[2]
        models = hook.place(self.models) if self.models else lake / "models" / dataset.name
        training = Training(
            dataset,
            sample,
            {"device": self.device, **searched(self.hyperparameters)},
            self.workers,
            checkpoint=hook.place(self.checkpoint) if self.checkpoint else lake / "checkpoints" / dataset.name,
            every=self.checkpoint_rounds,
            seconds=self.checkpoint_seconds,
            interruptions=self.interruptions,
            patience=place.replacement,
            machine=self.machine or place.machine,
            warm_start=start_version(self.warm_start, self.name or dataset.name, self.mlflow),
            usd_per_hour=self.usd_per_hour,
            on_demand_usd_per_hour=self.on_demand_usd_per_hour,
            on_demand_after=self.on_demand_after,
            on_demand_deadline=self.on_demand_deadline,
        )
        with Cluster(place.cluster, self.workers, place.patience, self.spot, self.min_workers) as made:
            model = train(training, made, models, lambda line: self.log.info("%s", line))
        self.log.info(
            "model %s: %d rounds on %s rows of %d features", model.model_id, model.rounds,
            f"{sample.rows['train']:,}", len(dataset.features),
        )  # fmt: skip
        return model

    def on_kill(self) -> None:
        """End a cluster that was made for the task."""
        end_made(self._place)

    def costs(self, result: Any) -> list[Cost]:
        """What the workers cost, where a price was given."""
        if not self.usd_per_hour or "usd" not in result.toll:
            return []
        kind = "spare capacity first" if self.spot else "on demand"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return [Cost(what=f"training on {workers}, {kind}", usd=result.toll["usd"])]

    def datasets(self, result: ModelRef) -> tuple[list[Data], list[Data]]:
        """The sample's rows for training and early stopping, and the model."""
        return training_datasets(self.sample, result)


class EvaluateModelOperator(SmlOperator):
    """Evaluates a model on the test window of its sample, against a plain baseline and the champion.

    :param model: what ``TrainXGBoostOperator`` gave.
    :param sample: what ``SampleOperator`` gave.
    :param name: registered model whose champion is compared; none when empty.
    :param baseline: columns whose label rates in training are the baseline.
    :param slices: columns by whose values the measures are repeated.
    :param min_rows: smallest slice, and smallest day or week of the test window, that is measured.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = ("model", "sample", "name", "mlflow", "reports")
    ui_color = "#e3dcf5"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), EvaluationLink())

    def __init__(
        self,
        *,
        model: Any,
        sample: Any,
        name: str = "",
        baseline: Sequence[str] = (),
        slices: Sequence[str] = (),
        min_rows: int = 500,
        mlflow: str = MlflowHook.default_conn_name,
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.sample = sample
        self.name = name
        self.baseline = baseline
        self.slices = slices
        self.min_rows = min_rows
        self.mlflow = mlflow
        self.reports = reports

    def run(self, context: Context) -> EvaluationRef:
        """Evaluate and write the page."""
        from airflow_provider_sml.ml.bundle import Bundle
        from airflow_provider_sml.ml.training.evaluation import evaluate

        model = ModelRef.load(self.model)
        sample = SampleRef.load(self.sample)
        LakeHook(sample.lake).place(sample.uri)
        bundle = Bundle.read(LakeHook(model.lake).place(model.uri))
        found = evaluate(
            bundle,
            sample,
            report_folder(self.reports, bundle.name, "evaluation", model.model_id),
            baseline=self.baseline,
            slices=self.slices,
            min_rows=self.min_rows,
            champion=self._champion(),
        )
        against = "" if found.baseline_auc is None else f", baseline {found.baseline_auc:.4f}"
        self.log.info(
            "AUC %.4f [%.4f, %.4f]%s, ECE %.4f on %s rows", found.auc, found.auc_low, found.auc_high, against,
            found.ece, f"{found.rows:,}",
        )  # fmt: skip
        return found

    def datasets(self, result: EvaluationRef) -> tuple[list[Data], list[Data]]:
        """The model, the test rows of the sample, and the folder of the evaluations."""
        model, sample = ModelRef.load(self.model), SampleRef.load(self.sample)
        return (
            [Data(parent(model.uri), version=model.model_id), drawn(sample.uri, result.rows)],
            [Data(parent(result.uri), version=result.model_id)],
        )

    def _champion(self) -> tuple[str, Bundle] | None:
        from airflow_provider_sml.ml.registry import CHAMPION

        if not self.name:
            return None
        registry = MlflowHook(self.mlflow).get_conn()
        version = registry.version(self.name, alias=CHAMPION)
        return (version.version, registry.bundle(version)) if version else None


class RegisterModelOperator(SmlOperator):
    """Registers a model in MLflow with its lineage and the alias ``challenger``; a repeat finds the same version.

    :param model: what ``TrainXGBoostOperator`` gave.
    :param sample: what ``SampleOperator`` gave: a few of its rows become the input example.
    :param name: registered model.
    :param evaluation: what ``EvaluateModelOperator`` gave, logged with the version.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """

    template_fields: Sequence[str] = ("model", "sample", "name", "evaluation", "mlflow")
    ui_color = "#cfe2f3"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), EvaluationLink(), MlflowLink())

    def __init__(
        self,
        *,
        model: Any,
        sample: Any,
        name: str,
        evaluation: Any = None,
        mlflow: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.sample = sample
        self.name = name
        self.evaluation = evaluation
        self.mlflow = mlflow

    def run(self, context: Context) -> ModelVersionRef:
        """Register."""
        from airflow_provider_sml.ml.bundle import Bundle
        from airflow_provider_sml.ml.registry import example_rows
        from airflow_provider_sml.ml.registry.lineage import sample_tags
        from airflow_provider_sml.ml.sampling import split_files
        from airflow_provider_sml.ml.training import data

        model = ModelRef.load(self.model)
        sample = SampleRef.load(self.sample)
        features = Bundle.read(LakeHook(model.lake).place(model.uri)).dataset.feature_list
        LakeHook(sample.lake).place(sample.uri)
        rows = next((found for path in split_files(sample, "test") if len(found := data.read(path, features)[0])), None)
        if rows is None:
            raise DataError(
                "the sample has no test row for the input example",
                expected=f"rows in {sample.uri}/test",
                found="none",
                todo="clear the sampling task",
            )
        version = (
            MlflowHook(self.mlflow)
            .get_conn()
            .register(
                self.name,
                model,
                example_rows(rows),
                evaluation=EvaluationRef.load(self.evaluation) if self.evaluation else None,
                lineage=lineage(context) | bundle_version(context) | sample_tags(sample) | costs_before(context),
                by=mover(context),
            )
        )
        self.log.info("%s version %s is the challenger (model %s)", version.name, version.version, version.model_id)
        return version

    def datasets(self, result: ModelVersionRef) -> tuple[list[Data], list[Data]]:
        """The model, and its version in the registry."""
        model = ModelRef.load(self.model)
        return (
            [Data(parent(model.uri), version=model.model_id)],
            [registered(result)],
        )
