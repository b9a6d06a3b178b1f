"""Whether what the nights found asks for training: a pure function of the stored nights up to one.

Nothing here reads a file or a clock (``nights`` does). A night's decision follows from the nights up to it and from
what was asked of each: its policy, and a person's word. So it comes out the same whenever, and in whatever order,
nights are filled in again; what was asked for on earlier nights is worked out anew from the first one on.

- A night counts when its severity reaches that of the policy; only nights of the version in production count, because
  those of a version that was replaced ask for nothing.
- ``N of M`` of the last nights must count.
- A cool-down after each request, and a budget of requests in a sliding window, hold further ones back; the finding
  stays a finding, and people are told.
- A person's word goes before all of that, for its night.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["quiet", "info", "warning", "critical"]
Action = Literal["none", "alert", "retrain"]
SEVERITIES: tuple[Severity, ...] = ("quiet", "info", "warning", "critical")
#: How many times its limit a column's distance counts at most, so that one broken column does not hide all others.
MOST_EXCESS = 10.0
_CAUSES = 10


@dataclass(frozen=True)
class Policy:
    """When training is asked for.

    :param nights: how many of how many nights must count.
    :param severity: from which on a night counts.
    :param cool_down: days after a request in which there is no other; 0 for none.
    :param budget: most requests in ``budget_days``; None for any number.
    :param budget_days: length of the budget's window, in days.
    """

    nights: tuple[int, int] = (1, 1)
    severity: Severity = "warning"
    cool_down: int = 7
    budget: int | None = 4
    budget_days: int = 30

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Policy:
        """What was stored of one."""
        wanted, of = stored["nights"]
        return cls(**{**stored, "nights": (int(wanted), int(of))})


@dataclass(frozen=True)
class Override:
    """A person's word about one night.

    :param action: ``hold`` asks for nothing, ``force`` asks whatever was found.
    :param by: who said so, or where it was found.
    """

    action: Literal["hold", "force"]
    by: str


@dataclass(frozen=True)
class Night:
    """What is stored of a night.

    :param day: the day.
    :param version: the version in production.
    :param findings: ``kind``, ``severity`` and ``text`` of each.
    :param columns: the columns that drifted, with their distance over its limit.
    :param importance: share of each feature in what the model decides.
    :param policy: that was in force.
    :param override: what a person said.
    """

    day: dt.date
    version: str
    findings: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, float] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    policy: Policy = Policy()
    override: Override | None = None

    @property
    def severity(self) -> Severity:
        """That of the gravest finding."""
        return max((finding["severity"] for finding in self.findings), key=SEVERITIES.index, default="quiet")

    @property
    def counts(self) -> bool:
        """Whether it counts by its policy."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(self.policy.severity)


@dataclass(frozen=True)
class Decision:
    """What follows a night.

    :param day: the night's day.
    :param version: the version in production.
    :param action: ``retrain`` asks for training, ``alert`` tells people alone, ``none`` does nothing.
    :param severity: the gravest of the nights that counted; that of the night itself when too few did.
    :param because: why, in one sentence.
    :param counted: the nights that counted, of the last ones.
    :param wanted: how many of how many had to, such as ``3 of 5``.
    :param causes: features ranked by drift times importance: ``feature``, ``weight`` (their shares of the whole),
        ``excess`` (largest distance over its limit), ``importance``, ``nights``.
    :param findings: of the night.
    :param asked_before: earlier nights of the budget's window that asked for training.
    :param override: what a person said.
    """

    day: str
    version: str
    action: Action
    severity: Severity
    because: str
    counted: list[str]
    wanted: str
    causes: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    asked_before: list[str]
    override: dict[str, str] | None

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)

    def reasons(self) -> dict[str, Any]:
        """What the event that starts training carries: short, plain JSON."""
        return {
            "day": self.day,
            "version": self.version,
            "severity": self.severity,
            "because": self.because,
            "nights": ", ".join(self.counted),
            "causes": [f"{cause['feature']} ({cause['weight']:.0%})" for cause in self.causes[:5]],
            "findings": [str(finding["text"]) for finding in self.findings[:5]],
        }


