"""The requirements: the table is complete, and a sentence says what is missing."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import numpy as np
import pytest

from rival_ext.errors import RivalError
from rival_ext.hosts.webui import requirements
from rival_ext.hosts.webui.requirements import REQUIREMENTS_BY_WEBUI, missing_requirements, require_all, requirements_of
from tests.host.asking import request
from tests.host.conftest import new_checkpoint
from tests.host.data_folder import ROOT
from tests.host.standin import modules, plot
from tests.host.standin.model import Checkpoint
from tests.host.standin_server import StandInServer

HOSTS = ("modules", "gradio", "backend", "ldm_patched", "modules_forge")
"""Packages of the WebUIs."""

REQUIREMENTS = requirements_of("AUTOMATIC1111")
"""The requirements that the stand-in meets."""

OF_ALL = {
    module: [entry for kind in REQUIREMENTS_BY_WEBUI for entry in requirements_of(kind).get(module, ())]
    for kind in REQUIREMENTS_BY_WEBUI
    for module in requirements_of(kind)
}
"""The requirements of all WebUIs together."""

ROWS = [(module, entry) for module, entries in REQUIREMENTS.items() for entry in entries]
NAMES = [(module, entry) for module, entry in ROWS if "(" not in entry and "." not in entry]
OWNERS = sorted({(module, entry.partition(".")[0]) for module, entry in ROWS if "." in entry.partition("(")[0]})
CALLS = [(module, entry) for module, entry in ROWS if "(" in entry]


@pytest.fixture(scope="module")
def checkpoint():
    return new_checkpoint()


@pytest.fixture
def host(checkpoint):
    """The stand-in, installed."""
    with modules.uninstalled():
        modules.install(checkpoint)
        yield


def owner_of(module, entry):
    """Find the owner of the last name in a row.

    Returns:
        The owner, and the name.
    """
    owner = import_module(module)
    *path, name = entry.partition("(")[0].split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, name


def unlike(*, something_else):
    """A function that accepts none of the calls."""


# the look-up


def test_the_stand_in_has_all_of_it(host):
    assert list(missing_requirements()) == []
    require_all()


@pytest.mark.slow
@pytest.mark.parametrize(("module", "entry"), NAMES)
def test_a_name_that_is_gone_is_told(host, monkeypatch, module, entry):
    monkeypatch.delattr(*owner_of(module, entry))
    assert f"{module}.{entry}" in list(missing_requirements())


@pytest.mark.slow
@pytest.mark.parametrize(("module", "owner"), OWNERS)
def test_what_a_class_or_an_object_no_longer_has_is_told(host, monkeypatch, module, owner):
    monkeypatch.setattr(sys.modules[module], owner, type("Bare", (), {"__init__": unlike}))
    of_owner = [f"{module}.{entry}" for entry in REQUIREMENTS[module] if entry.startswith(f"{owner}.")]
    assert set(of_owner) <= set(missing_requirements())


@pytest.mark.slow
@pytest.mark.parametrize(("module", "entry"), CALLS)
def test_a_signature_that_has_changed_is_told(host, monkeypatch, module, entry):
    owner, name = owner_of(module, entry)
    monkeypatch.setattr(owner, name, unlike)
    assert f"{module}.{entry}" in list(missing_requirements())


@pytest.mark.slow
@pytest.mark.parametrize("module", [name for name in REQUIREMENTS if name != "psutil"])
def test_a_module_that_is_gone_is_told_once(host, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert [row for row in missing_requirements() if row.startswith(module)][:1] == [module]
    assert not any(row.startswith(f"{module}.") for row in missing_requirements())


def test_one_sentence_says_the_first_and_how_many_more(host, monkeypatch):
    monkeypatch.delattr(sys.modules["modules.images"], "flatten")
    with pytest.raises(RivalError) as one:
        require_all()
    said = "this WebUI has no modules.images.flatten(img, bgcolor); update the WebUI or the extension."
    assert str(one.value) == f"RIVAL: switched off, because {said}"
    monkeypatch.delattr(sys.modules["modules.masking"], "fill")
    with pytest.raises(RivalError, match=r"flatten\(img, bgcolor\) and 1 more that it needs; update"):
        require_all()


def swapped(self, p, noise, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
    """The method with its latents in the other order."""


def renamed(self, p, latent, fresh, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
    """The same parameters under other names."""


def passed_on(*args, **kwargs):
    """A wrapper that another extension puts around a function."""


def demanding(self, p, x, noise, conditioning, unconditional_conditioning, more, steps=None, image_conditioning=None):
    """The method with one more parameter."""


def less(self, p, x, noise, conditioning, unconditional_conditioning, image_conditioning=None):
    """The method without the number of steps."""


@pytest.mark.parametrize(
    ("method", "holds"), [(swapped, False), (renamed, True), (passed_on, True), (demanding, False), (less, False)]
)
def test_order_and_names_count_as_they_are_used(host, monkeypatch, method, holds):
    sampler = sys.modules["modules.sd_samplers_kdiffusion"].KDiffusionSampler
    monkeypatch.setattr(sampler, "sample_img2img", method)
    told = [row for row in missing_requirements() if "KDiffusionSampler.sample_img2img" in row]
    assert bool(told) is not holds


class Base:
    of_base = None

    def __init__(self):
        self.set_at_first = None


@dataclass
class Things(Base):
    of_dataclass: list = field(default_factory=list)

    def later(self):
        self.set_later = 1

    @property
    def told(self):
        raise AssertionError("a property of a class is not read")


@pytest.mark.parametrize("name", ["of_base", "set_at_first", "of_dataclass", "set_later", "told"])
def test_what_instances_have_is_found_on_the_class(name):
    module = ModuleType("things")
    module.Things = Things
    assert requirements._is_met(module, f"Things.{name}")
    assert not requirements._is_met(module, f"Things.{name}s")


def test_looking_a_property_of_a_module_up_does_not_read_it():
    class Lazy(ModuleType):
        @property
        def sd_model(self):
            raise AssertionError("this loads the checkpoint")

    assert requirements._is_met(Lazy("lazy"), "sd_model")


# the table


CHECKPOINT = {"modules.shared.sd_model"}
"""Rows whose attributes come with the checkpoint and are not looked up."""

OWN = {"modules.shared.opts.rival_memory_mb"}

INSTANCES = {
    "p": ("modules.processing", "StableDiffusionProcessing"),
    "sampler": ("modules.sd_samplers_kdiffusion", "KDiffusionSampler"),
    "denoiser": ("modules.sd_samplers_cfg_denoiser", "CFGDenoiser"),
    "state": ("modules.shared", "state"),
    "script": ("modules.scripts", "Script"),
}
"""Names of variables for the host's instances: the module, and the beginning of the class's name."""

OF_THE_SCRIPT = {"script": {"title", "latest_network", "reset", "runner", "found"}}
"""Names that a script's own class defines: ControlNet's, Tiled Diffusion's, and the check's."""

FOLDER = ROOT / "rival_ext" / "hosts" / "webui"

BACKENDS = {
    "AUTOMATIC1111": {"ldm.py"},
    "Forge": {"patched.py", "forge.py"},
    "Forge Neo": {"patched.py", "forge.py", "forge_neo.py"},
    "reForge": {"patched.py", "reforge.py"},
}
"""The files of backends/ that evaluate a checkpoint, by the kind of WebUI."""

OF_PATCHERS = {"patches.py"}.union(*BACKENDS.values()) - {"ldm.py"}
"""Files that one kind of WebUI alone loads. Their `state` is RIVAL's own."""

