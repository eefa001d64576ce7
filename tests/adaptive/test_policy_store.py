"""What a policy has learned outlasts the process: it goes on as it would have; what cannot be read is learned again."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from simulation import MOST, Machine, sure, tokens_per_second
from tree_simulation import GOOD, known, simulate

from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.tree_policy import TreePolicy
from refspec.tuning.policy_store import Memory

MACHINE = Machine([0, 1, 1.05, 1.1, 1.2, 1.9, 2.1, 2.3, 2.5, 2.7], switch=0.05, draft=0.01)


def learned() -> ChainPolicy:
    """A policy after a few outputs, of which nothing was known before."""
    policy = ChainPolicy(MOST)
    for seed in range(6):
        tokens_per_second(policy, MACHINE, sure(0.7), 60, seed)
    return policy


def learned_trees() -> TreePolicy:
    policy = known(lambda r: 1 + 0.1 * r, draft=0.05, feed=0.05)
    simulate(policy, lambda r: 1 + 0.1 * r, GOOD, 300, level=0.05)
    return policy


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    for name in ("target.gguf", "drafter.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    return Memory(tmp_path / "target.gguf", tmp_path / "drafter.gguf", {"n_threads": 2})


@pytest.mark.parametrize("policy", [learned(), learned_trees()], ids=["chains", "trees"])
def test_what_was_kept_is_what_is_found(memory: Memory, policy: ChainPolicy | TreePolicy) -> None:
    assert memory.find(type(policy), policy.most) is None, "nothing was kept yet"
    memory.keep(policy)
    found = memory.find(type(policy), policy.most)
    assert type(found) is type(policy) and found is not policy
    assert json.dumps(found.state()) == json.dumps(policy.state()), "to the bit"
    assert set(found.costs.seen) == set(policy.costs.seen) and not any(found.costs.seen.values()), (
        "but what steps cost is a guess"
    )
    assert found.remembered == policy.remembered > 0


def test_a_policy_that_goes_on_pays_for_finding_out_once() -> None:
    state, first_outputs = json.dumps(learned().state()), range(20, 30)

    def rate(new: Callable[[], ChainPolicy]) -> float:
        return mean(tokens_per_second(new(), MACHINE, sure(0.7), 60, seed) for seed in first_outputs)

    assert rate(lambda: ChainPolicy.resumed(MOST, json.loads(state))) > 1.07 * rate(lambda: ChainPolicy(MOST))


@pytest.mark.parametrize("policy", [learned(), learned_trees()], ids=["chains", "trees"])
def test_costs_that_are_newer_are_taken(memory: Memory, policy: ChainPolicy | TreePolicy) -> None:
    memory.keep(policy)
    newer = Costs({r: 2.0 * r for r in range(1, policy.most + 2)}, switch=0.3)
    found = memory.find(type(policy), policy.most, newer)
    assert found is not None and found.costs is newer and found.remembered == policy.remembered
    assert found.acceptance.state() == policy.acceptance.state()


def test_outputs_whose_log_probability_is_not_known_are_kept() -> None:
    policy = ChainPolicy(MOST)
    for mean_log_probability in (-0.5, math.nan):
        policy.begin(127)
        policy.expect(mean_log_probability)
        policy.budget.speculated(1.25, 1.0)
    found = ChainPolicy.resumed(MOST, json.loads(json.dumps(policy.state(), allow_nan=False)))
    assert found.budget.state()["outputs"] == [[7.0, -0.5, 0.25, 1], [7.0, None, 0.25, 1]]


def test_it_holds_for_the_same_files_settings_and_kind_only(memory: Memory, tmp_path: Path) -> None:
    files = tmp_path / "target.gguf", tmp_path / "drafter.gguf"
    memory.keep(learned())
    assert (
        memory.find(ChainPolicy, MOST) and not memory.find(TreePolicy, MOST) and not memory.find(ChainPolicy, MOST - 1)
    )
    assert Memory(*files, {"n_threads": 2}).find(ChainPolicy, MOST)
    assert not Memory(*files, {"n_threads": 1}).find(ChainPolicy, MOST)
    files[1].write_bytes(b"GGUF, longer")
    assert not Memory(*files, {"n_threads": 2}).find(ChainPolicy, MOST), "another drafter"


def change(file: Path, path: tuple[Any, ...], value: Any) -> None:
    """Put a value into a stored file."""
    record = state = json.loads(file.read_text("utf-8"))
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value
    file.write_text(json.dumps(record), "utf-8")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), None),
        (("costs",), {}),
        (("costs", "rows"), [[1, -1.0]]),
        (("costs", "rows"), [[1, math.inf]]),
        (("costs", "drift"), 0.0),
        (("costs", "slopes"), []),
        (("costs", "given"), 3),
        (("costs", "switch"), -math.inf),
        (("acceptance", "bins"), [1.0]),
        (("acceptance", "cells", 1), [1.0, 5.0]),
        (("gains",), []),
        (("gains", 0), math.nan),
        (("tried",), [0]),
        (("budget", "outputs"), [[1.0]]),
        (("budget", "outputs"), [[1.0, 0.0, 0.0, 0]]),
        (("budget", "reserve"), "much"),
        (("budget", "reserve"), math.nan),
        (("rate",), None),
    ],
)
def test_what_is_damaged_is_learned_again(memory: Memory, path: tuple[Any, ...], value: Any) -> None:
    memory.keep(learned())
    change(memory.path(ChainPolicy, MOST), ("state", *path), value)
    assert memory.find(ChainPolicy, MOST) is None


@pytest.mark.parametrize(("path", "value"), [(("identity",), {}), (("identity", "policy"), 0)])
def test_what_is_of_another_identity_is_learned_again(memory: Memory, path: tuple[Any, ...], value: Any) -> None:
    memory.keep(learned())
    change(memory.path(ChainPolicy, MOST), path, value)
    assert memory.find(ChainPolicy, MOST) is None


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"identity": 1}', "\xff"])
def test_a_file_of_something_else_is_no_policy(memory: Memory, text: str) -> None:
    memory.keep(learned())
    memory.path(ChainPolicy, MOST).write_bytes(text.encode("latin-1"))
    assert memory.find(ChainPolicy, MOST) is None


def test_where_nothing_can_be_written_nothing_is_kept(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "file"))
    elsewhere = Memory(tmp_path / "target.gguf", tmp_path / "drafter.gguf", {})
    elsewhere.keep(learned())
    assert elsewhere.find(ChainPolicy, MOST) is None
