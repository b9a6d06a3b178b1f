"""The registry: models as MLflow versions, with their lineage and aliases.

A version holds the model in MLflow's own flavour of it, for everyone's tools, and the bundle, which scoring uses.
What was made from what is written as tags with the prefix ``sml.``. Aliases are ``challenger`` (registered last) and
``champion`` (in production). Registering a model twice gives the same version.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DataError, IntegrityError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.flavours import XGBOOST
from airflow_provider_sml.ml.registry import promotion
from airflow_provider_sml.ml.registry.flavour import log_flavour
from airflow_provider_sml.ml.registry.history import History, Line
from airflow_provider_sml.ml.registry.lineage import TAG, metrics_of, version_tags
from airflow_provider_sml.ml.training.pictures import model_pictures
from airflow_provider_sml.refs import EvaluationRef, ModelRef, ModelVersionRef

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

#: Versions that MLflow is asked for at once; its answer has all their tags.
_PAGE = 200
CHAMPION, CHALLENGER = "champion", "challenger"

# A task that hangs on a dead server for MLflow's default of minutes says nothing; Airflow retries by itself.
# What is None is unset: credentials come from the connection alone, and TLS is verified whatever the environment says.
_ENVIRONMENT: dict[str, str | None] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_TRACKING_USERNAME": None,
    "MLFLOW_TRACKING_PASSWORD": None,
    "MLFLOW_TRACKING_TOKEN": None,
    "MLFLOW_TRACKING_INSECURE_TLS": None,
}
#: Credentials, by the names that a connection gives them.
_CREDENTIALS = ("username", "password", "token")
# MLflow reads its settings from the process's environment, so one thread uses MLflow at a time.
_lock = threading.RLock()


class Registry:
    """An MLflow tracking server or an embedded store.

    :param uri: a server's address (``https://...``), a database (``sqlite:///...``), or a folder, in which a database
        and the artefacts are made.
    :param credentials: ``username`` and ``password`` of a server, or a ``token``.
    :raises ConfigurationError: when the address holds a password: it would be seen in XCom and in logs.
    """

    def __init__(self, uri: str, credentials: Mapping[str, str] | None = None) -> None:
        require("mlflow", "mlflow")
        self._artifacts: str | None = None
        _refuse_secrets(uri)
        if "://" not in uri:
            folder = Path(uri).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            self._artifacts = (folder / "artifacts").as_uri()
            uri = f"sqlite:///{folder}/mlflow.db"
        self.uri = uri
        given = {key: value for key, value in (credentials or {}).items() if value}
        if unknown := sorted(set(given) - set(_CREDENTIALS)):
            raise ConfigurationError(
                "the credentials of MLflow have unknown parts", expected=", ".join(_CREDENTIALS), found=unknown
            )
        self._environment = _ENVIRONMENT | {f"MLFLOW_TRACKING_{key.upper()}": value for key, value in given.items()}

    def __repr__(self) -> str:
        return f"Registry({self.uri!r})"

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

    def newest(self, name: str, above: int = 0, gate: str = "") -> ModelVersionRef | None:
        """The version of the highest number, of those that this provider registered; None when there is none.

        :param name: registered model.
        :param above: number that it must exceed.
        :param gate: what its gate must have said, ``passed`` or ``failed``; empty when it does not matter.
        """
        wanted = f" and tags.`{TAG}model_id` LIKE '%'" + (f" and tags.`{TAG}gate` = '{gate}'" if gate else "")
        with self._client() as client:
            found = client.search_model_versions(
                f"name = '{name}'{wanted}", max_results=1, order_by=["version_number DESC"]
            )
            return self._ref(found[0]) if found and int(found[0].version) > above else None

    def tagged(self, name: str, key: str, value: str) -> list[ModelVersionRef]:
        """The versions of a model that have a tag of ours with a value, the newest first.

        :param name: registered model.
        :param key: of the tag, without its prefix.
        :param value: of the tag.
        """
        with self._client() as client:
            found = client.search_model_versions(
                f"name = '{name}' and tags.`{TAG}{key}` = '{value}'", order_by=["version_number DESC"]
            )
            return [self._ref(version) for version in found]

    def described(self, where: str = "") -> list[dict[str, Any]]:
        """The versions that this provider registered, by model and number: ``name``, ``version``, ``run_id``,
        ``created`` (ISO 8601) and ``tags``, those of ours without their prefix.

        :param where: MLflow's filter; empty for all versions of all models.
        """
        found: list[ModelVersion] = []
        token = None
        with self._client() as client:
            while True:
                page = client.search_model_versions(where or None, max_results=_PAGE, page_token=token)
                found += page
                token = page.token
                if not token:
                    break
        rows = [
            {
                "name": one.name,
                "version": str(one.version),
                "run_id": one.run_id,
                "created": dt.datetime.fromtimestamp(one.creation_timestamp / 1000, dt.UTC).isoformat(),
                "tags": _own(one.tags),
            }
            for one in found
        ]
        rows = [row for row in rows if "model_id" in row["tags"]]
        return sorted(rows, key=lambda row: (row["name"], int(row["version"])))

    def models(self) -> list[str]:
        """Names of the registered models."""
        with self._client() as client:
            found = []
            page = client.search_registered_models()
            while True:
                found += [model.name for model in page]
                if not page.token:
                    return found
                page = client.search_registered_models(page_token=page.token)

    def tags(self, ref: ModelVersionRef) -> dict[str, str]:
        """The version's tags of ours, without their prefix."""
        with self._client() as client:
            return _own(client.get_model_version(ref.name, ref.version).tags)

    def aliases(self, name: str) -> dict[str, str]:
        """Version of each alias of a model."""
        with self._client() as client:
            return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}

    def history(self, name: str) -> History:
        """Every move of the model's aliases."""
        with self._client() as client:
            return promotion.read(client, name)[0]

    def move(self, name: str, alias: str, version: str) -> str:
        """Id of the move by which an alias came to a version, ``Line.move``, also while its line is not yet written.

        :param name: registered model.
        :param alias: the alias.
        :param version: that it points to.
        :returns: the id; empty when the history does not tell of it: it was moved by other means.
        """
        with self._client() as client:
            return promotion.move_to(client, name, version, alias)

    def moves(self, name: str) -> tuple[History, dict[str, str]]:
        """Every move of the model's aliases, and the version of each alias, both of one moment."""
        with self._client() as client:
            return promotion.read(client, name)

    def verify(self, name: str, head: str = "") -> list[str]:
        """What is wrong with the history of a model, in words; nothing when all is well.

        :param name: registered model.
        :param head: hash of a line, or its beginning, that somebody noted; empty for none.
        """
        with self._client() as client:
            history, aliases = promotion.read(client, name)
            return history.problems(list(promotion.anchors(client, name)), aliases, head)

    def deployed(self, name: str) -> list[ModelVersionRef]:
        """The versions that were deployed, the one that was deployed last first."""
        with self._client() as client:
            found = client.search_model_versions(f"name = '{name}'")
            when = {version.version: version.tags.get(f"{TAG}deployed", "") for version in found}
            ordered = sorted(found, key=lambda version: when[version.version], reverse=True)
            return [self._ref(version) for version in ordered if when[version.version]]

    def bundle(self, ref: ModelVersionRef, folder: Path | None = None) -> Bundle:
        """The bundle of a version.

        :param ref: the version.
        :param folder: where it is kept; a temporary folder when None.
        :raises IntegrityError: when it is not the model that was registered.
        """
        import mlflow

        with self._client() as client, tempfile.TemporaryDirectory() as temporary:
            recorded = client.get_model_version(ref.name, ref.version).tags.get(f"{TAG}digest")
            kept = mlflow.artifacts.download_artifacts(
                run_id=ref.run_id, artifact_path="bundle", dst_path=temporary, tracking_uri=self.uri
            )
            bundle = Bundle.read(Path(kept))
            if recorded != bundle.digest or ref.model_id != bundle.model_id:
                raise IntegrityError(
                    f"{ref.name} version {ref.version} is not what was registered",
                    expected=f"model {ref.model_id} with digest {recorded}",
                    found=f"model {bundle.model_id} with digest {bundle.digest}",
                )
            if folder is not None:
                _keep(bundle, Path(kept), folder)
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
        by: str = "",
    ) -> ModelVersionRef:
        """Register a model as a new version with the alias ``challenger``, or find the version it has already.

        :param name: registered model; also the experiment.
        :param model: what was trained.
        :param example: a few encoded feature rows; MLflow's flavour must score them as the bundle does.
        :param evaluation: its evaluation, logged as metrics and artefacts.
        :param lineage: further tags, such as the DAG run.
        :param by: who or what registers it, for the history of the alias.
        :raises DataError: when the example has no row.
        :raises IntegrityError: when the stored model scores the example differently.
        """
        if not len(example):
            raise DataError(f"the input example of {name} has no row", expected="a few feature rows", found="none")
        bundle = Bundle.read(storage.place(model.uri))
        with self._client() as client:
            version = self._registered(client, name, model.model_id)
            if version is None:
                version = self._log(client, name, bundle, example, evaluation, dict(lineage or {}))
            ref = self._ref(version)
            evidence = {"model_id": ref.model_id, "digest": bundle.digest}
            promotion.move(client, name, ref.version, CHALLENGER, by, evidence)
        return ref

    def set_alias(
        self, ref: ModelVersionRef, alias: str, by: str = "", evidence: Mapping[str, str] | None = None
    ) -> Line | None:
        """Point an alias at a version, and add a line to the model's history.

        :param ref: the version.
        :param alias: the alias.
        :param by: who or what moves it; the user of this process when empty.
        :param evidence: what the move rests on.
        :returns: the line; None when the alias points there already.
        """
        with self._client() as client:
            return promotion.move(client, ref.name, ref.version, alias, by, evidence)

    def mend(self, name: str, by: str = "") -> list[Line]:
        """Write the lines of moves that nobody has written down: of a mover that was killed, or of other means.

        :param name: registered model.
        :param by: who mends; the user of this process when empty.
        """
        with self._client() as client:
            return promotion.mend(client, name, by)[0]

    def set_tags(self, ref: ModelVersionRef, tags: Mapping[str, str]) -> None:
        """Write tags of ours on a version."""
        with self._client() as client:
            for key, value in tags.items():
                client.set_model_version_tag(ref.name, ref.version, f"{TAG}{key}", value)

    # --- the parts ------------------------------------------------------------------------------------------------

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """A client; MLflow takes its credentials and time-outs from the environment only.

        They stand there while the block runs, for the whole process; other threads' blocks wait until it has ended.
        """
        import mlflow

        with _lock:
            before = {key: os.environ.get(key) for key in self._environment}
            tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
            try:
                _set(self._environment)
                mlflow.set_tracking_uri(self.uri)
                mlflow.set_registry_uri(self.uri)
                yield mlflow.MlflowClient(self.uri, self.uri)
            finally:
                mlflow.set_tracking_uri(tracking)
                mlflow.set_registry_uri(registry)
                _set(before)

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
        """Log a run and make a version of it; a run of the same model that a crash cut short is finished instead."""
        import mlflow

        experiment_id = self._experiment(client, name)
        tags = version_tags(bundle, evaluation, lineage)
        begun = client.search_runs([experiment_id], f"tags.`{TAG}model_id` = '{bundle.model_id}'", max_results=1)
        which: dict[str, Any] = {"run_id": begun[0].info.run_id} if begun else {"experiment_id": experiment_id}
        with mlflow.start_run(**which, run_name=f"{name}-{bundle.model_id}", tags=tags) as run:
            mlflow.log_params({key: str(value) for key, value in bundle.lineage.get("params", {}).items()})
            rounds = {"rounds_kept": bundle.rounds} if bundle.flavour == XGBOOST else {}
            mlflow.log_params(rounds | {"flavour": bundle.flavour, "features": len(bundle.dataset.features)})
            if evaluation is not None:
                mlflow.log_metrics(metrics_of(evaluation))
                mlflow.log_artifacts(evaluation.uri, "evaluation")
            else:
                for picture, (_, svg) in model_pictures(bundle, Scorer(bundle).importance()).items():
                    mlflow.log_text(svg, f"pictures/{picture}.svg")
            with tempfile.TemporaryDirectory() as temporary:
                bundle.write(Path(temporary) / "bundle")
                mlflow.log_artifacts(str(Path(temporary) / "bundle"), "bundle")
            for half in client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'"):
                client.delete_logged_model(half.model_id)
            logged = log_flavour(bundle, example)
        _once(client.create_registered_model, name)
        return client.create_model_version(
            name, source=logged.model_uri, run_id=run.info.run_id, tags=tags, model_id=logged.model_id
        )

    def _experiment(self, client: MlflowClient, name: str) -> str:
        """Id of the model's experiment; it is made when it is not there."""
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            _once(client.create_experiment, name, artifact_location=self._artifacts)
            experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise ConfigurationError(
                f"the MLflow experiment {name} was deleted",
                expected="an active one",
                found="deleted",
                todo=f"mlflow experiments restore --experiment-id {experiment.experiment_id if experiment else '...'}",
            )
        return str(experiment.experiment_id)


