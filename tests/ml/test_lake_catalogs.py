"""The lake's catalogs: PostgreSQL, AWS Glue (moto) and Iceberg's REST protocol, with processes that race."""

import datetime as dt

import pytest

from airflow_provider_sml.errors import ConfigurationError, ConflictError
from airflow_provider_sml.ml.lake import CatalogSettings, Lake, maintenance, versions
from airflow_provider_sml.ml.lake import lake as module
from tests.ml.lake_tables import DAY, NEXT, publish, read, rows
from tests.ml.rest_catalog import rest_catalog
from tests.processes import PROCESSES

LATER = dt.datetime.now(dt.UTC) + 10 * maintenance.DAY


def _postgres(request):
    fields = dict(field.split("=") for field in request.getfixturevalue("postgres_server").split())
    uri = f"postgresql://{fields['host']}:{fields['port']}/{fields['dbname']}"
    return CatalogSettings("postgres", uri, fields["user"], "no: secret/@ needed", request.node.name[:40])


@pytest.fixture(params=["postgres", "glue", "rest"])
def lake(request, tmp_path):
    server = request.getfixturevalue("moto_store")
    location = f"{server.bucket()}/lake"
    if request.param == "postgres":
        yield Lake(location, server.store, _postgres(request))
    elif request.param == "glue":
        namespace = location.split("/")[2]  # the bucket's name, new for each test
        yield Lake(location, server.store, CatalogSettings("glue", server.store.endpoint, namespace=namespace))
    else:
        with rest_catalog(tmp_path, token="right") as uri:
            yield Lake(location, server.store, CatalogSettings("rest", uri, password="right"))


def test_a_table_lives_its_life(lake):
    assert lake.tables() == []
    old = publish(lake, *[rows(DAY, 3, start=3 * n) for n in range(4)])
    publish(lake, rows(NEXT, 4), first=NEXT)
    publish(Lake(lake.location, lake.store, lake.settings), rows(NEXT, 5, version=2), first=NEXT)
    assert lake.tables() == ["orders"] and lake.days("orders") == {DAY: 12, NEXT: 5}
    versions.tag(lake, "orders", "training", old.snapshot_id)
    with pytest.raises(ConflictError):
        versions.tag(lake, "orders", "training")
    assert maintenance.compact(lake, "orders").files_after == 1
    versions.roll_back(lake, "orders", old.snapshot_id)
    assert read(lake).num_rows == 12
    assert len(maintenance.expire(lake, "orders", keep=1, now=LATER)) == 2
    assert maintenance.delete_orphans(lake).unknown == []


def test_a_publish_between_reading_and_committing_is_not_lost(lake, monkeypatch):
    publish(lake, rows(DAY, 3))
    check = module.check_file

    def publish_first(day):
        def wrapped(*arguments):
            monkeypatch.setattr(module, "check_file", check)
            publish(Lake(lake.location, lake.store, lake.settings), rows(day, 7, version=2), first=day)
            check(*arguments)

        return wrapped

    monkeypatch.setattr(module, "check_file", publish_first(NEXT))
    publish(lake, rows(DAY, 4, version=3))  # another day: both land
    assert lake.days("orders") == {DAY: 4, NEXT: 7}
    monkeypatch.setattr(module, "check_file", publish_first(DAY))
    with pytest.raises(ConflictError, match="another process changed orders from 2026-03-01"):
        publish(lake, rows(DAY, 5, version=4))
    assert lake.days("orders") == {DAY: 7, NEXT: 7}


def _publish_days(place, days, answers):
    lake = Lake(*place)
    try:
        for day in days:
            publish(lake, rows(day, day.day), first=day)
        answers.put("done")
    except BaseException as error:
        answers.put(repr(error))


def test_four_processes_publish_different_days_through_postgres(request):
    server = request.getfixturevalue("s3_store")
    place = f"{server.bucket()}/lake", server.store, _postgres(request)
    answers = PROCESSES.Queue()
    days = [[DAY + maintenance.DAY * (2 * n + m) for m in range(2)] for n in range(4)]
    at_work = [PROCESSES.Process(target=_publish_days, args=(place, part, answers)) for part in days]
    for process in at_work:
        process.start()
    assert [answers.get(timeout=150) for _ in at_work] == ["done"] * 4
    for process in at_work:
        process.join(30)
    assert Lake(*place).days("orders") == {day: day.day for part in days for day in part}


def test_two_namespaces_of_one_catalog_are_two_lakes(lake):
    publish(lake, rows(DAY, 3))
    settings = lake.settings
    other = Lake(
        lake.location.replace("/lake", "/other"), lake.store,
        CatalogSettings(settings.type, settings.uri, settings.user, settings.password, "other"),
    )  # fmt: skip
    assert other.tables() == []
    publish(other, rows(DAY, 4))
    assert (lake.days("orders"), other.days("orders")) == ({DAY: 3}, {DAY: 4})


def test_a_wrong_catalog_is_told_without_its_password(request, moto_store, tmp_path):
    with pytest.raises(ConfigurationError, match="expected: sqlite, postgres, glue, rest"):
        CatalogSettings("hive")
    with pytest.raises(ConfigurationError, match="needs its address"):
        CatalogSettings("postgres")
    right = _postgres(request)
    wrong = CatalogSettings("postgres", right.uri.replace("/postgres", "/nowhere"), right.user, "hunter2-secret")
    with pytest.raises(ConfigurationError, match="nowhere") as caught:
        Lake(f"{moto_store.bucket()}/lake", moto_store.store, wrong).tables()
    assert "hunter2" not in f"{caught.value} {wrong} {caught.value.__cause__}"
    with rest_catalog(tmp_path, token="right") as uri, pytest.raises(Exception, match="wrong token"):
        Lake(f"{moto_store.bucket()}/lake", moto_store.store, CatalogSettings("rest", uri, password="bad")).tables()