def decide(nights: Sequence[Night]) -> Decision:
    """The decision of the last of some nights.

    :param nights: all stored nights up to the one that is asked about, in any order; at least one.
    """
    return decide_all(nights)[-1]


def decide_all(nights: Sequence[Night]) -> list[Decision]:
    """The decision of each night, the first one first: each knows of the requests before it.

    :param nights: all stored nights, in any order.
    """
    ordered = sorted(nights, key=lambda night: night.day)
    asked: list[dt.date] = []
    found = []
    for position, night in enumerate(ordered):
        decision = _decide(ordered[: position + 1], asked)
        found.append(decision)
        if decision.action == "retrain":
            asked.append(night.day)
    return found


def _decide(nights: Sequence[Night], asked: Sequence[dt.date]) -> Decision:
    night = nights[-1]
    policy, (wanted, of) = night.policy, night.policy.nights
    counted = [one for one in [n for n in nights if n.version == night.version][-of:] if one.counts]
    enough = len(counted) >= wanted
    action, because = _action(night, len(counted), asked)
    recent = [day for day in asked if night.day - day < dt.timedelta(days=policy.budget_days)]
    return Decision(
        day=night.day.isoformat(),
        version=night.version,
        action=action,
        severity=max((one.severity for one in counted), key=SEVERITIES.index) if enough else night.severity,
        because=because,
        counted=[one.day.isoformat() for one in counted],
        wanted=f"{wanted} of {of}",
        causes=causes(counted or [night]),
        findings=[dict(finding) for finding in night.findings],
        asked_before=[day.isoformat() for day in recent],
        override=None if night.override is None else asdict(night.override),
    )


def _action(night: Night, counted: int, asked: Sequence[dt.date]) -> tuple[Action, str]:
    """What to do, and why."""
    policy, override, (wanted, of) = night.policy, night.override, night.policy.nights
    if override and override.action == "force":
        return "retrain", f"training was forced by {override.by}"
    many = "1 night" if of == 1 else f"{counted} of the last {of} nights"
    if counted < wanted:
        return (
            "none",
            f"{many if of > 1 else 'the night'} counted, {wanted} of {of} must" if counted else "nothing counted",
        )
    if override:
        return "alert", f"{many} counted; training is held back by {override.by}"
    last = max(asked, default=None)
    if last is not None and policy.cool_down and night.day < last + dt.timedelta(days=policy.cool_down):
        until = last + dt.timedelta(days=policy.cool_down)
        return "alert", f"{many} counted; training was asked for on {last}, and cools down until {until}"
    spent = [day for day in asked if night.day - day < dt.timedelta(days=policy.budget_days)]
    if policy.budget is not None and len(spent) >= policy.budget:
        text = f"{len(spent)} of {policy.budget} trainings in {policy.budget_days} days are used up"
        return "alert", f"{many} counted; {text}"
    return "retrain", f"{many} counted, {wanted} of {of} must"


def causes(nights: Sequence[Night]) -> list[dict[str, Any]]:
    """Features ranked by how far they drifted times what they matter to the model, summed over some nights.

    Where nobody knows what matters, all features matter alike. The score, which follows from the features, is none.

    :param nights: that counted.
    """
    weights: dict[str, float] = {}
    seen: dict[str, list[tuple[float, float]]] = {}
    for night in nights:
        for name, excess in night.columns.items():
            if name == "score":
                continue
            importance = night.importance.get(name, 0.0) if night.importance else 1.0 / len(night.columns)
            weights[name] = weights.get(name, 0.0) + min(excess, MOST_EXCESS) * importance
            seen.setdefault(name, []).append((excess, importance))
    total = sum(weights.values())
    ranked = sorted(weights, key=lambda name: (-weights[name], name))[:_CAUSES]
    return [
        {
            "feature": name,
            "weight": round(weights[name] / total, 4) if total else 0.0,
            "excess": round(min(max(excess for excess, _ in seen[name]), MOST_EXCESS), 4),
            "importance": round(seen[name][-1][1], 4),
            "nights": len(seen[name]),
        }
        for name in ranked
    ]
