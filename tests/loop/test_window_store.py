"""What a window has learned outlasts the process:

it goes on as it would have, and what cannot be read is learned again.
"""

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from test_tree_window import GOOD, known, simulate
from window_simulation import MOST, Machine, sure, tokens_per_second

from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import Window
from refspec.adaptive.tree_policy import TreeWindow
from refspec.tuning.policy_store import Memory

MACHINE = Machine([0, 1, 1.05, 1.1, 1.2, 1.9, 2.1, 2.3, 2.5, 2.7], switch=0.05, draft=0.01)


def learned() -> Window:
    """A window after a few texts, of which nothing was known before."""
    window = Window(MOST)
    for seed in range(6):
        tokens_per_second(window, MACHINE, sure(0.7), 60, seed)
    return window


def learned_trees() -> TreeWindow:
    window = known(lambda r: 1 + 0.1 * r, draft=0.05, feed=0.05)
    simulate(window, lambda r: 1 + 0.1 * r, GOOD, 300, level=0.05)
    return window


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    for name in ("target.gguf", "drafter.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    return Memory(tmp_path / "target.gguf", tmp_path / "drafter.gguf", {"n_threads": 2})


@pytest.mark.parametrize("window", [learned(), learned_trees()], ids=["chains", "trees"])
def test_what_was_kept_is_what_is_found(memory: Memory, window: Window | TreeWindow) -> None:
    assert memory.find(type(window), window.most) is None, "nothing was kept yet"
    memory.keep(window)
    found = memory.find(type(window), window.most)
    assert type(found) is type(window) and found is not window
    assert json.dumps(found.state()) == json.dumps(window.state()), "to the bit"
    assert set(found.costs.seen) == set(window.costs.seen) and not any(found.costs.seen.values()), (
        "but what steps cost is a guess"
    )
    assert found.texts == window.texts > 0


def test_a_window_that_goes_on_pays_for_finding_out_once() -> None:
    state, first_texts = json.dumps(learned().state()), range(20, 30)
    new = [tokens_per_second(Window(MOST), MACHINE, sure(0.7), 60, seed) for seed in first_texts]
    kept = [
        tokens_per_second(Window.resumed(MOST, json.loads(state)), MACHINE, sure(0.7), 60, seed) for seed in first_texts
    ]
    assert mean(kept) > 1.07 * mean(new)


@pytest.mark.parametrize("window", [learned(), learned_trees()], ids=["chains", "trees"])
def test_costs_that_are_newer_are_taken(memory: Memory, window: Window | TreeWindow) -> None:
    memory.keep(window)
    newer = Costs({r: 2.0 * r for r in range(1, window.most + 2)}, switch=0.3)
    found = memory.find(type(window), window.most, newer)
    assert found is not None and found.costs is newer and found.texts == window.texts
    assert found.belief.state() == window.belief.state()


def test_costs_that_were_kept_are_guesses_until_a_size_is_seen() -> None:
    """They may be those of a time when another program was running."""
    costs = Costs.resumed(Costs({1: 1.0, 2: 3.0, 3: 4.0}, switch=0.2).state())
    assert [costs.target(r) for r in (1, 2, 3)] == [1.0, 3.0, 4.0] and not costs.known
    assert costs.comparable and not Costs().comparable, "drafting need not wait for plain steps"
    costs.learn(0, 1, 0.5, None, None)
    costs.learn(1, 1, 0.8, None, None)  # after a change of size
    assert [costs.target(r) for r in (1, 2, 3)] == pytest.approx([0.5, 0.6, 4.0])


def test_texts_whose_sureness_is_not_known_are_kept() -> None:
    window = Window(MOST)
    for sureness in (-0.5, math.nan):
        window.begin(100)
        window.expect(sureness)
        window._alike.add(0.25)
    found = Window.resumed(MOST, json.loads(json.dumps(window.state(), allow_nan=False)))
    known, unknown = found._alike._texts
    assert (known.sureness, known.gain, known.steps) == (-0.5, 0.25, 1) and math.isnan(unknown.sureness)


def test_c_reads_what_was_resumed() -> None:
    window = Window.resumed(MOST, learned().state())
    if window._c.c is None:
        pytest.skip("the C module is not built")
    assert list(window._c._arrays["bins"]) == window.belief.bins.tolist() and sum(window.belief.bins) > 0
    assert list(window._c._arrays["surplus"]) == window._surplus.tolist() and sum(window._surplus) > 0


def test_it_holds_for_the_same_files_settings_and_kind_only(memory: Memory, tmp_path: Path) -> None:
    files = tmp_path / "target.gguf", tmp_path / "drafter.gguf"
    memory.keep(learned())
    assert memory.find(Window, MOST) and not memory.find(TreeWindow, MOST) and not memory.find(Window, MOST - 1)
    assert Memory(*files, {"n_threads": 2}).find(Window, MOST)
    assert not Memory(*files, {"n_threads": 1}).find(Window, MOST)
    files[1].write_bytes(b"GGUF, longer")
    assert not Memory(*files, {"n_threads": 2}).find(Window, MOST), "another drafter"


def changed(state: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [(("state",), None), (("state", "costs"), {}), (("state", "costs", "rows"), [[1, -1.0]]), (("state", "costs", "rows"), [[1, math.inf]]), (("state", "costs", "drift"), 0.0),
     (("state", "costs", "slopes"), []), (("state", "costs", "given"), 3), (("state", "belief", "bins"), [1.0]), (("state", "belief", "cells", 1), 5.0),
     (("state", "surplus"), []), (("state", "tried"), [0]), (("state", "texts"), [[1.0]]), (("state", "texts"), [[1.0, 0.0, 0.0, 0]]), (("state", "reserve"), "much"), (("state", "reserve"), math.nan), (("state", "surplus", 0), math.nan), (("state", "costs", "switch"), -math.inf),
     (("state", "tokens"), None), (("identity",), {}), (("identity", "window"), 0)],
)  # fmt: skip
def test_what_is_damaged_is_learned_again(memory: Memory, path: tuple[Any, ...], value: Any) -> None:
    memory.keep(learned())
    file = memory.path(Window, MOST)
    record = json.loads(file.read_text("utf-8"))
    changed(record, path, value)
    file.write_text(json.dumps(record), "utf-8")
    assert memory.find(Window, MOST) is None


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"identity": 1}', "\xff"])
def test_a_file_of_something_else_is_no_window(memory: Memory, text: str) -> None:
    memory.keep(learned())
    memory.path(Window, MOST).write_bytes(text.encode("latin-1"))
    assert memory.find(Window, MOST) is None


def test_where_nothing_can_be_written_nothing_is_kept(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "file"))
    elsewhere = Memory(tmp_path / "target.gguf", tmp_path / "drafter.gguf", {})
    elsewhere.keep(learned())
    assert elsewhere.find(Window, MOST) is None
