"""The history of aliases: complete whatever happens to its writers, and tampering shows."""

import datetime as dt
import json
import sys
from dataclasses import replace

import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.registry import CHAMPION, Registry, promotion
from airflow_provider_sml.ml.registry.__main__ import main
from airflow_provider_sml.ml.registry.history import KEY, History, Line
from tests.mlflow_server import PASSWORD, USER

NAME = "flights"


def fill(registry, name):
    """Three versions of a model, without any file behind them."""
    with registry._client() as client:
        client.create_registered_model(name)
        for number in range(3):
            tags = {"sml.model_id": f"m{number}"}
            client.create_model_version(name, source="s3://nowhere/x", tags=tags)
    return registry


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder of one embedded store for all tests here."""
    return str(tmp_path_factory.mktemp("history") / "mlflow")


@pytest.fixture
def registry(place, monkeypatch, request):
    """The store, with a model of the test's own."""
    monkeypatch.setattr(sys.modules[__name__], "NAME", "".join(c if c.isalnum() else "-" for c in request.node.name))
    return fill(Registry(place), NAME)


def move(registry, version, alias=CHAMPION, by="dag/task/run", name="", **evidence):
    return registry.set_alias(registry.version(name or NAME, str(version)), alias, by, evidence)


def ways(registry, name="", alias=CHAMPION):
    return [(line.before, line.after, line.by) for line in registry.history(name or NAME).lines if line.alias == alias]


def test_every_move_is_told_and_any_time_is_answered(registry, place, capsys):
    start = dt.datetime.now(dt.UTC)
    first = move(registry, 1, gate="passed", parity_rows="200")
    move(registry, 2, "challenger")
    second = move(registry, 3, by="dag/rollback/run of anna")
    assert move(registry, 3) is None  # it points there already
    assert ways(registry) == [("", "1", "dag/task/run"), ("1", "3", "dag/rollback/run of anna")]
    assert ways(registry, alias="challenger") == [("", "2", "dag/task/run")]
    assert first.evidence == {"gate": "passed", "parity_rows": "200"}
    history = registry.history(NAME)
    assert history.at(CHAMPION, start) is None
    assert history.at(CHAMPION, second.time - dt.timedelta(microseconds=1)).after == "1"
    assert history.at(CHAMPION, second.time).after == history.at(CHAMPION, second.time + dt.timedelta(9)).after == "3"
    assert history.spells(CHAMPION) == [("1", first.at, second.at), ("3", second.at, "")]
    with pytest.raises(ConfigurationError, match="no zone"):
        history.at(CHAMPION, dt.datetime(2026, 1, 1))
    assert registry.verify(NAME) == [] and registry.verify(NAME, first.hash[:10]) == []

    at = ["--mlflow", place]
    assert main(["verify", NAME, *at]) == 0 and second.hash in capsys.readouterr().out
    assert main(["history", NAME, "--json", "--alias", CHAMPION, *at]) == 0
    assert [json.loads(line)["after"] for line in capsys.readouterr().out.splitlines()] == ["1", "3"]
    assert main(["at", NAME, first.at, *at]) == 0 and "version 1" in capsys.readouterr().out
    assert main(["at", NAME, "2020-01-01", *at]) == 1 and "no champion" in capsys.readouterr().out
    assert main(["at", NAME, "yesterday", *at]) == 2 and "this is no time" in capsys.readouterr().err


def test_what_was_moved_by_other_means_is_found_and_written_down(registry, place, capsys):
    move(registry, 1)
    with registry._client() as client:
        client.set_registered_model_alias(NAME, CHAMPION, "2")
    [problem] = registry.verify(NAME)
    assert "champion points to 2, and its last line says 1" in problem
    assert main(["mend", NAME, "--mlflow", place]) == 0 and "1 lines" in capsys.readouterr().out
    move(registry, 3)
    with registry._client() as client:
        client.delete_registered_model_alias(NAME, CHAMPION)
    registry.mend(NAME, "anna")
    assert ways(registry) == [
        ("", "1", "dag/task/run"), ("1", "2", promotion.UNKNOWN), ("2", "3", "dag/task/run"),
        ("3", "", promotion.UNKNOWN),
    ]  # fmt: skip
    assert registry.history(NAME).last(CHAMPION).recorded.endswith("by anna")
    assert registry.verify(NAME) == [] and registry.mend(NAME) == []


# --- tampering --------------------------------------------------------------------------------------------------------


