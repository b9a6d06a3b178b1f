"""Reports of nights, decisions and the state of alerts in a folder on an object store; the copy that the pages read."""

import datetime as dt
import json
import os
import threading

import pytest

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.monitoring.decision import Policy
from airflow_provider_sml.ml.monitoring.night_profiles import Against
from airflow_provider_sml.ml.monitoring.nights import StoredNights
from airflow_provider_sml.ml.monitoring.profile import of_batches
from airflow_provider_sml.ml.monitoring.profile_report import expire_reports, report
from airflow_provider_sml.ml.monitoring.reference import Reference
from airflow_provider_sml.ml.monitoring.verdicts import Rules
from airflow_provider_sml.notifications import sent as sent_module
from airflow_provider_sml.notifications.sent import sent
from airflow_provider_sml.ui import mirror
from tests.ml.test_verdicts import KINDS, rows

NIGHTS = [dt.date(2026, 3, day) for day in (1, 2, 3)]


@pytest.fixture
def place(moto_store, monkeypatch):
    """A folder of reports on S3, reachable in this test alone."""
    monkeypatch.setattr(storage, "_mounts", {})
    location = f"s3://{moto_store.bucket()}/reports"
    storage.mount(location, moto_store.store)
    return storage.place(location)


def write(folder, day, shift):
    against = Against(Reference(), of_batches([rows(1)], KINDS))
    return report("orders", "1", day, against, of_batches([rows(2, shift=shift)], KINDS), Rules(), folder / "nights")


def test_nights_on_a_store_are_reported_decided_shown_and_removed(place, moto_store, tmp_path, monkeypatch):
    folder = place / "orders"
    for day, shift in zip(NIGHTS, (0, 30, 30), strict=True):
        found = write(folder, day, shift)
    assert found.uri == f"{folder}/nights/{NIGHTS[-1]}.html" and found.verdict == "drift"
    made = StoredNights(storage.place(found.uri).parent.parent).settle(NIGHTS[-1], Policy(nights=(2, 3)))
    assert made[-1].action == "retrain" and len(made) == 3
    copies = tmp_path / "copies"
    bucket, outside = str(folder).removeprefix("s3://").split("/", 1)[0], tmp_path / "outside.json"
    for key in (f"reports/orders/{outside}", "reports/orders/nights/../../../../outside.json"):
        moto_store.client().put_object(Bucket=bucket, Key=key, Body=b"{}")
    root = mirror.mirrored(str(place), "orders", copies)
    for day in NIGHTS:
        for name in (f"nights/{day}.html", f"nights/{day}.json", f"decisions/{day}.json"):
            assert (root / "orders" / name).read_bytes() == (folder / name).read_bytes()
    assert not outside.exists() and (root / "orders").stat().st_mode & 0o77 == 0
    kept = root / "orders" / "nights" / f"{NIGHTS[-1]}.html"
    before = os.stat(kept)
    assert expire_reports(folder / "nights", NIGHTS[1]) == [f"{NIGHTS[0]}.html", f"{NIGHTS[0]}.json"]
    assert mirror.mirrored(str(place), "orders", copies) == root
    assert (root / "orders" / "nights" / f"{NIGHTS[0]}.html").exists(), "it was looked at a moment ago"
    monkeypatch.setattr(mirror, "AGAIN", 0.0)
    mirror.mirrored(str(place), "orders", copies)
    assert not (root / "orders" / "nights" / f"{NIGHTS[0]}.html").exists()
    assert os.stat(kept).st_ino == before.st_ino, "what has not changed is not brought again"
    monkeypatch.setattr(storage, "entries", lambda folder: (_ for _ in ()).throw(OSError("the store is down")))
    assert (mirror.mirrored(str(place), "orders", copies) / "orders" / "nights" / kept.name).exists()


def test_one_of_two_tasks_tells_a_finding(place, monkeypatch):
    told, inside = [], threading.Barrier(2)

    def tell():
        inside.wait()
        with sent(place / "alerts", "orders drift", dt.timedelta(days=3)) as state:
            if not state.lately("slack ops", "warning"):
                told.append(threading.get_ident())
                state.record("slack ops", "warning")

    threads = [threading.Thread(target=tell) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    names = sorted(entry.path.rsplit("/", 1)[1] for entry in storage.entries(place / "alerts"))
    assert len(names) == 1 and json.loads((place / "alerts" / names[0]).read_text())["finding"] == "orders drift"
    storage.write((place / "alerts" / names[0]).with_suffix(".lock"), "1.0")  # left behind by a process long gone
    monkeypatch.setattr(sent_module, "WAIT", 5.0)
    with sent(place / "alerts", "orders drift", dt.timedelta(days=3)) as state:
        assert state.lately("slack ops", "warning")
