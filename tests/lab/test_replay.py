"""`replay`: recorded drafts in computed time say what the decode cycle would have done, and the same each time."""

import json
import platform
import random

import numpy as np
import pytest
from lab_command import call

import refspec
from lab import replay
from lab.computed import Fixed, Machine
from lab.computed import replay as run_chain
from lab.computed import replay_tree as run_tree
from lab.recorded import Recorded, record
from lab.replay import rows_of
from refspec import embedded
from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.tree_policy import TreePolicy
from refspec.errors import UsageError
from refspec.evaluate.prompts import Prompt
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape, chain

PROMPTS = [
    Prompt(family, family, text)
    for family, text in (("sums", "What is 12 + 30?"), ("code", "Write a Python function that adds two numbers."))
]
MACHINE = Machine(rows_of("1,1.3,1.6,1.9", 9), switch=0.4, feed=0.04, draft=0.02)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="that rows of 2 to 7 round alike was seen on x86 only"
)
@pytest.mark.parametrize("penalties", [Penalties(), embedded.penalties()], ids=["plain", "penalties"])
def test_fixed_lengths_take_the_steps_that_the_decode_cycle_takes(penalties):
    sampler = Sampler(penalties=penalties)
    with refspec.load(reproducible="exact", n_ctx=160, threads=1) as session:
        texts = record(session, PROMPTS, 4, max_tokens=40, sampler=sampler)
        assert [text.family for text in texts] == ["sums", "code"] and all(
            text.mean_log_probability < 0 for text in texts
        )
        for text, prompt in zip(texts, PROMPTS, strict=True):
            for k in (1, 2, 4):
                run = session.generate(prompt.text, max_tokens=40, sampler=sampler, draft_max=k, adaptive=False)
                list(run)
                _, steps = run_chain(text, Fixed(k), MACHINE, random.Random(0))
                assert run.tokens == text.tokens and steps == run.statistics.verify_steps


def test_trees_take_the_steps_that_the_decode_cycle_takes():
    shape = TreeShape(6, 3, 4)
    with refspec.load(reproducible="f32", n_ctx=160, threads=1, tree=shape) as session:
        texts = record(session, PROMPTS, 4, max_tokens=40, sampler=Sampler())
        for text, prompt in zip(texts, PROMPTS, strict=True):
            run = session.generate(prompt.text, max_tokens=40, sampler=Sampler(), adaptive=False)
            list(run)
            spent, steps = run_tree(text, Fixed(6), MACHINE, random.Random(0))
            assert run.tokens == text.tokens and steps == run.statistics.verify_steps > 1
            chain, _ = run_chain(text, Fixed(2), MACHINE, random.Random(0))
            chosen, _ = run_tree(text, TreePolicy(6, MACHINE.costs()), MACHINE, random.Random(0))
            assert chosen < spent and chosen < 1.3 * chain  # rows are dear


def test_what_a_tree_takes_is_what_its_rows_and_levels_cost():
    two = chain([4, 5])._replace(confidence=np.array([0.9, 0.8], np.float32))
    text = Recorded("x", 50, -1.0, [4, 5, 6, 7], [[]] * 4, [0] * 4, [two, two, two])
    spent, steps = run_tree(text, Fixed(2), MACHINE, random.Random(0))
    assert steps == 2 and spent == pytest.approx(1.6 + 0.04 + 0.02 + 0.03 + 1.0 + 0.4 + 0.005 + 0.04)


def test_what_a_text_takes_is_what_its_steps_cost():
    text = Recorded("x", 50, -1.0, [3, 4, 5, 6, 7], [[0.9, 0.8]] * 3 + [[0.9]] + [[]], [2, 0, 0, 1, 0])
    plain, steps = run_chain(text, Fixed(0), MACHINE, random.Random(0))
    assert steps == 5 and plain == pytest.approx(5 * (1 + MACHINE.own_plain))
    # Three tokens by two right ones, then one right and the bonus beyond the end: drafts are never past the last token
    # wanted.
    spent, steps = run_chain(text, Fixed(2), MACHINE, random.Random(0))
    assert steps == 2 and spent == pytest.approx(1.6 + 0.04 + 0.02 + 0.03 + 1.3 + 0.4 + 0.04 + 0.03)


def test_a_policy_knows_no_more_than_it_would_have_been_told():
    """With drafts that are always right it drafts much, with ones that never are it is turned off."""
    for right, off in ((8, False), (0, True)):
        text = Recorded(
            "x",
            50,
            -1.0,
            list(range(300)),
            [[0.7] * min(8, 299 - i) for i in range(300)],
            [min(right, 299 - i) for i in range(300)],
        )
        policy = ChainPolicy(8, Costs({r + 1: t for r, t in enumerate(MACHINE.rows)}, switch=MACHINE.switch))
        spent, steps = run_chain(text, policy, MACHINE, random.Random(0))
        assert policy.off == off and (steps < 120 if not off else 0.95 * 300 < spent < 1.05 * 300)


