"""The dataset API: what follows from a contract, rules over rows, problems told in code, quantities, intervals."""

import datetime as dt
import math

import pytest
from pydantic import ValidationError

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract import Column, Dataset, Limits, Source, Values
from airflow_provider_sml.ml.contract.dataset import RESERVED, dotted
from airflow_provider_sml.ml.contract.interval import parse_day, parse_interval
from airflow_provider_sml.ml.contract.quantities import duration, share
from airflow_provider_sml.ml.expressions.vectors import Vector

TRIPS = {
    "name": "trips",
    "source": {
        "path": "/landing/trips/{date}.csv",
        "joins": [
            {"name": "weather", "path": "/landing/weather/{date}.csv", "on": ["city"], "as_of": "measured",
             "columns": {"rain": {"type": "double", "range": [0, None]},
                         "sky": {"type": "string", "values": ["clear", "grey"]},
                         "wind": "double"}},
        ],
    },
    "contract": {
        "key": ["trip"],
        "event_time": "starts",
        "columns": {
            "trip": {"type": "int", "required": True},
            "starts": {"type": "timestamp", "required": True},
            "city": {"type": "string", "required": True, "values": ["Bern", "Val-d'Or"]},
            "grade": {"type": "int", "values": [1, 2, 3]},
            "km": {"type": "double", "range": [0.5, 1000]},
            "rider": {"type": "string", "privacy": {"hash": "rider_key"}},
            "phone": {"type": "string", "privacy": "drop"},
            "tip": {"type": "double", "known": "after"},
        },
    },
    "features": {"hour": "hour(starts)", "km": "km", "rain": "weather.rain", "sky": "weather.sky", "city": "city",
                 "steep": "grade = 3"},
    "label": "tip > 2",
}  # fmt: skip


def changed(**changes):
    """The keys of TRIPS, with ``contract__columns__tip=...`` laid over."""
    import copy

    value = copy.deepcopy(TRIPS)
    for path, new in changes.items():
        *way, last = path.split("__")
        inner = value
        for part in way:
            inner = inner[int(part)] if part.isdigit() else inner[part]
        inner[last] = new
    return value


@pytest.fixture(scope="module")
def trips():
    return Dataset(**TRIPS)


def test_what_the_table_holds_follows_from_the_contract(trips):
    assert trips.table_columns == [
        ("trip", "int"), ("starts", "timestamp"), ("city", "string"), ("grade", "int"), ("km", "double"),
        ("rider", "string"), ("tip", "double"),  # no phone: the contract drops it
        ("weather__rain", "double"), ("weather__sky", "string"),  # no wind: no feature uses it
        ("hour", "double"), ("rain", "double"), ("sky", "string"), ("steep", "double"),  # km and city are there already
        ("label", "int"), ("event_date", "date"),
    ]  # fmt: skip


def test_what_a_request_gives_is_what_features_are_made_of(trips):
    assert set(trips.request_columns) == {"starts", "km", "weather.rain", "weather.sky", "city", "grade"}
    assert trips.types["weather.wind"] == "double" and trips.values["city"].values == ["Bern", "Val-d'Or"]


def test_features_know_their_categories(trips):
    features = {feature.name: feature for feature in trips.feature_list}
    assert list(features) == list(TRIPS["features"]), "in the order of the spec"
    assert features["sky"].categories == ("clear", "grey") and features["sky"].type == "string"
    assert features["steep"].categories is None and features["steep"].type == "double"
    assert features["hour"].expression.columns == {"starts"}
    assert trips.label_expression.type == "boolean"


def test_the_rules_of_rows(trips):
    assert {rule.name: rule.promise for rule in trips.rules} == {
        "trip:required": "must be there",
        "starts:required": "must be there",
        "city:required": "must be there",
        "city:values": "must be one of 'Bern', 'Val-d''Or'",
        "grade:values": "must be one of 1, 2, 3",
        "km:range": "must lie in [0.5, 1000]",
    }
    assert [rule.promise for rule in trips.rules_of("weather.rain")] == ["must lie in [0, ...]"]
    assert trips.rules_of("weather.wind") == []


