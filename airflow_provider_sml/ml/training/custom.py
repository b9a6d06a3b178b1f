"""Metrics of one's own: functions by import path that each round is measured by on the validation rows.

A function takes labels, scores and weights (float64 of shape (rows,)) and gives one number. Workers import it by its
path, so no code travels. Of several ranks each measures its own rows; the metric is the mean of theirs, weighted by
their sums of weights, which is that of all rows together for a mean over rows, and near it for a measure of ranks such
as the AUC.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import numpy as np

#: How a function is named.
PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
_EXPECTED = "package.module:function, or {function: package.module:function, higher_is_better: true}"


@dataclass(frozen=True)
class Metric:
    """A metric of one's own.

    :param name: the import path of its function, ``package.module:function``; also its name in the history.
    :param higher_is_better: whether early stopping looks for its highest value.
    """

    name: str
    higher_is_better: bool = False

    @staticmethod
    def load(told: object) -> Metric:
        """The metric that parameters name.

        :param told: its path, or a mapping of ``function`` and ``higher_is_better``.
        :raises ConfigurationError: when it is neither.
        """
        given = {"function": told} if isinstance(told, str) else told
        if not isinstance(given, Mapping) or "function" not in given or set(given) - {"function", "higher_is_better"}:
            raise ConfigurationError("train.metrics", expected=_EXPECTED, found=told)
        path, rising = given["function"], given.get("higher_is_better", False)
        if not isinstance(path, str) or not re.fullmatch(PATH, path) or not isinstance(rising, bool):
            raise ConfigurationError("train.metrics", expected=_EXPECTED, found=told)
        return Metric(path, rising)

    def function(self) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Any]:
        """The function, imported here.

        :raises ConfigurationError: when there is none.
        """
        module, _, name = self.name.partition(":")
        todo = "write it into a module that the task and every worker can import"
        try:
            found = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # a module may fail in any way when it is imported
            raise ConfigurationError(
                f"the metric {self.name} cannot be imported", expected="a function",
                found=f"{type(error).__name__}: {str(error)[:300]}", todo=todo,
            ) from error  # fmt: skip
        if not callable(found):
            what = "nothing of that name" if found is None else type(found).__name__
            raise ConfigurationError(
                f"the metric {self.name} cannot be imported", expected="a function", found=what, todo=todo
            )
        return found

    def measure(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Its value of some rows.

        :param labels: 0 or 1, shape (rows,).
        :param scores: 0 to 1, shape (rows,).
        :param weights: shape (rows,); None for equal ones.
        :raises ConfigurationError: when the function cannot be imported.
        :raises DataError: when it fails on the rows, or gives no finite number.
        """
        import numpy as np

        function = self.function()
        each = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
        try:
            value = function(np.asarray(labels, dtype=float), np.asarray(scores, dtype=float), each)
        except Exception as error:  # whatever a function of somebody's own does
            raise self._failed(len(labels), f"{type(error).__name__}: {str(error)[:300]}") from error
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise self._failed(len(labels), repr(value)[:300])
        return float(value)

    def _failed(self, rows: int, found: str) -> DataError:
        return DataError(
            f"the metric {self.name} gives no number for {rows:,} rows", expected="one finite number", found=found,
            todo="mend the function; each worker calls it with its own rows, which may be of one label",
        )  # fmt: skip


def custom_metrics(settings: Mapping[str, Any]) -> list[Metric]:
    """The metrics of one's own that parameters name.

    :param settings: with ``metrics``, where there are some.
    :raises ConfigurationError: when they are not well formed, or one stands twice.
    """
    told = settings.get("metrics") or []
    if isinstance(told, (str, Mapping)) or not isinstance(told, Sequence):
        raise ConfigurationError("train.metrics is no list", expected=f"a list of {_EXPECTED}", found=told)
    found = [Metric.load(item) for item in told]
    names = [metric.name for metric in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError("train.metrics names a function twice", expected="each once", found=twice)
    return found


def check_metrics(settings: Mapping[str, Any]) -> None:
    """Refuse metrics of one's own that cannot be imported here, or give no number for four rows of both labels.

    :param settings: with ``metrics``, where there are some.
    :raises ConfigurationError: for the first wrong one.
    """
    import numpy as np

    labels, scores = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.2, 0.7, 0.4, 0.6])
    own = custom_metrics(settings)
    told = str(settings.get("stop_on", ""))
    if ":" in told and told not in [metric.name for metric in own]:  # no metric of XGBoost has a colon in its name
        raise ConfigurationError(
            "stop_on names a function that is no metric of this training", found=told,
            expected=f"one of {', '.join(metric.name for metric in own) or 'metrics, which is empty'}",
            todo="add it to metrics",
        )  # fmt: skip
    for metric in own:
        try:
            metric.measure(labels, scores)
        except DataError as error:
            raise ConfigurationError(
                f"the metric {metric.name} gives no number", expected="one finite number for four rows of both labels",
                found=error.found, todo="mend the function: it takes labels, scores and weights",
            ) from error  # fmt: skip


def measured_together(
    metric: Metric, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, distributed: bool
) -> float:
    """A metric of the rows of all ranks: the mean of the ranks' values, weighted by the sums of their weights.

    :param metric: the metric.
    :param labels: of this rank's rows.
    :param scores: of this rank's rows.
    :param weights: of this rank's rows; of no row where all weigh the same.
    :param distributed: whether there are other ranks, which all call this in the same order.
    :raises DataError: when the function fails, or gives no finite number.
    """
    import numpy as np

    each = weights if len(weights) else np.ones(len(labels))
    if not distributed:
        return metric.measure(labels, scores, each)
    from xgboost import collective

    weight = float(each.sum())
    value = metric.measure(labels, scores, each) if weight > 0 else 0.0
    total, weight = collective.allreduce(np.array([value * weight, weight]), collective.Op.SUM)
    return float(total / weight) if weight > 0 else float("nan")
