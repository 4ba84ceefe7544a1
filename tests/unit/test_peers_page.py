"""The page about peers: what each arm asks for, in which order, and how figures, tables and the sheet are made."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.host.answers import Answer
from tests.host.data_folder import ROOT

# the folder of the benchmarks, which import each other by name
sys.path.append(str(ROOT / "benchmarks"))
pytest.importorskip("scipy", reason="benchmarks: scipy is not installed (the docs extra)")

from exactness import similarity
from exemplars import read_exemplars
from peers import ARMS, Alternative, Reference, Rival, turns
from peers_page import COLUMNS, PLAIN, PROMPTS, Result, by_sampler, contact_sheet, costs, page, rows

EXEMPLARS = [read_exemplars()[name] for name in ("bus-emojione-pink", "trophy-noto-pink")]
HOST = {"webui": "v1.10.1", "python": "3.10.13", "torch": "2.1.2"}
NAMES = [arm.name for arm in ARMS]


class Recorder:
    """A server that answers each request with a gray image, and keeps the requests."""

    def __init__(self):
        self.asked = []

    def img2img(self, **payload):
        return self.answer("img2img", payload)

    def txt2img(self, **payload):
        return self.answer("txt2img", payload)

    def answer(self, tab, payload):
        self.asked.append((tab, payload))
        return Answer(200, [np.zeros((8, 8, 3), np.uint8)])


def result(arm=PLAIN, sampler="DDIM", exemplar=EXEMPLARS[0], prompt="concept", seconds=(1.0, 1.0), palette=10.0):
    """Make a turn of two seeds: gray images, and distances that differ by 2."""
    images = [Image.new("RGB", (32, 32), (level,) * 3) for level in (100, 110)]
    figures = {column: [0.5, 0.5] for column in COLUMNS} | {
        "palette": [palette - 1, palette + 1],
        "seeds differ": [10.0],
    }
    return Result(sampler, exemplar.name, prompt, arm, 20, seconds, images, figures)


def everything():
    """Make a turn of each arm for each image."""
    return [
        result(turn.arm.name, turn.sampler, turn.exemplar, turn.prompt) for turn in turns(ARMS, EXEMPLARS, (1, 2), 20)
    ]


def asked_by(name):
    server = Recorder()
    [turn] = [turn for turn in turns(ARMS, EXEMPLARS[:1], (1,), 20) if turn.arm.name == name][:1]
    turn.ask(server, 1)
    return server.asked[0]


def test_rival_acts_in_its_own_arms_only():
    for arm in ARMS:
        scripts = asked_by(arm.name)[1].get("alwayson_scripts", {})
        assert list(scripts) == (["RIVAL"] if isinstance(arm, Rival) else ["ControlNet"] * isinstance(arm, Reference))


def test_the_new_defaults_are_asked_for_by_no_field():
    assert asked_by("RIVAL new")[1]["alwayson_scripts"]["RIVAL"]["args"] == [{"enabled": True}]
    assert asked_by("RIVAL new 0.75")[1]["denoising_strength"] == 0.75


def test_a_reference_takes_its_exemplar_from_the_unit():
    tab, payload = asked_by("reference AdaIN 1.0")
    [unit] = payload["alwayson_scripts"]["ControlNet"]["args"]
    assert (tab, unit["module"], unit["threshold_a"]) == ("txt2img", "reference_adain+attn", 1.0)
    assert "init_images" not in payload


def test_the_alternative_has_another_key_for_each_arm_of_its_cache():
    keys = [asked_by(arm.name)[1]["script_args"][3:5] for arm in ARMS if isinstance(arm, Alternative)]
    assert keys == [["a bus", ""], ["a bus", " "]]
    assert asked_by("alternative")[1]["cfg_scale"] == 2


def test_an_answer_that_is_an_error_ends_the_run():
    server = SimpleNamespace(img2img=lambda **_: Answer(500, sentence="it broke"))
    with pytest.raises(Exception, match=r"bus.*plain.*it broke"):
        turns(ARMS, EXEMPLARS, (1,), 20)[0].ask(server, 1)


def test_arms_take_turns_and_each_image_begins_with_another():
    order = turns(ARMS, EXEMPLARS, (1, 2), 20)
    firsts = [turn.arm for turn in order[:: len(ARMS)]]
    assert firsts[: len(PROMPTS) * 2] == list(ARMS[: len(PROMPTS) * 2])
    assert len({turn.key for turn in order}) == len(order) == len(ARMS) * 2 * len(PROMPTS) * len(EXEMPLARS)


def test_a_palette_is_a_ratio_to_plain_and_the_order_is_that_of_the_arms():
    results = [result("RIVAL new", palette=4.0), result(PLAIN), result("RIVAL new", palette=6.0)]
    found = rows(results, [PLAIN, "RIVAL new"])
    assert [row[:2] for row in found] == [[PLAIN, "1.00"], ["RIVAL new", "0.50"]]
    assert found[1][2:] == ["0.50", "0.50", "0.50", "10", "0", "0.50", "1.00", "1.00"]


def test_a_cost_is_the_median_ratio_of_the_first_image_and_of_the_next_ones():
    plain = [result(seconds=(1, 3)), result(exemplar=EXEMPLARS[1], seconds=(4, 4))]
    slow = [replace(one, seconds=(8.0, 2.0)) for one in plain]
    assert costs(slow, plain) == ["3.00", "0.75"]
    assert costs([replace(one, seconds=(8.0,)) for one in plain], plain) == ["3.00", "-"]


def test_one_seed_has_no_difference_between_seeds():
    [row] = rows([replace(result(), figures={**result().figures, "seeds differ": []})], [PLAIN])
    assert row[5] == "-"


def test_the_same_image_is_similar_by_1():
    image = EXEMPLARS[0].image
    assert similarity(image, image) == pytest.approx(1)
    assert similarity(image, Image.new("RGB", image.size)) < 0.5


def test_samplers_and_prompts_have_a_column_each():
    header, _, *lines = by_sampler(everything(), NAMES).splitlines()
    assert header.count("|") == 2 + 2 * len(PROMPTS)
    assert [line.split("|")[1].strip() for line in lines] == NAMES
    assert all("1.00, 0.50, 0.50" in line for line in lines)


def test_the_sheet_has_a_row_for_each_image_and_a_column_for_each_arm():
    sheet = contact_sheet(everything(), EXEMPLARS, NAMES)
    assert sheet.size == (120 + (len(ARMS) + 1) * 108, 40 + 2 * len(PROMPTS) * len(EXEMPLARS) * 108)


def test_the_columns_of_the_sheet_do_not_depend_on_the_order_of_turns():
    results = [result("RIVAL new"), replace(result(PLAIN), images=[Image.new("RGB", (32, 32), "red")])]
    sheet = contact_sheet(results, EXEMPLARS, [PLAIN, "RIVAL new"])
    assert sheet.getpixel((120 + 108 + 48, 40 + 48)) == (255, 0, 0)


def test_the_page_has_a_row_for_each_arm_and_prompt():
    text = page(HOST, everything(), NAMES)
    assert all(text.count(f"| {name} |") == 1 + len(PROMPTS) for name in NAMES)
