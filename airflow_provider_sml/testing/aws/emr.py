"""EMR Serverless: applications and Spark job runs, whose work may be done for real by a function of the test."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.testing.aws.errors import AwsError, invalid
from airflow_provider_sml.testing.core import Behaviour, Timeline
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED
from airflow_provider_sml.testing.core.clock import moment

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/emr-serverless/latest/APIReference/API_"
_FINAL = ("SUCCESS", "FAILED", "CANCELLED")
_DRIVER_FAILED = (
    "Job failed, please check complete logs in configured logging destination. ExitCode: 1. Last few exceptions: "
)


@dataclass
class JobRun:
    """A job run.

    :param request: what it was started with.
    :param created: seconds since the epoch.
    :param timeline: of its state; the messages are its details.
    :param thread: does the work, when it is done for real.
    """

    request: dict[str, Any]
    created: float
    timeline: Timeline
    thread: threading.Thread | None = None
    failure: list[str] = field(default_factory=list)


class EmrServerless:
    """The operations on applications and job runs.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("emr-serverless", "The same client token with the same request gives the same job run.", DOCUMENTED,
                  f"{_API}StartJobRun.html"),
        Behaviour("emr-serverless", "The same client token with another request is ConflictException.", ASSUMED,
                  "the rule of idempotency tokens in other services of AWS"),
        Behaviour("emr-serverless", "A run goes SUBMITTED, PENDING, SCHEDULED, RUNNING, SUCCESS or FAILED.", DOCUMENTED,
                  "https://docs.aws.amazon.com/emr/latest/EMR-Serverless-UserGuide/job-states.html"),
        Behaviour("emr-serverless", "A run past executionTimeoutMinutes is cancelled.", DOCUMENTED,
                  f"{_API}StartJobRun.html"),
        Behaviour("emr-serverless", "Resource use is given for ended runs only.", DOCUMENTED, f"{_API}JobRun.html"),
        Behaviour("emr-serverless", "An application starts by itself at the first run, unless autoStart is off.",
                  DOCUMENTED, f"{_API}AutoStartConfig.html"),
        Behaviour("emr-serverless", "stateDetails of a failed driver quote its last exceptions.", DOCUMENTED,
                  "https://docs.aws.amazon.com/emr/latest/EMR-Serverless-UserGuide/troubleshooting.html"),
        Behaviour("emr-serverless", "PENDING takes 20 s, SCHEDULED 40 s; workers have 4 cores and 16 GB unless the "
                  "parameters say otherwise, three executors.", ASSUMED, "round figures near the defaults"),
    )  # fmt: skip

    #: Virtual seconds that a run takes when its work is not done for real.
    running_seconds = 300.0
    #: Does the work of a run: takes the request, gives its exit code and the text of its log.
    driver: Callable[[dict[str, Any]], tuple[int, str]] | None = None

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.applications: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, JobRun] = {}
        self._numbers = itertools.count(1)

    # --- applications ---------------------------------------------------------------------------------------------

    def create_application(self, request: dict[str, Any]) -> dict[str, Any]:
        made = f"00app{next(self._numbers):08d}"
        now = self.cloud.clock.moment()
        kept = {key: value for key, value in request.items() if key != "clientToken"}
        self.applications[made] = kept | {
            "applicationId": made, "arn": self._arn(made), "state": "CREATED", "createdAt": now, "updatedAt": now,
        }  # fmt: skip
        return {"applicationId": made, "arn": self._arn(made)} | ({"name": kept["name"]} if "name" in kept else {})

    def get_application(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"application": self._application(request)}

    def list_applications(self, request: dict[str, Any]) -> dict[str, Any]:
        states = request.get("states")
        found = [
            {
                "id": key, "arn": item["arn"], "releaseLabel": item["releaseLabel"], "type": item["type"],
                "state": item["state"], "createdAt": item["createdAt"], "updatedAt": item["updatedAt"],
            } | ({"name": item["name"]} if "name" in item else {})
            for key, item in self.applications.items()
            if not states or item["state"] in states
        ]  # fmt: skip
        return {"applications": found}

    def start_application(self, request: dict[str, Any]) -> None:
        self._application(request)["state"] = "STARTED"

    def stop_application(self, request: dict[str, Any]) -> None:
        application = self._application(request)
        if any(run.timeline.at(self.cloud.clock.now()).state not in _FINAL for run in self._of(request)):
            raise invalid("Application has running jobs")
        application["state"] = "STOPPED"

    def delete_application(self, request: dict[str, Any]) -> None:
        application = self._application(request)
        if application["state"] not in ("CREATED", "STOPPED"):
            raise invalid(f"Application {application['applicationId']} must be in one of CREATED, STOPPED")
        application["state"] = "TERMINATED"

    # --- job runs -------------------------------------------------------------------------------------------------

    def start_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        application = self._application(request)
        made = self._attached(request)
        if made is None:
            self._start(application)
            made = f"00run{next(self._numbers):08d}"
            now = self.cloud.clock.now()
            self.runs[made] = run = JobRun(request, now, Timeline(now, self._plan(request)))
            cores, gigabytes = _size(request)
            for what, amount in (("vcpu", cores), ("gb", gigabytes)):
                self._bill(made, run, what, amount)
        return {"applicationId": request["applicationId"], "jobRunId": made, "arn": self._arn(made, request)}

    def get_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        run, now = self._run(request), self.cloud.clock.now()
        phase = run.timeline.at(now)
        application = self.applications[request["applicationId"]]
        kept = ("name", "jobDriver", "configurationOverrides", "tags", "executionTimeoutMinutes", "mode", "retryPolicy")
        found: dict[str, Any] = {key: run.request[key] for key in kept if key in run.request}
        found |= self._summary(request["jobRunId"], run, now)
        found["jobRunId"] = found.pop("id")
        found.pop("type")
        if (began := run.timeline.began(("RUNNING",), now)) is not None:
            found["startedAt"] = moment(began)
        if phase.state in _FINAL:
            cores, gigabytes = _size(run.request)
            hours = self._seconds(run, now) / 3600
            used = {"vCPUHour": cores * hours, "memoryGBHour": gigabytes * hours, "storageGBHour": 20 * hours}
            used = {key: round(value, 3) for key, value in used.items()}
            found |= {
                "endedAt": moment(phase.start),
                "totalResourceUtilization": used,
                "billedResourceUtilization": used,
            }
            found["totalExecutionDurationSeconds"] = int(run.timeline.seconds(("RUNNING",), now))
        found["releaseLabel"] = application["releaseLabel"]
        return {"jobRun": found}

    def list_job_runs(self, request: dict[str, Any]) -> dict[str, Any]:
        self._application(request)
        now, states, after = self.cloud.clock.now(), request.get("states"), request.get("createdAtAfter")
        found = [
            self._summary(key, run, now)
            for key, run in reversed(self.runs.items())
            if run.request["applicationId"] == request["applicationId"]
            if after is None or run.created >= after.timestamp()
        ]
        found = [item for item in found if not states or item["state"] in states]
        start, size = int(request.get("nextToken") or 0), request.get("maxResults", 50)
        more = {"nextToken": str(start + size)} if len(found) > start + size else {}
        return {"jobRuns": found[start : start + size]} | more

    def cancel_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        run, now = self._run(request), self.cloud.clock.now()
        state = run.timeline.at(now).state
        if state in _FINAL:
            raise invalid(f"Job run {request['jobRunId']} is in terminal state {state}")
        if state != "CANCELLING":
            run.timeline.change(now, [("CANCELLING", 20, ""), ("CANCELLED", 0, "Job run was cancelled by request")])
        return {"applicationId": request["applicationId"], "jobRunId": request["jobRunId"]}

    def get_dashboard_for_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        self._run(request)
        return {"url": f"https://p-{request['jobRunId']}.emrappui-prod.{self.cloud.region}.amazonaws.com/"}

    # --- the parts ------------------------------------------------------------------------------------------------

    def _application(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["applicationId"]
        if name not in self.applications:
            raise AwsError("ResourceNotFoundException", f"Application {name} does not exist", 404)
        return self.applications[name]

    def _of(self, request: dict[str, Any]) -> list[JobRun]:
        return [run for run in self.runs.values() if run.request["applicationId"] == request["applicationId"]]

    def _run(self, request: dict[str, Any]) -> JobRun:
        self._application(request)
        run = self.runs.get(request["jobRunId"])
        if run is None or run.request["applicationId"] != request["applicationId"]:
            raise AwsError("ResourceNotFoundException", f"Job run {request['jobRunId']} does not exist", 404)
        self._work(run)
        return run

    def _attached(self, request: dict[str, Any]) -> str | None:
        """The run that this client token has started already."""
        for made, run in self.runs.items():
            if run.request["clientToken"] == request["clientToken"]:
                if run.request != request:
                    raise AwsError("ConflictException", "The client token was used with other parameters", 409)
                return made
        return None

    def _start(self, application: dict[str, Any]) -> None:
        if application["state"] in ("CREATED", "STOPPED"):
            if not application.get("autoStartConfiguration", {}).get("enabled", True):
                raise invalid(f"Application {application['applicationId']} is not in STARTED state")
            application["state"] = "STARTED"
        if application["state"] == "TERMINATED":
            raise invalid(f"Application {application['applicationId']} is in TERMINATED state")

    def _plan(self, request: dict[str, Any]) -> list[tuple[str, float, str]]:
        faults, name = self.cloud.faults, request.get("name", "")
        slow = faults.take(["slow"], "StartJobRun", name)
        pending = 20 + (float(slow.detail.get("seconds", 1800)) if slow else 0)
        steps: list[tuple[str, float, str]] = [("SUBMITTED", 2, ""), ("PENDING", pending, "")]
        if faults.take(["no_capacity"], "StartJobRun", name):
            said = (
                "Worker could not be allocated as the application has exceeded maximumCapacity settings: "
                "ApplicationMaxCapacityExceededException"
            )
            return [*steps, ("FAILED", 0, said)]
        steps.append(("SCHEDULED", 40, ""))
        limit = request.get("executionTimeoutMinutes", 720) * 60
        if self.driver is not None:
            return [*steps, ("RUNNING", 0, "")]
        if fail := faults.take(["fail"], "StartJobRun", name):
            said = _DRIVER_FAILED + str(fail.detail.get("reason", "java.lang.OutOfMemoryError: Java heap space"))
            return [*steps, ("RUNNING", self.running_seconds / 2, ""), ("FAILED", 0, said[:1024])]
        if 0 < limit < self.running_seconds:
            return [*steps, ("RUNNING", limit, ""), ("CANCELLED", 0, "Job run exceeded its execution timeout")]
        return [*steps, ("RUNNING", self.running_seconds, ""), ("SUCCESS", 0, "")]

    def _work(self, run: JobRun) -> None:
        """Do the work of a run for real once it is RUNNING; the run ends when the work does."""
        driver, now = self.driver, self.cloud.clock.now()
        if driver is None or run.thread is not None or run.timeline.at(now).state != "RUNNING":
            return

        def work() -> None:
            try:
                code, log = driver(run.request)
            except Exception as error:
                code, log = 1, f"{type(error).__name__}: {error}"
            end = self.cloud.clock.now()
            if run.timeline.at(end).state == "RUNNING":
                reasons = [line for line in log.splitlines() if re.search(r"Error\b|Exception\b|ERROR: ", line)]
                said = _DRIVER_FAILED + "\n".join(reasons[-3:])
                run.timeline.change(end, [("FAILED", 0, said[:1024]) if code else ("SUCCESS", 0, "")])

        run.thread = threading.Thread(target=work, daemon=True)
        run.thread.start()

    def _summary(self, made: str, run: JobRun, now: float) -> dict[str, Any]:
        phase = run.timeline.at(now)
        application = self.applications[run.request["applicationId"]]
        found = {
            "applicationId": run.request["applicationId"], "id": made, "arn": self._arn(made, run.request),
            "createdBy": self.cloud.arn("iam", "role/airflow"), "createdAt": moment(run.created),
            "updatedAt": moment(phase.start), "state": phase.state, "stateDetails": phase.message or phase.state,
            "executionRole": run.request["executionRoleArn"], "releaseLabel": application["releaseLabel"],
            "type": application["type"],
        }  # fmt: skip
        return found | ({"name": run.request["name"]} if "name" in run.request else {})

    def _seconds(self, run: JobRun, now: float) -> float:
        """Billed seconds: at least a minute once it runs."""
        seconds = run.timeline.seconds(("RUNNING", "CANCELLING"), now)
        return max(60.0, seconds) if seconds else 0.0

    def _bill(self, made: str, run: JobRun, what: str, amount: float) -> None:
        self.cloud.bill.meter(
            made, f"Spark {amount:g} {what}", price(f"emr-serverless-{what}"),
            lambda now: self._seconds(run, now) * amount / 3600,
            lambda now: run.timeline.at(now).state not in _FINAL,
        )  # fmt: skip

    def _arn(self, made: str, request: dict[str, Any] | None = None) -> str:
        place = f"/applications/{request['applicationId']}/jobruns/{made}" if request else f"/applications/{made}"
        return self.cloud.arn("emr-serverless", place)


def _size(request: dict[str, Any]) -> tuple[float, float]:
    """Cores and gigabytes of a run's driver and executors."""
    text = request.get("jobDriver", {}).get("sparkSubmit", {}).get("sparkSubmitParameters", "")
    conf = dict(re.findall(r"--conf\s+'?(spark\.[\w.]+)=([^\s']+)", text))

    def gigabytes(key: str) -> float:
        found = re.fullmatch(r"(\d+)([gGmM])?", conf.get(key, "16g"))
        return (float(found[1]) / (1024 if (found[2] or "g") in "mM" else 1)) if found else 16.0

    count = int(conf.get("spark.executor.instances", 3))
    cores = float(conf.get("spark.driver.cores", 4)) + count * float(conf.get("spark.executor.cores", 4))
    return cores, gigabytes("spark.driver.memory") + count * gigabytes("spark.executor.memory")
