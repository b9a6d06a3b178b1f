"""The registry: models as MLflow versions, with their lineage and aliases.

A version holds the model in MLflow's own XGBoost flavour, for everyone's tools, and the bundle, which scoring uses.
What was made from what is written as tags with the prefix ``sml.``. Aliases are ``challenger`` (registered last) and
``champion`` (in production). Registering a model twice gives the same version.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, IntegrityError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.refs import EvaluationRef, ModelRef, ModelVersionRef

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
#: Prefix of every tag of ours.
TAG = "sml."
#: Score of the stored example by MLflow's flavour and by ours may differ by this much: both are float32.
_SAME = 1e-6

# A task that hangs on a dead server for MLflow's default of minutes says nothing; Airflow retries by itself.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Registry:
    """An MLflow tracking server or an embedded store.

    :param uri: a server's address (``https://...``), a database (``sqlite:///...``), or a folder, in which a database
        and the artefacts are made.
    :param credentials: user name and password of a server, or a token.
    """

    def __init__(self, uri: str, credentials: Mapping[str, str] | None = None) -> None:
        require("mlflow", "mlflow")
        self._artifacts: str | None = None
        if "://" not in uri:
            folder = Path(uri).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            self._artifacts = f"file://{folder}/artifacts"
            uri = f"sqlite:///{folder}/mlflow.db"
        self.uri = uri
        self._environment = _ENVIRONMENT | {
            f"MLFLOW_TRACKING_{key.upper()}": value for key, value in (credentials or {}).items() if value
        }

    # --- reading --------------------------------------------------------------------------------------------------

    def version(self, name: str, version: str | None = None, alias: str | None = None) -> ModelVersionRef | None:
        """A version by number or by alias; None when there is none."""
        from mlflow.exceptions import MlflowException

        with self._client() as client:
            try:
                if alias is not None:
                    found = client.get_model_version_by_alias(name, alias)
                else:
                    found = client.get_model_version(name, str(version))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
            return self._ref(found)

    def models(self) -> list[str]:
        """Names of the registered models."""
        with self._client() as client:
            return [model.name for model in client.search_registered_models()]

    def tags(self, ref: ModelVersionRef) -> dict[str, str]:
        """The version's tags of ours, without their prefix."""
        with self._client() as client:
            tags = client.get_model_version(ref.name, ref.version).tags
        return {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}

    def aliases(self, name: str) -> dict[str, str]:
        """Version of each alias of a model."""
        with self._client() as client:
            return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}

    def bundle(self, ref: ModelVersionRef, folder: Path | None = None) -> Bundle:
        """The bundle of a version.

        :param ref: the version.
        :param folder: where it is kept; a temporary folder when None.
        :raises IntegrityError: when it is not the model that was registered.
        """
        import mlflow

        with self._client() as client, tempfile.TemporaryDirectory() as temporary:
            kept = mlflow.artifacts.download_artifacts(
                run_id=ref.run_id, artifact_path="bundle", dst_path=temporary, tracking_uri=self.uri
            )
            bundle = Bundle.read(Path(kept))
            recorded = client.get_model_version(ref.name, ref.version).tags.get(f"{TAG}digest")
            if recorded != bundle.digest:
                raise IntegrityError(
                    f"{ref.name} version {ref.version} is not what was registered",
                    expected=recorded,
                    found=bundle.digest,
                )
            if folder is not None and not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                partial = folder.with_name(folder.name + ".tmp")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(kept, partial)
                partial.rename(folder)
        return bundle

    # --- writing --------------------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        model: ModelRef,
        example: np.ndarray,
        *,
        evaluation: EvaluationRef | None = None,
        lineage: Mapping[str, str] | None = None,
    ) -> ModelVersionRef:
        """Register a model as a new version with the alias ``challenger``, or find the version it has already.

        :param name: registered model; also the experiment.
        :param model: what was trained.
        :param example: a few encoded feature rows; MLflow's flavour must score them as the bundle does.
        :param evaluation: its evaluation, logged as metrics and artefacts.
        :param lineage: further tags, such as the DAG run.
        :raises IntegrityError: when the stored model scores the example differently.
        """
        bundle = Bundle.read(storage.place(model.uri))
        with self._client() as client:
            version = self._registered(client, name, model.model_id)
            if version is None:
                version = self._log(client, name, bundle, example, evaluation, dict(lineage or {}))
            ref = self._ref(version)
            client.set_registered_model_alias(name, CHALLENGER, ref.version)
        return ref

    def set_alias(self, ref: ModelVersionRef, alias: str) -> None:
        """Point an alias at a version."""
        with self._client() as client:
            client.set_registered_model_alias(ref.name, alias, ref.version)

    def set_tags(self, ref: ModelVersionRef, tags: Mapping[str, str]) -> None:
        """Write tags of ours on a version."""
        with self._client() as client:
            for key, value in tags.items():
                client.set_model_version_tag(ref.name, ref.version, f"{TAG}{key}", value)

    # --- the parts ------------------------------------------------------------------------------------------------

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """A client; MLflow takes its credentials and time-outs from the environment only."""
        import mlflow

        before = {key: os.environ.get(key) for key in self._environment}
        tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        os.environ.update(self._environment)
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            yield mlflow.MlflowClient(self.uri, self.uri)
        finally:
            mlflow.set_tracking_uri(tracking)
            mlflow.set_registry_uri(registry)
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value

    def _ref(self, version: ModelVersion) -> ModelVersionRef:
        model_id = version.tags.get(f"{TAG}model_id")
        if model_id is None:
            raise ConfigurationError(
                f"{version.name} version {version.version} was not registered by this provider",
                expected=f"a tag {TAG}model_id",
                found="none",
            )
        return ModelVersionRef(
            registry=self.uri, name=version.name, version=str(version.version), run_id=version.run_id, model_id=model_id
        )

    def _registered(self, client: MlflowClient, name: str, model_id: str) -> ModelVersion | None:
        found = client.search_model_versions(f"name = '{name}' and tags.`{TAG}model_id` = '{model_id}'")
        return max(found, key=lambda version: int(version.version)) if found else None

    def _log(
        self,
        client: MlflowClient,
        name: str,
        bundle: Bundle,
        example: np.ndarray,
        evaluation: EvaluationRef | None,
        lineage: dict[str, str],
    ) -> ModelVersion:
        import mlflow
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            experiment_id = client.create_experiment(name, artifact_location=self._artifacts)
        else:
            experiment_id = experiment.experiment_id
        tags = _tags(bundle, lineage)
        with mlflow.start_run(experiment_id=experiment_id, run_name=f"{name}-{bundle.model_id}", tags=tags) as run:
            mlflow.log_params({key: str(value) for key, value in bundle.lineage.get("params", {}).items()})
            mlflow.log_params({"rounds_kept": bundle.rounds, "features": len(bundle.dataset.features)})
            if evaluation is not None:
                mlflow.log_metrics(_metrics(evaluation))
                mlflow.log_artifacts(evaluation.uri, "evaluation")
            with tempfile.TemporaryDirectory() as temporary:
                bundle.write(Path(temporary) / "bundle")
                mlflow.log_artifacts(str(Path(temporary) / "bundle"), "bundle")
            logged = self._log_flavour(bundle, example)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return client.create_model_version(
            name, source=logged.model_uri, run_id=run.info.run_id, tags=tags, model_id=logged.model_id
        )

    def _log_flavour(self, bundle: Bundle, example: np.ndarray) -> Any:
        """Log the model in MLflow's XGBoost flavour, load it back, and hold its scores against the bundle's."""
        import mlflow
        import pandas as pd
        import xgboost

        names = [feature.name for feature in bundle.dataset.feature_list]
        frame = pd.DataFrame(example.astype(np.float32), columns=names)
        scores = Scorer(bundle).raw_scores(example)  # the flavour holds the booster alone
        booster = xgboost.Booster()
        booster.load_model(bytearray(bundle.model))
        logged = mlflow.xgboost.log_model(
            booster,
            name="model",
            model_format="ubj",
            signature=mlflow.models.infer_signature(frame, scores.astype(np.float32)),
            input_example=frame,
            # Given, because guessing them imports the model in a fresh environment and takes half a minute.
            pip_requirements=[
                f"xgboost=={xgboost.__version__}",
                f"pandas=={pd.__version__}",
                f"numpy=={np.__version__}",
            ],
            metadata={"sml_model_id": bundle.model_id, "sml_digest": bundle.digest},
        )
        stored = mlflow.pyfunc.load_model(logged.model_uri).predict(frame)
        worst = float(np.max(np.abs(np.asarray(stored, dtype=float) - scores)))
        if not worst <= _SAME:
            raise IntegrityError(
                f"the stored model {bundle.model_id} scores its example differently",
                expected=f"a difference of at most {_SAME:g}",
                found=worst,
            )
        return logged


