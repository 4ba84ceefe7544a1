"""Several exemplars, their weights and regions, strength, and the kept region of a canvas."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.attention import record
from rival_ext.method.exemplars import Exemplar, InpaintCanvas, SeenTokens, joint_statistics, weight_subsets
from rival_ext.method.guide import Guide
from rival_ext.method.injection import concatenate, inject, replace
from rival_ext.method.layers import count_rows, self_attention_layers
from rival_ext.method.prepare import prepare
from rival_ext.method.projected import BetweenNodes, JoinedExemplars, ProjectedFeatures, ThinnedTokens
from rival_ext.method.regions import region_of_mask
from rival_ext.method.rows import KeysValues
from rival_ext.method.tokens import TokenSubset
from rival_ext.settings import HALF, ExemplarInput, parse_settings
from rival_ext.storage.store import ChainStore, NoStore
from tests.conftest import exemplar, quick, quiet
from tests.unit.synthetic import chain, columns, left_half, noise


def test_the_kept_region_follows_the_chain_exactly():
    """Deterministic steps with the kept noise lead from node to node, whatever the prediction was."""
    canvas = InpaintCanvas(chain(), left_half())
    latent = canvas.keep_latent(noise(2, 4, 8, 8, seed=5), 9.0)
    for level, lower in ((9.0, 2.0), (2.0, 0.1)):
        predicted = canvas.keep_noise(noise(2, 4, 8, 8, seed=6), level)
        latent = latent + (lower - level) * predicted
        expected = canvas.chain.latent(lower)[..., 4:].expand(2, -1, -1, -1)
        assert (latent[..., 4:] - expected).abs().max() < 1e-4
    assert (latent[..., :4] - canvas.chain.latent(0.1)[..., :4]).abs().max() > 0.1


def test_only_the_tokens_of_the_region_are_seen():
    exemplar = Exemplar(chain(), region=left_half())
    h = torch.arange(64.0).view(1, 64, 1)
    seen = exemplar.seen_tokens(h).flatten()
    assert seen.tolist() == [value for value in range(64) if value % 8 < 4]
    assert exemplar.seen_tokens(torch.arange(16.0).view(1, 16, 1)).flatten().tolist() == [*(0, 1, 4, 5, 8, 9, 12, 13)]


def test_a_small_region_still_has_a_token_in_every_layer():
    region = torch.zeros(1, 1, 8, 8)
    region[..., 3:5, 3:5] = 1
    exemplar = Exemplar(chain(), region=region)
    assert exemplar.seen_tokens(torch.zeros(1, 4, 2)).shape[1] == 4
    assert exemplar.seen_tokens(torch.zeros(1, 16, 2)).shape[1] >= 1


def test_a_mask_of_too_few_positions_is_refused_by_its_own_name():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, :3] = 1
    # a position that is covered by less than half does not count
    mask[..., 1, :] = 0.49
    with pytest.raises(RivalError, match="exemplar_mask_2 shows too little of the exemplar"):
        region_of_mask(mask, "exemplar_mask_2")
    mask[..., 1, 0] = HALF
    assert region_of_mask(mask, "exemplar_mask_2") is mask


def test_a_mask_that_shows_all_of_an_exemplar_is_none():
    mask = torch.full((1, 1, 8, 8), HALF)
    assert region_of_mask(mask, "exemplar_mask") is None
    # one position is all of the smallest latent
    assert region_of_mask(mask[..., :1, :1], "exemplar_mask") is None


def test_the_statistics_are_those_of_the_region():
    exemplar = Exemplar(chain(), region=left_half())
    latent = noise(1, 4, 8, 8)
    changed = latent.clone()
    changed[..., 4:] = 100
    for one, other in zip(joint_statistics([exemplar], [latent]), joint_statistics([exemplar], [changed]), strict=True):
        assert torch.equal(one, other)


class Itself:
    """A layer whose keys and values are its tokens."""

    def project(self, h):
        return KeysValues(h, 2 * h)


@pytest.mark.parametrize(("weights", "tokens"), [((1.0, 0.5), 96), ((0.3, 0.3), 128)])
def test_the_tokens_of_all_exemplars_are_joined_and_a_lighter_exemplar_gives_fewer(weights, tokens):
    exemplars = [Exemplar(chain(), weight) for weight in weights]
    parts = [
        ProjectedFeatures(SeenTokens(one, {"attn1": torch.full((1, 64, 2), value)}, subset), {"attn1": Itself()})
        for one, subset, value in zip(exemplars, weight_subsets(exemplars), (1.0, 2.0), strict=True)
    ]
    joined = JoinedExemplars(parts)
    assert ("attn1" in joined, "attn2" in joined) == (True, False)
    keys, values = joined.of("attn1", torch.zeros(1))
    assert keys.shape == (1, tokens, 2)
    assert (keys == 1).sum() == 128
    assert torch.equal(values, 2 * keys)


def test_between_two_nodes_keys_and_values_are_linear():
    lower, upper = (ProjectedFeatures({"attn1": noise(1, 4, 2, seed=seed)}, {"attn1": Itself()}) for seed in (1, 2))
    keys, values = BetweenNodes(lower, upper, 0.25).of("attn1", torch.zeros(1))
    expected = 0.75 * noise(1, 4, 2, seed=1) + 0.25 * noise(1, 4, 2, seed=2)
    assert (keys - expected).abs().max() < 1e-6
    assert (values - 2 * expected).abs().max() < 1e-6


def test_a_layer_projects_its_features_once_and_only_when_it_is_called():
    projected = []

    class Counting(Itself):
        def project(self, h):
            projected.append(h)
            return super().project(h)

    features = ProjectedFeatures({name: torch.ones(1, 2, 3) for name in "ab"}, dict.fromkeys("ab", Counting()))
    for _ in range(3):
        features.of("a", torch.zeros(1).double())
    assert [h.dtype for h in projected] == [torch.float64]


def test_fewer_tokens_are_taken_in_the_finest_layers_only():
    features = ProjectedFeatures(
        {"fine": torch.ones(1, 64, 2), "coarse": torch.ones(1, 16, 2)}, dict.fromkeys(("fine", "coarse"), Itself())
    )
    thinned = ThinnedTokens(features, TokenSubset(0.25), frozenset(["fine"]))
    assert [thinned.of(name, torch.zeros(1)).keys.shape[1] for name in ("fine", "coarse")] == [16, 16]


@pytest.mark.parametrize("context", [replace, concatenate])
def test_strength_leads_from_the_usual_output_to_the_injected_one(pipeline, context):
    layers = self_attention_layers(pipeline.unet)
    text = torch.zeros(1, 77, 96)

    def evaluate(strength=None):
        with torch.no_grad():
            if strength is None:
                return pipeline.unet(noise(1, 4, 16, 16), 500, text, return_dict=False)[0]
            with inject(layers, features, context, strength=strength) as seen:
                output = pipeline.unet(noise(1, 4, 16, 16), 500, text, return_dict=False)[0]
        assert len(seen) == 10
        return output

    with torch.no_grad(), record(layers) as features:
        pipeline.unet(noise(1, 4, 16, 16, seed=1), 500, text)
    usual, full = evaluate(), evaluate(1.0)
    assert (evaluate(1e-9) - usual).abs().max() < 1e-5
    distances = [float((evaluate(strength) - usual).norm()) for strength in (0.25, 0.5, 0.75, 1.0)]
    assert distances == sorted(distances)
    assert (evaluate(0.5) - full).norm() < (usual - full).norm()
    assert (evaluate() - usual).abs().max() == 0


def painted_half(image):
    """The image with its right half overpainted, and a mask of its left half."""
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, image.width // 2, image.height))
    overpainted = Image.composite(image, Image.new("RGB", image.size, "lime"), mask)
    return overpainted, mask


def guide_of(pipeline, shown, steps=6, **fields):
    request = Request("a house", "", 5.0, "ddim", steps)
    host = DiffusersHost(pipeline, request, RequestImages(shown, (128, 128)), quiet)
    return host, prepare(host, parse_settings(fields), NoStore()).guide


def test_an_exemplar_with_a_mask_gives_neither_statistics_nor_the_start(pipeline):
    image, mask = painted_half(exemplar("house-emojione-blue"))
    host, guide = guide_of(pipeline, [ExemplarInput(image, mask)])
    start = host.start([3, 4], guide)
    assert torch.equal(start[1:], host.start([4], guide))
    assert not columns(start[:1]) & columns(guide.exemplars[0].chain.top)
    level = float(guide.exemplars[0].chain.noise_levels[-1])
    assert start.std() == pytest.approx(level, rel=0.05)
    host.sample(start, [3, 4], guide, quiet)
    assert (guide.counts.steps.injected, guide.counts.steps.aligned) == (6, 0)


def test_beside_an_exemplar_with_a_mask_the_whole_one_gives_start_and_statistics(pipeline):
    image, mask = painted_half(exemplar("house-emojione-blue"))
    whole = exemplar("pizza-emojione-yellow")
    host, guide = guide_of(pipeline, [ExemplarInput(image, mask), ExemplarInput(whole)])
    _, alone = guide_of(pipeline, [ExemplarInput(whole)])
    assert torch.equal(host.start([3], guide), host.start([3], alone))
    host.sample(host.start([3], guide), [3], guide, quiet)
    assert (len(guide.exemplars), guide.counts.steps.injected, guide.counts.steps.aligned) == (2, 6, 2)


def test_live_an_exemplar_is_evaluated_only_where_it_is_needed(pipeline):
    """Above early_steps nothing is injected. The alignment takes the chain's slope, so no exemplar is evaluated."""
    image, mask = painted_half(exemplar("house-emojione-blue"))
    shown = [ExemplarInput(image, mask), ExemplarInput(exemplar("pizza-emojione-yellow"))]
    fields = {"features": "live", "early_steps": 500, "t_early": 700}
    host, guide = guide_of(pipeline, shown, steps=8, **fields)
    timesteps = [host.schedule.timestep(level) for level in host.noise_levels().tolist()[1:]]
    injected = sum(timestep <= 500 for timestep in timesteps)
    aligned = sum(timestep > 700 for timestep in timesteps)
    assert 0 < injected < 8
    assert aligned > 0
    with count_rows(host.unet) as rows:
        host.sample(host.start([3], guide), [3], guide, quiet)
    assert sum(rows) == 8 * 2 + injected * 2


