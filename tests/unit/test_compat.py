"""Other extensions are put aside while the exemplar is evaluated, and cleaned up after an error."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import MethodType, ModuleType, SimpleNamespace

import pytest
from torch import nn

from rival_ext.hosts.webui.compat import (
    controlnet_steers,
    extension_cleanup,
    references_without_exemplar,
    uses_tiled_diffusion,
    without_other_extensions,
)
from rival_ext.method.attention import _suspended


class Block(nn.Module):
    def forward(self):
        return self._forward()

    def _forward(self):
        return "own"


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self):
        return "own", self.block()


class ControlNet:
    """As much of ControlNet's script as RIVAL looks at."""

    def __init__(self):
        self.latest_network = None

    def title(self):
        return "ControlNet"


def processing(script=None, **fields):
    return SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[script] if script else []), **fields)


def replaced(*_):
    return "replaced"


@pytest.fixture
def unet():
    """A UNet on which ControlNet has replaced everything that it can replace."""
    unet = Network()
    unet._original_forward, unet.forward = unet.forward, MethodType(replaced, unet)
    block = unet.block
    block._original_inner_forward_cn_hijack, block._forward = block._forward, MethodType(replaced, block)
    return unet


def loaded(monkeypatch, name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_controlnets_forwards_are_put_aside_and_back(unet):
    before = dict(vars(unet)), dict(vars(unet.block))

    def evaluate_and_fail():
        with without_other_extensions(unet):
            assert unet() == ("own", "own")
            raise KeyError

    with pytest.raises(KeyError):
        evaluate_and_fail()
    assert (vars(unet), vars(unet.block)) == before
    assert unet() == "replaced"


def test_the_class_counts_as_it_is_now_even_if_it_changed_after_controlnet_came(unet):
    class Merged(Block):
        def _forward(self):
            return "merged"

    unet.block.__class__ = Merged
    with without_other_extensions(unet):
        assert unet() == ("own", "merged")


@pytest.mark.parametrize(
    ("module", "table"),
    [("scripts.ipadapter.plugable_ipadapter", "all_hacks"), ("scripts.controlnet_lllite", "all_hack")],
)
def test_adapters_are_put_aside(monkeypatch, module, table):
    unet = Network()
    loaded(monkeypatch, module, **{table: {unet.block: unet.block.forward}})
    unet.block.forward = MethodType(replaced, unet.block)
    with without_other_extensions(unet):
        assert unet() == ("own", "own")
    assert unet() == ("own", "replaced")


def test_freeu_is_off_for_the_exemplar(monkeypatch):
    freeu = SimpleNamespace(enable=True)
    loaded(monkeypatch, "lib_free_u.global_state", instance=freeu)
    with without_other_extensions(Network()):
        assert not freeu.enable
    assert freeu.enable


def test_a_unet_without_marks_stays_as_it_is():
    unet = Network()
    before = dict(vars(unet))
    with without_other_extensions(unet):
        assert vars(unet) == before


def test_a_reference_units_evaluation_is_suspended():
    script = ControlNet()
    seen = []
    script.latest_network = SimpleNamespace(original_forward=lambda: seen.append(_suspended.get()))
    evaluate = script.latest_network.original_forward
    with references_without_exemplar(processing(script)):
        script.latest_network.original_forward()
    assert seen == [True]
    assert not _suspended.get()
    assert script.latest_network.original_forward is evaluate


def unit(kind):
    return SimpleNamespace(control_model_type=SimpleNamespace(name=kind))


@pytest.mark.parametrize(
    ("network", "steers"),
    [
        (None, False),
        (SimpleNamespace(control_params=None), False),
        (SimpleNamespace(control_params=[unit("AttentionInjection")]), False),
        (SimpleNamespace(control_params=[unit("AttentionInjection"), unit("ControlNet")]), True),
        (SimpleNamespace(control_params=[unit("IPAdapter")]), True),
    ],
)
def test_only_the_units_that_act_on_the_layout_steer(network, steers):
    script = ControlNet()
    script.latest_network = network
    assert controlnet_steers(processing(script)) == steers
    assert not controlnet_steers(processing())


def test_controlnet_is_taken_off_after_an_error_only():
    script, restored = ControlNet(), []
    network = script.latest_network = SimpleNamespace(restore=lambda: restored.append(True))
    with extension_cleanup(processing(script)):
        pass
    assert script.latest_network is network
    with pytest.raises(KeyError), extension_cleanup(processing(script)):
        raise KeyError
    assert (script.latest_network, restored) == (None, [True])


@pytest.mark.parametrize("fault", [None, KeyError])
def test_prompts_that_controlnet_marked_are_not_kept_for_the_next_run(fault):
    script, caches = ControlNet(), {"cached_c": ["key", "marked"], "cached_hr_uc": ["key", "marked"]}
    script.latest_network = SimpleNamespace(restore=lambda: None)
    with suppress(KeyError), extension_cleanup(processing(script, **caches)):
        if fault:
            raise fault
    assert list(caches.values()) == [[None, None]] * 2


def test_prompts_are_kept_where_controlnet_is_off():
    kept = ["key", "encoded"]
    with extension_cleanup(processing(None, cached_c=kept)):
        pass
    assert kept == ["key", "encoded"]


class Tiled:
    """As much of one of Tiled Diffusion's scripts as RIVAL looks at."""

    units = ()

    def __init__(self, title):
        self.title = lambda: title
        self.was_reset = False

    def reset(self):
        self.was_reset = True


@pytest.mark.parametrize("title", ["Tiled Diffusion", "DemoFusion"])
def test_tiled_diffusion_is_taken_off_after_an_error_only(title):
    script = Tiled(title)
    with extension_cleanup(processing(script)):
        pass
    assert not script.was_reset
    with pytest.raises(KeyError), extension_cleanup(processing(script)):
        raise KeyError
    assert script.was_reset


class MultiDiffusion:
    """Replaces a model's `forward` by its own method."""

    __module__ = "tile_methods.multidiffusion"

    def forward(self, x):
        """Evaluates tile by tile."""


def sampling(checkpoint=None, **own):
    model = Network()
    vars(model).update(own)
    return SimpleNamespace(sampler=SimpleNamespace(model_wrap=model), sd_model=checkpoint or Network())


def test_tiled_diffusion_is_known_by_its_marks():
    mixed = Network()
    mixed.apply_model_original_md = mixed.forward
    assert not uses_tiled_diffusion(sampling())
    # what another extension replaced is no tiling
    assert not uses_tiled_diffusion(sampling(forward=replaced))
    assert not uses_tiled_diffusion(sampling(forward=Tiled("StableSR").reset))
    assert uses_tiled_diffusion(sampling(forward=MultiDiffusion().forward))
    assert uses_tiled_diffusion(sampling(mixed))
