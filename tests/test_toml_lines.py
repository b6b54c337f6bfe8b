"""toml_lines: whatever the file looks like, only the one value changes. (Cases by example: test_config.)"""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.toml_lines import edited, line_of

TOP = [
    "# note\n",
    "\n",
    "a = 1 # x\n",
    's = """\nport = 1\n[limits]\n"""\n',
    "'q=r' = [\n 1, # =\n]\n",
    "port = 4#p\n",
]
TABLES = ["[z]\nport = 9\n", "[[y]]\nrate = 1\n", "\n# over\n", "[limits]\nburst = 2\n\n", "[limits.sub]\nrate = 3\n"]
SUB = '[z."limits"]\nrate = 8\n'


def unique(parts: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(parts), unique=True)


@given(unique(TOP), unique([*TABLES, SUB]), st.sampled_from(["port", "limits.rate", "limits.burst"]), st.booleans())
def test_one_value_changes_and_no_line_is_lost(top: list[str], tables: list[str], name: str, crlf: bool) -> None:
    text = "".join(top + tables)
    text = text.replace("\n", "\r\n") if crlf else text
    try:
        want = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # some orders of tables are not TOML
    new = edited(text, name, "77")
    *table, leaf = name.split(".")
    inner = want.setdefault(table[0], {}) if table else want
    had = leaf in inner
    inner[leaf] = 77
    assert tomllib.loads(new) == want
    before, after = text.split("\n"), new.split("\n")
    changed = line_of(new, name) - 1
    if had:
        assert before[:changed] == after[:changed] and before[changed + 1 :] == after[changed + 1 :]
    else:
        rest = iter(after)
        assert all(line in rest for line in before), "a line was lost or moved"
    assert edited(new, name, "77") == new
    assert ("\n" in new.replace("\r\n", "")) is (not crlf or not text)


def test_the_line_of_a_name() -> None:
    text = "# c\nport = 1\n[limits]\n\nrate = 2\n"
    assert (line_of(text, "port"), line_of(text, "limits.rate"), line_of(text, "none")) == (2, 5, 1)


def test_an_inline_table_is_not_edited() -> None:
    with pytest.raises(ValueError, match="2: an inline table"):
        edited("\nlimits = {rate = 1}\n", "limits.rate", "2")
