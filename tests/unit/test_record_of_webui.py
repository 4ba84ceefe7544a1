"""A run of the WebUI with RIVAL, repeated on the command line: taken as far as it can be, else refused by name."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rival_ext.errors import RivalError
from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT
from rival_ext.infotext import write_infotext
from rival_ext.record import read_record
from tests.bad_input import HOSTILE_TEXTS, cases, said

PHOTO = DEMO / "pizza.png"


WEBUI = {"Steps": 2, "Sampler": "DDIM", "Schedule type": "Automatic", "CFG scale": 6.5, "Seed": 11, "Size": "64x64"}
WEBUI |= {
    "Model hash": hashlib.sha256(DEMO_CHECKPOINT.read_bytes()).hexdigest()[:10],
    "Model": "tiny",
    "Denoising strength": 1,
    "Version": "v1.10.1",
}
OF_RIVAL = {"RIVAL mode": "edit", "RIVAL t_early": 400, "RIVAL report": "10 layers", "RIVAL exact": "True"}


def webui_png(path, parameters, prompt="a pizza", negative=""):
    info = PngInfo()
    text = write_infotext(prompt + negative, parameters)
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def test_a_run_of_the_webui_is_repeated_as_far_as_the_command_line_can(run, tmp_path):
    png = webui_png(tmp_path / "webui.png", WEBUI | OF_RIVAL)
    code, error = run(PHOTO, "--from", png, "--out", tmp_path / "out")
    assert code == 0, error
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: value for name, value in report["run"].items() if name not in ("photo", "checkpoint")} == {
        **{"prompt": "a pizza", "number": 1, "seed": 11, "steps": 2, "size": "64x64", "cfg": 6.5, "sampler": "ddim"},
        **{"denoise": 1.0, "plain": False, "check": False, "mode": "edit", "t_early": 400, "exact": True},
    }
    assert "repeats a run of the WebUI and images can differ from its own" in report["notes"]


@pytest.mark.parametrize(
    ("sampler", "schedule", "name"),
    [
        *(("DDIM", "Uniform", "ddim"), ("Euler", "Automatic", "euler"), ("Euler a", None, "euler-a")),
        *(("DPM++ 2M", "Karras", "dpm++2m-karras"), ("DPM++ 2M", None, "dpm++2m-karras")),
        ("DPM++ 2M", "Uniform", "dpm++2m"),
    ],
)
def test_the_webuis_sampler_and_schedule_are_one_of_the_command_lines(tmp_path, sampler, schedule, name):
    png = webui_png(tmp_path / "webui.png", WEBUI | OF_RIVAL | {"Sampler": sampler, "Schedule type": schedule})
    assert read_record(png).options["sampler"] == name


@pytest.mark.parametrize(
    ("changed", "prompt", "said"),
    [
        ({"RIVAL mode": None}, "", "was made without RIVAL;"),
        ({"Sampler": "Heun"}, "", "has 'Heun, Automatic', which is none of the command line's samplers."),
        ({"Schedule type": "Karras", "Sampler": "Euler"}, "", "'Euler, Karras'"),
        ({"Clip skip": 2}, "", "'Clip skip: 2'"),
        ({"VAE": "other.safetensors"}, "", "'VAE: other.safetensors'"),
        ({"Hires upscale": 2}, "", "'Hires upscale: 2'"),
        ({"Variation seed": 5}, "", "'Variation seed: 5'"),
        ({"RIVAL colour": 5}, "", "'RIVAL colour: 5'"),
        ({}, "(a pizza:1.2)", "has weights or other syntax of the WebUI in its prompt"),
        ({}, "a pizza AND a star", "has weights or other syntax of the WebUI in its prompt"),
        ({}, "a pizza\nNegative prompt: ugly", "has a negative prompt, which the command line does not take."),
    ],
)
def test_what_the_command_line_cannot_do_of_it_is_refused(tmp_path, changed, prompt, said):
    png = webui_png(tmp_path / "webui.png", WEBUI | OF_RIVAL | changed, prompt or "a pizza")
    with pytest.raises(RivalError, match=re.escape(said)):
        read_record(png)


def test_the_webuis_checkpoint_and_photo_are_asked_for(run, tmp_path):
    def refused(png, *arguments):
        code, error = run(*arguments, "--from", png, "--out", tmp_path / "out")
        assert code == 2
        return error

    png = webui_png(tmp_path / "webui.png", WEBUI | OF_RIVAL | {"Model hash": "0123456789"})
    assert "Missing argument 'PHOTO'" in refused(png)
    assert "had the SHA-256 0123456789; give --checkpoint to use it or another one." in refused(png, PHOTO)
    tagged = webui_png(tmp_path / "lora.png", WEBUI | OF_RIVAL, "<lora:x:1>")
    assert "--prompt has the tag '<lora:x:1>'" in refused(tagged, PHOTO)


@pytest.mark.slow
@given(st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=80))
@cases(200)
def test_any_infotext_is_read_or_refused(tmp_path_factory, text):
    info = PngInfo()
    try:
        info.add_text("parameters", text + "\nSteps: 20, Sampler: DDIM, Seed: 1, RIVAL mode: " + text)
    except UnicodeError:
        return
    path = tmp_path_factory.getbasetemp() / "any.png"
    Image.new("L", (8, 8)).save(path, pnginfo=info)
    recorded, sentence = said(read_record, path)
    assert sentence or all(isinstance(value, str) for value in recorded.options.values())
