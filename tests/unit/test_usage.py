"""Every option in every mode does what docs/command-line.md says: it is used, refused, or mentioned in the report."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from rival_ext.cli import command
from rival_ext.fields import FIELDS, MODES
from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT
from rival_ext.settings import MASK_RULE
from rival_ext.usage import PARTNERS, RULES, flag
from tests.conftest import DATA, quick
from tests.host.data_folder import ROOT

PHOTO, HOUSE = DEMO / "pizza.png", DEMO / "house.png"
PAGE = (ROOT / "docs" / "command-line.md").read_text()
SMALL = ("--steps", "3", "--size", "64x64", "-n", "1", "--prompt", "a pizza")

COLUMNS = [*MODES, "plain"]
CELLS = {
    (option, column): cell
    for option, *cells in re.findall(
        r"^\| `([^`]+)` \| " + r"(used|said|refused) \| " * 4 + r"(\w+) \|$", PAGE, re.MULTILINE
    )
    for column, cell in zip(COLUMNS, cells, strict=True)
}
BECAUSE = dict.fromkeys(re.findall(r"^\| [^|]+ \| ([^|]+?) \|$", PAGE, re.MULTILINE))

SAMPLES = {
    "PHOTO": (HOUSE,),
    "--prompt": ("a star",),
    "-n": (2,),
    "--seed": (7,),
    "--steps": (4,),
    "--mask": ("mask.png",),
    "--size": ("72x64",),
    "--cfg": (2,),
    "--sampler": ("euler",),
    "--checkpoint": ("other.safetensors",),
    "--keep-inversions": ("kept",),
    "--check": (),
    "--similarity": (0.9,),
    "--t-align": (100,),
    "--t-early": (100,),
    "--denoise": (0.7,),
    "--start": ("permuted",),
    "--start-mix": (0.5,),
    "--uncond-share": (0,),
    "--exemplar": (HOUSE,),
    "--exemplar-2": (HOUSE,),
    "--exemplar-3": (HOUSE,),
    **dict.fromkeys(("--exemplar-mask", "--exemplar-mask-2", "--exemplar-mask-3"), ("mask.png",)),
    **dict.fromkeys(("--weight", "--weight-2", "--weight-3"), (0.3,)),
    "--exemplar-prompt": ("a house",),
    "--layers": ("fine",),
    "--strength": (0.5,),
    "--early-steps": (200,),
    "--alignment": ("noise",),
    "--chain": ("noised",),
    "--inversion-nodes": (3,),
    "--feature-nodes": (1,),
    "--inversion-iterations": (2,),
    "--exemplar-tokens": (0.5,),
    "--features": ("live",),
    "--exact": (),
    "--plain-inversion": (),
}
"""A value of each option that differs from its default."""

TOGETHER = {
    "--weight": ("--exemplar-2", HOUSE),
    **{flag(name): (flag(partner), HOUSE) for name, partner in PARTNERS.items()},
    "--exact": ("--exemplar-prompt", "a house"),
    # more levels than nodes
    "--inversion-nodes": ("--steps", 5),
}
"""What an option is given together with, so that it has something to do."""

EXAMPLES = {
    "--plain makes images without RIVAL": ("--plain", "--t-align", 100, "--check"),
    "--plain makes images without RIVAL and --cfg is given": ("--plain", "--cfg", 5, "--mode", "text"),
    "--prompt is empty and guidance follows the prompt": ("--prompt", "", "--uncond-share", 1, "--cfg", 9),
    "every seed gives the same image with --start-mix 0 and a sampler that adds no noise": (
        *("--start-mix", 0, "--seed", 9),
    ),
    "--exemplar takes its place and PHOTO gave only the aspect": ("--exemplar", HOUSE),
    "--weight is 0": ("--exemplar-2", HOUSE, "--weight", 0, "--exemplar-mask", "mask.png"),
    "--weight-2 is 0": ("--weight-2", 0, "--exemplar-2", HOUSE),
    "--weight-3 is 0": ("--weight-3", 0, "--exemplar-3", HOUSE),
    "there is one exemplar and any weight above 0 gives it all": ("--weight", 0.5),
    "--t-align and --t-early and --start-mix and --uncond-share and --strength are given": (
        *("--t-align", 100, "--t-early", 200, "--start-mix", 0.3, "--uncond-share", 1, "--strength", 0.5),
        *("--similarity", 0.9),
    ),
    "--strength is 0": ("--strength", 0, "--t-align", 100, "--layers", "fine"),
    "no step lies above --t-early 1000": ("--t-early", 1000, "--alignment", "latent"),
    "every exemplar has a mask and gives no statistics": ("--exemplar-mask", "mask.png", "--alignment", "latent"),
    "the command line reads no LoRAs": ("--plain-inversion",),
    "--check inverts at each of the sampler's levels": ("--check", "--inversion-nodes", 3),
}
"""For each reason a call in which it holds, with the options that then do nothing at the end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a mask whose left half is white, and with a checkpoint that draws otherwise."""
    folder = tmp_path_factory.mktemp("usage")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 40, 64))
    mask.save(folder / "mask.png")
    weights = load_file(DEMO_CHECKPOINT)
    name = "model.diffusion_model.out.2.bias"
    save_file(weights | {name: weights[name] + 0.1}, folder / "other.safetensors")
    shutil.copytree(DEMO / "tiny-emoji-config", folder / "other-config")
    return folder


@pytest.fixture(scope="module")
def outcomes():
    """What runs without the option came to, by their arguments: they are the same for many options."""
    return {}


@pytest.fixture
def outcome(run, folder, monkeypatch, outcomes):
    """(arguments) -> the pixels of images and sheet, the report without what it repeats of the options, the notes."""
    monkeypatch.chdir(folder)

    def call(*arguments):
        if arguments not in outcomes:
            shutil.rmtree(folder / "out", ignore_errors=True)
            shutil.rmtree(folder / "kept", ignore_errors=True)
            code, error = run(*arguments, "--out", "out")
            assert code == 0, error
            images = {path.name: Image.open(path).tobytes() for path in sorted((folder / "out").glob("*.png"))}
            report = json.loads((folder / "out" / "report.json").read_text())
            notes = report.pop("notes")
            for repeated in ("run", "files", "seconds", "t_align", "t_early", "mode"):
                del report[repeated]
            outcomes[arguments] = images, report, notes
        return outcomes[arguments]

    return call


def are_equal(one, other):
    """Whether two images are the same but for rounding: two rows at a time round otherwise than one."""
    return np.abs(np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8)).max() <= 2


def arguments_of(option, column):
    """The same call without an option and with it."""
    together = TOGETHER.get(option, ())
    mode = ("--plain", *("--cfg", 5) * (option != "--cfg")) if column == "plain" else ("--mode", column)
    mask = ("--mask", "mask.png") if column == "inpaint" and option != "--mask" else ()
    base = (*SMALL, *mode, *mask, *together)
    if option == "PHOTO":
        return (PHOTO, *base), (*SAMPLES[option], *base)
    if option == "--mask" and column == "inpaint":
        return (PHOTO, *base, option, "whole.png"), (PHOTO, *base, option, *SAMPLES[option])
    return (PHOTO, *base), (PHOTO, *base, option, *SAMPLES[option])


QUICK = {("PHOTO", "variation"), ("--exact", "text"), ("--seed", "edit"), ("--mask", "inpaint"), ("--check", "plain")}
QUICK |= {("--chain", "edit"), ("--inversion-nodes", "edit"), ("--feature-nodes", "variation")}


@pytest.mark.parametrize(("option", "column"), quick(CELLS, *QUICK))
def test_an_option_is_used_refused_or_mentioned_as_the_page_says(outcome, run, folder, option, column):
    Image.new("L", (64, 64), 255).save(folder / "whole.png")
    if CELLS[option, column] == "refused":
        outcome(*arguments_of(option, column)[0])
        code, error = run(*arguments_of(option, column)[1], "--out", "refused")
        assert code == 2
        assert error.startswith(f"RIVAL: {option} ")
        return
    without, given = (outcome(*arguments) for arguments in arguments_of(option, column))
    mentioned = any(option in note.partition(" had no effect because ")[0].split() for note in given[2])
    assert mentioned == (CELLS[option, column] == "said"), given[2]
    if not mentioned:
        assert given[:2] != without[:2]
    else:
        # what is mentioned did nothing indeed
        assert all(are_equal(given[0][name], without[0][name]) for name in without[0].keys() - {"sheet.png"})


def test_the_page_has_every_option():
    options = {flag(param.name) for param in command.params} - {"--out", "--source", "--mode", "--plain"}
    assert {option for option, _ in CELLS} == options == SAMPLES.keys()
    assert {field.flag for field in FIELDS if field.name not in ("enabled", "mode")} <= options


def test_the_page_has_every_reason_and_each_has_an_example():
    reasons = {rule.because for rule in RULES}
    assert reasons <= BECAUSE.keys()
    assert reasons == EXAMPLES.keys()


@pytest.mark.parametrize("because", quick(EXAMPLES, *list(EXAMPLES)[::3]))
def test_what_does_nothing_beside_others_is_mentioned(outcome, because):
    images, _, notes = outcome(PHOTO, *SMALL, *EXAMPLES[because])
    (said,) = (note for note in notes if note.endswith(f" had no effect because {because}"))
    idle = [word for word in said.partition(" had no effect")[0].split() if word != "and"]
    arguments = list(map(str, EXAMPLES[because]))
    for option in idle:
        if option == "PHOTO":
            assert outcome(HOUSE, *SMALL, *EXAMPLES[because])[0]["000.png"] == images["000.png"]
            continue
        at = arguments.index(option)
        del arguments[at : at + 1 + len(SAMPLES.get(option, ("a mode",)))]
        if option in ("--exemplar-2", "--exemplar-3"):
            # the weight of 0 is nothing without it
            del arguments[:2]
    # the same image without what did nothing
    assert are_equal(outcome(PHOTO, *SMALL, *arguments)[0]["000.png"], images["000.png"])


@pytest.mark.parametrize(("given", "acts"), [((), False), (("--exact", "--exemplar-prompt", "a pizza"), True)])
def test_without_a_prompt_guidance_amplifies_no_part_of_an_exemplar(outcome, given, acts):
    masked = (PHOTO, *SMALL, "--prompt", "", "--exemplar-mask", "mask.png", *given)
    (usual, _, _), (images, _, notes) = outcome(*masked), outcome(*masked, "--cfg", 9)
    assert any(note.startswith("--cfg had no effect because --prompt is empty") for note in notes) != acts
    assert are_equal(images["000.png"], usual["000.png"]) != acts


@pytest.mark.parametrize("option", map(flag, PARTNERS))
@pytest.mark.parametrize("plain", [(), ("--plain",)])
def test_what_belongs_to_a_missing_exemplar_is_refused(run, folder, monkeypatch, option, plain):
    monkeypatch.chdir(folder)
    code, error = run(PHOTO, *SMALL, *plain, option, *SAMPLES[option], "--out", "refused")
    assert code == 2
    assert error.startswith(f"RIVAL: {option} needs ")
    assert f"`{option}`" in PAGE.partition("Refused is:")[2].partition("Said is")[0]


@pytest.mark.parametrize(("given", "differs"), [(("--mode", "text"), True), (("--mode", "edit", "--cfg", 5), False)])
def test_a_mode_beside_plain_gives_the_guidance_unless_that_is_given(outcome, given, differs):
    plain, with_mode = outcome(PHOTO, *SMALL, "--plain"), outcome(PHOTO, *SMALL, "--plain", *given)
    assert (plain[0] != with_mode[0]) == differs
    assert bool(with_mode[2]) != differs


def test_the_same_image_from_every_seed_is_said_without_being_asked(outcome):
    images, _, notes = outcome(PHOTO, *SMALL[:4], "--mode", "edit", "-n", 2)
    assert images["000.png"] == images["001.png"]
    assert notes[0] == (
        "-n had no effect because every seed gives the same image with --start-mix 0 and a sampler that adds no noise"
    )


# crops


CROPS = [
    ((400, 3), None, "97% of the photo was cut off to fit its 400x3 pixels into 256x64"),
    ((3, 400), None, "97% of the photo was cut off to fit its 3x400 pixels into 64x256"),
    ((150, 100), "64x64", "33% of the photo was cut off to fit its 150x100 pixels into 64x64"),
    ((105, 100), "64x64", None),
]
"""A photo's size, that of the images, and the note."""


