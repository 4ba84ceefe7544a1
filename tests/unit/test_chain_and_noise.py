"""The chain at and between its nodes, its making, the two clocks, and the store."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.cli import SAMPLERS
from rival_ext.errors import RivalError
from rival_ext.method.chain import Chain
from rival_ext.method.host import EncodedExemplar
from rival_ext.method.inversion import TOLERANCE, extrapolated, invert, lower_latent, reconstruct
from rival_ext.method.layers import HookedLayer
from rival_ext.method.noise import NoiseSchedule, levels_tensor, scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.method.run_chains import chain_key
from rival_ext.report import join_report
from rival_ext.settings import parse_settings
from rival_ext.storage.features import FeatureTransfer, PrefetchedFeatures
from rival_ext.storage.store import ChainStore, NoStore

LEVELS = [0.03, 0.5, 2.0, 4.0, 14.0]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(node):
    return {"layer": torch.full((1, 2, 3), float(node))}


LATENTS = noise(5, 4, 3, 3)
CHAIN = Chain(levels_tensor(LEVELS), LATENTS, {node: features(node) for node in (1, 2, 4)})


def slope_below(node):
    return (LATENTS[node : node + 1] - LATENTS[node - 1 : node]) / (LEVELS[node] - LEVELS[node - 1])


def report_of(prepared):
    """The report as it stands, without what a host counts."""
    guide, inversion = prepared
    return join_report(guide.settings, inversion, guide.counts, rows=0, seconds=0.0)


# the chain


@pytest.mark.parametrize("node", range(1, 5))
def test_at_a_node_the_latent_is_the_nodes_own_bit_by_bit(node):
    assert torch.equal(CHAIN.latent(LEVELS[node]), LATENTS[node : node + 1])


def test_at_the_lowest_node_the_latent_is_the_clean_one():
    assert (CHAIN.latent(LEVELS[0]) - LATENTS[:1]).abs().max() < 1e-6


@given(st.integers(1, 4), st.floats(0.001, 0.999))
def test_between_two_nodes_the_latent_is_linear_in_the_noise_level(node, part):
    level = LEVELS[node - 1] + part * (LEVELS[node] - LEVELS[node - 1])
    expected = (1 - part) * LATENTS[node - 1] + part * LATENTS[node]
    # a node reaches a ten-thousandth of its level further, and the two segments differ a little there
    assert (CHAIN.latent(level)[0] - expected).abs().max() < 1e-3


def test_above_and_below_the_outer_segments_reach_on():
    assert (CHAIN.latent(20.0) - (LATENTS[4:] + 6 * slope_below(4))).abs().max() < 1e-5
    assert (CHAIN.latent(0.0) - (LATENTS[:1] - 0.03 * slope_below(1))).abs().max() < 1e-5


@pytest.mark.parametrize("node", range(1, 5))
def test_the_slope_at_a_node_is_that_of_the_step_which_leaves_it_downwards(node):
    middle = (LEVELS[node] + LEVELS[node - 1]) / 2
    for level in (LEVELS[node], middle):
        assert (CHAIN.slope(level) - slope_below(node)).abs().max() < 1e-6


def test_above_and_below_the_slope_is_that_of_the_outer_segments():
    assert (CHAIN.slope(100.0) - slope_below(4)).abs().max() < 1e-6
    for level in (LEVELS[0], 0.01, 0.0):
        assert (CHAIN.slope(level) - slope_below(1)).abs().max() < 1e-6


def test_features_are_those_recorded_at_the_node():
    for node in (1, 2, 4):
        assert CHAIN.features_at(LEVELS[node])["layer"][0, 0, 0] == node


@pytest.mark.parametrize("level", [LEVELS[3], LEVELS[0], 0.0, 0.4, 0.51, 1.0, 3.99, 5.0, 14.1, 100.0])
def test_there_are_no_features_at_a_node_that_kept_none_nor_anywhere_else(level):
    assert CHAIN.features_at(level) is None


@given(st.integers(1, 4), st.floats(-5e-5, 5e-5))
def test_a_level_within_rounding_of_a_node_is_the_node(node, error):
    level = LEVELS[node] * (1 + error)
    assert (CHAIN.slope(level) - slope_below(node)).abs().max() < 1e-6
    assert (CHAIN.latent(level) - LATENTS[node : node + 1]).abs().max() < 1e-2
    kept = CHAIN.features_at(level)
    assert (kept is None) == (node == 3)


STEPS_OF_SAMPLERS = [(sampler, steps) for sampler in SAMPLERS for steps in (2, 50, 500)]


@pytest.mark.parametrize(("sampler", "steps"), STEPS_OF_SAMPLERS)
def test_every_level_of_every_sampler_is_a_node_of_its_own(make_host, sampler, steps):
    levels = make_host(sampler=sampler, steps=steps).noise_levels()
    nodes = range(1, len(levels))
    chain = Chain(levels, torch.zeros(len(levels), 1, 1, 1), {node: features(node) for node in nodes})
    for node in nodes:
        for level in (levels[node].item(), levels[node].float().item()):
            assert chain.features_at(level)["layer"][0, 0, 0] == node


def test_the_top_and_the_size_count_latents_and_features():
    assert torch.equal(CHAIN.top, LATENTS[4:])
    assert CHAIN.bytes == 4 * (5 * 4 * 3 * 3 + 3 * 1 * 2 * 3)
    halves = {1: {"layer": torch.zeros(1, 2, 3).half()}}
    assert Chain(levels_tensor(LEVELS), LATENTS, halves).bytes == 4 * 180 + 2 * 6


# its making, where the exact answer is known


def test_a_constant_prediction_gives_a_straight_chain_and_stops_at_once():
    clean, eps = noise(1, 4, 3, 3), noise(1, 4, 3, 3, seed=1)
    chain = invert(clean, levels_tensor(LEVELS), lambda latent, level: eps, {}, iterations=10)
    for node, level in enumerate(LEVELS):
        expected = clean / scale_to_vp(LEVELS[0]) + (level - LEVELS[0]) * eps
        assert (chain.latents[node] - expected[0]).abs().max() < 1e-5
        if node:
            assert (chain.slope(level) - eps).abs().max() < 1e-5
    # the first step starts from the lower latent and needs a second evaluation, the others are exact
    assert (chain.evaluations, chain.residual < TOLERANCE) == (2 + 3, True)


def test_a_prediction_linear_in_the_noise_level_is_extrapolated_exactly():
    clean = noise(1, 4, 3, 3)
    chain = invert(clean, levels_tensor(LEVELS), lambda latent, level: torch.full_like(latent, level), {}, iterations=5)
    height = clean / scale_to_vp(LEVELS[0])
    for node in range(1, 5):
        height = height + (LEVELS[node] - LEVELS[node - 1]) * LEVELS[node]
        assert (chain.latents[node] - height[0]).abs().max() < 1e-4
    # two for the first step, two for the second, which knows one prediction only
    assert chain.evaluations == 2 + 2 + 1 + 1


def test_enough_iterations_solve_each_step_implicitly():
    levels = [0.1, 0.4, 0.8, 1.3]
    clean = noise(1, 4, 3, 3)
    chain = invert(clean, levels_tensor(levels), lambda latent, level: 0.5 * latent, {}, iterations=10)
    for node in range(1, 4):
        exact = chain.latents[node - 1] / (1 - 0.5 * (levels[node] - levels[node - 1]))
        assert (chain.latents[node] - exact).norm() / exact.norm() < 2 * TOLERANCE
    assert (reconstruct(chain, lambda latent, level: 0.5 * latent) - clean).abs().max() < 1e-3


def test_the_clean_latent_lies_at_the_lowest_level_in_variance_preserving_form():
    clean = noise(1, 4, 3, 3)
    chain = invert(clean, levels_tensor([2.0, 3.0]), lambda latent, level: latent * 0, {})
    assert (chain.latents[:1] * scale_to_vp(2.0) - clean).abs().max() < 1e-6
    assert (reconstruct(chain, lambda latent, level: latent * 0) - clean).abs().max() < 1e-6


def test_the_lower_latent_keeps_its_variance_preserving_form_at_the_higher_level():
    guess = lower_latent([LATENTS[:1]], LEVELS[:1], [], LEVELS[1])
    assert (guess * scale_to_vp(LEVELS[1]) - LATENTS[:1] * scale_to_vp(LEVELS[0])).abs().max() < 1e-6


def test_the_extrapolated_start_uses_the_last_one_or_two_predictions():
    one, two = noise(1, 4, 3, 3, seed=1), noise(1, 4, 3, 3, seed=2)
    level, latent = 4.0, LATENTS[2:3]
    from_one = extrapolated([latent], [0.5, 2.0], [one], level)
    assert (from_one - (latent + 2.0 * one)).abs().max() < 1e-6
    # the line through (0.5, one) and (2.0, two), at 4.0
    from_two = extrapolated([latent], [0.5, 2.0], [one, two], level)
    assert (from_two - (latent + 2.0 * (two + (two - one) * 2.0 / 1.5))).abs().max() < 1e-5
    assert torch.equal(extrapolated([latent], [2.0], [], level), lower_latent([latent], [2.0], [], level))


def test_the_evaluations_are_at_the_upper_level_and_announced_before_each():
    seen, told = [], []

    def predict(latent, level):
        seen.append((level, len(told)))
        return noise(*latent.shape, seed=len(seen))

    chain = invert(
        LATENTS[:1],
        levels_tensor(LEVELS),
        predict,
        {},
        iterations=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert seen == [(level, 1 + 2 * index + turn) for index, level in enumerate(LEVELS[1:]) for turn in (0, 1)]
    assert told == [(done, 8) for done in range(9)]
    assert chain.evaluations == 8


class Layered:
    """A layer of known width and a predictor that runs it once an evaluation."""

    def __init__(self):
        self.layer = torch.nn.Identity()
        self.layer.forward = lambda hidden_states, encoder_hidden_states=None: hidden_states
        self.layers = {"layer": HookedLayer(self.layer)}

    def predict(self, latent, level):
        self.layer(torch.full((1, 2, 3), level))
        return latent * 0.1


NODE_BYTES = 2 * 2 * 3


@pytest.mark.parametrize(
    ("budget", "nodes"),
    [(math.inf, [1, 2, 3, 4]), (2 * NODE_BYTES, [1, 2]), (3 * NODE_BYTES - 1, [1, 2]), (NODE_BYTES - 1, []), (0, [])],
)
def test_features_are_kept_within_their_budget(budget, nodes):
    model = Layered()

    def keep(features, size):
        return FeatureTransfer().keep_features(features) if size - LATENTS.nbytes <= budget else None

    chain = invert(LATENTS[:1], levels_tensor(LEVELS), model.predict, model.layers, keep=keep)
    assert list(chain.features) == nodes
    for node in nodes:
        assert (chain.features[node]["layer"] == torch.tensor(LEVELS[node])).all()
    assert chain.bytes - LATENTS.nbytes <= budget


def test_features_are_copied_in_sixteen_bits():
    seen = {"whole": torch.tensor([[[1 / 3]]]), "half": torch.tensor([[[1 / 3]]]).bfloat16()}
    copies = FeatureTransfer().keep_features(seen)
    assert {name: h.dtype for name, h in copies.items()} == {"whole": torch.float16, "half": torch.bfloat16}
    assert copies["whole"].item() == pytest.approx(1 / 3, rel=1e-3)
    seen["half"].zero_()
    assert copies["half"].item() == pytest.approx(1 / 3, rel=1e-2)


def test_features_are_found_by_name_in_any_order_and_more_than_once():
    kept = {name: torch.full((1, 2, 3), float(value)) for value, name in enumerate("abc")}
    ahead = PrefetchedFeatures(kept, torch.device("cpu"))
    assert (list(ahead), len(ahead)) == (["a", "b", "c"], 3)
    for name in "abcabacb":
        assert torch.equal(ahead[name], kept[name])
    assert "d" not in ahead


def test_features_are_those_of_a_steps_last_evaluation():
    model = Layered()
    calls = []

    def predict(latent, level):
        calls.append(level)
        model.layer(torch.full((1, 2, 3), float(len(calls))))
        return noise(*latent.shape, seed=len(calls))

    chain = invert(LATENTS[:1], levels_tensor(LEVELS), predict, model.layers, iterations=3)
    assert [kept["layer"][0, 0, 0].item() for kept in chain.features.values()] == [3, 6, 9, 12]


def test_a_generation_evaluates_the_exemplar_where_the_budget_kept_no_features(make_host, sample):
    host = make_host(steps=4)
    full = prepare(host, parse_settings({}), NoStore())
    chain = full.guide.exemplars[0].chain
    host.memory_budget = lambda: chain.bytes / 2
    half = prepare(host, parse_settings({}), NoStore())
    assert 0 < len(half.guide.exemplars[0].chain.features) < len(chain.features) == 4
    finals = [sample(host, guide.start([1], host.latent_size), [1], guide) for guide, _ in (full, half)]
    assert [report_of(prepared).features for prepared in (full, half)] == ["recorded", "live"]
    # four steps leave a residual, so recorded and live differ; another seed's latents differ by 2 and more
    assert 0 < (finals[0] - finals[1]).abs().mean() < 0.1


def test_an_inversion_that_is_not_finite_is_an_error(make_host):
    host = make_host(steps=2)
    host.encoded_exemplars = lambda: [EncodedExemplar(torch.full((1, 4, 16, 16), math.nan))]
    with pytest.raises(RivalError, match="not numbers"):
        prepare(host, parse_settings({}), NoStore())


LACKS = [
    MemoryError(),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    RuntimeError("Could not allocate tensor with 9 bytes. There is not enough GPU video memory available!"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
"""As Python, CUDA, the CPU on Linux and Windows, Apple's GPUs, DirectML and cuBLAS say it."""


