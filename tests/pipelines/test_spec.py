"""Specs: what is taken, and that everything wrong is refused with file, line, what is allowed and what was found."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from airflow_provider_sml.pipelines import PipelineSpec, PipelineSpecError, load_spec
from airflow_provider_sml.pipelines.__main__ import main
from airflow_provider_sml.pipelines.document import SpecLoader
from airflow_provider_sml.pipelines.schema import spec_schema
from tests import shops
from tests.pipelines.conftest import FLIGHTS, line_of

SCHEMA = Path(sys.modules[PipelineSpec.__module__].__file__).with_name("spec.schema.json")
TAILNUM = "tailnum: {type: string, required: true}"

# what is replaced, by what, the line (that of the replaced text, or a text of the line), what must be said
WRONG = {
    "unknown key": (
        "owner: ops",
        "ownr: ops",
        None,
        "ownr is not a key of the spec\n  expected: one of alert_again_after, alerts, contract,",
    ),
    "its suggestion": ("owner: ops", "ownr: ops", None, "found: ownr; did you mean owner?"),
    "unknown key of a stage": (
        "  target: local",
        "  targt: local",
        None,
        "expected: one of parity_rows, port, settings, target; found: targt; did you mean target?",
    ),
    "unknown key of a column": (
        "distance: {type: int, required",
        "distance: {type: int, requird",
        None,
        "requird; did you mean required?",
    ),
    "text for a number": (
        "port: 8500",
        "port: eighty",
        None,
        "deploy.port is wrong\n  expected: a whole number from 1 to 65535; found: eighty",
    ),
    "a number in quotes": ("port: 8500", "port: '8500'", None, "found: '8500'"),
    "a number that is too large": ("port: 8500", "port: 85000", None, "from 1 to 65535; found: 85000"),
    "a fraction for a whole number": ("port: 8500", "port: 80.5", None, "a whole number from 1 to 65535; found: 80.5"),
    "a word for a boolean": (
        "origin: {type: string, required: true",
        "origin: {type: string, required: yes",
        None,
        "required is wrong\n  expected: true or false; found: 'yes'",
    ),
    "a text for a list": (
        "by: [tailnum], rate",
        "by: tailnum, rate",
        None,
        "sample.by is wrong\n  expected: a list of names; found: tailnum",
    ),
    "a list for a mapping": (
        "  target: local\n  port: 8500",
        "  - local",
        "deploy:",
        "deploy is wrong\n  expected: a mapping with keys of target, port, parity_rows, settings; found: [local]",
    ),
    "nothing for a list": (
        "alerts: []",
        "alerts:",
        None,
        "expected: a list of {email: a list of texts, at: info, warning or critical} or ",
    ),
    "an unknown type": (
        "distance: {type: int,",
        "distance: {type: integer,",
        None,
        "expected: int, double, string, boolean, timestamp or date; found: integer",
    ),
    "the short form of a looked-up column": (
        "seats: {type: int, range: [1, 600]}",
        "seats: integer",
        None,
        "source.joins[1].columns.seats is wrong\n  expected: int, double,",
    ),
    "a duration": (
        "delay: 1h",
        "delay: 1 moon",
        None,
        "source.joins[0].delay is wrong\n  expected: a number and a unit, such as 10m, 36h or 120 days; found: 1 moon",
    ),
    "a duration without a unit": ("label_known_after: 1 day", "label_known_after: 1", None, "found: 1"),
    "half days": (
        "window: 120 days",
        "window: 36h",
        None,
        "train.window is wrong\n  expected: one or more whole days, such as 14 days; found: 36h",
    ),
    "no days": ("test: 28 days", "test: 0 days", None, "found: 0 days"),
    "a share": ("bad_rows: 30%", "bad_rows: 130%", None, "a share from 0 to 1, such as 0.01 or 1%; found: 130%"),
    "a name": ("name: flights", "name: Late Flights", None, "name is wrong\n  expected: a name such as late_flights"),
    "the name of a feature": (
        "  wind: weather",
        "  Wind: weather",
        None,
        "features.Wind cannot be a name\n  expected: a name such as",
    ),
    "a number for an expression": (
        "  distance: distance",
        "  distance: 5",
        None,
        "expected: an expression such as hour(time_hour) >= 18; found: 5",
    ),
    "a missing key": (
        "label: arr_delay > 15\n",
        "",
        "name: flights",
        "label is missing\n  expected: an expression such as",
    ),
    "a missing type": (
        "dest: {type: string, required: true}",
        "dest: {required: true}",
        None,
        "contract.columns.dest.type is missing",
    ),
    "a cron expression": (
        "train: weekly",
        "train: fortnightly",
        None,
        "expected: daily, weekly, monthly, or a cron expression of five fields",
    ),
    "an impossible cron expression": ("ingest: daily", "ingest: 99 0 * * *", None, "found: 99 0 * * *"),
    "a budget": (
        "  then: retrain",
        "  decide: {budget: 2 a month}\n  then: retrain",
        "then: retrain",
        "monitor.decide.budget is wrong\n  expected: how many trainings in how many days, such as 2 in 30 days",
    ),
    "nights": (
        "nights: 2 of 3",
        "nights: 4 of 3",
        None,
        "monitor.drift.nights is wrong\n  expected: how many of how many nights, such as 3 of 5; found: 4 of 3",
    ),
    "a reference of nights": (
        "reference: training",
        "reference: trailing 3 weeks",
        None,
        "monitor.reference is wrong\n  expected: training, trailing 28 days (any number of days), or season 15 days",
    ),
    "a window for a sample": (
        "reference: training",
        "reference: season\n  report: sample",
        None,
        "monitor.reference is wrong\n  expected: no reference, because report is sample; found: season 15 days",
    ),
    "profiles in no warehouse": (
        "reference: training",
        "profile_in: warehouse",
        None,
        "monitor.profile_in is warehouse\n  expected: BigQuery as places.warehouse",
    ),
    "segments by what is known after": (
        "reference: training",
        "segments: {by: dep_delay}",
        None,
        "monitor.segments.by names dep_delay",
    ),
    "a range the wrong way round": (
        "range: [0, 150]",
        "range: [150, 0]",
        None,
        "range is wrong\n  expected: [smallest, largest]; found: [150, 0]",
    ),
    "half a range": ("range: [0, 150]", "range: [150]", None, "source.joins[0].columns.wind_speed.range is wrong"),
    "a range of texts": (
        TAILNUM,
        "tailnum: {type: string, required: true, range: [1, 2]}",
        None,
        "for int and double; found: a column of type string",
    ),
    "values of two types": (
        "values: [EWR, JFK, LGA]",
        "values: [EWR, 5]",
        None,
        "a list of texts or a list of whole numbers; found: [EWR, 5]",
    ),
    "values of another type": (
        "values: [EWR, JFK, LGA]",
        "values: [1, 2]",
        None,
        "expected: each of type string; put texts that look like numbers in quotes; found: 1",
    ),
    "a value twice": (
        "values: [EWR, JFK, LGA]",
        "values: [EWR, JFK, EWR]",
        None,
        "expected: each value once; found: EWR twice",
    ),
    "values of numbers with fractions": (
        "visib: {type: double, range: [0, 10]}",
        "visib: {type: double, values: [1, 2]}",
        None,
        "for int and string",
    ),
    "a privacy treatment": (
        TAILNUM,
        "tailnum: {type: string, required: true, privacy: hide}",
        None,
        "or {prefix: a whole number from 1 to 64}; found: hide",
    ),
    "privacy of a number": (
        "flight: {type: int, required: true}",
        "flight: {type: int, required: true, privacy: mask}",
        None,
        "contract.columns.flight.privacy is wrong",
    ),
    "an alert": (
        "alerts: []",
        "alerts: [{slac: ops}]",
        None,
        "alerts[0] is wrong\n  expected: {email: a list of texts, at: info, warning or critical} or ",
    ),
    "an address that is no list": ("alerts: []", "alerts: [{email: a@b.c}]", None, "found: {email: a@b.c}"),
    "a path for all days": (
        '"{landing}/flights/{date}.csv"',
        '"{landing}/flights.csv"',
        None,
        "one file a day: a path with {date} in it; found:",
    ),
    "a path with an unknown place": (
        '"{landing}/flights/{date}.csv"',
        '"{landin}/flights/{date}.csv"',
        None,
        "found: {landin}; did you mean {landing}?",
    ),
    "a path with an open brace": (
        '"{landing}/planes.csv"',
        '"{landing/planes.csv"',
        None,
        "source.joins[1].path names",
    ),
    "daily joined files without a time": (
        "      as_of: time_hour\n",
        "",
        'path: "{landing}/weather',
        "expected: as_of",
    ),
    "a rate without a method": (
        "method: hash, by: [tailnum], rate: 0.5",
        "rate: 0.5",
        None,
        "sample.rate is wrong\n  expected: no rate, because method is all",
    ),
    "a method without columns": (
        "method: hash, by: [tailnum], rate: 0.5",
        "method: hash",
        None,
        "sample.by is wrong\n  expected: the columns that name an entity",
    ),
    "workers of the local cluster": ("cluster: local", "workers: 3", None, "train.workers is wrong"),
    # columns
    "a feature of an unknown column": (
        "weather.wind_speed",
        "weather.wind_sped",
        None,
        "features.wind uses weather.wind_sped\n  expected: a column of weather: weather.humid,",
    ),
    "its nearest column": (
        "weather.wind_speed",
        "weather.wind_sped",
        None,
        "found: weather.wind_sped; did you mean weather.wind_speed?",
    ),
    "a feature of an unknown join": (
        "weather.wind_speed",
        "wether.wind_speed",
        None,
        "planes.*, weather.*; found: wether.wind_speed; did you mean weather.wind_speed?",
    ),
    "a feature that cannot be parsed": (
        "hour: hour",
        "hour: hour >",
        None,
        "features.hour: 'hour >' is not an expression",
    ),
    "a feature of unfitting types": (
        "  distance: distance",
        "  distance: distance + carrier",
        None,
        "types do not fit",
    ),
    "a feature of an unknown function": ("weekday(time_hour)", "weekdy(time_hour)", None, "did you mean weekday?"),
    "a feature that is a moment": (
        "  seats: planes.seats",
        "  seats: time_hour",
        None,
        "features.seats is a timestamp\n  expected: a number, a condition or a category",
    ),
    "a feature that is free text": (
        "  seats: planes.seats",
        "  seats: dest",
        None,
        "give contract.columns.dest its values",
    ),
    "a feature with a column's name": (
        "  hour: hour\n",
        "  hour: minute\n",
        None,
        "features.hour has the name of a column",
    ),
    "a label that leaks into a feature": (
        "  seats: planes.seats",
        "  late: arr_delay / 60",
        "  seats: planes",
        "features.late uses arr_delay, but the label is made from it\n  expected: columns that are known before",
    ),
    "a feature from after the event": (
        "  seats: planes.seats",
        "  seats: dep_delay",
        None,
        "features.seats uses dep_delay, but it is known only after the event",
    ),
    "an unknown column of the key": (
        "key: [carrier, flight",
        "key: [carier, flight",
        None,
        "contract.key names carier\n  expected: a column of the contract: time_hour, carrier",
    ),
    "a key that may be null": (
        "flight: {type: int, required: true}",
        "flight: {type: int}",
        "key: [carrier",
        "give contract.columns.flight required: true",
    ),
    "an unknown event time": ("event_time: time_hour", "event_time: time_hr", None, "did you mean time_hour?"),
    "an event time of another type": (
        "event_time: time_hour",
        "event_time: carrier",
        None,
        "expected: a required timestamp column without privacy treatment; found: a string",
    ),
    "a label of an unknown column": (
        "label: arr_delay > 15",
        "label: arr_dely > 15",
        None,
        "label: 'arr_dely > 15' uses arr_dely",
    ),
    "a label that is a number": (
        "label: arr_delay > 15",
        "label: arr_delay",
        None,
        "expected: a condition, or a whole number that is 0 or 1; found: double",
    ),
    "a label of a looked-up column": ("label: arr_delay > 15", "label: planes.year > 15", None, "uses planes.year"),
    "a join on an unknown column": ("on: [tailnum]", "on: [tailnm]", None, "join planes names tailnm"),
    "a name taken by the library": (
        "    dest: {type",
        "    score: {type",
        None,
        "the name score is taken by the library",
    ),
    "a join's name twice": ("name: planes", "name: weather", None, "the join's name weather is taken"),
    "sampling by an unknown column": ("by: [tailnum], rate", "by: [tailnumb], rate", None, "sample.by names tailnumb"),
    "sampling by the outcome": (
        "by: [tailnum], rate",
        "by: [arr_delay], rate",
        None,
        "found: arr_delay, which is known only after the event",
    ),
    "sampling by a masked column": (
        TAILNUM,
        "tailnum: {type: string, required: true, privacy: mask}",
        "sample:",
        "found: tailnum, which the contract masks",
    ),
    "a baseline by the outcome": (
        "baseline: {by: [carrier, hour]",
        "baseline: {by: [dep_delay, hour]",
        None,
        "gate.baseline.by names dep_delay",
    ),
    "slices by an unknown column": (
        "slices: {by: [origin]",
        "slices: {by: [orign]",
        None,
        "gate.slices.by names orign",
    ),
    "leaving out an unknown feature": (
        "leave_out: [weekday]",
        "leave_out: [weekdy]",
        None,
        "monitor.columns.leave_out names weekdy",
    ),
    "comparing an unknown feature": (
        "leave_out: [weekday]",
        "only: [hour, wnd]",
        None,
        "found: wnd; did you mean wind?",
    ),
    "an unknown feature that is monotone": (
        "  cluster: local",
        "  monotone: {distance: 1, pressur: -1}",
        None,
        "train.monotone names pressur\n  expected: one of hour, minute, weekday, distance,",
    ),
    "a category that is monotone": (
        "  cluster: local",
        "  monotone: {carrier: 1}",
        None,
        "found: carrier, a category, whose values have no order",
    ),
    "a direction that is none": (
        "  cluster: local",
        "  monotone: {distance: 2}",
        None,
        "train.monotone.distance is wrong\n  expected: 1 or -1; found: 2",
    ),
    "a direction in words": ("  cluster: local", "  monotone: {distance: up}", None, "expected: 1 or -1; found: up"),
    "a direction that is true": ("  cluster: local", "  monotone: {distance: true}", None, "expected: 1 or -1; found"),
    "a list of monotone features": (
        "  cluster: local",
        "  monotone: [distance]",
        None,
        "train.monotone is wrong\n  expected: a mapping of names to 1 or -1; found:",
    ),
    "monotone twice": (
        "  params: {max_depth: 6,",
        "  monotone: {distance: 1}\n  params: {monotone_constraints: '(1)',",
        None,
        "expected: no monotone, because params has monotone_constraints",
    ),
    "a word for class weights": (
        "  cluster: local",
        "  class_weights: balance",
        None,
        "train.class_weights is wrong\n  expected: balanced or {negative: a number above 0, positive: a number",
    ),
    "half of the class weights": (
        "  cluster: local",
        "  class_weights: {positive: 4}",
        None,
        "positive: a number above 0}; found: {positive: 4}",
    ),
    "a class weight that is none": (
        "  cluster: local",
        "  class_weights: {negative: 1, positive: 0}",
        None,
        "positive: a number above 0}; found: {negative: 1, positive: 0}",
    ),
    "class weights twice": (
        "  params: {max_depth: 6,",
        "  class_weights: balanced\n  params: {scale_pos_weight: 2,",
        None,
        "expected: no class_weights, because params has scale_pos_weight",
    ),
    "a metric that is no import path": (
        "  cluster: local",
        "  metrics: [include.money.cost]",
        None,
        "a function by its import path, such as include.metrics:cost",
    ),
    "a start from an unknown alias": (
        "  cluster: local",
        "  warm_start: challenger",
        None,
        "train.warm_start is wrong\n  expected: champion or a whole number from 1; found: challenger",
    ),
    "a number of interruptions": (
        "  cluster: local",
        "  spot: {on_demand_after: twice}",
        None,
        "train.spot.on_demand_after is wrong\n  expected: a number of interruptions, such as 2 interruptions; found: t",
    ),
    "more workers at least than at most": (
        "  cluster: local",
        "  min_workers: 2",
        None,
        "train.min_workers is wrong\n  expected: at most workers, which is 1; found: 2",
    ),
    "a search without a budget": (
        "  cluster: local",
        "  search: {space: {max_depth: [3, 6]}}",
        None,
        "train.search.trials is wrong\n  expected: a budget: trials, minutes or usd; found: none",
    ),
    "a search of nothing": (
        "  cluster: local",
        "  search: {space: {}, trials: 3}",
        None,
        "train.search.space is wrong",
    ),
    "a range that ends before it begins": (
        "  cluster: local",
        "  search: {trials: 3, space: {max_depth: {min: 9, max: 3}}}",
        None,
        "train.search.space.max_depth.max is wrong\n  expected: a number above min, which is 9; found: 3",
    ),
    "a number for a range": (
        "  cluster: local",
        "  search: {trials: 3, space: {max_depth: 9}}",
        None,
        "train.search.space.max_depth is wrong\n  expected:",
    ),
    "a latency without a limit": (
        "  ece: {max: 0.05}",
        "  latency: {requests: 500}",
        None,
        "gate.latency.p99 is wrong\n  expected: p50 or p99, such as p99: 20ms; found: neither",
    ),
    "a measure without a limit": (
        "  ece: {max: 0.05}",
        "  brier: {margin: 0.1}",
        None,
        "gate.brier.max is wrong\n  expected: max, or not_worse_than: champion; found: neither",
    ),
    "a size that is none": (
        "  ece: {max: 0.05}",
        "  size: {max: 5 apples}",
        None,
        "gate.size.max is wrong\n  expected: a number of bytes, or a number and a unit, such as 50 MB or 1.5 GiB",
    ),
    "a metric that is not measured": (
        "  ece: {max: 0.05}",
        "  own: {include.money:cost: {max: 3}}",
        None,
        "gate.own names include.money:cost\n  expected: one of train.metrics: it names none; found",
    ),
    "a parameter that may not differ": (
        "  cluster: local",
        "  search: {trials: 3, space: {stop_on: [auc, logloss]}}",
        None,
        "the search's space names stop_on\n  expected: what may differ between trials; found: stop_on, which must",
    ),
    "a budget of money without a price": (
        "  cluster: local",
        "  search: {usd: 3, space: {max_depth: [3, 6]}}",
        None,
        "train.search.usd needs a price\n  expected: train.usd_per_hour, what one worker costs; found: none",
    ),
    "trials at once on one worker": (
        "  cluster: local",
        "  search: {trials: 3, parallel: 2, space: {max_depth: [3, 6]}}",
        None,
        "train.search.parallel does not fit the cluster\n  expected: 1: cluster local has one worker; found: 2",
    ),
    # what later stages may bring is not silently taken
    "a roll-out": (
        "  port: 8500",
        "  rollout: {steps: [10, 50, 100], wait: 10m}",
        None,
        "deploy.rollout is not a key of the spec\n  expected: one of parity_rows, port, settings, target",
    ),
    "an approval by a role": (
        "  ece: {max: 0.05}",
        "  approval: {by: admins}",
        None,
        "gate.approval",
    ),
    "an approval that is over at once": (
        "  ece: {max: 0.05}",
        "  approval: {by: [ann], within: 0s}",
        None,
        "gate.approval.within is wrong\n  expected: longer than nothing, or null; found: 0s",
    ),
    "an approver twice": (
        "  ece: {max: 0.05}",
        '  approval: {by: [ann, {id: "3", name: ann}]}',
        None,
        "gate.approval.by is wrong\n  expected: each user once; found: ann twice",
    ),
    "a target in a cloud": (
        "target: local",
        "target: azure",
        None,
        "deploy.target is wrong\n  expected: local, sagemaker or vertex; found: azure",
    ),
    "a target in a cloud without its settings": (
        "target: local",
        "target: sagemaker",
        "deploy:",
        "deploy.settings is wrong\n  expected: artifacts: an S3 folder",
    ),
    "Vertex AI without a region": (
        "target: local",
        "settings: {artifacts: 'gs://models', image: x}\n  target: vertex",
        None,
        "deploy.settings is wrong\n  expected: region: such as europe-west1",
    ),
    "steps of Vertex AI that fall": (
        "target: local",
        "settings: {artifacts: 'gs://models', image: x, region: europe-west1, steps: [50, 10]}\n  target: vertex",
        None,
        "deploy.settings is wrong\n  expected: steps: rising percents, the last one 100",
    ),
    "spot machines for an endpoint": (
        "target: local",
        "settings: {artifacts: 's3://models', spot: true}\n  target: sagemaker",
        None,
        "deploy.settings is wrong\n  expected: serverless, asynchronous with a minimum of 0",
    ),
    "a cluster that there is not": (
        "cluster: local",
        "cluster: emr",
        None,
        "gateway, kubernetes, ec2, gce, sagemaker, vertex, or the id of a connection of type dask; found: emr",
    ),
    "SageMaker without its settings": (
        "  cluster: local",
        "  cluster_settings: {image: x, instances: [ml.m5.xlarge]}\n  cluster: sagemaker",
        "cluster: local",
        "train.cluster_settings is wrong\n  expected: role: ARN of the role that the job runs as",
    ),
    "a setting that SageMaker has not": (
        "  cluster: local",
        "  cluster_settings: {image: x, role: r, instances: [ml.m5.xlarge], max_runtme: 60}\n  cluster: sagemaker",
        "cluster: local",
        "did you mean max_runtime?",
    ),
    "a setting of Vertex AI of another type": (
        "  cluster: local",
        "  cluster_settings: {image: x, region: r, machines: [n1-standard-4], max_runtime: long}\n  cluster: vertex",
        "cluster: local",
        "expected: a whole number; found: 'long'",
    ),
    "spot in a cloud without checkpoints": (
        "  cluster: local",
        "  spot: {}\n  cluster_settings: {image: x, role: r, instances: [ml.m5.xlarge]}\n  cluster: sagemaker",
        "cluster: local",
        'train.spot is wrong\n  expected: train.spot.checkpoint: a folder in s3://, or "{lake}/checkpoints"',
    ),
    "checkpoints where SageMaker cannot write": (
        "  cluster: local",
        "  spot: {checkpoint: /tmp/x}\n  cluster_settings: {image: x, role: r, instances: [ml.m5.xlarge]}\n"
        "  cluster: sagemaker",
        "cluster: local",
        "expected: an address in s3://, or one that starts with {lake}; found: /tmp/x",
    ),
    "spot beside the settings of a cloud": (
        "  cluster: local",
        "  cluster_settings: {image: x, region: r, machines: [n1-standard-4], spot: true}\n  cluster: vertex",
        "cluster: local",
        "write train.spot: {checkpoint: ...} beside cluster_settings",
    ),
    "a lake that SageMaker cannot read": (
        "  cluster: local",
        "  cluster_settings: {image: x, role: r, instances: [ml.m5.xlarge]}\n  cluster: sagemaker",
        "  lake: include",
        "places.lake is out of reach of SageMaker\n  expected: an address in s3://",
    ),
    "a cluster on Kubernetes without an image": (
        "  cluster: local",
        "  cluster_settings: {namespace: ml}\n  cluster: kubernetes",
        "cluster: local",
        "train.cluster_settings is wrong\n  expected: image; found: none",
    ),
    "a setting that the cluster has not": (
        "  cluster: local",
        "  cluster_settings: {image: 'train:1', gpu: 1}\n  cluster: kubernetes",
        "cluster: local",
        "found: gpu; did you mean gpus?",
    ),
    "settings of a cluster that is not made": (
        "  cluster: local",
        "  cluster_settings: {image: 'train:1'}\n  cluster: local",
        "cluster: local",
        "expected: no settings, because cluster is local; found: image",
    ),
    "an unknown way to load the warehouse": (
        "alerts: []",
        "warehouse: {load: write-api}\nalerts: []",
        None,
        "expected: load_job or write_api; found: write-api",
    ),
    "a warehouse that is clustered by a column that it has not": (
        "alerts: []",
        "warehouse: {cluster_by: [carier]}\nalerts: []",
        None,
        "did you mean carrier?",
    ),
    "a warehouse that may bill nothing": ("alerts: []", "warehouse: {max_bytes: 0}\nalerts: []", None, "found: 0"),
    "an unknown key of the warehouse": (
        "alerts: []",
        "warehouse: {region: EU}\nalerts: []",
        None,
        "expected: one of cluster_by, kms, labels, load, location, max_bytes; found: region",
    ),
    "a label that is no text": ("alerts: []", "warehouse: {labels: {team: 7}}\nalerts: []", None, "team"),
    "a cluster that is no id": ("cluster: local", "cluster: 'dask: prod'", None, "train.cluster is wrong"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_refused_with_its_place_and_what_is_allowed(refused, case):
    old, new, where, said = WRONG[case]
    message = refused((old, new))
    line = line_of(where or old.strip().splitlines()[0])
    assert message.startswith(f"flights.yaml:{line}: "), message
    assert said in message
    assert "\n  expected: " in message
    for word in ("input should", "pydantic", "instance of", "validation"):
        assert word not in message.lower(), "the words of a library, not of this one"


def test_the_spec_of_the_demonstration_and_that_of_the_tests_are_sound(tmp_path):
    spec = load_spec(FLIGHTS)
    assert spec.name == "flights" and spec.schedule.monitor == "nightly"
    assert spec.train.window == dt.timedelta(days=120) and spec.monitor.drift.nights == (2, 3)
    path = tmp_path / "orders.yaml"
    path.write_text(shops.spec_text(tmp_path))
    assert load_spec(path).source.joins[1].columns["opened"].type == "int", "the short form of a looked-up column"


def test_the_gates_of_the_documentation_are_taken(tmp_path):
    blocks = (FLIGHTS.parents[2] / "docs/howto/gate.md").read_text().split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        shown = yaml.load(block.split("```")[0], SpecLoader)
        whole = yaml.load(FLIGHTS.read_text(), SpecLoader)
        path = tmp_path / "flights.yaml"
        path.write_text(yaml.safe_dump(whole | shown | {"train": whole["train"] | shown.get("train", {})}))
        load_spec(path)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(refused):
    message = refused(("port: 8500", "port: eighty"), ("owner: ops", "ownr: ops"), ("max: 0.05", "max: 5"))
    lines = [line for line in message.splitlines() if line.startswith("flights.yaml:")]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["ownr", "gate.ece.max", "deploy.port"]


def test_what_stands_in_the_sketch_is_taken(spoilt):
    spec = load_spec(
        spoilt(
            ("alerts: []", "alerts: [{slack: ops}, {email: [ops@example.com]}, {pagerduty: oncall}]"),
            ("delay: 1h", "delay: 10m"),
            ("columns: {leave_out: [weekday]}", "columns: {only: [hour, wind]}"),
            ("train: weekly", "train: 30 2 * * MON"),
            ("ingest: daily", "ingest: null"),
            ("warehouse: include/data/warehouse.duckdb", "warehouse: null"),
            ("cluster: local", "cluster: dask_prod"),
            ("bad_rows: 30%", "bad_rows: 1e-1"),
            (TAILNUM, "tailnum: {type: string, required: true, privacy: {hash: tailnum_key}}"),
        )
    )
    assert [alert.model_dump() for alert in spec.alerts] == [
        {"slack": "ops", "at": "info"},
        {"email": ["ops@example.com"], "at": "info"},
        {"pagerduty": "oncall", "at": "critical"},
    ]
    assert spec.source.joins[0].delay == dt.timedelta(minutes=10)
    assert set(spec.left_out) == set(spec.features) - {"hour", "wind"}
    assert spec.schedule.ingest is None and spec.places.warehouse is None
    assert spec.contract.limits.bad_rows == 0.1
    assert spec.sample.by == ["tailnum"], "a hashed column still tells entities apart"


# --- profiles ---------------------------------------------------------------------------------------------------------


def profile(path, text, name="production"):
    path.with_name(f"flights.{name}.yaml").write_text(text)


def test_a_profile_changes_places_and_sizes(spoilt, monkeypatch):
    path = spoilt()
    profile(path, "places: {lake: 's3://prod/lake'}\ntrain: {cluster: dask_prod, workers: 4}\nalerts: [{slack: ops}]\n")
    spec = load_spec(path, "production")
    assert spec.places.lake == "s3://prod/lake" and spec.places.landing == "include/data/landing"
    assert spec.train.workers == 4 and spec.train.params["rounds"] == 300
    assert load_spec(path).places.lake == "include/data/lake"
    monkeypatch.setenv("SML_PROFILE", "production")
    assert load_spec(path).places.lake == "s3://prod/lake"
    assert load_spec(path, "").places.lake == "include/data/lake", "an empty name is no profile"
    assert spec.dataset.hash == load_spec(path, "").dataset.hash
    profile(path, "spark: {on: emr-serverless}\nwarehouse: {location: EU, labels: {team: ops}}\nencryption: required\n")
    spec = load_spec(path)
    assert (spec.spark.on, spec.warehouse.location, spec.encryption) == ("emr-serverless", "EU", "required")


def test_a_profile_says_who_decides_but_not_what_a_version_must_fulfil(spoilt):
    path = spoilt()
    profile(path, "gate: {approval: {by: [ann], within: null}}\n")
    spec = load_spec(path, "production")
    assert spec.gate.approval.by == ["ann"] and spec.gate.approval.within is None and spec.gate.ece.max == 0.05
    assert load_spec(path).gate.approval == "none"
    profile(path, "gate: {approval: none, ece: {max: 1}}\n")
    with pytest.raises(PipelineSpecError, match=r"a profile cannot change gate\n.*of gate its approval alone"):
        load_spec(path, "production")


def test_an_unknown_profile_is_refused_with_those_that_are_there(spoilt, refused, monkeypatch):
    assert "has no profile production" in refused(profile="production")
    assert "flights.production.yaml beside it; found: none" in refused(profile="production")
    path = spoilt()
    profile(path, "owner: a\n")
    profile(path, "owner: a\n", "staging")
    message = refused(profile="prodction")
    assert "expected: one of production, staging; found: prodction; did you mean production?" in message
    assert "has no profile ../x" in refused(profile="../x")
    monkeypatch.setenv("SML_PROFILE", "nowhere")
    assert "has no profile nowhere" in refused()


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("owner: a\nfeatures: {hour: minute}\n", 2, "a profile cannot change features"),
        ("label: dep_delay > 5\n", 1, "expected: one of alert_again_after, alerts, deploy, encryption, monitor"),
        ("owner: a\ntrain:\n  windw: 3 days\n", 3, "train.windw is not a key of the spec"),
        ("deploy:\n  port: none\n", 2, "deploy.port is wrong"),
        ("- a\n", 1, "the file is wrong"),
        ("", 1, "the file is empty"),
        ("sample: {by: [tailnumber]}\n", 1, "did you mean tailnum?"),
    ],
)
def test_a_mistake_of_a_profile_is_told_with_the_line_of_the_profile(spoilt, refused, text, where, said):
    profile(spoilt(), text)
    message = refused(profile="production")
    assert message.startswith(f"flights.production.yaml:{where}: "), message
    assert said in message


# --- the schema for editors -------------------------------------------------------------------------------------------


def test_the_stored_schema_is_that_of_the_models():
    stored = json.loads(SCHEMA.read_text())
    assert stored == spec_schema(), (
        f"write it anew: python -m airflow_provider_sml.pipelines schema > {SCHEMA.relative_to(Path.cwd())}"
    )
    jsonschema.Draft202012Validator.check_schema(stored)


def test_specs_that_load_fulfil_the_schema(tmp_path):
    validator = jsonschema.Draft202012Validator(spec_schema())
    for text in (FLIGHTS.read_text(), shops.spec_text(tmp_path)):
        assert [error.message for error in validator.iter_errors(yaml.load(text, SpecLoader))] == []


@pytest.mark.parametrize(
    "case",
    ["unknown key", "unknown key of a column", "text for a number", "a number that is too large", "an unknown type",
     "a word for a boolean", "the name of a feature", "a missing type", "an alert", "a share", "a target in a cloud"],
)  # fmt: skip
def test_an_editor_sees_what_the_schema_can_say(spoilt, case):
    value = yaml.load(spoilt(WRONG[case][:2]).read_text(), SpecLoader)
    assert not jsonschema.Draft202012Validator(spec_schema()).is_valid(value)


def test_every_key_is_described_for_editors():
    schema = spec_schema()
    nodes = {"spec": schema, **schema["$defs"]}
    missing = [
        f"{name}.{key}"
        for name, node in nodes.items()
        for key, child in node.get("properties", {}).items()
        if not child.get("description")
    ]
    assert missing == []


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_checks_files(spoilt, capsys):
    assert main(["check", str(FLIGHTS)]) == 0
    assert capsys.readouterr().out == f"{FLIGHTS}: flights: 11 columns, 13 features, all right\n"
    bad = spoilt(("weather.wind_speed", "weather.wind_sped"))
    assert main(["check", str(FLIGHTS), str(bad), "none.yaml"]) == 1
    told = capsys.readouterr()
    assert "all right" in told.out
    assert f"PipelineSpecError: {bad}:{line_of('  wind: ')}: features.wind uses weather.wind_sped\n" in told.err
    assert "found: weather.wind_sped; did you mean weather.wind_speed?\n" in told.err
    assert "PipelineSpecError: none.yaml cannot be read" in told.err


def test_the_command_lays_a_profile_over(spoilt, capsys):
    path = spoilt()
    profile(path, "deploy: {port: 99999}\n")
    assert main(["check", str(path)]) == 0
    assert main(["check", str(path), "--profile", "production"]) == 1
    assert "flights.production.yaml:1: deploy.port is wrong" in capsys.readouterr().err


def test_the_command_prints_the_schema(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == spec_schema()


def test_checking_a_spec_loads_neither_airflow_nor_anything_heavy():
    code = (
        "import sys; from airflow_provider_sml.pipelines.__main__ import main; "
        f"assert main(['check', {str(FLIGHTS)!r}]) == 0; "
        "heavy = {'airflow', 'pyspark', 'pandas', 'numpy', 'xgboost', 'mlflow', 'dask', 'duckdb', 'pyarrow'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
