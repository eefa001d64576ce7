"""The layout shows the architecture: who may import whom, and the one owner of each outside library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("refspec/**/*.py"), *ROOT.glob("convert/*.py")])

# Outside library -> the only places that import it at all (torch and friends: the training package).
OWNERS = {
    "click": ("refspec/cli/",),
    "llama_cpp": ("refspec/llama/api.py",),
    "gguf": ("refspec/gguf/io.py", "refspec/gguf/types.py"),
    "refspec._native": ("refspec/native/module.py",),
    "matplotlib": ("refspec/evaluate/drift_plots.py", "docs/lab/findings_plots.py", "docs/lab/sweep_plots.py"),
    "torch": ("refspec/train/",),
    "tokenizers": ("refspec/train/",),
    "safetensors": ("refspec/train/",),
    "tqdm": ("refspec/train/",),
}
# Lower layers know nothing of the ones named here.
NEVER = {
    "refspec/reference/ops.py": ("refspec",),
    "refspec/drafters/eagle3": ("refspec.targets", "refspec.engine", "refspec.speculate", "refspec.native"),
    "refspec/drafters/": ("refspec.targets", "refspec.speculate", "refspec.api", "refspec.cli", "refspec.train"),
    "refspec/targets/": ("refspec.drafters", "refspec.speculate", "refspec.api", "refspec.cli", "refspec.train"),
    "refspec/engine/": ("refspec.targets", "refspec.drafters", "refspec.speculate", "refspec.api", "refspec.cli"),
    "refspec/decoding/cycle.py": ("refspec.engine", "refspec.api", "refspec.cli", "refspec.train", "refspec.convert"),
    "refspec/reference/verify.py": ("refspec.targets", "refspec.drafters", "refspec.engine", "refspec.speculate"),
    "refspec/reference/sampling.py": ("refspec.targets", "refspec.drafters", "refspec.engine", "refspec.speculate"),
    "refspec/formats/": ("refspec.targets", "refspec.speculate", "refspec.api", "refspec.cli", "refspec.measure"),
    "refspec/trees/tree": (
        "refspec.targets",
        "refspec.drafters",
        "refspec.engine",
        "refspec.api",
        "refspec.cli",
        "refspec.measure",
    ),
    "refspec/windows/window": ("refspec.targets", "refspec.engine", "refspec.api", "refspec.cli", "refspec.measure"),
    "refspec/measure/": ("refspec.cli", "refspec.train"),
    "convert/": (
        "refspec.targets",
        "refspec.engine",
        "refspec.speculate",
        "refspec.api",
        "refspec.cli",
        "refspec.train",
    ),
    "refspec/train/": ("refspec.cli", "refspec.api", "refspec.engine"),
}


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


def reaches(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("library", OWNERS)
def test_one_owner_imports_each_outside_library(library):
    users = {
        path.relative_to(ROOT).as_posix() for path in FILES if any(reaches(name, library) for name in imports(path))
    }
    strangers = {user for user in users if not user.startswith(OWNERS[library])}
    assert not strangers, f"{library} is imported by {sorted(strangers)}; its owner is {OWNERS[library]}"


@pytest.mark.parametrize("layer", NEVER)
def test_lower_layers_do_not_know_higher_ones(layer):
    for path in FILES:
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(layer):
            wrong = {name for name in imports(path) for banned in NEVER[layer] if reaches(name, banned)}
            assert not wrong, f"{where} imports {sorted(wrong)}"
