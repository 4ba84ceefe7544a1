"""The chains of several users share one memory. Nobody finds, lists or releases another user's chain."""

from __future__ import annotations

import base64
from itertools import pairwise

import pytest
import torch

from rival_ext.method.chain import Chain
from rival_ext.method.noise import levels_tensor
from rival_ext.method.prepare import prepare
from rival_ext.settings import parse_settings
from rival_ext.storage.store import ChainStore
from tests.unit.synthetic import anything

SIZE = 8


def chain():
    """Return a chain of `SIZE` bytes."""
    return Chain(levels_tensor([0.0, 1.0]), torch.zeros(2, 1, 1, 1))


@pytest.fixture
def stores():
    """The stores of those who have not logged in, of Ann and of Bob. Each holds a chain under the same key."""
    store = ChainStore()
    stores = [store, store.of("ann"), store.of("bob")]
    for one in stores:
        one.put("key", chain(), 10 * SIZE)
    return stores


def test_each_user_finds_the_chain_of_that_user(stores):
    found = [store.get("key", anything) for store in stores]
    assert len({id(one) for one in found}) == 3
    assert stores[0].of("ann").get("key", anything) is found[1]
    assert stores[0].of("eve").get("key", anything) is None


def test_each_user_lists_the_chains_of_that_user_only(stores):
    assert [len(store.entries) for store in stores] == [1, 1, 1]
    assert [store.bytes for store in stores] == [SIZE] * 3
    assert stores[1].entries[0].chain is stores[1].get("key", anything)
    assert stores[1].id_of(stores[1].get("key", anything)) == stores[1].entries[0].id
    assert stores[1].id_of(stores[2].get("key", anything)) is None


def test_each_user_releases_the_chains_of_that_user_only(stores):
    ann, bob = stores[1:]
    assert not bob.remove(ann.entries[0].id)
    bob.clear()
    assert [len(store.entries) for store in stores] == [1, 1, 0]
    assert ann.remove(ann.entries[0].id)
    assert [len(store.entries) for store in stores] == [1, 0, 0]


def test_clear_for_all_releases_the_chains_of_all_users(stores):
    stores[1].clear_for_all()
    assert [store.bytes for store in stores] == [0, 0, 0]


def test_all_users_share_one_memory(stores):
    nobody, ann, bob = stores
    nobody.get("key", anything)
    bob.put("another", chain(), 3 * SIZE)
    assert [len(store.entries) for store in stores] == [1, 0, 2]
    assert ann.make_room(SIZE, SIZE)
    assert [store.bytes for store in stores] == [0, 0, 0]


def test_a_chain_of_another_user_is_inverted_anew(make_host):
    store = ChainStore()
    parts = [
        prepare(make_host(steps=2), parse_settings({}), store.of(user)).inversion
        for user in ("ann", "bob", "ann", None)
    ]
    assert [part.store for part in parts] == ["miss", "miss", "hit", "miss"]


def test_an_id_is_random_and_reveals_nothing_of_its_chain():
    store, same, ids = ChainStore(), chain(), []
    for _ in range(500):
        store.put("key", same, SIZE)
        ids.append(base64.urlsafe_b64decode(store.id_of(same) + "="))
    assert {len(one) for one in ids} == {32}
    # no bit is constant or periodic, as bits of a digest, a clock or a counter would be
    bits = [int.from_bytes(one, "big") for one in ids]
    for bit in range(8 * 32):
        assert 0.3 < sum(one >> bit & 1 for one in bits) / len(bits) < 0.7
        assert 0.3 < sum((one ^ after) >> bit & 1 for one, after in pairwise(bits)) / len(bits) < 0.7
