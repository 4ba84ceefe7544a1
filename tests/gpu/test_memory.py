"""What a run takes of a GPU's memory and of the CPU's, and that it gives both back."""

from __future__ import annotations

import gc

import pytest
import torch

from rival_ext.method.precision import stored_tensors
from rival_ext.method.prepare import prepare
from rival_ext.storage import features as arenas
from rival_ext.storage import loading
from rival_ext.storage.store import ChainStore, NoStore
from tests.gpu.machine import EVERY_NODE, GPU, host_on, images, needs_gpu, settings_with

pytestmark = needs_gpu

SEEDS = [1]
SLACK = 8 * 2**20
"""Bytes. Index tensors, statistics, and the allocator's rounding."""


def node_bytes(chain):
    """What the features of the largest node take in 16 bits."""
    return max(sum(2 * h.numel() for h in features.values()) for features in chain.features.values())


def peak_of(run):
    """The most bytes of the GPU that a run takes on top of what is taken already."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def sample_with(host, store, **values):
    """A run, as a host makes it."""
    guide, _ = prepare(host, settings_with(**values), store)
    images(host, guide, SEEDS)
    return guide


def test_a_stored_run_takes_a_few_nodes_more_than_a_plain_one(monkeypatch):
    """Nodes that would stay on the device are not counted: there is no room for them."""
    monkeypatch.setattr(loading, "room_on", lambda device: 0)
    host, store = host_on(GPU), ChainStore()
    chain = sample_with(host, store).exemplars[0].chain
    plain = peak_of(lambda: images(host, None, SEEDS))
    stored = peak_of(lambda: sample_with(host, store))
    # of two nodes: what was uploaded, the features, their keys and values; and what a layer makes of them
    assert stored - plain < 12 * node_bytes(chain) + chain.latents.nbytes + SLACK


def test_features_stay_in_the_cpus_memory_and_nothing_of_a_run_stays_on_the_gpu():
    host, store = host_on(GPU), ChainStore()
    images(host, None, SEEDS)
    gc.collect()
    before = torch.cuda.memory_allocated()
    chain = sample_with(host, store).exemplars[0].chain
    gc.collect()
    assert {h.device.type for features in chain.features.values() for h in features.values()} == {"cpu"}
    assert torch.cuda.memory_allocated() - before < chain.latents.nbytes + SLACK


def test_many_runs_reserve_no_more_memory_than_two():
    host, store = host_on(GPU), ChainStore()
    for _ in range(2):
        sample_with(host, store)
    reserved = torch.cuda.memory_reserved()
    for _ in range(6):
        sample_with(host, store)
    assert torch.cuda.memory_reserved() - reserved <= SLACK


def test_a_run_has_one_stream_for_its_copies_and_an_inversion_another(monkeypatch):
    made = []

    def counted(device, make=loading.copy_stream):
        made.append(device)
        return make(device)

    monkeypatch.setattr(arenas, "copy_stream", counted)
    monkeypatch.setattr(loading, "copy_stream", counted)
    host, store = host_on(GPU), ChainStore()
    sample_with(host, store)
    assert len(made) == 2
    sample_with(host, store)
    assert len(made) == 3


@pytest.mark.parametrize("values", [{}, EVERY_NODE], ids=str)
def test_features_are_page_locked_and_take_no_more_than_their_own_size(values):
    host = host_on(GPU)
    chain = sample_with(host, NoStore(), **values).exemplars[0].chain
    kept = [h for features in chain.features.values() for h in stored_tensors(features).values()]
    assert all(h.is_pinned() for h in kept)
    size = sum(h.nbytes for h in kept)
    assert kept[0].untyped_storage().nbytes() < size + 64 * len(kept) + 4096


@pytest.mark.parametrize("megabytes", [0, 1])
def test_a_small_budget_keeps_features_of_fewer_nodes_or_evaluates_the_exemplar_live(megabytes, monkeypatch):
    host, store = host_on(GPU), ChainStore()
    monkeypatch.setattr(host, "memory_budget", lambda: megabytes * 2**20)
    guide = sample_with(host, store, **EVERY_NODE)
    assert guide.counts.evaluated_live == (megabytes == 0)
    assert len(guide.exemplars[0].chain.features) < 20
    assert store.bytes <= megabytes * 2**20
