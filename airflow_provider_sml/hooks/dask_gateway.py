"""The connection to a Dask Gateway: a connection of type ``dask`` whose protocol is http or https."""

from __future__ import annotations

import contextlib
from typing import Any

from airflow.sdk import BaseHook

from airflow_provider_sml.errors import ConfigurationError, require
from airflow_provider_sml.hooks.places import find_connection

#: Ways to log in, and what each needs of the connection.
AUTH = ("basic", "kerberos", "jupyterhub", "token")


class DaskGatewayHook(BaseHook):
    """Opens a gateway.

    Of the connection: host, port and schema (``https`` when empty) are the gateway's address; the extra ``auth`` says
    how to log in: ``basic`` (login and password), ``kerberos`` (the ticket of this process), ``jupyterhub`` (its API
    token is the password), or ``token`` (the password is a bearer token); without it ``basic`` where there is a
    login. The extra ``proxy_address`` names the proxy of schedulers where it is elsewhere.

    :param connection: its id.
    """

    conn_name_attr = "connection"
    default_conn_name = "dask"
    conn_type = "dask"
    hook_name = "Dask Gateway"

    def __init__(self, connection: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection = connection

    def get_conn(self) -> Any:
        """A ``dask_gateway.Gateway``; whoever opened it closes it.

        :raises ConfigurationError: when the connection is incomplete.
        """
        require("dask_gateway", "gateway")
        from airflow_provider_sml.cloud.dask_gateway import open_gateway

        found = find_connection(self.connection, "")
        assert found is not None
        if not found.host:
            raise ConfigurationError(
                f"the connection {self.connection} has no host", expected="the gateway's host", found="none"
            )
        schema = found.schema or "https"
        if schema not in ("http", "https"):
            raise ConfigurationError(
                f"the connection {self.connection} is not one to a gateway", expected="the protocol https or http",
                found=schema, todo="name it as the cluster itself when it is a scheduler's",
            )  # fmt: skip
        port = f":{found.port}" if found.port else ""
        extra = found.extra_dejson
        return open_gateway(
            f"{schema}://{found.host}{port}{extra.get('prefix') or ''}",
            extra.get("proxy_address") or None,
            self._auth(extra.get("auth") or ("basic" if found.login else ""), found.login, found.password),
        )

    def _auth(self, kind: str, login: str | None, password: str | None) -> Any:
        from dask_gateway.auth import BasicAuth, GatewayAuth, JupyterHubAuth, KerberosAuth

        if not kind:
            return GatewayAuth()  # an open one, on a network of its own
        if kind not in AUTH:
            raise ConfigurationError(
                f"the connection {self.connection} names an unknown way to log in", expected=", ".join(AUTH), found=kind
            )
        if kind == "kerberos":
            with contextlib.suppress(ImportError):
                import kerberos  # noqa: F401

                return KerberosAuth()
            raise ConfigurationError(
                "Kerberos cannot be used", expected="the library kerberos", found="none", todo="pip install kerberos"
            )
        if not password or (kind == "basic" and not login):
            raise ConfigurationError(
                f"the connection {self.connection} does not say who logs in",
                expected="login and password" if kind == "basic" else "the token as its password", found="none",
            )  # fmt: skip
        if kind == "basic":
            return BasicAuth(login, password)
        return JupyterHubAuth(password) if kind == "jupyterhub" else _bearer(password)


def _bearer(token: str) -> Any:
    from dask_gateway.auth import GatewayAuth

    class Bearer(GatewayAuth):
        """What an identity-aware proxy before a gateway takes."""

        def pre_request(self, resp: Any) -> tuple[dict[str, str], None]:
            return {"Authorization": f"Bearer {token}"}, None

    return Bearer()
