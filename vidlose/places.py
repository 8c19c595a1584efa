"""Where what was learnt about this machine is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """XDG_CACHE_HOME's, or the one in the user's home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidlose"
