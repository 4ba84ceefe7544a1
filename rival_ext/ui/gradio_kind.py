"""What differs between gradio 3 and 4 for the panel."""

from __future__ import annotations

import gradio as gr

IS_GRADIO_3 = hasattr(gr.components, "IOComponent")

JS = "_js" if IS_GRADIO_3 else "js"
"""What an event calls the function that the browser runs first."""
