"""Copies between a GPU and the CPU: exact whatever the GPU does beside them, and without waiting."""

from __future__ import annotations

import gc
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from rival_ext.method.precision import read_features
from rival_ext.storage import loading, page_locked
from rival_ext.storage.disk import DiskStore
from rival_ext.storage.features import FeatureArena
from rival_ext.storage.loading import NodeLoader
from tests.gpu.machine import GPU, needs_gpu, without_synchronisation
from tests.unit.test_features import chain_with

pytestmark = needs_gpu

LAYERS, TOKENS, CHANNELS, NODES = 12, 4096, 320, 6
"""31 MB a node, so that a copy takes longer than it takes to start the next operation."""


def recorded(node, dtype=torch.float16, rows=1):
    """The features of a node. Each value says which node and layer it is of."""
    return {
        f"layer {layer}": torch.full((rows, TOKENS, CHANNELS), node * LAYERS + layer, dtype=dtype, device=GPU)
        for layer in range(LAYERS)
    }


def is_node(features, node):
    """Whether each value is that of its node and layer. A channel of one value has no error in 8 bits either."""
    values = read_features(features).values()
    return all(
        torch.allclose(h.float(), torch.tensor(float(node * LAYERS + layer), device=h.device))
        for layer, h in enumerate(values)
    )


def kept_nodes(bits=16, **kwargs):
    """Nodes in page-locked memory. What was recorded is overwritten as soon as torch gives its memory away."""
    arena = FeatureArena(recorded(0, **kwargs), NODES, bits)
    kept = []
    for node in range(NODES):
        kept.append(arena.keep(recorded(node, **kwargs)))
        for _ in range(LAYERS):
            torch.full((TOKENS, CHANNELS), -1.0, dtype=torch.float16, device=GPU)
    return arena, kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("bits", [16, 8])
def test_what_was_recorded_is_kept_although_its_memory_is_used_again(dtype, rows, bits):
    _, kept = kept_nodes(bits, dtype=dtype, rows=rows)
    assert all(is_node(features, node) for node, features in enumerate(kept))


def test_an_inversion_that_stops_early_can_wait_for_what_was_kept():
    arena = FeatureArena(recorded(0), NODES, 16)
    kept = arena.keep(recorded(3))
    arena.wait()
    assert is_node(kept, 3)


def test_to_keep_a_node_does_not_wait_for_the_gpu():
    arena, features = FeatureArena(recorded(0), NODES, 16), recorded(0)
    with without_synchronisation():
        arena.keep(features)


@pytest.mark.parametrize("room", [0, 2**40])
@pytest.mark.parametrize("bits", [16, 8])
def test_loaded_nodes_are_exact_and_loading_does_not_wait(room, bits, monkeypatch):
    """Each node is used by a long operation, and its place is given away at once."""
    monkeypatch.setattr(loading, "room_on", lambda device: room)
    _, kept = kept_nodes(bits)
    loader = NodeLoader(GPU)
    factor = torch.eye(CHANNELS, dtype=torch.float16, device=GPU)
    used = []
    loader.load(kept[0], kept[1])
    with without_synchronisation():
        for node in [0, 1, 1, 2, 3, 2, 4, 5, 0]:
            loaded = loader.load(kept[node], kept[(node + 1) % NODES])
            used.append((node, {name: h @ factor for name, h in loaded.items()}))
            del loaded
    assert all(is_node(features, node) for node, features in used)


def test_a_caller_may_hold_what_it_has_loaded(monkeypatch):
    monkeypatch.setattr(loading, "room_on", lambda device: 0)
    _, kept = kept_nodes()
    loader = NodeLoader(GPU)
    held = [loader.load(features, None) for features in kept]
    assert all(is_node(features, node) for node, features in enumerate(held))


def test_nodes_that_stay_are_uploaded_once(monkeypatch):
    monkeypatch.setattr(loading, "room_on", lambda device: 2**40)
    _, kept = kept_nodes()
    loader = NodeLoader(GPU)
    first = [loader.load(features, None) for features in kept]
    assert all(loader.load(features, None) is loaded for features, loaded in zip(kept, first, strict=True))


def test_a_chain_of_a_folder_is_loaded_as_it_was_recorded(tmp_path):
    _, kept = kept_nodes()
    store = DiskStore(tmp_path, (), GPU, 1e12).open()
    store.put("key", chain_with(kept), 0)
    features = store.get("key", lambda *_: True).features
    loader = store.loader(GPU)
    assert all(is_node(loader.load(features[node + 1], None), node) for node in range(NODES))


# page-locked memory


def test_memory_is_locked_exactly_and_can_be_locked_again_when_it_is_free():
    memory, size = page_locked.reserve_memory(3 * 2**20 + 5, GPU)
    assert memory.is_pinned()
    assert memory[64:128].view(torch.float16).is_pinned()
    assert size == 3 * 2**20 + page_locked.PAGE
    assert lock(memory) != 0
    page_locked._forget_error(GPU)
    address = memory.data_ptr()
    del memory
    gc.collect()
    assert int(torch.cuda.cudart().cudaHostUnregister(address)) != 0
    page_locked._forget_error(GPU)
    assert torch.ones(2, device=GPU).sum().item() == 2


def lock(memory, runtime=None):
    """The answer of CUDA's runtime when it is asked to lock memory: 0, or the number of an error."""
    runtime = runtime or torch.cuda.cudart()
    return int(runtime.cudaHostRegister(memory.data_ptr(), page_locked.PAGE, page_locked.PORTABLE))


def test_if_cuda_refuses_the_memory_is_torchs_own_and_the_error_is_forgotten(monkeypatch):
    """CUDA really refuses: it is asked to lock pages twice."""
    locked, _ = page_locked.reserve_memory(page_locked.PAGE, GPU)
    refusing = SimpleNamespace(cudaHostRegister=partial(lambda runtime, *_: lock(locked, runtime), torch.cuda.cudart()))
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "cudart", lambda: refusing)
        memory, size = page_locked.reserve_memory(10_000, GPU)
    assert memory.is_pinned()
    assert (len(memory), size) == (10_000, 16_384)
    assert torch.ones(2, device=GPU).sum().item() == 2


def test_a_chain_that_goes_while_it_is_uploaded_does_no_harm(monkeypatch):
    monkeypatch.setattr(loading, "room_on", lambda device: 0)
    arena, kept = kept_nodes()
    loaded = NodeLoader(GPU).load(kept[2], kept[3])
    del arena, kept
    gc.collect()
    assert is_node(loaded, 2)
