"""The table of prices, and a user's own in its place."""

import pytest

from airflow_provider_sml.cloud.prices import PRICES, estimate, price
from airflow_provider_sml.errors import ConfigurationError


def test_a_file_and_an_operator_s_own_prices_go_before_the_table(tmp_path, monkeypatch):
    file = tmp_path / "prices.yaml"
    file.write_text("ml.m5.large: 0.2\nml.x9.huge: 3\nml.c5.large: null\n")
    monkeypatch.setenv("SML_PRICES", str(file))
    assert (price("ml.m5.large"), price("ml.x9.huge"), price("ml.c5.large")) == (0.2, 3.0, None)
    assert price("ml.m5.xlarge") == PRICES["ml.m5.xlarge"]
    assert price("ml.m5.large", {"ml.m5.large": 0.1}) == 0.1
    assert estimate("ml.m5.large", 3) == 0.6 and estimate("ml.c5.large", 3) is None
    file.write_text('{"ml.m5.large": 0.25, "ml.c5.large": 0.5, "another": 1}')
    assert (price("ml.m5.large"), price("ml.c5.large")) == (0.25, 0.5)


@pytest.mark.parametrize("text", ["ml.m5.large: cheap", "ml.m5.large: -1", "ml.m5.large: true", "just words", "{"])
def test_a_file_that_is_not_right_is_told(tmp_path, monkeypatch, text):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    monkeypatch.setenv("SML_PRICES", str(file))
    with pytest.raises(ConfigurationError, match="prices"):
        price("ml.m5.large")


def test_a_file_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("SML_PRICES", "/nowhere/prices.yaml")
    with pytest.raises(ConfigurationError, match="SML_PRICES"):
        price("ml.m5.large")