def lines(registry):
    with registry._client() as client:
        return {key: value for key, value in client.get_registered_model(NAME).tags.items() if key.startswith(KEY)}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_line_that_was_changed_or_taken_away_is_found(registry, which):
    made = [move(registry, number, by=f"run {number}") for number in (1, 2, 3)]
    key = f"{KEY}{made[which].hash}"
    before = lines(registry)[key]
    with registry._client() as client:
        client.set_registered_model_tag(NAME, key, before.replace(f"run {which + 1}", "run 7"))
    assert any(f"the line {made[which].hash[:12]} was changed" in problem for problem in registry.verify(NAME))
    with registry._client() as client:
        client.set_registered_model_tag(NAME, key, "{")
    assert any("cannot be read" in problem for problem in registry.verify(NAME))
    with registry._client() as client:
        client.delete_registered_model_tag(NAME, key)
    wrong = registry.verify(NAME)
    assert any(f"the line {made[which].hash[:12]} is gone" in problem for problem in wrong)
    with registry._client() as client:
        client.set_registered_model_tag(NAME, key, before)
    assert registry.verify(NAME) == []


def test_a_cut_end_is_found_by_whoever_noted_it(registry):
    move(registry, 1)
    last = move(registry, 2)
    with registry._client() as client:
        client.delete_registered_model_tag(NAME, f"{KEY}{last.hash}")
        client.delete_model_version_tag(NAME, "2", f"{promotion.STATE}{CHAMPION}")
        client.set_registered_model_alias(NAME, CHAMPION, "1")
    assert registry.verify(NAME) == []  # nothing in MLflow tells of it any more
    assert registry.verify(NAME, last.hash) == [f"the line {last.hash[:12]} is gone: it was noted elsewhere"]


def test_a_ring_of_lines_which_only_a_forger_makes_ends():
    one = Line("a", "2026-01-01T00:00:00+00:00", CHAMPION, "", "1", "x", parents=["2" * 64])
    two = replace(one, move="b", parents=["1" * 64])
    history = History({f"{KEY}{'1' * 64}": one.text, f"{KEY}{'2' * 64}": two.text})
    assert len(history.lines) == 2 and len(history.damaged) == 2


def test_a_line_fits_into_a_tag_of_mlflow(registry):
    line = move(registry, 1, by="ü" * 1000, **{f"gate_{n}": '"' * 1000 for n in range(40)})
    assert len(line.text) <= 4000 and registry.verify(NAME) == []
    for number in range(20):
        line = move(registry, 1 + number % 2, f"a{number % 3}")
    assert max(len(text) for text in lines(registry).values()) < 5000


# --- two at once ------------------------------------------------------------------------------------------------------


class Meeting:
    """MLflow's client, to whom somebody else's whole move happens before its so-manieth call."""

    def __init__(self, client, at, other):
        self.client, self.left, self.other = client, at, other

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*arguments, **named):
            if self.left == 0:
                self.other()
            self.left -= 1
            return method(*arguments, **named)

        return call


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("same", [False, True])
def test_of_two_movers_at_once_both_are_in_the_history_which_ends_where_the_alias_does(registry, step, same):
    move(registry, 1)
    with registry._client() as client:
        meeting = Meeting(client, step, lambda: promotion.move(client, NAME, "3" if not same else "2", CHAMPION, "B"))
        promotion.move(meeting, NAME, "2", CHAMPION, "A")
        assert meeting.left < 0, "a step fewer"
    history, aliases = registry.history(NAME), registry.aliases(NAME)
    assert history.astray(aliases) == {} and registry.verify(NAME) == []
    assert {line.by for line in history.lines} >= ({"A", "B"} if not same else {"dag/task/run"})
    assert len({line.move for line in history.lines}) == len(history.lines)
    assert promotion.UNKNOWN not in {line.by for line in history.lines}
    move(registry, 1)
    assert ways(registry)[-1] == (aliases[CHAMPION], "1", "dag/task/run")
    assert len(registry.history(NAME).heads) == 1


# --- a writer that dies -----------------------------------------------------------------------------------------------

STEPS = [
    (when, path)
    for path in ("model-versions/set-tag", "registered-models/alias", "registered-models/set-tag")
    for when in ("before", "after")
]


def test_a_writer_that_dies_at_any_step_leaves_what_the_next_one_mends(mlflow_server):
    login = {"username": USER, "password": PASSWORD}
    registry = Registry(mlflow_server.uri, login)
    for number, (when, path) in enumerate(STEPS):
        name = f"dies-{number}"
        fill(registry, name)
        move(registry, 1, name=name)
        broken = []

        def trap(method, where, path=path, broken=broken):
            hit = method == "POST" and path in where
            broken.extend([where] * hit)
            return hit

        setattr(mlflow_server, when, trap)
        with pytest.raises(Exception, match="broken"):
            move(registry, 2, by="died", name=name)
        mlflow_server.mend()
        assert broken, path
        moved = registry.aliases(name)[CHAMPION] == "2"
        assert moved == (STEPS.index((when, path)) >= STEPS.index(("after", "registered-models/alias")))
        registry.mend(name, "next")
        assert ways(registry, name) == [("", "1", "dag/task/run")] + [("1", "2", "died")] * moved
        assert registry.verify(name) == []
        move(registry, 2, by="died", name=name)  # the retry
        move(registry, 3, name=name)
        assert ways(registry, name) == [("", "1", "dag/task/run"), ("1", "2", "died"), ("2", "3", "dag/task/run")]
        assert registry.verify(name) == []
