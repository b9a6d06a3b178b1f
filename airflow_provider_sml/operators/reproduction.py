"""Whether a registered version can be had again: it is trained anew from its lineage and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.operators.base import SmlOperator, find_version
from airflow_provider_sml.operators.clusters import Where, end_made, where
from airflow_provider_sml.operators.openlineage import Data, drawn, registered
from airflow_provider_sml.refs import ReproductionRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.bundle import Bundle
    from airflow_provider_sml.ml.registry import Registry
    from airflow_provider_sml.ml.training.warm_start import WarmStart


class ReproduceModelOperator(SmlOperator):
    """Trains a registered version again from its recorded lineage, and says whether the bytes are the same.

    Snapshot, sample, parameters, seed and number of workers come from the version. Where the bytes differ, the result
    says how far the two models lie apart on the test rows of the sample; the task succeeds either way. A version whose
    lineage is not whole, or whose snapshot or sample is gone, is refused. Nothing is registered, stored or left behind;
    for want of a checkpoint a retry starts from the first round.

    :param name: registered model.
    :param version: version number, an alias, or the output of a task that registered it; the champion when empty.
    :param cluster: where it is trained, as for ``TrainXGBoostOperator``.
        When empty, in this process for one worker, and in processes of this machine for several.
    :param lake: location of the lake, or the id of its connection; the recorded one when empty.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """

    template_fields: Sequence[str] = ("name", "version", "cluster", "lake", "mlflow")
    ui_color = "#f8d7da"
    #: Where the workers run, once it does.
    _place: Where | None = None

    def __init__(
        self,
        *,
        name: str,
        version: Any = "",
        cluster: str | Mapping[str, Any] = "",
        lake: str = "",
        mlflow: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.version = version
        self.cluster = cluster
        self.lake = lake
        self.mlflow = mlflow

    def run(self, context: Context) -> ReproductionRef:
        """Train again and compare."""
        from airflow_provider_sml.ml.training.cluster import cluster
        from airflow_provider_sml.ml.training.reproduction import distance, other_device, surroundings, training_of
        from airflow_provider_sml.ml.training.trainer import fit

        registry = MlflowHook(self.mlflow).get_conn()
        version = find_version(registry, self.name, self.version)
        tags, bundle = registry.tags(version), registry.bundle(version)
        what = f"{version.name} version {version.version}"
        lake = LakeHook(self.lake or tags.get("lake", "")).get_conn()
        training = replace(training_of(what, bundle, tags, lake), warm_start=_base(what, registry, bundle))
        self._used, self._drawn = version, drawn(training.sample.uri, sum(training.sample.rows.values()))
        for line in (moved := surroundings(bundle, tags)):
            self.log.warning("not as it was when %s was trained: %s", what, line)
        place = self._place = where(self.cluster or ("local" if training.workers == 1 else "processes"), context)
        with cluster(place.cluster, training.workers, place.patience) as client:
            again = fit(training, client, lambda line: self.log.info("%s", line))
        found = distance(bundle, again, training.sample)
        equal = again.digest == bundle.digest
        self.log.info(
            "%s trained again: %s, scores differ by at most %g on %s test rows", what,
            "the same bytes" if equal else "other bytes", found.score, f"{found.rows:,}",
        )  # fmt: skip
        return ReproductionRef(
            name=version.name,
            version=version.version,
            equal=equal,
            digest=again.digest,
            rounds=again.rounds,
            rows=found.rows,
            max_difference=found.score,
            auc_difference=found.auc,
            log_loss_difference=found.log_loss,
            moved=[*moved, *other_device(bundle, again)],
        )

    def datasets(self, result: ReproductionRef) -> tuple[list[Data], list[Data]]:
        """The version, and the sample that it is trained on again; nothing is written."""
        return [registered(self._used), self._drawn], []

    def on_kill(self) -> None:
        """End a cluster that was made for the task."""
        end_made(self._place)


def _base(what: str, registry: Registry, bundle: Bundle) -> WarmStart | None:
    """The version that this one was started from; None when it was trained from nothing."""
    from airflow_provider_sml.ml.training.warm_start import WarmStart

    if (told := bundle.lineage.get("warm_start")) is None:
        return None
    name, version = told["name"], told["version"]
    found = registry.version(name, version)
    base = registry.bundle(found) if found else None
    if base is None or base.digest != told["digest"]:
        raise ConfigurationError(
            f"the version that the training of {what} started from is gone",
            expected=f"{name} version {version} with the digest {told['digest']}",
            found=f"the digest {base.digest}" if base else "none",
            todo="bring it back in MLflow; without it this version cannot be trained again",
        )
    return WarmStart(name, version, base)
