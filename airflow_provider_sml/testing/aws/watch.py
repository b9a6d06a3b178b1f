"""CloudWatch alarms and logs, as far as deployments and jobs need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.aws.errors import AwsError
from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED
from airflow_provider_sml.testing.core.clock import moment

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_"


class CloudWatch:
    """Alarms; metrics are taken and not evaluated: a test sets an alarm's state, or a roll-back does.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("cloudwatch", "An alarm starts in INSUFFICIENT_DATA, and SetAlarmState changes it at once.",
                  DOCUMENTED, f"{_API}SetAlarmState.html"),
        Behaviour("cloudwatch", "An alarm keeps the state it was set to until it is set again.", ASSUMED,
                  "metrics are not evaluated here, which would reset it at the next period"),
        Behaviour("logs", "GetLogEvents gives all events at once, and the token it was given at the end.", DOCUMENTED,
                  "https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html"),
    )  # fmt: skip

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.alarms: dict[str, dict[str, Any]] = {}
        self._later: dict[str, float] = {}

    def put_metric_alarm(self, request: dict[str, Any]) -> None:
        kept = {key: value for key, value in request.items() if key != "Tags"}
        before = self.alarms.get(request["AlarmName"], {})
        self.alarms[request["AlarmName"]] = kept | {
            "StateValue": before.get("StateValue", "INSUFFICIENT_DATA"),
            "StateUpdatedTimestamp": self.cloud.clock.moment(),
        }

    def describe_alarms(self, request: dict[str, Any]) -> dict[str, Any]:
        self._settle()
        prefix, names, state = (request.get(key) for key in ("AlarmNamePrefix", "AlarmNames", "StateValue"))
        found = [
            alarm | {"AlarmArn": self.cloud.arn("cloudwatch", f"alarm:{name}")}
            for name, alarm in sorted(self.alarms.items())
            if name.startswith(prefix or "") and (not names or name in names)
            if state in (None, alarm["StateValue"])
        ]
        return {"MetricAlarms": found, "CompositeAlarms": []}

    def set_alarm_state(self, request: dict[str, Any]) -> None:
        name = request["AlarmName"]
        if name not in self.alarms:
            raise AwsError("ResourceNotFound", f"there is no alarm {name}", 404)
        self.alarms[name] |= {
            "StateValue": request["StateValue"], "StateReason": request["StateReason"],
            "StateUpdatedTimestamp": self.cloud.clock.moment(),
        }  # fmt: skip
        if request["StateValue"] == "ALARM":
            self.cloud.sagemaker.alarm_raised(name)

    def delete_alarms(self, request: dict[str, Any]) -> None:
        for name in request["AlarmNames"]:
            self.alarms.pop(name, None)

    def put_metric_data(self, request: dict[str, Any]) -> None:
        """Taken, and not evaluated."""

    def in_alarm(self, name: str) -> bool:
        """Whether an alarm is in ALARM now."""
        self._settle()
        return name in self.alarms and self.alarms[name]["StateValue"] == "ALARM"

    def will_alarm(self, names: list[str], at: float) -> None:
        """Let alarms go off at a time."""
        self._later |= dict.fromkeys(names, at)

    def _settle(self) -> None:
        for name, at in list(self._later.items()):
            if at <= self.cloud.clock.now() and name in self.alarms:
                del self._later[name]
                self.alarms[name] |= {"StateValue": "ALARM", "StateReason": "Threshold Crossed"}
                self.alarms[name]["StateUpdatedTimestamp"] = moment(at)


class Logs:
    """Log groups and streams.

    :param cloud: the account.
    """

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.streams: dict[tuple[str, str], list[tuple[float, str]]] = {}

    def write(self, group: str, stream: str, at: float, *lines: str) -> None:
        """Add lines to a stream."""
        self.streams.setdefault((group, stream), []).extend((at, line) for line in lines)

    def describe_log_streams(self, request: dict[str, Any]) -> dict[str, Any]:
        group, prefix = request.get("logGroupName", ""), request.get("logStreamNamePrefix", "")
        if not any(name == group for name, _ in self.streams):
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        names = [stream for name, stream in sorted(self.streams) if name == group and stream.startswith(prefix)]
        return {"logStreams": [{"logStreamName": name} for name in names[: request.get("limit", 50)]]}

    def get_log_events(self, request: dict[str, Any]) -> dict[str, Any]:
        key = (request.get("logGroupName", ""), request["logStreamName"])
        if key not in self.streams:
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
        start = int((request.get("nextToken") or "f/0").partition("/")[2])
        events = self.streams[key][start:]
        token = f"f/{start + len(events)}"
        found = [{"timestamp": int(at * 1000), "ingestionTime": int(at * 1000), "message": line} for at, line in events]
        return {"events": found, "nextForwardToken": token, "nextBackwardToken": "b/0"}
