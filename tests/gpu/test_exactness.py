"""A run on a GPU makes the images of the CPU, in each precision as nearly as that precision allows."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from rival_ext.images.transforms import rgb_array
from rival_ext.method.inversion import reconstruct
from rival_ext.method.prepare import prepare
from rival_ext.method.quality import psnr
from rival_ext.storage.store import NoStore
from tests.gpu.machine import CPU, EVERY_NODE, GPU, host_on, images, needs_gpu, rms, settings_with

pytestmark = needs_gpu

SEEDS = [1, 2]
FARTHEST = {torch.float32: 1.0, torch.float16: 3.0, torch.bfloat16: 6.0}
"""RMS, of 255, that a precision may lie away from the CPU's float32. Two seeds of an image lie 33 to 100 apart. On the
CPU bfloat16 lies 1.5 away."""


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """A GPU's convolutions round float32 to 19 bits by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@cache
def made_on(device, dtype, features="recorded"):
    """The images of two seeds, and the guide that made them."""
    host = host_on(device, dtype)
    guide, inversion = prepare(host, settings_with(features=features, **EVERY_NODE), NoStore())
    made = images(host, guide, SEEDS)
    assert (inversion.features, guide.counts.evaluated_live) == (features, features == "live")
    return made, guide


@pytest.mark.parametrize("dtype", FARTHEST, ids=str)
def test_the_images_are_those_of_the_cpu(dtype):
    (on_gpu, _), (on_cpu, _) = made_on(GPU, dtype), made_on(CPU, torch.float32)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert rms(one, other) < FARTHEST[dtype]
    assert rms(on_gpu[0], on_cpu[1]) > 20


@pytest.mark.parametrize("dtype", FARTHEST, ids=str)
def test_recorded_features_give_the_images_of_live_ones(dtype):
    """Measured on an H200: 0.4 to 1.7 in each precision."""
    assert rms(made_on(GPU, dtype)[0], made_on(GPU, dtype, "live")[0]) < 4


@pytest.mark.parametrize("dtype", FARTHEST, ids=str)
def test_the_exemplar_comes_back_from_its_inversion(dtype):
    """Measured on an H200 with four exemplars: a median of 45 to 46 dB in each precision."""
    host, (_, guide) = host_on(GPU, dtype), made_on(GPU, dtype)
    chain = guide.exemplars[0].chain
    back, expected = (
        host.decode(latent)[0] for latent in (reconstruct(chain, host.predict_noise), host.exemplar_latent())
    )
    assert psnr(*(torch.from_numpy(rgb_array(image)) for image in (back, expected))) > 38


@pytest.mark.parametrize("dtype", FARTHEST, ids=str)
def test_the_default_makes_the_images_of_the_cpu_too(dtype):
    """Features at a few nodes, in 8 bits."""
    on_gpu, on_cpu = (
        images(host, prepare(host, settings_with(), NoStore()).guide, SEEDS)
        for host in (host_on(GPU, dtype), host_on(CPU, torch.float32))
    )
    assert rms(on_gpu, on_cpu) < FARTHEST[dtype]


@pytest.mark.parametrize("dtype", FARTHEST, ids=str)
def test_the_same_request_makes_the_same_image_again(dtype):
    host = host_on(GPU, dtype)
    guide, _ = prepare(host, settings_with(), NoStore())
    assert rms(images(host, guide, SEEDS), images(host, guide, SEEDS)) < 0.1
