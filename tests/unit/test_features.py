"""Features on their way: into one piece of memory in 16 bits, bit by bit, and back to a device ahead of use."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rival_ext.method.chain import Chain
from rival_ext.method.noise import levels_tensor
from rival_ext.method.precision import EightBits, kept_bytes, kept_form, read_features, stored_tensors
from rival_ext.storage import features as arenas
from rival_ext.storage import loading, page_locked
from rival_ext.storage.disk import DiskStore
from rival_ext.storage.features import FeatureArena
from rival_ext.storage.layout import ALIGNMENT, Layout
from rival_ext.storage.loading import NodeLoader
from rival_ext.storage.store import ChainStore, NoStore
from tests.unit.elsewhere import ELSEWHERE, elsewhere
from tests.unit.synthetic import anything, noise

GPU = torch.device("cuda", 0)
SHAPES = {"down.2.attn1": (1, 16, 3), "down.10.attn1": (1, 4, 5), "up.1.attn1": (1, 16, 3)}
"""Layers whose order in the network is not alphabetical. No size is a multiple of 64 bytes."""


def node(seed=0, dtype=torch.float16, rows=1):
    """The features of one node."""
    return {
        name: noise(rows, *shape[1:], seed=10 * seed + index).to(dtype)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def kept_nodes(number, bits=16, **kwargs):
    """Nodes in one piece of memory, and the nodes as recorded."""
    recorded = [node(seed, **kwargs) for seed in range(number)]
    arena = FeatureArena(recorded[0], number, bits)
    return arena, [arena.keep(features) for features in recorded], recorded


def equal(some, others):
    """Whether features are the same, in the same order, bit by bit."""
    return list(some) == list(others) and all(
        (h.dtype, h.shape) == (others[name].dtype, others[name].shape) and torch.equal(h, others[name])
        for name, h in some.items()
    )


# keeping


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_node_is_kept_bit_by_bit(dtype, rows):
    _, kept, recorded = kept_nodes(3, dtype=dtype, rows=rows)
    assert all(equal(*pair) for pair in zip(kept, recorded, strict=True))


def test_float32_is_rounded_to_half_precision():
    _, kept, recorded = kept_nodes(2, dtype=torch.float32)
    assert all(
        equal(some, {name: h.half() for name, h in others.items()}) for some, others in zip(kept, recorded, strict=True)
    )


def test_what_was_recorded_may_be_changed_afterwards():
    features = node()
    kept = FeatureArena(features, 1, 16).keep(features)
    features["up.1.attn1"].zero_()
    assert kept["up.1.attn1"].any()


def test_all_nodes_lie_in_one_piece_that_is_as_large_as_they_are():
    arena, kept, _ = kept_nodes(3)
    addresses = [h.data_ptr() for features in kept for h in features.values()]
    assert addresses == sorted(addresses)
    assert len({h.untyped_storage().data_ptr() for features in kept for h in features.values()}) == 1
    assert all(address % ALIGNMENT == 0 for address in addresses)
    needed = sum(h.nbytes for features in kept for h in features.values())
    assert needed <= arena.bytes < needed + len(addresses) * ALIGNMENT
    assert kept[0]["up.1.attn1"].untyped_storage().nbytes() == arena.bytes


def test_more_nodes_than_were_reserved_are_an_error():
    arena, _, _ = kept_nodes(2)
    with pytest.raises(IndexError, match="memory was reserved for 2 nodes, and another one is to be kept"):
        arena.keep(node())


def test_a_node_of_other_sizes_is_kept_beside_the_memory_and_counted():
    """Another extension may cut the image into tiles, in another way at each evaluation."""
    arena = FeatureArena(node(), 2, 16)
    before = arena.bytes
    tiled = {name: h.reshape(2, -1, h.shape[-1]) for name, h in node(1, torch.float32).items()}
    assert equal(arena.keep(tiled), {name: h.half() for name, h in tiled.items()})
    assert arena.bytes == before + sum(2 * h.numel() for h in tiled.values())
    assert equal(arena.keep(node(2)), node(2))


def test_features_of_another_device_are_kept_in_the_cpus_memory():
    recorded = [node(0), node(1)]
    with elsewhere():
        there = [{name: h.to(ELSEWHERE) for name, h in features.items()} for features in recorded]
        arena = NoStore().reserve(there[0], 2, 16)
        kept = [arena.keep(features) for features in there]
    assert all(equal(*pair) for pair in zip(kept, recorded, strict=True))
    assert {h.device.type for features in kept for h in features.values()} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_eight_bits_lie_in_one_piece_with_their_scales_and_are_counted(dtype):
    arena, kept, recorded = kept_nodes(3, bits=8, dtype=dtype, rows=2)
    for some, others in zip(kept, recorded, strict=True):
        expected = kept_form(others, 8)
        assert isinstance(some, EightBits)
        assert equal(stored_tensors(some), stored_tensors(expected))
        assert some.dtype == expected.dtype == (dtype if dtype.itemsize == 2 else torch.float16)
    tensors = [h for features in kept for h in stored_tensors(features).values()]
    assert len({h.untyped_storage().data_ptr() for h in tensors}) == 1
    needed = sum(h.nbytes for h in tensors)
    assert needed == 3 * kept_bytes(recorded[0], 8)
    assert needed <= arena.bytes < needed + len(tensors) * ALIGNMENT
    assert chain_with(kept).bytes == 4 * 4 * 4 * 4 + needed


# page-locked memory, without a GPU


@pytest.fixture
def locked(monkeypatch):
    """What CUDA was asked to lock, in order: ("lock" or "unlock", address, bytes). `refuses` makes it refuse."""
    cuda = SimpleNamespace(calls=[], refuses=0, forgotten=0)

    def lock(address, size, _):
        cuda.calls.append(("lock", address, size))
        return cuda.refuses

    def unlock(address):
        cuda.calls.append(("unlock", address))

    def forget(_):
        cuda.forgotten += 1

    runtime = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=unlock)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: cuda.calls.append(("synchronize",)))
    monkeypatch.setattr(page_locked, "_forget_error", forget)
    return cuda


def test_whole_pages_are_locked_and_no_more_than_a_page_too_many(locked):
    memory, size = page_locked.reserve_memory(10_000, GPU)
    assert (len(memory), size) == (10_000, 3 * page_locked.PAGE)
    assert locked.calls == [("lock", memory.data_ptr(), size)]
    assert memory.data_ptr() % page_locked.PAGE == 0
    # CUDA asks whether the start of a tensor's storage is locked
    assert memory.untyped_storage().data_ptr() == memory.data_ptr()


def test_pages_are_unlocked_once_when_the_last_tensor_in_them_is_gone(locked):
    memory, _ = page_locked.reserve_memory(10_000, GPU)
    address, part = memory.data_ptr(), memory[64:128].view(torch.float16).view(2, 16)
    del memory
    gc.collect()
    assert len(locked.calls) == 1
    del part
    gc.collect()
    assert locked.calls[1:] == [("synchronize",), ("unlock", address)]


def test_torch_locks_memory_if_cuda_refuses(locked, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda size, **how: np.empty(size) if how["pin_memory"] else None)
    locked.refuses = 2
    memory, size = page_locked.reserve_memory(10_000, GPU)
    assert (len(memory), size, locked.forgotten) == (10_000, 16_384, 1)
    del memory
    assert len(locked.calls) == 1


# in one piece


def test_a_node_of_the_memory_lies_in_one_piece():
    _, kept, _ = kept_nodes(3)
    layout = Layout(kept[1])
    piece = layout.memory_of(kept[1])
    assert piece is not None
    assert equal(layout.views(piece.clone()), kept[1])


def test_features_in_pieces_are_known_as_such():
    _, kept, recorded = kept_nodes(2)
    chosen = {name: h for name, h in kept[0].items() if name != "down.10.attn1"}
    mixed = {**kept[0], "up.1.attn1": kept[1]["up.1.attn1"]}
    strided = {name: h.transpose(1, 2) for name, h in kept[0].items()}
    for features in (recorded[0], chosen, mixed, strided, node(dtype=torch.float32)):
        assert Layout(features).memory_of(features) is None


def test_neighbours_in_memory_that_are_freed_apart_are_no_piece():
    memory = np.zeros(128, np.uint8)
    features = {
        name: torch.from_numpy(memory[start : start + 64]).view(torch.float16) for name, start in (("a", 0), ("b", 64))
    }
    assert Layout(features).memory_of(features) is None


# loading


class Copies(torch.overrides.TorchFunctionMode):
    """Counts the copies that are made while the context is open."""

    number = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.number += function is torch.Tensor.copy_
        return function(*args, **(kwargs or {}))


def loaded_equals(loader, kept, following=None):
    """How many copies a load takes. What it returns is the node, in 16 bits."""
    with Copies() as copies:
        loaded = loader.load(kept, following)
    assert all(h.device == ELSEWHERE for h in loaded.values())
    assert equal({name: h.held for name, h in loaded.items()}, read_features(kept))
    return copies.number


def test_on_the_cpu_and_on_the_device_nothing_is_copied():
    features = node()
    assert NoStore().loader(torch.device("cpu")).load(features, node(1)) is features
    with elsewhere():
        there = {name: h.to(ELSEWHERE) for name, h in features.items()}
        assert NodeLoader(ELSEWHERE).load(there, None) is there


def test_on_the_cpu_eight_bits_are_read_where_they_are():
    _, (kept,), (recorded,) = kept_nodes(1, bits=8)
    assert equal(NodeLoader(torch.device("cpu")).load(kept), read_features(kept_form(recorded, 8)))


@pytest.mark.parametrize("bits", [16, 8])
def test_a_node_of_the_memory_is_one_copy_and_others_are_one_a_layer(bits):
    _, kept, _ = kept_nodes(2, bits, rows=2)
    with elsewhere():
        assert loaded_equals(NodeLoader(ELSEWHERE), kept[0]) == 1
        assert loaded_equals(NodeLoader(ELSEWHERE), node()) == len(SHAPES)
        assert loaded_equals(NodeLoader(ELSEWHERE), {"up.1.attn1": kept[0]["up.1.attn1"]}) == 1


def test_the_next_node_is_brought_ahead_and_the_last_two_are_found_again():
    _, (first, second, third), _ = kept_nodes(3)
    with elsewhere():
        loader = NodeLoader(ELSEWHERE)
        assert loaded_equals(loader, first, second) == 2
        assert loaded_equals(loader, first, second) == 0
        assert loaded_equals(loader, second, third) == 1
        # a sampler that calls the model twice in a step
        assert loaded_equals(loader, second, third) == 0
        assert loaded_equals(loader, third) == 0
        assert loaded_equals(loader, first) == 1


def test_the_node_that_was_asked_for_longest_ago_goes_first():
    _, (first, second, third), _ = kept_nodes(3)
    with elsewhere():
        loader = NodeLoader(ELSEWHERE)
        assert [loaded_equals(loader, first, other) for other in (second, third)] == [2, 1]
        assert loaded_equals(loader, first) == 0
        assert loaded_equals(loader, second) == 1


def test_several_chains_in_turn_are_each_brought_ahead():
    _, first, _ = kept_nodes(3)
    _, second, _ = kept_nodes(3)
    with elsewhere():
        loader = NoStore().loader(ELSEWHERE, chains=2)
        copies = [
            loaded_equals(loader, chain[node], chain[node + 1] if node < 2 else None)
            for node in range(3)
            for chain in (first, second)
        ]
    assert copies == [2, 2, 1, 1, 0, 0]


def test_what_a_caller_holds_stays_as_it_is():
    _, kept, _ = kept_nodes(6)
    with elsewhere():
        loader = NodeLoader(ELSEWHERE)
        held = loader.load(kept[0], kept[1])
        for features in kept[1:]:
            loader.load(features, None)
    assert equal({name: h.held for name, h in held.items()}, kept[0])


def test_all_nodes_stay_where_there_is_room(monkeypatch):
    arena, kept, _ = kept_nodes(5)
    monkeypatch.setattr(loading, "room_on", lambda device: arena.bytes)
    with elsewhere():
        loader = NodeLoader(ELSEWHERE)
        assert [loaded_equals(loader, features) for features in [*kept, *kept]] == [1] * 5 + [0] * 5


def test_a_fourth_of_a_gpus_memory_stays_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    assert loading.room_on(GPU) == 450
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200, 1000))
    assert loading.room_on(GPU) == 0
    assert loading.room_on(torch.device("cpu")) == 0


# what waits for what on a GPU


class Stream:
    """Writes down what waits for what."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.name}")

    def record_event(self):
        self.log.append("copies started")
        return SimpleNamespace(name="copies", synchronize=lambda: self.log.append("CPU waits for copies"))


