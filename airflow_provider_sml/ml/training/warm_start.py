"""A training that goes on from a registered version: its trees stay, and further rounds come on top of them.

The version's scores of each row are what boosting starts from (XGBoost's ``base_margin``), and its trees are joined
with the new ones at the end. Boosting the version itself further would ask its trees about the quantile bins of the new
rows, whose borders are not those that it was trained with: near them the trees answer wrongly. Checkpoints hold the new
trees alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.bundle import Bundle, feature_types
from airflow_provider_sml.ml.contract import Dataset, Feature
from airflow_provider_sml.ml.flavours import XGBOOST
from airflow_provider_sml.ml.training import data

if TYPE_CHECKING:
    import numpy as np
    import xgboost


@dataclass(frozen=True)
class WarmStart:
    """The version that a training starts from.

    :param name: registered model.
    :param version: version number.
    :param bundle: its bundle.
    """

    name: str
    version: str
    bundle: Bundle

    @property
    def lineage(self) -> dict[str, Any]:
        """What names it, for the lineage of the model that is made from it."""
        return {
            "name": self.name, "version": self.version, "model_id": self.bundle.model_id,
            "digest": self.bundle.digest, "rounds": self.bundle.rounds,
        }  # fmt: skip

    def check(self, dataset: Dataset, settings: Mapping[str, Any]) -> None:
        """Refuse a version whose trees would be asked about other columns, or predict something else.

        :param dataset: of the training.
        :param settings: of the training.
        :raises ConfigurationError: when it is no booster, or features, their order, their categories or the label
            differ, or the version was not held to the monotone constraints.
        """
        self.bundle.require(XGBOOST, f"A warm start, here from {self.name} version {self.version},")
        theirs = self.bundle.dataset
        if list(theirs.features) != list(dataset.features):
            raise self._misfit("has other features", ", ".join(theirs.features), ", ".join(dataset.features))
        before, now = _meanings(theirs), _meanings(dataset)
        for name in dataset.features:
            if before[name] != now[name]:
                raise self._misfit(f"means something else by the feature {name}", before[name], now[name])
        if theirs.label != dataset.label:
            raise self._misfit("predicts another label", theirs.label, dataset.label)
        held = self.bundle.lineage.get("params", {})
        for kind in (held.get("booster", "gbtree"), settings.get("booster", "gbtree")):
            if kind != "gbtree":
                raise ConfigurationError(
                    "a warm start joins the trees of gbtree alone", expected="booster: gbtree", found=kind
                )
        signs = held.get("monotone") or {}
        for name, sign in (settings.get("monotone") or {}).items():
            if signs.get(name) != sign:
                raise self._misfit(f"was not held to train.monotone.{name}", signs.get(name, "no constraint"), sign)
        raw = "monotone_constraints"
        if settings.get(raw) not in (None, held.get(raw)):
            raise self._misfit(f"was not held to {raw}", held.get(raw, "no constraint"), settings[raw])

    def _misfit(self, what: str, theirs: object, ours: object) -> ConfigurationError:
        return ConfigurationError(
            f"{self.name} version {self.version}, from which the training should start, {what}",
            expected=f"{theirs}, as that version has it", found=ours,
            todo="train once without warm_start; a later training can start from that version",
        )  # fmt: skip


def _meanings(dataset: Dataset) -> dict[str, str]:
    """Formula and categories of each feature."""
    return {
        feature.name: f"{dataset.features[feature.name]} ({', '.join(feature.categories or ['a number'])})"
        for feature in dataset.feature_list
    }


def margins(model: bytes, files: Sequence[Path], features: Sequence[Feature], threads: int) -> dict[Path, np.ndarray]:
    """What a model says of the rows of files before the logistic function, in log odds.

    :param model: as UBJSON.
    :param files: parquet files; one at a time is in memory.
    :param features: of the model.
    :param threads: threads that XGBoost may use.
    :returns: float32 of shape (rows,) by file.
    """
    import xgboost

    booster, found = _booster(model, threads), {}
    for path in files:
        values, labels = data.read(path, features)
        found[path] = labels
        if len(labels):
            rows = xgboost.DMatrix(
                values, feature_names=[feature.name for feature in features], feature_types=feature_types(features),
                enable_categorical=True, nthread=threads,
            )  # fmt: skip
            found[path] = booster.predict(rows, output_margin=True)
    return found


def joined(base: bytes, top: bytes) -> bytes:
    """One model of the trees of two, whose score is the first one's, moved by the trees of the second.

    Joined in XGBoost's documented JSON schema, from which and to which it converts without loss.

    :param base: as UBJSON; its intercept stays.
    :param top: as UBJSON, boosted on the margins of ``base``, so that its own intercept means nothing.
    :returns: UBJSON.
    """
    whole, more = (json.loads(_booster(model).save_raw("json")) for model in (base, top))
    trees, new = (each["learner"]["gradient_booster"]["model"] for each in (whole, more))
    count = len(trees["trees"])
    trees["trees"] += [tree | {"id": tree["id"] + count} for tree in new["trees"]]
    trees["tree_info"] += new["tree_info"]
    trees["iteration_indptr"] += [count + end for end in new["iteration_indptr"][1:]]
    trees["gbtree_model_param"]["num_trees"] = str(len(trees["trees"]))
    return bytes(_booster(json.dumps(whole).encode()).save_raw("ubj"))


def _booster(model: bytes, threads: int = 1) -> xgboost.Booster:
    import xgboost

    found = xgboost.Booster({"nthread": threads})
    found.load_model(bytearray(model))
    return found
