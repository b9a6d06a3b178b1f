"""The exact calls of a roll-out on Vertex AI, in their order, before any of them is made."""

from __future__ import annotations

from typing import Any

from airflow_provider_sml.cloud.vertex_endpoint import PREVIOUS, ROLLOUT, SERVING, VertexRollout
from airflow_provider_sml.cloud.vertex_metrics import Place, questions
from airflow_provider_sml.cloud.vertex_model import resource_id
from airflow_provider_sml.cloud.vertex_spec import decoded_split, split_of

#: A call: service, method and request.
Call = tuple[str, str, dict[str, Any]]
_VERTEX = "aiplatform"


def planned(rollout: VertexRollout, endpoint: Any) -> list[Call]:
    """The calls that change something, and those that ask for metrics between the steps; the questions where it stands
    are left out.

    Vertex AI numbers the version itself, so the calls name it by its alias; the number takes its place.

    :param rollout: what is planned.
    :param endpoint: as Vertex AI describes it, or None.
    """
    what, model = rollout.what, f"{rollout.vertex_model}@{rollout.key}"
    found: list[Call] = [(_VERTEX, "upload_model", {"parent": rollout.parent, "model": rollout.upload_message()})]
    labels, previous = dict[str, str](), dict[str, int]()
    if endpoint is None:
        found.append((_VERTEX, "create_endpoint", rollout.endpoint_request()))
        labels = dict(rollout.endpoint_request()["endpoint"]["labels"])
    else:
        labels = dict(endpoint.labels) | rollout.beginning(endpoint)
        previous = decoded_split(labels[PREVIOUS])
        found.append(_update(rollout, labels=labels, **what.log()))
    found += [(_VERTEX, "deploy_model", rollout.deploy_request(part, model, previous)) for part in rollout.parts]
    if previous:
        for number, share in enumerate(what.stages):
            if number:
                found.append(_update(rollout, traffic_split=split_of(share, rollout.parts, previous)))
            found += _gate(rollout, share)
    if what.mode != "replace":
        return found
    found.append(_update(rollout, labels=labels | {ROLLOUT: "", SERVING: rollout.key}))
    found += [
        (_VERTEX, "undeploy_model", {"endpoint": rollout.path, "deployed_model_id": key}) for key in previous
    ]  # fmt: skip
    aliases = {"name": model, "version_aliases": ["champion", "default"]}
    found.append((_VERTEX, "merge_version_aliases", aliases))
    if previous:
        found.append(_update(rollout, labels=labels | {ROLLOUT: "", SERVING: rollout.key, PREVIOUS: ""}))
    return found


def _update(rollout: VertexRollout, **changes: Any) -> Call:
    if "labels" in changes:
        changes["labels"] = {key: value for key, value in changes["labels"].items() if value}
    endpoint = {"name": rollout.path, **changes}
    return (_VERTEX, "update_endpoint", {"endpoint": endpoint, "update_mask": {"paths": sorted(changes)}})


def _gate(rollout: VertexRollout, share: int) -> list[Call]:
    """The questions that are asked at each look while the version has a share of the traffic."""
    if not rollout.what.alarms:
        return []
    ids = [part.id for part in rollout.parts]
    place = Place(rollout.project, rollout.region, resource_id(rollout.name), ids)
    moments = (f"when it got {share} percent", "now")
    asked = questions(place, rollout.what.alarms, moments, max(60, rollout.what.wait))
    return [("monitoring", "list_time_series", request) for request in asked.values()]
