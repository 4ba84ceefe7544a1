"""The chains of a run: found in the store or inverted, within the memory budget. What is refused, and what is kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.errors import RivalError, is_out_of_memory
from rival_ext.method.chain import chain_key
from rival_ext.method.host import EncodedExemplar
from rival_ext.method.noise import levels_tensor
from rival_ext.method.prepare import prepare
from rival_ext.method.run_chains import MEMORY_RAN_OUT
from rival_ext.report import join_report
from rival_ext.settings import parse_settings
from rival_ext.storage.store import ChainStore, NoStore
from tests.conftest import quick
from tests.unit.synthetic import chain_of


def report_of(prepared):
    """The report as it stands, without what a host counts."""
    guide, inversion = prepared
    return join_report(guide.settings, inversion, guide.counts, rows=0, seconds=0.0)


def image_of(host, guide, sample):
    """The final latent of seed 1."""
    return sample(host, host.start([1], guide), [1], guide)


# the store


def test_a_run_finds_the_chain_of_an_earlier_run_unless_something_changes_the_inversion(make_host):
    store = ChainStore()
    parts = []

    def prepared(name="panda-emojione-white", request=None, **fields):
        host = make_host(name, **{"steps": 2} | (request or {}))
        guide, inversion = prepare(host, parse_settings(fields), store)
        parts.append(inversion)
        return guide.exemplars[0].chain

    first = prepared()
    assert (parts[-1].store, parts[-1].rows, parts[-1].inversion.evaluations) == ("miss", 2, 2)
    # what is decided in the generation alone
    assert prepared(t_align=1, t_early=1, alignment="off", start_mix=0.0) is first
    assert prepared(request={"prompt": "a fox", "guidance": 7.0}) is first
    assert (parts[-1].store, parts[-1].rows) == ("hit", 0)
    # what the inversion depends on
    others = [
        prepared(inversion_iterations=2),
        prepared("pizza-emojione-yellow"),
        prepared(request={"exemplar_prompt": "a panda"}),
        prepared(request={"exemplar_prompt": "a panda", "exact": True}),
        prepared(request={"sampler": "euler"}),
        prepared(request={"steps": 3}),
    ]
    assert [part.store for part in parts[3:]] == ["miss"] * 6
    assert len({id(chain) for chain in [first, *others]}) == 7


def test_a_chain_with_features_of_some_nodes_only_is_stored(make_host):
    host = make_host(steps=4)
    settings = parse_settings({})
    latent_bytes = 5 * 4 * 16 * 16 * 4
    feature_bytes = prepare(host, settings, NoStore()).guide.exemplars[0].chain.bytes - latent_bytes
    host.memory_budget = lambda: feature_bytes / 2 + latent_bytes
    store = ChainStore()
    assert len(prepare(host, settings, store).guide.exemplars[0].chain.features) == 2
    assert prepare(host, settings, store).inversion.store == "hit"


def test_a_chain_during_whose_inversion_something_changed_serves_its_run_and_is_not_stored(make_host, sample):
    host, store = make_host(steps=4), ChainStore()
    predict, before = host.predict_noise, host.fingerprint

    def predict_noise(latent, noise_level):
        host.fingerprint = lambda: [*before(), "changed"]
        return predict(latent, noise_level)

    host.predict_noise = predict_noise
    guide = prepare(host, parse_settings({}), store).guide
    assert torch.isfinite(image_of(host, guide, sample)).all()
    assert store.entries == []


# the memory budget


def test_where_the_budget_has_room_for_some_nodes_only_these_are_recorded_and_the_report_says_so(make_host, sample):
    host = make_host(steps=4)
    full = prepare(host, parse_settings({}), NoStore())
    chain = full.guide.exemplars[0].chain
    latents = chain.latents.nbytes
    host.memory_budget = lambda: latents + (chain.bytes - latents) / 2
    half = prepare(host, parse_settings({}), NoStore())
    assert (len(half.guide.exemplars[0].chain.features), len(chain.features)) == (2, 4)
    host.memory_budget = lambda: chain.bytes / 50
    none = prepare(host, parse_settings({}), NoStore())
    finals = [image_of(host, guide, sample) for guide, _ in (full, half, none)]
    reports = [report_of(prepared) for prepared in (full, half, none)]
    assert [report.features for report in reports] == ["recorded", "recorded", "live"]
    assert [report.notes for report in reports] == [
        (),
        ("the memory budget has room for features at 2 noise levels only",),
        ("the memory budget has no room for recorded features",),
    ]
    # four steps leave a residual, so recorded and live differ; another seed's latents differ by 2 and more
    for final in finals[1:]:
        assert 0 < (finals[0] - final).abs().mean() < 0.3


OUT_OF_MEMORY = [
    MemoryError(),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    RuntimeError("Could not allocate tensor with 9 bytes. There is not enough GPU video memory available!"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
"""The errors of Python, CUDA, the CPU on Linux and Windows, Apple's GPUs, DirectML and cuBLAS."""

