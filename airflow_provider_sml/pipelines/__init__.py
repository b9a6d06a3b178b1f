"""One YAML file, the whole life of one model: the spec, its checks, and its DAGs.

::

    from airflow_provider_sml.pipelines import build_dags

    build_dags("include/pipelines/flights.yaml", into=globals())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sml.pipelines.dags import build_dags
    from airflow_provider_sml.pipelines.loader import PipelineSpecError, load_spec
    from airflow_provider_sml.pipelines.spec import PipelineSpec

__all__ = ["PipelineSpec", "PipelineSpecError", "build_dags", "load_spec"]

_HOME = {
    "build_dags": "dags",
    "load_spec": "loader",
    "PipelineSpecError": "loader",
    "PipelineSpec": "spec",
}


def __getattr__(name: str) -> Any:
    """Import on first use: checking a spec needs no Airflow."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
