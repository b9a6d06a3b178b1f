"""From HTTP to checked parameters and back, by botocore's own model of a service.

Every request is checked for what the model says: shapes and required members (botocore's own validator), and also
patterns, enumerations and limits, which botocore's clients leave to the service. Every reply is checked likewise, so
that a fake cannot give what the real service could not. It speaks JSON and REST-JSON, the protocols of the services
that are faked here.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import botocore.session
from botocore.model import OperationModel, ServiceModel, Shape
from botocore.validate import ParamValidator

from airflow_provider_sml.testing.aws.errors import AwsError, invalid


@cache
def service_model(service: str) -> ServiceModel:
    """botocore's model of a service, such as ``sagemaker``."""
    return botocore.session.get_session().get_service_model(service)


class Protocol:
    """Reads the requests and writes the replies of one service.

    :param service: as boto3 calls it.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.model = service_model(service)
        self.rest = self.model.metadata["protocol"] == "rest-json"

    # --- requests -------------------------------------------------------------------------------------------------

    def operation(self, method: str, path: str, target: str) -> tuple[OperationModel, dict[str, str]]:
        """The operation of a request, and what its path says.

        :param target: the header X-Amz-Target, or an empty text.
        :raises AwsError: when the service has no such operation.
        """
        if not self.rest:
            name = target.rpartition(".")[2]
            if name in self.model.operation_names:
                return self.model.operation_model(name), {}
            raise AwsError("UnknownOperationException", f"{self.service} has no operation {name!r}", 404)
        found = _route(self.service, method, urlsplit(path).path)
        if found is None:
            raise AwsError("UnknownOperationException", f"{self.service} has no {method} {path}", 404)
        name, labels = found
        return self.model.operation_model(name), labels

    def request(
        self,
        operation: OperationModel,
        labels: Mapping[str, str],
        path: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> dict[str, Any]:
        """The parameters of a request, checked.

        :raises AwsError: when they do not fit the model.
        """
        shape = operation.input_shape
        if shape is None:
            return {}
        try:
            params = self._rest_params(shape, labels, path, headers, body) if self.rest else _load(body, shape)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise AwsError("SerializationException", f"the request cannot be read: {error}") from error
        report = ParamValidator().validate(params, shape)
        if report.has_errors():
            raise invalid(report.generate_report())
        problems = list(_problems(params, shape, ""))
        if problems:
            found = "; ".join(problems)
            raise invalid(f"{len(problems)} validation error{'s' * (len(problems) > 1)} detected: {found}")
        return params

    def _rest_params(
        self, shape: Shape, labels: Mapping[str, str], path: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, Any]:
        query: dict[str, list[str]] = {}
        for key, value in parse_qsl(urlsplit(path).query, keep_blank_values=True):
            query.setdefault(key, []).append(value)
        lower = {key.lower(): value for key, value in headers.items()}
        payload = shape.serialization.get("payload")
        params: dict[str, Any] = {}
        document = json.loads(body) if body and payload is None else {}
        for name, member in shape.members.items():
            place, wire = member.serialization.get("location"), member.serialization.get("name", name)
            if name == payload:
                params[name] = body if member.type_name == "blob" else _read(json.loads(body), member)
            elif place == "uri":
                params[name] = _text(labels[wire], member)
            elif place == "querystring" and wire in query:
                values = query[wire]
                params[name] = values if member.type_name == "list" else _text(values[0], member)
            elif place == "header" and wire.lower() in lower:
                params[name] = _text(lower[wire.lower()], member)
            elif place is None and document.get(wire) is not None:
                params[name] = _read(document[wire], member)
        return params

    # --- replies --------------------------------------------------------------------------------------------------

    def reply(self, operation: OperationModel, result: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a success.

        :raises AssertionError: when the result is not what the service could give.
        """
        status = int(operation.http.get("responseCode", 200))
        kind = "application/json" if self.rest else f"application/x-amz-json-{self.model.metadata['jsonVersion']}"
        shape = operation.output_shape
        if shape is None:
            return status, {"Content-Type": kind}, b"{}"
        report = ParamValidator().validate(result, shape)
        wrong = [report.generate_report()] if report.has_errors() else list(_problems(result, shape, ""))
        assert not wrong, f"the fake gave a reply that {self.service} could not give to {operation.name}: {wrong}"
        payload = shape.serialization.get("payload")
        headers, document = {"Content-Type": kind}, {}
        for name, value in result.items():
            member = shape.members[name]
            place, wire = member.serialization.get("location"), member.serialization.get("name", name)
            if name == payload:
                continue
            if place == "header":
                headers[wire] = str(value)
            else:
                document[wire] = _write(value, member)
        return status, headers, result[payload] if payload else json.dumps(document).encode()

    def error(self, error: AwsError) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an error."""
        document = {"__type": error.code, "message": error.message, "Message": error.message, **error.more}
        return (
            error.status,
            {"Content-Type": "application/json", "x-amzn-ErrorType": error.code},
            json.dumps(document).encode(),
        )


@cache
def _routes(service: str) -> list[tuple[str, str, re.Pattern[str]]]:
    model = service_model(service)
    routes = []
    for name in model.operation_names:
        http = model.operation_model(name).http
        parts = re.split(r"\{(\w+)\+?\}", urlsplit(http["requestUri"]).path)
        pattern = "".join(f"(?P<{part}>[^/]+)" if odd % 2 else re.escape(part) for odd, part in enumerate(parts))
        routes.append((name, http["method"], re.compile(f"{pattern.rstrip('/')}/?")))
    return routes


def _route(service: str, method: str, path: str) -> tuple[str, dict[str, str]] | None:
    for name, wanted, pattern in _routes(service):
        if wanted == method and (found := pattern.fullmatch(path)):
            return name, {key: unquote(value) for key, value in found.groupdict().items()}
    return None


# --- values -----------------------------------------------------------------------------------------------------------


def _load(body: bytes, shape: Shape) -> dict[str, Any]:
    document = json.loads(body or b"{}")
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return dict(_read(document, shape))


def _read(value: Any, shape: Shape) -> Any:
    """A value of JSON as botocore's clients have it; members that the model does not know stay, to be refused."""
    kind = shape.type_name
    if kind == "structure":
        names = {member.serialization.get("name", name): name for name, member in shape.members.items()}
        return {
            names.get(key, key): _read(item, shape.members[names[key]]) if key in names else item
            for key, item in value.items()
            if item is not None
        }
    if kind == "list":
        return [_read(item, shape.member) for item in value]
    if kind == "map":
        return {key: _read(item, shape.value) for key, item in value.items()}
    if kind == "blob":
        return base64.b64decode(value)
    if kind == "timestamp":
        return _moment(value)
    return value