SOURCES = [path for path in sorted(FOLDER.rglob("*.py")) if path.name not in {"off_panel.py", *OF_PATCHERS}]

OF_EITHER_GRADIO = {"gradio_compat.py"}
"""Files with code for gradio 3 and code for gradio 4. No kind of WebUI has all names in them."""

NOT_USED_THERE = {"Forge Neo": {"modules.deepbooru.model.tag", "modules.shared.interrogator.interrogate"}}
"""By kind of WebUI the names that it lacks and that the panel therefore does not use there."""

FILES = [
    *((kind, FOLDER / "backends" / name) for kind, names in BACKENDS.items() for name in sorted(names)),
    *(
        (kind, path)
        for kind in REQUIREMENTS_BY_WEBUI
        for path in SOURCES
        if path.name not in {"ldm.py", *OF_EITHER_GRADIO}
    ),
]


def dotted(node, names):
    """Return the full name of an expression that begins with an imported name, or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return before and f"{before}.{node.attr}"
    return None


def imported_names(tree):
    """Return the full names of the imports from the host and gradio, by their names in the file."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in HOSTS:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            hosts = [alias for alias in node.names if alias.name.partition(".")[0] in (*HOSTS, "psutil")]
            names |= {alias.asname or alias.name: alias.name for alias in hosts}
    return names


def used(tree):
    """Return every name of the host that a file uses, as long as possible."""
    names = imported_names(tree)
    found = {dotted(node, names) for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))} - {None}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def attributes(tree, name):
    """Return the attributes that a file takes from variables and fields of this name, also through `getattr`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is(node.value, name):
            found.add(node.attr)
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if called in ("getattr", "hasattr", "instance_attribute") and _is(node.args[0], name):
            found |= {node.args[1].value} if isinstance(node.args[1], ast.Constant) else set()
    return found


def _is(node, name):
    return getattr(node, "id", None) == name or getattr(node, "attr", None) == name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_a_file_uses_of_the_host_is_in_the_table(path):
    assert unlisted(path, OF_ALL) == []


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_what_a_file_uses_in_a_kind_of_webui_is_in_its_table(kind, path):
    assert set(unlisted(path, requirements_of(kind))) <= NOT_USED_THERE.get(kind, set())


def unlisted(path, table):
    """Return the host's names that a file uses and the table lacks."""
    rows = {f"{module}.{entry.partition('(')[0]}" for module, entries in table.items() for entry in entries}
    # a row for an attribute of an object is a row for the object too
    rows |= {row.rpartition(".")[0] for row in rows} | OWN
    containers = rows - {row.rpartition(".")[0] for row in rows}
    return [
        name
        for name in sorted(used(ast.parse(path.read_text())))
        if name not in rows
        and not any(name.startswith(f"{row}.") for row in rows & CHECKPOINT)
        # a method of a plain container, such as the options' dictionary
        and name.rpartition(".")[0] not in containers
    ]


