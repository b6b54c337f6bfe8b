"""The grammar of names, keys, tags and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import names
from bus.errors import Refused


@pytest.mark.parametrize(
    ("text", "name"),
    [("Api", "api"), (" a ", "a"), ("a" * 63, "a" * 63), ("0.x_y-z", "0.x_y-z")],
)
def test_names(text: str, name: str) -> None:
    assert names.check_name(text) == name


@pytest.mark.parametrize(
    "text", ["", " ", "-a", ".a", "a b", "ä", "a" * 64, "a\n", "all", "Everyone", "bus", "broker"]
)
def test_no_names(text: str) -> None:
    if text == "a\n":
        assert names.check_name(text) == "a", "spaces around it do not count"
        return
    with pytest.raises(Refused) as caught:
        names.check_name(text)
    assert caught.value.code == 422


@given(st.text(max_size=90))
def test_canonical_is_always_a_name(text: str) -> None:
    made = names.canonical(text)
    assert names.check_name(made) == made
    assert names.canonical(made) == made


@pytest.mark.parametrize(
    ("text", "made"), [("My Project!", "my-project"), ("", "session"), ("***", "session"), ("All", "all-1")]
)
def test_canonical(text: str, made: str) -> None:
    assert names.canonical(text) == made


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (names.check_key, ["a", "A/b:c@d-e_f.1", "k" * 200], ["", "a b", "k" * 201, "ä", "a\n"]),
        (names.check_tag, ["t", "a/b:c.d-e_f", "t" * 64], ["", "a b", "t" * 65, "a@b", "a\n"]),
    ],
)
def test_keys_and_tags(check: object, good: list[str], bad: list[str]) -> None:
    assert callable(check)
    assert [check(text) for text in good] == good
    for text in bad:
        with pytest.raises(Refused):
            check(text)


@pytest.mark.parametrize(
    ("text", "form", "name", "host"),
    [
        ("*", "all", "", ""),
        ("@all", "all", "", ""),
        ("@Crew", "pool", "crew", ""),
        ("@crew/one", "pool", "crew/one", ""),
        ("Api", "name", "api", ""),
        ("Api@Host", "at", "api", "host"),
        ("a/b", "folder", "", ""),
        ("C:\\x", "folder", "", ""),
        ("~", "folder", "", ""),
        ("a b", "name", "a b", ""),
    ],
)
def test_addresses(text: str, form: str, name: str, host: str) -> None:
    found = names.parse_address(f" {text} ")
    assert (found.form, found.name, found.host, found.text) == (form, name, host, text)


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\x00", "x" * 513])
def test_no_addresses(text: str) -> None:
    with pytest.raises(Refused):
        names.parse_address(text)


@given(st.text(max_size=600))
def test_any_address(text: str) -> None:
    try:
        assert names.parse_address(text).form in ("all", "name", "at", "pool", "folder")
    except Refused as refused:
        assert refused.code == 422


@pytest.mark.parametrize(
    ("folder", "cwd", "fits"),
    [
        ("api", "/home/x/api", True),
        ("X/Api", "/home/x/api", True),
        ("/home/x/api/", "/home/x/api", True),
        ("~/x/api", "/home/x/api", True),
        ("c:\\work\\api", "C:/Work/API", True),
        ("pi", "/home/x/api", False),
        ("other/api", "/home/x/api", False),
        ("~", "/home/x", False),
        ("/", "/home/x", False),
        ("api", "", False),
    ],
)
def test_folders(folder: str, cwd: str, fits: bool) -> None:
    assert names.folder_matches(folder, cwd) is fits


def test_nearest() -> None:
    assert names.nearest("ap", ["api", "web", "api-2", "api"]) == ["api", "api-2"]
    assert names.nearest("zzz", ["api"]) == []
