"""What a run writes so that it can be repeated, and the repetition: the same images bit by bit, or a sentence."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rival_ext import __version__
from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT
from rival_ext.infotext import read_infotext, write_infotext
from rival_ext.record import WEBUI_SAMPLERS, file_entry, png_info, read_record
from rival_ext.settings import SIMILARITY, mode_defaults, parse_settings, similarity_values
from tests.bad_input import cases, said, values
from tests.conftest import quick

PHOTO = DEMO / "pizza.png"
SMALL = ("--steps", 3, "--size", "64x64", "--prompt", "a pizza")
PROMPTS = [
    *("a pizza", "", 'a "pizza", red: blue', "a pizza\nwith olives", "été, 猫 \N{PILE OF POO}", "Steps: 20"),
    *("100% \\ backslash", "a, b: c, d: e, f: g", "  blanks around "),
]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def pixels(*paths):
    return [Image.open(path).tobytes() for path in paths]


@pytest.fixture
def made(run, tmp_path):
    """(arguments) -> the folder of a run with small images, from a photo of its own."""
    photo = tmp_path / "photos" / "a pizza, 'hot'; été.png"
    photo.parent.mkdir()
    shutil.copy(PHOTO, photo)

    def call(*arguments, out="out"):
        code, error = run(*(arguments or (photo,)), "--out", tmp_path / out)
        assert code == 0, error
        return tmp_path / out

    call.photo = photo
    return call


def repeated(made, source, *arguments):
    return made(*arguments, "--from", source, out="again")


# what is written


def test_the_report_says_what_the_run_was_made_of(made):
    out = made(made.photo, *SMALL, "-n", 2, "--seed", 7, "--prompt", "a pizza", "--t-align", 300)
    report = report_of(out)
    assert report["version"] == __version__
    assert report["run"] == {
        "photo": {"path": "../photos/a pizza, 'hot'; été.png", "sha256": sha256(PHOTO)},
        "checkpoint": report["run"]["checkpoint"] | {"sha256": sha256(DEMO_CHECKPOINT)},
        "denoise": 1.0,
        **{"prompt": "a pizza", "number": 2, "seed": 7, "steps": 3, "size": "64x64", "cfg": 5.0, "sampler": "ddim"},
        **{"plain": False, "check": False, "mode": "variation", "t_align": 300},
    }
    assert (out / report["run"]["checkpoint"]["path"]).samefile(DEMO_CHECKPOINT)
    assert {name: entry.get("seed") for name, entry in report["files"].items()} == {
        **{"000.png": 7, "001.png": 8, "sheet.png": None}
    }
    assert all(entry["sha256"] == sha256(out / name) for name, entry in report["files"].items())


def as_documented(text):
    """An infotext as the WebUI's documentation says: the prompt, the negative prompt, and a line of parameters."""
    *prompt, line = text.split("\n")
    found, at = {}, 0
    while at < len(line):
        name, _, rest = line[at:].partition(": ")
        if rest.startswith('"'):
            value, length = json.JSONDecoder().raw_decode(rest)
        else:
            value = rest.partition(", ")[0]
            length = len(value)
        found[name] = value
        at += len(name) + 2 + length + 2
    return "\n".join(prompt), found


@pytest.mark.parametrize("sampler", quick(WEBUI_SAMPLERS, "ddim", "dpm++2m-karras"))
def test_an_image_has_the_parameters_that_the_webui_reads(made, sampler):
    out = made(made.photo, *SMALL, "-n", 2, "--sampler", sampler, "--prompt", "a pizza", "--exemplar-prompt", "a: b, c")
    prompt, parameters = as_documented(Image.open(out / "001.png").info["parameters"])
    webui_sampler, schedule = WEBUI_SAMPLERS[sampler]
    report = parameters.pop("RIVAL report")
    assert report.startswith("10 layers; 3 of 3 steps injected")
    assert prompt == "a pizza"
    assert parameters == {
        **{"Steps": "3", "Sampler": webui_sampler, "CFG scale": "5.0", "Seed": "2", "Size": "64x64"},
        **({"Schedule type": schedule} if schedule else {}),
        **{"Model hash": sha256(DEMO_CHECKPOINT)[:10], "Model": "tiny-emoji", "Denoising strength": "1"},
        **{"RIVAL mode": "variation", "RIVAL exemplar_prompt": "a: b, c", "RIVAL version": __version__},
    }


