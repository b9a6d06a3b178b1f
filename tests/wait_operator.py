"""An operator that runs the small application of ``tests.jobs``."""

from pathlib import Path

from airflow_provider_sml.operators.remote_job import RemoteJobOperator
from tests.jobs import Work


class Wait(RemoteJobOperator):
    """Runs the small application; the result counts its tries."""

    template_fields = ("root", "what")

    def __init__(self, *, root, what, **kwargs):
        super().__init__(**kwargs)
        self.root = root
        self.what = what

    def job(self, context):
        return Work(Path(self.root)).job(self.what, output={"try": context["ti"].try_number}, grace=3.0)

    def secrets(self):
        return {"SML_TEST_SECRET": "hunter2"}
