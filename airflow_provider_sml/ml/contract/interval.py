"""Days and intervals as they come out of templates and forms."""

from __future__ import annotations

import datetime as dt

from airflow_provider_sml.errors import ConfigurationError


def parse_day(value: str, what: str) -> dt.date:
    """A day of a template.

    :raises ConfigurationError: when it is none.
    """
    try:
        return dt.date.fromisoformat(value.strip()[:10])
    except ValueError:
        raise ConfigurationError(f"{what} is no day", expected="YYYY-MM-DD", found=value) from None


def parse_interval(first: str, last: str) -> tuple[dt.date, dt.date]:
    """First and last day of templates, in order."""
    begin, end = parse_day(first, "first"), parse_day(last, "last")
    if begin > end:
        raise ConfigurationError(
            "the interval ends before it begins", expected="first <= last", found=f"{first}, {last}"
        )
    return begin, end