def test_a_plain_image_claims_nothing_of_rival(made):
    out = made(made.photo, *SMALL, "-n", 1, "--plain", "--prompt", "a pizza")
    _, parameters = as_documented(Image.open(out / "000.png").info["parameters"])
    assert {name for name in parameters if "RIVAL" in name} == {"RIVAL version"}
    assert "Denoising strength" not in parameters


HOSTS_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""After the host's `parse_generation_parameters`."""


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(',:"\\ ()<>'), min_size=1))
def test_a_value_comes_back_from_an_infotext(value):
    text = write_infotext("a prompt", {"Steps": 20, "Sampler": "DDIM", "Size": "8x8", "value": value, "Last": 1})
    line = text.split("\n")[-1]
    hosts = {
        name: json.loads(found) if found.startswith('"') else found for name, found in HOSTS_PARAMETER.findall(line)
    }
    if value == value.strip() and not value.startswith('"'):
        assert read_infotext(text).parameters["value"] == hosts["value"] == value


# repeating


@pytest.mark.slow
def test_every_kind_of_run_is_repeated_bit_by_bit(made, tmp_path):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 40, 64))
    mask.save(tmp_path / "mask.png")
    house = DEMO / "house.png"
    runs = [
        ("--prompt", "a star", "--mode", "text", "--cfg", 3.7, "--strength", 0.3, "--layers", "fine"),
        ("--mode", "edit", "--exemplar-prompt", "a pizza", "--exact", "--sampler", "euler-a", "--check"),
        ("--mode", "inpaint", "--mask", tmp_path / "mask.png", "--exemplar", house, "--sampler", "euler"),
        ("--exemplar-2", house, "--weight-2", 0.4, "--exemplar-mask-2", tmp_path / "mask.png", "--similarity", 0.8),
        ("--plain", "--prompt", "a star", "--sampler", "dpm++2m"),
    ]
    for index, options in enumerate(runs):
        out = made(made.photo, *SMALL, "-n", 2, "--seed", 5, *options, out=f"first-{index}")
        again = made("--from", out / "report.json", out=f"again-{index}")
        names = ("000.png", "001.png", "sheet.png")
        assert pixels(*(again / name for name in names)) == pixels(*(out / name for name in names)), options
        ignored = {"seconds", "files"}
        first, second = ({k: v for k, v in report_of(f).items() if k not in ignored} for f in (out, again))
        assert first == second
        one = made("--from", out / "001.png", out=f"one-{index}")
        assert pixels(one / "000.png") == pixels(out / "001.png")
        assert report_of(one)["run"] | {"number": 2, "seed": 5} == first["run"]
        sheet = made("--from", out / "sheet.png", out=f"sheet-{index}")
        assert pixels(sheet / "001.png") == pixels(out / "001.png")


@pytest.mark.parametrize("prompt", quick(PROMPTS, *PROMPTS[2:5]))
def test_any_prompt_comes_back(made, prompt):
    out = made(made.photo, *SMALL, "-n", 1, "--prompt", prompt, "--exemplar-prompt", prompt)
    for source in ("report.json", "000.png"):
        recorded = read_record(out / source)
        assert (recorded.options["prompt"], recorded.options.get("exemplar_prompt", "")) == (prompt, prompt)


@pytest.mark.parametrize(
    ("given", "denoise"),
    [
        (("--prompt", ""), 0.65),
        (("--prompt", " ", "--plain"), 0.65),
        (("--prompt", "", "--exemplar-2", DEMO / "house.png"), 0.65),
        (("--prompt", "a pizza"), 1.0),
        (("--prompt", "", "--mode", "text"), 1.0),
        (("--prompt", "", "--exemplar", DEMO / "house.png"), 1.0),
        (("--prompt", "", "--mask", PHOTO), 1.0),
        (("--prompt", "", "--denoise", 0.8), 0.8),
        (("--prompt", "", "--denoise", 1), 1.0),
    ],
)
def test_without_a_prompt_a_variation_keeps_some_of_the_photo_and_a_repetition_as_much(made, given, denoise):
    out = made(made.photo, *SMALL, "-n", 1, *given)
    assert report_of(out)["run"]["denoise"] == denoise
    again = repeated(made, out / "000.png")
    assert report_of(again)["run"] == report_of(out)["run"]
    assert pixels(again / "000.png") == pixels(out / "000.png")