@pytest.mark.parametrize(("size", "fitted", "note"), quick(CROPS, *CROPS[1:]))
def test_a_crop_of_the_photo_is_said(run, tmp_path, size, fitted, note):
    Image.open(DATA / "exemplars" / "taxi-twemoji-green.png").resize(size).save(tmp_path / "photo.png")
    chosen = ("--size", fitted) if fitted else ()
    code, error = run(tmp_path / "photo.png", "-n", 1, "--steps", 3, *chosen, "--out", tmp_path / "out")
    assert code == 0, error
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert notes == ([note] if note else [])


def test_a_crop_of_what_is_not_used_is_not_said_and_that_of_a_mask_is(outcome, folder):
    Image.open(PHOTO).resize((128, 32)).save(folder / "wide.png")
    assert outcome("wide.png", *SMALL, "--plain")[2] == []
    assert outcome("wide.png", *SMALL, "--exemplar", PHOTO)[2] == [
        "PHOTO had no effect because --exemplar takes its place and PHOTO gave only the aspect"
    ]
    Image.new("L", (128, 32), 255).save(folder / "wide-mask.png")
    assert outcome(PHOTO, *SMALL, "--exemplar-mask", "wide-mask.png")[2] == [
        "75% of --exemplar-mask was cut off to fit its 128x32 pixels into 64x64"
    ]


