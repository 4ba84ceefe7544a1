"""Shared by the unit tests: repeatable property tests, guides, the command line, a UNet of two blocks."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import hypothesis
import pytest
import torch

from rival_ext.cli import main
from rival_ext.hosts import checkpoint
from rival_ext.method.attention import record
from rival_ext.method.exemplars import Exemplar
from rival_ext.method.guide import Guide
from rival_ext.method.inversion import invert
from rival_ext.method.layers import self_attention_layers
from rival_ext.settings import parse_settings
from tests.host.standin import modules
from tests.unit.tiny_unet import DiffusersAttention, LdmAttention, TinyUNet, tokens

hypothesis.settings.register_profile("quick", deadline=None, max_examples=40, derandomize=True, database=None)
hypothesis.settings.load_profile("quick")


@pytest.fixture
def make_live_guide():
    """(host, fields of the settings) -> a guide whose chain recorded nothing: the exemplar is evaluated live."""

    def make(host, **fields):
        settings = parse_settings(fields)
        chain = invert(
            host.exemplar_latent(),
            host.noise_levels(),
            host.predict_noise,
            {},
            iterations=settings.inversion_iterations,
        )
        layers = self_attention_layers(host.unet)
        return Guide(
            [Exemplar(chain)], settings, host.schedule, layers, host.predict_noise, adds_noise=host.adds_noise()
        )

    return make


@pytest.fixture(params=[LdmAttention, DiffusersAttention])
def unet(request):
    """A UNet of two blocks, in each host's form."""
    torch.manual_seed(0)
    return TinyUNet(request.param).requires_grad_(False)


@pytest.fixture
def evaluate(unet):
    """A function that evaluates three rows of `unet`."""
    return lambda: unet(tokens(3), tokens(3, 5, seed=1))


@pytest.fixture
def features(unet):
    """The features of one exemplar in `unet`."""
    with record(self_attention_layers(unet)) as seen:
        unet(tokens(1, seed=2), tokens(1, 5, seed=3))
    return seen


@pytest.fixture
def sample():
    """(host, start, seeds, guide or None) -> final latents."""
    return lambda host, start, seeds, guide: host.sample(start, seeds, guide, lambda done, total: None)


@pytest.fixture
def run(monkeypatch, capsys, pipeline):
    """(arguments of the command line) -> (exit code, standard error). The demo's checkpoint is loaded once for all."""

    def load(path):
        return pipeline if path == checkpoint.DEMO_CHECKPOINT else load_pipeline(path)

    load_pipeline = checkpoint.load_pipeline
    monkeypatch.setattr(checkpoint, "load_pipeline", load)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["rival_ext", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            return stopped.code or 0, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def import_on_stand_in():
    """(name) -> a module of `rival_ext.hosts.webui`, imported where the stand-in takes the WebUI's place."""
    with modules.uninstalled():
        modules.install(SimpleNamespace(device=torch.device("cpu")))
        yield import_module
