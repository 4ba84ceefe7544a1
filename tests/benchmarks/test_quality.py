"""benchmarks/quality.py with small encoders of random weights, in the form in which the real ones are published."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from rival_ext.errors import RivalError
from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT
from tests.benchmarks.scripts import BENCHMARKS, run, written
from tests.conftest import DATA, exemplar

# the folder of the benchmarks, which import each other by name
sys.path.append(str(BENCHMARKS))
pytest.importorskip("scipy", reason="quality: scipy is not installed (the quality extra)")
pytest.importorskip("open_clip", reason="quality: open_clip is not installed (the quality extra)")
pytest.importorskip("torchmetrics", reason="quality: torchmetrics is not installed (the quality extra)")

import encoders
import open_clip
import quality
from quality_page import MEASURES
from torchvision.models import get_model, get_model_weights
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PHOTOS = ("pizza-emojione-yellow", "house-emojione-blue")
PROMPTS = {"pizza-emojione-yellow.png": "a pizza", "house-emojione-blue.png": ""}
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SMALL_DINO = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SQUEEZENET = "squeezenet1_1-1.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with an encoder of each kind."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL_CLIP, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder / 'clip'}")
    save_file(model.state_dict(), folder / "clip" / "model.safetensors")
    Dinov2Model(Dinov2Config(**SMALL_DINO)).save_pretrained(folder / "dino")
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(folder / "dino")
    torch.save(get_model("squeezenet1_1").state_dict(), folder / SQUEEZENET)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder with two photos."""
    (tmp_path / "photos").mkdir()
    for name in PHOTOS:
        shutil.copy(DATA / "exemplars" / f"{name}.png", tmp_path / "photos")
    return tmp_path / "photos"


def options(weights):
    return ("--clip", weights / "clip", "--dino", weights / "dino", "--lpips", weights / SQUEEZENET)


def complaint(*arguments):
    """What a run in this process says before it ends with an error."""
    result = CliRunner().invoke(quality.main, [*map(str, arguments)])
    assert result.exit_code == 1, result.output
    return result.output.strip().splitlines()[-1]


def test_every_arm_is_measured_and_nothing_is_downloaded(tmp_path, weights, photos, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "downloads"))
    prompts, out = tmp_path / "prompts.json", tmp_path / "out"
    prompts.write_text(json.dumps(PROMPTS))
    size = ("--steps", 2, "--seeds", 2, "--size", "64x128")
    run(
        "quality.py",
        "--checkpoint",
        DEMO_CHECKPOINT,
        "--photos",
        photos,
        "--prompts",
        prompts,
        *options(weights),
        *size,
        "--out",
        out,
    )
    assert written(out) == ["quality.json", "quality.md", "quality.png"]
    assert not (tmp_path / "downloads").exists()

    result = json.loads((out / "quality.json").read_text())
    assert result["means"].keys() == quality.ARMS.keys()
    assert all(figures.keys() == MEASURES.keys() for figures in result["means"].values())
    # two steps of two rows each; the inversion evaluates one row a step
    assert {arm: figures["rows"]["mean"] for arm, figures in result["means"].items()} == dict.fromkeys(quality.ARMS, 4)
    inversions = [figures["inversion_rows"]["mean"] for figures in result["means"].values()]
    assert inversions == [0] + [2] * (len(quality.ARMS) - 1)

    pizza, house = (result["photos"][f"{name}.png"] for name in PHOTOS)
    assert pizza["size"] == [64, 128]
    assert [image["seed"] for image in pizza["arms"]["plain"]["images"]] == [1, 2]
    assert "clip_t" in pizza["arms"]["plain"]["means"]
    assert "clip_t" not in house["arms"]["plain"]["means"]

    text = (out / "quality.md").read_text()
    assert all(one.title in text for one in MEASURES.values())
    assert str(tmp_path) not in text
    with closing(Image.open(out / "quality.png")) as sheet:
        assert sheet.width > (len(quality.ARMS) + 1) * quality.CELL


