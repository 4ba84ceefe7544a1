"""RIVAL in two folders of a real WebUI: the copy that is loaded first acts, the other one does nothing."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest

from rival_ext import __version__
from tests.host.asking import images_of, request
from tests.host.conftest import SKIPPED
from tests.host.data_folder import ROOT
from tests.host.servers import RealServer, real_folder
from tests.host.test_changes import doubled

COPIED = ("rival_ext", "scripts", "javascript", "style.css", "install.py")
OTHER, UPDATED = "9.8.0", "9.9.0"
"""Two versions of the other copy."""

FIRST, BETWEEN, LAST = "rival-first", "sd-webui-rival", "sd-webui-rival-main"


class TwiceServer(RealServer):
    """A server with this checkout, and a copy of another version in the folder `LAST`, as after the download of a
    zip."""

    @staticmethod
    def _fill(data, with_extension):
        RealServer._fill(data, with_extension)
        other = data / "extensions" / LAST
        other.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, other / name)
        set_version(other, OTHER)


def set_version(folder, version):
    file = folder / "rival_ext" / "__init__.py"
    file.write_text(re.sub("__version__ = .*", f'__version__ = "{version}"', file.read_text()))


@pytest.fixture
def twice(tmp_path):
    """The server and its folder of extensions."""
    if real_folder() is None:
        pytest.skip(SKIPPED)
    server = TwiceServer(real_folder(), tmp_path)
    try:
        yield server, tmp_path / "extensions"
    finally:
        server.stop()


def assert_once(server, version, axes):
    """Check that nothing of RIVAL is there twice, and that this version is loaded."""
    assert server.client.get("/rival/v1/version").json() == {"version": version}
    scripts = Counter(
        (script["name"], script["is_img2img"]) for script in server.client.get("/sdapi/v1/script-info").json()
    )
    assert [count for (name, _), count in scripts.items() if name == "rival"] == [1, 1]
    assert server.axes() == axes
    # one to read the store and one to empty it
    assert [path for path, count in Counter(server.routes()).items() if count > 1] == ["/rival/v1/store"]
    assert server.routes().count("/rival/v1/store") == 2
    assert doubled(server) == set()
    assert images_of(server, {"similarity": 0.5})
    (text,) = server.img2img(**request({})).infotexts
    assert text.count("RIVAL report") == text.count("RIVAL mode") == 1


def test_the_second_copy_stands_back_at_the_start_and_after_reload_ui_real(twice):
    server, extensions = twice

    def said(used, idle):
        idle, used = extensions / idle, extensions / used
        return server.said().count(
            f"RIVAL: installed twice; {used} is in use, delete {idle} or disable one of the two."
        )

    assert said(BETWEEN, LAST) == 1
    axes = server.axes()
    assert_once(server, __version__, axes)

    server.reload()
    assert said(BETWEEN, LAST) == 2
    assert_once(server, __version__, axes)

    # the other version is loaded first
    (extensions / LAST).rename(extensions / FIRST)
    server.reload()
    assert said(FIRST, BETWEEN) == 1
    assert_once(server, OTHER, axes)

    # the first copy is damaged
    damaged = extensions / FIRST / "rival_ext" / "hosts" / "webui" / "script.py"
    whole = damaged.read_text()
    damaged.write_text("half a downl")
    server.reload()
    assert server.failures() == ["*** Error loading script: rival.py"]
    assert_once(server, __version__, axes)
    damaged.write_text(whole)

    # the first copy is updated, and it is alone
    set_version(extensions / FIRST, UPDATED)
    (extensions / BETWEEN).unlink()
    server.reload()
    assert len(server.failures()) == 1
    assert server.said().count("installed twice") == 3
    assert_once(server, UPDATED, axes)
