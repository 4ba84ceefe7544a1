"""The extension as the WebUI knows it: registers the panel, the routes and the option; hands each batch over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modules import script_callbacks, scripts, shared

from rival_ext.hosts.webui.api import add_routes
from rival_ext.hosts.webui.axes import add_axes
from rival_ext.hosts.webui.infotext import PASTE_TARGETS
from rival_ext.hosts.webui.options import add_option
from rival_ext.hosts.webui.ui.gallery import GalleryButtons
from rival_ext.hosts.webui.ui.host_controls import HostControls
from rival_ext.hosts.webui.ui.panel import Panel
from rival_ext.settings import is_switched_on

if TYPE_CHECKING:
    from rival_ext.hosts.webui.check import CheckResult
    from rival_ext.hosts.webui.session import Session


class SessionOwner:
    """Owns what is kept between runs. The session is made at the first run: switched off, the extension costs nothing.

    The attribute `current` is the session, or None before the first run.
    """

    def __init__(self) -> None:
        self.current: Session | None = None

    def open(self) -> Session:
        """Return the session, and make it at the first call."""
        if self.current is None:
            # imported late: the method is loaded when it is first used
            from rival_ext.hosts.webui.session import Session

            self.current = Session()
        return self.current

    def is_stored(
        self, user: str | None, request: Mapping[str, Any], prompt: str, settings: Mapping[str, Any], images: list[str]
    ) -> bool:
        """Tell whether a run would find its inversions stored. See `fingerprint.preview_key` for the arguments."""
        if self.current is None:
            return False
        from rival_ext.hosts.webui.fingerprint import preview_keys

        keys = preview_keys(user, request, prompt, settings, images)
        return any(map(self.current.is_stored, keys))

    def release(self, user: str | None) -> str:
        """Release the memory of a user's inversions.

        Args:
            user: Who asks for it. None stands for everybody who has not logged in.

        Returns:
            A sentence that says how much memory that was. It is the same whether another user has stored any or not.
        """
        if self.current is None or not self.current.store.of(user).entries:
            return "No inversion of yours is stored."
        return f"Released {self.current.release(user) / 2**20:.1f} MB for other runs."

    def release_all(self, *_: Any) -> None:
        """Release the memory of every user's inversions."""
        if self.current is not None:
            self.current.store.clear_for_all()


SESSION = SessionOwner()
PANELS: dict[str, Panel] = {}
"""The panels by tab, as the WebUI builds them."""


class RivalScript(scripts.Script):
    """An always-on script whose accordion stands beside the WebUI's own Refiner."""

    section = "accordions"
    create_group = False

    def title(self) -> str:
        return "RIVAL"

    def show(self, is_img2img: bool) -> Any:
        self.host_controls = HostControls(self.tabname)
        self.host_controls.watch(self)
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        panel = Panel(self.tabname, self.host_controls, SESSION.release, SESSION.is_stored, check_request)
        panel.build()
        PANELS[self.tabname] = panel
        self.infotext_fields = panel.paste_fields
        self.paste_field_names = list(PASTE_TARGETS.values())
        return panel.controls

    def after_component(self, component: Any, **kwargs: Any) -> None:
        self.host_controls.after_component(component)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        if is_switched_on(args):
            # imported late: switched off, the extension costs nothing
            from rival_ext.hosts.webui.sampling import announce

            announce(p, args)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        if is_switched_on(args):
            from rival_ext.hosts.webui.sampling import arm

            arm(p, args, SESSION.open())

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        if is_switched_on(args):
            from rival_ext.hosts.webui.batch import end_batch

            end_batch(p)


def check_request(request: Mapping[str, Any]) -> CheckResult:
    """Check the inversion of a run.

    Args:
        request: The fields of a `CheckRequest` by name.

    Returns:
        What the check found.

    Raises:
        RivalError: The run could not be honoured, or the user interrupted the check.
    """
    from rival_ext.hosts.webui.check import CheckRequest, check_inversion

    return check_inversion(CheckRequest(**request), SESSION.open())


def validate_cell(p: Any, cell: Mapping[str, Any]) -> None:
    """Do `validation.validate_cell`."""
    from rival_ext.hosts.webui import validation

    validation.validate_cell(p, cell)


def register() -> None:
    """Have the WebUI call what is no part of the script."""
    script_callbacks.on_app_started(lambda _, app: add_routes(app, shared.cmd_opts, SESSION.open))
    script_callbacks.on_ui_settings(add_option)
    script_callbacks.on_after_component(GalleryButtons(PANELS).after_component)
    script_callbacks.on_before_ui(lambda: add_axes(validate_cell))
    script_callbacks.on_model_loaded(SESSION.release_all)
    script_callbacks.on_script_unloaded(SESSION.release_all)
