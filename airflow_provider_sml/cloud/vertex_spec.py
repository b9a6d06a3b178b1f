"""What is deployed to a Vertex AI endpoint, and how: one checked value, compiled into the parts of API requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from airflow_provider_sml.cloud.remote_job import spec_hash
from airflow_provider_sml.cloud.vertex_machines import machine, machine_price, machine_spec
from airflow_provider_sml.cloud.vertex_metrics import ALARMS
from airflow_provider_sml.errors import ConfigurationError, did_you_mean

#: How traffic moves, what watches it and what is logged is no part of what is deployed.
_MOVING = ("steps", "wait", "alarms", "min_requests", "evidence_within", "logging", "mode", "percent")
_MODES = ("replace", "ab")
CONTAINERS = ("ours", "xgboost")
#: Roll-outs in the words of SageMaker.
_ROLLOUTS = ("canary", "linear", "blue-green", "all-at-once")
#: What Google's own images are called, with the version of XGBoost, and the oldest that gives a model its scores:
#: 3.0.5 and 2.1.4 load a model of 3.2 without an error and leave its base score out; 3.1.3 does not.
_PREBUILT, _OLDEST = re.compile(r"/vertex-ai/prediction/xgboost-[cg]pu\.(\d+)-(\d+)"), (3, 1)


@dataclass(frozen=True)
class Part:
    """One deployed model of a version; a version has two where it has an on-demand floor beside spot machines.

    :param id: of the deployed model, 10 digits.
    :param percent: its share of the version's traffic.
    :param spot: whether it runs on spot machines.
    :param replicas: machines at least.
    :param most: machines at most.
    """

    id: str
    percent: int
    spot: bool
    replicas: int
    most: int


@dataclass(frozen=True, kw_only=True)
class VertexSpec:
    """One version on an endpoint.

    :param image: the scoring container.
    :param container: what it is: ``ours``, built of ``docker/scoring.Dockerfile``, or ``xgboost``, Google's own XGBoost
        image, which takes encoded features as lists and does not recalibrate.
    :param artifact: folder of the model in Cloud Storage.
    :param machine: as ``vertex_machines.machine`` takes it.
    :param min_replicas: machines that always run, 1 or more.
    :param max_replicas: machines at most; ``min_replicas`` when 0.
    :param utilization: percent of a machine's processor at which another one is started.
    :param spot: run on spot machines.
    :param floor: with ``spot``: ``{"replicas": 1, "percent": 20}``, on-demand machines beside it that get this share of
        the version's traffic. Vertex AI splits traffic by fixed shares: what goes to the spot machines fails while none
        of them is there.
    :param steps: percent of the traffic that the version gets, one step after the other; the last one is 100. In the
        words of SageMaker, in its place: ``rollout: canary`` and ``step: 10`` is ``[10, 100]``, ``linear`` is
        ``[10, 20, ..., 100]``, ``blue-green`` and ``all-at-once`` are ``[100]``.
    :param wait: seconds that each step but the last lasts; with ``alarms`` the last one, too.
    :param alarms: limits of what Cloud Monitoring sees of the version since a step began, such as
        ``{"error_rate": 0.01, "latency_p95": 300}`` (``vertex_metrics.ALARMS``): each step ends with evidence that none
        is exceeded, and a breach takes the roll-out back. A first version, which has nothing to go back to, is not
        judged.
    :param min_requests: responses of the version in a step that are enough to judge it.
    :param evidence_within: seconds beyond ``wait`` until there has to be evidence; without it the roll-out is taken
        back.
    :param mode: ``replace`` the version that serves, or ``ab``: share the traffic with it and stay so.
    :param percent: of the traffic for the new version with ``ab``.
    :param logging: log requests: ``{"table": "bq://project.dataset.table", "percent": 10}``.
    :param environment: variables of the container; Vertex AI shows them.
    :param service_account: that the container runs as.
    :param kms_key: full name of the Cloud KMS key that encrypts the model and the endpoint.
    :param network: full name of the network that a new endpoint is peered with.
    :param access_logging: log each request's time and status to Cloud Logging.
    """

    image: str
    artifact: str
    container: str = "ours"
    machine: Any = "n1-standard-2"
    min_replicas: int = 1
    max_replicas: int = 0
    utilization: int = 60
    spot: bool = False
    floor: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[int, ...] = (10, 50, 100)
    wait: int = 600
    alarms: Mapping[str, float] = field(default_factory=dict)
    min_requests: int = 50
    evidence_within: int = 1800
    mode: str = "replace"
    percent: int = 10
    logging: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    kms_key: str = ""
    network: str = ""
    access_logging: bool = False

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """Check values and take them.

        :raises ConfigurationError: naming what is wrong.
        """
        known = {item.name for item in fields(cls)} | {"rollout", "step"}
        unknown = sorted(set(values) - known)
        missing = [name for name in ("image", "artifact") if not values.get(name)]
        if unknown or missing:
            raise ConfigurationError(
                "the deployment to Vertex AI is not described rightly", expected=", ".join(sorted(known)),
                found=f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}",
                todo=did_you_mean(unknown[0], known) if unknown else None,
            )  # fmt: skip
        given = dict(values)
        if {"rollout", "step"} & set(given):
            words: dict[str, Any] = {key: given.pop(key) for key in ("rollout", "step") if key in given}
            given["steps"] = _steps_of(words, also=given.get("steps"))
        if "steps" in given:
            given["steps"] = tuple(given["steps"])
        spec = cls(**given)
        machine(spec.machine)
        for wrong, expected, found in spec._wrongs():
            if wrong:
                raise ConfigurationError(
                    "the deployment to Vertex AI cannot be made", expected=expected, found=str(found)
                )
        return spec

    def _wrongs(self) -> list[tuple[bool, str, Any]]:
        rising = all(before < after for before, after in zip(self.steps, self.steps[1:], strict=False))
        replicas, percent = self.floor.get("replicas", 1), self.floor.get("percent", 0)
        numbers = all(isinstance(limit, int | float) and limit >= 0 for limit in self.alarms.values())
        return [
            (self.container not in CONTAINERS, f"container: one of {', '.join(CONTAINERS)}", self.container),
            (self.container == "ours" and bool(_PREBUILT.search(self.image)),
             "container: xgboost, for that image is Google's own", self.container),
            (self.container == "xgboost" and _version_of(self.image) < _OLDEST,
             f"an image of XGBoost {'.'.join(map(str, _OLDEST))} or later; earlier ones load the model and score wrong",
             self.image),
            (not self.artifact.startswith("gs://"), "artifact: a folder in Cloud Storage", self.artifact),
            (self.min_replicas < 1, "min_replicas: 1 or more, as Vertex AI has no machine-less endpoint",
             self.min_replicas),
            (0 < self.max_replicas < self.min_replicas, "max_replicas: at least min_replicas", self.max_replicas),
            (not 1 <= self.utilization <= 100, "utilization: 1 to 100 percent", self.utilization),
            (not self.steps or self.steps[-1] != 100 or self.steps[0] < 1 or not rising,
             "steps: rising percents, the last one 100", list(self.steps)),
            (self.wait < 0, "wait: 0 or more seconds", self.wait),
            (bool(set(self.alarms) - set(ALARMS)) or not numbers,
             f"alarms: limits, 0 or more, of {', '.join(ALARMS)}", dict(self.alarms)),
            (self.min_requests < 1 or self.evidence_within < 0,
             "min_requests: 1 or more; evidence_within: 0 or more seconds",
             f"{self.min_requests} and {self.evidence_within}"),
            (self.mode not in _MODES, f"mode: one of {', '.join(_MODES)}; Vertex AI has no shadow", self.mode),
            (not 1 <= self.percent <= 99, "percent: 1 to 99", self.percent),
            (bool(self.floor) and not self.spot, "floor: with spot only", dict(self.floor)),
            (bool(set(self.floor) - {"replicas", "percent"}), "floor: replicas and percent", dict(self.floor)),
            (bool(self.floor) and (replicas < 1 or not 1 <= percent <= 99),
             "floor: replicas 1 or more, percent 1 to 99", dict(self.floor)),
            (bool(self.logging) and not str(self.logging.get("table", "")).startswith("bq://"),
             "logging.table: bq://project.dataset.table", dict(self.logging)),
            (bool(self.logging) and not 0 < float(self.logging.get("percent", 100)) <= 100,
             "logging.percent: more than 0, at most 100", dict(self.logging)),
        ]  # fmt: skip

    @property
    def stages(self) -> tuple[int, ...]:
        """Percent of the traffic that the version gets, one after the other."""
        return (self.percent,) if self.mode == "ab" else self.steps

    # --- the parts of requests ------------------------------------------------------------------------------------

    def model(self, name: str, version: str, key: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """``Model`` of UploadModel.

        :param name: of the registered model.
        :param version: of it.
        :param key: tells this version of the Vertex AI model from all others.
        """
        own: dict[str, Any] = {
            "image_uri": self.image, "args": ["serve", "--model", name, "--version", version],
            "predict_route": "/invocations", "health_route": "/ping", "ports": [{"container_port": 8080}],
            "env": [{"name": key, "value": str(value)} for key, value in
                    {"SML_SERVE_HOST": "0.0.0.0", **self.environment}.items()],
        }  # fmt: skip
        google = {"image_uri": self.image, "env": [{"name": key, "value": str(value)}
                                                   for key, value in self.environment.items()]}  # fmt: skip
        container = own if self.container == "ours" else google
        return {
            "display_name": name[:128], "artifact_uri": self.artifact, "container_spec": container,
            "version_aliases": [key], "version_description": key, "labels": dict(labels),
        } | self.encryption()  # fmt: skip

    def deployed(self, part: Part, model: str, name: str) -> dict[str, Any]:
        """``DeployedModel`` of DeployModel.

        :param part: which one.
        :param model: full name of the Vertex AI model with its version.
        :param name: to be displayed.
        """
        found: dict[str, Any] = {
            "id": part.id, "model": model, "display_name": name[:128], "enable_access_logging": self.access_logging,
            "dedicated_resources": {
                "machine_spec": machine_spec(machine(self.machine)), "min_replica_count": part.replicas,
                "max_replica_count": part.most, "spot": part.spot,
            },
        }  # fmt: skip
        if part.most > part.replicas:
            metric = "aiplatform.googleapis.com/prediction/online/cpu/utilization"
            scaling = [{"metric_name": metric, "target": self.utilization}]
            found["dedicated_resources"]["autoscaling_metric_specs"] = scaling
        return found | ({"service_account": self.service_account} if self.service_account else {})

    def endpoint(self, name: str) -> dict[str, Any]:
        """``Endpoint`` of CreateEndpoint."""
        found: dict[str, Any] = {"display_name": name[:128]} | self.encryption() | self.log()
        return found | ({"network": self.network} if self.network else {})

    def log(self) -> dict[str, Any]:
        """The part of an endpoint that logs requests; empty when none are to be logged."""
        if not self.logging:
            return {}
        return {
            "predict_request_response_logging_config": {
                "enabled": True, "sampling_rate": float(self.logging.get("percent", 100)) / 100,
                "bigquery_destination": {"output_uri": self.logging["table"]},
            }
        }  # fmt: skip

    def encryption(self) -> dict[str, Any]:
        """``encryption_spec``, where there is a key."""
        return {"encryption_spec": {"kms_key_name": self.kms_key}} if self.kms_key else {}

    def parts(self, key: str) -> list[Part]:
        """The deployed models of the version, in the order in which they are deployed.

        :param key: of the version.
        """
        most, percent = max(self.max_replicas, self.min_replicas), self.floor.get("percent", 0)
        found = [Part(_digits(key, "main"), 100 - percent, self.spot, self.min_replicas, most)]
        if self.floor:
            count = self.floor.get("replicas", 1)
            found.insert(0, Part(_digits(key, "floor"), percent, False, count, count))
        return found

    def hourly_cost(self, prices: Mapping[str, float]) -> float | None:
        """USD per hour of the machines that always run; None when a price is not known."""
        described = machine(self.machine)
        costs = [(machine_price(described, part.spot, prices), part.replicas) for part in self.parts("")]
        return None if any(cost is None for cost, _ in costs) else round(sum((c or 0) * n for c, n in costs), 4)


def version_key(version: str, spec: VertexSpec) -> str:
    """What tells a version of a deployment from all others: its number and a hash of what is deployed."""
    decisive = {name: value for name, value in asdict(spec).items() if name not in _MOVING}
    return f"v{version}-{spec_hash(decisive)[:8]}"


def split_of(share: int, parts: Sequence[Part], previous: Mapping[str, int]) -> dict[str, int]:
    """The traffic in percent when a version has a share of it; whole numbers that add up to 100.

    :param share: of the version, 0 to 100.
    :param parts: its deployed models.
    :param previous: the traffic before it came; the version gets all when there was none.
    """
    share = share if previous else 100
    ours = whole_shares(share, {part.id: part.percent for part in parts})
    return {key: value for key, value in (ours | whole_shares(100 - share, previous)).items() if value}


def whole_shares(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that add up to a total and lie next to the proportions of weights.

    :param total: such as 100.
    :param weights: by name; whole numbers.
    """
    whole = sum(weights.values()) or 1
    found = {key: total * weight // whole for key, weight in weights.items()}
    by_rest = sorted(weights, key=lambda key: (-(total * weights[key] % whole), key))
    for key in by_rest[: total - sum(found.values())]:
        found[key] += 1
    return found


def encoded_split(split: Mapping[str, int]) -> str:
    """A split of the traffic as the value of a label."""
    return "_".join(f"{key}-{share}" for key, share in sorted(split.items()))[:63]


def still_split(endpoint: Any, text: str) -> dict[str, int]:
    """A split of the traffic, as far as its deployed models are there.

    :param endpoint: as Vertex AI describes it.
    :param text: the split as ``encoded_split`` gives it.
    """
    there = {item.id for item in endpoint.deployed_models}
    return {key: share for key, share in decoded_split(text).items() if key in there}


def decoded_split(text: str) -> dict[str, int]:
    """The split of the traffic in the value of a label."""
    found = (part.rpartition("-") for part in text.split("_") if "-" in part)
    return {key: int(share) for key, _, share in found}


def _steps_of(words: Mapping[str, Any], also: Any) -> tuple[int, ...]:
    """The steps that SageMaker's words mean.

    :param words: ``rollout`` and ``step``.
    :param also: steps that are given beside them.
    """
    rollout, step = words.get("rollout", "canary"), words.get("step", 10)
    if also is not None or rollout not in _ROLLOUTS or not isinstance(step, int) or not 1 <= step <= 50:
        raise ConfigurationError(
            "the deployment to Vertex AI cannot be made", found=f"{dict(words)}" + (f", steps {also}" if also else ""),
            expected=f"either steps, or rollout: one of {', '.join(_ROLLOUTS)}, with step: 1 to 50 percent",
        )  # fmt: skip
    first = {"canary": (step,), "linear": tuple(range(step, 100, step))}.get(rollout, ())
    return (*first, 100)


def _version_of(image: str) -> tuple[int, int]:
    """The version of XGBoost that Google's image names; a high one for every other image."""
    found = _PREBUILT.search(image)
    return (int(found[1]), int(found[2])) if found else (99, 0)


def _digits(*what: str) -> str:
    return str(10**9 + int(spec_hash(what), 16) % (9 * 10**9))
