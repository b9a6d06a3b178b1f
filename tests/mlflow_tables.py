"""MLflow's tables are made once for the whole run and copied into each further database of this process; a plugin.

MLflow makes them by all the migrations of its history, which takes seconds each time.
"""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def tables_of_mlflow(tmp_path_factory):
    """Gives a function that makes the file, once."""
    from airflow_provider_sml.ml.registry import Registry

    begin, made = Registry.__init__, []

    def template():
        if not made:
            import sqlalchemy
            from mlflow.store.db.utils import _initialize_tables

            made.append(tmp_path_factory.mktemp("mlflow-tables") / "mlflow.db")
            engine = sqlalchemy.create_engine(f"sqlite:///{made[0]}")
            _initialize_tables(engine)
            engine.dispose()
        return made[0]

    def with_tables(self, uri, credentials=None):
        begin(self, uri, credentials)
        path = Path(self.uri.removeprefix("sqlite:///"))
        if "://" not in uri and not path.exists():
            partial = path.with_name("copied.db")
            shutil.copyfile(template(), partial)
            partial.rename(path)

    Registry.__init__ = with_tables
    yield template
    Registry.__init__ = begin
