"""The jars that Spark needs besides its own, pinned with their checksums for each line of Spark.

Nothing is needed for local files. For S3 it is the slim set: Hadoop's connector and the few modules of the AWS SDK
that it uses, about 10 MB, rather than the SDK's bundle of 686 MB; what Spark has itself (Netty, logging, HTTP client)
is left out. For Google Cloud Storage it is the connector, and for those who read the lake from Spark SQL Iceberg's
runtime.

``python -m airflow_provider_sml.cloud.jars fetch --spark 4.1 --for s3`` prints the value of ``spark.jars``: it takes
the files from a folder (``--folder``, for closed networks), from a repository of Maven's layout (``--repository``), or
with neither from Maven's local repository, which the ``mvn`` command fills when it is there. Every file's SHA-256 is
checked wherever it came from. ``list`` prints coordinates and checksums, for those who mirror them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from airflow_provider_sml.cloud import pinned_jars as pinned
from airflow_provider_sml.errors import ConfigurationError, IntegrityError, SmlError

PURPOSES = ("s3", "gcs", "iceberg", "committer")


@dataclass(frozen=True)
class Jar:
    """One file of a Maven repository.

    :param coordinates: ``group:artifact:version``, with ``:classifier`` where there is one.
    :param sha256: of its bytes.
    """

    coordinates: str
    sha256: str

    @property
    def path(self) -> str:
        """Its path in a repository."""
        group, artifact, version, *_ = self.coordinates.split(":")
        return f"{group.replace('.', '/')}/{artifact}/{version}/{self.name}"

    @property
    def name(self) -> str:
        """Its file name."""
        _, artifact, version, *classifier = self.coordinates.split(":")
        return "-".join([artifact, version, *classifier]) + ".jar"


#: Lines of Spark that there are jars for.
LINES = tuple(pinned.S3)


def jars(spark: str, purposes: Sequence[str]) -> list[Jar]:
    """The jars of some purposes.

    :param spark: line or version of Spark, such as ``4.1`` or ``4.1.4``.
    :param purposes: of ``PURPOSES``.
    :raises ConfigurationError: for another line or purpose.
    """
    line = ".".join(spark.split(".")[:2])
    if line not in LINES:
        raise ConfigurationError(
            f"no jars are pinned for Spark {spark}", expected="one of " + ", ".join(LINES), found=spark
        )
    unknown = sorted(set(purposes) - set(PURPOSES))
    if unknown:
        raise ConfigurationError(
            f"no jars are known for {unknown[0]}", expected="of " + ", ".join(PURPOSES), found=", ".join(unknown)
        )
    tables = {
        "s3": pinned.S3[line],
        "gcs": pinned.GCS,
        "iceberg": pinned.ICEBERG[line],
        "committer": pinned.COMMITTER[line],
    }
    return [Jar(*words.split()) for purpose in purposes for words in tables[purpose].strip().splitlines()]


def default_cache() -> Path:
    """Where verified jars are kept: outside every project, for the user."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "airflow-provider-sml" / "jars"


def fetch(
    spark: str,
    purposes: Sequence[str],
    cache: Path | None = None,
    folder: Path | None = None,
    repository: str | None = None,
) -> list[Path]:
    """The verified files of some purposes, brought into the cache when they are not there.

    :param spark: line or version of Spark.
    :param purposes: of ``PURPOSES``.
    :param cache: folder for the files; ``default_cache()`` when None.
    :param folder: takes them from here, where they lie side by side or as in a repository; nothing is downloaded.
    :param repository: address of a Maven repository; https, or http on this machine.
    :raises ConfigurationError: when a file cannot be had.
    :raises IntegrityError: when a file is not the one that was pinned; it is not kept.
    """
    cache = cache or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    paths = []
    for jar in jars(spark, purposes):
        path = cache / jar.name
        if not path.is_file() or _sha256(path) != jar.sha256:
            temporary = path.with_name(f".{jar.name}.{os.getpid()}")
            try:
                _bring(jar, temporary, folder, repository)
                found = _sha256(temporary)
                if found != jar.sha256:
                    raise IntegrityError(
                        f"{jar.name} is not the file that was pinned",
                        expected=f"SHA-256 {jar.sha256}",
                        found=found,
                        todo="find out who changed it; take it from another source",
                    )
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        paths.append(path)
    return paths


def spark_jars(paths: Sequence[Path]) -> str:
    """The value of the setting ``spark.jars``."""
    return ",".join(str(path) for path in paths)


def _bring(jar: Jar, target: Path, folder: Path | None, repository: str | None) -> None:
    if folder is not None:
        for place in (folder / jar.name, folder / jar.path):
            if place.is_file():
                shutil.copyfile(place, target)
                return
        raise ConfigurationError(
            f"{jar.name} is not in {folder}",
            expected=f"{folder / jar.name} or {folder / jar.path}",
            found="neither",
            todo=f"copy {jar.coordinates} there",
        )
    if repository is not None:
        _download(jar, target, repository)
        return
    local = Path("~/.m2/repository").expanduser() / jar.path
    if not local.is_file():
        _run_maven(jar)
    shutil.copyfile(local, target)


def _download(jar: Jar, target: Path, repository: str) -> None:
    parts = urlsplit(repository)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise ConfigurationError(
            "the repository is not safe", expected="an https address", found=parts.scheme or "none"
        )
    try:
        address = f"{repository.rstrip('/')}/{jar.path}"
        with urllib.request.urlopen(address, timeout=60) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, OSError) as error:
        raise ConfigurationError(
            f"{jar.coordinates} could not be had from the repository", expected=jar.path, found=error
        ) from error


def _run_maven(jar: Jar) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigurationError(
            f"{jar.coordinates} is not in Maven's local repository, and there is no mvn",
            expected="a source of jars",
            found="none",
            todo="install Maven, or give --repository or --folder",
        )
    group, artifact, version, *classifier = jar.coordinates.split(":")
    wanted = ":".join([group, artifact, version, "jar", *classifier])
    done = subprocess.run(
        [maven, "-B", "-q", "dependency:get", "-Dtransitive=false", f"-Dartifact={wanted}"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        said = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stderr)
        raise ConfigurationError(
            f"Maven could not get {jar.coordinates}", found=re.sub(r"\x1b\[[0-9;]*m", "", said).strip()[:300]
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sml.cloud.jars", description=__doc__)
    parser.add_argument("command", choices=["fetch", "list"])
    parser.add_argument("--spark", required=True, help="line or version of Spark, such as 4.1")
    parser.add_argument("--for", dest="purposes", nargs="+", choices=PURPOSES, required=True)
    parser.add_argument("--to", type=Path, help="folder for the files")
    parser.add_argument("--folder", type=Path, help="take them from this folder")
    parser.add_argument("--repository", help="take them from this Maven repository")
    given = parser.parse_args(arguments)
    try:
        if given.command == "list":
            for jar in jars(given.spark, given.purposes):
                print(jar.sha256, jar.coordinates)
        else:
            print(spark_jars(fetch(given.spark, given.purposes, given.to, given.folder, given.repository)))
    except SmlError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
