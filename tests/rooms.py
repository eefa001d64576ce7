"""The rooms of the house: `python -m tests.rooms` prints them, the floor each stands on, who imports whom, and circles.

A room is a package of refspec, or a module beside the packages. A room stands one floor above the highest room it
imports; type-checking and lazy imports count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("refspec/**/*.py"), *ROOT.glob("convert/*.py")])
FACES = ("refspec", "__main__")  # they hand names on and belong to no room


def imports(path: Path) -> set[str]:
    """Absolute dotted names a file imports, at any depth, relative ones resolved; type-checking ones included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    """Dotted name of every module of the product -> its file; convert/ is installed as refspec.convert."""
    found = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = ("refspec", *parts) if parts[0] == "convert" else parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room of a module: the package or module below `refspec`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def module_edges() -> dict[str, set[str]]:
    """Module -> the modules of the product that it imports, without packages it only passes through."""
    known = modules()
    passed = {module: {module, "refspec", module.rpartition(".")[0]} for module in known}
    return {module: (imports(path) & set(known)) - passed[module] for module, path in known.items()}


def room_edges() -> dict[str, set[str]]:
    """Room -> the rooms it imports."""
    edges: dict[str, set[str]] = {}
    for module, imported in module_edges().items():
        room = room_of(module)
        if room not in FACES:
            edges.setdefault(room, set()).update(
                room_of(name) for name in imported if room_of(name) not in (room, *FACES)
            )
    return edges


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node, each sorted: who imports each other in a loop."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen, left = set[str](), list(edges[start])
        while left:
            node = left.pop()
            if node not in seen:
                seen.add(node)
                left.extend(edges.get(node, ()))
        reached[start] = seen
    loops = {tuple(sorted({node, *(m for m in reached[node] if node in reached.get(m, ()))})) for node in edges}
    return [list(loop) for loop in sorted(loops) if len(loop) > 1]


def floors(edges: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Node -> its floor, 1 for one that imports nothing; the edges have no circle."""
    known: dict[str, int] = {}

    def floor(node: str) -> int:
        if node not in known:
            known[node] = 1 + max((floor(below) for below in edges.get(node, ())), default=0)
        return known[node]

    return {node: floor(node) for node in edges}


def main() -> None:
    """Print every room from the top floor down, and the circles between files."""
    edges, known = room_edges(), modules()
    loops = circles(edges)
    if loops:
        raise SystemExit("\n".join(f"circle of rooms: {' <-> '.join(loop)}" for loop in loops))
    at = floors(edges)
    for room in sorted(at, key=lambda r: (-at[r], r)):
        files = [path for module, path in known.items() if room_of(module) == room]
        lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
        below = ", ".join(sorted(edges[room], key=lambda r: -at[r])) or "-"
        print(f"floor {at[room]:2d}  {room:<12} {len(files):3d} files {lines:6d} lines  imports {below}")
    print(f"{len(at)} rooms, {max(at.values())} floors, {sum(map(len, edges.values()))} edges")
    file_loops = circles(module_edges())
    print(f"{len(file_loops)} circles" + "".join(f"\n  {' <-> '.join(loop)}" for loop in file_loops))


if __name__ == "__main__":
    main()
