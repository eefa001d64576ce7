"""The layout shows the architecture: which room may import which, and the one owner of each outside library."""

from __future__ import annotations

import pytest

from tests.rooms import FILES, ROOT, circles, floors, imports, module_edges, room_edges

# Room -> the rooms it may import: every edge there is. A new edge is a decision, made here.
ALLOWED = {
    "errors": "",
    "models": "",
    "reference": "errors",
    "embedded": "errors reference",
    "native": "errors reference",
    "gguf": "errors reference native",
    "convert": "errors reference gguf",
    "adaptive": "reference",
    "grammar": "errors reference native",
    "decoding": "errors reference native grammar adaptive",
    "llama": "errors reference native gguf decoding",
    "tuning": "errors reference gguf adaptive decoding llama",
    "options": "errors reference",
    "named": "errors embedded gguf convert",
    "session": "errors reference native embedded named gguf grammar adaptive decoding llama tuning options",
    "evaluate": "errors reference native named gguf convert grammar adaptive decoding llama tuning options session",
    "train": "errors reference gguf convert decoding llama session evaluate",
}
ALLOWED["cli"] = " ".join(ALLOWED)
MOST_FLOORS = 14

# Outside library -> the only places that import it at all (torch and friends: the training package).
OWNERS = {
    "click": ("refspec/cli/",),
    "llama_cpp": ("refspec/llama/api.py",),
    "gguf": ("refspec/gguf/io.py", "refspec/gguf/types.py"),
    "refspec._native": ("refspec/native/module.py",),
    "huggingface_hub": ("refspec/named/hub.py",),
    "matplotlib": ("refspec/evaluate/drift_plots.py", "refspec/evaluate/speed_plots.py"),
    "torch": ("refspec/train/",),
    "tokenizers": ("refspec/train/",),
    "safetensors": ("refspec/train/",),
    "tqdm": ("refspec/train/",),
}


def reaches(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("room", room_edges())
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert room in ALLOWED, f"{room} is a new room; say in tests/test_layers.py what it may import"
    strangers = room_edges()[room] - set(ALLOWED[room].split())
    assert not strangers, f"{room} imports {sorted(strangers)}"


def test_nobody_imports_in_a_circle() -> None:
    assert circles(room_edges()) == []
    assert circles(module_edges()) == []


def test_the_house_is_low() -> None:
    assert max(floors(room_edges()).values()) <= MOST_FLOORS


def test_the_reference_can_be_read_alone() -> None:
    for path in FILES:
        where = path.relative_to(ROOT).as_posix()
        if where.startswith("refspec/reference/"):
            own = {name for name in imports(path) if reaches(name, "refspec")}
            strangers = {n for n in own if not reaches(n, "refspec.reference") and not reaches(n, "refspec.errors")}
            assert not strangers, f"{where} imports {sorted(strangers)}"
            clocks = {name for name in imports(path) if name.split(".")[0] in ("time", "os", "pathlib", "random")}
            assert not clocks, f"{where} imports {sorted(clocks)}"


def test_the_laboratory_is_not_part_of_the_product() -> None:
    assert not [path for path in FILES for name in imports(path) if reaches(name, "lab")]


@pytest.mark.parametrize("library", OWNERS)
def test_one_owner_imports_each_outside_library(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix() for path in FILES if any(reaches(name, library) for name in imports(path))
    }
    strangers = {user for user in users if not user.startswith(OWNERS[library])}
    assert not strangers, f"{library} is imported by {sorted(strangers)}; its owner is {OWNERS[library]}"