def failing_once(host, error, at):
    """Has the host's `predict_noise` fail at one of its calls; the layers that ran before have been recorded."""
    predict, calls = host.predict_noise, iter(range(1, 1000))

    def predict_noise(latent, noise_level):
        noise = predict(latent, noise_level)
        if next(calls) == at:
            raise error
        return noise

    host.predict_noise = predict_noise


@pytest.mark.parametrize("at", [1, 3, 4])
@pytest.mark.parametrize("error", LACKS)
def test_where_memory_runs_out_in_recording_the_exemplar_is_evaluated_live(make_host, sample, error, at):
    host, store = make_host(steps=4), ChainStore()
    store.put("other", chain_of(1), 1e9)
    failing_once(host, error, at)
    prepared = prepare(host, parse_settings({}), store)
    guide = prepared.guide
    assert guide.exemplars[0].chain.features == {}
    assert kept(store, ["other"]) == []
    final = sample(host, guide.start([1], host.latent_size), [1], guide)
    report = report_of(prepared)
    assert (report.features, report.notes) == ("live", ("memory ran out while features were recorded",))
    other = make_host(steps=4)
    live = prepare(other, parse_settings({"features": "live"}), NoStore()).guide
    assert torch.equal(final, sample(other, live.start([1], other.latent_size), [1], live))