def test_a_run_of_before_that_names_no_denoising_strength_is_repeated_at_1(made, tmp_path):
    report = report_of(made(made.photo, *SMALL, "-n", 1, "--prompt", ""))
    del report["run"]["denoise"]
    (tmp_path / "out" / "before.json").write_text(json.dumps(report))
    assert report_of(repeated(made, tmp_path / "out" / "before.json"))["run"]["denoise"] == 1


def test_what_is_given_beside_it_wins(made):
    out = made(
        made.photo, *SMALL, "-n", 1, "--similarity", 0.8, "--mode", "edit", "--start-mix", 0.5, "--prompt", "a star"
    )
    given = {"seed": 9, "steps": 4, "size": "72x64", "prompt": "a pizza", "sampler": "euler", "cfg": 2.0}
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    again = report_of(repeated(made, out / "report.json", *flags))
    assert again["run"] == report_of(out)["run"] | given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ("--similarity", 0.75),
            {"similarity": 0.75, **similarity_values(0.75), "mode": "text", "early_steps": 800},
        ),
        (("--mode", "edit"), {**mode_defaults("edit"), "t_align": 200}),
        (("--mode", "text"), {"mode": "text", "t_align": 200, "early_steps": 800, "start_mix": 0.25}),
    ],
)
def test_a_mode_or_a_similarity_beside_it_sets_what_it_sets_in_the_panel(made, given, expected):
    out = made(
        made.photo, *SMALL, "-n", 1, "--mode", "text", "--t-align", 200, "--early-steps", 800, "--start-mix", 0.25
    )
    run = report_of(repeated(made, out / "report.json", *given))["run"]
    values = mode_defaults(run["mode"]) | run
    names = {"mode", "similarity", "early_steps", *SIMILARITY}
    assert {name: values[name] for name in names} == {
        name: (mode_defaults(run["mode"]) | expected)[name] for name in names
    }


def refused(run, tmp_path, *arguments):
    code, error = run(*arguments, "--out", tmp_path / "again")
    assert code == 2
    assert error.count("\n") == 1
    assert not (tmp_path / "again").exists()
    return error.strip()


def test_a_photo_that_has_changed_is_refused_and_used_if_it_is_given(made, run, tmp_path):
    out = made(made.photo, *SMALL, "-n", 1)
    shutil.copy(DEMO / "house.png", made.photo)
    sentence = refused(run, tmp_path, "--from", out / "000.png")
    assert sentence == (
        f"RIVAL: the photo {made.photo} is not the file of --from {out / '000.png'}, which had the SHA-256 "
        f"{sha256(PHOTO)[:10]}; give PHOTO to use it or another one."
    )
    again = report_of(repeated(made, out / "000.png", made.photo))
    assert again["notes"] == ["PHOTO is another file than in the run that is repeated"]


def test_a_photo_that_was_moved_is_asked_for_and_taken_if_it_is_the_same(made, run, tmp_path):
    out = made(made.photo, *SMALL, "-n", 1, "--exemplar-2", made.photo)
    moved = made.photo.rename(tmp_path / "moved.png")
    assert refused(run, tmp_path, "--from", out / "report.json").endswith("does not exist; give it as PHOTO.")
    assert refused(run, tmp_path, moved, "--from", out / "report.json").endswith(
        "does not exist; give it as --exemplar-2."
    )
    again = repeated(made, out / "report.json", moved, "--exemplar-2", moved)
    assert report_of(again)["notes"] == []
    assert pixels(again / "000.png") == pixels(out / "000.png")


