"""The encoders that papers judge images with, CLIP, DINO and LPIPS, each from files on this computer.

Needs the extra `quality` of pyproject.toml. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights
from transformers import AutoImageProcessor, AutoModel

from rival_ext.errors import RivalError
from rival_ext.hosts.checkpoint import first_sentence

Images = Sequence[Image.Image]
Loaded = TypeVar("Loaded")

CLIP_CONFIG = "open_clip_config.json"
DINO_CONFIG = "config.json"

LPIPS_NETS = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1_1": "squeeze"}
"""torchvision's name of a network, with which the name of its published file begins, and torchmetrics' name."""

UNUSED_BY_DINO = "pooler."
"""How the names of tensors begin that a published file may lack: the CLS token is read before the pooler."""


@dataclass(frozen=True)
class Clip:
    """A CLIP model of open_clip: images and texts as vectors of length 1, `[N, D]`."""

    model: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    device: torch.device

    @torch.no_grad()
    def of_images(self, images: Images) -> Tensor:
        """Encode images, each resized and cropped as the model's own description says."""
        pixels = torch.stack([self.preprocess(image) for image in images])
        vectors: Tensor = self.model.encode_image(pixels.to(self.device), normalize=True)
        return vectors

    @torch.no_grad()
    def of_text(self, text: str) -> Tensor:
        """Encode one text, `[1, D]`."""
        vector: Tensor = self.model.encode_text(self.tokenize([text]).to(self.device), normalize=True)
        return vector


@dataclass(frozen=True)
class Dino:
    """A DINO, DINOv2 or DINOv3 model of transformers: the CLS token of each image as a vector of length 1."""

    model: Any
    processor: Any
    device: torch.device

    @torch.no_grad()
    def of_images(self, images: Images) -> Tensor:
        """Encode images, `[N, D]`."""
        pixels = self.processor(images=list(images), return_tensors="pt").to(self.device)
        return torch.nn.functional.normalize(self.model(**pixels).last_hidden_state[:, 0], dim=-1)


@dataclass(frozen=True)
class Lpips:
    """LPIPS of torchmetrics: 0 is the same image."""

    metric: LearnedPerceptualImagePatchSimilarity
    device: torch.device

    @torch.no_grad()
    def distance(self, one: Image.Image, other: Image.Image) -> float:
        """Compare two images of one size."""
        return float(self.metric(self._pixels(one), self._pixels(other)))

    def _pixels(self, image: Image.Image) -> Tensor:
        """`[1, 3, H, W]` from 0 to 1."""
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None].to(self.device)


def load_clip(folder: Path, device: torch.device) -> Clip:
    """Load a folder as open_clip's models are published: `open_clip_config.json`, weights, a tokenizer if it has one.

    Raises:
        RivalError: The folder is not complete or damaged.
    """
    _refuse_incomplete("--clip", folder, CLIP_CONFIG)
    name = f"local-dir:{folder}"

    def load() -> Clip:
        model, preprocess = open_clip.create_model_from_pretrained(name, device=device)
        return Clip(model.eval(), preprocess, open_clip.get_tokenizer(name), device)

    return _loaded("--clip", folder, load)


def load_dino(folder: Path, device: torch.device) -> Dino:
    """Load a folder as transformers' models are published: `config.json`, `preprocessor_config.json` and weights.

    Raises:
        RivalError: The folder is not complete or damaged.
    """
    _refuse_incomplete("--dino", folder, DINO_CONFIG)

    def load() -> Dino:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model, info = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        # transformers would draw tensors that are missing by chance
        if missing := [key for key in info["missing_keys"] if not key.startswith(UNUSED_BY_DINO)]:
            raise ValueError(f"{len(missing)} of its tensors are missing, such as {min(missing)}")
        return Dino(model.eval().to(device), processor, device)

    return _loaded("--dino", folder, load)


def load_lpips(file: Path, device: torch.device) -> Lpips:
    """Load the weights of a backbone as torchvision publishes them; torchmetrics brings those of LPIPS on top of it.

    Raises:
        RivalError: The file is missing, damaged or of another network.
    """
    network = next((name for name in LPIPS_NETS if file.name.startswith(name)), None)
    if network is None:
        raise RivalError(f"--lpips {file} must begin with {' or '.join(LPIPS_NETS)}, as torchvision's files do.")
    if not file.is_file():
        raise RivalError(f"--lpips {file} does not exist; give a file of torchvision's weights.")
    return _loaded("--lpips", file, lambda: Lpips(_lpips_metric(network, file).to(device), device))


def _lpips_metric(network: str, file: Path) -> LearnedPerceptualImagePatchSimilarity:
    """torchmetrics takes no path: it reads the backbone from torch's own folder, so for a moment this is another."""
    weights = torch.load(file, map_location="cpu", weights_only=True)
    published = Path(get_model_weights(network).DEFAULT.url).name
    usual = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        torch.save(weights, checkpoints / published)
        torch.hub.set_dir(folder)
        try:
            return LearnedPerceptualImagePatchSimilarity(LPIPS_NETS[network], normalize=True)
        finally:
            torch.hub.set_dir(usual)


def _refuse_incomplete(option: str, folder: Path, config: str) -> None:
    if not (folder / config).is_file():
        raise RivalError(f"{option} {folder} has no {config}; give a folder with a whole model in it.")


def _loaded(option: str, path: Path, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except Exception as error:  # the libraries raise nearly any exception for damaged weights
        raise RivalError(f"{option} {path} cannot be loaded ({first_sentence(error)}); give another one.") from error
