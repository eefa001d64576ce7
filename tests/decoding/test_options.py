"""What `load` can be asked for: values with defaults, what excludes what, and what is filled in from measurements."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import refspec
from refspec import DraftOptions, ModelOptions
from refspec.errors import BackendError, CheckpointError, UsageError
from refspec.options import ADAPTIVE_MAX, DRAFT_LIMIT, DRAFT_MAX, EXACT_LIMIT, gathered
from refspec.reference.tree import TreeShape


def settled(measured: dict[str, Any], **keywords: Any) -> tuple[ModelOptions, DraftOptions]:
    how, drafting = gathered(None, None, keywords)
    limit = EXACT_LIMIT if how.exact else DRAFT_LIMIT
    return how.settled(measured), drafting.settled(measured, drafter=True, limit=limit)


def test_every_field_is_a_keyword_and_keywords_win_over_values() -> None:
    how, drafting = ModelOptions(threads=2, n_ctx=64), DraftOptions(lookup=True)
    got = gathered(how, drafting, {"threads": 3, "draft_max": 5})
    assert got == (ModelOptions(threads=3, n_ctx=64), DraftOptions(lookup=True, draft_max=5))
    fields = {f.name: f.default for kind in (ModelOptions, DraftOptions) for f in dataclasses.fields(kind)}
    assert gathered(None, None, fields) == (ModelOptions(), DraftOptions())
    with pytest.raises(dataclasses.FrozenInstanceError):
        how.threads = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"thread": 2}, "load has no option 'thread'; did you mean 'threads'?"),
        ({"draft_len": 2}, "did you mean 'draft_"),
        ({"xyzzy": 2}, "no option 'xyzzy'; there are adaptive, draft_max"),
        ({"matmul": "panels"}, "matmul = 'panels': choose one of auto, refspec, repack, stored"),
        ({"reproducible": "strict"}, "choose one of None, exact, f32"),
        ({"drafter_kernels": "c"}, "drafter_kernels = 'c': choose one of auto, llama, own"),
        ({"matmul": "refspec", "gpu_layers": 1}, "matmul = refspec excludes gpu_layers = 1"),
        ({"reproducible": "exact", "matmul": "repack"}, "reproducible = exact excludes matmul = repack"),
        ({"reproducible": "exact", "pair_rows": False}, "reproducible = exact excludes pair_rows = False"),
        ({"reproducible": "exact", "tree": "4"}, "reproducible = exact excludes tree = 4:4:8"),
        ({"reproducible": "exact", "draft_max": 7}, "draft_max = 7 exceeds 6; reproducible = exact"),
        ({"tree": "4", "draft_max": 2}, "tree = 4:4:8 excludes draft_max = 2"),
        ({"tree": "4", "drafter_kernels": "own"}, "excludes drafter_kernels = own"),
        ({"tree": "four"}, "tree: 'four' is not N"),
        ({"draft_max": 65}, "draft_max = 65 exceeds 64"),
        ({"draft_max": -1}, "draft_max = -1 is negative"),
        ({"draft_max": 2.5}, "draft_max = 2.5 is not an integer"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_is_loaded(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        refspec.load("nowhere.gguf", "nowhere-either.gguf", tuned=False, **keywords)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_open_option_is_what_was_measured_and_one_that_is_given_wins() -> None:
    measured = {
        "threads": 4,
        "threads_batch": 8,
        "threads_draft": 2,
        "flash_attn": "on",
        "kv_type": "f32",
        "draft_max": 5,
    }
    how, drafting = settled(measured | {"matmul": "stored", "pair_rows": True, "lookup": True})
    assert (how.threads, how.threads_batch, how.threads_draft) == (4, 8, 2)
    assert (how.flash_attn, how.kv_type, how.matmul, how.pair_rows) == ("on", "f32", "stored", True)
    assert (drafting.draft_max, drafting.lookup, drafting.adaptive) == (5, True, False)
    how, drafting = settled(measured, threads=3, flash_attn="off", draft_max=1, lookup=False, matmul="repack")
    assert (how.threads, how.threads_batch, how.threads_draft) == (3, 3, 3)
    assert (how.flash_attn, how.matmul, drafting.draft_max, drafting.lookup) == ("off", "repack", 1, False)
    how, _ = settled(measured, reproducible="f32", kv_type="q8_0")
    assert (how.kv_type, how.flash_attn, how.pair_rows) == ("f32", "off", True)
    how, _ = settled({"matmul": "repack"}, reproducible="exact")
    assert how.matmul == "stored", "exact output is not promised for weights that llama.cpp repacks"


def test_the_draft_length_is_chosen_every_step_where_nothing_says_how_much_to_draft() -> None:
    def chosen(measured: dict[str, Any], drafter: bool = True, **keywords: Any) -> tuple[bool | None, int]:
        got = gathered(None, None, keywords)[1].settled(measured, drafter=drafter, limit=DRAFT_LIMIT)
        return got.adaptive, got.length

    assert chosen({}) == (True, ADAPTIVE_MAX)
    assert chosen({}, drafter=False, lookup=True) == (True, ADAPTIVE_MAX), "prompt lookup is a drafter, too"
    assert chosen({}, drafter=False) == (False, DRAFT_MAX)
    assert chosen({"draft_max": 2}) == (False, 2) and chosen({}, draft_max=4) == (False, 4)
    assert chosen({}, tree="12") == (False, 12) and chosen({}, tree=TreeShape(5), adaptive=True) == (True, 5)
    assert chosen({}, adaptive=False) == (False, DRAFT_MAX) and chosen({}, adaptive=True, draft_max=4) == (True, 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"exact": True}, "reproducible='exact'"),
        ({"strict": True, "exact": False}, "reproducible='f32'"),
        ({"panels": True}, "matmul='refspec'"),
        ({"repack": True}, "matmul='repack'"),
        ({"repack": False, "panels": False}, "matmul='stored'"),
        ({"panels": None}, "the defaults"),
    ],
)
def test_keywords_of_the_last_release_say_what_replaces_them(old: dict[str, Any], new: str) -> None:
    # what is new works as ever: a model that is not there, or kernels that do not work here
    said = f"{next(iter(old))}.* will go with the next release; use {new}"
    with pytest.warns(DeprecationWarning, match=said), pytest.raises((CheckpointError, BackendError)):
        refspec.load("nowhere.gguf", tuned=False, **old)
    for both in ({"exact": True, "strict": True}, {"panels": True, "repack": True}):
        with pytest.raises(UsageError, match="exclude each other"):
            refspec.load("nowhere.gguf", **both)