@pytest.mark.parametrize(
    ("rule", "kind", "items", "good"),
    [
        ("trip:required", "int", [1, None], [True, False]),
        ("city:values", "string", ["Bern", "bern", "Val-d'Or", None], [True, False, True, True]),
        ("grade:values", "int", [0, 1, 3, None], [False, True, True, True]),
        ("km:range", "double", [0.5, 0.49, 1000.0, 1000.01, None, math.inf], [True, False, True, False, True, False]),
    ],
)
def test_a_rule_is_true_or_false_and_never_null(trips, rule, kind, items, good):
    predicate = next(known for known in trips.rules if known.name == rule).predicate
    column = next(iter(predicate.columns))
    assert predicate.evaluate({column: Vector.of(items, kind)}, len(items)).tolist() == good


def test_an_open_range_has_one_bound_and_an_empty_one_none():
    dataset = Dataset(**changed(contract__columns__km={"type": "double", "range": [None, 10]}))
    assert [rule.promise for rule in dataset.rules_of("km")] == ["must lie in [..., 10]"]
    assert Dataset(**changed(contract__columns__km={"type": "double", "range": [None, None]})).rules_of("km") == []


def test_large_bounds_are_kept_to_the_last_digit():
    dataset = Dataset(**changed(contract__columns__trip={"type": "int", "required": True, "range": [0, 2**53 - 1]}))
    rule = next(rule for rule in dataset.rules_of("trip") if rule.name == "trip:range")
    assert rule.predicate.evaluate({"trip": Vector.of([2**53 - 1, 2**53], "int")}, 2).tolist() == [True, False]


def test_the_hash_names_the_contract(trips):
    assert trips.hash == Dataset(**TRIPS).hash == Dataset.load(TRIPS).hash and len(trips.hash) == 12
    others = [
        changed(label="tip > 3"),
        changed(contract__columns__km={"type": "double", "range": [0.5, 999]}),
        changed(features__hour="hour(starts) + 1"),
        changed(source__joins__0__delay="2h"),
    ]
    assert len({trips.hash, *(Dataset(**other).hash for other in others)}) == 5
    assert (
        Dataset(**changed(source__joins__0__delay="60m")).hash == Dataset(**changed(source__joins__0__delay="1h")).hash
    )


def test_a_dataset_survives_being_stored(trips):
    again = Dataset.model_validate_json(trips.model_dump_json())
    assert again == trips and again.hash == trips.hash and again.table_columns == trips.table_columns
    assert Dataset.load(trips) is trips
    assert Dataset(**trips.model_dump(mode="json")) == trips


def test_a_dataset_does_not_change(trips):
    with pytest.raises(ValidationError, match="frozen"):
        trips.label = "tip > 9"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features__tipped": "tip * 2"}, "features.tipped uses tip, but the label is made from it"),
        ({"features__paid": "coalesce(km, tip)"}, "features.paid uses tip, but the label is made from it"),
        (
            {"label": "km > 5", "features__km": "tip", "features__rain": "1.0 * grade"},
            "features.km uses tip, but it is known only after the event",
        ),
        ({"features__who": "length(rider)"}, "features.who uses rider, but the contract hides it"),
        ({"features__who": "length(phone)"}, "features.who uses phone, but the contract hides it"),
        ({"features__km": "km + 1"}, "features.km has the name of a column"),
        ({"features__when": "starts"}, "features.when is a timestamp"),
        ({"features__day": "date(starts)"}, "features.day is a date"),
        ({"features__name": "upper(city)"}, "features.name is text, so it is a category"),
        ({"features__score": "km"}, "the name score is taken by the library"),
        ({"features__x": "wether.rain"}, "did you mean weather.rain?"),
        ({"label": "tip"}, "expected: a condition, or a whole number that is 0 or 1; found: double"),
        ({"label": "weather.rain > 1"}, "label: 'weather.rain > 1' uses weather.rain"),
        ({"contract__key": ["grade"]}, "give contract.columns.grade required: true"),
        ({"contract__key": ["tripp"]}, "did you mean trip?"),
        ({"contract__event_time": "city"}, "found: a string"),
        ({"contract__columns__starts": {"type": "timestamp"}}, "found: a timestamp that may be NULL"),
        ({"contract__columns__reasons": {"type": "int"}}, "the name reasons is taken by the library"),
        ({"source__joins__0__name": "km"}, "the join's name km is taken"),
        ({"source__joins__0__on": ["town"]}, "join weather names town"),
        ({"source__joins__0__as_of": None}, "expected: as_of, the time of its rows"),
    ],
)
def test_what_does_not_fit_is_refused_in_code_with_its_place(changes, said):
    with pytest.raises(ValidationError) as raised:
        Dataset(**changed(**changes))
    assert said in str(raised.value)


