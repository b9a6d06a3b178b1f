"""A sound spec file that tests spoil one place of."""

from pathlib import Path

import pytest

from airflow_provider_sml.pipelines import PipelineSpecError, load_spec

FLIGHTS = Path(__file__).resolve().parents[2] / "include" / "pipelines" / "flights.yaml"


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """Writes flights.yaml with texts replaced; gives its path."""
    monkeypatch.delenv("SML_PROFILE", raising=False)

    def write(*changes: tuple[str, str]) -> Path:
        text = FLIGHTS.read_text()
        for old, new in changes:
            assert text.count(old) >= 1, f"{old!r} is not in the spec any more"
            text = text.replace(old, new, 1)
        path = tmp_path / "flights.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def refused(spoilt):
    """The message that a spoilt spec is refused with, its paths without their folder."""

    def load(*changes: tuple[str, str], profile: str | None = None) -> str:
        path = spoilt(*changes)
        with pytest.raises(PipelineSpecError) as raised:
            load_spec(path, profile)
        assert not raised.value.retryable
        return str(raised.value).replace(f"{path.parent}/", "")

    return load


def line_of(text: str) -> int:
    """The line of the sound spec that a text stands on."""
    lines = [number for number, line in enumerate(FLIGHTS.read_text().splitlines(), 1) if text in line]
    assert lines, f"{text!r} is not in the spec any more"
    return lines[0]