def _own(tags: Mapping[str, str]) -> dict[str, str]:
    """Those of the tags that are ours, without their prefix."""
    return {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}


def _refuse_secrets(uri: str) -> None:
    if "://" in uri and urlsplit(uri).password is not None:
        raise ConfigurationError(
            "the address of MLflow holds a password",
            expected="an address without a password",
            found=f"{urlsplit(uri).scheme}://...@{urlsplit(uri).hostname}",
            todo="put user name and password into a connection of type mlflow, and change the password",
        )


def _set(environment: Mapping[str, str | None]) -> None:
    for key, value in environment.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _once(create: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Create something, or find that somebody else has."""
    from mlflow.exceptions import MlflowException

    try:
        create(*arguments, **named)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _keep(bundle: Bundle, source: Path, folder: Path) -> None:
    """Copy a bundle to its place, whole or not at all; what lies there already is replaced only when it differs."""
    with contextlib.suppress(IntegrityError):
        if Bundle.read(folder) == bundle:
            return
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        shutil.copytree(source, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def example_rows(matrix: np.ndarray, rows: int = 5) -> np.ndarray:
    """The first rows without a missing value, which MLflow's signature would refuse in a later request; else the first.

    :param matrix: encoded features, shape (n, features).
    :param rows: how many.
    """
    whole = matrix[~np.isnan(matrix).any(axis=1)]
    return (whole if len(whole) else matrix)[:rows]
