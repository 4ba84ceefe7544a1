"""RIVAL beside what else AUTOMATIC1111's WebUI offers for variations: writes docs/peers.md and docs/peers.png.

    python benchmarks/peers.py --json FILE

Needs a real WebUI (RIVAL_WEBUI, or the folder in the home directory) and the ControlNet extension (RIVAL_CONTROLNET).
Takes about half an hour on two cores. What FILE holds already is not asked for again: an interrupted run goes on where
it stopped, and a finished one only writes the page anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import psutil
from exemplars import GUIDANCE, HELD_OUT_FOLDER, ROOT, STEPS, Exemplar, read_exemplars
from peers_page import PLAIN, PROMPTS, Record, write
from PIL import Image
from samplers import Ledger, describe, webui_folder
from starts import HELD_OUT
from tqdm import tqdm

from rival_ext.settings import PAPER
from tests.host.answers import Answer, base64_of
from tests.host.asking import request, text_request
from tests.host.compat_servers import CompatServer, controlnet

SEEDS = (1, 2)
SAMPLERS: Mapping[str, Mapping[str, str]] = {
    "DDIM": {"sampler_name": "DDIM", "scheduler": "Automatic"},
    "DPM++ 2M Karras": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
}
ADAIN = "reference_adain+attn"
ALTERNATIVE = "img2img alternative test"
ALTERNATIVE_GUIDANCE = 2.0
"""The script's own page asks for 2 or less."""


@dataclass(frozen=True)
class Arm:
    """One way to make variations: img2img of the exemplar, with the fields of a request that are its own."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, server: CompatServer, image: Image.Image, **fields: Any) -> Answer:
        """Ask for one image."""
        return server.img2img(**request(image=image, **{**fields, **self.fields}))


@dataclass(frozen=True)
class Rival(Arm):
    """RIVAL, with settings that are not its defaults."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, server: CompatServer, image: Image.Image, **fields: Any) -> Answer:
        return server.img2img(**request(dict(self.settings), image=image, **{**fields, **self.fields}))


@dataclass(frozen=True)
class Reference(Arm):
    """A preprocessor of ControlNet that needs no model, in txt2img, as its users use it."""

    module: str = "reference_only"
    fidelity: float = 0.5

    def ask(self, server: CompatServer, image: Image.Image, **fields: Any) -> Answer:
        unit = {
            "enabled": True,
            "module": self.module,
            "model": "None",
            "image": base64_of(image),
            "threshold_a": self.fidelity,
            "pixel_perfect": True,
            "save_detected_map": False,
        }
        scripts = {"ControlNet": {"args": [unit]}}
        return server.txt2img(**text_request(**fields, alwayson_scripts=scripts))


@dataclass(frozen=True)
class Alternative(Arm):
    """The WebUI's script that inverts the image with Euler and then samples with Euler; the prompt describes it."""

    randomness: float = 0.0

    def ask(self, server: CompatServer, image: Image.Image, **fields: Any) -> Answer:
        # one space more is the same prompt, but an inversion of its own in the script's cache
        negative = " " if self.randomness else ""
        # a line of the panel, sampler, prompts, steps, strength, guidance of the inversion, randomness, other levels
        values = ["", True, True, fields["prompt"], negative, True, fields["steps"], True, 1.0, self.randomness, False]
        script = {"script_name": ALTERNATIVE, "script_args": values, "cfg_scale": ALTERNATIVE_GUIDANCE}
        return super().ask(server, image, **{**fields, **script})


