"""The panel, made with gradio. Only `script.py` imports this package; it loads neither torch nor the method."""
