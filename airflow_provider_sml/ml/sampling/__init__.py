"""Samples: which days a model is trained, validated and tested on, and which rows of them it sees.

``draw`` makes a sample by a ``Method`` (``methods``), ``planner`` finds the rate, ``fidelity`` says how faithful a
sample is, ``leakage`` guards the splits.
"""

from airflow_provider_sml.ml.sampling.draw import SHARDS, SPLITS, Window, draw, read_manifest, split_files, windows
from airflow_provider_sml.ml.sampling.methods import METHODS, WEIGHT, Method, hash_sql, keep_sql

__all__ = [
    "METHODS", "SHARDS", "SPLITS", "WEIGHT", "Method", "Window", "draw", "hash_sql", "keep_sql", "read_manifest",
    "split_files", "windows",
]  # fmt: skip
