"""Sessions of HTTP for YARN's web services, with the credentials of an Airflow connection.

A connection of type ``http``. A login alone is Hadoop's simple authentication (``user.name``). A login with a password
is basic authentication, as gateways such as Knox ask for it; with ``{"auth": "bearer"}`` in the extra the password is a
token. Passwords go over TLS only, and where the connection names a host to that host only. ``{"ca": "/path.pem"}`` in
the extra is the authority that certificates are verified with. Kerberos (SPNEGO) is not spoken.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.hooks.places import find_connection

DEFAULT = "yarn_default"
_KINDS = ("simple", "basic", "bearer")


@dataclass(frozen=True)
class Credentials:
    """Puts the credentials of a connection on requests.

    :param simple_user: the user that Hadoop's simple authentication believes; empty when there is another one.
    :param header: the value of ``Authorization``.
    :param host: the only host that gets the header; any when empty.
    """

    simple_user: str = ""
    header: str = field(default="", repr=False)
    host: str = ""

    def __call__(self, request: Any) -> Any:
        """What requests calls with each request.

        :raises ConfigurationError: when a secret would go in the clear, or to another host.
        """
        if self.simple_user:
            request.prepare_url(request.url, {"user.name": self.simple_user})
        if self.header:
            target = urlsplit(request.url)
            safe = target.scheme == "https" or target.hostname in ("127.0.0.1", "localhost", "::1")
            if not safe or (self.host and target.hostname != self.host):
                raise ConfigurationError(
                    "the password of a connection to YARN would go where it must not",
                    expected=f"https://{self.host or 'HOST'}", found=f"{target.scheme}://{target.hostname}",
                )  # fmt: skip
            request.headers["Authorization"] = self.header
        return request


def yarn_session(connection: str, secrets: bool = True) -> Any:
    """A session of requests.

    :param connection: id of the connection; the default one may be missing, and nobody is named then.
    :param secrets: whether passwords are sent; without them only the user's name is.
    :raises ConfigurationError: when the connection asks for a kind of authentication that is not known.
    """
    import requests

    session = requests.Session()
    # The second is asked for where Hadoop's rest-csrf filter is on.
    session.headers.update({"Accept": "application/json", "X-XSRF-Header": "sml"})
    session.auth = Credentials()
    found = find_connection(connection or DEFAULT, DEFAULT)
    if found is None:
        return session
    extra = found.extra_dejson
    kind = extra.get("auth") or ("basic" if found.password else "simple")
    if kind not in _KINDS:
        raise ConfigurationError(
            f"the connection {connection} asks for an authentication that is not spoken", expected=", ".join(_KINDS),
            found=kind, todo=did_you_mean(kind, _KINDS),
        )  # fmt: skip
    login, password = found.login or "", found.password or ""
    if kind == "simple":
        session.auth = Credentials(simple_user=login)
    elif secrets:
        basic = base64.b64encode(f"{login}:{password}".encode()).decode()
        header = f"Bearer {password}" if kind == "bearer" else f"Basic {basic}"
        host = urlsplit(found.host if "://" in (found.host or "") else f"//{found.host or ''}").hostname or ""
        session.auth = Credentials(header=header, host=host)
    if extra.get("ca"):
        session.verify = extra["ca"]
        session.trust_env = False  # the environment's certificates would go before these
    return session
