"""The contract of a dataset: where it comes from, what its columns promise, what a model is fed.

Pydantic models only; what follows from them is in ``dataset``. Imports nothing heavy: DAG files load this.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic import Strict as Exactly
from pydantic_core import PydanticCustomError

from airflow_provider_sml.ml.contract.quantities import EXPECTED, Duration, Share

A_NAME = "a name such as late_flights: lower case, single underscores, at most 48 characters"
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=48),
    Field(json_schema_extra={EXPECTED: A_NAME}),
]
"""Lower-case words joined by single underscores; two underscores part a join's name from its column in files."""

Formula = Annotated[str, Field(json_schema_extra={EXPECTED: "an expression such as hour(time_hour) >= 18"})]
"""An expression of ``ml.expressions``."""

# Numbers and booleans as they stand there: pydantic would take the text "8500" for a number, and "yes" for true.
Whole = Annotated[int, Exactly()]
Number = Annotated[float, Exactly(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Exactly()]

ColumnType = Literal["int", "double", "string", "boolean", "timestamp", "date"]


class Strict(BaseModel):
    """Base of every part of a spec: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def misfit(key: str | None, expected: str, found: object, todo: str | None = None) -> PydanticCustomError:
    """The error of a validator, in the form of our own errors.

    :param key: of a model's validator, the key that is wrong; None when the validator is that of one key.
    :param expected: what would have been right.
    :param found: what stands there.
    :param todo: what the reader can do about it.
    """
    context = {"key": key or "", "expected": expected, "found": str(found), "todo": todo or ""}
    return PydanticCustomError("misfit", ("{key}: " if key else "") + "expected {expected}, found {found}", context)


class HashPrivacy(Strict):
    """Replace a value by its HMAC-SHA256 (RFC 2104) in hexadecimal; equal values stay equal, nothing can be read back.

    :param hash: the Airflow connection whose password is the key.
    """

    hash: str


class GeneralisePrivacy(Strict):
    """Coarsen a date or a timestamp to the first moment of its month or year.

    :param generalise: ``month`` or ``year``.
    """

    generalise: Literal["month", "year"]


class PrefixPrivacy(Strict):
    """Keep only the beginning of a text, as of a postal code.

    :param prefix: number of characters kept.
    """

    prefix: Whole = Field(ge=1, le=64)


class Repair(Strict):
    """What is mended before the rules are asked; always in the order of the parameters, and nothing else ever is.

    :param trim: remove blanks around a text.
    :param case: turn a text's ASCII letters to ``upper`` or ``lower``.
    :param map: a text on the left becomes the one on the right.
    :param clip: move a number outside the range to the nearer end.
    :param default: what stands for a value that is missing; a value of a wrong type is never replaced.
    """

    trim: Flag = False
    case: Literal["upper", "lower"] | None = None
    map: dict[str, str] = {}
    clip: Flag = False
    default: Flag | Whole | Number | str | None = None


class Values(Strict):
    """What a value may be; shared by the contract's own columns and by joined ones.

    :param type: type of the column. Timestamps are UTC.
    :param range: smallest and largest allowed value, inclusive; null leaves a side open.
    :param values: the allowed values; for a category they also fix its codes, by position.
    :param description: for readers.
    :param from: where the source has it, when not under the column's own name: another name, or a path of names such
        as ``payload.user.id`` in nested JSON and Parquet (elements of arrays cannot be named).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    type: ColumnType
    source: str | None = Field(default=None, alias="from", min_length=1)
    range: tuple[Number | None, Number | None] | None = None
    values: list[str] | list[Whole] | None = Field(default=None, min_length=1)
    description: str | None = None

    @model_validator(mode="after")
    def _range_fits(self) -> Values:
        if self.range is not None:
            if self.type not in ("int", "double"):
                raise misfit("range", "no range, which is for int and double", f"a column of type {self.type}")
            low, high = self.range
            if low is not None and high is not None and low > high:
                raise misfit("range", "[smallest, largest]", f"[{low:g}, {high:g}]")
        return self

    @model_validator(mode="after")
    def _values_fit(self) -> Values:
        if self.values is not None:
            wanted = {"int": int, "string": str}.get(self.type)
            if wanted is None:
                raise misfit("values", "no values, which are for int and string", f"a column of type {self.type}")
            other = next((value for value in self.values if type(value) is not wanted), None)
            if other is not None:
                quoted = "; put texts that look like numbers in quotes" if wanted is str else ""
                raise misfit("values", f"each of type {self.type}{quoted}", other)
            twice = next((value for n, value in enumerate(self.values) if value in self.values[:n]), None)
            if twice is not None:
                raise misfit("values", "each value once", f"{twice} twice")
        return self


class Column(Values):
    """A column of the dataset.

    :param required: whether NULL is refused.
    :param known: ``before`` the event, so that a feature may use it, or only ``after``.
    :param privacy: ``drop`` (not stored), ``mask`` (stored as ``***``), ``{hash: connection}``,
        ``{generalise: month}``, ``{generalise: year}`` or ``{prefix: 3}``.
    :param optional: whether files may lack the column; its values are NULL then. Otherwise such a file is refused.
    :param repair: what is mended; without it a value that breaks a rule sends its row to quarantine.
    """

    required: Flag = False
    known: Literal["before", "after"] = "before"
    privacy: Literal["drop", "mask"] | HashPrivacy | GeneralisePrivacy | PrefixPrivacy | None = None
    optional: Flag = False
    repair: Repair | None = None

    @model_validator(mode="after")
    def _privacy_fits(self) -> Column:
        if isinstance(self.privacy, GeneralisePrivacy):
            if self.type not in ("date", "timestamp"):
                raise misfit("privacy", "generalise for date and timestamp only", f"a column of type {self.type}")
        elif self.privacy not in (None, "drop") and self.type != "string":
            raise misfit("privacy", "drop: mask, hash and prefix are for string", f"a column of type {self.type}")
        if self.optional and self.required and (self.repair is None or self.repair.default is None):
            raise misfit("optional", "false: a required column cannot be lacking", "true")
        return self

    @model_validator(mode="after")
    def _repair_fits(self) -> Column:
        repair = self.repair
        if repair is None:
            return self
        if (repair.trim or repair.case or repair.map) and self.type != "string":
            raise misfit("repair", "no trim, case or map, which are for string", f"a column of type {self.type}")
        if repair.clip and self.range is None:
            raise misfit("repair", "a range to clip to", "no range")
        if repair.clip and self.type == "int" and any(end is not None and end % 1 for end in self.range or ()):
            raise misfit("repair", "clip to a range of whole numbers", list(self.range or ()))
        if repair.default is not None:
            kinds: dict[str, tuple[type, ...]] = {
                "int": (int,), "double": (int, float), "string": (str,), "boolean": (bool,),
            }  # fmt: skip
            if type(repair.default) not in kinds.get(self.type, ()):
                raise misfit("repair", f"a default of type {self.type}, and none for times", repr(repair.default))
        return self


class RowBand(Strict):
    """How far the rows of a day may lie from the mean of the days before.

    :param within: largest relative distance, such as 60%.
    :param of: how far back to look, such as 28 days; with fewer than 7 days there, nothing is checked.
    """

    within: Share
    of: Duration


class Limits(Strict):
    """What a whole day must fulfil to become visible.

    :param bad_rows: largest share of rows in quarantine.
    :param bad_number: largest number of rows in quarantine.
    :param repaired_rows: largest share of rows that were repaired.
    :param rows: band of the number of rows.
    :param fresh: the newest event may be at most this much older than the end of the day.
    """

    bad_rows: Share = 0.01
    bad_number: Whole | None = Field(default=None, ge=0)
    repaired_rows: Share = 1.0
    rows: RowBand | None = None
    fresh: Duration | None = None


class Contract(Strict):
    """What the rows of a dataset promise.

    :param key: the columns that name a row; of rows with one key, the one with the latest event time is kept.
    :param unique: among which rows a key is looked for: those of one ``day`` of the event time, so that a range of days
        gives what its days give one by one, or all those of a ``run``.
    :param event_time: the timestamp column that says when the event is or was due.
    :param partition: the unit that is published and replaced; ``day`` of the event time, UTC.
    :param late: what becomes of a row whose event lies on an earlier day than its file: ``refuse`` sends it to
        quarantine; ``republish`` puts it into the day of its event, which is published again, whole.
    :param late_up_to: how many days late a row may be; later ones go to quarantine.
    :param shard: the columns whose rows stay together in one file of a large day; the key when empty.
    :param columns: the columns by name. Source columns that are not listed are not read.
    :param limits: what a day must fulfil.
    """

    key: list[Name] = Field(min_length=1)
    unique: Literal["day", "run"] = "day"
    event_time: Name
    partition: Literal["day"] = "day"
    late: Literal["refuse", "republish"] = "refuse"
    late_up_to: Duration = Field(default="7 days", validate_default=True)
    shard: list[Name] = []
    columns: dict[Name, Column] = Field(min_length=1)
    limits: Limits = Limits()


def _long_form(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


LookedUp = Annotated[Values, BeforeValidator(_long_form, json_schema_input_type=ColumnType | Values)]
"""``visib: double`` is short for ``visib: {type: double}``."""


class Join(Strict):
    """Columns looked up from another file.

    Without ``as_of``: the row with equal ``on``. With it: of the rows with equal ``on``, the latest whose ``as_of`` is
    at least ``delay`` and at most ``tolerance`` before the event, so that a row never sees what came after it.
    A looked-up value outside its range or values becomes NULL and is counted.

    :param name: how features call it: ``name.column``.
    :param path: the file; with ``{date}`` one a day.
    :param format: of the file: ``csv`` with a header line, ``json`` lines, or ``parquet``.
    :param on: columns of both sides that must be equal.
    :param as_of: the timestamp column of the looked-up file.
    :param delay: how long it takes until a measurement is known.
    :param tolerance: how old a measurement may be.
    :param columns: the looked-up columns.
    """

    name: Name
    path: str
    format: Literal["csv", "json", "parquet"] = "csv"
    on: list[Name] = Field(min_length=1)
    as_of: Name | None = None
    delay: Duration = Field(default="0s", validate_default=True)
    tolerance: Duration = Field(default="1 day", validate_default=True)
    columns: dict[Name, LookedUp] = Field(min_length=1)


class Source(Strict):
    """Where the raw rows are.

    :param format: of the files: ``csv`` with a header line, ``json`` lines, or ``parquet``.
    :param path: the files of a day: one, all that fit a pattern (``{landing}/{date}/*.json.gz``) or a folder;
        ``{date}`` is the day, other names in braces are places of the spec. Files that end in ``.gz`` are unpacked.
    :param null_values: texts that mean NULL.
    :param joins: what is looked up for each row.
    """

    format: Literal["csv", "json", "parquet"] = "csv"
    path: str
    null_values: list[str] = ["", "NA"]
    joins: list[Join] = []

    @field_validator("path")
    @classmethod
    def _by_day(cls, value: str) -> str:
        if "{date}" not in value:
            raise misfit(None, "one file a day: a path with {date} in it", value)
        return value
