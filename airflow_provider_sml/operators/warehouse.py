"""From the lake to the warehouse: DuckDB in this process, BigQuery and Redshift by a remote job."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.prices import estimate
from airflow_provider_sml.cloud.remote_job import Adapter, job_name
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.warehouse import RemoteWarehouse, WarehouseHook, WarehouseOptions
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.ml.contract.interval import parse_interval
from airflow_provider_sml.operators.base import run_key
from airflow_provider_sml.operators.cost import Cost
from airflow_provider_sml.operators.openlineage import Data, table
from airflow_provider_sml.operators.remote_job import RemoteJobOperator
from airflow_provider_sml.refs import SnapshotRef, WarehouseRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.warehouse import LakeRows


# A batch of Redshift's Data API ends after a day ("Considerations when calling the Data API").
_KEPT = timedelta(days=2)


class PublishWarehouseOperator(RemoteJobOperator):
    """Brings the days of a snapshot into the warehouse: all of them in one transaction, or nothing.

    The table is created, partitioned by day (sorted, where there are no partitions), or gets the snapshot's new
    columns; a column of another type is refused. The transaction compares number and checksum of the rows with the
    lake's and is undone when they differ. A retry attaches to the remote job that runs already, and publishing again
    changes nothing.

    :param snapshot: what ``PublishPartitionsOperator`` gave.
    :param dataset: the columns of the table: a ``Dataset``, or its keys as a dictionary.
    :param warehouse: a DuckDB file, ``bigquery://PROJECT/DATASET``, or the id of a connection of type
        ``google_cloud_platform`` (with the extra ``dataset``) or ``redshift``.
    :param cluster_by: columns that readers filter by, the most used first; BigQuery takes four.
    :param location: region of the BigQuery dataset.
    :param kms_key: full name of the Cloud KMS key of BigQuery's tables.
    :param labels: on BigQuery's tables and jobs, for the bill.
    :param max_bytes_billed: a publish to BigQuery fails before it costs more than this; no limit when None.
    :param load: how rows reach BigQuery: ``load_job`` (free; a lake that is not on Cloud Storage is uploaded as one
        file from this worker's disk) or ``write_api`` (the Storage Write API, without a file; billed from 2 TiB a month
        on).
    :param deferrable: wait for the remote job in the triggerer rather than in a worker slot.
    :param poll_interval: seconds between polls of the remote job.
    :param deadline: how long the remote job may take; it is cancelled then.
    """

    template_fields: Sequence[str] = ("snapshot", "warehouse", "location", "kms_key", "labels")
    ui_color = "#d5edd5"

    def __init__(
        self,
        *,
        snapshot: Any,
        dataset: Dataset | Mapping[str, Any],
        warehouse: str,
        cluster_by: Sequence[str] = (),
        location: str | None = None,
        kms_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        max_bytes_billed: int | None = None,
        load: str = "load_job",
        deferrable: bool = False,
        poll_interval: float = 5.0,
        deadline: timedelta | None = timedelta(hours=6),
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, poll_interval=poll_interval, deadline=deadline, **kwargs)
        self.snapshot = snapshot
        self.dataset = dataset
        self.warehouse = warehouse
        self.cluster_by = cluster_by
        self.location = location
        self.kms_key = kms_key
        self.labels = labels or {}
        self.max_bytes_billed = max_bytes_billed
        self.load = load
        self._scratch: Path | None = None

    def run(self, context: Context) -> WarehouseRef:
        """Publish the snapshot's days."""
        place = self._place()
        if isinstance(place, RemoteWarehouse):
            with tempfile.TemporaryDirectory(prefix="warehouse-") as scratch:
                self._scratch = Path(scratch)
                return super().run(context)
        rows = self._rows()
        publication = rows.publication(SnapshotRef.load(self.snapshot), self.cluster_by)
        total = place.publish(publication, rows)
        return self._made({"total_rows": total})

    def job(self, context: Context) -> Adapter:
        """The remote job; a re-publish of another snapshot has another name."""
        place = self._place()
        assert isinstance(place, RemoteWarehouse) and self._scratch is not None
        ref = SnapshotRef.load(self.snapshot)
        rows = self._rows()
        publication = rows.publication(ref, self.cluster_by)
        name = job_name(*run_key(context), str(ref.snapshot_id), publication.tally.checksum)
        self.log.info("%s: %s rows of checksum %s", ref.table, f"{ref.rows:,}", publication.tally.checksum)
        return place.job(name, publication, rows, self._scratch, self._keep)

    def finish(self, context: Context, result: dict[str, Any]) -> WarehouseRef:
        """What was published, and what it cost."""
        return self._made({key: value for key, value in result.items() if value is not None})

    def costs(self, result: Any) -> list[Cost]:
        """What BigQuery bills for its script; load jobs are free."""
        billed = result.cost.get("bytes_billed") if isinstance(result, WarehouseRef) else None
        if billed is None:
            return []
        return [Cost(what=f"BigQuery, {billed:,} bytes billed", usd=estimate("bigquery-tib", billed / 2**40))]

    def datasets(self, result: Any) -> tuple[list[Data], list[Data]]:
        """The snapshot, and its table in the warehouse."""
        ref = SnapshotRef.load(self.snapshot)
        columns = Dataset.load(self.dataset).table_columns
        version = str(ref.snapshot_id)
        return (
            [table(ref.lake, ref.table, rows=ref.rows, version=version, columns=columns)],
            [Data(self.warehouse, ref.table, rows=ref.rows, version=version, columns=columns)],
        )

    def _made(self, cost: dict[str, Any]) -> WarehouseRef:
        ref = SnapshotRef.load(self.snapshot)
        told = ", ".join(
            f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in cost.items()
        )
        self.log.info("%s: %s rows, equal to the lake's, in %s (%s)", ref.table, f"{ref.rows:,}", self.warehouse, told)
        return WarehouseRef(self.warehouse, ref.table, ref.snapshot_id, ref.first, ref.last, ref.rows, cost)

    def _place(self) -> Any:
        options = WarehouseOptions(self.location, self.kms_key, dict(self.labels), self.max_bytes_billed, self.load)
        return WarehouseHook(self.warehouse, options).get_conn()

    def _rows(self) -> LakeRows:
        from airflow_provider_sml.ml.warehouse import LakeRows

        ref = SnapshotRef.load(self.snapshot)
        first, last = parse_interval(ref.first, ref.last)
        files = LakeHook(ref.lake).get_conn().files(ref.table, ref.snapshot_id, first, last)
        return LakeRows(files, Dataset.load(self.dataset).table_columns)

    def _keep(self, name: str, text: str) -> str:
        """Put a small text beside the lake's tables; those that no batch can read any more go."""
        from airflow_provider_sml.ml import storage

        path = LakeHook(SnapshotRef.load(self.snapshot).lake).get_conn().root / name
        storage.write(path, text)
        old = dt.datetime.now(dt.UTC) - _KEPT
        for entry in storage.entries(path.parent):
            if entry.modified < old:
                storage.remove(entry.path)
        return str(path)
