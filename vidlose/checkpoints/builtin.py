"""The model that comes with the package."""

from importlib.resources import files
from pathlib import Path

ROOT = Path(str(files("vidlose"))) / "builtin"
VAE = ROOT / "vae"
