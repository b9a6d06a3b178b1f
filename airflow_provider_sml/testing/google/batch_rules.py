"""What Dataproc Serverless takes as a batch, what a batch is made of, and filters of lists."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping

from google.cloud import dataproc_v1

from airflow_provider_sml.testing.google.errors import invalid
from airflow_provider_sml.testing.google.filters import CLAUSE, COMPARE

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_SHORTEST, _LONGEST = dt.timedelta(minutes=10), dt.timedelta(days=14)
_COUNTS = {
    "spark.executor.instances": (2, 2000),
    "spark.dynamicAllocation.initialExecutors": (2, 500),
    "spark.dynamicAllocation.minExecutors": (2, 2000),
    "spark.dynamicAllocation.maxExecutors": (2, 2000),
}
_CHOICES = {
    "spark.driver.cores": ("4", "8", "16"),
    "spark.executor.cores": ("4", "8", "16"),
    "spark.dataproc.driver.compute.tier": ("standard", "premium"),
    "spark.dataproc.executor.compute.tier": ("standard", "premium"),
    "spark.dataproc.driver.disk.tier": ("standard", "premium"),
    "spark.dataproc.executor.disk.tier": ("standard", "premium"),
}
#: Settings that a batch has when nobody has given them.
DEFAULTS = {
    "spark.executor.instances": "2",
    "spark.driver.cores": "4",
    "spark.executor.cores": "4",
    "spark.dynamicAllocation.executorAllocationRatio": "0.3",
}
_MEGABYTES_PER_CORE = {"standard": (1024, 7424), "premium": (1024, 24576)}


def check_request(request: dataproc_v1.CreateBatchRequest) -> None:
    """Refuse a batch that the service would refuse.

    :raises GoogleError: INVALID_ARGUMENT.
    """
    if request.batch_id and not re.fullmatch(r"[a-z0-9-]{4,63}", request.batch_id):
        raise invalid(
            f"Batch ID '{request.batch_id}' is invalid. It must be 4-63 characters; valid characters are /[a-z][0-9]-/"
        )
    if request.request_id and not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", request.request_id):
        raise invalid(f"Request ID '{request.request_id}' must match [A-Za-z0-9_-] and be at most 40 characters")
    batch = request.batch
    kind = dataproc_v1.Batch.pb(batch).WhichOneof("batch_config")
    if kind is None:
        raise invalid("One of the batch configs must be set")
    if kind == "pyspark_batch" and not batch.pyspark_batch.main_python_file_uri.endswith(".py"):
        raise invalid("Main python file must be a .py file")
    _check_labels(batch.labels)
    _check_execution(batch.environment_config.execution_config)
    _check_properties(properties(batch))


def properties(batch: dataproc_v1.Batch) -> dict[str, str]:
    """The Spark settings of a batch, without the prefix that gcloud gives them."""
    return {key.removeprefix("spark:"): value for key, value in batch.runtime_config.properties.items()}


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > 32:
        raise invalid(f"No more than 32 labels can be associated with a batch, found {len(labels)}")
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise invalid(f"Label '{key}={value}' does not conform to RFC 1035")


def _check_execution(config: dataproc_v1.ExecutionConfig) -> None:
    if "idle_ttl" in config:
        raise invalid("idle_ttl cannot be set on a batch workload")
    if "ttl" in config and not _SHORTEST <= config.ttl <= _LONGEST:
        raise invalid(f"ttl must be between 10 minutes and 14 days, found {config.ttl}")
    if "/" in config.staging_bucket or ":" in config.staging_bucket:
        raise invalid(f"Staging bucket must be a bucket name, not a URI: {config.staging_bucket}")
    if config.kms_key and not re.fullmatch(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+",
                                           config.kms_key):  # fmt: skip
        raise invalid(f"Invalid KMS key: {config.kms_key}")


def _check_properties(given: Mapping[str, str]) -> None:
    for key, (least, most) in _COUNTS.items():
        if key in given and not (given[key].isdigit() and least <= int(given[key]) <= most):
            raise invalid(f"Property {key} must be between {least} and {most}, found {given[key]}")
    for key, choices in _CHOICES.items():
        if key in given and given[key] not in choices:
            raise invalid(f"Property {key} must be one of {', '.join(choices)}, found {given[key]}")
    for process in ("driver", "executor"):
        if f"spark.{process}.memory" in given:
            tier = given.get(f"spark.dataproc.{process}.compute.tier", "standard")
            least, most = _MEGABYTES_PER_CORE[tier]
            found = _gigabytes(given[f"spark.{process}.memory"]) * 1024 / int(given.get(f"spark.{process}.cores", 4))
            if not least <= found <= most:
                raise invalid(f"spark.{process}.memory must be {least}-{most} MB per core at tier {tier}, is {found:g}")


# --- size -------------------------------------------------------------------------------------------------------------


def dcus(given: Mapping[str, str]) -> float:
    """Data Compute Units of a batch while it runs: 0.6 a core, 0.1 a GB up to 8 GB a core and 0.2 above."""
    found = 0.0
    for process, count in (("driver", 1), ("executor", workers(given) - 1)):
        cores = int(given.get(f"spark.{process}.cores", 4))
        memory = given.get(f"spark.{process}.memory")
        gigabytes = 4.0 * cores if memory is None else 1.1 * _gigabytes(memory)
        low = min(gigabytes, 8.0 * cores)
        found += count * (0.6 * cores + 0.1 * low + 0.2 * (gigabytes - low))
    return found


def workers(given: Mapping[str, str]) -> int:
    """Machines of a batch: its driver and its executors."""
    return 1 + int(given.get("spark.executor.instances", 2))


def _gigabytes(text: str) -> float:
    found = re.fullmatch(r"(\d+)([kKmMgGtT]?)[bB]?", text)
    if not found:
        raise invalid(f"'{text}' is no amount of memory")
    return float(found[1]) * {"k": 2**-20, "": 2**-10, "m": 2**-10, "g": 1, "t": 1024}[found[2].lower()]


# --- lists ------------------------------------------------------------------------------------------------------------


def matches(batch: dataproc_v1.Batch, wanted: str) -> bool:
    """Whether a batch fits a filter: clauses joined by AND; neither OR nor brackets are understood.

    :raises GoogleError: INVALID_ARGUMENT for another filter.
    """
    return all(COMPARE[sign](_field(batch, name), value) for name, sign, value in _clauses(wanted))


def _clauses(text: str) -> Iterator[tuple[str, str, str]]:
    for part in re.split(r"\s+AND\s+", text, flags=re.IGNORECASE) if text.strip() else []:
        found = CLAUSE.fullmatch(part)
        known = found and (found[1] in ("batch_id", "batch_uuid", "state", "create_time") or found[1][:7] == "labels.")
        if not found or not known or found[2] not in COMPARE:
            raise invalid(f"Invalid list filter: {text}")
        yield found[1], found[2], found[3].strip('"')


def _field(batch: dataproc_v1.Batch, name: str) -> str:
    if name == "batch_id":
        return batch.name.rpartition("/")[2]
    if name == "batch_uuid":
        return batch.uuid
    if name == "state":
        return batch.state.name
    if name == "create_time":
        return batch.create_time.strftime("%Y-%m-%dT%H:%M:%SZ")
    return batch.labels.get(name.removeprefix("labels."), "")
