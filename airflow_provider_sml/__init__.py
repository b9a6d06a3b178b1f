"""The whole life of a model as Airflow DAGs: a provider and a DAG library.

Layers, each importing only from those below it (import-linter holds this, see pyproject.toml)::

    pipelines/   one YAML file -> the DAGs of one model
    ui/          the Airflow plugin
    operators/ sensors/ notifications/
    triggers/ hooks/ links/
    cloud/ | ml/ remote services | the engine; neither imports Airflow or the other
    refs, errors what passes between tasks, and what goes wrong
"""

from airflow_provider_sml._version import __version__

__all__ = ["__version__"]