def test_what_has_no_weights_is_left_out_by_name(tmp_path, photos):
    (photos / f"{PHOTOS[0]}.png").unlink()
    size = ("--steps", "4", "--denoise", "0.25", "--seeds", "1", "--size", "64x64")
    arguments = ("--checkpoint", DEMO_CHECKPOINT, "--photos", photos, "--out", tmp_path / "out", *size)
    result = CliRunner().invoke(quality.main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    means = json.loads((tmp_path / "out" / "quality.json").read_text())["means"]
    assert means["plain"]["rows"]["mean"] == 2
    assert means["plain"].keys() == {key for key, one in MEASURES.items() if not one.needs}
    text = (tmp_path / "out" / "quality.md").read_text()
    for one in MEASURES.values():
        assert (f"**{one.title}** was not measured: it needs {one.needs}." in text) == bool(one.needs)


# the encoders


def test_the_same_image_is_at_no_distance(weights):
    images = [exemplar(name).resize((64, 64)) for name in PHOTOS]
    for encoder in (encoders.load_clip(weights / "clip", CPU), encoders.load_dino(weights / "dino", CPU)):
        cosines = encoder.of_images([*images, images[0]]) @ encoder.of_images(images[:1])[0]
        assert cosines[[0, 2]].tolist() == pytest.approx([1, 1], abs=1e-5)
        assert cosines[1] < 1 - 1e-4
    lpips = encoders.load_lpips(weights / SQUEEZENET, CPU)
    assert lpips.distance(images[0], images[0]) == pytest.approx(0, abs=1e-6)
    assert lpips.distance(*images) > 1e-3


def test_the_weights_are_those_of_the_files(weights):
    loaded = {
        "clip": encoders.load_clip(weights / "clip", CPU).model.state_dict(),
        "dino": encoders.load_dino(weights / "dino", CPU).model.state_dict(),
    }
    expected = {
        "clip": open_clip.create_model(f"local-dir:{weights / 'clip'}").state_dict(),
        "dino": Dinov2Model.from_pretrained(weights / "dino").state_dict(),
    }
    for name, tensors in expected.items():
        torch.testing.assert_close(dict(loaded[name]), dict(tensors))
    backbone = torch.load(weights / SQUEEZENET)["features.0.weight"]
    slices = encoders.load_lpips(weights / SQUEEZENET, CPU).metric.net.net.slices
    torch.testing.assert_close(slices[0][0].weight, backbone)


def test_torch_looks_for_downloads_where_it_did_before(weights):
    before = torch.hub.get_dir()
    encoders.load_lpips(weights / SQUEEZENET, CPU)
    assert torch.hub.get_dir() == before


@pytest.mark.parametrize("network", encoders.LPIPS_NETS)
def test_torchvision_publishes_each_backbone_under_the_name_that_is_expected(network):
    assert get_model_weights(network).DEFAULT.url.rpartition("/")[2].startswith(network)


# what is missing or damaged


def clip_without_weights(weights, folder):
    shutil.copytree(weights / "clip", folder / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    return encoders.load_clip, folder / "clip", "could not be loaded"


def clip_without_a_description(weights, folder):
    return encoders.load_clip, folder, "has no open_clip_config.json; give a folder with a whole model in it."


def dino_that_does_not_exist(weights, folder):
    return encoders.load_dino, folder / "nowhere", "has no config.json; give a folder with a whole model in it."


def dino_with_a_missing_tensor(weights, folder):
    shutil.copytree(weights / "dino", folder / "dino", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = Dinov2Model.from_pretrained(weights / "dino").state_dict()
    tensors.pop("embeddings.cls_token")
    save_file(tensors, folder / "dino" / "model.safetensors", metadata={"format": "pt"})
    return encoders.load_dino, folder / "dino", "(1 of its tensors are missing, such as embeddings.cls_token)"


def lpips_that_does_not_exist(weights, folder):
    return encoders.load_lpips, folder / SQUEEZENET, "does not exist; give a file of torchvision's weights."


def lpips_of_another_network(weights, folder):
    shutil.copy(weights / SQUEEZENET, folder / "alexnet.pth")
    return encoders.load_lpips, folder / "alexnet.pth", "cannot be loaded (Error(s) in loading state_dict for AlexNet"


def lpips_under_another_name(weights, folder):
    return encoders.load_lpips, folder / "net.pth", "must begin with alexnet or vgg16 or squeezenet1_1"


DAMAGES = (
    clip_without_weights,
    clip_without_a_description,
    dino_that_does_not_exist,
    dino_with_a_missing_tensor,
    lpips_that_does_not_exist,
    lpips_of_another_network,
    lpips_under_another_name,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_weights_that_are_missing_are_one_sentence(weights, tmp_path, damage):
    load, path, expected = damage(weights, tmp_path)
    with pytest.raises(RivalError) as raised:
        load(path, CPU)
    sentence = str(raised.value)
    assert sentence.startswith("RIVAL: --")
    assert expected in sentence
    assert str(path) in sentence
    assert "\n" not in sentence


def test_bad_weights_end_the_command_with_the_sentence(photos, tmp_path):
    said = complaint("--checkpoint", DEMO_CHECKPOINT, "--photos", photos, "--out", tmp_path, "--dino", tmp_path)
    assert said == f"RIVAL: --dino {tmp_path} has no config.json; give a folder with a whole model in it."


# the prompts


def test_prompts_come_from_csv_json_or_the_names(photos, tmp_path):
    (tmp_path / "prompts.csv").write_text(
        'photo,prompt\npizza-emojione-yellow.png,"a pizza, round"\nhouse-emojione-blue.png,\n'
    )
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    for source, expected in (
        (tmp_path / "prompts.csv", ["", "a pizza, round"]),
        (tmp_path / "prompts.json", ["", "a pizza"]),
        (None, ["house emojione blue", "pizza emojione yellow"]),
    ):
        assert list(quality.read_sources(photos, source).values()) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.json", "[1]", "must be a JSON object of file names and prompts, or a CSV file with the columns photo and"),
        (
            "p.csv",
            "a,b\n1,2\n",
            "must be a JSON object of file names and prompts, or a CSV file with the columns photo",
        ),
        ("p.json", "{}", "has no prompt for house-emojione-blue.png; an empty one is a prompt too."),
    ],
)
def test_prompts_that_do_not_fit_are_one_sentence(photos, tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    said = complaint(
        "--checkpoint", DEMO_CHECKPOINT, "--photos", photos, "--out", tmp_path, "--prompts", tmp_path / name
    )
    assert said.startswith(f"RIVAL: --prompts {tmp_path / name} {expected}")


def test_a_folder_without_photos_is_one_sentence(tmp_path):
    said = complaint("--checkpoint", DEMO_CHECKPOINT, "--photos", tmp_path, "--out", tmp_path)
    assert said == f"RIVAL: --photos {tmp_path} has no image in it; give a folder of photos."
