"""The pages that a user reads agree with the code: settings, refusals, links."""

from __future__ import annotations

import ast
import re

import pytest

from rival_ext.fields import FIELDS, MODES
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
    shown = re.findall(r"\(parameters/(\w+)\.png\)", page("parameters.md") + page("recipes.md"))
    assert sorted(shown) == sorted(path.stem for path in (DOCS / "parameters").iterdir())


def test_the_strips_are_small():
    assert sum(path.stat().st_size for path in (DOCS / "parameters").iterdir()) < 2.5e6


# links


def anchor(heading):
    """What a heading is called in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target, place in LINK.findall(path.read_text()):
        if target.startswith("http"):
            continue
        aim = (path.parent / target) if target else path
        assert aim.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", aim.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), f"{target}#{place}"


# what a user can be told


SAID = {"RivalError": 0, "HTTPException": 1, "note": 0, "Verdict": 1}
"""What tells the user something -> which of its arguments is the sentence."""

REFUSALS = {"hosts/webui_refusals.py", "hosts/webui_ldm.py", "hosts/patched.py"}
"""Files with a table of refusals."""

TABLES = {*REFUSALS, "hosts/webui/ui/run_preview.py"}
"""Files whose sentences stand in a table or are yielded."""

VARIABLE = "\0"
"""In place of what a sentence is filled with."""


FOLDER = ROOT / "rival_ext"
TREES = {path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))}


class Sentences(ast.NodeVisitor):
    """Collects what a file of the extension can say; what is filled in is `VARIABLE`."""

    def __init__(self, name):
        self.name = name
        self.tree = TREES[name]
        self.found = []
        self.visit(self.tree)

    def visit_Call(self, node):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if called in SAID and len(node.args) > SAID[called]:
            self.found += self.texts(node.args[SAID[called]])
        self.generic_visit(node)

    def visit_Dict(self, node):
        if self.name in TABLES:
            # a table of refusals has them for keys, one of notes for values
            parts = node.keys if self.name in REFUSALS else node.values
            self.found += [text for part in parts if part for text in self.texts(part) if " " in text]
        self.generic_visit(node)

    def visit_Yield(self, node):
        if self.name in TABLES:
            self.found += self.texts(node.value)

    def texts(self, node):
        """What an expression can be, as far as it is written in this file or is another one's constant."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.JoinedStr):
            return ["".join(part.value if isinstance(part, ast.Constant) else VARIABLE for part in node.values)]
        if isinstance(node, ast.IfExp):
            return self.texts(node.body) + self.texts(node.orelse)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return [text for value in self.returned(node.func.id) for text in self.texts(value)]
        if isinstance(node, ast.Name):
            return [text for value in self.assigned(node.id) for text in self.texts(value)]
        return []

    def returned(self, name):
        functions = (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef) and node.name == name)
        returns = (node for function in functions for node in ast.walk(function) if isinstance(node, ast.Return))
        return [node.value for node in returns if node.value]

    def assigned(self, name):
        constants = [node for tree in TREES.values() for node in tree.body]
        assignments = (node for node in [*ast.walk(self.tree), *constants] if isinstance(node, ast.Assign))
        return [node.value for node in assignments if any(getattr(aim, "id", "") == name for aim in node.targets)]


def sentences():
    """(file, sentence) of everything that the extension says about a user's request."""
    return [(name, text) for name in TREES for text in dict.fromkeys(Sentences(name).found)]


def test_the_sentences_are_found():
    found = sentences()
    assert len(found) > 50
    by_file = {name: [text for other, text in found if other == name] for name, _ in found}
    assert "a variation seed is not supported; set Variation strength to 0." in by_file["hosts/webui_refusals.py"]
    assert f"{VARIABLE} must be {VARIABLE}, not {VARIABLE}." in by_file["settings.py"]
    assert "the sampler finds its own noise levels" in by_file["prepare.py"]
    assert len(by_file["hosts/webui/ui/run_preview.py"]) == 5
    for name in TREES:
        raises = "raise RivalError(" in (FOLDER / name).read_text()
        assert name in by_file or not raises, f"no sentence of {name} was found"


@pytest.mark.parametrize(("name", "sentence"), sentences())
def test_what_a_user_can_be_told_is_on_the_page(name, sentence):
    parts = sentence.removeprefix("RIVAL: ").strip(f" {VARIABLE}").split(VARIABLE)
    filled = ".{1,120}?".join(map(re.escape, parts))
    assert re.search(filled, words(page("troubleshooting.md"))), f"{name} says: {sentence}"


def test_what_the_panel_and_the_report_say_otherwise_is_on_the_page():
    """Sentences that are put together elsewhere, each with the file that it must still be in."""
    text = words(page("troubleshooting.md"))
    said = {
        "hosts/webui.py": ["stopped in the inversion at step "],
        "hosts/patched.py": ["another extension's attention replaces "],
        "hosts/webui/ui/run_preview.py": ["RIVAL is switched off: tick the box in its title."],
        "hosts/webui/ui/check_button.py": ["The inversion does not fit into the memory budget, so it is not stored."],
        "hosts/webui/ui/exemplar_tools.py": [
            "There is no exemplar to read: upload one.",
            "The exemplar could not be described: ",
            "The exemplar could not be described; the WebUI's log says why.",
        ],
        "verdict.py": [
            "Leave Exemplar prompt empty, or say in it only what the image shows.",
            "Say under Exemplar prompt what the image shows, or try a checkpoint that knows such images.",
        ],
    }
    for name, parts in said.items():
        for part in parts:
            assert part in (FOLDER / name).read_text()
            assert part in text


def test_the_api_page_has_every_field_in_the_order_of_the_positional_form():
    table = page("api.md").partition("| field | type |")[2].partition("\n\n")[0]
    in_table = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert in_table == [field.name for field in FIELDS]