# masks


@pytest.mark.parametrize(
    "option", quick(["--mask", "--exemplar-mask", "--exemplar-mask-2"], "--mask", "--exemplar-mask")
)
@pytest.mark.parametrize("grey", [127, 128])
def test_one_rule_says_where_a_mask_counts(run, tmp_path, option, grey):
    mask = Image.new("L", (64, 64))
    mask.paste(grey, (0, 0, 32, 32))
    mask.save(tmp_path / "mask.png")
    beside = ("--exemplar-2", HOUSE) if option.endswith("2") else ()
    code, error = run(PHOTO, *SMALL, *beside, option, tmp_path / "mask.png", "--out", tmp_path / "out")
    assert code == (0 if grey == 128 else 2)
    if grey == 127:
        assert error.startswith(f"RIVAL: {option} ")
        assert MASK_RULE in error


def test_a_mask_that_counts_in_no_position_of_the_latent_is_refused(run, tmp_path):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 2))
    mask.save(tmp_path / "mask.png")
    code, error = run(PHOTO, *SMALL, "--mask", tmp_path / "mask.png", "--out", tmp_path / "out")
    assert code == 2
    assert error.strip() == f"RIVAL: --mask marks nothing to fill ({MASK_RULE}); paint a larger area white."


def test_a_region_that_shows_all_is_none(outcome, folder):
    Image.new("L", (64, 64), 128).save(folder / "all.png")
    latent = ("--alignment", "latent")
    assert outcome(PHOTO, *SMALL, *latent, "--exemplar-mask", "all.png")[:2] == outcome(PHOTO, *SMALL, *latent)[:2]
    assert outcome(PHOTO, *SMALL, *latent, "--exemplar-mask", "all.png")[2] == []


# settings that have no effect on any host


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (("--exact",), "--exact had no effect without an exemplar_prompt"),
        (("--t-early", 100, "--alignment", "off"), "--t-early 100 had no effect because alignment is off"),
        (("--strength", 0), "--strength 0 let no step see the exemplar"),
    ],
)
def test_a_setting_is_named_as_its_option_in_the_notes(outcome, given, note):
    assert outcome(PHOTO, *SMALL, *given)[2] == [note]
