"""Our own parameters beside XGBoost's, which name features and labels instead of positions, in XGBoost's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.ml.contract import Feature

#: Parameters of ours beside XGBoost's.
OWN = ("rounds", "early_stopping", "stop_on", "monotone")


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

    :raises ConfigurationError: for the first wrong one.
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