def test_a_lack_of_memory_that_recording_has_no_part_in_comes_out_as_it_is(make_host):
    for settings, calls in (({"features": "live"}, 1), ({}, 2)):
        host, store = make_host(steps=4), ChainStore()
        for at in range(1, calls + 1):
            # the second attempt's first call follows the first's failure
            failing_once(host, LACKS[0], at)
        with pytest.raises(MemoryError):
            prepare(host, parse_settings(settings), store)
        assert store.entries == []


def test_any_other_error_is_not_taken_for_a_lack_of_memory(make_host):
    host = make_host(steps=4)
    failing_once(host, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        prepare(host, parse_settings({}), ChainStore())


def test_a_chain_that_something_changed_under_way_serves_its_run_and_is_not_stored(make_host, sample):
    host, store = make_host(steps=4), ChainStore()
    predict, before = host.predict_noise, host.fingerprint

    def predict_noise(latent, noise_level):
        host.fingerprint = lambda: [*before(), "changed"]
        return predict(latent, noise_level)

    host.predict_noise = predict_noise
    guide = prepare(host, parse_settings({}), store).guide
    assert torch.isfinite(sample(host, guide.start([1], host.latent_size), [1], guide)).all()
    assert store.entries == []


@pytest.mark.parametrize("at", [1, 2, 4])
def test_one_value_that_is_no_number_ends_the_inversion_at_once_and_nothing_is_stored(make_host, at):
    host, store = make_host(steps=4), ChainStore()
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


def test_an_exemplar_that_is_evaluated_live_must_give_numbers(make_host, sample):
    host = make_host(steps=4)
    guide = prepare(host, parse_settings({"features": "live"}), NoStore()).guide
    guide.predict_noise = lambda latent, noise_level: torch.full_like(latent, math.inf)
    with pytest.raises(RivalError, match="not numbers"):
        sample(host, guide.start([1], host.latent_size), [1], guide)


def test_settings_by_which_no_step_would_see_the_exemplar_are_refused_before_any_evaluation(make_host):
    host = make_host(steps=2)
    host.predict_noise = None
    with pytest.raises(RivalError, match="early_steps must be at least 1 "):
        prepare(host, parse_settings({"early_steps": 0}), NoStore())


# the two clocks

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = (1 - BETAS).cumprod(0)
SCHEDULE = NoiseSchedule.of_alphas(ALPHAS)
LOWEST, HIGHEST = (((1 - a) / a) ** 0.5 for a in (ALPHAS[0].item(), ALPHAS[-1].item()))


@given(st.integers(0, 999))
def test_a_whole_timesteps_level_is_that_of_its_alpha_and_leads_back_exactly(timestep):
    alpha = ALPHAS[timestep].item()
    level = SCHEDULE.noise_level(timestep)
    assert level == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-12)
    assert SCHEDULE.timestep(level) == timestep
    assert SCHEDULE.timestep(torch.tensor(level).float().item()) == timestep
    assert scale_to_vp(level) == pytest.approx(alpha**0.5, rel=1e-12)


