"""A real PostgreSQL for tests, on a free loopback port: it stands in for what Redshift shares with it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, listens, server

#: What Redshift has and PostgreSQL lacks, of what this package's SQL uses.
REDSHIFT_FUNCTIONS = """
CREATE FUNCTION strtol(digits text, base int) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT ('x' || lpad(digits, 16, '0'))::bit(64)::bigint WHERE base = 16 $$;
CREATE FUNCTION getdate() RETURNS timestamp LANGUAGE sql STABLE AS $$ SELECT now() AT TIME ZONE 'UTC' $$;
"""


def _program(name: str) -> str:
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        raise ServerUnavailableError(f"PostgreSQL's {name} is not installed (apt-get install -y postgresql)")
    return str(Path(found).resolve())


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A fresh server with an empty database; gives the connection string for psycopg2.

    :raises ServerUnavailableError: when PostgreSQL is not installed or does not start.
    """
    # PostgreSQL refuses to run as root.
    user = next((name for name in ("postgres", "nobody") if _has_user(name)), None) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        if user:
            shutil.chown(folder, user)
        data, port = f"{folder}/data", free_port()
        made = subprocess.run(
            [_program("initdb"), "-D", data, "-U", "sml", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True, text=True, user=user, cwd=folder,
        )  # fmt: skip
        if made.returncode:
            raise ServerUnavailableError(f"initdb failed: {made.stderr[-1000:]}")
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off", "timezone=UTC"]
        command = [_program("postgres"), "-D", data, "-p", str(port)]
        for setting in settings:
            command += ["-c", setting]
        dsn = f"host=127.0.0.1 port={port} user=sml dbname=postgres"
        with server(command, lambda: listens(port) and _answers(dsn), user=user):
            yield dsn


def _answers(dsn: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True


def _has_user(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False
