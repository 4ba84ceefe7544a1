"""Checkpoints that cannot be loaded, or that give no numbers: one sentence that names the file, and exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rival_ext.errors import RivalError
from rival_ext.hosts import checkpoint
from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT, load_pipeline
from tests.bad_input import long_cases, plain, said

PHOTO = DEMO / "pizza.png"
VAE, TEXT, UNET = "first_stage_model.", "cond_stage_model.", "model.diffusion_model."
OUT = "first_stage_model.decoder.conv_out.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def weights():
    return load_file(DEMO_CHECKPOINT)


@pytest.fixture
def file(tmp_path):
    """Where a changed demo checkpoint is written. The demo's description lies beside it."""
    shutil.copytree(DEMO / "tiny-emoji-config", tmp_path / "x-config")
    return tmp_path / "x.safetensors"


def refused(path):
    """The sentence with which a checkpoint is refused."""
    pipeline, sentence = said(load_pipeline, path)
    assert pipeline is None
    assert str(path) in sentence
    return sentence


def without(weights, *beginnings):
    return {name: tensor for name, tensor in weights.items() if not name.startswith(beginnings)}


def reshaped(tensor):
    return torch.zeros([side + 1 for side in tensor.shape])


@pytest.mark.parametrize(
    ("beginning", "part"), [(VAE, "has no VAE;"), (TEXT, "has no text encoder;"), (UNET, "is not a Stable Diffusion 1")]
)
def test_a_part_that_is_missing_is_named(file, weights, run, beginning, part):
    save_file(without(weights, beginning), file)
    assert part in refused(file)
    code, error = run(PHOTO, "--checkpoint", file, "--out", file.parent / "out")
    assert (code, error.strip()) == (2, refused(file))
    assert not (file.parent / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", [VAE + "quant_conv", UNET + "out.2.bias", TEXT + "transformer.text_model.final"])
def test_tensors_that_are_missing_are_a_sentence(file, weights, beginning):
    save_file(without(weights, beginning), file)
    assert "cannot be loaded (some of its tensors are missing); give another one to --checkpoint." in refused(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", [OUT, POSITIONS, UNET + "time_embed.0.bias"])
def test_a_tensor_of_another_shape_is_named(file, weights, name):
    save_file(weights | {name: reshaped(weights[name])}, file)
    assert "expected shape" in refused(file)


@pytest.mark.slow
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_refused(file, weights, value):
    save_file(weights | {OUT: torch.full_like(weights[OUT], value)}, file)
    assert "values that are not numbers (NaN or infinity) in vae.decoder.conv_out.weight" in refused(file)


def test_quantised_weights_are_refused(file, weights):
    save_file({name: tensor.to(torch.int8) for name, tensor in weights.items()}, file)
    assert "holds quantised weights; give one in 16 bits" in refused(file)
    save_file(weights | {checkpoint.SCALED: torch.zeros(2)}, file)
    assert "holds quantised weights" in refused(file)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_other_floating_point_weights_are_loaded(file, weights, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in weights.items() if tensor.is_floating_point()}, file)
    assert load_pipeline(file).unet.dtype == torch.float32


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, 0.999])
def test_a_truncated_file_is_refused(file, share):
    whole = DEMO_CHECKPOINT.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert ("is empty;" if share == 0 else "is not a readable .safetensors file;") in refused(file)


def test_what_is_no_file_is_named(tmp_path):
    assert "is a folder; give a .safetensors file to --checkpoint." in refused(tmp_path)
    assert "is a device;" in refused(Path("/dev/null"))
    assert "does not exist." in refused(tmp_path / "x")


