"""What a task read and wrote, for OpenLineage: an operator says it with ``Data``, one function makes the facets.

Names follow OpenLineage's naming of datasets: ``file`` and the path, ``s3://bucket`` and the key, ``gs://bucket`` and
the key. What is made anew in each run (a staged folder, a sample, a model) has the name of the folder that all of them
lie in, and its own id as the version, so that runs are states of one dataset and not a dataset each.

Nothing is imported until a task has ended, and without ``apache-airflow-providers-openlineage`` nothing is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_sml.refs import ModelVersionRef


@dataclass(frozen=True)
class Data:
    """A dataset that a task read or wrote.

    :param location: path or address of it.
    :param name: its name within the location, such as a table's; the location alone when empty.
    :param rows: rows read or written; None when not known.
    :param version: which state of it: a snapshot, a sample's or a model's id.
    :param columns: names and types.
    """

    location: str
    name: str = ""
    rows: int | None = None
    version: str = ""
    columns: Sequence[tuple[str, str]] = ()

    def named(self) -> tuple[str, str]:
        """Namespace and name, without any user or password of an address."""
        parts = urlsplit(self.location)
        if parts.scheme in ("", "file", "sqlite") or not parts.netloc:
            path = parts.path.removeprefix("/") if parts.scheme == "sqlite" else parts.path
            return "file", "/".join(part for part in (path.rstrip("/"), self.name) if part)
        scheme = {"s3a": "s3", "s3n": "s3"}.get(parts.scheme, parts.scheme)
        host = parts.netloc.rpartition("@")[2]
        name = "/".join(part for part in (parts.path.strip("/"), self.name) if part)
        return f"{scheme}://{host}", name or "/"


def table(lake: str, name: str, **rest: Any) -> Data:
    """A table of a lake.

    :param lake: location of the lake, or the id of its connection.
    :param name: of the table.
    """
    from airflow_provider_sml.hooks.lake import LakeHook

    return Data(str(LakeHook(lake).get_conn().folder(name)), **rest)


def registered(version: ModelVersionRef) -> Data:
    """A version in the registry."""
    return Data(version.registry, f"models/{version.name}", version=version.version)


def drawn(uri: str, rows: int | None = None) -> Data:
    """A sample.

    :param uri: its folder, which has its id as its name.
    :param rows: of it that were read.
    """
    return Data(parent(uri), rows=rows, version=uri.rstrip("/").rpartition("/")[2])


def parent(uri: str) -> str:
    """The folder that something lies in."""
    return uri.rstrip("/").rpartition("/")[0]


def lineage_of(inputs: Sequence[Data], outputs: Sequence[Data]) -> OperatorLineage | None:
    """The facets of what was read and written; None without the OpenLineage provider."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import InputDataset, OutputDataset
        from openlineage.client.facet_v2 import input_statistics_input_dataset, output_statistics_output_dataset
    except ImportError:
        return None
    read_rows = input_statistics_input_dataset.InputStatisticsInputDatasetFacet
    written_rows = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
    read, written = list[Any](), list[Any]()
    for data in inputs:
        counted: dict[str, Any] = {} if data.rows is None else {"inputStatistics": read_rows(rowCount=data.rows)}
        read.append(InputDataset(*data.named(), inputFacets=counted, facets=_facets(data)))
    for data in outputs:
        counted = {} if data.rows is None else {"outputStatistics": written_rows(rowCount=data.rows)}
        written.append(OutputDataset(*data.named(), outputFacets=counted, facets=_facets(data)))
    return OperatorLineage(inputs=read, outputs=written)


def _facets(data: Data) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset, schema_dataset

    found: dict[str, Any] = {}
    if data.version:
        found["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=data.version)
    if data.columns:
        fields = [schema_dataset.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in data.columns]
        found["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
    return found
