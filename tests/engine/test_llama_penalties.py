"""Penalties in the engine:

llama.cpp's own samplers give the same logits, and speculative text under penalties is the plain text.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import tiny

import refspec
from refspec import embedded
from refspec.decoding.penalized_target import PenalizedTarget
from refspec.llama.target import LlamaTarget
from refspec.reference.penalties import Penalties, penalize
from refspec.reference.sampling import Sampler

PROMPT = np.random.default_rng(9).integers(3, tiny.V, 20).tolist()
COUNTED = Penalties(repeat=1.4, presence=0.2, frequency=0.1, repeat_last_n=9)
DRY = Penalties(dry_multiplier=2.0, dry_allowed_length=1)


@pytest.fixture(scope="module")
def target() -> Iterator[LlamaTarget]:
    made = LlamaTarget(embedded.path(embedded.TARGET), n_ctx=64, n_threads=1)
    yield made
    made.close()


def theirs(target: LlamaTarget, p: Penalties, history: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """Logits after `history` as llama.cpp's samplers change them."""
    vocab, n = llama_cpp.llama_model_get_vocab(target.model.handle), len(history)
    texts = [text.encode() for text in p.dry_breakers]
    chain = [
        llama_cpp.llama_sampler_init_penalties(
            len(logits), n if p.repeat_last_n < 0 else p.repeat_last_n, p.repeat, p.frequency, p.presence
        ),
        llama_cpp.llama_sampler_init_dry(
            vocab,
            p.dry_multiplier,
            p.dry_base,
            p.dry_allowed_length,
            n if p.dry_last_n < 0 else p.dry_last_n,
            (ctypes.c_char_p * len(texts))(*texts),
            len(texts),
        ),
    ]
    data = (llama_cpp.llama_token_data * len(logits))(*[(i, float(x), 0.0) for i, x in enumerate(logits)])
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    for sampler in chain:
        for token in history:
            llama_cpp.llama_sampler_accept(sampler, token)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        llama_cpp.llama_sampler_free(sampler)
    return np.array([one.logit for one in data], np.float32)


@pytest.mark.parametrize(
    "penalties",
    [
        Penalties(repeat=1.3),
        Penalties(presence=0.7, frequency=0.2, repeat_last_n=-1),
        Penalties(repeat=0.8, frequency=-0.3, repeat_last_n=5),
        Penalties(dry_multiplier=0.8),
        Penalties(dry_multiplier=0.8, dry_breakers=()),
        Penalties(dry_multiplier=1.5, dry_base=1.2, dry_allowed_length=4),
        Penalties(dry_multiplier=1.0, dry_last_n=20, dry_breakers=(".",)),
        Penalties(repeat=1.1, presence=0.1, dry_multiplier=0.5, dry_allowed_length=1),
    ],
    ids=repr,
)
def test_llama_cpp_changes_the_same_logits(target: LlamaTarget, penalties: Penalties) -> None:
    said = (
        'I said: "It was a dog. It was a dog.\nIt was a big dog. It was a dog. It was a dog, and it was a dog. It was'
    )
    history = target.tokenize(said)
    logits = np.random.default_rng(0).standard_normal(target.n_vocab).astype(np.float32) * 3
    breaks = [any(text.encode() in target.token_to_bytes(t) for text in penalties.dry_breakers) for t in history]
    changed = 0
    for n in range(1, len(history) + 1):
        mine, other = (
            penalize(logits, history[:n], penalties, breaks[:n]),
            theirs(target, penalties, history[:n], logits),
        )
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
        changed += int(not np.array_equal(mine, logits))
    assert changed > 3, "the text must give the penalties something to do"


def finished(session: refspec.Session, sampler: Sampler, **options: bool) -> refspec.Generation:
    generation = session.generate(tokens=PROMPT, max_tokens=90, sampler=sampler, seed=4, **options)  # type: ignore[arg-type]
    for _ in generation:
        pass
    return generation


@pytest.mark.parametrize(
    "penalties",
    [COUNTED, DRY, Penalties(frequency=1.0, repeat_last_n=-1, dry_multiplier=1.0, prompt=True)],
    ids=["counted", "dry", "both"],
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_speculative_text_is_the_plain_text(tmp_path: Path, penalties: Penalties, temperature: float) -> None:
    pair = tiny.target(tmp_path / "target.gguf"), tiny.drafter(tmp_path / "drafter.gguf")
    sampler = Sampler(temperature=temperature, logit_bias={2: -np.inf}, penalties=penalties)
    texts = []
    for options in ({}, {"draft_max": 5}, {"lookup": True}, {"adaptive": True}, {"drafter_kernels": "own"}):
        with refspec.load(*pair, n_ctx=128, threads=1, reproducible="f32", **{"adaptive": False} | options) as session:  # type: ignore[arg-type]
            fast, plain = finished(session, sampler), finished(session, sampler, speculate=False)
            assert isinstance(fast.target, PenalizedTarget) and len(fast.tokens) == 90
            assert fast.tokens == plain.tokens
            assert finished(session, replace(sampler, penalties=Penalties())).tokens != fast.tokens, (
                "the penalties change this text"
            )
            texts.append(plain.tokens)
    assert all(text == texts[0] for text in texts)


def test_the_embedded_pair_does_not_repeat_itself_unless_asked() -> None:
    with refspec.load() as session:
        assert session.sampler.penalties.dry and session.sampler.greedy
        answers = []
        for sampler in (None, Sampler()):
            generation = session.generate("Tell me a story about a dog.", max_tokens=256, sampler=sampler)
            for _ in generation:
                pass
            answers.append(generation.tokens)
    longest = [max((n for n in range(1, 60) if again(tokens, n)), default=0) for tokens in answers]
    assert longest[0] < 12 <= longest[1], longest


def again(tokens: Sequence[int], n: int) -> bool:
    """Whether a stretch of n tokens comes twice."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) < len(grams)
