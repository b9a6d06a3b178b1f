"""YAML with lines: plain values, places, overlays, and what is refused before anything is known of a spec."""

import textwrap

import pytest

from airflow_provider_sml.pipelines.document import PipelineSpecError, read_document


def read(tmp_path, text, name="x.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
    return read_document(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("true", True), ("false", False), ("True", "True"),
        ("12:30", "12:30"), ("2026-01-31", "2026-01-31"), ("007", "007"), ("0", 0), ("-12", -12), ("1_000", "1_000"),
        ("1e-3", 0.001), ("1.5", 1.5), (".5", 0.5), ("2.", 2.0), ("-1.5E+2", -150.0), ("1e", "1e"), (".", "."),
        ("~", None), ("null", None), ("", None), ("9E", "9E"), ("0x10", "0x10"), (".inf", ".inf"), ("'5'", "5"),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(tmp_path, text, value):
    found = read(tmp_path, f"a: {text}\n").value["a"]
    assert found == value and type(found) is type(value)


def test_every_place_has_its_line(tmp_path):
    document = read(
        tmp_path,
        """\
        # a comment
        a:
          b: 1
          c: [x,
              y]
        d:
          - e: 2
          - f: |
              long
              text
            g: 3
        """,
    )
    lines = {place: line for place, (_, line) in document.lines.items()}
    assert lines[("a",)] == 2 and lines[("a", "b")] == 3
    assert lines[("a", "c")] == 4 and lines[("a", "c", 1)] == 5
    assert lines[("d", 0, "e")] == 7 and lines[("d", 1)] == 8 and lines[("d", 1, "g")] == 11
    assert document.where(("a", "zzz", "deeper")).endswith("x.yaml:2")
    assert document.where(("zzz",)).endswith("x.yaml:2"), "the whole begins at its first key"


def test_merges_and_aliases_keep_the_lines_of_what_they_bring(tmp_path):
    document = read(tmp_path, "a: &a\n  b: 1\n  c: 2\nd:\n  <<: *a\n  c: 3\n")
    assert document.value["d"] == {"b": 1, "c": 3}
    assert document.where(("d", "b")).endswith(":2")
    assert document.where(("d", "c")).endswith(":6")


def test_an_overlay_replaces_values_and_knows_which_file_they_come_from(tmp_path):
    base = read(tmp_path, "a:\n  b: 1\n  c: 2\nd: [1, 2, 3]\ne: {f: 1}\n", "base.yaml")
    over = read(tmp_path, "# production\na:\n  c: 3\nd: [9]\ne: 5\ng: 6\n", "over.yaml")
    laid = base.overlay(over)
    assert laid.value == {"a": {"b": 1, "c": 3}, "d": [9], "e": 5, "g": 6}
    for place, where in (
        (("a", "b"), "base.yaml:2"), (("a", "c"), "over.yaml:3"), (("d", 0), "over.yaml:4"), (("d", 2), "over.yaml:4"),
        (("e", "f"), "over.yaml:5"), (("g",), "over.yaml:6"),
    ):  # fmt: skip
        assert laid.where(place).endswith(where)
    assert base.value["a"]["c"] == 2 and base.where(("a", "c")).endswith("base.yaml:3"), "the base stays as it was"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n\n", 1, "the file is empty"),
        ("---\n", 1, "the file is empty"),
        ("a: 1\nb: 2\na: 3\n", 3, "a stands here twice\n  expected: each key once; found: a on line 1 as well"),
        ("a:\n  b: 1\n  c: {d: 1, d: 2}\n", 3, "d stands here twice"),
        ("a: 1\n  b: 2\n", 2, "this is not YAML: mapping values are not allowed here\n"),
        ("a: 1\nb: dask: prod\n", 2, "found: b: dask: prod"),
        ("a: 1\nb: {c: 1\nd: 2\n", 2, "this is not YAML: expected ',' or '}'"),
        ('a: 1\nb: "open\nc: 2\n', 2, "this is not YAML: found unexpected end of stream"),
        ("a:\n\tb: 1\n", 2, "cannot start any token"),
        ("a: *b\n", 1, "undefined alias 'b'"),
        ("a: &a [*a]\n", 1, "this value contains itself"),
        ("a: 1\n---\nb: 2\n", 2, "found another document"),
        ("a: !!python/object/apply:os.system [true]\n", 1, "could not determine a constructor"),
        ("a: 1\n5: 2\n", 2, "a key is not a word\n  expected: a name before the colon; found: 5"),
        ("a: 1\n? [b, c]\n: 2\n", 2, "found: a list or a mapping"),
        (b"a: 1\nb: \xff\n", 2, "this is not text\n  expected: UTF-8; found: the byte 0xff"),
        (b"a: 1\nb: \x00\n", 2, "this is not text"),
    ],
)
def test_what_is_no_document_is_refused_with_its_line(tmp_path, text, line, said):
    with pytest.raises(PipelineSpecError) as raised:
        read(tmp_path, text)
    first = str(raised.value)
    assert first.startswith(f"{tmp_path}/x.yaml:{line}: "), first
    assert said in first


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfa: \xc3\xa9\n").value == {"a": "é"}


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    for path, said in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(PipelineSpecError, match=said):
            read_document(path)