@given(st.floats(0, 999))
def test_a_fractional_timestep_leads_back_to_within_its_rounding(timestep):
    assert SCHEDULE.timestep(SCHEDULE.noise_level(timestep)) == pytest.approx(timestep, abs=6e-4)


@given(st.floats(LOWEST, HIGHEST))
def test_a_noise_level_leads_back_to_within_the_timesteps_rounding(level):
    # a level changes by at most 35 % a timestep, at the low end
    assert SCHEDULE.noise_level(SCHEDULE.timestep(level)) == pytest.approx(level, rel=3e-4)


@given(st.integers(0, 998), st.floats(0.01, 0.99))
def test_between_two_timesteps_the_level_is_interpolated_in_its_logarithm(timestep, part):
    lower, upper = SCHEDULE.noise_level(timestep), SCHEDULE.noise_level(timestep + 1)
    assert SCHEDULE.noise_level(timestep + part) == pytest.approx(lower ** (1 - part) * upper**part, rel=1e-9)


@given(st.floats(0, 20), st.floats(0, 20))
def test_the_timestep_rises_with_the_level(one, other):
    low, high = sorted((one, other))
    assert SCHEDULE.timestep(low) <= SCHEDULE.timestep(high)


@given(st.floats(0, LOWEST))
def test_at_and_below_the_lowest_level_the_timestep_is_zero(level):
    assert SCHEDULE.timestep(level) == 0.0


