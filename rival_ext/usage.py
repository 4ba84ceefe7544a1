"""Which option acts in which run: what is given is used, refused in words, or mentioned in the report.

docs/command-line.md shows these rules as a table of all options and modes. Settings that have no effect on any host are
found by `rival_ext.method.unused`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from rival_ext.errors import RivalError
from rival_ext.fields import EXEMPLAR_SUFFIXES, FIELD_BY_NAME, FIELDS
from rival_ext.images.transforms import grey_mask
from rival_ext.settings import HALF, LEAST_WEIGHT, SIMILARITY, similarity_values

FLAGS = {"photo": "PHOTO", "number": "-n"} | {field.name: field.flag for field in FIELDS}
"""How an option is written, where that is not its name with `--` before it."""


@dataclass(frozen=True)
class Run:
    """The options of a run.

    Attributes:
        given: The names of those that the user chose.
        values: All values by the names of the options.
    """

    given: Set[str]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def acts(self, suffix: str) -> bool:
        """Tell whether an exemplar takes part. The photo is the first one if no other image is given for it."""
        is_there = suffix == "" or self["exemplar" + suffix] is not None
        return is_there and self["weight" + suffix] >= LEAST_WEIGHT

    @property
    def acting(self) -> list[str]:
        """The suffixes of the exemplars that take part."""
        return [suffix for suffix in EXEMPLAR_SUFFIXES if self.acts(suffix)]

    @property
    def fills_the_exemplar(self) -> bool:
        """Whether the image that is inpainted is an exemplar too."""
        return self["mask"] is not None and self["exemplar"] is None and self["mode"] != "text" and self.acts("")

    @property
    def shows_regions_only(self) -> bool:
        """Whether every exemplar is used for attention only."""
        masks = (self["exemplar_mask" + suffix] for suffix in self.acting)
        return all(mask is not None and np.asarray(grey_mask(mask)).min() < HALF * 255 for mask in masks)

    @property
    def starts_as_inverted(self) -> bool:
        """Whether every image starts from the exemplar's noise as it was inverted, whatever the seed."""
        is_drawn = self.fills_the_exemplar or not self.shows_regions_only
        return bool(self["start_mix"] == 0 and is_drawn and not self["plain"])


@dataclass(frozen=True)
class Rule:
    """When options that are given do nothing.

    Attributes:
        options: The names of the options.
        holds: Whether they do nothing in a run.
        because: Why, after "had no effect because".
    """

    options: tuple[str, ...]
    holds: Callable[[Run], bool]
    because: str


SETTINGS_BUT_MODE = tuple(field.name for field in FIELDS if field.name not in ("enabled", "mode"))
ANCESTRAL = "euler-a"


def _exemplar_rules(suffix: str) -> Iterable[Rule]:
    """The rules about one of the exemplars."""
    weight = "weight" + suffix
    yield Rule(
        ("exemplar" + suffix, "exemplar_mask" + suffix),
        lambda run: run[weight] < LEAST_WEIGHT,
        f"{flag(weight)} is 0",
    )
    yield Rule(
        (weight,),
        lambda run: run.acting == [suffix],
        "there is one exemplar and any weight above 0 gives it all",
    )


def flag(name: str) -> str:
    """Return how an option is written on the command line.

    Args:
        name: The option's name.
    """
    return FLAGS.get(name, "--" + name.replace("_", "-"))


RULES = (
    Rule(
        ("check", "keep_inversions", *SETTINGS_BUT_MODE),
        lambda run: run["plain"],
        "--plain makes images without RIVAL",
    ),
    Rule(
        ("mode",),
        lambda run: run["plain"] and "cfg" in run.given,
        "--plain makes images without RIVAL and --cfg is given",
    ),
    Rule(
        ("cfg",),
        lambda run: not run["prompt"] and run["cfg"] != 1 and (run["plain"] or not _differs_without_prompt(run)),
        "--prompt is empty and guidance follows the prompt",
    ),
    Rule(
        ("seed", "number"),
        lambda run: run.starts_as_inverted and run["sampler"] != ANCESTRAL,
        "every seed gives the same image with --start-mix 0 and a sampler that adds no noise",
    ),
    Rule(
        ("photo",),
        lambda run: run["exemplar"] is not None and run["mask"] is None and run["denoise"] == 1 and not run["plain"],
        "--exemplar takes its place and PHOTO gave only the aspect",
    ),
    *(rule for suffix in EXEMPLAR_SUFFIXES for rule in _exemplar_rules(suffix)),
    Rule(
        ("similarity",),
        lambda run: all(run[name] != value for name, value in similarity_values(run["similarity"]).items()),
        f"{' and '.join(map(flag, SIMILARITY))} are given",
    ),
    Rule(
        ("t_align", "exemplar_tokens", "layers", "early_steps", "exact", "uncond_share"),
        lambda run: run["strength"] == 0,
        "--strength is 0",
    ),
    Rule(("alignment",), lambda run: run["t_early"] == 1000, "no step lies above --t-early 1000"),
    Rule(
        ("alignment",),
        lambda run: run.shows_regions_only,
        "every exemplar has a mask and gives no statistics",
    ),
    Rule(("plain_inversion",), lambda run: True, "the command line reads no LoRAs"),
    Rule(("inversion_nodes",), lambda run: run["check"], "--check inverts at each of the sampler's levels"),
)
"""When an option that is given does nothing. The report says so."""

PARTNERS = {
    name + suffix: "exemplar" + suffix for suffix in EXEMPLAR_SUFFIXES[1:] for name in ("exemplar_mask", "weight")
}
"""Options that are refused without another option, and that option."""


def check_usage(run: Run) -> list[str]:
    """Refuse options that lack what they are about, and say which options do nothing.

    Args:
        run: The options.

    Returns:
        Sentences for the report, without a full stop.

    Raises:
        RivalError: An option is given without the one that it belongs to.
    """
    for name, partner in PARTNERS.items():
        if name in run.given and run[partner] is None:
            raise RivalError(f"{flag(name)} needs {flag(partner)}; give both or neither.")
    notes = []
    # each option is mentioned once, for the first reason
    silent = set(run.given)
    for rule in RULES:
        idle = [name for name in rule.options if name in silent]
        if idle and rule.holds(run):
            notes.append(f"{' and '.join(map(flag, idle))} had no effect because {rule.because}")
            silent -= set(idle)
    return notes


def in_options(sentence: str) -> str:
    """Name the setting at the beginning of a sentence as the command line writes it.

    Args:
        sentence: A sentence of an error, with or without the prefix, or a note.

    Returns:
        The sentence with the option in place of the field.
    """
    prefix = "RIVAL: " if sentence.startswith("RIVAL: ") else ""
    first, space, rest = sentence.removeprefix(prefix).partition(" ")
    return prefix + (flag(first) if first in FIELD_BY_NAME else first) + space + rest


def _differs_without_prompt(run: Run) -> bool:
    """Whether the rows with the negative prompt see something else than the others."""
    is_exact = run["exact"] and run["exemplar_prompt"]
    # the guide has every row see the exemplars if it knows only parts of them
    sees_less = run["uncond_share"] < 1 and not run.shows_regions_only
    return bool(run["strength"] > 0 and (is_exact or sees_less))
