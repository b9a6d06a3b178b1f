"""The history of a model's aliases: lines that only grow, chained by hashes; what was the champion at any time.

Each line is a tag of the registered model, ``sml.history.<hash>``, whose value is the line as JSON and whose key holds
the SHA-256 of that value, so a changed line does not fit its key. A line names the hashes of all lines that nothing
followed when it was written. MLflow has no "create if absent" for tags and needs none here: two writers at once write
two keys, both stay, and the next line follows both, as a merge does in git. A line that is gone is missed by the one
that follows it; the last one is missed by the version that it moved the alias to (``sml.alias.<alias>`` holds its
hash), and by whoever noted its hash: the log of each task that moves an alias shows it.

It cannot show that somebody with the right to write took away the last lines together with what the versions say, nor
that a line which he added is false. This module only computes; ``promotion`` reads and writes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from airflow_provider_sml.errors import ConfigurationError

#: Prefix of the keys of the lines among the tags of a registered model.
KEY = "sml.history."
#: MLflow's column for the value of such a tag takes 5000 characters; a piece of text is cut to this many.
_PIECE = 300
#: Characters of a line without what it follows.
_LINE = 4000
#: Lines that one line may follow; more without a follower are never there unless somebody has forged them.
_PARENTS = 10


@dataclass(frozen=True)
class Line:
    """One move of an alias.

    :param move: id of the move; two lines of one move count once.
    :param at: when it was moved, ISO 8601 in UTC.
    :param alias: the alias.
    :param before: version that it pointed to; empty when there was none.
    :param after: version that it points to since; empty when it was deleted.
    :param by: who or what moved it.
    :param evidence: what the move rests on, such as the gate's verdict and the rows compared.
    :param recorded: when and by whom the line was written, if not by the one who moved the alias.
    :param parents: hashes of the lines that it follows.
    """

    move: str
    at: str
    alias: str
    before: str
    after: str
    by: str
    evidence: dict[str, str] = field(default_factory=dict)
    recorded: str = ""
    parents: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The line as it is stored."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the stored line, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def time(self) -> dt.datetime:
        """When the alias was moved."""
        return dt.datetime.fromisoformat(self.at)

    @classmethod
    def load(cls, text: str) -> Line:
        """A stored line.

        :raises ValueError: when it is none.
        """
        value = json.loads(text)
        try:
            line = cls(**value)
            if line.time.tzinfo is None or not isinstance(line.evidence, dict) or not isinstance(line.parents, list):
                raise ValueError("a part of it is of another kind")
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error
        return line

    def shortened(self) -> Line:
        """The line with so much of its evidence as a tag can hold; what comes first goes last."""
        kept = {str(key)[:60]: str(value)[:_PIECE] for key, value in self.evidence.items() if str(value)}
        line = replace(self, evidence=kept, by=self.by[:_PIECE])
        while kept and len(line.text) > _LINE:
            kept.popitem()
        return line


class History:
    """The lines of a model, in their order.

    :param tags: of the registered model; those of others are left out.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self.damaged: list[str] = []
        found: dict[str, Line] = {}
        for key, text in tags.items():
            if not key.startswith(KEY):
                continue
            name = key.removeprefix(KEY)
            try:
                line = Line.load(text)
            except ValueError as error:
                self.damaged.append(f"the line {name[:12]} cannot be read: {error}")
                continue
            if hashlib.sha256(text.encode()).hexdigest() != name:
                self.damaged.append(
                    f"the line {name[:12]} was changed: it is {line.alias} to {line.after or 'none'} now"
                )
            found[name] = line
        self._stored = found
        depths = _depths(found)
        ordered = sorted(found, key=lambda name: (depths[name], found[name].at, name))
        once: dict[str, Line] = {}
        for name in ordered:
            once.setdefault(found[name].move, found[name])
        #: The moves, each once; a line comes after all that it follows.
        self.lines: list[Line] = list(once.values())

    @property
    def heads(self) -> list[str]:
        """Hashes of the lines that nothing follows."""
        followed = {parent for line in self._stored.values() for parent in line.parents}
        return sorted(set(self._stored) - followed)[:_PARENTS]

    def last(self, alias: str) -> Line | None:
        """The last move of an alias."""
        return next((line for line in reversed(self.lines) if line.alias == alias), None)

    def at(self, alias: str, time: dt.datetime) -> Line | None:
        """The move by which an alias pointed to what it pointed to at a time; None before the first.

        :param alias: the alias.
        :param time: with a time zone.
        """
        if time.tzinfo is None:
            raise ConfigurationError("the time has no zone", expected="such as 2026-01-31T12:00:00+00:00", found=time)
        return next((line for line in reversed(self.lines) if line.alias == alias and line.time <= time), None)

    def spells(self, alias: str) -> list[tuple[str, str, str]]:
        """Version, begin and end of each time that an alias pointed to a version; the end of the last one is empty."""
        lines = [line for line in self.lines if line.alias == alias]
        ends = [*(line.at for line in lines[1:]), ""]
        return [(line.after, line.at, end) for line, end in zip(lines, ends, strict=False) if line.after]

    def astray(self, aliases: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """The aliases that do not point to where their last line says: what the line says, and what is.

        :param aliases: version of each alias, as MLflow has it.
        """
        names = sorted({line.alias for line in self.lines} | set(aliases))
        said = {name: (last.after if (last := self.last(name)) else "") for name in names}
        return {name: (said[name], aliases.get(name, "")) for name in names if said[name] != aliases.get(name, "")}

    def problems(self, anchors: Iterable[tuple[str, str]], aliases: Mapping[str, str], head: str = "") -> list[str]:
        """What is wrong, in words; nothing when all is well.

        :param anchors: of each version that an alias was moved to, what it is, and the hash of the line by which.
        :param aliases: version of each alias, as MLflow has it.
        :param head: hash of a line, or its beginning, that somebody noted; empty for none.
        """
        wrong = list(self.damaged)
        for name, line in sorted(self._stored.items()):
            gone = [parent for parent in line.parents if parent not in self._stored]
            wrong += [f"the line {parent[:12]} is gone: {name[:12]} follows it" for parent in gone]
        for what, name in anchors:
            if name not in self._stored:
                wrong.append(f"the line {name[:12]} is gone: {what} was moved by it")
        if head and not any(name.startswith(head) for name in self._stored):
            wrong.append(f"the line {head[:12]} is gone: it was noted elsewhere")
        for alias, (said, found) in self.astray(aliases).items():
            wrong.append(
                f"{alias} points to {found or 'no version'}, and its last line says {said or 'none'}: it was moved by "
                "other means, or a writer was killed; the next move, or the command mend, writes the line"
            )
        return wrong


def _depths(lines: Mapping[str, Line]) -> dict[str, int]:
    """How many lines at most lie one after the other before each line; computed without recursion."""
    depths: dict[str, int] = {}
    waiting = list(lines)
    while waiting:
        name = waiting[-1]
        before = [parent for parent in lines[name].parents if parent in lines and parent != name]
        missing = [parent for parent in before if parent not in depths]
        if name in depths:
            waiting.pop()
        elif missing and len(waiting) <= 2 * len(lines):
            waiting += missing
        else:  # a ring, which only a forger can make, is cut
            depths[name] = 1 + max((depths.get(parent, 0) for parent in before), default=0)
            waiting.pop()
    return depths
