"""A small dataset for tests: orders of a few shops with hourly weather, laid down as daily files.

Whether an order is late follows from its hour, its weight and the rain an hour before it, so that a model can learn it.
"""

import csv
import datetime as dt
import random
from pathlib import Path

import yaml

from airflow_provider_sml.pipelines.document import SpecLoader
from airflow_provider_sml.pipelines.spec import PipelineSpec

SPEC = """
name: orders
description: Will this order arrive late?
places:
  landing: {root}/landing
  lake: {root}/lake
  warehouse: {root}/warehouse.duckdb
  mlflow: {root}/mlflow
  endpoints: {root}/endpoints
  reports: {root}/reports
source:
  path: "{{landing}}/orders/{{date}}.csv"
  joins:
    - name: weather
      path: "{{landing}}/weather/{{date}}.csv"
      on: [city]
      as_of: measured
      delay: 1h
      tolerance: 5h
      columns:
        rain: {{type: double, range: [0, 100]}}
    - name: shops
      path: "{{landing}}/shops.csv"
      on: [shop]
      columns:
        opened: int
contract:
  key: [order]
  event_time: ordered
  columns:
    order: {{type: int, required: true}}
    ordered: {{type: timestamp, required: true}}
    shop: {{type: string, required: true}}
    city: {{type: string, required: true, values: [Bern, Oslo, Rome]}}
    weight: {{type: double, required: true, range: [0, 50]}}
    gift: {{type: boolean}}
    customer: {{type: string, privacy: mask}}
    minutes_late: {{type: double, known: after}}
  limits: {{bad_rows: 10%, rows: {{within: 60%, of: 14 days}}, fresh: 12h}}
label: minutes_late > 10
label_known_after: 1 day
features:
  hour: hour(ordered)
  weight: weight
  rain: weather.rain
  age: year(ordered) - shops.opened
  city: city
sample: {{method: hash, by: [shop], rate: 0.8}}
train:
  window: 10 days
  validate: 3 days
  test: 3 days
  params: {{max_depth: 3, rounds: 40, early_stopping: 10}}
gate:
  auc: {{min: 0.6, not_worse_than: champion, margin: 0.01}}
  ece: {{max: 0.2}}
  baseline: {{by: [city], margin: 0.0}}
  slices: {{by: [city], min_rows: 20, min_auc: 0.5, not_worse_than: champion, margin: 0.1}}
  parity: {{rows: 50}}
  size: {{max: 5 MB}}
  latency: {{p99: 5s, requests: 100}}
deploy: {{port: {port}, parity_rows: 50}}
monitor:
  rows: 500
  drift: {{share: 0.15, numeric: 0.5, category: 0.2, nights: 1 of 2}}
  then: retrain
"""
FIRST = dt.date(2026, 3, 1)
HEADER = ["order", "ordered", "shop", "city", "weight", "gift", "customer", "minutes_late"]
CITIES = ["Bern", "Oslo", "Rome"]


def spec_text(root: Path, port: int = 8599) -> str:
    """The spec with its places below a folder."""
    return SPEC.format(root=root, port=port)


def make_spec(root: Path, port: int = 8599, **changes) -> PipelineSpec:
    """The spec; ``changes`` replace whole sections."""
    values = yaml.load(spec_text(root, port), SpecLoader)
    return PipelineSpec.model_validate(values | changes)


def make_rows(day: dt.date, rows: int = 200, stormy: bool = False) -> list[dict]:
    """The orders of a day; the same whenever it is asked."""
    chance = random.Random(day.toordinal())
    weather = dict(rain_of(day, stormy))
    found = []
    for number in range(rows):
        moment = dt.datetime.combine(day, dt.time()) + dt.timedelta(minutes=chance.randrange(1440))
        weight = round(chance.uniform(0.1, 30), 2)
        rain = weather.get(moment.replace(minute=0) - dt.timedelta(hours=1), 0.0)
        risk = 0.1 + 0.02 * weight + 0.015 * rain + (0.2 if 16 <= moment.hour <= 20 else 0)
        found.append(
            {
                "order": day.toordinal() * 1000 + number,
                "ordered": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "shop": f"shop-{chance.randrange(20):02d}",
                "city": chance.choice(CITIES),
                "weight": weight,
                "gift": chance.choice(["true", "false", ""]),
                "customer": f"customer {chance.randrange(1000)}",
                "minutes_late": round(chance.uniform(11, 60) if chance.random() < risk else chance.uniform(-20, 9), 1),
            }
        )
    return found


def rain_of(day: dt.date, stormy: bool) -> list[tuple[dt.datetime, float]]:
    """Rain by hour, the evening before included."""
    chance = random.Random(-day.toordinal())
    start = dt.datetime.combine(day, dt.time()) - dt.timedelta(hours=2)
    return [(start + dt.timedelta(hours=n), round(chance.uniform(0, 20) + (60 if stormy else 0), 1)) for n in range(26)]


def write_day(landing: Path, day: dt.date, rows: list[dict] | None = None, stormy: bool = False) -> Path:
    """Land the files of a day; gives the orders' file."""
    for folder in ("orders", "weather"):
        (landing / folder).mkdir(parents=True, exist_ok=True)
    path = landing / "orders" / f"{day}.csv"
    _write(path, HEADER, make_rows(day, stormy=stormy) if rows is None else rows)
    measured = [
        {"city": city, "measured": moment.strftime("%Y-%m-%dT%H:%M:%SZ"), "rain": rain}
        for moment, rain in rain_of(day, stormy)
        if moment.date() == day
        for city in CITIES
    ]
    _write(landing / "weather" / f"{day}.csv", ["city", "measured", "rain"], measured)
    _write(
        landing / "shops.csv", ["shop", "opened"], [{"shop": f"shop-{n:02d}", "opened": 2000 + n} for n in range(20)]
    )
    return path


def days(count: int, first: dt.date = FIRST) -> list[dt.date]:
    """Some days from the first on."""
    return [first + dt.timedelta(days=n) for n in range(count)]


def _write(path: Path, header: list[str], rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
