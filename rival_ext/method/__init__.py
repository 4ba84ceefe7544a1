"""The paper. Read `inversion`, `chain`, `attention`, `alignment`, `start` and `guide`, in this order.

This package imports torch, the standard library, and the contracts `settings`, `report` and `errors`. It knows no
host, no gradio and no image file.
"""
