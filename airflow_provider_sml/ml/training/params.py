"""Our own parameters beside XGBoost's, which name features and labels instead of positions, in XGBoost's words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.ml.contract import Feature
from airflow_provider_sml.ml.training.custom import check_metrics

#: Parameters of ours beside XGBoost's.
OWN = ("rounds", "early_stopping", "stop_on", "monotone", "class_weights", "metrics")
#: The labels by the names that ``class_weights`` has for them.
CLASSES = ("negative", "positive")


def booster_params(settings: Mapping[str, Any], features: Sequence[Feature]) -> dict[str, Any]:
    """The parameters as XGBoost knows them.

    :param settings: XGBoost's parameters and ours.
    :param features: in the order of the model; ``monotone_constraints`` has a sign for each of them.
    """
    params = {key: value for key, value in settings.items() if key not in OWN}
    if signs := settings.get("monotone"):
        params["monotone_constraints"] = f"({','.join(str(signs.get(feature.name, 0)) for feature in features)})"
    return params


def check_own(settings: Mapping[str, Any], features: Sequence[Feature]) -> None:
    """Refuse parameters of ours that do not fit the features.

    :raises ConfigurationError: for the first wrong one; also for a metric that cannot be imported here.
    """
    monotone = settings.get("monotone") or {}
    if not isinstance(monotone, Mapping):
        raise ConfigurationError("monotone is no mapping", expected="1 or -1 by feature", found=repr(monotone))
    for _, error in monotone_problems(monotone, features):
        raise error
    if monotone and "monotone_constraints" in settings:
        raise ConfigurationError(
            "the parameters say twice in which features the model is monotone",
            expected="monotone by feature, or monotone_constraints by position",
            found="both",
        )
    _check_class_weights(settings)
    check_metrics(settings)


def _check_class_weights(settings: Mapping[str, Any]) -> None:
    weights = settings.get("class_weights")
    if weights is None:
        return
    if "scale_pos_weight" in settings:
        raise ConfigurationError(
            "the parameters weigh the positive rows twice", expected="class_weights or scale_pos_weight", found="both"
        )
    named = isinstance(weights, Mapping) and set(weights) == set(CLASSES)
    numbers: list[Any] = list(weights.values()) if named else [None]
    sound = all(type(number) in (int, float) and 0 < number < math.inf for number in numbers)
    if weights != "balanced" and not sound:
        raise ConfigurationError(
            "train.class_weights", expected="balanced, or {negative: a number, positive: a number} above 0",
            found=weights,
        )  # fmt: skip


def label_weights(wanted: Any, zeros: int, ones: int) -> tuple[float, float] | None:
    """What a row with label 0 and one with label 1 weigh; None where all weigh the same.

    ``balanced`` gives both labels the same sum of weights and keeps the sum of all: ``rows / (2 * rows of the label)``
    (King and Zeng 2001, "Logistic Regression in Rare Events Data", weighting; scikit-learn's ``class_weight``).

    :param wanted: ``balanced``, weights by name, or None.
    :param zeros: training rows with label 0, of all workers together.
    :param ones: training rows with label 1.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        return (zeros + ones) / (2 * zeros), (zeros + ones) / (2 * ones)
    return float(wanted["negative"]), float(wanted["positive"])


def monotone_problems(
    monotone: Mapping[str, Any], features: Sequence[Feature]
) -> Iterator[tuple[str, ConfigurationError]]:
    """What is wrong with monotone constraints, by the name that they are given for.

    :param monotone: 1 or -1 by feature.
    :param features: of the model.
    """
    numbers = [feature.name for feature in features if feature.categories is None]
    categories = {feature.name for feature in features} - set(numbers)
    for name, sign in monotone.items():
        if name not in numbers:
            known = name in categories
            yield (
                name,
                ConfigurationError(
                    f"train.monotone names {name}",
                    expected=f"one of {', '.join(numbers)}",
                    found=f"{name}, a category, whose values have no order" if known else name,
                    todo=None if known else did_you_mean(name, numbers),
                ),
            )
        elif isinstance(sign, bool) or sign not in (1, -1):
            yield (
                name,
                ConfigurationError(
                    f"train.monotone.{name}",
                    expected="1 where the score may only rise with the feature, -1 where it may only fall",
                    found=repr(sign),
                ),
            )
