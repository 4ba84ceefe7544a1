"""The fields as axes of the X/Y/Z plot, on the stand-in and on each real WebUI. `plot` holds (label, values) pairs."""

from __future__ import annotations

import re

import pytest

from rival_ext.fields import FIELDS, INFOTEXT_FIELDS, INVERSION_FIELDS
from rival_ext.hosts.webui.axes import axis_label
from rival_ext.settings import SIMILARITY, mode_defaults, similarity_values
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import STEPS, images_of, infotext, largest_difference, request

pytestmark = pytest.mark.long

AXIS = {field.name: axis_label(field) for field in FIELDS if not field.is_image}
ONE_SEED = ("Seed", "3")
OTHERS = {
    **{"mode": "edit", "similarity": 0.7, "t_align": 500, "t_early": 500, "start_mix": 0.5, "strength": 0.8},
    **{"start": "permuted", "uncond_share": 0.25},
    **{"weight": 0.5, "weight_2": 0.5, "weight_3": 0.5, "exemplar_prompt": "a bee", "layers": "fine"},
    **{"early_steps": 900, "alignment": "noise", "inversion_iterations": 2, "exemplar_tokens": 0.5},
    **{"features": "live", "exact": True, "plain_inversion": True},
    **{"chain": "noised", "inversion_nodes": "7", "feature_nodes": "4"},
}
"""A value other than the default, for each field of the infotext."""


def cells(server, x, y=ONE_SEED, settings=None, **fields):
    """Make a plot that must succeed, and return the answer with its cells."""
    server.plan()
    answer = server.img2img(**request(settings, plot=[x, y], **fields))
    assert answer.status == 200, answer.sentence
    assert server.leftovers() == []
    return answer


def in_texts(name, texts):
    """A field's values in infotexts. One that is left out has its mode's default. None without RIVAL or for no text."""
    return [value_in(name, text) for text in texts]


def value_in(name, text):
    mode = re.search(r"RIVAL mode: (\w+)", text)
    written = re.search(rf"RIVAL {name}: \"?([^,\"\n]+)", text)
    if written or not mode:
        return written and written[1]
    return str(mode_defaults(mode[1])[name]) or None


def test_every_field_but_the_images_is_an_axis_once_in_both_tabs(server):
    for tab in ("img2img", "txt2img"):
        labels = [label for label in server.axes(tab) if label.startswith("[RIVAL]")]
        assert labels == list(AXIS.values())
        assert {"[RIVAL] Enabled", "[RIVAL] Similarity", "[RIVAL] Exemplar tokens"} < set(labels)


@pytest.mark.slow
def test_a_grid_of_similarity_and_mode_inverts_once_and_each_cell_has_its_own_values(server):
    similarities, modes = ["0.25", "0.5", "0.75"], ["variation", "edit"]
    x, y = (AXIS["similarity"], ", ".join(similarities)), (AXIS["mode"], ",".join(modes))
    answer = cells(server, x, y, {"exemplar_prompt": "a spoon"})
    texts = answer.infotexts
    assert ["inverted in" in text for text in texts] == [True] + [False] * 5
    assert all("stored inversion" in text for text in texts[1:])
    assert in_texts("similarity", texts) == similarities * 2
    assert in_texts("mode", texts) == ["variation"] * 3 + ["edit"] * 3
    for name in SIMILARITY:
        assert in_texts(name, texts) == [str(similarity_values(float(value))[name]) for value in similarities] * 2
    assert in_texts("early_steps", texts) == ["1000"] * 3 + ["900"] * 3
    for index, image in enumerate(answer.images):
        for other in answer.images[:index]:
            assert largest_difference([image], [other]) > 5


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[True], {}])
def test_a_cell_is_the_image_of_a_request_with_its_values(server, settings):
    x, y = (AXIS["similarity"], "0.25,0.75"), (AXIS["t_early"], "700,300")
    answer = cells(server, x, y, settings)
    alone = [
        images_of(server, {"similarity": similarity, "t_early": t_early})[0]
        for t_early in (700, 300)
        for similarity in (0.25, 0.75)
    ]
    assert largest_difference(answer.images, alone) == 0


@pytest.mark.slow
def test_an_axis_of_modes_sets_what_they_stand_for_over_the_panels_values(server):
    panel = [True, "text", 0.5, 500, 400, "matched", 0.5]
    texts = cells(server, (AXIS["mode"], "variation,text,edit"), settings=panel).infotexts
    assert in_texts("early_steps", texts) == ["1000", "960", "900"]
    assert in_texts("start_mix", texts) == ["1.0", "1.0", "0.0"]
    assert in_texts("t_align", texts) == ["500"] * 3
    texts = cells(server, (AXIS["mode"], "edit"), (AXIS["start_mix"], "0.25,0.75"), panel).infotexts
    assert in_texts("start_mix", texts) == ["0.25", "0.75"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [None, {"enabled": False}, [False]])
