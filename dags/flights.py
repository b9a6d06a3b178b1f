"""The life of the flights model: every DAG comes from its spec."""

from airflow_provider_sml.pipelines import build_dags

build_dags("include/pipelines/flights.yaml", into=globals())
