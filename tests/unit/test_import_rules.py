"""The rules of the tree: which part of `rival_ext` imports which, and how long a file may be.

Imports are read from the sources, so imports inside functions and under `TYPE_CHECKING` count as well.
"""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rival_ext"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({file.parent for file in FILES})

HOSTS = ("rival_ext.hosts", "modules", "modules_forge", "backend", "ldm_patched", "diffusers", "gradio")
"""RIVAL's adapters of the hosts, and the packages of the hosts themselves."""

CONTRACTS = ("rival_ext.settings", "rival_ext.written", "rival_ext.report", "rival_ext.errors")
"""The modules that every part may import."""

WEBUI_SCRIPT = PACKAGE / "hosts" / "webui" / "script.py"
MOST_LINES, MOST_LINES_OF_METHOD = 400, 200


def module_of(file: Path) -> str:
    """The module that a file holds. A package's name stands for its `__init__.py`."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def imported_modules(source: str) -> set[str]:
    """Every module that a source imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` imports the module, `from module import name` the module alone
            modules |= (names & MODULES) | ({str(node.module)} if names - MODULES else set())
    return modules


IMPORTS = {file: imported_modules(file.read_text()) for file in FILES}


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def files_in(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((PACKAGE / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def test_every_kind_of_import_is_read():
    source = """
import json
from rival_ext import settings
from rival_ext.errors import RivalError, settings
if TYPE_CHECKING:
    from rival_ext.hosts.webui.ui.panel import Panel
def late():
    import torch.nn
"""
    assert imported_modules(source) == {
        *("json", "torch.nn"),
        *("rival_ext.settings", "rival_ext.errors", "rival_ext.hosts.webui.ui.panel"),
    }


@pytest.mark.parametrize("file", files_in("method"), ids=name_of)
def test_the_method_imports_torch_and_the_contracts_only(file):
    allowed = ("torch", *sys.stdlib_module_names, *CONTRACTS, "rival_ext.method")
    assert [module for module in IMPORTS[file] if not is_in(module, allowed)] == []


@pytest.mark.parametrize("file", files_in("storage", "images"), ids=name_of)
def test_storage_and_images_import_no_host(file):
    assert [module for module in IMPORTS[file] if is_in(module, HOSTS)] == []


@pytest.mark.parametrize("file", files_in("images"), ids=name_of)
def test_images_import_neither_the_method_nor_the_storage(file):
    assert [module for module in IMPORTS[file] if is_in(module, ("rival_ext.method", "rival_ext.storage"))] == []


def test_only_the_webuis_script_imports_the_panel():
    panel = "rival_ext.hosts.webui.ui"
    importers = {file for file in FILES if any(is_in(module, (panel,)) for module in IMPORTS[file])}
    assert {file for file in importers if not is_in(module_of(file), (panel,))} == {WEBUI_SCRIPT}


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_imports_between_the_files_and_folders_of_a_folder_form_no_circle(folder):
    package = module_of(folder / "__init__.py")

    def room_of(module: str) -> str:
        """The file or the folder directly in `folder` that holds a module."""
        return module.removeprefix(package).split(".")[1] if module != package else "__init__"

    rooms: dict[str, set[str]] = {}
    for file in folder.rglob("*.py"):
        room = room_of(module_of(file))
        imported = {room_of(module) for module in IMPORTS[file] if is_in(module, (package,))}
        rooms.setdefault(room, set()).update(imported - {room})
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_is_short(file):
    most = MOST_LINES_OF_METHOD if file.parent.name == "method" else MOST_LINES
    assert len(file.read_text().splitlines()) <= most