def arguments(*more):
    return ["replay", "-t", "1", "-n", "24", "--count", "4", "--sessions", "2", "--draft-max", "1,2", *more]


def test_the_same_numbers_come_out_each_time_and_the_table_says_what_they_are():
    options = ("--rows", "2,2.6,3.2,3.8", "--switch", "0.4", "--feed", "0.04", "--draft", "0.02")
    first, second = (call(*arguments(*options, "--json")) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    assert (
        found["machine"]["rows"][:4] == pytest.approx([1, 1.3, 1.6, 1.9])
        and found["machine"]["rows"][8] == pytest.approx(3.4)
        and not found["measured"]
    )
    for family in found["families"]:
        assert family["speedup"]["plain"] == 1 and family["best_fixed"] in ("plain", "chain 1", "chain 2")
        assert family["tau"]["plain"] == 1 <= family["tau"]["chain 1"] <= family["tau"]["chain 2"]
    lines = call(*arguments(*options)).stdout.splitlines()
    assert lines[1].split() == ["1", "2", "adapt", "best", "fixed", "adaptive", "of", "it"]
    assert (
        any(line.startswith("adaptive: ") for line in lines)
        and not any(line.startswith("trees:") for line in lines)
        and lines[-1].endswith("computed times, nothing here was measured")
    )


def test_trees_are_replayed_beside_chains():
    options = ("--rows", "1,1.05,1.1,1.15", "--tree", "6:3:4")
    found = json.loads(call(*arguments(*options, "--json")).stdout)
    assert (
        list(found["all"]["speedup"])
        == ["plain", "chain 1", "chain 2", "adaptive", "tree 6:3:4", "adaptive tree 6:3:4"]
        and found["tree"] == "6:3:4"
    )
    assert (
        found["all"]["tau"]["tree 6:3:4"] > found["all"]["tau"]["chain 2"]
        and found["all"]["speedup"]["adaptive tree 6:3:4"] > 1.2
    )
    lines = call(*arguments(*options)).stdout.splitlines()
    assert lines[1].split()[:5] == ["1", "2", "adapt", "tree", "atree"] and any(
        line.startswith("trees:    6:3:4, ") for line in lines
    )


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure_shows_every_family(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="figures are the plot extra's")
    out = tmp_path / f"families.{suffix}"
    result = call(*arguments("--rows", "1,1.05,1.1,1.15", "--tree", "6:3:4", "--figure", out))
    assert result.exit_code == 0 and out.stat().st_size > 5000
    if suffix == "svg":
        drawn = out.read_text("utf-8")
        assert all(f"<!-- {name} -->" in drawn for name in ("built-in", "chain 2", "adaptive", "tree", "adaptive tree"))


@pytest.mark.parametrize(
    ("name", "words"), [("families.xyz", "end the name in .png"), ("gone/families.png", "no directory")]
)
def test_a_figure_that_cannot_be_drawn_is_named_before_anything_is_recorded(tmp_path, monkeypatch, name, words):
    pytest.importorskip("matplotlib", reason="figures are the plot extra's")
    monkeypatch.setattr(replay, "record", None)
    result = call(*arguments("--rows", "1,1.05", "--figure", tmp_path / name))
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output


def test_without_rows_this_machine_is_measured():
    result = call(*arguments("--json"))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (
        found["measured"]
        and len(found["machine"]["rows"]) == 9
        and found["machine"]["rows"][0] == 1
        and found["machine"]["feed"] > 0
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rows", "1"), "at least two times"),
        (("--rows", "1,x"), "at least two times"),
        (("--rows", "1,-1"), "above 0"),
        (("--rows", "1,nan"), "above 0"),
        (("--switch", "1"), "go with --rows"),
        (("--adaptive",), "leave the option out"),
        (("--draft-max", "9"), "with --rows"),
        (("--tree", "9"), "with --rows"),
        (("--tree", "x"), "three counts"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(options, words):
    result = call(*arguments(*options))
    assert result.exit_code != 0 and words in result.stderr and "Traceback" not in result.output


def test_costs_of_more_rows_go_on_as_the_last_two():
    assert rows_of("1,1.5", 4) == pytest.approx((1, 1.5, 2, 2.5)) and rows_of("2,3,3,1", 5) == pytest.approx(
        (1, 1.5, 1.5, 0.5, 0.5)
    )
    assert rows_of("1,2,3", 2) == (1, 2)
    with pytest.raises(UsageError):
        rows_of("", 4)
