"""The command line: what it writes, and what it refuses without writing anything."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rival_ext.cli import SAMPLERS, main
from rival_ext.fields import INFOTEXT_FIELDS
from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT, SD15_CONFIG
from tests.conftest import quick

PHOTO = DEMO / "pizza.png"
QUICK = ("-n", 1, "--steps", 4, "--denoise", 1)
SMALL = ("--steps", 2, "--size", "64x64", "--denoise", 1)

REPORT = {
    "version": str,
    "run": dict,
    "mode": str,
    "t_align": int,
    "t_early": int,
    "chain": str,
    "exemplars": int,
    "layers": int,
    "features": str,
    "store": str,
    "steps": {"total": int, "injected": int, "aligned": int},
    "inversion": {
        **{"evaluations": int, "iterations": int, "residual": float, "levels": int, "bend": float},
        "psnr": (float, type(None)),
    },
    "rows": {"inversion": int, "generation": int},
    "seconds": {"inversion": float, "generation": float},
    "notes": list,
    "files": dict,
}


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def assert_shaped(value, shape):
    if isinstance(shape, dict):
        assert list(value) == list(shape)
        for key, inner in shape.items():
            assert_shaped(value[key], inner)
    else:
        assert isinstance(value, shape)


def test_images_sheet_and_report_are_written(run, tmp_path):
    out = tmp_path / "new" / "out"
    code, _ = run(PHOTO, "-n", 2, "--steps", 6, "--denoise", 1, "--check", "--out", out)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["000.png", "001.png", "report.json", "sheet.png"]
    report = report_of(out)
    assert_shaped(report, REPORT)
    assert (report["mode"], report["layers"], report["features"], report["store"]) == (
        "variation",
        10,
        "recorded",
        "off",
    )
    assert report["steps"] == {"total": 6, "injected": 6, "aligned": 2}
    assert report["inversion"]["evaluations"] == 6
    assert report["inversion"]["psnr"] > 20
    assert report["rows"] == {"inversion": 6, "generation": 2 * 2 * 6}
    assert Image.open(out / "000.png").size == (128, 128)
    assert Image.open(out / "sheet.png").width > 3 * 128
    assert np.abs(pixels(out / "000.png") - pixels(out / "001.png")).max() > 20


@pytest.mark.usefixtures("run")
def test_a_check_prints_the_grade_of_the_inversion_and_advice(monkeypatch, capsys, tmp_path):
    arguments = (PHOTO, *QUICK, "--check", "--out", tmp_path)
    monkeypatch.setattr("sys.argv", ["rival_ext", *map(str, arguments)])
    main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Poor: the exemplar comes back at ")
    assert last.endswith("the sampling steps to 8.")


def test_an_image_is_the_same_bit_by_bit_alone_and_among_others(run, tmp_path):
    run(PHOTO, "-n", 3, "--seed", 5, "--sampler", "euler-a", *SMALL, "--out", tmp_path / "many")
    run(PHOTO, "-n", 1, "--seed", 7, "--sampler", "euler-a", *SMALL, "--out", tmp_path / "one")
    assert (pixels(tmp_path / "many" / "002.png") == pixels(tmp_path / "one" / "000.png")).all()


def test_plain_generates_without_rival(run, tmp_path):
    run(PHOTO, "-n", 1, *SMALL, "--plain", "--out", tmp_path / "plain")
    run(DEMO / "house.png", "-n", 1, *SMALL, "--plain", "--out", tmp_path / "other-photo")
    assert (pixels(tmp_path / "plain" / "000.png") == pixels(tmp_path / "other-photo" / "000.png")).all()
    report = report_of(tmp_path / "plain")
    assert (report["mode"], report["layers"], report["features"]) == ("plain", 0, None)
    assert report["steps"] == {"total": 2, "injected": 0, "aligned": 0}
    assert report["rows"] == {"inversion": 0, "generation": 4}


@pytest.mark.parametrize("sampler", quick(SAMPLERS, "euler-a"))
def test_the_exemplar_is_injected_in_every_step_of_every_sampler(run, tmp_path, sampler):
    code, _ = run(
        PHOTO, "-n", 1, "--steps", 3, "--denoise", 1, "--sampler", sampler, "--cfg", 1, "--out", tmp_path / "out"
    )
    report = report_of(tmp_path / "out")
    assert code == 0
    assert report["steps"]["injected"] == report["steps"]["total"] == 3
    assert report["rows"] == {"inversion": 3, "generation": 3}


def test_the_size_and_the_settings_are_used(run, tmp_path):
    options = {"--t-align": 300, "--t-early": 200, "--alignment": "latent", "--inversion-iterations": 2}
    flat = [part for pair in options.items() for part in pair]
    run(PHOTO, "-n", 1, "--steps", 5, "--denoise", 1, "--size", "136x64", "--out", tmp_path / "out", *flat)
    report = report_of(tmp_path / "out")
    assert Image.open(tmp_path / "out" / "000.png").size == (136, 64)
    assert (report["t_align"], report["t_early"], report["steps"]["aligned"]) == (300, 200, 4)
    assert report["inversion"]["evaluations"] > 5


def test_the_images_have_the_aspect_of_the_photo(run, tmp_path):
    Image.open(PHOTO).convert("RGB").resize((300, 150)).save(tmp_path / "wide.png")
    run(tmp_path / "wide.png", "-n", 1, "--steps", 2, "--out", tmp_path / "out")
    width, height = Image.open(tmp_path / "out" / "000.png").size
    assert width > height


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing.png"], "nothing.png"),
        ([DEMO_CHECKPOINT], "not an image"),
        ([PHOTO, "--size", "100x128"], "multiple of 8"),
        ([PHOTO, "--size", "128"], "WIDTHxHEIGHT"),
        ([PHOTO, "--size", "128x8"], "from 64"),
        ([PHOTO, "-n", "0"], "-n"),
        ([PHOTO, "--steps", "1"], "--steps"),
        ([PHOTO, "--steps", "ten"], "--steps"),
        ([PHOTO, "--cfg", "0.5"], "--cfg"),
        ([PHOTO, "--seed", "-1"], "--seed"),
        ([PHOTO, "--sampler", "heun"], "--sampler"),
        ([PHOTO, "--mode", "paint"], "--mode"),
        ([PHOTO, "--mode", "inpaint"], "--mask"),
        ([PHOTO, "--weight", "0"], "--weight"),
        ([PHOTO, "--exemplar-2", "nothing.png"], "nothing.png"),
        ([PHOTO, "--t-align", "1001"], "--t-align"),
        ([PHOTO, "--early-steps", "0"], "--early-steps"),
        ([PHOTO, "--inversion-iterations", "0"], "--inversion-iterations"),
        ([PHOTO, "--alignment", "both"], "--alignment"),
        ([PHOTO, "--bogus"], "--bogus"),
        ([PHOTO, "--checkpoint", "nothing.safetensors"], "nothing.safetensors"),
        ([PHOTO, "--checkpoint", PHOTO], "not a readable .safetensors"),
        ([PHOTO, "--prompt", "a pizza " * 60], "--prompt"),
        ([], "PHOTO"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(run, tmp_path, arguments, named):
    code, error = run(*arguments, "--out", tmp_path / "out")
    sentence = error.strip().splitlines()[-1]
    assert code == 2
    assert named in sentence
    assert error.strip() == sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({"conditioner.embedders.0.weight": (2, 2)}, "not a Stable Diffusion 1.x checkpoint"),
        ({"first": (320, 9, 3, 3), "cross": (320, 768)}, "(320, 9, 768)"),
        ({"first": (320, 4, 3, 3), "cross": (320, 1024)}, "(320, 4, 1024)"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused_by_its_shapes(run, tmp_path, shapes, named):
    from rival_ext.hosts.checkpoint import FIRST_CONVOLUTION, FIRST_CROSS_ATTENTION

    names = {"first": FIRST_CONVOLUTION, "cross": FIRST_CROSS_ATTENTION}
    save_file({names.get(name, name): torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    code, error = run(PHOTO, "--checkpoint", tmp_path / "x.safetensors", "--out", tmp_path / "out")
    assert code == 2
    assert named in error


def test_a_folder_with_other_files_is_left_alone_and_an_earlier_run_is_replaced(run, tmp_path):
    (tmp_path / "000.png").write_text("mine")
    code, error = run(PHOTO, "-n", 1, "--steps", 2, "--out", tmp_path)
    assert code == 2
    assert "holds other files" in error
    assert (tmp_path / "000.png").read_text() == "mine"
    for _ in range(2):
        assert run(PHOTO, "-n", 1, *SMALL, "--out", tmp_path / "out")[0] == 0


def test_every_setting_of_an_infotext_is_an_option(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rival_ext", "--help"])
    main()
    text = capsys.readouterr().out
    assert all(field.flag in text for field in INFOTEXT_FIELDS)


def test_the_configuration_of_sd15_gives_the_published_numbers_of_parameters():
    """The numbers of parameters of the UNet, the VAE and the text encoder are those of the published checkpoint."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15_CONFIG / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SD15_CONFIG / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(SD15_CONFIG / "text_encoder"))
    assert (count(unet), count(vae), count(text)) == (859_520_964, 83_653_863, 123_060_480)


