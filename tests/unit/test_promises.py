"""What SECURITY.md promises of the source: nothing of a request runs, opens or fetches anything."""

from __future__ import annotations

import ast
import os
import pickle
import re
import sys
from contextlib import suppress

import pytest

from rival_ext.cli import main
from rival_ext.errors import RivalError
from rival_ext.hosts.checkpoint import DEMO, load_pipeline
from tests.host.data_folder import ROOT

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*(ROOT / "rival_ext").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "install.py"]
}

COMMAND_LINE = {
    *("rival_ext/cli.py", "rival_ext/files.py", "rival_ext/outputs.py", "rival_ext/record.py"),
    *("rival_ext/storage/disk.py", "rival_ext/hosts/checkpoint.py"),
}
"""The files that open what the user of the command line names, and the checkout's own demo model."""

RUNS_OR_FETCHES = re.compile(
    r"(eval|exec|compile|__import__|execfile|globals)$"
    r"|(.*\.)?(system|popen|spawn\w*|exec[lv]\w*|fork|startfile|torch\.load|load_module|import_module|run_path)$"
    r"|(pickle|dill|cloudpickle|marshal|shelve|joblib|subprocess|pty|socket|ssl|urllib|http|ftplib|httpx)\b"
    r"|requests\.(get|post|put|patch|delete|head|options|request|[Ss]ession)$|requests$"
    r"|(aiohttp|webbrowser|smtplib|yaml|gradio_client|huggingface_hub|ctypes|runpy|code)\b"
)
"""Calls, by the name they are written with, and modules."""

OPENS = re.compile(
    r"open$|(io|os|gzip|tempfile|shutil|glob|np|numpy|safetensors\.\w+)\.\w*(open|load|save|file|tree|move|copy|replace)"
    r"|(.*\.)?(read_text|read_bytes|write_text|write_bytes|from_single_file|from_pretrained|load_file|save_file|mkdir)$"
    r"|(.*\.)?(unlink|rmdir|rename|touch|symlink_to|NamedTemporaryFile|TemporaryDirectory|mkstemp|safe_open)$"
    r"|(\w+\.)*(path|file|folder)\.open$"
)
"""Calls that open, write or remove files. `Image.open` and `.save` are judged by what they are given."""


IMPORTS_BY_NAME = {
    "rival_ext/hosts/webui/requirements.py": "for name, entries in requirements_of(webui_name()).items():",
    "rival_ext/hosts/webui/backends/__init__.py": "module, name = MODEL_CLASSES[webui_name()]",
}
"""The files that import modules by name, and in each the line by which the name comes from a table in the source."""


def name_of(node):
    """`a.b.c` as it is written; "?" for what has no name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def used(tree):
    """(the line, the name) of every call and every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, name_of(node.func)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def found(forbidden, text):
    """What of a source is forbidden, with its line."""
    return [f"{line}: {name}" for line, name in used(ast.parse(text)) if forbidden.match(name)]


def test_no_source_runs_what_it_is_given_or_asks_the_network():
    running = {name: found(RUNS_OR_FETCHES, text) for name, text in SOURCES.items() if found(RUNS_OR_FETCHES, text)}
    assert set(running) == set(IMPORTS_BY_NAME)
    for name, table in IMPORTS_BY_NAME.items():
        (called,) = (line for line in running[name] if "importlib" not in line)
        assert called.endswith("import_module")
        assert SOURCES[name].index(table) < SOURCES[name].index("import_module(")


def test_nothing_of_the_webuis_part_opens_a_file():
    opening = {name for name, text in SOURCES.items() if found(OPENS, text)}
    assert opening
    assert opening <= COMMAND_LINE


def test_it_reads_images_from_memory_and_writes_them_there():
    reads = writes = 0
    for name in set(SOURCES) - COMMAND_LINE:
        tree = ast.parse(SOURCES[name])
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if name_of(call.func).endswith("Image.open"):
                reads += 1
                # the file in memory that counts what Pillow reads
                assert f"{name_of(call.args[0])} = BoundedFile(" in SOURCES[name], name
                assert [keyword.arg for keyword in call.keywords] == ["formats"]
            if name_of(call.func).endswith(".save"):
                writes += 1
                assert name_of(call.args[0]) == "buffer", name
    assert reads == 2
    assert writes >= 1


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "import pickle", "from pickle import loads", "torch.load(path)", "os.system(text)"),
        *("subprocess.run(text)", "urllib.request.urlopen(text)", "import httpx", "os.execv(a, b)", "exec(text)"),
        *("from urllib.request import urlopen", "importlib.import_module(text)"),
    ],
)
def test_what_would_run_or_fetch_is_found(line):
    assert found(RUNS_OR_FETCHES, line) != []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "Path(text).read_bytes()",
        "np.load(path)",
        "shutil.rmtree(path)",
        "safetensors.torch.load_file(path)",
    ],
)
def test_what_would_open_a_file_is_found(line):
    assert found(OPENS, line) != []


def test_the_pages_script_makes_no_page_of_what_it_is_given():
    script = (ROOT / "javascript" / "rival.js").read_text()
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", script)
        == []
    )


def test_every_promise_names_tests_that_are_there():
    text = (ROOT / "SECURITY.md").read_text()
    for row in re.findall(r"^\| (?!-|promise)(.*)", text.partition("## What is not promised")[0], re.MULTILINE):
        assert re.search(r"`test_\w+`", row), row
    named = re.findall(r"\]\((tests/[\w/.]+)\)((?:,? `test_\w+`)+)", text)
    assert sum(names.count("`") // 2 for _, names in named) == len(re.findall(r"`test_\w+`", text))
    for path, names in named:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


# the command line


done = []


class Harm:
    """What a pickle does that is only read."""

    def __reduce__(self):
        return _harm, ()


def _harm():
    done.append("harm")


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.pt"])
def test_a_checkpoint_that_is_a_pickle_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    done.clear()
    with pytest.raises(RivalError, match=r"is not a readable \.safetensors file"):
        load_pipeline(tmp_path / name)
    assert done == []
    pickle.loads((tmp_path / name).read_bytes())
    assert done == ["harm"]


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = {
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.rename": 1,
    "os.symlink": 1,
    "os.link": 1,
    "os.truncate": 0,
}
"""Python's audit events that change files -> which of their arguments is the path."""

watched = None
"""Paths that are written to meanwhile, or None."""


def watch(event, arguments):
    if watched is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITING:
        watched.append(os.fsdecode(arguments[0]))
    elif event in CHANGES:
        watched.append(os.fsdecode(arguments[CHANGES[event]]))


# for good: Python has no way to take it off
sys.addaudithook(watch)


def test_the_command_line_writes_into_its_folders_alone(tmp_path, monkeypatch):
    global watched
    out, kept = tmp_path / "out", tmp_path / "kept"
    arguments = [DEMO / "pizza.png", "-n", 1, "--steps", 2, "--check", "--out", out, "--keep-inversions", kept]
    monkeypatch.setattr("sys.argv", ["rival_ext", *map(str, arguments)])
    # what Python compiles for itself is not meant
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    watched = []
    try:
        with suppress(SystemExit):
            main()
    finally:
        written, watched = watched, None
    assert any(path.endswith("report.json") for path in written)
    assert any(path.endswith(".safetensors") for path in written)
    # TemporaryDirectory removes by a name within the folder that it has open
    assert [path for path in written if not path.startswith((str(out), str(kept))) and os.path.isabs(path)] == []