def _tags(bundle: Bundle, lineage: Mapping[str, str]) -> dict[str, str]:
    known: dict[str, Any] = {
        "model_id": bundle.model_id,
        "digest": bundle.digest,
        "contract": bundle.dataset.hash,
        "recalibration": bundle.recalibration,
        **{key: bundle.lineage[key] for key in ("table", "snapshot_id", "sample_id") if key in bundle.lineage},
        **lineage,
    }
    return {f"{TAG}{key}": str(value) for key, value in known.items()}


def _metrics(evaluation: EvaluationRef) -> dict[str, float]:
    values: dict[str, float | None] = {
        "test_auc": evaluation.auc,
        "test_auc_low": evaluation.auc_low,
        "test_auc_high": evaluation.auc_high,
        "test_ece": evaluation.ece,
        "baseline_auc": evaluation.baseline_auc,
    }
    return {key: value for key, value in values.items() if value is not None}


def example_rows(matrix: np.ndarray, rows: int = 5) -> np.ndarray:
    """The first rows without a missing value, which MLflow's signature would refuse in a later request; else the first.

    :param matrix: encoded features, shape (n, features).
    :param rows: how many.
    """
    whole = matrix[~np.isnan(matrix).any(axis=1)]
    return (whole if len(whole) else matrix)[:rows]