ARMS: Sequence[Arm] = (
    Arm(PLAIN),
    Arm("plain 0.75", {"denoising_strength": 0.75}),
    Arm("plain 0.5", {"denoising_strength": 0.5}),
    Reference("reference only 0.0", fidelity=0.0),
    Reference("reference only 0.5"),
    Reference("reference only 1.0", fidelity=1.0),
    Reference("reference AdaIN 0.5", module=ADAIN),
    Reference("reference AdaIN 1.0", module=ADAIN, fidelity=1.0),
    Alternative("alternative"),
    Alternative("alternative 0.5", randomness=0.5),
    Rival("RIVAL paper", settings=PAPER),
    Rival("RIVAL new"),
    Rival("RIVAL new 0.75", {"denoising_strength": 0.75}),
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
@click.option("--json", "kept", type=click.Path(path_type=Path), help="Where results are kept, a line for each.")
@click.option("--arms", multiple=True, help="Only this arm; may be given several times.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps.")
@click.option("--exemplars", "most", type=click.IntRange(1), default=6, show_default=True, help="The most exemplars.")
@click.option("--seeds", type=click.IntRange(1), default=len(SEEDS), show_default=True, help="Seeds of each image.")
def main(out: Path, kept: Path | None, arms: tuple[str, ...], steps: int, most: int, seeds: int) -> None:
    """Asks every arm for the same variations, turn by turn, and writes the page about them."""
    folder = webui_folder()
    if controlnet() is None:
        raise click.UsageError("no ControlNet found; set RIVAL_CONTROLNET to its folder")
    known = read_exemplars(HELD_OUT_FOLDER)
    exemplars = [known[name] for name in HELD_OUT[:most]]
    chosen = [arm for arm in ARMS if arm.name in (arms or (arm.name,))]
    wanted = turns(chosen, exemplars, range(1, seeds + 1), steps)
    ledger = Ledger(kept)
    missing = [turn for turn in wanted if turn.key not in ledger.records]
    if missing or "host" not in ledger.records:
        with running(folder) as server:
            ledger.add("host", describe(server, folder))
            warm_up(server, chosen, exemplars[0])
            for turn in tqdm(missing, unit="turn"):
                ledger.add(turn.key, turn.take(server))
    records = [ledger.records[turn.key] for turn in wanted]
    write(out, ledger.records["host"], records, exemplars, [arm.name for arm in chosen])


@dataclass(frozen=True)
class Turn:
    """What is asked for at once: an arm's image of each seed. The first pays for an inversion, the next find it."""

    sampler: str
    exemplar: Exemplar
    prompt: str
    arm: Arm
    seeds: Sequence[int]
    steps: int

    @property
    def names(self) -> Record:
        """What it is, in its record."""
        place = {"sampler": self.sampler, "exemplar": self.exemplar.name, "prompt": self.prompt, "arm": self.arm.name}
        return {**place, "steps": self.steps, "seeds": list(self.seeds)}

    @property
    def key(self) -> str:
        """Its name among all results."""
        return "; ".join(map(str, self.names.values()))

    def take(self, server: CompatServer) -> Record:
        """Its images, and the CPU time of the server for each, in seconds."""
        server.forget()
        process = psutil.Process(server.process.pid)
        seconds, pictures = [], []
        for seed in self.seeds:
            server.plan()
            before = process.cpu_times()
            answer = self.ask(server, seed)
            after = process.cpu_times()
            seconds.append(round(after.user + after.system - before.user - before.system, 2))
            pictures.append(base64_of(Image.fromarray(answer.images[0])))
        return {**self.names, "seconds": seconds, "pictures": pictures}

    def ask(self, server: CompatServer, seed: int) -> Answer:
        """Its image of a seed; an answer that is an error ends the run."""
        prompt = PROMPTS[self.prompt](self.exemplar)
        fields = {"prompt": prompt, "seed": seed, "steps": self.steps, "cfg_scale": GUIDANCE}
        answer = self.arm.ask(server, self.exemplar.image, **fields, **SAMPLERS[self.sampler])
        if answer.status != 200:
            raise click.ClickException(f"{self.key}: {answer.sentence}")
        return answer


def turns(arms: Sequence[Arm], exemplars: Sequence[Exemplar], seeds: Sequence[int], steps: int) -> list[Turn]:
    """All turns, arm by arm within each image, each image beginning with another arm."""
    found: list[Turn] = []
    for number, (exemplar, sampler, prompt) in enumerate(product(exemplars, SAMPLERS, PROMPTS)):
        first = number % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            found.append(Turn(sampler, exemplar, prompt, arm, seeds, steps))
    return found


def warm_up(server: CompatServer, arms: Sequence[Arm], exemplar: Exemplar) -> None:
    """Let every arm load what it loads only once."""
    for arm, prompt in product(arms, PROMPTS):
        Turn(next(iter(SAMPLERS)), exemplar, prompt, arm, SEEDS[:1], 4).take(server)


@contextmanager
def running(folder: Path) -> Iterator[CompatServer]:
    """A server with ControlNet and RIVAL, with a data folder of its own, for as long as it is needed."""
    with TemporaryDirectory() as data:
        # one thread: threads that wait for each other would count as cost
        server = CompatServer(folder, Path(data), environment={"OMP_NUM_THREADS": "1"})
        try:
            yield server
        finally:
            server.stop()


if __name__ == "__main__":
    main()
