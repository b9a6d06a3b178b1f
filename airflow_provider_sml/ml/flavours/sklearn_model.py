"""scikit-learn's classifiers, in the format of skops: a list of types and arrays, which builds only types that are
trusted (skops.readthedocs.io/en/stable/persistence.html).

skops itself trusts what scikit-learn, NumPy and SciPy have for models. What else a file names must be named by whoever
brings it. Python's own modules are never trusted: with them a file could run any command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError

if TYPE_CHECKING:
    from airflow_provider_sml.ml.contract import Feature

#: Types that skops does not trust by itself, and we do: they hold nothing but a name (imputers have one).
TRUSTED = ("numpy.dtype",)
#: Modules of Python's own that only hold values.
_HARMLESS = {"collections", "datetime", "decimal", "fractions", "uuid"}


def adopt(content: bytes, trusted: Sequence[str] = ()) -> bytes:
    """A classifier's file as it is, once everything in it is trusted.

    :param content: of the file.
    :param trusted: types that it may name beside those that skops trusts by itself.
    :raises ConfigurationError: when it is no such file, or names other types.
    """
    _built(content, trusted)
    return content


def load(content: bytes, features: Sequence[Feature], threads: int = 0, trusted: Sequence[str] = ()) -> ClassifierModel:
    """The classifier of some bytes; see ``Flavour.load``."""
    return ClassifierModel(_built(content, trusted), features)


class ClassifierModel:
    """A fitted classifier that scores.

    One that was fitted on a data frame gets data frames, any other one arrays.

    :param classifier: with ``predict_proba`` and the classes 0 and 1.
    :param features: that it is asked with, in this order.
    """

    def __init__(self, classifier: Any, features: Sequence[Feature]) -> None:
        names = [feature.name for feature in features]
        classes = [
            float(value)
            for value in getattr(classifier, "classes_", [])
            if isinstance(value, int | float | np.number | np.bool_)
        ]
        if not hasattr(classifier, "predict_proba") or sorted(classes) != [0.0, 1.0]:
            raise ConfigurationError(
                "the model does not give the probability of the label",
                expected="a fitted classifier with predict_proba and the classes 0 and 1",
                found=f"{type(classifier).__name__} with the classes {classes or 'none'}",
            )
        known = [str(name) for name in getattr(classifier, "feature_names_in_", [])]
        count = getattr(classifier, "n_features_in_", len(names))
        if (known and known != names) or count != len(names):
            raise ConfigurationError(
                "the model was fitted on other features, or in another order", expected=", ".join(names),
                found=", ".join(known) or f"{count} features",
            )  # fmt: skip
        self.classifier = classifier
        self._names, self._named, self._one = names, bool(known), classes.index(1.0)

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """See ``Model``."""
        rows: Any = matrix.astype(np.float32)
        if self._named:
            import pandas as pd

            rows = pd.DataFrame(rows, columns=self._names)
        return np.asarray(self.classifier.predict_proba(rows), dtype=np.float64)[:, self._one]

    def importance(self) -> dict[str, float]:
        """Nothing: scikit-learn has no measure that all of its classifiers share."""
        return {}


def _built(content: bytes, trusted: Sequence[str]) -> Any:
    """The object of a file, once everything in it is trusted."""
    import skops.io

    what = "skops.io.dump(model, path)"
    if content[:2] != b"PK":
        pickled = content[:1] == b"\x80" or content[:2] in (b"\x78\x9c", b"\x1f\x8b")
        raise ConfigurationError(
            "the file is no scikit-learn model in the format of skops", expected=f"what {what} wrote",
            found="a pickle, which can run any code when it is read" if pickled else "something else",
            todo=f"write it again by {what}",
        )  # fmt: skip
    _check(trusted)
    try:
        named = skops.io.get_untrusted_types(data=content)
    except Exception as error:  # whatever a damaged archive makes of it
        raise ConfigurationError("the skops file is damaged", expected=f"what {what} wrote", found=error) from error
    if unknown := sorted(set(named) - {*TRUSTED, *trusted}):
        raise ConfigurationError(
            "the model's file names types that are not trusted",
            expected=f"types that skops trusts by itself{''.join(f', {name}' for name in trusted)}",
            found=", ".join(unknown),
            todo="look at what each of them does when it is made; name those that you trust in trusted",
        )
    try:
        return skops.io.loads(content, trusted=[*TRUSTED, *trusted])
    except Exception as error:
        raise ConfigurationError(
            "the model cannot be built from its file", expected="the libraries that it was written with",
            found=f"{type(error).__name__}: {error}", todo="install the same versions of scikit-learn and skops here",
        ) from error  # fmt: skip


def _check(trusted: Sequence[str]) -> None:
    own = sorted(
        name for name in trusted
        if (module := name.partition(".")[0]) in sys.stdlib_module_names | {"builtins", "__main__"}
        and module not in _HARMLESS
    )  # fmt: skip
    if own:
        raise ConfigurationError(
            "types of Python itself cannot be trusted: a model's file could run any command by them",
            expected="types of installed packages", found=", ".join(own),
        )  # fmt: skip
