"""Training several language models to work together (arXiv 2601.21972) on PyTorch Lightning."""

__version__ = "0.1.0"
