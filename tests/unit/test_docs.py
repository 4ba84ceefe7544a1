"""The pages that a user reads agree with the code: settings, refusals, links."""

from __future__ import annotations

import re

import pytest

from rival_ext.settings import FIELDS, MODES
from tests.host.servers import ROOT

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def words(text):
    """A page without its line breaks and the marks of quotations."""
    return " ".join(re.sub(r"^> ?", "", text, flags=re.MULTILINE).split())


def page(name):
    return (DOCS / name).read_text()


# settings


def row(field):
    """A field as the page about settings has to show it."""
    presets = [f"{mode} {preset[field.name]:g}" for mode, preset in MODES.items() if field.name in preset]
    return f"| `{field.name}` | {field.label} | {field.expects} | {'; '.join([default(field), *presets])} |"


def default(field):
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return "none" if value is None else value or "empty"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_setting_is_on_the_page_as_it_is_in_the_table(field):
    text = page("parameters.md")
    assert row(field) in text.splitlines()
    assert field.help in words(text)


def test_no_other_setting_is_on_the_page():
    shown = re.findall(r"^\| `(\w+)` \|", page("parameters.md"), re.MULTILINE)
    assert sorted(shown) == sorted(field.name for field in FIELDS)


def test_every_strip_is_shown_once():
    shown = re.findall(r"\(parameters/(\w+)\.png\)", page("parameters.md"))
    assert sorted(shown) == sorted(path.stem for path in (DOCS / "parameters").iterdir())


# links


def anchor(heading):
    """What a heading is called in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target, place in LINK.findall(path.read_text()):
        if target.startswith("http"):
            continue
        aim = (path.parent / target) if target else path
        assert aim.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", aim.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), f"{target}#{place}"
