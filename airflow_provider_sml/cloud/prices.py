"""Prices for cost estimates: a small table that users replace by their own.

Indicative prices on demand in USD per hour, of the order of those of us-east-1. Nobody has checked them against the
vendor's price list, they know no discounts and no regions: give your own wherever an estimate matters. A missing entry
gives no estimate.

The environment variable SML_PRICES names a YAML or JSON file whose entries go before those of this table, for every
estimate; ``null`` says that a price is not known. The ``prices`` of an operator go before both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import ConfigurationError

#: Names the file of a user's own prices.
VARIABLE = "SML_PRICES"

#: USD per hour, except for what is named otherwise. SageMaker: per instance type, for training and for endpoints alike
#: where one figure is given.
PRICES: dict[str, float] = {
    "ml.t2.medium": 0.056,
    "ml.t3.medium": 0.05,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.m5.12xlarge": 2.765,
    "ml.m5.24xlarge": 5.53,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
    "ml.c5.9xlarge": 1.836,
    "ml.r5.large": 0.151,
    "ml.r5.xlarge": 0.302,
    "ml.g4dn.xlarge": 0.736,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g4dn.12xlarge": 4.89,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.g5.12xlarge": 7.09,
    "ml.p3.2xlarge": 3.825,
    "ml.p3.8xlarge": 14.688,
    # per GB of memory and hour of compute time
    "sagemaker-serverless-gb": 0.072,
    "emr-serverless-vcpu": 0.052624,
    "emr-serverless-gb": 0.0057785,
    "emr-serverless-storage-gb": 0.000111,
    # per TiB that a query reads, not per hour
    "bigquery-tib": 6.25,
    # per Data Compute Unit, and per GB of shuffle storage (USD 0.04 and 0.10 a month of 730 hours); us-central1
    "dataproc-dcu": 0.06,
    "dataproc-dcu-premium": 0.089,
    "dataproc-shuffle-gb": 0.0000548,
    "dataproc-shuffle-gb-premium": 0.000137,
    # Vertex AI, us-central1: machines and accelerators apart; training and endpoints alike. Spot prices move; Google
    # promises 60 to 91 percent off, and these are 60 percent off.
    "vertex-n1-standard-2": 0.1095,
    "vertex-n1-standard-4": 0.219,
    "vertex-n1-standard-8": 0.437,
    "vertex-n1-standard-16": 0.874,
    "vertex-n1-highmem-8": 0.545,
    "vertex-e2-standard-4": 0.154,
    "vertex-g2-standard-4": 0.813,
    "vertex-g2-standard-8": 0.983,
    "vertex-NVIDIA_TESLA_T4": 0.4025,
    "vertex-NVIDIA_TESLA_V100": 2.852,
    "vertex-spot-n1-standard-2": 0.0438,
    "vertex-spot-n1-standard-4": 0.0876,
    "vertex-spot-n1-standard-8": 0.1748,
    "vertex-spot-n1-standard-16": 0.3496,
    "vertex-spot-n1-highmem-8": 0.218,
    "vertex-spot-NVIDIA_TESLA_T4": 0.161,
}


def price(what: str, own: Mapping[str, float] | None = None) -> float | None:
    """USD per hour of something, or None when nobody knows.

    :param what: key of the table, such as an instance type.
    :param own: prices that go before those of the file and of the table.
    :raises ConfigurationError: when the file of SML_PRICES cannot be read, or holds something else.
    """
    for table in (own or {}, _file(), PRICES):
        if what in table:
            return table[what]
    return None


def estimate(what: str, hours: float, own: Mapping[str, float] | None = None) -> float | None:
    """USD for some hours, to a tenth of a cent; None when the price is not known."""
    found = price(what, own)
    return None if found is None else round(found * hours, 4)


def _file() -> Mapping[str, float | None]:
    """The user's own prices; none where no file is named."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return {}
    try:
        return _read(name, os.stat(name).st_mtime_ns)
    except OSError as error:
        raise ConfigurationError(
            f"the prices of {VARIABLE} cannot be read", expected="a YAML or JSON file", found=error
        ) from error


@functools.lru_cache(maxsize=4)
def _read(name: str, changed: int) -> Mapping[str, float | None]:
    import yaml

    try:
        found: Any = yaml.safe_load(Path(name).read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"the prices in {name} are no YAML", expected="a YAML or JSON file", found=error
        ) from error
    wrong = [
        f"{key}: {value!r}"
        for key, value in (found.items() if isinstance(found, dict) else [("file", found)])
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0)
    ]
    if wrong:
        raise ConfigurationError(
            f"the prices in {name} are not right", expected="USD by name, such as ml.m5.large: 0.115, or null",
            found="; ".join(wrong)[:300],
        )  # fmt: skip
    return {str(key): None if value is None else float(value) for key, value in found.items()}