@given(st.floats(HIGHEST, 1e6))
def test_above_the_highest_level_the_timestep_is_the_last_one(level):
    assert SCHEDULE.timestep(level) == 999.0


def test_a_schedule_is_the_same_from_sigmas_and_from_alphas():
    from_sigmas = NoiseSchedule(((1 - ALPHAS) / ALPHAS).sqrt())
    for timestep in (0, 0.5, 600, 999):
        assert from_sigmas.noise_level(timestep) == SCHEDULE.noise_level(timestep)


def test_levels_are_kept_in_double_precision():
    assert levels_tensor([0.1, 14.6]).dtype == torch.float64
    assert levels_tensor([0.1, 14.6]).tolist() == [0.1, 14.6]


# the store


def chain_of(size):
    """A chain of `size` units of 8 bytes."""
    return Chain(levels_tensor([0.0, 1.0]), torch.zeros(2, size, 1, 1))


def kept(store, keys):
    """Which of the keys the store holds, without touching their order."""
    return [key for key in keys if (None, key) in store._entries]


def test_chains_are_given_back_while_runs_of_other_threads_look_them_up():
    """Each line of the store's is a chance for another thread here, which is rare otherwise."""
    before = sys.getswitchinterval()
    store, chain = ChainStore(), chain_of(1)

    def run(user):
        mine = store.of(user)
        for turn in range(1500):
            key = "abcdef"[turn % 6]
            mine.put(key, chain, 8 * 10)
            assert mine.get(key) in (chain, None)
            mine.make_room(8, 8 * 4)

    def release(user):
        mine = store.of(user)
        for _ in range(1500):
            for kept in mine.entries[:1]:
                mine.remove(kept.id)
            mine.clear()
            store.clear_for_all()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(act, user) for act in (run, release) for user in (None, "ann")]:
                done.result()
    finally:
        sys.setswitchinterval(before)


