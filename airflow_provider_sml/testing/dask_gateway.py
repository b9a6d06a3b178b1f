"""A real Dask Gateway for tests: its server, its proxy of schedulers and its clusters are processes of this machine.

Clusters run by the interpreter of the tests, so that their workers have this package. Everything listens on the
loopback interface; the server's own environment is made once by ``scripts/dask_gateway.sh``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, server

_BUILD = Path(__file__).resolve().parents[2] / "scripts" / "dask_gateway.sh"
_CONFIG = """
from dask_gateway_server.options import Integer, Options, Select, String

python, folder = {python!r}, {folder!r}
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = {password!r}
c.DaskGateway.address = "127.0.0.1:{api}"
c.Proxy.address = "127.0.0.1:{port}"
c.Proxy.prefix = ""
c.UnsafeLocalBackend.clusters_directory = folder
c.UnsafeLocalBackend.sigint_timeout = 2
c.UnsafeLocalBackend.check_timeouts_period = 2
c.DBBackendBase.cluster_heartbeat_period = 2
c.DBBackendBase.cluster_heartbeat_timeout = 10
c.ClusterConfig.scheduler_cmd = [python, "-m", "distributed.cli.dask_scheduler"]
c.ClusterConfig.worker_cmd = [python, "-m", "distributed.cli.dask_worker", "--host", "127.0.0.1"]
c.ClusterConfig.cluster_max_workers = 4
c.ClusterConfig.adaptive_period = 0.5


def handled(options):
    return {{"worker_cores": options.worker_cores, "environment": {{"SML_CAPACITY": options.capacity}}}}


c.Backend.cluster_options = Options(
    Integer("worker_cores", default=1, min=1, max=4),
    Select("capacity", ["on-demand", "spot"], default="on-demand"),
    String("tag", default=""),
    handler=handled,
)
"""


@dataclass(frozen=True)
class GatewayServer:
    """A gateway that runs.

    :param address: of its API and of the proxy of its schedulers.
    :param login: that it takes.
    :param password: of any user.
    :param folder: below it each cluster has its own, in which its processes run.
    """

    address: str
    login: str
    password: str
    folder: Path

    def processes(self, cluster: str = "") -> list[psutil.Process]:
        """The processes of a cluster, or of all of them.

        :param cluster: its name.
        """
        found = []
        inside = str(self.folder / cluster) if cluster else str(self.folder)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(inside):
                    found.append(process)
        return found


@contextlib.contextmanager
def gateway_server() -> Iterator[GatewayServer]:
    """Run a gateway for as long as the context is open; its clusters end with it.

    :raises ServerUnavailableError: when it cannot be had here.
    """
    try:
        built = subprocess.run([_BUILD], capture_output=True, text=True, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", "") or error
        raise ServerUnavailableError(f"the gateway's server cannot be had: {told}") from error
    program = built.stdout.strip().splitlines()[-1]
    with tempfile.TemporaryDirectory(prefix="sml-gateway-") as folder:
        port, api, password = free_port(), free_port(), "open-sesame"
        config = Path(folder) / "config.py"
        config.write_text(_CONFIG.format(python=sys.executable, folder=folder, password=password, api=api, port=port))
        found = GatewayServer(f"http://127.0.0.1:{port}", "ada", password, Path(folder))
        try:
            with server([program, "-f", str(config)], lambda: _answers(found.address)):
                yield found
        finally:
            for process in found.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()


def _answers(address: str) -> bool:
    """Whether the API answers through the proxy, whose routes come some time after it listens."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5) as answer:
        return bool(answer.status == 200)
    return False
