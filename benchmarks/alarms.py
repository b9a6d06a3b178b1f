"""The alarms of each month on the year of flights, with and without the control of false discoveries.

    python -m benchmarks.alarms

Every night of 2013 is compared, by its profile, with the merged profiles of the 56 nights before it; a column raises an
alarm when its distance is beyond the limit. With the control it must be a discovery too, by how the nights of that
window differ from their whole (Benjamini-Hochberg, 5 %). A night of drift is one where so large a share of the
columns raised one.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from airflow_provider_sml.ml.monitoring.profile import Kind, Profile, merge, of_batches
from airflow_provider_sml.ml.monitoring.reference import Reference
from airflow_provider_sml.ml.monitoring.sketch import Numbers
from airflow_provider_sml.ml.monitoring.verdicts import Judgement, Rules, judge

#: Nights before each that it is compared with.
WINDOW = 56
#: Nights listed as the worst of the year.
WORST = 16
KINDS: dict[str, Kind] = {
    "hour": "number", "distance": "number", "dep_delay": "number", "carrier": "category", "origin": "category",
    "cancelled": "number", "wind_speed": "number", "humid": "number", "visib": "number", "precip": "number",
    "pressure": "number", "temp": "number",
}  # fmt: skip
RULES = Rules(share=0.25, numeric=0.5, category=0.15)
#: Nights that are known to be strange: the storm Nemo, and the weeks of thunderstorms of June and July (by day).
STRANGE = {
    "Nemo, 8 and 9 February": [dt.date(2013, 2, 8), dt.date(2013, 2, 9)],
    "thunderstorms, 24 to 28 June": [dt.date(2013, 6, day) for day in range(24, 29)],
    "thunderstorms, 7 to 10 July": [dt.date(2013, 7, day) for day in range(7, 11)],
    "quiet, 4 to 10 November": [dt.date(2013, 11, day) for day in range(4, 11)],
}


def main() -> None:
    profiles = year()
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    told: dict[dt.date, tuple[Judgement, Judgement]] = {}
    for day in profiles:
        wanted = Reference("trailing", WINDOW).window(day)
        before = [profiles[past] for past in wanted if past in profiles]
        if len(before) < WINDOW // 2:
            continue
        reference = merge(before)
        with_control = judge(reference, profiles[day], RULES, before)
        without = judge(reference, profiles[day], Rules(**{**vars(RULES), "false_discovery": None}), before)
        told[day] = with_control, without
        month = counts[f"{day:%Y-%m}"]
        month[0] += 1
        for at, found in ((1, with_control), (3, without)):
            month[at] += len(found.drifted)
            month[at + 1] += found.verdict == "drift"
    print("month    nights   alarms  nights of drift   alarms  nights of drift")
    print("                  with the control          without it")
    for name, (nights, alarms, drift, loose, loose_drift) in sorted(counts.items()):
        print(f"{name}   {nights:4d}     {alarms:4d}      {drift:4d}            {loose:4d}      {loose_drift:4d}")
    worst = sorted(told, key=lambda day: _mean(profiles[day], "cancelled") * 240 + _mean(profiles[day], "dep_delay"))
    print(f"\nthe {WORST} worst nights, by cancelled flights (each as four hours late) and delay")
    for day in sorted(worst[-WORST:]):
        found = told[day][0]
        lost, late = _mean(profiles[day], "cancelled"), _mean(profiles[day], "dep_delay")
        print(f"  {day}  {lost:4.0%} cancelled {late:4.0f} min late  {found.verdict:5s}  {', '.join(found.drifted)}")
    for name, days in STRANGE.items():
        print(f"\n{name}")
        for day in days:
            found = told[day][0]
            print(f"  {day}  {found.verdict:5s}  {', '.join(found.drifted)}")


def _mean(profile: Profile, column: str) -> float:
    values = profile.columns[column].values
    return values.mean if isinstance(values, Numbers) else 0.0


def year() -> Mapping[dt.date, Profile]:
    """The profile of each day of the flights, by local day, with the weather of its hours."""
    import zipfile

    import duckdb

    from include.demo.landing import _package_data

    data = _package_data()
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    target = Path("build") / "alarms"
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        archive.extract("flights.csv", target)
    rows = connection.sql(
        f"""
        SELECT make_date(f.year, f.month, f.day) AS day, f.hour, f.distance, f.dep_delay, f.carrier, f.origin,
               CAST(f.dep_time IS NULL AS DOUBLE) AS cancelled,
               w.wind_speed, w.humid, w.visib, w.precip, w.pressure, w.temp
        FROM read_csv('{target}/flights.csv', nullstr='NA') AS f
        LEFT JOIN read_csv('{data}/weather.csv', nullstr='NA') AS w USING (origin, time_hour) ORDER BY day
        """
    ).to_arrow_table()
    print(f"{rows.num_rows:,} flights", file=sys.stderr)
    import pyarrow.compute as pc

    days = rows.column("day")
    return {day: of_batches([rows.filter(pc.equal(days, day))], KINDS) for day in pc.unique(days).to_pylist()}


if __name__ == "__main__":
    main()