def test_a_mask_that_shows_everything_changes_no_bit(pipeline):
    house = exemplar("house-emojione-blue")
    shown = [[ExemplarInput(house, mask)] for mask in (None, Image.new("L", house.size, 128))]
    guides = [guide_of(pipeline, one, steps=3) for one in shown]
    assert torch.equal(*(host.sample(host.start([3], guide), [3], guide, quiet) for host, guide in guides))


def test_an_exemplar_of_weight_zero_changes_no_bit(pipeline):
    house, pizza = exemplar("house-emojione-blue"), exemplar("pizza-emojione-yellow")
    settings = parse_settings({"exemplar": house, "weight": 0, "exemplar_2": pizza})
    shown = [ExemplarInput(one.image, one.mask, one.weight) for one in settings.exemplar_inputs]
    host, guide = guide_of(pipeline, shown, steps=3)
    _, alone = guide_of(pipeline, [ExemplarInput(pizza)], steps=3)
    finals = [host.sample(host.start([3], one), [3], one, quiet) for one in (guide, alone)]
    assert torch.equal(*finals)


@pytest.mark.parametrize(
    ("layers", "seen"),
    quick([("all", 10), ("fine", 3), ("coarse", 7), ("16", 3), ("8,32", 7)], ("fine", 3), ("8,32", 7)),
)
def test_only_the_chosen_layers_see_the_exemplar(pipeline, layers, seen):
    host, guide = guide_of(pipeline, [ExemplarInput(exemplar("house-emojione-blue"))], steps=2, layers=layers)
    host.sample(host.start([3], guide), [3], guide, quiet)
    assert guide.counts.layers == seen