def test_a_chain_is_found_under_its_key_alone():
    store, chain = ChainStore(), chain_of(1)
    store.put("a", chain, 100)
    assert store.get("a") is chain
    assert store.get("b") is None
    assert store.bytes == chain.bytes == 8


def test_the_least_recently_used_chain_leaves_first():
    store = ChainStore()
    for key in "abc":
        store.put(key, chain_of(1), 24)
    store.get("a")
    store.put("d", chain_of(1), 24)
    assert kept(store, "abcd") == ["a", "c", "d"]
    store.put("e", chain_of(2), 24)
    assert kept(store, "abcde") == ["d", "e"]


def test_a_search_in_vain_changes_no_order():
    store = ChainStore()
    for key in "ab":
        store.put(key, chain_of(1), 16)
    store.get("z")
    store.put("c", chain_of(1), 16)
    assert kept(store, "abcz") == ["b", "c"]


def test_a_chain_that_cannot_fit_is_not_kept_and_drives_none_out():
    store = ChainStore()
    store.put("a", chain_of(2), 24)
    store.put("b", chain_of(4), 24)
    assert kept(store, "ab") == ["a"]


def test_making_room_drives_out_no_more_than_needed():
    store = ChainStore()
    for key in "abc":
        store.put(key, chain_of(1), 24)
    assert store.make_room(8, 24)
    assert kept(store, "abc") == ["b", "c"]
    assert not store.make_room(25, 24)
    assert kept(store, "abc") == ["b", "c"]
    assert store.make_room(24, 24)
    assert kept(store, "abc") == []


def test_a_chain_of_exactly_the_budget_is_kept_alone():
    store = ChainStore()
    store.put("a", chain_of(1), 24)
    store.put("b", chain_of(3), 24)
    assert kept(store, "ab") == ["b"]


def test_a_smaller_budget_drives_the_oldest_out():
    store = ChainStore()
    for key in "abc":
        store.put(key, chain_of(1), 100)
    store.put("d", chain_of(1), 16)
    assert kept(store, "abcd") == ["c", "d"]


def test_clear_gives_everything_back():
    store = ChainStore()
    store.put("a", chain_of(1), 100)
    store.clear()
    assert store.get("a") is None
    assert store.bytes == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 6)), max_size=30))
def test_the_store_behaves_as_its_plain_model_and_never_exceeds_its_budget(calls):
    budget = 10 * 8
    store, model = ChainStore(), OrderedDict()
    for searching, key, size in calls:
        assert (store.get(key) is not None) == (key in model)
        if key in model:
            model.move_to_end(key)
        elif not searching:
            store.put(key, chain_of(size), budget)
            model[key] = size
            while sum(model.values()) > 10:
                model.popitem(last=False)
        assert store.bytes == 8 * sum(model.values()) <= budget


