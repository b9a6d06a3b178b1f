"""What does not fit together in a spec whose parts are each well formed: paths, columns, features, stages.

What the dataset's parts say of each other is checked by ``ml.contract``; here is what only the whole spec can know.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

from airflow_provider_sml.errors import ConfigurationError, SmlError, did_you_mean
from airflow_provider_sml.ml.contract.dataset import LABEL, Place, dotted
from airflow_provider_sml.ml.training.params import monotone_problems
from airflow_provider_sml.ml.training.space import space_problems
from airflow_provider_sml.operators.training_services import SERVICES
from airflow_provider_sml.pipelines.spec import LeaveOut, PipelineSpec

#: Places that paths of the source may name in braces.
PATH_PLACES = ("landing", "lake")


def problems(spec: PipelineSpec) -> list[tuple[Place, SmlError]]:
    """Every mistake with its place."""
    found = [*_path_problems(spec), *spec.dataset.problems()]
    if found:  # what stages name cannot be judged without a sound dataset
        return found
    monotone = monotone_problems(spec.train.monotone, spec.dataset.feature_list)
    found = [*_column_problems(spec), *((("train", "monotone", name), error) for name, error in monotone)]
    found += [*_search_problems(spec), *_gate_problems(spec), *_service_problems(spec), *_monitor_problems(spec)]
    return found


def _monitor_problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    """Only BigQuery profiles what it holds; what a connection names is judged when it runs."""
    warehouse = spec.places.warehouse
    if spec.monitor.profile_in == "warehouse" and (
        not warehouse or ("/" in warehouse and not warehouse.startswith("bigquery://"))
    ):
        yield (
            ("monitor", "profile_in"),
            ConfigurationError(
                "monitor.profile_in is warehouse", expected="BigQuery as places.warehouse", found=warehouse or "none",
                todo="take profile_in: lake",
            ),
        )  # fmt: skip


def _gate_problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    """A metric of one's own must be measured to be judged."""
    measured = [metric if isinstance(metric, str) else metric.function for metric in spec.train.metrics]
    for name in spec.gate.own:
        if name not in measured:
            expected = f"one of train.metrics: {', '.join(measured) or 'it names none'}"
            todo = did_you_mean(name, measured) or "name it there"
            error = ConfigurationError(f"gate.own names {name}", expected=expected, found=name, todo=todo)
            yield ("gate", "own", name), error


def _service_problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    """A service that trains reads the lake by itself; a lake that a connection names is judged when it runs."""
    service, lake = SERVICES.get(spec.train.cluster), spec.places.lake
    if service and "/" in lake and not lake.startswith(f"{service.scheme}://"):
        yield (
            ("places", "lake"),
            ConfigurationError(
                f"places.lake is out of reach of {service.title}", found=lake,
                expected=f"an address in {service.scheme}://, or a connection of type sml_lake to one, because "
                f"train.cluster is {spec.train.cluster}",
            ),
        )  # fmt: skip


def _search_problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    train, search = spec.train, spec.train.search
    if search is None:
        return
    for name, error in space_problems(search.space):
        yield ("train", "search", "space", name), error
    if search.usd is not None and not (train.usd_per_hour or (train.spot and train.spot.usd_per_hour)):
        yield (
            ("train", "search", "usd"),
            ConfigurationError(
                "train.search.usd needs a price", expected="train.usd_per_hour, what one worker costs", found="none"
            ),
        )
    if train.cluster == "local" and search.parallel > 1:
        yield (
            ("train", "search", "parallel"),
            ConfigurationError(
                "train.search.parallel does not fit the cluster", expected="1: cluster local has one worker",
                found=search.parallel, todo="leave parallel out, or take cluster: processes",
            ),
        )  # fmt: skip


def _path_problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    paths: list[tuple[Place, str]] = [(("source", "path"), spec.source.path)]
    paths += [(("source", "joins", n, "path"), join.path) for n, join in enumerate(spec.source.joins)]
    allowed = [f"{{{name}}}" for name in (*PATH_PLACES, "date")]
    for place, path in paths:
        try:
            named = [f"{{{name}}}" for _, name, *_ in string.Formatter().parse(path) if name is not None]
        except ValueError:
            named = [path]
        for name in named:
            if name not in allowed:
                yield place, _unknown(place, name, allowed)


def _column_problems(spec: PipelineSpec) -> Iterator[tuple[Place, SmlError]]:
    for place, names, allowed in _column_uses(spec):
        for position, name in enumerate(names):
            if name not in allowed:
                yield (*place, position), _unknown(place, name, sorted(allowed), _why_not(spec, name))


def _column_uses(spec: PipelineSpec) -> Iterator[tuple[Place, list[str], list[str]]]:
    """Where stages name columns: the place, the names, and what is allowed there.

    Stages that part rows by a column may use only what is known before the event: drawing by the outcome, or judging
    by it, would bend every figure.
    """
    columns = spec.contract.columns
    stored = [name for name, _ in spec.dataset.table_columns if "__" not in name and name != LABEL]
    before = [name for name in stored if name not in columns or columns[name].known == "before"]
    told_apart = [name for name in before if name not in columns or columns[name].privacy != "mask"]
    # each stratum is drawn by its exact share, so that the label may be one
    yield ("sample", "by"), spec.sample.by, [*told_apart, LABEL] if spec.sample.method == "stratified" else told_apart
    if spec.gate.baseline:
        yield ("gate", "baseline", "by"), spec.gate.baseline.by, told_apart
    if spec.gate.slices:
        yield ("gate", "slices", "by"), spec.gate.slices.by, told_apart
    yield ("warehouse", "cluster_by"), spec.warehouse.cluster_by, stored
    if spec.monitor.segments:
        yield ("monitor", "segments", "by"), [spec.monitor.segments.by], told_apart
    compared = spec.monitor.columns
    if isinstance(compared, LeaveOut):
        yield ("monitor", "columns", "leave_out"), compared.leave_out, list(spec.features)
    else:
        yield ("monitor", "columns", "only"), compared.only, list(spec.features)


def _unknown(place: Place, name: str, allowed: list[str], why: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"{dotted(place)} names {name}",
        expected=f"one of {', '.join(allowed)}",
        found=name + why,
        todo=None if why else did_you_mean(name, allowed),
    )


def _why_not(spec: PipelineSpec, name: str) -> str:
    column = spec.contract.columns.get(name)
    if column is None:
        return ""
    if column.privacy in ("drop", "mask"):
        return f", which the contract {'drops' if column.privacy == 'drop' else 'masks'}"
    return ", which is known only after the event" if column.known == "after" else ""
