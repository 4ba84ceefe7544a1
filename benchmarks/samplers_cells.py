"""What is measured of one sampler on a real WebUI: tasks, each with a record that JSON can hold, for `samplers.py`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from effect import palette, palette_distance
from exemplars import Exemplar, read_exemplars
from PIL import Image
from studio import Studio

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from rival_ext.hosts.diffusers import RequestImages
from rival_ext.method.alignment import channel_statistics
from tests.host.answers import Answer, base64_of
from tests.host.asking import largest_difference, request
from tests.host.families import FamiliesServer, Family

Record = dict[str, Any]

CELL_STEPS = 6
STEPS = 20
REFERENCE = ("DDIM", 50)
"""The sampler and its steps that all others are shown beside."""
SEEDS = (3, 4)
AUTOMATIC = "Automatic"
"""The schedule that a sampler has if nobody chooses one."""
ROUNDING = 2
"""By so many 255ths a picture may differ where batches of another size are only rounded otherwise."""
CELL_EXEMPLAR = "pizza-emojione-yellow"
RECONSTRUCTED = (CELL_EXEMPLAR,)
VARIED = ("panda-emojione-white", CELL_EXEMPLAR, "house-emojione-blue", "red-apple-emojione-white")
PLAIN, OFF, NOISE = "plain", "off", "noise"
ARMS: Mapping[str, Mapping[str, Any] | None] = {PLAIN: None, OFF: {"alignment": "off"}, NOISE: {}}
"""Without RIVAL, without alignment, all of it."""
REPORT = re.compile(
    r"(?P<layers>\d+) layers; (?P<injected>\d+) of (?P<total>\d+) steps injected; \d+ aligned; "
    r"(?P<features>\w+) features; [^;]*; [^;]* UNet rows(?P<notes>[^,\n]*)"
)


class Refused(Exception):
    """A request that the host answered with an error: its sentence."""


def parse_report(infotext: str) -> Record:
    """What the report in an infotext says: layers, injected and total steps, how features came, what is noted."""
    found = REPORT.search(infotext)
    if not found:
        raise Refused("no report in the infotext")
    words = {"features": found["features"], "notes": found["notes"].removeprefix("; ")}
    return {**words, **{name: int(found[name]) for name in ("layers", "injected", "total")}}


@dataclass
class Bench:
    """The exemplars and what the small model's VAE makes of pictures, in this process."""

    exemplars: dict[str, Exemplar] = field(default_factory=read_exemplars)
    studio: Studio = field(default_factory=lambda: Studio(load_pipeline(DEMO_CHECKPOINT)))

    def seen(self, name: str) -> Image.Image:
        """An exemplar as the VAE gives it back."""
        return self.studio.seen(self.exemplars[name].image)

    def statistics(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel of a picture's latent."""
        latent = self.studio.host(RequestImages.of(image)).exemplar_latent()
        mean_of, deviation = (value.flatten().double().numpy() for value in channel_statistics(latent))
        return mean_of, deviation


@dataclass(frozen=True)
class Task:
    """Something to measure of a sampler on a family's checkpoint."""

    family: Family
    sampler: str

    @property
    def names(self) -> Record:
        """What it is, in its record."""
        others = {name: value for name, value in vars(self).items() if name != "family"}
        return {"kind": type(self).__name__, "family": self.family.name, **others}

    @property
    def key(self) -> str:
        """Its name among all results."""
        return ", ".join(str(value) for value in self.names.values())

    def measure(self, server: FamiliesServer, bench: Bench) -> Record:
        """Its figures."""
        raise NotImplementedError

    def ask(
        self, server: FamiliesServer, settings: Mapping[str, Any] | None, pinned: bool = True, **fields: Any
    ) -> Answer:
        """The answer to a request, from a pinned global generator or not; raises Refused if it is an error."""
        if pinned:
            server.plan()
        fields = {"sampler_name": self.sampler, **fields, "override_settings": self.family.settings()}
        answer = server.img2img(**request(None if settings is None else dict(settings), **fields))
        if answer.status != 200:
            raise Refused(answer.sentence)
        return answer


@dataclass(frozen=True)
class Cell(Task):
    """One cell of a family's table: does everything hold for this sampler with this schedule?"""

    schedule: str

    def measure(self, server: FamiliesServer, bench: Bench) -> Record:
        image = bench.exemplars[CELL_EXEMPLAR].image
        fields = {
            "scheduler": self.schedule,
            "steps": CELL_STEPS,
            "image": image,
            "width": 64,
            "height": 64,
            "batch_size": len(SEEDS),
            "seed": SEEDS[0],
        }

        def made(settings: Mapping[str, Any] | None, **others: Any) -> list[np.ndarray]:
            return self.ask(server, settings, **{**fields, **others}).images

        def alone(settings: Mapping[str, Any] | None) -> list[np.ndarray]:
            return [made(settings, seed=seed, batch_size=1)[0] for seed in SEEDS]

        plain = made(None)
        calls = server.calls()
        answer = self.ask(server, {}, **fields)
        varied = answer.images
        record = parse_report(answer.infotexts[0])
        left = server.leftovers()
        twice = largest_difference(made({}), varied)
        order = largest_difference(alone({}), varied)
        after = largest_difference(made(None), plain)
        return {
            **record,
            "all_layers": server.layers(),
            # one call of the UNet holds all rows of a step
            "plain_calls": calls,
            "changed": largest_difference(varied, plain),
            "twice": twice,
            "order": order,
            # beyond what rounding explains: what the host's own pictures differ by, and ours when it encodes the image
            # anew, from the global generator, as it does in batches of another size
            "plain_order": largest_difference(alone(None), plain) if order > ROUNDING else 0,
            "redrawn": max(largest_difference(made({}, pinned=False), varied) for _ in range(3))
            if order > ROUNDING
            else 0,
            "leftovers": sorted({*left, *server.leftovers()}),
            "after": after,
            # a host that gives another picture of the same request by itself cannot be asked for more
            "plain_twice": largest_difference(made(None), made(None)) if after or twice else 0,
        }


@dataclass(frozen=True)
class Reconstruction(Task):
    """How well a deterministic sampler gives the exemplar back from the inverted start, without any injection."""

    schedule: str
    exemplar: str

    def measure(self, server: FamiliesServer, bench: Bench) -> Record:
        settings = {"start_mix": 0.0, "alignment": "off", "strength": 0.0}
        fields = {"cfg_scale": 1, "prompt": "", "steps": STEPS, "eta": 0}
        image = bench.exemplars[self.exemplar].image
        answer = self.ask(server, settings, image=image, scheduler=self.schedule, **fields)
        error = answer.images[0].astype(float) - np.asarray(bench.seen(self.exemplar), dtype=float)
        return {"psnr": round(20 * np.log10(255 / np.sqrt(np.mean(error**2))), 2)}


@dataclass(frozen=True)
class Variation(Task):
    """How close variations are to an exemplar: plain, without alignment and with it."""

    steps: int
    exemplar: str

    def measure(self, server: FamiliesServer, bench: Bench) -> Record:
        exemplar = bench.exemplars[self.exemplar]
        seen = bench.seen(self.exemplar)
        aim, (mean_of, deviation) = palette(seen), bench.statistics(seen)
        fields = {
            "scheduler": AUTOMATIC,
            "steps": self.steps,
            "prompt": exemplar.concept,
            "image": exemplar.image,
            "batch_size": len(SEEDS),
            "seed": SEEDS[0],
        }
        record: Record = {}
        for arm, settings in ARMS.items():
            images = [Image.fromarray(image) for image in self.ask(server, settings, **fields).images]
            gaps = [bench.statistics(image) for image in images]
            record[arm] = {
                "palette": [palette_distance(palette(image), aim) for image in images],
                "mean": [float(np.abs(own - mean_of).mean()) for own, _ in gaps],
                "std": [float(np.abs(own - deviation).mean()) for _, own in gaps],
                "picture": base64_of(images[0]),
            }
        return record


def load(family: Family, server: FamiliesServer) -> None:
    """Has the host load a family's checkpoint: a request that loads one by the way draws other random numbers."""
    server.img2img(**request(steps=1, width=64, height=64, override_settings=family.settings()))


def attempt(task: Task, server: FamiliesServer, bench: Bench) -> Record:
    """A task's record; an error of the host is one too, with the traceback of its log."""
    begun, logged = time.perf_counter(), server.log.stat().st_size
    try:
        figures = task.measure(server, bench)
    except (Refused, httpx.HTTPError) as error:
        log = server.log.read_bytes()[logged:].decode(errors="replace")
        figures = {"error": str(error) or repr(error), "traceback": log[log.rfind("Traceback") :][-4000:]}
    return {**task.names, **figures, "seconds": round(time.perf_counter() - begun, 2)}