OTHER_ERROR = RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def fail_once(host, error, at):
    """Make one call of the host's `predict_noise` fail after its layers were recorded."""
    predict, calls = host.predict_noise, iter(range(1, 1000))

    def predict_noise(latent, noise_level):
        noise = predict(latent, noise_level)
        if next(calls) == at:
            raise error
        return noise

    host.predict_noise = predict_noise


@pytest.mark.parametrize("error", quick(OUT_OF_MEMORY, *OUT_OF_MEMORY[1:3]))
def test_if_memory_runs_out_while_features_are_recorded_the_exemplar_is_evaluated_live(make_host, error):
    host, store, other = make_host(steps=3), ChainStore(), chain_of(1)
    store.put("other", other, 1e9)
    fail_once(host, error, at=2)
    prepared = prepare(host, parse_settings({}), store)
    assert prepared.guide.exemplars[0].chain.features == {}
    assert store.id_of(other) is None
    assert (prepared.inversion.features, prepared.inversion.notes) == ("live", [MEMORY_RAN_OUT])


@pytest.mark.parametrize("at", quick([1, 2, 3], 2))
def test_if_memory_runs_out_the_image_is_that_of_a_run_that_evaluates_live(make_host, sample, at):
    host, live_host = make_host(steps=3), make_host(steps=3)
    fail_once(host, MemoryError(), at)
    prepared = prepare(host, parse_settings({}), ChainStore())
    live = prepare(live_host, parse_settings({"features": "live"}), NoStore())
    assert torch.equal(image_of(host, prepared.guide, sample), image_of(live_host, live.guide, sample))
    report = report_of(prepared)
    assert (report.features, report.notes) == ("live", (MEMORY_RAN_OUT,))


def test_if_memory_runs_out_without_recording_the_error_is_raised(make_host):
    for settings, calls in (({"features": "live"}, 1), ({}, 2)):
        host, store = make_host(steps=4), ChainStore()
        for at in range(1, calls + 1):
            # the second attempt's first call follows the first's failure
            fail_once(host, OUT_OF_MEMORY[0], at)
        with pytest.raises(MemoryError):
            prepare(host, parse_settings(settings), store)
        assert store.entries == []


