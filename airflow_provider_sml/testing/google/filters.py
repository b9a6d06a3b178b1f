"""The clauses of a list's filter, as Google's services take them (AIP-160), and what their signs mean."""

from __future__ import annotations

import re
from collections.abc import Callable

#: A field, a sign, and a value with or without quotes.
CLAUSE = re.compile(r'\s*([\w.-]+)\s*(<=|>=|!=|=|<|>|:)\s*("(?:[^"\\]|\\.)*"|[^\s"]+)\s*')
COMPARE: dict[str, Callable[[str, str], bool]] = {
    "=": lambda found, wanted: found == wanted,
    "!=": lambda found, wanted: found != wanted,
    "<": lambda found, wanted: found < wanted,
    "<=": lambda found, wanted: found <= wanted,
    ">": lambda found, wanted: found > wanted,
    ">=": lambda found, wanted: found >= wanted,
}
