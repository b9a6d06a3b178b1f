"""Spark on YARN in cluster mode: ``spark-submit`` hands the driver over, the ResourceManager's REST tells of it.

The driver is no child of the task, so nothing of it is remembered here. The application carries tags: one of the job's
name, which everybody finds it by, and what the job gives back. ``submit`` looks for them first and attaches to an
application that has not ended. YARN makes no two names exclude each other, so it looks again afterwards, and so does
every later look: of applications of one job that run, the oldest is kept and the others are killed.

States, tags and usage: Hadoop's "ResourceManager REST APIs" (Cluster Applications, Cluster Application State). A driver
in Python leaves only its exit code there; its own words are read from its node as long as that shows them.

``spark-submit`` speaks Hadoop's own protocol with the settings of ``HADOOP_CONF_DIR``. Not here: Kerberos for the REST
API (SPNEGO), the history of applications that the ResourceManager has forgotten, queues and node labels.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.cloud.remote_job import Adapter, JobState, JobStatus, iso, job_name, spec_hash
from airflow_provider_sml.cloud.spark_kubernetes import encrypted_wire
from airflow_provider_sml.cloud.spark_submit import (
    check_settings,
    driver_reason,
    input_error,
    own_lines,
    submit_to_cluster,
)
from airflow_provider_sml.errors import ConfigurationError, JobError

#: YARN's limits (YarnConfiguration.APPLICATION_MAX_TAGS and APPLICATION_MAX_TAG_LENGTH); it makes tags lower-case.
_TAGS, _TAG_LENGTH = 10, 100
_JOB, _SPEC, _OUTPUT = "sml-job-", "sml-spec-", "sml-out"
_CALL_S, _CANCEL_S, _SUBMIT_S = 30.0, 60.0, 600.0
_LOG_BYTES = 20_000
_STATES = {
    "NEW": JobState.PENDING, "NEW_SAVING": JobState.PENDING, "SUBMITTED": JobState.PENDING,
    "ACCEPTED": JobState.PENDING, "RUNNING": JobState.RUNNING, "FAILED": JobState.FAILED, "KILLED": JobState.CANCELLED,
}  # fmt: skip
_ENDS = {"SUCCEEDED": JobState.SUCCEEDED, "KILLED": JobState.CANCELLED}
#: What a cluster says of a submission that it will not take the next time either.
_REFUSED = re.compile(
    r"unknown queue|queue \S+ (does not exist|is not a leaf)|AccessControlException|cannot submit applications|"
    r"Invalid resource request|required executor memory|required AM memory|_CONF_DIR must be set",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class SparkYarnJob(Adapter):
    """One run of an application.

    :param name: of the job.
    :param entry_point: the Python file: a path of this machine, which spark-submit uploads, or an address.
    :param resource_manager: address of the ResourceManager's web service, or those of a pair with a comma between.
    :param arguments: of the application.
    :param queue: that it runs in; YARN's default when empty.
    :param hadoop_conf: folder with the cluster's ``yarn-site.xml`` and ``core-site.xml``; that of the environment's
        ``HADOOP_CONF_DIR`` when empty.
    :param min_executors: at least this many; with ``max_executors`` the limits of Spark's dynamic allocation.
    :param max_executors: at most this many.
    :param conf: Spark settings: sizes, node labels, ``spark.yarn.appMasterEnv.PYSPARK_PYTHON``, jars and the like.
    :param credential_provider: address of the Hadoop credential provider that holds the secrets, such as
        ``jceks://hdfs@namenode/keys/etl.jceks``.
    :param secret_aliases: the alias there of each environment variable that is secret.
    :param output: what ``result`` gives back.
    :param tags: tags of the application, as far as there is room for them.
    :param prices: USD per hour of ``yarn-vcpu`` and ``yarn-gb``; no cost is told without them.
    :param connection: id of the Airflow connection with the credentials for the web service.
    """

    provider: ClassVar[str] = "yarn"

    name: str
    entry_point: str
    resource_manager: str
    arguments: list[str] = field(default_factory=list)
    queue: str = ""
    hadoop_conf: str = ""
    min_executors: int | None = None
    max_executors: int | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    credential_provider: str = ""
    secret_aliases: Mapping[str, str] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    connection: str = "yarn_default"

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Submit the application, or attach: to one of this job that has not ended, or to one of the same
        specification that succeeded; gives the application's id.

        :raises ConfigurationError: when a secret has no alias, or the cluster refuses the application.
        """
        self._check(secrets or {})
        before = self._apps()
        if kept := self._keep_one(before):
            return kept
        code, said = self._run_submit()
        after = self._apps()
        if kept := self._keep_one(after):
            return kept
        if new := [app["id"] for app in after if app["id"] not in {old["id"] for old in before}]:
            return str(new[-1])  # it has failed already; its status tells why
        if not code:
            raise ConfigurationError(
                f"spark-submit of {self.name} submitted an application that the ResourceManager does not show",
                expected=f"hadoop_conf of the cluster of {self.resource_manager}, and a user who may see it",
                found=", ".join(re.findall(r"application_\d+_\d+", said)[:1]) or "no application id",
                todo="see that both are the same cluster, and end that application by hand",
            )
        lines = own_lines(said.splitlines())
        reason = driver_reason(lines, code)
        if _REFUSED.search(said):
            raise ConfigurationError(f"the cluster refuses the application of {self.name}", found=reason)
        raise JobError(f"spark-submit of {self.name} submitted nothing", found=reason)

    def status(self, job_id: str) -> JobStatus:
        """Where the application stands; the driver's own reason when it failed, as far as it can be read."""
        app = self._app(job_id)
        if app is None:
            return JobStatus(JobState.FAILED, f"the ResourceManager knows {job_id} no more")
        state, said = _state(app), " ".join(str(app.get("diagnostics") or "").split())[:600]
        where = app.get("amContainerLogs") or app.get("trackingUrl") or "no log"
        if state is JobState.FAILED:
            return self._failure(app, said, f"(log: {where})")
        if state is JobState.PENDING:
            self._keep_one(self._apps())
            return JobStatus(state, said, (f"{app['state']}: {said}",) if said else ())
        if state is JobState.RUNNING:
            self._keep_one(self._apps())
            return JobStatus(state, progress=(f"{job_id} runs (log: {where})",))
        return JobStatus(state, said if state is JobState.CANCELLED else "")

    def result(self, job_id: str) -> dict[str, Any]:
        """The output of the application that ran, which an attached task did not start, and what it used."""
        app = self._app(job_id) or {}
        hours = {
            "vcpu": float(app.get("vcoreSeconds") or 0) / 3600,
            "gb": float(app.get("memorySeconds") or 0) / 3600 / 1024,  # of MB and seconds
        }
        costs = [price(f"yarn-{what}", self.prices) for what in hours]
        cost = sum(per * used for per, used in zip(costs, hours.values(), strict=True) if per is not None)
        usage = {
            "job": job_id, "vcpu_hours": hours["vcpu"], "gb_hours": hours["gb"],
            "cost_usd": None if None in costs else round(cost, 4),
            "started": _moment(app.get("startedTime")), "ended": _moment(app.get("finishedTime")),
        }  # fmt: skip
        recorded = _read_output(app)
        return {**(dict(self.output) if recorded is None else recorded), "usage": usage}

    def cancel(self, job_id: str) -> None:
        """Kill the application and wait until it has ended; one that has, or is unknown, is no error.

        :raises JobError: when it has not ended after a minute.
        """
        until = time.monotonic() + _CANCEL_S
        while self._call("PUT", f"apps/{job_id}/state", json={"state": "KILLED"}) is not None:
            app = self._app(job_id)
            if app is None or _state(app).final:
                return
            if time.monotonic() > until:
                raise JobError(f"job {self.name} does not end", found=f"{job_id} is {app['state']} after it was killed")
            time.sleep(0.5)

    # --- the parts ------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> str:
        """Hash of what decides the output; a file of this machine counts by its content."""
        path = Path(self.entry_point)
        code = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else self.entry_point
        return spec_hash([code, self.arguments, dict(self.conf), dict(self.output)])

    @property
    def _tag(self) -> str:
        """The tag of this job: of letters, digits and hyphens, with a hash of the exact name."""
        return _JOB + job_name(self.name, limit=_TAG_LENGTH - len(_JOB)).lower()

    def settings(self) -> dict[str, str]:
        """Spark's settings of a submission.

        :raises ConfigurationError: when the output does not fit into YARN's tags.
        """
        found: dict[str, str] = {}
        if self.min_executors is not None or self.max_executors is not None:
            # Shuffle files are tracked by the driver, so that no node needs Spark's shuffle service.
            dynamic = "spark.dynamicAllocation."
            found |= {f"{dynamic}enabled": "true", f"{dynamic}shuffleTracking.enabled": "true"}
            for key, limit in (("minExecutors", self.min_executors), ("maxExecutors", self.max_executors)):
                found |= {dynamic + key: str(limit)} if limit is not None else {}
        found |= encrypted_wire(self.conf)
        tags = [self._tag, f"{_SPEC}{self.spec}", *_output_tags(self.output)]
        if len(tags) > _TAGS:
            raise ConfigurationError(
                f"what {self.name} gives back is too long for YARN's tags", expected="about 400 characters of JSON",
                found=f"{len(json.dumps(dict(self.output)))}", todo="shorten the location of the lake",
            )  # fmt: skip
        own = [f"{key}:{value}".lower() for key, value in self.tags.items()]
        fit = [tag for tag in own if tag.isascii() and "," not in tag and len(tag) <= _TAG_LENGTH]
        found |= {
            "spark.app.name": self.name,
            "spark.yarn.tags": ",".join((tags + fit)[:_TAGS]),
            "spark.yarn.submit.waitAppCompletion": "false",
            "spark.yarn.maxAppAttempts": "1",  # another try is the task's
        }
        if self.queue:
            found["spark.yarn.queue"] = self.queue
        if self.secret_aliases:
            found["spark.hadoop.hadoop.security.credential.provider.path"] = self.credential_provider
            found |= {f"spark.sml.secret.{variable}": alias for variable, alias in self.secret_aliases.items()}
        return found

    def _check(self, secrets: Mapping[str, str]) -> None:
        check_settings(self.conf)
        missing = sorted(set(secrets) - set(self.secret_aliases if self.credential_provider else ()))
        if missing or (self.secret_aliases and not self.credential_provider):
            raise ConfigurationError(
                "a driver on YARN cannot be given secrets as values",
                expected=f"credential_provider, and in secret_aliases an alias for {', '.join(missing) or 'each'}",
                found="none", todo="store it there: hadoop credential create ALIAS -provider ADDRESS",
            )  # fmt: skip

    def _run_submit(self) -> tuple[int, str]:
        """Run spark-submit until the cluster has accepted the application; gives its exit code and what it said."""
        settings = [part for key, value in self.settings().items() for part in ("--conf", f"{key}={value}")]
        command = [
            "--master", "yarn", "--deploy-mode", "cluster", *settings, self.entry_point,
            *self.arguments,
        ]  # fmt: skip
        # Spark would hand this machine's Python on to the driver, where it is another or none.
        env = {key: value for key, value in os.environ.items() if not re.fullmatch("PYSPARK_(DRIVER_)?PYTHON", key)}
        if self.hadoop_conf:
            env |= {"HADOOP_CONF_DIR": self.hadoop_conf, "YARN_CONF_DIR": self.hadoop_conf}
        assert self.clients is not None
        if user := self.clients.client("yarn").auth.simple_user:
            env["HADOOP_USER_NAME"] = user
        return submit_to_cluster(self.name, command, env, _SUBMIT_S)

    def _keep_one(self, apps: list[dict[str, Any]]) -> str | None:
        """The application to wait for; others of this job that have not ended are killed.

        :param apps: the applications of this job, the oldest first.
        """
        live = [app for app in apps if not _state(app).final]
        for other in live[1:]:
            self.cancel(other["id"])
        if live:
            return str(live[0]["id"])
        done = [app for app in apps if _state(app) is JobState.SUCCEEDED]
        same = [app for app in done if f"{_SPEC}{self.spec}" in _tags(app)] if done else []
        return str(same[-1]["id"]) if same else None

    def _failure(self, app: dict[str, Any], said: str, where: str) -> JobStatus:
        told = self._driver_log(app)
        wrong_input = input_error(told)
        if wrong_input:
            return JobStatus(JobState.FAILED, f"{wrong_input} {where}", configuration=True)
        code = re.search(r"User application exited with (?:status )?(\d+)", said)
        reason = driver_reason(told, int(code[1])) if code and told else said or "it told no reason"
        return JobStatus(JobState.FAILED, f"{reason} {where}", configuration=bool(_REFUSED.search(said)))

    def _driver_log(self, app: dict[str, Any]) -> list[str]:
        """The last lines of the driver's output, as far as its node still shows them.

        Asked of the node's REST (NodeManager, container logs), without the secrets of the connection: its address is
        what the ResourceManager says.
        """
        import requests

        place = re.match(r"(https?://[^/]+)/node/containerlogs/(container_\w+)/", app.get("amContainerLogs") or "")
        if not place or self.clients is None:
            return []
        try:
            with self.clients.client("node").get(
                f"{place[1]}/ws/v1/node/containers/{place[2]}/logs/stdout", params={"size": str(-_LOG_BYTES)},
                timeout=_CALL_S, allow_redirects=False, stream=True,
            ) as answer:  # fmt: skip
                parts = answer.iter_content(8192) if answer.status_code == 200 else iter(())
                text = b"".join(itertools.islice(parts, 100))
        except requests.RequestException:  # the application's own state tells how it ended all the same
            return []
        lines = text.decode(errors="replace").splitlines()
        return own_lines(lines)

    def _app(self, job_id: str) -> dict[str, Any] | None:
        found = self._call("GET", f"apps/{job_id}")
        return dict(found["app"]) if found else None

    def _apps(self) -> list[dict[str, Any]]:
        """The applications of this job, the oldest first: by the time of their submission, then by number."""
        found = (self._call("GET", "apps", params={"applicationTags": self._tag}) or {}).get("apps") or {}
        return sorted(found.get("app") or [], key=lambda app: (app["startedTime"], int(app["id"].rpartition("_")[2])))

    def _call(self, method: str, path: str, **more: Any) -> dict[str, Any] | None:
        """Ask the ResourceManager that is active; None when there is no such thing. Redirects are not followed."""
        import requests

        assert self.clients is not None
        said = ""
        for address in self.resource_manager.split(","):
            url = f"{address.strip().rstrip('/')}/ws/v1/cluster/{path}"
            try:
                for fresh in (False, True):  # a token may have expired: once more with a new one
                    session = self.clients.client("yarn", fresh)
                    answer = session.request(method, url, timeout=_CALL_S, allow_redirects=False, **more)
                    if answer.status_code != 401:
                        break
                code = answer.status_code
                if code == 404:
                    return None
                if code < 300:
                    return dict(answer.json())
            except (requests.RequestException, ValueError) as error:  # not there, or a page: it is a standby
                said = f"{address.strip()}: {error}"
                continue
            said = f"{address.strip()}: {code} {answer.reason}"
            if code in (400, 401, 403):
                asks = answer.headers.get("WWW-Authenticate", "")
                raise ConfigurationError(
                    f"the ResourceManager refuses {method} {path} for {self.name}", found=said,
                    expected=f"credentials in the connection {self.connection}",
                    todo="put a gateway before it: Kerberos (SPNEGO) is not spoken here" if "Negotiate" in asks
                    else "see the connection's user, and what it may do",
                )  # fmt: skip
        raise JobError(f"no ResourceManager answers for {self.name}", found=said)


