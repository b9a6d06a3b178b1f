"""What a model is made of, behind one small interface: XGBoost's booster, a scikit-learn classifier, an ONNX graph.

A flavour turns the bytes of a model's file into a ``Model``, which scores encoded features; everything else (the
contract, the features and their order, recalibration, evaluation, gate, serving, monitoring) is the same for all of
them. Nothing here reads a pickle: scikit-learn's models come in the format of skops, whose types are named one by one.
A new flavour is a module with ``adopt`` and ``load``, a line in ``FLAVOURS``, and a way to log it in
``ml.registry.flavour``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_sml.errors import ConfigurationError, did_you_mean, require

if TYPE_CHECKING:
    import numpy as np

    from airflow_provider_sml.ml.contract import Feature

XGBOOST = "xgboost"


class Model(Protocol):
    """A model that is ready to score."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """What the model itself gives for rows, before any recalibration.

        :param matrix: encoded features in the order of the dataset, shape (rows, features), NaN for NULL and codes for
            categories; taken as float32.
        :returns: probability of the label, float64 of shape (rows,).
        """

    def importance(self) -> dict[str, float]:
        """Share of each feature in what the model decides; nothing where the flavour has no measure of it."""


@dataclass(frozen=True)
class Flavour:
    """A kind of model.

    :param name: as a bundle, a tag and an operator name it.
    :param file: name of the model's file in a bundle.
    :param module: of this package: ``adopt(content, trusted)`` gives the bytes that are kept of a model from outside,
        or refuses it; ``load(content, features, threads, trusted)`` gives the ``Model``.
    :param modules: what must be installed to score.
    :param library: distribution whose version decides the scores.
    :param extra: of this package, that installs it.
    """

    name: str
    file: str
    module: str
    modules: tuple[str, ...]
    library: str
    extra: str

    def load(self, content: bytes, features: Sequence[Feature], threads: int = 0, trusted: Sequence[str] = ()) -> Model:
        """The model of some bytes.

        :param content: of the model's file.
        :param features: that it is asked with, in this order.
        :param threads: threads that it may use for one call, where it can be told; 0 for all cores.
        :param trusted: types that its file may name, of scikit-learn only.
        :raises ConfigurationError: when it is no such model, or does not fit the features.
        :raises MissingExtraError: when its library is not installed.
        """
        model: Model = self._code().load(content, features, threads, trusted)
        return model

    def adopt(self, content: bytes, trusted: Sequence[str] = ()) -> bytes:
        """The bytes that are kept of a model that was trained elsewhere.

        :param content: of its file.
        :param trusted: types that the file may name, of scikit-learn only.
        :raises ConfigurationError: when it is no such model, or names something that is not trusted.
        """
        kept: bytes = self._code().adopt(content, trusted)
        return kept

    def version(self) -> str:
        """Its library and the version that is installed, as ``scikit-learn==1.9.1``."""
        try:
            return f"{self.library}=={importlib.metadata.version(self.library)}"
        except importlib.metadata.PackageNotFoundError:  # another build of it, under another name
            return f"{self.library}=={importlib.import_module(self.modules[0]).__version__}"

    def _code(self) -> Any:
        for module in self.modules:
            require(module, self.extra)
        return importlib.import_module(self.module)


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour(XGBOOST, "model.ubj", f"{__name__}.xgboost_model", ("xgboost",), "xgboost", "xgboost"),
        Flavour("sklearn", "model.skops", f"{__name__}.sklearn_model", ("sklearn", "skops"), "scikit-learn", "sklearn"),
        Flavour("onnx", "model.onnx", f"{__name__}.onnx_model", ("onnxruntime",), "onnxruntime", "onnx"),
    )
}


def flavour(name: str) -> Flavour:
    """A flavour by its name.

    :raises ConfigurationError: when there is none of it.
    """
    if name not in FLAVOURS:
        raise ConfigurationError(
            "there is no such flavour of a model", expected=", ".join(FLAVOURS), found=name,
            todo=did_you_mean(name, FLAVOURS),
        )  # fmt: skip
    return FLAVOURS[name]
