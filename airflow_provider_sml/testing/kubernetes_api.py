"""A real Kubernetes control plane for tests: etcd, API server, controllers and scheduler, with simulated nodes.

::

    with kubernetes_api() as cluster:
        cluster.nodes.add("spot-1", labels={"cloud.google.com/gke-spot": "true"}, cpu=4)
        conn = {"conn_type": "kubernetes", "extra": {"kube_config": cluster.kubeconfig()}}

Validation, quotas, roles, scheduling, Jobs, owner references and the clean-up after them are Kubernetes' own. What a
pod runs, ``testing.kubelet`` runs as a process of this machine. The four programs are built once by ``make servers``;
where they are missing ``ServerUnavailableError`` says so. Everything listens on the loopback interface only, with
certificates of its own.

Controllers that run: garbage collection, name spaces, service accounts, quotas, nodes and taints, Jobs and their
clean-up, pods of nodes that are gone. Not: volumes, services, autoscalers, images, network.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from airflow_provider_sml.testing.kubelet import Nodes
from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, listens, server

KUBERNETES, ETCD = "v1.34.4", "v3.6.4"
_CONTROLLERS = (
    "garbage-collector-controller", "namespace-controller", "serviceaccount-controller", "resourcequota-controller",
    "node-lifecycle-controller", "taint-eviction-controller", "job-controller", "pod-garbage-collector-controller",
    "ttl-after-finished-controller",
)  # fmt: skip


class Refused(Exception):
    """An answer of the API server that is no success.

    :param status: of HTTP.
    :param message: of the server.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class KubernetesApi:
    """A running control plane, as its administrator sees it.

    :param url: of the API server.
    :param folder: of its certificates.
    """

    def __init__(self, url: str, folder: Path) -> None:
        import urllib3

        self.url, self.folder = url, folder
        self._http = urllib3.PoolManager(
            maxsize=8, ca_certs=str(folder / "ca.pem"), cert_file=str(folder / "admin.pem"),
            key_file=str(folder / "admin.key"), retries=False, timeout=30,
        )  # fmt: skip
        self.nodes = Nodes(self)

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: Any) -> Any:
        """Ask the API server.

        :param method: of HTTP; PATCH merges.
        :param path: such as ``/api/v1/nodes``.
        :param body: JSON.
        :param kind: media type of the body.
        :param query: of the address.
        :raises Refused: when it says no.
        """
        kind = "application/merge-patch+json" if method == "PATCH" else kind
        answer = self._http.request(
            method, f"{self.url}{path}" + (f"?{urlencode(query)}" if query else ""),
            body=None if body is None else json.dumps(body), headers={"Content-Type": kind},
        )  # fmt: skip
        try:
            content = json.loads(answer.data)
        except ValueError:
            content = answer.data.decode(errors="replace")
        if answer.status >= 400:
            raise Refused(answer.status, content["message"] if isinstance(content, dict) else content)
        return content

    def namespace(self, level: str = "restricted") -> str:
        """Make a name space that has its default service account; gives its name.

        :param level: Pod Security Standard that its pods must keep.
        """
        name = f"test-{uuid.uuid4().hex[:8]}"
        labels = {"pod-security.kubernetes.io/enforce": level}
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        _until(lambda: self._there(f"/api/v1/namespaces/{name}/serviceaccounts/default"), 60)
        return name

    def objects(self, namespace: str, kind: str) -> list[dict[str, Any]]:
        """The objects of a name space.

        :param kind: ``pods``, ``secrets``, ``jobs`` or another plural of the core or batch API.
        """
        group = "apis/batch/v1" if kind == "jobs" else "api/v1"
        return list(self.call("GET", f"/{group}/namespaces/{namespace}/{kind}")["items"])

    def apply(self, namespace: str, manifest: dict[str, Any]) -> None:
        """Make an object of a manifest, as ``kubectl create --validate=strict`` does.

        :param manifest: a Role, a RoleBinding, a ServiceAccount or an object of the core or batch API.
        """
        version, kind = manifest["apiVersion"], manifest["kind"].lower() + "s"
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        self.call("POST", f"{root}/namespaces/{namespace}/{kind}", manifest, fieldValidation="Strict")

    def token(self, namespace: str, account: str) -> str:
        """A token of a service account.

        :param account: its name; it is made where there is none.
        """
        root = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        if not self._there(f"{root}/{account}"):
            self.call("POST", root, {"metadata": {"name": account}})
        return str(self.call("POST", f"{root}/{account}/token", {"spec": {}})["status"]["token"])

    def kubeconfig(self, token: str = "", namespace: str = "default") -> dict[str, Any]:
        """A kubeconfig.

        :param token: of the user; the administrator's certificate when empty.
        :param namespace: its default.
        """
        user: dict[str, str] = {"token": token}
        if not token:
            user = {
                "client-certificate": str(self.folder / "admin.pem"), "client-key": str(self.folder / "admin.key"),
            }  # fmt: skip
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "ca.pem")}
        context = {"cluster": "tests", "user": "tests", "namespace": namespace}
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": cluster}], "users": [{"name": "tests", "user": user}],
            "contexts": [{"name": "tests", "context": context}],
        }  # fmt: skip

    def _there(self, path: str) -> bool:
        try:
            self.call("GET", path)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True