def test_a_whole_number_may_be_the_label():
    assert Dataset(**changed(label="grade", features={"km": "km"})).label_expression.type == "int"


def test_a_renamed_feature_does_not_hide_a_leak():
    """The label's columns are found wherever they stand in it."""
    value = changed(label="coalesce(tip, 0) > 2 AND grade = 3")
    with pytest.raises(ValidationError, match=r"features\.steep uses grade, but the label is made from it"):
        Dataset(**value)


@pytest.mark.parametrize(
    ("model", "keys", "said"),
    [
        (Values, {"type": "string", "range": [1, 2]}, "range: expected no range, which is for int and double"),
        (Values, {"type": "int", "range": [2, 1]}, r"range: expected \[smallest, largest\], found \[2, 1\]"),
        (Values, {"type": "int", "range": [math.nan, 1]}, "finite"),
        (Values, {"type": "double", "values": [1, 2]}, "values: expected no values, which are for int and string"),
        (Values, {"type": "string", "values": [1]}, "values: expected each of type string"),
        (Values, {"type": "int", "values": [1, 1]}, "values: expected each value once, found 1 twice"),
        (Values, {"type": "int", "values": []}, "at least 1"),
        (Values, {"type": "int", "values": [True]}, "valid integer"),
        (Column, {"type": "int", "privacy": "mask"}, "privacy: expected drop"),
        (Column, {"type": "int", "required": "yes"}, "valid boolean"),
        (Column, {"type": "int", "unique": True}, "Extra inputs"),
        (Source, {"path": "/landing/all.csv"}, r"expected one file a day: a path with \{date\} in it"),
        (Limits, {"bad_rows": 2}, "a share from 0 to 1"),
    ],
)
def test_parts_are_checked_where_they_are_made(model, keys, said):
    with pytest.raises(ValidationError, match=said):
        model(**keys)


def test_a_dropped_column_may_have_any_type():
    assert Column(type="double", privacy="drop").privacy == "drop"
    assert Column(type="string", privacy={"hash": "key"}).privacy.hash == "key"


def test_places_are_written_as_one_reads_them():
    assert dotted(("source", "joins", 0, "columns", "rain")) == "source.joins[0].columns.rain"
    assert dotted(()) == ""
    assert {"label", "event_date"} <= RESERVED


# --- quantities and intervals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("36h", 129600), ("120 days", 10368000), ("1 day", 86400), ("2w", 1209600), ("1.5h", 5400),
     ("30 s", 30), (" 5 Min ", 300), ("0s", 0), (dt.timedelta(hours=1), 3600)],
)  # fmt: skip
def test_durations(text, seconds):
    assert duration(text) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["", "5", 5, "h", "-1h", "1 month", "1h30m", None, True, "1e3s", "9" * 30 + "w"])
def test_no_durations(value):
    with pytest.raises(ValueError, match="expected a number and a unit, such as 10m, 36h or 120 days"):
        duration(value)


def test_durations_are_stored_as_text_that_reads_the_same():
    for text in ("36h", "1.5s", "120 days"):
        limits = Limits(fresh=text)
        assert Limits.model_validate_json(limits.model_dump_json()) == limits


@pytest.mark.parametrize(
    ("value", "expected"), [("1%", 0.01), ("0.5 %", 0.005), (0.01, 0.01), (0, 0.0), (1, 1.0), ("100%", 1.0)]
)
def test_shares(value, expected):
    assert share(value) == pytest.approx(expected) and type(share(value)) is float


@pytest.mark.parametrize("value", ["1", "101%", "-1%", 1.01, -0.1, True, None, math.nan, "one"])
def test_no_shares(value):
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        share(value)


def test_days_and_intervals_of_templates():
    assert parse_day(" 2026-03-01 ", "as_of") == dt.date(2026, 3, 1)
    assert parse_day("2026-03-01T00:00:00+00:00", "as_of") == dt.date(2026, 3, 1)
    assert parse_interval("2026-03-01", "2026-03-01") == (dt.date(2026, 3, 1), dt.date(2026, 3, 1))
    with pytest.raises(ConfigurationError, match="as_of is no day\n  expected: YYYY-MM-DD; found: tomorrow"):
        parse_day("tomorrow", "as_of")
    with pytest.raises(ConfigurationError, match="the interval ends before it begins"):
        parse_interval("2026-03-02", "2026-03-01")
