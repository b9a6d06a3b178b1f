"""The catalog of a lake: where the current state of each table is kept, and swapped by one atomic commit.

SQLite serves the processes of one machine. Several machines share a PostgreSQL database, AWS Glue, or a server of
Iceberg's REST protocol (Polaris, Lakekeeper, BigLake, Unity and others).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_sml.errors import ConfigurationError, require
from airflow_provider_sml.ml import storage

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

TYPES = ("sqlite", "postgres", "glue", "rest")


@dataclass(frozen=True)
class CatalogSettings:
    """Which catalog, and how it is reached.

    :param type: ``sqlite``, ``postgres``, ``glue`` or ``rest``.
    :param uri: of SQLite the file's path (``catalog.db`` in the lake's folder when None); of PostgreSQL
        ``postgresql://host:port/database``; of REST the server's address; of Glue an address that is not Amazon's own.
    :param user: of PostgreSQL; of REST the client's id.
    :param password: of PostgreSQL; of REST the client's secret, or a token when there is no user.
    :param namespace: that the tables lie in; two lakes in one catalog need two.
    :param properties: further ones, as pyiceberg names them, such as ``{"warehouse": "prod"}`` for REST.
    """

    type: str = "sqlite"
    uri: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    namespace: str = "lake"
    properties: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ConfigurationError("the catalog's type is unknown", expected=", ".join(TYPES), found=self.type)
        if self.type in ("postgres", "rest") and not self.uri:
            raise ConfigurationError(
                f"a catalog of type {self.type} needs its address",
                expected="postgresql://host:port/database" if self.type == "postgres" else "https://host/path",
                found="none",
            )


def open_catalog(settings: CatalogSettings, location: str, store: storage.Store) -> Catalog:
    """Open a catalog, and make the lake's namespace when it is not there.

    :param settings: which one.
    :param location: of the lake.
    :param store: of the lake; Glue is reached by its AWS credentials.
    """
    from pyiceberg.exceptions import NamespaceAlreadyExistsError

    if settings.type in ("sqlite", "postgres"):
        return _sql(settings, location)
    properties = _files(location) | dict(settings.properties)
    catalog: Catalog
    if settings.type == "glue":
        require("boto3", "amazon")
        from pyiceberg.catalog.glue import GlueCatalog

        aws = {
            "glue.endpoint": settings.uri,
            "glue.region": store.region,
            "glue.access-key-id": store.access_key,
            "glue.secret-access-key": store.secret_key,
            "glue.session-token": store.session_token,
        }
        catalog = GlueCatalog("sml", **{key: value for key, value in aws.items() if value}, **properties)
    else:
        from pyiceberg.catalog.rest import RestCatalog

        secret = {}
        if settings.password:
            user = settings.user
            secret = {"credential": f"{user}:{settings.password}"} if user else {"token": settings.password}
        catalog = RestCatalog("sml", uri=settings.uri, **secret, **properties)
    with contextlib.suppress(NamespaceAlreadyExistsError):  # another process was quicker
        catalog.create_namespace_if_not_exists(settings.namespace)
    return catalog


def _files(location: str) -> dict[str, str]:
    """How pyiceberg reaches the tables' files: by itself on a disk, by our own stores elsewhere."""
    if not storage.is_remote(location):
        return {}
    from airflow_provider_sml.ml.lake.io import LOCATION, StoreFileIO

    return {LOCATION: location, "py-io-impl": f"{StoreFileIO.__module__}.{StoreFileIO.__name__}"}


def _sql(settings: CatalogSettings, location: str) -> Catalog:
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    address = _sqlite(settings, location) if settings.type == "sqlite" else _postgres(settings)
    for tries_left in reversed(range(20)):
        try:
            catalog = SqlCatalog(
                "sml", uri=address, **{"pool_pre_ping": "true"}, **_files(location), **dict(settings.properties)
            )
            catalog.create_namespace_if_not_exists(settings.namespace)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # Another process is making the catalog of a new lake at this very moment.
            if not tries_left or "password" in str(error):
                raise _hidden(error, settings) from None
            time.sleep(0.1)
        else:
            break
    return catalog


def _sqlite(settings: CatalogSettings, location: str) -> str:
    if settings.uri:
        path = Path(settings.uri.removeprefix("sqlite:///")).absolute()
    elif storage.is_remote(location):
        raise ConfigurationError(
            f"the lake {location} needs a catalog that is not in its own folder",
            expected="a catalog of type postgres, glue or rest, or sqlite with the path of its file",
            found="sqlite without a path",
            todo="fill in the catalog of the lake's connection",
        )
    else:
        path = Path(location) / "catalog.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def _postgres(settings: CatalogSettings) -> str:
    require("psycopg2", "postgres")
    assert settings.uri is not None
    rest = settings.uri.split("://", 1)[-1]
    secret = f":{quote(settings.password, safe='')}" if settings.password else ""
    user = f"{quote(settings.user, safe='')}{secret}@" if settings.user else ""
    return f"postgresql+psycopg2://{user}{rest}"


def _hidden(error: Exception, settings: CatalogSettings) -> Any:
    """A database's refusal without the secrets that its text may repeat."""
    text = str(getattr(error, "orig", error)).strip()
    return ConfigurationError(
        "the catalog cannot be opened",
        expected=f"a {settings.type} database at {settings.uri or 'the lake'}",
        found=text.replace(settings.password, "***") if settings.password else text,
    )