@pytest.fixture
def log(monkeypatch):
    """What happens on the streams of a pretended GPU."""
    log = []
    side, main = Stream("side", log), Stream("main", log)
    monkeypatch.setattr(arenas, "copy_stream", lambda device: side)
    monkeypatch.setattr(loading, "copy_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: log.append(f"held for {stream.name}"))
    return log


def test_a_nodes_copy_runs_beside_the_next_evaluation_and_is_waited_for_before_the_next_one(log):
    recorded = [node(0), node(1)]
    with elsewhere():
        there = [{name: h.to(ELSEWHERE) for name, h in features.items()} for features in recorded]
        arena = FeatureArena(there[0], 2, 16)
        kept = [arena.keep(features) for features in there]
    started = ["side waits for main", *["held for side"] * len(SHAPES), "copies started"]
    assert log == [*started, "CPU waits for copies", *started, "CPU waits for copies"]
    assert all(equal(*pair) for pair in zip(kept, recorded, strict=True))


def test_an_upload_waits_for_the_stream_and_the_stream_for_the_upload_and_the_cpu_for_neither(log):
    _, kept, _ = kept_nodes(2)
    log.clear()
    with elsewhere():
        loader = NodeLoader(ELSEWHERE)
        loader.load(kept[0], kept[1])
        upload = ["side waits for main", "held for side", "copies started"]
        assert log == [*upload, *upload, "main waits for copies", "held for main"]
        log.clear()
        loader.load(kept[1], None)
        assert log == ["main waits for copies", "held for main"]


# with the stores


def chain_with(kept):
    levels = levels_tensor(range(len(kept) + 1))
    return Chain(levels, noise(len(levels), 4, 2, 2), dict(enumerate(kept, 1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [16, 8])
def test_a_chain_in_one_piece_of_memory_goes_into_a_folder_and_back(tmp_path, dtype, bits):
    _, kept, _ = kept_nodes(12, bits, dtype=dtype, rows=2)
    store = DiskStore(tmp_path, (), torch.device("cpu"), 1e9).open()
    store.put("key", chain_with(kept), 0)
    found = store.get("key", anything)
    for index, features in enumerate(kept, 1):
        assert equal(stored_tensors(found.features[index]), stored_tensors(features))
        assert equal(read_features(found.features[index]), read_features(features))
    with elsewhere():
        loader = store.loader(ELSEWHERE)
        assert all(loaded_equals(loader, features) for features in found.features.values())


def test_a_store_holds_a_chain_by_the_bytes_of_its_features():
    _, kept, _ = kept_nodes(2)
    store = ChainStore()
    store.put("key", chain_with(kept), 1e9)
    assert store.bytes == 3 * 4 * 4 * 4 + sum(h.nbytes for features in kept for h in features.values())
