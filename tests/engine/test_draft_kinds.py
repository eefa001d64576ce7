"""Draft models and prompt lookup on llama.cpp:

what a file is, whose vocabulary it has, and that no kind changes the text.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.errors import BackendError, CheckpointError, ShapeError
from refspec.llama.draft_model import BACKLOG, LlamaModelDrafter
from refspec.llama.open_pair import capture_layers, describe, is_eagle3
from refspec.llama.target import LlamaTarget
from refspec.reference.sampling import Sampler, invert_cdf, p_target

STRICT: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)
IDS = np.random.default_rng(6).integers(3, tiny.V, 120).astype(np.int32)
NONE = np.zeros((120, 0), np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        "target": tiny.target(folder / "target.gguf"),
        "model": tiny.target(folder / "small.gguf", "qwen3", seed=4),
        "eagle3": tiny.drafter(folder / "drafter.gguf", feature_norm="per_state", feedback="post_norm"),
    }


@pytest.fixture(scope="module")
def pair(files):
    target = LlamaTarget(files["target"], n_ctx=160, **STRICT)
    drafter = LlamaModelDrafter(files["model"], target, **STRICT)
    alone = LlamaTarget(files["model"], n_ctx=160, **STRICT)  # the draft model run as a target: what it ought to say
    yield drafter, alone
    alone.close()
    drafter.close()
    target.close()


def expected(alone: LlamaTarget, text: list[int], k: int) -> list[int]:
    """k greedy tokens after a text, everything computed anew."""
    out = list(text)
    for _ in range(k):
        alone.reset()
        alone.decode(out, logits="last")
        out.append(int(alone.logits(len(out) - 1).argmax()))
    return out[len(text) :]


def test_the_header_says_which_kind_of_drafter_a_file_is(files):
    assert is_eagle3(files["eagle3"]) and not is_eagle3(files["model"])
    assert (
        capture_layers(files["eagle3"]) == tuple(tiny.LAYERS)
        and capture_layers(files["model"]) == capture_layers(None) == ()
    )


def test_a_draft_model_continues_the_text_whatever_was_drafted_accepted_or_taken_back(pair):
    drafter, alone = pair
    drafter.reset()
    drafter.begin(int(IDS[0]))
    text = [int(IDS[0])]
    for take, k in [(5, 4), (1, 4), (0, 2), (3, 6), (2, 1)]:
        before = drafter.draft(k).tokens.tolist() if len(text) > 1 else []
        # some accepted, or something else
        new = before[:take] if take < 3 else IDS[len(text) : len(text) + take].tolist()
        new = [*new, int(IDS[len(text)])]
        drafter.extend(np.array(new, np.int32), NONE[: len(new)])
        text += new
        assert drafter.n_rows == len(text) - 1
        draft = drafter.draft(k)
        assert draft.tokens.tolist() == expected(alone, text, k) and draft.q_draft is None
        assert drafter.draft(k).tokens.tolist() == draft.tokens.tolist()
    drafter.rollback(3)
    assert drafter.draft(3).tokens.tolist() == expected(alone, text[:4], 3)


def test_accepted_tokens_are_not_run_again(pair):
    drafter, _ = pair
    drafter.reset()
    drafter.begin(int(IDS[0]))
    drafter.extend(IDS[1:9], NONE[:8])
    draft = drafter.draft(4).tokens.tolist()
    ran: list[int] = []
    run = drafter._run
    drafter._run = lambda tokens, outputs: (ran.append(len(tokens)), run(tokens, outputs))[1]
    try:
        drafter.extend(np.array([*draft[:2], 7], np.int32), NONE[:3])
        drafter.draft(1)
        assert ran == [1], "two of four stood: only the correction is new"
        draft, ran[:] = drafter.draft(3).tokens.tolist(), []
        drafter.extend(np.array([*draft, 9], np.int32), NONE[:4])
        drafter.draft(1)
        assert ran == [2], "all stood: the last drafted token was never run"
        ran[:] = []
        drafter.extend(IDS[: BACKLOG + 1], NONE[: BACKLOG + 1])
        assert sum(ran) == BACKLOG + 1, "a prompt runs when it comes, not in the first draft"
    finally:
        drafter._run = run


def test_sampled_drafts_are_draws_from_the_models_own_law_and_stop_comes_before_the_coin(pair):
    drafter, alone = pair
    sampler = Sampler(temperature=0.9, top_k=50)
    drafter.reset()
    drafter.begin(int(IDS[0]))
    drafter.extend(IDS[1:9], NONE[:8])
    coins = np.array([0.3, 0.7, 0.1])
    asked: list[tuple[int, float]] = []
    draft = drafter.draft(3, coins=coins, sampler=sampler, stop=lambda i, c: asked.append((i, c)) or False)
    assert draft.q_draft is not None and len(draft.tokens) == 3
    text = IDS[:9].tolist()
    for i, token in enumerate(draft.tokens.tolist()):
        alone.reset()
        alone.decode(text, logits="last")
        law = p_target(alone.logits(len(text) - 1), sampler)
        np.testing.assert_allclose(draft.q_draft[i], law, atol=1e-5)
        assert token == invert_cdf(draft.q_draft[i], coins[i]) and asked[i] == (i, draft.q_draft[i].max())
        text.append(token)
    shorter = drafter.draft(3, coins=coins, sampler=sampler, stop=lambda i, c: i == 1)
    assert shorter.tokens.tolist() == draft.tokens[:1].tolist() and shorter.q_draft.shape == (1, tiny.V)


def test_another_vocabulary_is_refused_by_size_and_by_text(files, tmp_path):
    target = LlamaTarget(files["target"], n_ctx=64, **STRICT)
    meta, tensors = tiny.target_parts(seed=2)
    tokens = list(meta["tokenizer.ggml.tokens"])
    changed = [*tokens[:100], "else", *tokens[101:]]
    other = tiny.write(tmp_path / "text.gguf", "llama", meta | {"tokenizer.ggml.tokens": changed}, tensors)
    with pytest.raises(CheckpointError, match=r"token 100 is 'else', but .* vocabulary"):
        LlamaModelDrafter(other, target, **STRICT)
    bare = tiny.target(tmp_path / "bare.gguf", with_tokenizer=False)
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.model is .none."):
        LlamaModelDrafter(bare, target, **STRICT)
    more = [*tokens, "one", "two"]
    longer = {
        n: np.concatenate([t, t[:2]]) if n in ("token_embd.weight", "output.weight") else t for n, t in tensors.items()
    }
    grown = meta | {
        "tokenizer.ggml.tokens": more,
        "tokenizer.ggml.scores": [*meta["tokenizer.ggml.scores"], 0.0, 0.0],
    }
    for kind, ok in ((1, False), (5, True)):  # two tokens more: real ones, or unused padding
        typed = grown | {"tokenizer.ggml.token_type": [*meta["tokenizer.ggml.token_type"], kind, kind]}
        path = tiny.write(tmp_path / f"more{kind}.gguf", "llama", typed, longer)
        if ok:
            drafter = LlamaModelDrafter(path, target, **STRICT)
            drafter.extend(IDS[:5], NONE[:5])
            draft = drafter.draft(2, coins=np.full(2, 0.5), sampler=Sampler(temperature=1.0))
            assert draft.q_draft.shape == (2, tiny.V)
            drafter.close()
        else:
            with pytest.raises(ShapeError, match=r"290 tokens, .* has 288"):
                LlamaModelDrafter(path, target, **STRICT)
    target.close()


def test_a_draft_model_that_cannot_take_back_tokens_is_refused(files, tmp_path):
    target = LlamaTarget(files["target"], n_ctx=64, **STRICT)
    with pytest.raises(BackendError, match="plain KV cache"):
        LlamaModelDrafter(tiny.target(tmp_path / "hybrid.gguf", "lfm2"), target, **STRICT)
    target.close()


KINDS = [("model", False), (None, True), ("model", True), ("eagle3", True)]


@pytest.mark.parametrize("name, lookup", KINDS)
def test_every_kind_leaves_the_text_of_a_seed_as_it_is_with_fixed_and_adaptive_windows(files, name, lookup):
    options: dict[str, Any] = {"tokens": IDS[:20].tolist(), "max_tokens": 60}
    with refspec.load(
        files["target"], name and files[name], lookup=lookup, threads=1, reproducible="f32", n_ctx=160, adaptive=False
    ) as session:
        captures = name == "eagle3"
        assert bool(session.target.capture_layers) == captures
        for sampler in (Sampler(), Sampler(temperature=0.9)):
            plain = session.generate(sampler=sampler, seed=5, speculate=False, **options)
            list(plain)
            for adaptive in (False, True):
                run = session.generate(sampler=sampler, seed=5, adaptive=adaptive, **options)
                assert session.target.capturing == captures, "a drafter without features costs the target no capture"
                list(run)
                assert run.tokens == plain.tokens
        kinds = {(None, True): LookupDrafter, ("model", False): LlamaModelDrafter}
        assert isinstance(session.drafter, kinds.get((name, lookup), FallbackDrafter))
        assert describe(session.drafter) == {("model", False): "model", (None, True): "lookup"}.get(
            (name, lookup), f"{name} + lookup"
        )


def test_a_model_drafting_for_itself_is_always_right_greedy_and_sampled(files):
    own = files["target"]
    with refspec.load(own, own, threads=1, reproducible="f32", n_ctx=160, draft_max=4) as session:
        for sampling, sampler in ((False, Sampler()), (True, Sampler(temperature=1.0))):
            run = session.generate(tokens=IDS[:20].tolist(), max_tokens=50, sampler=sampler, draft_sampling=sampling)
            list(run)
            assert run.statistics.tau == 5.0


@pytest.mark.parametrize("name", ["model", None])
def test_sampled_drafts_of_every_kind_run_adaptive_too_and_stop_where_they_must(files, name):
    # how much is drafted, and so the text, is up to the clock: it must not end by chance
    endless = Sampler(temperature=1.0, logit_bias={2: -np.inf})
    with refspec.load(
        files["target"], name and files[name], lookup=name is None, threads=1, n_ctx=160, adaptive=True
    ) as session:
        run = session.generate(tokens=IDS[:20].tolist(), max_tokens=80, sampler=endless, draft_sampling=True)
        list(run)
        assert len(run.tokens) == 80 and run.statistics.stop == "length"


def test_a_hybrid_target_can_take_back_rows_for_a_drafter_without_features(tmp_path):
    target = tiny.target(tmp_path / "hybrid.gguf", "lfm2")
    with refspec.load(target, lookup=True, threads=1, n_ctx=160, adaptive=False) as session:
        run = session.generate(tokens=[5, 6, 7, 5, 6, 7, 5], max_tokens=40)
        list(run)
        assert len(run.tokens) == 40


def test_a_draft_model_whose_context_is_full_drafts_nothing_and_the_text_goes_on(files, tmp_path):
    meta, tensors = tiny.target_parts("qwen3", seed=4)
    short = tiny.write(tmp_path / "short.gguf", "qwen3", meta | {"qwen3.context_length": 40}, tensors)
    with refspec.load(files["target"], short, threads=1, reproducible="f32", n_ctx=160, adaptive=False) as session:
        run = session.generate(tokens=IDS[:20].tolist(), max_tokens=80)
        windows = [len(event.step.draft) for event in run]
        plain = session.generate(tokens=IDS[:20].tolist(), max_tokens=80, speculate=False)
        list(plain)
        assert run.tokens == plain.tokens and windows[1] > 0 and windows[-1] == 0


PUNISHED = refspec.Penalties(repeat=1.3, presence=0.5, dry_multiplier=1.0, dry_allowed_length=1, dry_breakers=())


@pytest.mark.parametrize("sampling", [False, True])
def test_a_model_that_drafts_for_itself_is_always_right_under_penalties_too(files, sampling, monkeypatch):
    # half is for drafters that are less sure than their target
    monkeypatch.setattr("refspec.decoding.draft_penalties.DRAFT_SHARE", 1.0)
    options: dict[str, Any] = dict(
        tokens=IDS[:30].tolist(),
        max_tokens=60,
        seed=5,
        sampler=Sampler(temperature=0.8 if sampling else 0.0, penalties=PUNISHED),
    )
    own = files["target"]
    with refspec.load(own, own, reproducible="f32", threads=1, draft_max=4, n_ctx=200) as session:
        run = session.generate(**options, draft_sampling=sampling)
        tokens = [t for event in run for t in event.step.tokens]
        assert len(tokens) > 20 and run.statistics.verify_steps == -(-len(tokens) // 5), "every draft token is accepted"
        plain = session.generate(**options, speculate=False)
        assert sampling or tokens == [t for event in plain for t in event.step.tokens]
