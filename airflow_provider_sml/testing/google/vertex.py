"""Vertex AI as one object: custom jobs, models, endpoints and predictions.

It is made when a client first asks for it, because Google's library of it takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.google.vertex_endpoints import Endpoints
from airflow_provider_sml.testing.google.vertex_jobs import CustomJobs
from airflow_provider_sml.testing.google.vertex_models import Models
from airflow_provider_sml.testing.google.vertex_predict import Predictions

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

#: What the full names of its services begin with.
PACKAGE = "google.cloud.aiplatform.v1."


class Vertex:
    """The services of Vertex AI.

    :param cloud: the project.
    """

    def __init__(self, cloud: FakeGoogle) -> None:
        self.jobs, self.models = CustomJobs(cloud), Models(cloud)
        self.endpoints, self.predictions = Endpoints(cloud), Predictions(cloud)

    @property
    def services(self) -> dict[str, Any]:
        """Them by name."""
        return {
            "vertex-jobs": self.jobs, "vertex-models": self.models, "vertex-endpoints": self.endpoints,
            "vertex-predictions": self.predictions,
        }  # fmt: skip

    def close(self) -> None:
        """End the processes."""
        self.jobs.close()
        self.endpoints.close()
