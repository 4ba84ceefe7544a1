"""Bad input, by mistake or on purpose, for the property tests in unit and host."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections import Counter

import hypothesis
from hypothesis import strategies as st
from PIL import Image, features

from rival_ext.errors import RivalError
from rival_ext.fields import FIELDS

NAMES = [field.name for field in FIELDS]
IMAGES = [field.name for field in FIELDS if field.is_image]
SENTENCE = re.compile(r"RIVAL: (?P<field>[^\n]{1,450})\.")

# counting


TRIED: Counter[str] = Counter()
"""The number of cases since the last report, in this process. tests/conftest.py adds them up."""


def cases(number):
    """Try a property with so many inputs, the same each time. With RIVAL_CASES=20, twenty times as many at random."""
    times = int(os.environ.get("RIVAL_CASES", "1"))
    return hypothesis.settings(
        max_examples=number * times,
        derandomize=times == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def long_cases(number):
    """As `cases`, for slow properties: a failing input is shown as found, without a search for a smaller one."""
    return hypothesis.settings(cases(number), phases=[hypothesis.Phase.generate])


def said(action, *arguments):
    """Call an action that may refuse its input. Return (its result, "") or (None, the sentence). Counts as one case."""
    TRIED["cases"] += 1
    try:
        return action(*arguments), ""
    except RivalError as error:
        refusal = error
    assert refusal.status_code == 422
    return None, plain(refusal.detail)


def plain(sentence):
    """Return the sentence, if it is one sentence that a person can read."""
    assert SENTENCE.fullmatch(sentence), sentence
    assert sentence.isprintable(), ascii(sentence)
    return sentence


def names(sentence, fields):
    """Tell whether a sentence begins with one of the fields, or says that a field does not exist."""
    return sentence.startswith(("RIVAL: unknown field ", *(f"RIVAL: {field} must be " for field in fields)))


# values


def nested(depth, inner=0):
    """Nest arrays so many times."""
    for _ in range(depth):
        inner = [inner]
    return inner


HOSTILE_TEXTS = [
    *("", "\0", "a\0b", "[a:b:0.5]", "((((a", "a]]]", "(a:1e999)", "(a:nan)", "<lora:x:1>", "AND", "BREAK"),
    *("\ud800", "\udcff", "\u202e", "\N{PILE OF POO}", "a\\", "a" * 20_000, "\n\n", "True", "None", "600", "1_0"),
    *("/etc/passwd", "../../secret.png", "file:///etc/passwd", "http://127.0.0.1/x.png", "C:\\photo.png", "8, 16"),
    *("data:image/png;base64,", "data:,", "iVBORw0KGgo=", "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{7*7}}", "${7*7}"),
]
HOSTILE_NUMBERS = [
    *(10**400, -(10**400), 2**63, -(2**63), math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324, 0.25, 600.0),
]
texts = st.one_of(st.text(max_size=20), st.text(st.characters(), max_size=6), st.sampled_from(HOSTILE_TEXTS))
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from(HOSTILE_NUMBERS))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from([50, 400, 800]).map(nested),
    st.fixed_dictionaries({"image": scalars, "mask": scalars}),
)
unknown_names = st.sampled_from(["", "t_Align", "exemplar_4", "__class__", "args", "a\0", "x" * 999])
field_names = st.sampled_from(NAMES) | unknown_names
objects = st.dictionaries(field_names, values, max_size=5)


# images


def file_of(image, kind, **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def base64_text(data):
    """Encode bytes as a request carries them."""
    return base64.b64encode(data).decode()


def two_colours(mode="RGB", size=(9, 6)):
    """Return an image whose halves differ, so that damage and rotations can be seen."""
    image = Image.new("RGB", size, "orange")
    image.paste("navy", (0, 0, size[0] // 2, size[1] // 3 + 1))
    return image.convert(mode)


KINDS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if "avif" in features.modules else [])]


def whole_files():
    """Return by name small images of every format and mode."""
    modes = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "WEBP": ["RGB", "RGBA"]}
    modes |= {"BMP": ["1", "L", "P", "RGB"], "GIF": ["L", "P", "RGB"], "TIFF": ["1", "L", "RGB", "CMYK", "I;16", "F"]}
    modes |= {"AVIF": ["RGB", "RGBA"]}
    files = {}
    for kind in KINDS:
        for mode in modes[kind]:
            image = two_colours("L").convert("I").convert(mode) if mode == "I;16" else two_colours(mode)
            files[f"{kind} {mode}"] = file_of(image, kind)
    frames = [two_colours(), two_colours().rotate(180)]
    for kind in ("GIF", "PNG", "WEBP"):
        files[f"{kind} animated"] = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    files["JPEG progressive"] = file_of(two_colours(), "JPEG", progressive=True)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg"):
        files[f"TIFF {compression}"] = file_of(two_colours(), "TIFF", compression=compression)
    return files


WHOLE = whole_files()


@st.composite
def damaged_files(draw):
    """A file with parts changed, cut off, repeated or inserted. Sometimes it is left whole."""
    data = bytearray(draw(st.sampled_from(list(WHOLE.values()))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 40)))
        change = draw(st.sampled_from(["write", "cut off", "repeat", "insert", "header"]))
        if change == "write":
            part = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(part)] = part
        elif change == "header":
            part = draw(st.binary(min_size=1, max_size=2))
            at = draw(st.integers(0, min(len(data), 60)))
            data[at : at + len(part)] = part
        elif change == "cut off":
            del data[at:]
        elif change == "repeat":
            data[at:at] = data[at:until] * draw(st.integers(1, 50))
        else:
            data[at:at] = draw(st.binary(max_size=30))
    return bytes(data)
