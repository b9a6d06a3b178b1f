"""Prices for cost estimates: a small table that users replace by their own.

Indicative prices on demand in USD per hour, of the order of those of us-east-1. Nobody has checked them against the
vendor's price list, they know no discounts and no regions: give your own wherever an estimate matters. A missing entry
gives no estimate.
"""

from __future__ import annotations

from collections.abc import Mapping

#: USD per hour. SageMaker: per instance type, for training and for endpoints alike where one figure is given.
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
    # per Data Compute Unit, and per GB of shuffle storage (USD 0.04 and 0.10 a month of 730 hours); us-central1
    "dataproc-dcu": 0.06,
    "dataproc-dcu-premium": 0.089,
    "dataproc-shuffle-gb": 0.0000548,
    "dataproc-shuffle-gb-premium": 0.000137,
}


def price(what: str, own: Mapping[str, float] | None = None) -> float | None:
    """USD per hour of something, or None when nobody knows.

    :param what: key of the table, such as an instance type.
    :param own: prices that go before those of the table.
    """
    return (own or {}).get(what, PRICES.get(what))


def estimate(what: str, hours: float, own: Mapping[str, float] | None = None) -> float | None:
    """USD for some hours, to a tenth of a cent; None when the price is not known."""
    found = price(what, own)
    return None if found is None else round(found * hours, 4)
