"""The store in memory: which chains it finds, and which leave when memory is short. How features travel."""

from __future__ import annotations

import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from rival_ext.storage.store import ChainStore
from tests.unit.synthetic import anything, chain_of


def store_of(sizes, budget):
    """A store into which a chain was put under each key, and these chains by key. Sizes are in units of 8 bytes."""
    store, chains = ChainStore(), {key: chain_of(size) for key, size in sizes.items()}
    for key, chain in chains.items():
        store.put(key, chain, budget)
    return store, chains


def kept(store, chains):
    """The keys whose chains the store holds. Asking for an id is no use of a chain."""
    return "".join(key for key, chain in chains.items() if store.id_of(chain))


# finding


def test_a_chain_is_found_under_its_key_only():
    store, chains = store_of({"a": 1}, budget=100)
    assert store.get("a", anything) is chains["a"]
    assert store.get("b", anything) is None
    assert store.bytes == chains["a"].bytes == 8


def test_clear_releases_all_memory():
    store, _ = store_of({"a": 1}, budget=100)
    store.clear()
    assert store.get("a", anything) is None
    assert store.bytes == 0


def test_each_entry_has_a_random_id():
    store, chains = store_of({"a": 1, "b": 1}, budget=100)
    ids = [entry.id for entry in store.entries]
    assert len(set(ids)) == 2
    assert all(len(one) > 30 for one in ids)
    assert store.id_of(chains["b"]) == ids[1]
    assert store.id_of(chain_of(1)) is None


def test_an_id_removes_its_chain_and_no_other():
    store, chains = store_of({"a": 1, "b": 1}, budget=100)
    first = store.entries[0].id
    assert store.remove(first)
    assert not store.remove(first)
    assert not store.remove("a")
    assert kept(store, chains) == "b"


# which chains leave


def test_the_least_recently_used_chain_leaves_first():
    store, chains = store_of({"a": 1, "b": 1, "c": 1}, budget=24)
    store.get("a", anything)
    chains["d"] = chain_of(1)
    store.put("d", chains["d"], 24)
    assert kept(store, chains) == "acd"
    chains["e"] = chain_of(2)
    store.put("e", chains["e"], 24)
    assert kept(store, chains) == "de"


def test_a_chain_that_is_put_again_is_the_most_recently_used():
    store, chains = store_of({"a": 1, "b": 1}, budget=16)
    store.put("a", chains["a"], 16)
    chains["c"] = chain_of(1)
    store.put("c", chains["c"], 16)
    assert kept(store, chains) == "ac"


def test_a_search_for_an_unknown_key_changes_no_order():
    store, chains = store_of({"a": 1, "b": 1}, budget=16)
    store.get("z", anything)
    chains["c"] = chain_of(1)
    store.put("c", chains["c"], 16)
    assert kept(store, chains) == "bc"


def test_a_chain_larger_than_the_budget_is_not_kept_and_removes_no_other():
    store, chains = store_of({"a": 2, "b": 4}, budget=24)
    assert kept(store, chains) == "a"


def test_a_chain_of_exactly_the_budget_is_kept_alone():
    store, chains = store_of({"a": 1, "b": 3}, budget=24)
    assert kept(store, chains) == "b"


def test_making_room_removes_no_more_than_needed():
    store, chains = store_of({"a": 1, "b": 1, "c": 1}, budget=24)
    assert store.make_room(8, 24)
    assert kept(store, chains) == "bc"
    assert not store.make_room(25, 24)
    assert kept(store, chains) == "bc"
    assert store.make_room(24, 24)
    assert kept(store, chains) == ""


def test_a_smaller_budget_removes_the_oldest_chains():
    store, chains = store_of({"a": 1, "b": 1, "c": 1}, budget=100)
    chains["d"] = chain_of(1)
    store.put("d", chains["d"], 16)
    assert kept(store, chains) == "cd"


def test_a_smaller_budget_counts_even_if_the_new_chain_does_not_fit():
    store, _ = store_of({"a": 2, "b": 2}, budget=32)
    store.put("c", chain_of(3), 16)
    assert store.bytes <= 16


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 6)), max_size=30))
def test_the_store_behaves_as_a_plain_model_of_it_and_stays_within_its_budget(calls):
    budget = 10 * 8
    store, model = ChainStore(), OrderedDict()
    for searching, key, size in calls:
        assert (store.get(key, anything) is not None) == (key in model)
        if key in model:
            model.move_to_end(key)
        elif not searching:
            store.put(key, chain_of(size), budget)
            model[key] = size
            while sum(model.values()) > 10:
                model.popitem(last=False)
        assert store.bytes == 8 * sum(model.values()) <= budget


def test_threads_may_release_chains_while_others_look_them_up():
    """The short switch interval lets another thread run after nearly every line of the store."""
    before = sys.getswitchinterval()
    store, chain = ChainStore(), chain_of(1)

    def run(user):
        mine = store.of(user)
        for turn in range(1500):
            key = "abcdef"[turn % 6]
            mine.put(key, chain, 8 * 10)
            assert mine.get(key, anything) in (chain, None)
            mine.make_room(8, 8 * 4)

    def release(user):
        mine = store.of(user)
        for _ in range(1500):
            for entry in mine.entries[:1]:
                mine.remove(entry.id)
            mine.clear()
            store.clear_for_all()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(act, user) for act in (run, release) for user in (None, "ann")]:
                done.result()
    finally:
        sys.setswitchinterval(before)
