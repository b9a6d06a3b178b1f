"""Models that were trained elsewhere: brought in, they go the way of every other model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.operators.base import SmlOperator
from airflow_provider_sml.operators.openlineage import Data
from airflow_provider_sml.operators.training_inputs import training_datasets
from airflow_provider_sml.refs import ModelRef, SampleRef

if TYPE_CHECKING:
    from airflow.sdk import Context


class ImportModelOperator(SmlOperator):
    """Brings in a model that was trained elsewhere, of scikit-learn, as an ONNX graph, or of XGBoost.

    What it gives is what ``TrainXGBoostOperator`` gives: ``EvaluateModelOperator``, ``RegisterModelOperator``,
    ``GateOperator``, ``DeployModelOperator`` and the nightly operators take it alike. The model is asked with the
    dataset's features in their order, as float32, NaN for a missing value and a category's position in the contract for
    a category; it gives the probability of the label. No pickle is read: scikit-learn's models come as files of
    ``skops.io.dump``. A repeat finds what the first one made.

    :param path: file of the model: ``.skops``, ``.onnx``, ``.ubj`` or ``.json``; a path, or an address in the lake's
        store.
    :param sample: what ``SampleOperator`` gave: the rows that the model was fitted to, and is evaluated on.
    :param dataset: features and label.
    :param flavour: ``sklearn``, ``onnx`` or ``xgboost``; by the file's ending when empty.
    :param trusted: full names of the types that a skops file may name beside those that skops trusts by itself; types
        of Python itself are refused.
    :param hyperparameters: what is to be told of its training; ``metrics`` in it are functions of one's own, as in
        ``TrainXGBoostOperator``.
    :param recalibration: what the odds of its scores must be multiplied by; that of the sample when None, which is
        right for a model that was fitted to the sample's rows without weights.
    :param models: folder for the model bundles; beside the sample's lake when None.
    """

    template_fields: Sequence[str] = ("path", "sample", "flavour", "trusted", "hyperparameters", "models")
    ui_color = "#f8d7da"

    def __init__(
        self,
        *,
        path: Any,
        sample: Any,
        dataset: Dataset | Mapping[str, Any],
        flavour: str = "",
        trusted: Sequence[str] = (),
        hyperparameters: Mapping[str, Any] | None = None,
        recalibration: float | None = None,
        models: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.sample = sample
        self.dataset = dataset
        self.flavour = flavour
        self.trusted = trusted
        self.hyperparameters = hyperparameters or {}
        self.recalibration = recalibration
        self.models = models

    def run(self, context: Context) -> ModelRef:
        """Read, check and keep the model."""
        from airflow_provider_sml.ml.training.imported import take

        sample = SampleRef.load(self.sample)
        dataset = Dataset.load(self.dataset)
        self.open_lake(sample.lake)
        hook = LakeHook(sample.lake)
        models = hook.place(self.models) if self.models else hook.place(sample.uri).parents[2] / "models" / dataset.name
        model = take(
            hook.place(str(self.path)), dataset, sample, models, kind=self.flavour, trusted=tuple(self.trusted),
            hyperparameters=self.hyperparameters, recalibration=self.recalibration,
        )  # fmt: skip
        self.log.info("model %s of %s, with %d features", model.model_id, self.path, len(dataset.features))
        return model

    def datasets(self, result: ModelRef) -> tuple[list[Data], list[Data]]:
        """The file, the sample's rows, and the model."""
        read, made = training_datasets(self.sample, result)
        return [Data(str(self.path)), *read], made
