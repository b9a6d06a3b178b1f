"""The contract of a dataset: stated once, checked by Spark, by the lake's audit and by the scoring server."""

from airflow_provider_sml.ml.contract.dataset import LABEL, PARTITION, Dataset, Feature, Mend, Rule
from airflow_provider_sml.ml.contract.model import Column, Contract, Join, Limits, RowBand, Source, Values

__all__ = [
    "LABEL", "PARTITION", "Column", "Contract", "Dataset", "Feature", "Join", "Limits", "Mend", "RowBand", "Rule",
    "Source", "Values",
]  # fmt: skip