@contextlib.contextmanager
def kubernetes_api() -> Iterator[KubernetesApi]:
    """Run a control plane for as long as the context is open; all that it started is ended after it.

    :raises ServerUnavailableError: when a program is missing or does not start.
    """
    with tempfile.TemporaryDirectory(prefix="kubernetes-") as name, contextlib.ExitStack() as held:
        folder = Path(name)
        _certificates(folder)
        etcd, port = free_port(), free_port()
        cluster = KubernetesApi(f"https://127.0.0.1:{port}", folder)
        config = folder / "kubeconfig"
        config.write_text(json.dumps(cluster.kubeconfig()))
        held.enter_context(server(_etcd(etcd, folder), lambda: listens(etcd)))
        held.enter_context(server(_api_server(etcd, port, folder), lambda: _ready(cluster)))
        common = [f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0"]
        own = [f"--kube-api-{what}" for what in ("qps=200", "burst=400")]
        grace = ["--node-monitor-grace-period=24h", "--node-startup-grace-period=24h"]  # nodes tell no heart beats here
        controllers = [f"--controllers={','.join(_CONTROLLERS)}", "--resource-quota-sync-period=2s"]
        held.enter_context(
            server([program("kube-controller-manager"), *common, *own, *grace, *controllers], lambda: True)
        )
        held.enter_context(server([program("kube-scheduler"), *common, *own], lambda: True))
        with contextlib.closing(cluster.nodes):
            yield cluster


def program(name: str) -> str:
    """A program of the control plane.

    :param name: ``etcd``, ``kube-apiserver``, ``kube-controller-manager`` or ``kube-scheduler``.
    :raises ServerUnavailableError: when it is not built.
    """
    cache = os.environ.get("XDG_CACHE_HOME", f"{Path.home()}/.cache")
    folder = Path(os.environ.get("SML_SERVERS", f"{cache}/airflow-provider-sml/servers"))
    found = folder / f"{name}-{ETCD if name == 'etcd' else KUBERNETES}"
    if not found.exists():
        raise ServerUnavailableError(f"{found.name} is not built: run make servers, which needs Go")
    return str(found)


def _etcd(port: int, folder: Path) -> list[str]:
    address, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    return [
        program("etcd"), f"--data-dir={folder}/etcd", f"--listen-client-urls={address}",
        f"--advertise-client-urls={address}", f"--listen-peer-urls={peers}", "--unsafe-no-fsync", "--log-level=error",
        f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}",
    ]  # fmt: skip


def _api_server(etcd: int, port: int, folder: Path) -> list[str]:
    return [
        program("kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{etcd}", "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1", f"--secure-port={port}", "--endpoint-reconciler-type=none",
        f"--tls-cert-file={folder}/server.pem", f"--tls-private-key-file={folder}/server.key",
        f"--client-ca-file={folder}/ca.pem", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://tests", f"--service-account-key-file={folder}/server.key",
        f"--service-account-signing-key-file={folder}/server.key", "--profiling=false",
    ]  # fmt: skip


def _ready(cluster: KubernetesApi) -> bool:
    import urllib3

    try:
        return bool(cluster.call("GET", "/readyz") == "ok")
    except (Refused, urllib3.exceptions.HTTPError):
        return False


def _until(so: Callable[[], bool], patience: float) -> None:
    end = time.monotonic() + patience
    while not so():
        if time.monotonic() > end:
            raise ServerUnavailableError("the controllers of Kubernetes do not work")
        time.sleep(0.1)


def _certificates(folder: Path) -> None:
    """An authority, the API server's certificate, and an administrator's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    name, now = x509.NameOID.COMMON_NAME, dt.datetime.now(dt.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(name, "tests")])
    for what, organization in (("ca", ""), ("server", "tests"), ("admin", "system:masters")):
        key = ec.generate_private_key(ec.SECP256R1()) if organization else authority
        words = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization), x509.NameAttribute(name, what)]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(words) if organization else issuer)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not organization, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        if what == "server":
            own = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            made = made.add_extension(x509.SubjectAlternativeName(own), critical=False)
        (folder / f"{what}.pem").write_bytes(
            made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        path = folder / f"{what}.key"
        path.touch(mode=0o600)
        form = serialization.PrivateFormat.TraditionalOpenSSL  # the API server reads keys of tokens in no other
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