def _text(value: str, shape: Shape) -> Any:
    """A value of a header, a path or a query."""
    kind = shape.type_name
    if kind in ("integer", "long"):
        return int(value)
    if kind in ("float", "double"):
        return float(value)
    if kind == "boolean":
        return value == "true"
    return _moment(value) if kind == "timestamp" else value


def _moment(value: Any) -> dt.datetime:
    if isinstance(value, int | float):
        return dt.datetime.fromtimestamp(value, dt.UTC)
    return dt.datetime.fromisoformat(value)


def _write(value: Any, shape: Shape) -> Any:
    kind = shape.type_name
    if kind == "structure":
        return {
            shape.members[name].serialization.get("name", name): _write(item, shape.members[name])
            for name, item in value.items()
        }
    if kind == "list":
        return [_write(item, shape.member) for item in value]
    if kind == "map":
        return {key: _write(item, shape.value) for key, item in value.items()}
    if kind == "blob":
        return base64.b64encode(value).decode()
    return round(value.timestamp(), 3) if kind == "timestamp" else value


# --- what botocore's validator leaves to the service -----------------------------------------------------------------


def _problems(value: Any, shape: Shape, path: str) -> Iterator[str]:
    kind = shape.type_name
    if kind == "structure":
        for name, item in value.items():
            yield from _problems(item, shape.members[name], f"{path}.{name}" if path else name)
    elif kind == "list":
        yield from _outside(len(value), shape, path, "length")
        for number, item in enumerate(value, 1):
            yield from _problems(item, shape.member, f"{path}.{number}.member")
    elif kind == "map":
        yield from _outside(len(value), shape, path, "length")
        for key, item in value.items():
            yield from _problems(key, shape.key, f"{path}.key")
            yield from _problems(item, shape.value, f"{path}.{key}.member")
    elif kind == "string":
        yield from _text_problems(value, shape, path)
    elif kind in ("integer", "long", "float", "double"):
        yield from _outside(value, shape, path, "value")
    elif kind == "blob":
        yield from _outside(len(value), shape, path, "length")


def _text_problems(value: str, shape: Shape, path: str) -> Iterator[str]:
    failed = f"Value {value[:200]!r} at {path!r} failed to satisfy constraint"
    if shape.enum and value not in shape.enum:
        yield f"{failed}: Member must satisfy enum value set: [{', '.join(shape.enum)}]"
    yield from _outside(len(value), shape, path, "length")
    pattern = _pattern(shape.metadata.get("pattern"))
    if pattern is not None and not pattern.fullmatch(value):
        yield f"{failed}: Member must satisfy regular expression pattern: {shape.metadata['pattern']}"


def _outside(size: float, shape: Shape, path: str, what: str) -> Iterator[str]:
    """``min`` and ``max`` of the model: of a number's value, of everything else's length."""
    failed = f"Value at {path!r} failed to satisfy constraint: Member must have {what}"
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and size < float(least):
        yield f"{failed} greater than or equal to {least}"
    if most is not None and size > float(most):
        yield f"{failed} less than or equal to {most}"


@cache
def _pattern(text: str | None) -> re.Pattern[str] | None:
    """A pattern of the model; the few that are written for Java alone are not checked."""
    if text is None:
        return None
    try:
        return re.compile(text, re.DOTALL)
    except re.error:
        return None
