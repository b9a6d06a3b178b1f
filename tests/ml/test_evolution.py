"""What a contract may become once rows are published under it."""

import copy
from pathlib import Path

import pytest

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.contract import evolution
from tests import shops

SPEC = shops.make_spec(Path("/nowhere"))
BASE = {
    "contract": SPEC.contract.model_dump(mode="json"),
    "features": dict(SPEC.features),
    "label": SPEC.label,
    "source": SPEC.source.model_dump(mode="json"),
}


def statement(change=None, keys=None):
    values = copy.deepcopy(BASE)
    if change:
        change(values)
    dataset = shops.make_spec(Path("/nowhere"), **values).dataset
    return evolution.statement(dataset, keys or {})


def column(name, **changes):
    return lambda values: values["contract"]["columns"].setdefault(name, {}).update(changes)


def gone(values):
    del values["contract"]["columns"]["gift"]


def difference(change):
    return evolution.compare(statement(), statement(change))


def test_the_same_contract_has_no_difference():
    assert difference(lambda values: None) == evolution.Difference()
    # What days are judged by and what readers are told changes no row.
    assert difference(lambda values: values["contract"]["limits"].update(bad_rows=0.5)) == evolution.Difference()
    assert difference(column("weight", description="in kg")) == evolution.Difference()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (column("note", type="string"), "column note is new"),
        (column("weight", range=[0, 60]), "column weight: range was [0.0, 50.0] and is [0.0, 60.0]"),
        (column("weight", range=None), "column weight: range was [0.0, 50.0] and is null"),
        (column("city", values=["Bern", "Oslo", "Rome", "Wien"]), "column city: values was"),
        (column("shop", required=False), "column shop: required was true and is false"),
        (column("shop", repair={"trim": True}), "column shop: repair was null"),
        (lambda values: values["features"].update(heavy="weight > 20"), "features.heavy is new"),
    ],
)
def test_additions_and_widenings_are_taken_and_told(change, said):
    found = difference(change)
    assert len(found.taken) == 1 and found.taken[0].startswith(said)
    assert not found.refused and not found.columns
    evolution.check(found, whole=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (column("note", type="string", required=True), "column note is new and required"),
        (column("weight", range=[1, 50]), "column weight: range"),
        (column("minutes_late", range=[-100, 100]), "column minutes_late: range was null"),
        (column("city", values=["Bern", "Oslo"]), "column city: values"),
        (column("city", values=["Oslo", "Bern", "Rome"]), "column city: values"),
        (column("gift", required=True), "column gift: required was false"),
        (column("gift", **{"source": "present"}), "column gift: from was null and is present"),
        (column("customer", privacy={"prefix": 2}), "column customer: privacy was mask"),
        (lambda values: values["features"].update(hour="hour(ordered) + 1"), "features.hour was hour(ordered) and is"),
        (lambda values: values["features"].pop("hour"), "features.hour is gone"),
        (lambda values: values.update(label="minutes_late > 20"), "label was minutes_late > 10"),
        (lambda values: values["source"]["joins"][0].update(delay="2h"), "joins.weather was"),
        (lambda values: values["contract"].update(key=["order", "shop"]), 'key was ["order"]'),
    ],
)
def test_narrowings_and_other_meanings_are_refused_unless_every_day_is_made_anew(change, said):
    found = difference(change)
    assert any(text.startswith(said) for text in found.refused), found
    with pytest.raises(DataError, match="rows of another meaning"):
        evolution.check(found, whole=False)
    evolution.check(found, whole=True)


@pytest.mark.parametrize(
    "change", [gone, column("gift", type="int"), column("gift", privacy="drop")], ids=["gone", "type", "drop"]
)
def test_columns_that_go_or_change_their_type_are_refused_always(change):
    found = difference(change)
    assert len(found.columns) == 1
    with pytest.raises(DataError, match="columns that the contract has not"):
        evolution.check(found, whole=True)


def test_another_key_gives_hashes_another_meaning_and_another_connection_does_not():
    def hashed(connection):
        return column("customer", privacy={"hash": connection})

    first = statement(hashed("a"), {"a": "1111"})
    assert evolution.compare(first, statement(hashed("b"), {"b": "1111"})) == evolution.Difference()
    rotated = evolution.compare(first, statement(hashed("a"), {"a": "2222"}))
    assert rotated.refused == ('column customer: privacy was {"hash": "1111"} and is {"hash": "2222"}',)
