"""The space of a search: which values each hyper-parameter may take.

A number lies between two bounds, ``{min: 0.01, max: 0.3, log: true}``; anything else is one of a list, ``[a, b, c]``.
A number is whole where ``min``, ``max`` and ``step`` are written as whole numbers (``1.0`` is none), with ``log`` too.
Imports nothing heavy: DAG files load this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.model import Flag, Number, Strict, Whole, misfit
from airflow_provider_sml.ml.contract.quantities import EXPECTED

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: What must be the same in all trials, for their values to be comparable and their models to be of one kind.
FIXED = (
    "class_weights", "device", "eval_metric", "metrics", "monotone", "monotone_constraints", "nthread", "objective",
    "seed", "stop_on",
)  # fmt: skip


class Range(Strict):
    """Numbers from ``min`` to ``max``.

    :param min: smallest value.
    :param max: largest value.
    :param log: tried evenly by their order of magnitude, as suits a learning rate.
    :param step: distance of the values from ``min`` on; every one when null.
    """

    min: Whole | Number
    max: Whole | Number
    log: Flag = False
    step: Whole | Number | None = None

    @model_validator(mode="after")
    def _fits(self) -> Range:
        if not self.min < self.max:
            raise misfit("max", f"a number above min, which is {self.min:g}", self.max)
        if self.log and self.min <= 0:
            raise misfit("min", "a number above 0, because log is true", self.min)
        if self.log and self.step is not None:
            raise misfit("step", "no step, because log is true", self.step)
        if self.step is not None and not 0 < self.step <= self.max - self.min:
            raise misfit("step", f"a number above 0 and up to {self.max - self.min:g}, from min to max", self.step)
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return all(isinstance(value, int) for value in (self.min, self.max, self.step or 1))

    def holds(self, value: Any) -> bool:
        """Whether a value is of the range."""
        return type(value) in ((int,) if self.whole else (int, float)) and self.min <= value <= self.max


def _differ(values: list[Any]) -> list[Any]:
    if len({repr(value) for value in values}) < max(2, len(values)):
        raise misfit(None, _SOME_CHOICES, values)
    return values


_SOME_CHOICES = "two or more different values, such as [depthwise, lossguide]"
Choices = Annotated[
    list[Whole | Number | str | bool],
    AfterValidator(_differ),
    WithJsonSchema(
        {"type": "array", "items": {"type": ["integer", "number", "string", "boolean"]}, "minItems": 2,
         EXPECTED: _SOME_CHOICES}
    ),
]  # fmt: skip
Space = Annotated[
    dict[str, Range | Choices],
    Field(min_length=1, json_schema_extra={EXPECTED: "a mapping of parameters to {min, max, log, step} or a list"}),
]


def load_space(value: Mapping[str, Any]) -> dict[str, Range | list[Any]]:
    """A space from its keys as a dictionary.

    :param value: by parameter, ``{min, max, log, step}``, or a list of values.
    :raises ConfigurationError: when it is none.
    """
    try:
        space: dict[str, Range | list[Any]] = TypeAdapter(Space).validate_python(value)
    except ValidationError as error:
        items = error.errors(include_url=False)
        item = next((each for each in items if each["type"] == "misfit"), items[0])
        name = item["loc"][0] if item["loc"] else ""
        context = item.get("ctx", {})
        raise ConfigurationError(
            f"the search's space{f' of {name}' if name else ''} is wrong",
            expected=context.get("expected") or "{min, max, log, step}, or a list of values, by parameter",
            found=value.get(str(name)) if isinstance(value, Mapping) and name else value,
        ) from error
    for _, problem in space_problems(space):
        raise problem
    return space


def space_problems(space: Mapping[str, Range | list[Any]]) -> Iterator[tuple[str, ConfigurationError]]:
    """What is wrong with a space whose parts are well formed, by the parameter.

    :param space: by parameter.
    """
    for name in space:
        if name in FIXED:
            yield (
                name,
                ConfigurationError(
                    f"the search's space names {name}", expected="what may differ between trials",
                    found=f"{name}, which must be the same in all of them", todo="give it among the fixed parameters",
                ),
            )  # fmt: skip


def ends(space: Mapping[str, Range | list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parameters with every choice and both ends of every range in turn, and the name that it is the turn of.

    :param space: by parameter.
    """
    values = {name: [part.min, part.max] if isinstance(part, Range) else list(part) for name, part in space.items()}
    base = {name: found[0] for name, found in values.items()}
    for name, found in values.items():
        for value in found:
            yield name, base | {name: value}


def holds(space: Mapping[str, Range | list[Any]], params: Mapping[str, Any]) -> bool:
    """Whether parameters are of a space.

    :param space: by parameter.
    :param params: a value for each.
    """
    if set(space) != set(params):
        return False
    return all(
        part.holds(params[name]) if isinstance(part, Range) else params[name] in part for name, part in space.items()
    )


def distributions(space: Mapping[str, Range | list[Any]]) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it.

    :param space: by parameter.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, part in space.items():
        if not isinstance(part, Range):
            found[name] = CategoricalDistribution(part)
        elif part.whole:
            found[name] = IntDistribution(int(part.min), int(part.max), part.log, int(part.step or 1))
        else:
            found[name] = FloatDistribution(float(part.min), float(part.max), part.log, part.step)
    return found
