"""From landed files to a published partition: Spark writes, the audit looks, one commit publishes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.ml.contract.interval import parse_interval
from airflow_provider_sml.ml.contract.model import HashPrivacy
from airflow_provider_sml.operators.base import SmlOperator, announce, lineage
from airflow_provider_sml.operators.openlineage import Data, parent, table
from airflow_provider_sml.operators.spark import SparkPlanOperator
from airflow_provider_sml.refs import SnapshotRef, StagedRef

if TYPE_CHECKING:
    from airflow.sdk import Context


class SparkEtlOperator(SparkPlanOperator):
    """Runs the ETL of a dataset for some days with Spark, into a fresh folder of the lake that no reader sees.

    A range of days is one Spark job. A retry after a crash attaches to the driver that still runs.

    :param dataset: source, contract, features and label: a ``Dataset``, or its keys as a dictionary.
    :param first: first day, ``YYYY-MM-DD``.
    :param last: last day, inclusive.
    :param places: values of the places that paths name, such as ``{"landing": "/data/landing"}``.
    :param lake: location of the lake, or the id of its connection.
    :param table: name of the table; the dataset's when None.
    """

    template_fields: Sequence[str] = ("first", "last", "places", "lake", *SparkPlanOperator.template_fields)
    __doc__ = f"{__doc__}\n{SparkPlanOperator.__doc__}"

    def __init__(
        self,
        *,
        dataset: Dataset | Mapping[str, Any],
        first: str,
        last: str,
        places: Mapping[str, str] | None = None,
        lake: str = LakeHook.default_conn_name,
        table: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.first = first
        self.last = last
        self.places = places or {}
        self.lake = lake
        self.table = table

    def job(self, context: Context) -> Adapter:
        """spark-submit of the application, with its plan in the run's folder."""
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.etl import plan

        dataset = Dataset.load(self.dataset)
        first, last = parse_interval(self.first, self.last)
        lake = self.open_lake(self.lake)
        table = self.table or dataset.name
        output = self.stage(context, lake, table)
        files = lake.files(table) if lake.exists(table) else []
        rows = sum(file.rows for file in files)
        compiled = plan.compile_plan(
            dataset, self.places, first, last, str(output), sum(file.bytes for file in files) / rows if rows else None
        )
        storage.write(output / "plan.json", json.dumps(compiled))
        self.log.info("%s: %d days from %s to %s, %d files", table, (last - first).days + 1, first, last,
                      len(compiled["paths"]))  # fmt: skip
        facts = {"first": first.isoformat(), "last": last.isoformat(), "table": table}
        size = plan.local_bytes(compiled["paths"])
        return self.application(context, lake, output, plan.spark_conf(dataset), facts, size)

    def secrets(self) -> dict[str, str]:
        """The keys of hashed columns, by connection, and on this machine the credentials of the lake's store."""
        return super().secrets() | self._privacy_keys()

    def _privacy_keys(self) -> dict[str, str]:
        from airflow.sdk import BaseHook

        columns = Dataset.load(self.dataset).contract.columns.values()
        connections = {column.privacy.hash for column in columns if isinstance(column.privacy, HashPrivacy)}
        if not connections:
            return {}
        keys = {name: BaseHook.get_connection(name).password or "" for name in sorted(connections)}
        weak = [name for name, key in keys.items() if len(key) < 16]
        if weak:
            raise ConfigurationError(
                f"the key of connection {weak[0]} is too short to hide anything",
                expected="a password of at least 16 random characters", found=f"{len(keys[weak[0]])} characters",
            )  # fmt: skip
        return {"SML_PRIVACY_KEYS": json.dumps(keys)}

    def finish(self, context: Context, result: dict[str, Any]) -> StagedRef:
        """Read what the run reported."""
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.lake.audit import Staged

        lake = LakeHook(self.lake).get_conn()
        super().finish(context, result)
        staged = Staged.read(storage.place(result["uri"]))
        for name, found in staged.report["joins"].items():
            for column, count in found["set_to_null"].items():
                self.log.warning("%s.%s: %d values break the contract and became NULL", name, column, count)
        for what in ("unlisted", "lacking"):
            if staged.report.get(what):
                self.log.warning("columns of the source that are %s: %s", what, ", ".join(staged.report[what]))
        if staged.report.get("repairs"):
            self.log.info("repaired: %s", staged.repairs())
        self.log.info(
            "%s rows in, %s good, %s quarantined (%s)", f"{staged.rows_in:,}", f"{staged.rows_good:,}",
            f"{staged.rows_bad:,}", staged.reasons(),
        )  # fmt: skip
        return StagedRef(
            lake=lake.name,
            table=result["table"],
            uri=result["uri"],
            first=result["first"],
            last=result["last"],
            rows_in=staged.rows_in,
            rows_good=staged.rows_good,
            rows_bad=staged.rows_bad,
        )

    def datasets(self, result: StagedRef) -> tuple[list[Data], list[Data]]:
        """The folders of the landed files, and where the table's files are staged."""
        from airflow_provider_sml.ml.etl.plan import fill_path

        source = Dataset.load(self.dataset).source
        landed = []
        for path in (source.path, *(join.path for join in source.joins)):
            fixed, daily, _ = path.partition("{date}")
            location = fill_path(fixed.rpartition("/")[0] if daily else path, self.places)
            landed.append(Data(location, rows=result.rows_in if path == source.path else None))
        return landed, [Data(parent(result.uri), rows=result.rows_good)]


