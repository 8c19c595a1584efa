"""The logs of all stages beside this file, one after the other, as one picture: training.png.

python examples/builtin_model/curves.py
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
LOGS = ("images", "motion", "together", "directions", "pans")
TIMESTEPS = (50, 250, 450, 650, 850)
GREY = "#8a8d91"


def stages() -> dict[str, list[dict[str, Any]]]:
    """Rows of the logs, by stage."""
    found: dict[str, list[dict[str, Any]]] = {}
    for log in LOGS:
        for line in (HERE / f"{log}.jsonl").read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row.get("stage", log), []).append(row)
    return found


def main() -> None:
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    begin = 0
    for name, rows in stages().items():
        losses = [(begin + row["step"], row["loss"]) for row in rows if "loss" in row]
        top.plot(*zip(*losses, strict=True), color="C0", lw=1)
        for i, timestep in enumerate(TIMESTEPS):
            key = f"held_out/mse@{timestep}"
            held = [(begin + row["step"], row[key]) for row in rows if key in row]
            if held:
                bottom.plot(
                    *zip(*held, strict=True), color=f"C{i}", marker=".", label=None if begin else f"t = {timestep}"
                )
        for axes in (top, bottom):
            axes.axvline(begin, color=GREY, lw=0.5)
        top.text(begin, 1.01, name, transform=top.get_xaxis_transform(), rotation=45, fontsize=8)
        begin += max(row["step"] for row in rows)
    top.set(ylabel="loss, as each stage draws its levels", yscale="log")
    bottom.set(ylabel="held-out mse of the prediction", xlabel="step", yscale="log")
    bottom.legend(fontsize=8, frameon=False)
    figure.savefig(HERE / "training.png", dpi=80, metadata={"Software": "vidlose"})


if __name__ == "__main__":
    main()
