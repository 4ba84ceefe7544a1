"""The store's key on the stand-in: each thing that changes a prediction makes another key."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rival_ext.fields import FIELDS
from rival_ext.images.decoding import pixel_digest
from rival_ext.method.chain import chain_key
from tests.conftest import exemplar
from tests.host.asking import at_first_call, infotext
from tests.host.standin_server import StandInServer


@pytest.fixture
def key(hosts):
    """A function that makes the key of one processing on the stand-in."""
    if not isinstance(hosts[0], StandInServer):
        pytest.skip("real WebUI: the cases of test_contract.py change what they can there")
    from rival_ext.hosts.webui.backends import model_class
    from rival_ext.hosts.webui.fingerprint import fingerprint

    checkpoint = hosts[0].checkpoint
    sampler = SimpleNamespace(model_wrap=SimpleNamespace(quantize=False))
    p = SimpleNamespace(
        sd_model=checkpoint,
        sampler=sampler,
        tiling=False,
        extra_network_data={},
    )

    def make(prompt="a pizza", **changed):
        vars(p).update(changed)
        schedule = [SimpleNamespace(end_at_step=20, cond=checkpoint.get_learned_conditioning([prompt])[0])]
        return chain_key(fingerprint(p, model_class()(p), [schedule], p.extra_network_data))

    return make


def hypernetwork(strength):
    return SimpleNamespace(name="h", filename="h.pt", layers={320: [SimpleNamespace(multiplier=strength)]})


def lora(strength):
    disk = SimpleNamespace(filename="l.safetensors")
    multipliers = {"te_multiplier": strength, "unet_multiplier": strength, "dyn_dim": None, "mtime": 1.0}
    module = ModuleType("networks")
    module.loaded_networks = [SimpleNamespace(name="l", network_on_disk=disk, **multipliers)]
    return module


def test_the_same_twice_is_the_same_key(key):
    assert key() == key()


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("shared", "loaded_hypernetworks", [hypernetwork(1.0)]),
        ("shared", "loaded_hypernetworks", [hypernetwork(0.5)]),
        ("sd_vae", "get_loaded_vae_hash", lambda: "0123456789"),
        ("sd_vae", "get_loaded_vae_name", lambda: "other.vae"),
        ("devices", "dtype_unet", "torch.float16"),
        ("devices", "unet_needs_upcast", True),
        ("devices", "fp8", True),
        ("sd_hijack", "current_optimizer", SimpleNamespace(name="sdp")),
    ],
)
def test_what_the_host_has_loaded_is_in_the_key(key, monkeypatch, module, name, value):
    before = key()
    monkeypatch.setattr(sys.modules[f"modules.{module}"], name, value)
    assert key() != before


@pytest.mark.parametrize("option", ["upcast_attn", "sd_vae_encode_method"])
def test_options_that_change_a_prediction_are_in_the_key(key, monkeypatch, option):
    before = key()
    monkeypatch.setitem(sys.modules["modules.shared"].opts.data, option, "changed")
    assert key() != before


@pytest.mark.parametrize("attribute", ["filename", "sha256"])
def test_the_checkpoint_is_in_the_key(key, hosts, monkeypatch, attribute):
    before = key()
    monkeypatch.setattr(hosts[0].checkpoint.sd_checkpoint_info, attribute, "another")
    assert key() != before


def test_loras_with_their_strengths_are_in_the_key(key, monkeypatch):
    keys = {key()}
    for strength in (1.0, 0.5):
        monkeypatch.setitem(sys.modules, "networks", lora(strength))
        keys.add(key())
    monkeypatch.delitem(sys.modules, "networks")
    for items in (["l", "1"], ["l", "0.5"], ["m", "1"]):
        keys.add(key(extra_network_data={"lycoris": [SimpleNamespace(items=items)]}))
    assert len(keys) == 6


@pytest.mark.parametrize("changed", [{"prompt": "a house"}, {"tiling": True}])
def test_prompt_and_tiling_are_in_the_key(key, changed):
    assert key() != key(**changed)


def test_token_merging_is_in_the_key_as_the_model_has_it(key, hosts, monkeypatch):
    before = key()
    monkeypatch.setattr(hosts[0].checkpoint, "applied_token_merged_ratio", 0.4, raising=False)
    assert key() != before


def test_quantized_levels_are_told_as_the_sampler_was_made_with_them(key):
    from rival_ext.hosts.webui.host import WebuiHost

    def told(quantize):
        p = SimpleNamespace(sampler=SimpleNamespace(model_wrap=SimpleNamespace(quantize=quantize)))
        return WebuiHost.sampler_fingerprint(SimpleNamespace(p=p))

    assert told(True) != told(False)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [False, True])
def test_the_panel_promises_no_stored_inversion_under_options_that_were_set_during_it(key, hosts, changes, monkeypatch):
    from modules import shared

    from rival_ext.hosts.webui.script import SESSION

    server, small = hosts[0], {"steps": 2, "width": 64, "height": 64, "sampler_name": "Euler"}
    monkeypatch.setattr(shared, "sd_model", server.checkpoint)
    monkeypatch.setitem(shared.opts.data, "rival_memory_mb", 512)

    def set_memory():
        shared.opts.rival_memory_mb = 0 if changes else 512

    server.forget()
    with at_first_call(server, set_memory):
        infotext(server, {}, **small)
    of = {field.name: field.default for field in FIELDS}
    asked = {**small, "scheduler": "Automatic", "denoising_strength": 1, "resize_mode": 0}
    promised = SESSION.is_stored(None, asked, "a pizza", of, [pixel_digest(exemplar("pizza-emojione-yellow"))])
    assert promised == ("stored inversion" in infotext(server, {}, **small)) == (not changes)