@pytest.mark.parametrize("name", INSTANCES)
def test_what_is_asked_of_the_hosts_instances_is_in_the_table(name):
    module, of = INSTANCES[name]
    rows = {entry.partition("(")[0].rpartition(".") for entry in OF_ALL[module]}
    known = {attribute for owner, _, attribute in rows if owner.startswith(of)} | OF_THE_SCRIPT.get(name, set())
    asked = {path.name: attributes(ast.parse(path.read_text()), name) - known for path in SOURCES}
    assert {file: names for file, names in asked.items() if names} == {}


def test_the_walk_finds_what_it_shall():
    tree = ast.parse(
        "from modules import shared as s\nimport gradio as gr\ns.opts.colour\ngr.Box\ngetattr(p, 'way', 1)"
    )
    assert used(tree) == {"modules.shared.opts.colour", "gradio.Box"}
    assert attributes(tree, "p") == {"way"}


# scripts/rival.py


@pytest.fixture
def off(host, monkeypatch, capsys, checkpoint):
    """A server whose host lacks a name."""
    monkeypatch.delattr(sys.modules["modules.images"], "flatten")
    server = StandInServer(checkpoint)
    server.log = capsys.readouterr().out
    return server


SENTENCE = (
    "RIVAL: switched off, because this WebUI has no modules.images.flatten(img, bgcolor); "
    "update the WebUI or the extension."
)


def test_the_panel_and_the_log_say_what_is_missing_once(off):
    (script,) = off.scripts.alwayson_scripts
    (switch,) = script.ui(is_img2img=True)
    assert script.title() == "RIVAL"
    assert (switch.value, switch.label) == (False, SENTENCE)
    assert off.log.count(SENTENCE) == 1


def test_nothing_is_registered_but_the_leave(off):
    assert [(event, len(callbacks)) for event, callbacks in modules.REGISTERED.items() if callbacks] == [
        ("script_unloaded", 1)
    ]
    assert [option.label for option in plot.OPTIONS] == ["Seed", "Var. strength"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"mode": "variation", "similarity": 7}, [True], [{"enabled": "yes"}]])
@pytest.mark.parametrize("tab", ["img2img", "txt2img"])
def test_a_request_that_switches_it_on_is_answered_with_the_sentence(off, tab, settings):
    asked = request(settings)
    if tab == "txt2img":
        asked = {name: value for name, value in asked.items() if name not in ("init_images", "denoising_strength")}
    answer = getattr(off, tab)(**asked)
    assert (answer.status, answer.sentence) == (422, SENTENCE)


def test_a_request_without_it_is_as_on_a_host_that_never_had_it(off):
    bare = StandInServer(Checkpoint(off.checkpoint.pipeline), with_extension=False)
    answers = []
    for server, settings in ((off, None), (off, [{"enabled": False}]), (bare, None)):
        server.plan()
        answers.append(server.img2img(**request(settings)))
    assert [answer.status for answer in answers] == [200] * 3
    for answer in answers[:2]:
        assert np.array_equal(answer.images[0], answers[2].images[0])
        assert answer.infotexts == answers[2].infotexts


def load_door_beside(folder):
    """Load scripts/rival.py in a WebUI that has loaded RIVAL from another folder."""
    first = plot.loaded(type("RivalScript", (), {}), "rival.py", ModuleType("rival.py"), basedir=str(folder))
    sys.modules["modules.scripts"].scripts_data.append(first)
    spec = spec_from_file_location("rival.py", ROOT / "scripts" / "rival.py")
    door = module_from_spec(spec)
    spec.loader.exec_module(door)
    return door


def test_a_second_copy_stands_back_with_one_sentence(host, capsys):
    assert not hasattr(load_door_beside("extensions/first"), "RivalScript")
    assert not any(modules.REGISTERED.values())
    said = f"RIVAL: installed twice; extensions/first is in use, delete {ROOT} or disable one of the two.\n"
    assert capsys.readouterr().out == said


def test_its_own_file_loaded_again_is_no_second_copy(host, capsys):
    """The WebUI's "Reload custom script bodies" does so."""
    assert hasattr(load_door_beside(ROOT), "RivalScript")
    assert capsys.readouterr().out == ""
