"""What the user is told when a wish cannot be honoured."""

from __future__ import annotations


class RivalError(Exception):
    """A plain sentence for the user: what is wrong, in which field, and what to do about it.

    `status_code` and `detail` are what the WebUI's API answers with: the request is at fault, not the server.
    """

    def __init__(self, sentence: str):
        super().__init__(f"RIVAL: {sentence}")
        self.status_code = 422
        self.detail = str(self)


class Interrupted(Exception):
    """The user stopped the run while the exemplar was being inverted."""