def test_another_error_while_features_are_recorded_is_raised(make_host):
    host = make_host(steps=4)
    fail_once(host, OTHER_ERROR, 2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        prepare(host, parse_settings({}), ChainStore())
    assert not is_out_of_memory(OTHER_ERROR)


# what is refused


def test_a_latent_that_is_not_finite_is_refused(make_host):
    host = make_host(steps=2)
    host.encoded_exemplars = lambda: [EncodedExemplar(torch.full((1, 4, 16, 16), math.nan))]
    with pytest.raises(RivalError, match="not numbers"):
        prepare(host, parse_settings({}), NoStore())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_encoder_that_gives_no_numbers_is_named(make_host, pipeline, value):
    handle = pipeline.vae.quant_conv.register_forward_hook(lambda *call: call[-1] * value)
    host = make_host(steps=2)
    host.predict_noise = None
    try:
        with pytest.raises(
            RivalError, match=r"the VAE of --checkpoint gave values that are not numbers .* in encoding an image"
        ):
            prepare(host, parse_settings({}), NoStore())
    finally:
        handle.remove()


def test_early_steps_of_a_mode_are_named_as_such(make_host):
    host = make_host(steps=2)
    host.noise_levels = lambda: levels_tensor([0.0, host.schedule.noise_level(980)])
    with pytest.raises(RivalError, match=r"early_steps must be at least 980 .*, not 960, the value of mode text; "):
        prepare(host, parse_settings({"mode": "text"}), NoStore())


@pytest.mark.parametrize("at", [1, 2, 3])
def test_one_value_that_is_not_finite_ends_the_inversion_at_once_and_nothing_is_stored(make_host, at):
    host, store = make_host(steps=3), ChainStore()
    predict, calls = host.predict_noise, []

    def predict_noise(latent, noise_level):
        calls.append(noise_level)
        noise = predict(latent, noise_level)
        if len(calls) == at:
            noise[0, 2, 5, 5] = math.nan
        return noise

    host.predict_noise = predict_noise
    with pytest.raises(RivalError, match="not numbers"):
        prepare(host, parse_settings({}), store)
    assert len(calls) == at
    assert store.entries == []


def test_a_live_evaluation_of_the_exemplar_that_is_not_finite_is_refused(make_host, sample):
    host = make_host(steps=4)
    guide = prepare(host, parse_settings({"features": "live"}), NoStore()).guide
    guide.seen._predict_noise = lambda latent, noise_level: torch.full_like(latent, math.inf)
    with pytest.raises(RivalError, match="not numbers"):
        image_of(host, guide, sample)


def test_settings_with_which_no_step_would_see_the_exemplar_are_refused_before_any_evaluation(make_host):
    host = make_host(steps=2)
    host.predict_noise = None
    with pytest.raises(RivalError, match="early_steps must be at least 1 "):
        prepare(host, parse_settings({"early_steps": 0}), NoStore())


# the key

PARTS = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 3, "text", None, [1, 2], torch.tensor(5)]

CHANGES = {
    "a value": (0, torch.tensor([[1.0, 2.0], [3.0, 4.001]])),
    "the order of values": (0, torch.tensor([[1.0, 3.0], [2.0, 4.0]])),
    "a type": (0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()),
    "half precision": (0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half()),
    "brain floats": (0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).bfloat16()),
    "a shape": (0, torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "another shape": (0, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])),
    "a number": (1, 4),
    "a number's type": (1, 3.0),
    "a number as text": (1, "3"),
    "a text": (2, "Text"),
    "a longer text": (2, "text\0"),
    "something for None": (3, 0),
    "an item": (4, [1, 3]),
    "an integer tensor": (5, torch.tensor(6)),
}


@pytest.mark.parametrize(("index", "value"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_any_part_changes_the_key(index, value):
    assert chain_key([*PARTS[:index], value, *PARTS[index + 1 :]]) != chain_key(PARTS)


def test_parts_in_another_order_or_divided_otherwise_have_another_key():
    texts = [["a", "b"], ["b", "a"], ["ab"], ["ab", ""], ["", "ab"], ["a", "b", ""]]
    assert len({chain_key(parts) for parts in texts}) == 6
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert len({chain_key(parts) for parts in ([one, two], [two, one], [torch.cat([one, two])])}) == 3


def test_equal_parts_have_the_same_key_however_they_lie_in_memory():
    turned = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).t()
    assert not turned.is_contiguous()
    tracked = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert chain_key([turned, *PARTS[1:]]) == chain_key([tracked, *PARTS[1:]]) == chain_key(iter(PARTS))


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=6), st.data())
def test_a_change_of_any_value_of_a_tensor_changes_the_key(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    other = data.draw(st.floats(allow_nan=False, width=32).filter(lambda value: value != values[index]))
    changed = [*values[:index], other, *values[index + 1 :]]
    assert chain_key([torch.tensor(values)]) != chain_key([torch.tensor(changed)])