def test_a_folder_with_photo_and_run_can_be_moved(made, tmp_path):
    out = made(made.photo, *SMALL, "-n", 1)
    first = pixels(out / "000.png")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for name in ("out", "photos"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / "deep" / name)
    changed = tmp_path / "elsewhere" / "deep" / "out" / "report.json"
    # the checkpoint did not move along
    again = made("--checkpoint", DEMO_CHECKPOINT, "--from", changed)
    assert pixels(again / "000.png") == first


def test_another_checkpoint_is_refused_and_used_if_it_is_given(made, run, tmp_path):
    out = made(made.photo, *SMALL, "-n", 1)
    report = report_of(out)
    report["run"]["checkpoint"]["sha256"] = "0" * 64
    (out / "report.json").write_text(json.dumps(report))
    assert "which had the SHA-256 0000000000; give --checkpoint to use it" in refused(
        run, tmp_path, "--from", out / "report.json"
    )
    again = repeated(made, out / "report.json", "--checkpoint", DEMO_CHECKPOINT)
    assert report_of(again)["notes"] == ["--checkpoint is another file than in the run that is repeated"]


def test_another_version_is_said(made):
    out = made(made.photo, *SMALL, "-n", 1)
    report = report_of(out)
    (out / "report.json").write_text(json.dumps(report | {"version": "0.0.9"}))
    again = repeated(made, out / "report.json")
    assert report_of(again)["notes"] == ["repeats a run of RIVAL 0.0.9 and images can differ from its own"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"run": 5, "version": 1}',
        b'{"run": {"photo": {}}, "version": 1}',
        b"[" * 100_000,
    ],
)
def test_a_file_without_a_run_is_refused(run, tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    sentence = refused(run, tmp_path, "--from", tmp_path / "report.json")
    assert re.search(
        r"(holds no run that can be repeated|is empty); give a report.json or a PNG of an earlier", sentence
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"steps": "many"}, "--steps"),
        ({"steps": [1]}, "--steps"),
        ({"size": 5}, "--size"),
        ({"cfg": float("nan")}, "--cfg"),
        ({"t_align": 5000}, "--t-align"),
        ({"mode": "paint"}, "--mode"),
        ({"out": "elsewhere"}, "option that is not known here: 'out'"),
        ({"keep_inversions": "elsewhere"}, "option that is not known here: 'keep_inversions'"),
        ({"brush": 1}, "option that is not known here: 'brush'"),
        ({"photo": "https://example.org/a.png"}, "is an address"),
        ({"prompt": "<lora:x:1>"}, "--prompt"),
    ],
)
def test_a_wrong_value_in_a_report_is_named(run, tmp_path, changed, named):
    recorded = {"photo": file_entry(PHOTO, sha256(PHOTO), tmp_path)} | changed
    (tmp_path / "report.json").write_text(json.dumps({"version": __version__, "run": recorded}))
    assert named in refused(run, tmp_path, "--from", tmp_path / "report.json")


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["photo", "steps", "prompt", "exact", "size", "mode", "x"]), values), values)
@cases(150)
def test_any_report_is_read_or_refused(tmp_path_factory, run_values, version):
    source = tmp_path_factory.getbasetemp() / "any-report.json"
    try:
        source.write_text(json.dumps({"run": run_values, "version": version}))
    except (ValueError, RecursionError):
        return
    recorded, sentence = said(read_record, source)
    assert sentence or all(isinstance(value, str) for value in recorded.options.values())


def test_the_chunks_need_no_run(tmp_path):
    run = {
        "prompt": "a",
        "steps": 2,
        "sampler": "ddim",
        "cfg": 5.0,
        "seed": 1,
        "size": "64x64",
        "plain": True,
        "denoise": 1.0,
    }
    info = png_info(run | {"checkpoint": {"path": "../m.safetensors", "sha256": "ab" * 32}}, parse_settings({}), "")
    Image.new("L", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    assert Image.open(tmp_path / "x.png").info["parameters"] == (
        f"a\nSteps: 2, Sampler: DDIM, CFG scale: 5.0, Seed: 1, Size: 64x64, Model hash: ababababab, Model: m, "
        f"RIVAL version: {__version__}"
    )