def test_token_sizes_that_no_layer_has_are_refused_before_sampling(pipeline):
    with pytest.raises(RivalError, match="layers must name at least one"):
        guide_of(pipeline, [ExemplarInput(exemplar("house-emojione-blue"))], steps=2, layers="64")


def test_strength_zero_is_a_generation_without_injection(pipeline):
    host, guide = guide_of(pipeline, [ExemplarInput(exemplar("house-emojione-blue"))], steps=3, strength=0)
    start = host.start([3], guide)
    off = Guide(guide.exemplars, guide.settings, host.schedule, {}, host.predict_noise)
    assert torch.equal(host.sample(start, [3], guide, quiet), host.sample(start, [3], off, quiet))
    assert guide.counts.steps.injected == 0


def test_the_chains_of_one_run_share_the_memory_budget(pipeline):
    shown = [ExemplarInput(exemplar(name)) for name in ("house-emojione-blue", "pizza-emojione-yellow")]
    host, guide = guide_of(pipeline, shown)
    each = guide.exemplars[0].chain.bytes
    for budget, kept in ((2 * each, [6, 6]), (1.5 * each, [6, 2]), (each, [6, 0])):
        host.memory_budget = lambda budget=budget: budget
        store = ChainStore()
        chains = [one.chain for one in prepare(host, parse_settings({}), store).guide.exemplars]
        assert [len(one.features) for one in chains] == kept
        assert store.bytes <= budget
