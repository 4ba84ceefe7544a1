"""RIVAL for Stable Diffusion: variations of a real image by aligning the diffusion inversion chain.

Zhang, Xing, Lo, Jia, "Real-World Image Variation by Aligning Diffusion Inversion Chain",
NeurIPS 2023, arXiv 2305.18729. A tour in the paper's order: `inversion`, `chain`, `attention`,
`alignment`, `guide`.
"""

__version__ = "0.1.0"
