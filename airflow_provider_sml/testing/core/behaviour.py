"""Where a fake's behaviour comes from, so that a reader knows how far to trust a test on it."""

from __future__ import annotations

from dataclasses import dataclass

DOCUMENTED, REPORTED, ASSUMED = "documented", "publicly reported", "assumed"


@dataclass(frozen=True)
class Behaviour:
    """One behaviour of a fake.

    :param service: such as ``sagemaker``.
    :param what: what the fake does, in one sentence.
    :param basis: ``documented``, ``publicly reported`` or ``assumed``.
    :param source: where that is written; for an assumption, why it was made.
    """

    service: str
    what: str
    basis: str
    source: str

    def __post_init__(self) -> None:
        if self.basis not in (DOCUMENTED, REPORTED, ASSUMED):
            raise ValueError(f"a behaviour is {DOCUMENTED}, {REPORTED} or {ASSUMED}, not {self.basis!r}")