def test_a_chain_put_again_is_the_most_recently_used():
    store = ChainStore()
    for key in "aba":
        store.put(key, chain_of(1), 16)
    store.put("c", chain_of(1), 16)
    assert kept(store, "abc") == ["a", "c"]


def test_the_store_shrinks_to_a_smaller_budget_even_if_the_new_chain_cannot_fit():
    store = ChainStore()
    for key in "ab":
        store.put(key, chain_of(2), 32)
    store.put("c", chain_of(3), 16)
    assert store.bytes <= 16


def test_a_chain_whose_features_were_limited_by_the_budget_is_still_kept(make_host):
    host = make_host(steps=4)
    settings = parse_settings({})
    feature_bytes = prepare(host, settings, NoStore()).guide.exemplars[0].chain.bytes - 5 * 4 * 16 * 16 * 4
    host.memory_budget = lambda: feature_bytes / 2 + 5 * 4 * 16 * 16 * 4
    store = ChainStore()
    assert len(prepare(host, settings, store).guide.exemplars[0].chain.features) == 2
    assert prepare(host, settings, store).inversion.store == "hit"


def test_a_second_preparation_finds_the_chain_of_the_first(make_host):
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
def test_the_key_differs_for_every_part(index, value):
    assert chain_key([*PARTS[:index], value, *PARTS[index + 1 :]]) != chain_key(PARTS)


def test_the_key_differs_for_parts_in_another_order_or_divided_otherwise():
    texts = [["a", "b"], ["b", "a"], ["ab"], ["ab", ""], ["", "ab"], ["a", "b", ""]]
    assert len({chain_key(parts) for parts in texts}) == 6
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert len({chain_key(parts) for parts in ([one, two], [two, one], [torch.cat([one, two])])}) == 3


def test_the_key_is_the_same_for_equal_parts_however_they_lie_in_memory():
    turned = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).t()
    assert not turned.is_contiguous()
    tracked = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert chain_key([turned, *PARTS[1:]]) == chain_key([tracked, *PARTS[1:]]) == chain_key(iter(PARTS))


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=6), st.data())
def test_the_key_sees_every_value_of_a_tensor(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    other = data.draw(st.floats(allow_nan=False, width=32).filter(lambda value: value != values[index]))
    changed = [*values[:index], other, *values[index + 1 :]]
    assert chain_key([torch.tensor(values)]) != chain_key([torch.tensor(changed)])


@pytest.mark.parametrize("level", [14.6, 4518.0])
def test_a_leap_to_noise_alone_starts_from_the_lower_latent(level):
    """With zero terminal SNR the prediction there is the latent itself, and the iteration would not come back."""
    latents, predictions = [torch.full((1, 4, 8, 8), value) for value in (3.0, 5.0)], [torch.ones(1, 4, 8, 8)] * 2
    guess = extrapolated(latents, [9.0, 12.0], predictions, level)
    if level > 1000:
        assert torch.equal(guess, lower_latent(latents, [9.0, 12.0], predictions, level))
    else:
        assert torch.allclose(guess, latents[-1] + (level - 12))


def test_a_kept_chain_has_an_id_that_tells_nothing_of_its_key():
    store = ChainStore()
    for key in ("a", "b"):
        store.put(key, chain_of(1), 100)
    ids = [entry.id for entry in store.entries]
    assert len(set(ids)) == 2
    assert all(len(id_) > 30 for id_ in ids)
    assert store.id_of(store.get("b")) == ids[1]
    assert store.id_of(chain_of(1)) is None


def test_one_chain_is_removed_by_its_id_and_no_other():
    store = ChainStore()
    for key in ("a", "b"):
        store.put(key, chain_of(1), 100)
    first = store.entries[0].id
    assert store.remove(first)
    assert not store.remove(first)
    assert not store.remove("a")
    assert kept(store, "ab") == ["b"]
