"""The panel of the WebUI; imported by the script alone."""