def test_an_axis_switches_rival_on_unless_the_axis_of_the_switch_says_otherwise(server, settings):
    x, y = (AXIS["similarity"], "0.25,0.75"), (AXIS["enabled"], "False,True")
    answer = cells(server, x, y, settings)
    assert in_texts("similarity", answer.infotexts) == [None, None, "0.25", "0.75"]
    assert not any("RIVAL" in text for text in answer.infotexts[:2])
    # the host draws the next cell's latent again
    assert largest_difference(answer.images[:1], images_of(server)) == 0
    assert largest_difference(answer.images[:2], answer.images[2:]) > 20
    assert in_texts("mode", cells(server, x, settings=settings).infotexts) == ["variation"] * 2


def test_a_cells_empty_text_is_not_the_one_of_the_cell_before(server):
    texts = cells(server, (AXIS["exemplar_prompt"], "a pizza,")).infotexts
    assert in_texts("exemplar_prompt", texts) == ["a pizza", None]


@pytest.mark.slow
@pytest.mark.parametrize("name", [field.name for field in INFOTEXT_FIELDS])
def test_only_the_fields_that_say_so_invert_anew(server, name):
    before = infotext(server, {})
    text = cells(server, (AXIS[name], str(OTHERS[name])), settings={}).infotexts[0]
    assert in_texts(name, [text]) == [str(OTHERS[name])] != in_texts(name, [before])
    # without LoRAs and without an exemplar prompt two of these fields change nothing, and an inversion of more nodes
    # serves fewer
    if name not in {"exact", "plain_inversion", "inversion_nodes"}:
        assert ("stored inversion" in text) == (name not in INVERSION_FIELDS)


@pytest.mark.slow
def test_in_txt2img_the_exemplar_is_the_panels(server):
    text = {"prompt": "a pizza", "seed": 3, "steps": STEPS, "width": 128, "height": 128, "cfg_scale": 5}
    settings = {"mode": "text", "exemplar": base64_of(exemplar("house-emojione-blue")), "exemplar_prompt": "a fork"}
    axes = [(AXIS["t_align"], "200,800"), (AXIS["layers"], "fine,all")]
    always_on = {"RIVAL": {"args": [settings]}}
    answer = server.txt2img(**text, sampler_name="Euler", plot=axes, alwayson_scripts=always_on)
    assert answer.status == 200, answer.sentence
    assert in_texts("t_align", answer.infotexts) == ["200", "800"] * 2
    assert in_texts("layers", answer.infotexts) == ["fine", "fine", "all", "all"]
    assert ["inverted in" in text for text in answer.infotexts] == [True, False, False, False]
    assert largest_difference(answer.images[:1], answer.images[1:2]) > 5


@pytest.mark.parametrize(
    ("name", "written", "sentence"),
    [
        ("similarity", "0.5,1.5", "similarity must be a number from 0 to 1, not 1.5"),
        ("similarity", "much", "[RIVAL] Similarity must be a number from 0 to 1, not 'much'"),
        ("t_align", "600.5", "[RIVAL] t_align must be a whole number from 0 to 1000, not '600.5'"),
        ("t_early", "1200", "t_early must be a whole number from 0 to 1000, not 1200"),
        ("mode", "variation,paint", "mode must be one of variation, text, edit, inpaint, not 'paint'"),
        ("mode", "variation,inpaint", "mode inpaint needs a mask"),
        ("layers", "some", "layers must be all, fine, coarse, or sizes"),
        ("exact", "yes", "[RIVAL] Exact guidance must be true or false, not 'yes'"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_the_axis_and_nothing_is_sampled(server, name, written, sentence):
    answer = server.img2img(**request({}, plot=[(AXIS[name], written), ONE_SEED]))
    assert answer.status == 422
    assert sentence in answer.sentence
    assert server.calls() == 0


@pytest.mark.parametrize(
    ("name", "written", "values"),
    [
        ("similarity", "0-1 (+0.25)", ["0.0", "0.25", "0.5", "0.75", "1.0"]),
        ("start_mix", "0.1-0.5 [3]", ["0.1", "0.3", "0.5"]),
        ("t_align", "200-600 (+200)", ["200", "400", "600"]),
    ],
)
def test_the_hosts_ranges_are_written_out(server, name, written, values):
    if server.name == "stand-in":
        pytest.skip("stand-in: its plot has no ranges")
    assert in_texts(name, cells(server, (AXIS[name], written)).infotexts) == values


def test_without_values_it_says_so(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: its plot has no empty axis")
    answer = server.img2img(**request({}, plot=[(AXIS["t_align"], ""), ONE_SEED]))
    assert (answer.status, answer.sentence) == (422, "RIVAL: the axis [RIVAL] t_align has no values; give it some.")