class PublishPartitionsOperator(SmlOperator):
    """Audits staged files and publishes them: the days of the run are replaced in one commit, or nothing changes.

    Quarantined rows go to the table ``TABLE_quarantine`` with their reasons. A day before the run's own that late rows
    belong to is published again, whole, in a commit of its own. The contract is compared with the one that the table
    was published under; a change that old rows do not agree with is refused. The task's outlets get an event with the
    days (from the first late one on, if there are such) and the snapshot.

    :param staged: what ``SparkEtlOperator`` gave.
    :param dataset: the contract to audit against.
    """

    template_fields: Sequence[str] = ("staged",)
    ui_color = "#d5edd5"

    def __init__(self, *, staged: Any, dataset: Dataset | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.staged = staged
        self.dataset = dataset

    def run(self, context: Context) -> SnapshotRef:
        """Audit, then publish. After a failed audit the staged files stay where they are, for a look at them."""
        from airflow_provider_sml.errors import DataError
        from airflow_provider_sml.ml import storage
        from airflow_provider_sml.ml.contract import evolution
        from airflow_provider_sml.ml.contract.dataset import PARTITION
        from airflow_provider_sml.ml.lake.audit import Staged, audit
        from airflow_provider_sml.ml.lake.late import late_days, merge_late

        ref = StagedRef.load(self.staged)
        dataset = Dataset.load(self.dataset)
        lake = self.open_lake(ref.lake)
        first, last = parse_interval(ref.first, ref.last)
        staged = Staged.read(storage.place(ref.uri))
        published = lake.days(ref.table)
        statement = evolution.statement(dataset, staged.report.get("keys", {}))
        try:
            audit(dataset, staged, first, last, published)
            self._check_evolution(lake.properties(ref.table), statement, all(first <= d <= last for d in published))
        except DataError:
            self.log.error("nothing was published; what was written, bad rows included, is in %s", staged.folder)
            raise
        facts = lineage(context) | {"contract": dataset.hash, "rows_in": str(ref.rows_in)}
        properties = {evolution.PROPERTY: statement}
        properties |= {f"write.metadata.metrics.column.{name}": "none" for name in dataset.private_columns}
        if staged.quarantine or lake.exists(f"{ref.table}_quarantine"):
            columns: list[Any] = [("reasons", "string"), ("raw_row", "string"), ("file", "string"), (PARTITION, "date")]
            lake.publish(
                f"{ref.table}_quarantine", columns, staged.quarantine_of(first, last), first, last, facts,
                {"write.metadata.metrics.column.raw_row": "none"},
            )  # fmt: skip
        merged = merge_late(dataset, lake, ref.table, staged, first)
        for day, path in merged.items():
            lake.publish(ref.table, dataset.table_columns, [path], day, day, facts, properties)
            self.log.info("%s: %s was published again with late rows", ref.table, day)
        for day, rows in late_days(staged, first).items():
            if day not in merged:
                self.log.warning("%d late rows of %s wait for the run of that day, which is not published", rows, day)
        snapshot = lake.publish(
            ref.table, dataset.table_columns, staged.data_of(first, last), first, last, facts, properties
        )
        self.log.info(
            "%s: snapshot %d holds %s rows, %s of them new, from %s to %s", ref.table, snapshot.snapshot_id,
            f"{snapshot.total_rows:,}", f"{snapshot.rows:,}", first, last,
        )  # fmt: skip
        if merged:  # what follows must see every day that changed
            begin = min(merged)
            rows = sum(n for day, n in lake.days(ref.table, snapshot.snapshot_id).items() if begin <= day <= last)
            snapshot = replace(snapshot, first=begin.isoformat(), rows=rows)
        days = [day.isoformat() for day in merged]
        extra = {"first": snapshot.first, "last": ref.last, "snapshot_id": str(snapshot.snapshot_id)}
        announce(context, extra | ({"late_days": days} if days else {}))
        return snapshot

    def datasets(self, result: SnapshotRef) -> tuple[list[Data], list[Data]]:
        """The staged files, and the snapshot that they became."""
        staged = StagedRef.load(self.staged)
        columns = Dataset.load(self.dataset).table_columns
        version = str(result.snapshot_id)
        return (
            [Data(parent(staged.uri), rows=staged.rows_good)],
            [table(result.lake, result.table, rows=result.rows, version=version, columns=columns)],
        )

    def _check_evolution(self, properties: Mapping[str, str], statement: str, whole: bool) -> None:
        from airflow_provider_sml.ml.contract import evolution

        if evolution.PROPERTY not in properties:
            return
        difference = evolution.compare(properties[evolution.PROPERTY], statement)
        evolution.check(difference, whole)
        for text in difference.taken + difference.refused:
            self.log.warning("the contract changed: %s", text)
