"""The store's key on the stand-in: each thing that changes a prediction makes another key."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rival_ext.store import digest
from tests.host.servers import StandInServer


@pytest.fixture
def key(hosts):
    """() -> the key of one processing on the stand-in, as it is loaded now."""
    if not isinstance(hosts[0], StandInServer):
        pytest.skip("real WebUI: the cases of test_contract.py change what they can there")
    from rival_ext.hosts.webui_fingerprint import fingerprint

    checkpoint = hosts[0].checkpoint
    sampler = SimpleNamespace(model_wrap=object())
    p = SimpleNamespace(
        sd_model=checkpoint,
        sampler=sampler,
        tiling=False,
        extra_network_data={},
        get_token_merging_ratio=lambda: 0.0,
    )

    def make(prompt="a pizza", **changed):
        vars(p).update(changed)
        schedule = [SimpleNamespace(end_at_step=20, cond=checkpoint.get_learned_conditioning([prompt])[0])]
        return digest(fingerprint(p, [schedule], p.extra_network_data))

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


@pytest.mark.parametrize("option", ["upcast_attn", "enable_quantization", "sd_vae_encode_method"])
def test_options_that_change_a_prediction_are_in_the_key(key, monkeypatch, option):
    before = key()
    monkeypatch.setattr(sys.modules["modules.shared"].opts, option, "changed")
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


@pytest.mark.parametrize("changed", [{"prompt": "a house"}, {"tiling": True}, {"get_token_merging_ratio": lambda: 0.5}])
def test_prompt_tiling_and_token_merging_are_in_the_key(key, changed):
    assert key() != key(**changed)