# modes


def test_mode_text_makes_images_of_another_size_than_the_exemplar(run, tmp_path):
    out = tmp_path / "out"
    code, error = run(PHOTO, "--mode", "text", "--prompt", "a red apple", "--size", "192x128", *QUICK, "--out", out)
    assert code == 0, error
    report = report_of(out)
    assert (report["mode"], report["steps"]) == ("text", {"total": 4, "injected": 3, "aligned": 1})
    assert Image.open(out / "000.png").size == (192, 128)


def test_mode_edit_makes_the_same_image_from_every_seed(run, tmp_path):
    edit = (PHOTO, "--mode", "edit", "--exemplar-prompt", "a pizza", "--prompt", "a pizza, blue background")
    for seed in (1, 2):
        assert run(*edit, *QUICK, "--seed", seed, "--out", tmp_path / str(seed))[0] == 0
    assert (pixels(tmp_path / "1" / "000.png") == pixels(tmp_path / "2" / "000.png")).all()


@pytest.mark.parametrize("others", [(), pytest.param(("--exemplar", DEMO / "house.png"), marks=pytest.mark.slow)])
def test_mode_inpaint_keeps_every_pixel_outside_the_mask(run, tmp_path, others):
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    mask.save(tmp_path / "mask.png")
    out = tmp_path / "out"
    code, error = run(PHOTO, "--mode", "inpaint", "--mask", tmp_path / "mask.png", *others, *QUICK, "--out", out)
    assert code == 0, error
    kept = np.asarray(mask) == 0
    difference = np.abs(pixels(out / "000.png") - pixels(PHOTO)).max(axis=2)
    assert difference[kept].max() == 0
    assert difference[~kept].mean() > 3


def test_two_exemplars_one_of_them_with_a_region_are_inverted(run, tmp_path):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    second = ("--exemplar-2", DEMO / "house.png", "--exemplar-mask-2", tmp_path / "mask.png", "--weight-2", 0.5)
    code, error = run(PHOTO, *second, *QUICK, "--out", tmp_path / "out")
    assert code == 0, error
    report = report_of(tmp_path / "out")
    assert (report["exemplars"], report["inversion"]["evaluations"]) == (2, 8)
