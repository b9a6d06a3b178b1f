"""The fake Google Cloud as one object: clock, faults, calls, bill, services, and how clients are pointed at it."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from airflow_provider_sml.testing.core import Behaviour, FakeCloud, VirtualClock
from airflow_provider_sml.testing.google.dataproc import Dataproc
from airflow_provider_sml.testing.google.operations import Operations
from airflow_provider_sml.testing.google.server import Server
from airflow_provider_sml.testing.google.storage import Objects
from airflow_provider_sml.testing.google.tls import certificate

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.monitoring import Monitoring
    from airflow_provider_sml.testing.google.vertex import Vertex


class FakeGoogle(FakeCloud):
    """A fake project of Google Cloud, served on the loopback interface until it is closed.

    Unmodified clients (Google's libraries, Airflow's hooks) reach it by the environment variables of ``environment``
    and credentials of any kind, such as the anonymous ones of a connection with ``is_anonymous``. It is one region
    after the other: a resource is where its name says. Buckets are not served here: give the address of a server of
    Cloud Storage as ``gcs``.

    :param clock: the clock; one that stands still when None.
    :param gcs: address of a server of Cloud Storage, such as fake-gcs-server's; None for none.
    :param port: port of the proxy that clients go through; 0 takes a free one.
    :param project: the project's id.
    """

    def __init__(
        self,
        clock: VirtualClock | None = None,
        gcs: str | None = None,
        port: int = 0,
        project: str = "fake-project",
    ) -> None:
        super().__init__(clock)
        self.gcs, self.project = gcs, project
        self.storage = Objects(gcs, project) if gcs else None
        self._making = threading.Lock()
        self._vertex: Vertex | None = None
        self._monitoring: Monitoring | None = None
        self.operations = Operations(self)
        self.dataproc = Dataproc(self)
        self.services = {"dataproc": self.dataproc, "operations": self.operations}
        self._server = Server(self, port)
        self.url = self._server.url

    @property
    def vertex(self) -> Vertex:
        """Vertex AI, made when it is first asked for."""
        with self._making:
            if self._vertex is None:
                from airflow_provider_sml.testing.google.vertex import Vertex

                self._vertex = Vertex(self)
                self.services = {**self.services, **self._vertex.services}
            return self._vertex

    @property
    def monitoring(self) -> Monitoring:
        """Cloud Monitoring, made when it is first asked for, because its library takes a second to import."""
        with self._making:
            if self._monitoring is None:
                from airflow_provider_sml.testing.google.monitoring import Monitoring

                self._monitoring = Monitoring(self)
                self.services = {**self.services, "monitoring": self._monitoring}
            return self._monitoring

    def behaviours(self) -> list[Behaviour]:
        """What the fake does, and where that is known from."""
        assert self.vertex and self.monitoring
        return super().behaviours()

    def environment(self) -> dict[str, str]:
        """What points clients here: a proxy that knows Google's hosts only, whom to trust, and the project."""
        found = {
            "grpc_proxy": self.url,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate().root),
            "GOOGLE_CLOUD_PROJECT": self.project,
        }
        return found | ({"STORAGE_EMULATOR_HOST": self.gcs} if self.gcs else {})

    def connections(self) -> dict[str, str]:
        """The usual connection, with the project and without credentials."""
        extra = {"project": self.project, "is_anonymous": True}
        connection = {"conn_type": "google_cloud_platform", "extra": extra}
        return {"AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(connection)}

    def close(self) -> None:
        """End the server, and the processes that it started."""
        self._server.close()
        if self._vertex is not None:
            self._vertex.close()
