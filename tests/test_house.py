"""The law of ranks, and other promises about the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "vidlose"
RANKS = {
    "errors": -1,  # below everything: config raises them
    "config": 0,
    "places": 0,
    "kernels": 1,
    "parallel": 1,
    "models": 2,
    "diffusion": 2,
    "io": 2,
    "analysis": 2,
    "world": 2,
    "checkpoints": 3,
    "longvideo": 3,
    "training": 3,
    "recipes": 4,
    "cli": 5,
}
# longvideo and training stand on the models, never on files of them; io knows no models.
FORBIDDEN = {("cli", room) for room in RANKS if room not in ("errors", "config", "recipes")}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(file: Path) -> list[tuple[str, bool]]:
    """(module of ours, at module level?) of every import."""
    tree = ast.parse(file.read_text())
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module or ""]
            if node.module == "vidlose":
                names = [f"vidlose.{alias.name}" for alias in node.names]
        found += [(name, id(node) not in inside) for name in names if name.split(".")[0] == "vidlose"]
    return found


def test_law_of_ranks():
    rooms = set()
    for file in HOUSE.rglob("*.py"):
        room = file.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        rooms.add(room)
        for module, top in imports(file):
            target = room_of(module)
            if target.startswith("__") or target == room:
                continue
            assert RANKS[target] < RANKS[room], f"{file.relative_to(HOUSE)} imports {module}"
            assert (room, target) not in FORBIDDEN, f"{file.relative_to(HOUSE)} imports {module}"
            if room == "cli" and target == "recipes":
                assert not top, f"{file.relative_to(HOUSE)} imports {module} outside a function"
    assert rooms <= RANKS.keys()


def test_init_files_hold_a_door_or_nothing():
    doors = {"__init__.py", "kernels/__init__.py", "checkpoints/__init__.py", "cli/__init__.py"}
    for file in HOUSE.rglob("__init__.py"):
        if str(file.relative_to(HOUSE)) not in doors:
            assert not file.read_text().strip(), file


def test_every_module_and_public_function_says_what_it_is():
    """Protocol methods, dunders and private names may be silent."""
    for file in HOUSE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        if file.read_text().strip():
            assert ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}: {node.name}"


def test_help_and_config_do_without_torch():
    code = (
        "import sys, vidlose.cli, vidlose.config;"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
