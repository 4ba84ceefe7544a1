"""An extension for a real WebUI under test: it seeds the global generator before each run, and shows the queue.

The host draws img2img's latent from the VAE's posterior with the global generator. Without a seed an image would depend
on the images before it, with or without RIVAL.
"""

import torch
from modules import call_queue, script_callbacks, scripts, shared

PINNED = {"seed": None}


class Pin(scripts.Script):
    """Seeds the generator before the host draws from it."""

    def title(self):
        return "RIVAL probe: pin"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        if PINNED["seed"] is not None:
            torch.manual_seed(PINNED["seed"])


def add_routes(_, app):
    """Add the routes `/probe/pin`, `/probe/queue` and `/probe/idle`."""

    @app.post("/probe/pin")
    def pin(seed: int):
        PINNED["seed"] = seed

    @app.get("/probe/queue")
    def queue():
        lock, state = call_queue.queue_lock, shared.state
        return {
            "locked": lock._lock.locked(),
            "waiting": len(lock._pending_threads),
            "job": state.job,
            "job_count": state.job_count,
        }

    @app.get("/probe/idle")
    def idle():
        # the answer comes when all runs before it have ended
        with call_queue.queue_lock:
            return True


script_callbacks.on_app_started(add_routes)
