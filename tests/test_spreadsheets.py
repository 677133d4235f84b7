from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.spreadsheets import csv_lines, safe_cell


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_safe_cell__marks_formulas_as_text(start: str) -> None:
    assert safe_cell(f"{start}1+1") == f"'{start}1+1"


@pytest.mark.parametrize("value", ["", "ada", "1=1", 7, -7, -1.5, None, True])
def test_safe_cell__leaves_everything_else(value: object) -> None:
    assert safe_cell(value) is value


@pytest.mark.parametrize(("text", "cell"), [("a\0da", "ada"), ("\0=1+1", "'=1+1")])
def test_safe_cell__leaves_out_nul_characters(text: str, cell: str) -> None:
    assert safe_cell(text) == cell


@given(
    st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2), min_size=1)
)
def test_csv_lines__survive_a_round_trip(rows: list[list[str]]) -> None:
    text = "".join(csv_lines(["a", "b"], rows))
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [["a", "b"], *([safe_cell(cell) for cell in row] for row in rows)]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in read for cell in row)