@pytest.mark.slow
def test_no_advice_of_the_libraries_stands_beside_the_sentence(tmp_path):
    command = [sys.executable, "-m", "rival_ext", PHOTO, "--checkpoint", tmp_path, "--out", tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"RIVAL: the checkpoint {tmp_path} is a folder; give a .safetensors file to --checkpoint.\n"


@pytest.mark.parametrize("description", ["", "[]", "{}", '{"block_out_channels": []}', "\udcff"])
def test_a_description_that_cannot_be_read_is_named(file, weights, description):
    save_file(weights, file)
    (file.parent / "x-config" / "unet" / "config.json").write_text(description, errors="surrogateescape")
    with pytest.raises(RivalError, match=r"x-config beside the checkpoint does not describe it;"):
        load_pipeline(file)


def test_a_description_that_the_library_refuses_is_a_sentence(file, weights):
    save_file(weights, file)
    config = file.parent / "x-config" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [64]}))
    refused(file)
    shutil.rmtree(file.parent / "x-config" / "scheduler")
    refused(file)


def test_an_error_of_our_own_is_no_sentence(file, weights, monkeypatch):
    def broken(*_):
        raise KeyError("a mistake")

    save_file(weights, file)
    monkeypatch.setattr(checkpoint, "_refuse_not_finite", broken)
    with pytest.raises(KeyError, match="a mistake"):
        load_pipeline(file)


@pytest.mark.slow
@given(data=st.data())
@long_cases(40)
def test_any_damage_is_a_sentence_or_loads(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(DEMO / "tiny-emoji-config", folder / "x-config")
    changed = load_file(DEMO_CHECKPOINT)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(changed)))
        damage = data.draw(st.sampled_from(["drop", "grow", "scalar", "empty", "flat", "integers", "nan"]))
        tensor = changed.pop(name)
        made = {
            "grow": lambda tensor=tensor: reshaped(tensor),
            "scalar": lambda: torch.zeros(()),
            "empty": lambda: torch.zeros(0),
            "flat": lambda tensor=tensor: tensor.flatten(),
            "integers": lambda tensor=tensor: tensor.to(torch.int64),
            "nan": lambda tensor=tensor: tensor.float() * torch.nan,
        }
        changed |= {} if damage == "drop" else {name: made[damage]().contiguous()}
    save_file(changed, folder / "x.safetensors")
    _, sentence = said(load_pipeline, folder / "x.safetensors")
    shutil.rmtree(folder)
    assert not sentence or plain(sentence)


# numbers that are none, from a checkpoint whose weights are numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "when"),
    [
        (OUT, "VAE", "in decoding an image"),
        ("first_stage_model.encoder.conv_out.weight", "VAE", "in encoding an image"),
        (UNET + "out.2.weight", "UNet", "for the exemplar"),
    ],
)
def test_what_is_not_a_number_is_a_sentence_that_names_the_part(file, weights, run, recwarn, name, part, when):
    save_file(weights | {name: torch.full(weights[name].shape, 3e38)}, file)
    out = file.parent / "out"
    code, error = run(PHOTO, "-n", 1, "--steps", 2, "--checkpoint", file, "--out", out)
    assert code == 2
    assert error.strip().splitlines()[-1] == (
        f"RIVAL: the {part} of --checkpoint gave values that are not numbers (NaN or infinity) {when}; "
        f"give a checkpoint with another {part}."
    )
    assert not out.exists()
    assert not [warning for warning in recwarn if "invalid value" in str(warning.message)]


def test_latents_that_are_not_numbers_after_plain_sampling_are_a_sentence(file, weights, run):
    name = UNET + "out.2.weight"
    save_file(weights | {name: torch.full(weights[name].shape, 3e38)}, file)
    code, error = run(PHOTO, "-n", 1, "--steps", 2, "--plain", "--checkpoint", file, "--out", file.parent / "out")
    assert code == 2
    assert "the UNet of --checkpoint gave values that are not numbers (NaN or infinity) in sampling;" in error


@pytest.mark.parametrize("method", ["encoded_exemplars", "sample", "decode"])
def test_a_lack_of_memory_is_a_sentence(run, tmp_path, monkeypatch, method):
    from rival_ext.hosts.diffusers import DiffusersHost

    def lacking(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(DiffusersHost, method, lacking)
    code, error = run(PHOTO, "-n", 1, "--steps", 2, "--out", tmp_path / "out")
    assert code == 2
    assert error.strip().splitlines()[-1] == (
        "RIVAL: memory ran out; give a smaller --size, set --features to live, or close other programs."
    )
