"""The columns of rows that are objects, of which each may lack some."""

from typing import Any

import pytest

from fftmoe.data.json_lines import parse_json, parse_json_lines


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_json_lines, '{"a": 1}\n\n{"b": "x", "a": null}\n'), (parse_json, '[{"a": 1}, {"b": "x", "a": null}]')],
)
def test_a_column_has_none_where_a_row_lacks_it(parse: Any, text: str):
    columns, rows = parse(text)
    assert rows == 2
    assert dict(columns) == {"a": [1, None], "b": [None, "x"]}
    assert "c" not in columns
    with pytest.raises(KeyError):
        columns["c"]
