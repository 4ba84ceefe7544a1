"""Any arguments of the command line: a run begins, or one sentence is printed and nothing is written."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rival_ext import cli, variations
from rival_ext.fields import FIELDS
from rival_ext.hosts.checkpoint import DEMO
from rival_ext.settings import MASK_RULE
from tests.bad_input import TRIED, WHOLE, cases, damaged_files, scalars

PHOTO = DEMO / "pizza.png"
FLAGS = [field.flag for field in FIELDS if field.name != "enabled"]
OTHERS = ["--prompt", "-n", "--seed", "--steps", "--mask", "--size", "--cfg", "--sampler", "--checkpoint", "--out"]
OTHERS += ["--plain", "--check", "--from", "--keep-inversions", "--bogus", "--", "-x", "--help="]
# the system hands a program no null bytes, and no surrogates but those that stand for bytes that are no text
words = scalars.filter(lambda value: not isinstance(value, int) or value.bit_length() < 2000).map(str)
arguments = words.map(lambda text: text.replace("\0", "").encode("utf-8", "replace").decode())
sizes = st.sampled_from(["64x64", "64x64x64", "64xjunkx64", "x", "0x0", "-8x8", "9" * 5000 + "x64", "٦٤x64", "64X64 "])


class Begun(Exception):
    """Raised in place of loading the model."""


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """(arguments) -> the sentence with which they are refused, or "" if a run would begin."""
    folder = tmp_path_factory.mktemp("runs")

    def loads(*_):
        raise Begun

    def call(*given_arguments):
        TRIED["cases"] += 1
        out, errors = folder / "out", io.StringIO()
        argv = ["rival_ext", "--out", str(out), *map(str, given_arguments)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", argv)
            patch.setattr(variations, "_load_host", loads)
            patch.chdir(folder)
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                try:
                    cli.main()
                except Begun:
                    return ""
                except SystemExit as stopped:
                    code = stopped.code
        assert code == 2
        assert list(folder.iterdir()) == []
        sentence = errors.getvalue().strip()
        assert sentence
        assert "\n" not in sentence
        assert "Traceback" not in sentence
        return sentence

    return call


@pytest.mark.slow
@given(data=st.data())
@cases(400)
def test_any_options_begin_a_run_or_print_one_sentence(begin, data):
    given_arguments = [PHOTO]
    for _ in range(data.draw(st.integers(1, 3))):
        given_arguments += [data.draw(st.sampled_from([*FLAGS, *OTHERS[:-4]])), data.draw(arguments | sizes)]
    begin(*given_arguments)


@pytest.mark.slow
@given(st.lists(st.sampled_from([*FLAGS, *OTHERS]) | arguments | sizes, max_size=5).map(tuple))
@cases(300)
def test_any_words_begin_a_run_or_print_one_sentence(begin, given_arguments):
    if "--help" not in given_arguments:
        begin(*given_arguments)


@pytest.mark.slow
@given(damaged_files(), st.sampled_from(["photo", "--mask", "--exemplar", "--exemplar-mask-2"]))
@cases(150)
def test_a_damaged_image_is_named_by_its_option(begin, tmp_path_factory, data, name):
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(data)
    sentence = begin(file) if name == "photo" else begin(PHOTO, name, file)
    assert not sentence or sentence.startswith(f"RIVAL: {'the photo' if name == 'photo' else name} ")


@pytest.mark.parametrize("file", WHOLE.values(), ids=WHOLE)
def test_a_whole_image_of_each_kind_is_taken(begin, tmp_path, file):
    (tmp_path / "photo").write_bytes(file)
    assert begin(tmp_path / "photo", "--exemplar-2", tmp_path / "photo") == ""


@pytest.mark.parametrize("flag", ["--mask", *(field.flag for field in FIELDS if field.is_image)])
@pytest.mark.parametrize(
    ("path", "ending"),
    [
        *(
            ("nothing.png", "does not exist."),
            (DEMO, "is a folder; give a file in PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF."),
            ("/dev/zero", "is a device; give a file in PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF."),
            ("x" * 5000, "cannot be opened; give a file that you may read."),
        ),
        (DEMO / "README.md", "is not an image that can be read."),
    ],
)
def test_an_image_that_does_not_exist_is_named_by_its_option(begin, flag, path, ending):
    assert begin(PHOTO, flag, path) == f"RIVAL: {flag} {path} {ending}"


@pytest.mark.parametrize("size", ["64x64x64", "64xjunkx64", "64xx64", "9" * 5000 + "x64", "٦٤x64", "64", "-64x64"])
def test_a_size_that_is_not_two_numbers_is_refused(begin, size):
    assert "must be WIDTHxHEIGHT" in begin(PHOTO, "--size", size)


@pytest.mark.parametrize("flag", ["--cfg", "--strength", "--weight", "--similarity"])
def test_what_is_not_a_number_is_refused(begin, flag):
    assert "nan" in begin(PHOTO, flag, "nan")


@pytest.mark.parametrize("flag", ["--prompt", "--exemplar-prompt"])
def test_text_with_half_a_character_is_refused(begin, flag):
    assert "must be text that UTF-8 can encode" in begin(PHOTO, flag, "a\udcff")


@pytest.mark.parametrize("flag", ["--out", "--keep-inversions"])
def test_a_file_in_place_of_a_folder_is_refused(begin, flag):
    assert begin(PHOTO, flag, PHOTO) == f"RIVAL: {flag} {PHOTO} is a file; give a folder."


def test_a_path_that_is_too_long_is_refused_in_a_sentence(begin):
    assert "cannot be written: File name too long" in begin(PHOTO, "--out", "x" * 5000)


def test_control_characters_in_a_name_are_not_printed(begin):
    assert begin("\x1b[2J\nphoto\r.png") == r"RIVAL: the photo \x1b[2J photo .png does not exist."


@pytest.mark.parametrize("grey", [0, 100, 127])
@pytest.mark.parametrize("flags", [("--mode", "inpaint", "--mask"), ("--mask",)])
def test_a_mask_that_is_nowhere_half_white_is_refused_before_the_model_is_loaded(begin, tmp_path, grey, flags):
    Image.new("L", (16, 16), grey).save(tmp_path / "mask.png")
    assert begin(PHOTO, *flags, tmp_path / "mask.png") == (
        f"RIVAL: --mask marks nothing to fill ({MASK_RULE}); paint a larger area white."
    )


def test_an_empty_image_is_refused(begin, tmp_path):
    (tmp_path / "photo.png").touch()
    assert "is empty; give a file in PNG" in begin(tmp_path / "photo.png")


@pytest.mark.parametrize(
    "flag", ["PHOTO", "--mask", "--exemplar-2", "--checkpoint", "--out", "--keep-inversions", "--from"]
)
@pytest.mark.parametrize("address", ["https://example.org//a.png", "s3://bucket/a", "file:///tmp/a.png"])
def test_an_address_is_shown_as_it_is_given_and_refused(begin, flag, address):
    sentence = begin(address) if flag == "PHOTO" else begin(PHOTO, flag, address)
    assert sentence == (
        f"Invalid value for '{flag}': {address} is an address, and no address is opened; give a path on this computer."
    )


@pytest.mark.parametrize("flag", ["--prompt", "--exemplar-prompt"])
@pytest.mark.parametrize("tag", ["<lora:style:1>", "<hypernet:x>", "<lyco:a b:0.5:0.7>"])
def test_a_tag_in_a_prompt_is_refused(begin, flag, tag):
    assert begin(PHOTO, flag, f"a pizza {tag}, red") == (
        f"RIVAL: {flag} has the tag {tag!r}, but the command line reads no LoRAs; remove the tag."
    )


def test_words_in_angle_brackets_that_are_no_tag_are_words(begin):
    assert begin(PHOTO, "--prompt", "a <small> pizza, 3 < 4: yes > no") == ""


@pytest.mark.parametrize("flag", ["--weight-2", "--weight-3", "--exemplar-mask-2", "--exemplar-mask-3"])
def test_what_belongs_to_an_exemplar_is_refused_without_it(begin, flag):
    value = 0.5 if "weight" in flag else PHOTO
    exemplar = f"--exemplar-{flag[-1]}"
    assert begin(PHOTO, flag, value) == f"RIVAL: {flag} needs {exemplar}; give both or neither."
    assert begin(PHOTO, flag, value, exemplar, PHOTO) == ""