def _state(app: Mapping[str, Any]) -> JobState:
    if app["state"] == "FINISHED":
        return _ENDS.get(app.get("finalStatus", ""), JobState.FAILED)
    return _STATES.get(app["state"], JobState.RUNNING)


def _tags(app: Mapping[str, Any]) -> list[str]:
    return str(app.get("applicationTags") or "").split(",")


def _output_tags(output: Mapping[str, Any]) -> list[str]:
    """The output as numbered tags: compressed, in letters that stay what they are in lower case."""
    packed = base64.b32encode(zlib.compress(json.dumps(dict(output)).encode(), 9)).decode().lower().rstrip("=")
    room = _TAG_LENGTH - len(_OUTPUT) - 3
    parts = [packed[at : at + room] for at in range(0, len(packed), room)]
    return [f"{_OUTPUT}{number:02d}-{part}" for number, part in enumerate(parts)]


def _read_output(app: Mapping[str, Any]) -> dict[str, Any] | None:
    packed = "".join(tag[len(_OUTPUT) + 3 :] for tag in sorted(_tags(app)) if tag.startswith(_OUTPUT)).upper()
    if not packed:
        return None
    return dict(json.loads(zlib.decompress(base64.b32decode(packed + "=" * (-len(packed) % 8)))))


def _moment(milliseconds: int | None) -> str:
    return iso(dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)) if milliseconds else ""
