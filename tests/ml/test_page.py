"""Reports as HTML pages."""

from airflow_provider_sml.ml.page import Page


def test_numbers_stand_to_the_right_and_columns_that_say_nothing_are_left_out():
    rows = [
        ["2026-03-16", 150, "0.761 [0.677, 0.829]", "17 % of the columns drifted: rain", "1.5 %", "", "9f94c33594e9"],
        ["2026-03-17", None, 0.5, "nothing", "-3 %", None, "57a68ec8e3bb"],
    ]
    page = Page("A night").table(["day", "rows", "AUC", "why", "moved", "to do", "model"], rows).render()
    assert '<table class="s1 n2 n3 t4 n5 s6">' in page and "to do" not in page
    assert "<td>0.5000</td><td>nothing</td>" in page
    assert "<th>to do</th>" in Page("Nothing yet").table(["day", "to do"], []).render()


def test_what_is_written_is_escaped():
    page = Page("<b>").heading("<i>").text("<u>", "good").table(["<a>"], [["<script>"]]).render()
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>", "<a>", "<script>"))
