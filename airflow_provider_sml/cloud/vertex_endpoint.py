"""A version on a Vertex AI endpoint: upload, endpoint, deployed models, and traffic in steps.

Vertex AI has no roll-out of its own, so this one is driven by the looks at it: each look does the next step that is
due. What it has to remember is on the endpoint, in labels: the roll-out that runs, and the split of the traffic before
it. Deployed models have ids that follow from what is deployed. So a crash at any point is mended by a retry, on any
worker.

The version that served before stays deployed until the roll-out is completed, after the parity check; until then
everything can be taken back. A step's wait, and the time whose metrics judge it, begin anew when another process takes
the roll-out over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from airflow_provider_sml.cloud.google import CALL_SECONDS, GoogleQuota, GoogleRefused, label
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus
from airflow_provider_sml.cloud.vertex_metrics import Place, look
from airflow_provider_sml.cloud.vertex_model import ENDPOINT_LABEL, VertexJob, busy, endpoint_page, resource_id
from airflow_provider_sml.cloud.vertex_spec import (
    Part,
    VertexSpec,
    decoded_split,
    encoded_split,
    split_of,
    still_split,
    version_key,
)  # fmt: skip
from airflow_provider_sml.errors import DeploymentError, JobError, SmlError

#: Labels of the endpoint: the roll-out that runs, the traffic before it, and the version that serves.
ROLLOUT, PREVIOUS, SERVING = "sml_rollout", "sml_previous", "sml_serving"
_DEPLOY = "DeployModelOperationMetadata"
#: Codes of google.rpc that a retry does not mend: INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION.
_WRONG = (3, 7, 9)


@dataclass(frozen=True, kw_only=True)
class VertexRollout(VertexJob):
    """The roll-out of one version to one endpoint; ``name`` is the endpoint's.

    :param model: registered model.
    :param version: of it.
    :param spec: what is deployed and how: the values of a ``VertexSpec``.
    """

    model: str
    version: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the roll-out, or attach to it; gives its key.

        :raises JobError: when another deployment runs on the endpoint.
        :raises GoogleRefused: when Google Cloud will not do it; what was made by then is taken back.
        :raises GoogleQuota: when a quota is reached, likewise.
        """
        try:
            return self._submit()
        except (GoogleRefused, GoogleQuota):
            with suppress(SmlError):  # the refusal is what matters
                self.undo()
            raise

    def _submit(self) -> str:
        endpoint = self.endpoint()
        if endpoint is not None and self._serves(endpoint):
            return self.key
        if self.what.mode == "ab" and not self._beside(endpoint):
            raise DeploymentError(
                f"endpoint {self.name} serves nothing that an ab test could be held against",
                expected="an endpoint with a champion", found="none", todo="deploy a champion first",
            )  # fmt: skip
        if endpoint is not None and endpoint.labels.get(ROLLOUT) != self.key and self._running():
            raise JobError(
                f"endpoint {self.name} is being changed", expected="an endpoint at rest",
                found=f"the roll-out {endpoint.labels.get(ROLLOUT) or 'of somebody else'}",
                todo="wait for it; a retry tries again",
            )  # fmt: skip
        self.upload(self.vertex_model, self.key, self.upload_message())
        if endpoint is None:
            endpoint = self._create_endpoint()
        if endpoint.labels.get(ROLLOUT) != self.key:
            endpoint = self._begin(endpoint)
        missing = self._missing(endpoint)
        if missing and not self._running():
            self._deploy(missing[0], endpoint)
        return self.key

    def status(self, job_id: str) -> JobStatus:
        """Where the roll-out stands; does the next step when it is due. Done is when this version has all traffic."""
        try:
            return self._status()
        except GoogleRefused as error:
            return JobStatus(JobState.FAILED, str(error), configuration=True, leftover=True)

    def _status(self) -> JobStatus:
        known = self._deployments()  # before the endpoint: what has ended by now is seen on it
        endpoint = self.endpoint()
        if endpoint is None:
            return JobStatus(JobState.FAILED, f"endpoint {self.name} is gone", leftover=True)
        done = JobStatus(JobState.SUCCEEDED, progress=self._progress(endpoint))
        if self._serves(endpoint) and not self._watched(endpoint):
            return done
        if endpoint.labels.get(ROLLOUT) != self.key:
            other = endpoint.labels.get(ROLLOUT) or endpoint.labels.get(SERVING) or "somebody"
            return JobStatus(JobState.FAILED, f"endpoint {self.name} was taken over by {other}", leftover=True)
        missing = self._missing(endpoint)
        if missing:
            return self._deploying(endpoint, missing, known)
        share = self._share(endpoint)
        judged, lines = self._judged(share)
        if judged is not None:
            return judged
        if self._due(share) and not lines:
            if self._serves(endpoint):
                return done
            following = next((step for step in self.what.stages if step > share), self.what.stages[-1])
            endpoint = self._split(endpoint, following)
        return JobStatus(JobState.RUNNING, f"{share} percent", (*self._progress(endpoint), *lines))

    def result(self, job_id: str) -> dict[str, Any]:
        """What serves now; an earlier test, whose traffic this one has taken, is undeployed first."""
        endpoint, version = self.endpoint(), self.uploaded(self.vertex_model, self.key)
        if endpoint is not None and self.what.mode == "ab":
            for deployed in endpoint.deployed_models:
                if self._known(deployed) and not endpoint.traffic_split.get(deployed.id):
                    self._undeploy(endpoint, deployed.id)
        return {
            "endpoint": self.name,
            "config": self.key,
            "previous": endpoint.labels.get(PREVIOUS, "") if endpoint else "",
            "model": f"{self.vertex_model}@{version.version_id}" if version else self.vertex_model,
            "version": self.version,
            "cost_usd_per_hour": self.what.hourly_cost(self.prices),
        }

    def page(self, job_id: str) -> str:
        """The endpoint's page in the console."""
        return endpoint_page(self.project, self.region, self.name)

    def cancel(self, job_id: str) -> None:
        """Take the roll-out back, as far as it has come; one that was completed stays."""
        self.undo()

    # --- more than the verbs --------------------------------------------------------------------------------------

    def complete(self) -> None:
        """After parity: the version serves, so what served before is undeployed. A repeat goes on where it ended."""
        endpoint = self.endpoint()
        if endpoint is None or not self._serves(endpoint):
            raise DeploymentError(f"endpoint {self.name} does not serve {self.key} any more", todo="a retry goes on")
        if endpoint.labels.get(ROLLOUT) or endpoint.labels.get(SERVING) != self.key:
            endpoint = self._label(endpoint, {ROLLOUT: "", SERVING: self.key})  # first: from now on nothing undoes it
        ours, before = {part.id for part in self.parts}, decoded_split(endpoint.labels.get(PREVIOUS, ""))
        for deployed in endpoint.deployed_models:  # what somebody else has deployed beside it, without traffic, stays
            if (deployed.id in before or self._known(deployed)) and deployed.id not in ours:
                self._undeploy(endpoint, deployed.id)
        version = self.uploaded(self.vertex_model, self.key)
        if version is not None and "champion" not in version.version_aliases:
            aliases = ["champion", "default"]
            name = f"{self.vertex_model}@{version.version_id}"
            self.call("models", "merge_version_aliases", name=name, version_aliases=aliases)
        if before:
            self._label(endpoint, {PREVIOUS: ""})

    def undo(self) -> str:
        """Take the version back: the old split of the traffic, and nothing new deployed; an endpoint that had served
        nothing before is deleted.

        :returns: what became of the endpoint, for a message.
        :raises JobError: when it does not end.
        """
        endpoint = self.endpoint()
        if endpoint is None:
            self._forget_version()
            return "is gone"
        if endpoint.labels.get(ROLLOUT) != self.key and endpoint.labels.get(SERVING) == self.key:
            return f"serves {self.key} still, for nothing else is deployed"
        self._stop_deploying()
        endpoint = self.endpoint()
        ours, there = {part.id for part in self.parts}, {item.id for item in endpoint.deployed_models}
        previous = still_split(endpoint, endpoint.labels.get(PREVIOUS, ""))
        began = endpoint.labels.get(ROLLOUT) == self.key
        before = split_of(0, [], previous) if previous else {}
        if began and dict(endpoint.traffic_split) != before:
            endpoint = self._update(endpoint, traffic_split=before)
        for key in sorted(ours & there):
            self._undeploy(endpoint, key)
        if began:
            self._label(endpoint, {ROLLOUT: "", PREVIOUS: ""})
        self._forget_version()
        if began and not there - ours:
            self.call("endpoints", "delete_endpoint", name=self.path)
            return "was deleted, for it had served nothing before"
        return f"serves {endpoint.labels.get(SERVING) or 'what it served before'} again"

    @cached_property
    def what(self) -> VertexSpec:
        """The spec, checked."""
        return VertexSpec.load(self.spec)

    @cached_property
    def key(self) -> str:
        """What tells this version from all others."""
        return version_key(self.version, self.what)

    @cached_property
    def parts(self) -> list[Part]:
        """Its deployed models."""
        return self.what.parts(self.key)

    @property
    def path(self) -> str:
        """The endpoint's full name."""
        return f"{self.parent}/endpoints/{resource_id(self.name)}"

    @property
    def vertex_model(self) -> str:
        """The full name of the Vertex AI model."""
        return f"{self.parent}/models/{resource_id(self.model)}"

    def endpoint(self) -> Any:
        """The endpoint as Vertex AI describes it, or None."""
        return self.find("endpoints", "get_endpoint", self.path)

    def upload_message(self) -> dict[str, Any]:
        """The version as it is uploaded."""
        labels = self._own_labels() | {ENDPOINT_LABEL: label(resource_id(self.name))}
        return self.what.model(self.model, self.version, self.key, labels)

    # --- the parts ------------------------------------------------------------------------------------------------

    def _serves(self, endpoint: Any) -> bool:
        """Whether this version has its traffic, in its own proportions: all of it, or its part beside another."""
        if self.what.mode == "ab":
            return self._share(endpoint) == self.what.percent and not self._missing(endpoint)
        return dict(endpoint.traffic_split) == split_of(100, self.parts, {}) and not self._missing(endpoint)

    def _known(self, deployed: Any) -> bool:
        """Whether a deployed model is a version of this model that was deployed as here."""
        return bool(deployed.display_name.startswith(f"{self.model[:100]} v"))

    def _share(self, endpoint: Any) -> int:
        return sum(endpoint.traffic_split.get(part.id, 0) for part in self.parts)

    def _beside(self, endpoint: Any) -> dict[str, int]:
        """The traffic of others on the endpoint."""
        ours = {part.id for part in self.parts}
        return {
            key: value for key, value in dict(endpoint.traffic_split if endpoint else {}).items() if key not in ours
        }

    def _missing(self, endpoint: Any) -> list[Part]:
        there = {item.id for item in endpoint.deployed_models}
        return [part for part in self.parts if part.id not in there]

    def _running(self) -> bool:
        return any(not operation.done for operation in self.operations("endpoints", self.path))

    def _deployments(self) -> list[Any]:
        return [item for item in self.operations("endpoints", self.path) if item.metadata.type_url.endswith(_DEPLOY)]

    def _deploying(self, endpoint: Any, missing: list[Part], known: list[Any]) -> JobStatus:
        """Where a deployment stands that is not whole."""
        if any(not item.done for item in known):
            return JobStatus(JobState.RUNNING, "deploying", self._progress(endpoint))
        error = known[-1].error if known else None
        if error is not None and error.code:
            return self._failed(error.message, error.code in _WRONG)
        asked = self.__dict__.setdefault("_asked", set())
        if len(missing) < len(self.parts) and missing[0].id not in asked:
            asked.add(missing[0].id)
            self._deploy(missing[0], endpoint)
            return JobStatus(JobState.RUNNING, "deploying", self._progress(endpoint))
        return self._failed("the operation that deploys it is gone, and nothing is deployed", wrong=False)

    def _failed(self, reason: str, wrong: bool) -> JobStatus:
        said = (
            f"version {self.version} ({self.key}) is not deployed to endpoint {self.name}: {reason}\n"
            "  it got no alias and is taken back; the endpoint's traffic is as it was before.\n"
            "  to do: read the container's log (Cloud Logging, resource aiplatform.googleapis.com/Endpoint), mend "
            "that, and clear this task: it starts a new roll-out."
        )
        return JobStatus(JobState.FAILED, said, configuration=wrong, leftover=True)

    def _due(self, share: int, more: float = 0.0) -> bool:
        """Whether the next step of the traffic is due: this process has seen the present one for long enough.

        :param more: seconds beyond the step's wait.
        """
        seen = self.__dict__.setdefault("_seen", {})
        since, _ = seen.setdefault(share, (time.monotonic(), time.time()))
        return share == 0 or time.monotonic() - since >= self.what.wait + more

    def _watched(self, endpoint: Any) -> bool:
        """Whether alarms are still to be judged: the roll-out is not completed, and there is a way back."""
        begun = endpoint.labels.get(ROLLOUT) == self.key
        return bool(self.what.alarms and begun and still_split(endpoint, endpoint.labels.get(PREVIOUS, "")))

    def _judged(self, share: int) -> tuple[JobStatus | None, tuple[str, ...]]:
        """What the metrics of this step say: a failure, or what is missing, in words; neither when all is well."""
        alarms = self.what.alarms
        if not alarms or not share:
            return None, ()
        late = self._due(share, self.what.evidence_within)
        since = self.__dict__["_seen"][share][1]
        place = Place(self.project, self.region, resource_id(self.name), [part.id for part in self.parts])
        found = look(self, place, alarms, since, time.time())
        lacks = found.lacks(alarms, self.what.min_requests)
        if lacks and late:
            waited = self.what.wait + self.what.evidence_within
            return self._alarmed(share, f"no evidence in {waited} seconds: {lacks}"), ()
        if lacks:
            return None, (f"step of {share} percent: not judged yet, {lacks}",)
        if breaches := found.breaches(alarms):
            return self._alarmed(share, f"{'; '.join(breaches)} ({found})"), ()
        return None, ()

    def _alarmed(self, share: int, reason: str) -> JobStatus:
        said = (
            f"version {self.version} ({self.key}) is taken back from endpoint {self.name}, where it had "
            f"{share} percent of the traffic: {reason}\n"
            "  it got no alias; the endpoint's traffic is as it was before.\n"
            "  to do: look at the endpoint's metrics and the container's log, mend that, and clear this task: it "
            "starts a new roll-out."
        )
        return JobStatus(JobState.FAILED, said, configuration=True, leftover=True)

    def _progress(self, endpoint: Any) -> tuple[str, ...]:
        share = self._share(endpoint)
        up = sum(item.status.available_replica_count for item in endpoint.deployed_models
                 if item.id in {part.id for part in self.parts})  # fmt: skip
        return (f"endpoint {self.name}: {self.key} has {share} percent of the traffic on {up} replicas",)

    def _begin(self, endpoint: Any) -> Any:
        """Note on the endpoint what begins, and what served before.

        A roll-out that never ended is taken over: what served before it counts, as far as that is still deployed.
        """
        return self._label(endpoint, self.beginning(endpoint), **self.what.log())

    def beginning(self, endpoint: Any) -> dict[str, str]:
        """The labels of an endpoint on which this roll-out begins."""
        before = still_split(endpoint, endpoint.labels.get(PREVIOUS, "")) if endpoint.labels.get(ROLLOUT) else {}
        ours = {part.id for part in self.parts}
        before = {key: value for key, value in (before or dict(endpoint.traffic_split)).items() if key not in ours}
        return {ROLLOUT: self.key, PREVIOUS: encoded_split(before)}

    def _label(self, endpoint: Any, changes: Mapping[str, str], **more: Any) -> Any:
        labels = {key: value for key, value in (dict(endpoint.labels) | dict(changes)).items() if value}
        return self._update(endpoint, labels=labels, **more)

    def _split(self, endpoint: Any, share: int) -> Any:
        previous = still_split(endpoint, endpoint.labels.get(PREVIOUS, ""))
        return self._update(endpoint, traffic_split=split_of(share, self.parts, previous))

    def _update(self, endpoint: Any, **changes: Any) -> Any:
        return self.call(
            "endpoints", "update_endpoint", endpoint={"name": endpoint.name, **changes},
            update_mask={"paths": sorted(changes)},
        )  # fmt: skip

    def _create_endpoint(self) -> Any:
        try:
            started = self.call("endpoints", "create_endpoint", **self.endpoint_request())
        except GoogleRefused as error:
            if error.code != "ALREADY_EXISTS":  # by a creation whose reply was lost
                raise
        else:
            self.finish("endpoints", started, f"the creation of endpoint {self.name}")
        return self.wait(f"the creation of endpoint {self.name}", self.endpoint)

    def endpoint_request(self) -> dict[str, Any]:
        """The request of CreateEndpoint."""
        endpoint = self.what.endpoint(self.name) | {"labels": self._own_labels() | {ROLLOUT: self.key}}
        return {"parent": self.parent, "endpoint": endpoint, "endpoint_id": resource_id(self.name)}

    def _deploy(self, part: Part, endpoint: Any) -> None:
        """Start the deployment of a part; one that runs or is there already is well."""
        version = self.uploaded(self.vertex_model, self.key)
        if version is None:
            raise JobError(f"version {self.key} of {self.vertex_model} is gone", todo="a retry uploads it again")
        previous = still_split(endpoint, endpoint.labels.get(PREVIOUS, ""))
        request = self.deploy_request(part, f"{self.vertex_model}@{version.version_id}", previous)

        def ask(client: Any) -> None:
            # It is asked again when a reply was lost: look whether it runs first.
            if not busy(client, self.path):
                client.deploy_model(request=request, timeout=CALL_SECONDS, retry=None)

        try:
            self.ask("vertex_endpoints", "aiplatform.endpoints.deploy", ask)
        except GoogleRefused as error:
            if error.code != "ALREADY_EXISTS":
                raise

    def deploy_request(self, part: Part, model: str, previous: Mapping[str, int]) -> dict[str, Any]:
        """The request of DeployModel.

        The last part takes the first step of the traffic with it; in its split it is called 0.
        """
        request: dict[str, Any] = {
            "endpoint": self.path, "deployed_model": self.what.deployed(part, model, f"{self.model[:100]} {self.key}"),
        }  # fmt: skip
        if part == self.parts[-1]:
            split = split_of(self.what.stages[0], self.parts, previous)
            request["traffic_split"] = {"0" if key == part.id else key: share for key, share in split.items()}
        return request

    def _stop_deploying(self) -> None:
        """Cancel deployments that run, and wait until none does."""
        for operation in self._deployments():
            if not operation.done:
                self._cancel(operation.name)
        self.wait(f"the end of the deployment to {self.name}", lambda: None if self._running() else True)

    def _cancel(self, name: str) -> None:
        """Cancel an operation; one that has ended, or that cannot be cancelled, goes on."""

        def ask(client: Any) -> None:
            client.cancel_operation({"name": name}, timeout=CALL_SECONDS, retry=None)

        with suppress(GoogleRefused):
            self.ask("vertex_endpoints", "aiplatform.operations.cancel", ask)

    def _undeploy(self, endpoint: Any, key: str) -> None:
        try:
            started = self.call("endpoints", "undeploy_model", endpoint=endpoint.name, deployed_model_id=key)
        except GoogleRefused as error:
            if error.code != "NOT_FOUND":
                raise
        else:
            self.finish("endpoints", started, f"the end of deployed model {key}")

    def _forget_version(self) -> None:
        version = self.uploaded(self.vertex_model, self.key)
        if version is not None:
            self.remove_version(self.vertex_model, version.version_id)

    def _own_labels(self) -> dict[str, str]:
        own = {label(key): label(str(value)) for key, value in self.labels.items()} | {"sml_version": self.version}
        return {key: value for key, value in own.items() if value}
