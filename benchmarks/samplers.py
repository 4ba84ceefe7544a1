"""Does every sampler work with every schedule and model family? Writes docs/samplers.md and its two pictures.

    python benchmarks/samplers.py --json FILE

Needs a real WebUI (RIVAL_WEBUI, or the folder in the home directory) and the folder of checkpoints that RIVAL_FAMILIES
names (tests/host/families.py). Takes an hour or two on two cores. What FILE holds already is not measured again:
an interrupted run goes on where it stopped, and a finished one only writes the page anew.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import httpx
from exemplars import ROOT, read_exemplars
from samplers_cells import (
    AUTOMATIC,
    RECONSTRUCTED,
    REFERENCE,
    STEPS,
    VARIED,
    Bench,
    Cell,
    Reconstruction,
    Record,
    Task,
    Variation,
    attempt,
    load,
)
from samplers_page import ADAPTIVE, faults, write
from tqdm import tqdm

from rival_ext.hosts.checkpoint import quieten_libraries
from tests.host.families import FAMILIES, SD1, FamiliesServer, Family, given_folder
from tests.host.servers import python_of, real_folder

NO_SCHEDULE = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
"""Samplers with timesteps of their own."""
WITH_EVERY_SCHEDULE = ("Euler", "DPM++ 2M")
"""Those that the other families are asked for with every schedule: a schedule is a list of noise levels for any."""
DETERMINISTIC = (
    *("DDIM", "DDIM CFG++", "PLMS", "UniPC", "Euler", "LMS", "Heun", "DPM2", "DPM++ 2M"),
    # with eta 0
    *("Euler a", "DPM2 a", "DPM++ 2S a", "DPM fast", "DPM adaptive"),
)


class Ledger:
    """The records by their keys, kept line by line in a file if there is one; safe from several threads."""

    def __init__(self, file: Path | None):
        self.file = file
        self.records: dict[str, Record] = {}
        self._lock = threading.Lock()
        if file and file.exists():
            for line in file.read_text().splitlines():
                record = json.loads(line)
                self.records[record["key"]] = record

    def add(self, key: str, record: Record) -> None:
        """One more; takes the place of the key's former one."""
        record = {"key": key, **record}
        with self._lock:
            self.records[key] = record
            if self.file:
                with self.file.open("a") as file:
                    file.write(json.dumps(record) + "\n")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
@click.option("--json", "kept", type=click.Path(path_type=Path), help="Where results are kept, a line for each.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Servers side by side.")
@click.option("--families", multiple=True, help="Only this family; may be given several times.")
@click.option("--samplers", multiple=True, help="Only this one, as well.")
@click.option("--schedules", multiple=True, help="Only this one, as well.")
@click.option("--again", is_flag=True, help="Also measure anew where something did not hold.")
def main(
    out: Path,
    kept: Path | None,
    jobs: int,
    families: tuple[str, ...],
    samplers: tuple[str, ...],
    schedules: tuple[str, ...],
    again: bool,
) -> None:
    """Measures every sampler with every schedule on every family and writes the page about it."""
    folder = webui_folder()
    if given_folder() is None:
        raise click.UsageError("no checkpoints found; set RIVAL_FAMILIES to their folder")
    ledger = Ledger(kept)
    if "host" not in ledger.records:
        with running(folder) as server:
            ledger.add("host", describe(server, folder))
    host = ledger.records["host"]
    wanted = tasks(
        [family for family in FAMILIES if family.name in (families or (family.name,))],
        [sampler for sampler in host["samplers"] if sampler in (samplers or (sampler,))],
        [schedule for schedule in host["schedules"] if schedule in (schedules or (schedule,))],
    )
    done = {key for key, record in ledger.records.items() if not (again and does_not_hold(record))}
    measure([task for task in wanted if task.key not in done], folder, jobs, ledger)
    write(out, host, [ledger.records[task.key] for task in wanted], read_exemplars())


def webui_folder() -> Path:
    """The folder of the real WebUI. From here on, whatever ends the benchmark ends its servers too."""
    quieten_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = real_folder()
    if folder is None:
        raise click.UsageError("no real WebUI found; set RIVAL_WEBUI to its folder")
    return folder


def tasks(families: Sequence[Family], samplers: Sequence[str], schedules: Sequence[str]) -> list[Task]:
    """All that there is to measure, a family after the other, pictures of the trained model first."""
    found: list[Task] = []
    for family in families:
        placed = [
            (sampler, schedule)
            for sampler, schedule in product(samplers, schedules)
            if schedule == AUTOMATIC
            or sampler in WITH_EVERY_SCHEDULE
            or (family is SD1 and sampler not in (*NO_SCHEDULE, *ADAPTIVE))
        ]
        if family is SD1:
            runs = [REFERENCE, *((sampler, STEPS) for sampler in samplers)]
            found += [Variation(family, *run, exemplar) for run, exemplar in product(runs, VARIED)]
            found += [
                Reconstruction(family, *place, exemplar)
                for place, exemplar in product(placed, RECONSTRUCTED)
                if place[0] in DETERMINISTIC
            ]
        found += [Cell(family, *place) for place in placed]
    return found


def does_not_hold(record: Record) -> bool:
    """Whether something was wrong."""
    return "error" in record or (record.get("kind") == "Cell" and bool(faults(record)))


def measure(wanted: Sequence[Task], folder: Path, jobs: int, ledger: Ledger) -> None:
    """Adds the record of every task; each job takes the next one for its own server."""
    if not wanted:
        return
    queue = deque(wanted)
    bench = Bench()
    with tqdm(total=len(wanted), unit="task") as bar, ThreadPoolExecutor(jobs) as pool:

        def work() -> None:
            try:
                while queue:
                    loaded = None
                    with running(folder) as server:
                        while queue and server.process.poll() is None:
                            task = queue.popleft()
                            if task.family is not loaded:
                                loaded = task.family
                                load(loaded, server)
                            ledger.add(task.key, attempt(task, server, bench))
                            bar.update()
            except BaseException:
                # the others end with their present task
                queue.clear()
                raise

        workers = [pool.submit(work) for _ in range(jobs)]
        try:
            for worker in workers:
                worker.result()
        finally:
            queue.clear()


@contextmanager
def running(folder: Path) -> Iterator[FamiliesServer]:
    """A server of its own, with a data folder of its own, for as long as it is needed."""
    with TemporaryDirectory() as data:
        server = FamiliesServer(folder, Path(data))
        try:
            yield server
        finally:
            server.stop()


def describe(server: FamiliesServer, folder: Path) -> Record:
    """What the host is and what it lists."""
    versions = "import platform, torch; print(platform.python_version(), torch.__version__)"
    python, torch = subprocess.check_output([python_of(folder), "-c", versions], text=True).split()
    infotext = server.txt2img(steps=1, width=64, height=64).infotexts[0]
    webui = infotext.rpartition("Version: ")[2].split(",")[0]
    samplers = [sampler["name"] for sampler in httpx.get(f"{server.url}/sdapi/v1/samplers").json()]
    return {"webui": webui, "python": python, "torch": torch, "samplers": samplers, "schedules": server.schedules()}


if __name__ == "__main__":
    main()
