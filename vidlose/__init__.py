"""vidlose: fine-tune video diffusion models and generate video of unlimited length with them."""

__version__ = "0.1.0"
