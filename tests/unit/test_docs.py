"""The pages that a user reads agree with the code: settings, error sentences, links, pages that benchmarks write."""

from __future__ import annotations

import ast
import re

import pytest

from rival_ext.fields import DEFAULTS, FIELDS, MODES
from rival_ext.settings import SIMILARITY
from tests.host.data_folder import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(path for folder in ("benchmarks", "demo", "docs") for path in sorted((ROOT / folder).glob("*.md"))),
]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)|<img src=\"([^\"]+)\"")


def words(text):
    """The text of a page without its line breaks and the marks of quotations."""
    return " ".join(re.sub(r"^> ?", "", text, flags=re.MULTILINE).split())


def page(name):
    return (DOCS / name).read_text()


# settings


def row(field):
    """The row of a field as the page about settings has to show it."""
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
def test_a_setting_is_on_the_page_as_it_is_in_the_list_of_fields(field):
    text = page("parameters.md")
    assert row(field) in text.splitlines()
    assert field.help in words(text)


def test_the_page_has_the_values_that_a_similarity_sets():
    rows = {f"| {name} | {ends[0]:g} | {DEFAULTS[name]:g} | {ends[1]:g} |" for name, ends in SIMILARITY.items()}
    assert rows <= set(page("parameters.md").splitlines())


def test_no_other_setting_is_on_the_page():
    shown = re.findall(r"^\| `(\w+)` \|", page("parameters.md"), re.MULTILINE)
    assert sorted(shown) == sorted(field.name for field in FIELDS)


def test_the_api_page_has_every_field_in_the_order_of_the_positional_form():
    table = page("api.md").partition("| field | type |")[2].partition("\n\n")[0]
    in_table = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert in_table == [field.name for field in FIELDS]


# links


def anchor(heading):
    """The name of a heading in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target, place, image in LINK.findall(path.read_text()):
        if target.startswith("http"):
            continue
        aim = path.parent / (target or image) if target or image else path
        assert aim.exists(), target or image
        if place:
            headings = re.findall(r"^#+ (.*)$", aim.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), f"{target}#{place}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(path):
    for name in re.findall(r"`((?:rival_ext|tests|benchmarks|demo|docs|\.ci)/[\w./-]+)`", path.read_text()):
        assert (ROOT / name).exists(), name


# pages that benchmarks write

WRITTEN = {
    "benchmarks/effect.py": "docs/effect.md",
    "benchmarks/exactness.py": "docs/inversion.md",
    "benchmarks/modes_page.py": "docs/modes.md",
    "benchmarks/samplers_page.py": "docs/samplers.md",
    "benchmarks/peers_page.py": "docs/peers.md",
    "benchmarks/concepts.py": "benchmarks/concepts.md",
}
"""The file that holds the text of a page, and the page."""


@pytest.mark.parametrize(("source", "written"), WRITTEN.items())
def test_a_page_is_what_its_benchmark_would_write(source, written):
    templates = [
        node.args[0].value
        for node in ast.walk(ast.parse((ROOT / source).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Template"
    ]
    (template,) = templates
    pattern = re.sub(r"\\\$\w+", lambda _: r"[\s\S]*?", re.escape(template))
    assert re.fullmatch(pattern, (ROOT / written).read_text())


# what a user can be told

SAID = {"RivalError": 0, "HTTPException": 1, "note": 0, "Verdict": 1}
"""The calls that tell the user something, and which of their arguments is the sentence."""

REFUSALS = {"hosts/webui/validation.py", "hosts/webui/backends/ldm.py", "hosts/webui/backends/patched.py"}
"""The files with a table of refusals. Its keys are the sentences."""

TABLES = {*REFUSALS, "hosts/webui/ui/run_preview.py", "method/unused.py", "method/prepare.py"}
"""The files whose sentences are in a table or are yielded."""

VARIABLE = "\0"
"""Stands for what the code fills into a sentence."""


FOLDER = ROOT / "rival_ext"
TREES = {path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))}


class Sentences(ast.NodeVisitor):
    """Collects what a file of the extension can say; `VARIABLE` stands for what is filled in."""

    def __init__(self, name):
        self.name = name
        self.tree = TREES[name]
        self.found = []
        self.visit(self.tree)

    def visit_Call(self, node):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if called in SAID and len(node.args) > SAID[called]:
            self.found += self.texts(node.args[SAID[called]])
        if called == "append" and ast.unparse(node.func).endswith("notes.append"):
            self.found += self.texts(node.args[0])
        self.generic_visit(node)

    def visit_Dict(self, node):
        if self.name in TABLES:
            parts = node.keys if self.name in REFUSALS else node.values
            self.found += [text for part in parts if part for text in self.texts(part) if " " in text]
        self.generic_visit(node)

    def visit_Yield(self, node):
        if self.name in TABLES:
            self.found += self.texts(node.value)

    def texts(self, node):
        """What an expression can be, as far as it is written in this file or is a constant of another one."""
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
    assert (
        "a variation seed needs start set to matched; change it, or set Variation strength to 0."
        in by_file["hosts/webui/validation.py"]
    )
    assert f"{VARIABLE} must be {VARIABLE}, not {VARIABLE}." in by_file["settings.py"]
    assert "the memory budget has no room for recorded features" in by_file["method/seen.py"]
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
    """Sentences that the code puts together in other ways, each with the file that must hold it."""
    text = words(page("troubleshooting.md"))
    said = {
        "hosts/webui/sampling.py": ["stopped in the inversion at step "],
        "hosts/webui/backends/patched.py": ["another extension replaces "],
        "method/run_chains.py": ["memory ran out while features were recorded"],
        "method/unused.py": [
            "exact had no effect at guidance scale 1",
            "alignment is off",
            "every exemplar has a mask",
        ],
        "images/transforms.py": [" was cut off to fit its "],
        "hosts/webui/script.py": ["No inversion of yours is stored.", "Released "],
        "hosts/webui/ui/run_preview.py": ["RIVAL is switched off: tick the box in the title of this panel."],
        "hosts/webui/ui/check_button.py": ["The inversion is not stored: it needs more memory than the setting "],
        "hosts/webui/ui/exemplar_tools.py": [
            "There is no exemplar to read: upload one.",
            "The exemplar could not be described: ",
            "The exemplar could not be described; the WebUI's log says why.",
        ],
        "method/quality.py": [
            "Leave Exemplar prompt empty, or say in it only what the image shows.",
            "Say under Exemplar prompt what the image shows, or try a checkpoint that knows such images.",
        ],
        "../scripts/rival.py": ["installed twice; ", " or disable one of the two."],
        "../install.py": ["RIVAL will not work: it needs "],
    }
    for name, parts in said.items():
        for part in parts:
            assert part in (FOLDER / name).read_text()
            assert part in text
