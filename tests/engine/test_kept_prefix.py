"""Turns of a conversation in llama.cpp: what is kept of the turn before changes no token of the next.

Where the promise is bits (`reproducible`), the bits are those of a fresh session; elsewhere batches of other sizes
round otherwise. Without flash attention, whose sums on the processor are partly in F16, that is 5e-6 of a logit here
and decides nothing.
"""

from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler

ENDLESS = {2: -np.inf}  # 2 ends an output
SAMPLERS = [
    Sampler(logit_bias=ENDLESS),
    Sampler(temperature=0.8, top_p=0.95, logit_bias=ENDLESS, penalties=Penalties(presence=0.5, prompt=True)),
]
RNG = np.random.default_rng(5)
LONG, SHORT, MORE = (RNG.integers(3, tiny.V, n).tolist() for n in (600, 20, 30))
EXACTLY = {"flash_attn": "off", "kv_type": "f32"}
WAYS: dict[str, dict[str, Any]] = {
    "chain": {"draft_max": 4}, "own kernels": {"draft_max": 4, "drafter_kernels": "own"},
    "llama": {"draft_max": 4, "drafter_kernels": "llama"}, "adaptive": {"adaptive": True}, "tree": {"tree": "8:3:4"},
    "lookup": {"draft_max": 4, "lookup": True},
}  # fmt: skip


def sliding(folder: Path) -> Path:
    """A gemma3 whose layers, all but one, see the 16 newest positions."""
    meta, tensors = tiny.target_parts("gemma3")
    meta |= {"gemma3.attention.sliding_window": 16, "gemma3.attention.key_length": tiny.HEAD}
    meta |= {"gemma3.attention.value_length": tiny.HEAD}
    for i in range(tiny.N_LAYER):
        norms = {"post_attention_norm": tiny.HT, "post_ffw_norm": tiny.HT}
        norms |= {"attn_q_norm": tiny.HEAD, "attn_k_norm": tiny.HEAD}
        tensors |= {f"blk.{i}.{name}.weight": np.ones(n, np.float32) for name, n in norms.items()}
    return tiny.write(folder / "target.gguf", "gemma3", meta, tensors)


def finished(generation: refspec.Generation) -> refspec.Generation:
    for _ in generation:
        pass
    return generation


def turns(files: tuple[Any, ...], first: list[int], sampler: Sampler, **options: Any) -> tuple[Any, Any]:
    """The second turn after a first one, and the same prompt in a fresh session."""
    options = {"threads": 1, "tuned": False, "n_ctx": 1024, **EXACTLY} | options
    how: dict[str, Any] = {"sampler": sampler, "max_tokens": 60, "seed": 4}
    with refspec.load(*files, **options) as session:
        prompt = first + finished(session.generate(tokens=first, **how)).tokens + MORE
        two = finished(session.generate(tokens=prompt, **how))
        three = finished(session.generate(tokens=prompt[:-3] + MORE, **how))
    with refspec.load(*files, **options) as session:
        fresh = finished(session.generate(tokens=prompt, **how))
    with refspec.load(*files, **options) as session:
        assert three.tokens == finished(session.generate(tokens=prompt[:-3] + MORE, **how)).tokens
    assert fresh.statistics.prompt_kept == 0
    return two, fresh


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("way", WAYS)
def test_a_second_turn_is_that_of_a_fresh_session(tmp_path: Path, way: str, sampler: Sampler) -> None:
    files = tiny.target(tmp_path / "target.gguf"), tiny.drafter(tmp_path / "drafter.gguf")
    two, fresh = turns(files, SHORT, sampler, **WAYS[way])
    assert two.tokens == fresh.tokens
    assert two.statistics.prompt_kept == len(SHORT) + 60 - 2


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "lfm2", "gemma3"])
@pytest.mark.parametrize("speculating", [False, True])
def test_every_kind_of_memory(tmp_path: Path, arch: str, speculating: bool, sampler: Sampler) -> None:
    target = sliding(tmp_path) if arch == "gemma3" else tiny.target(tmp_path / "target.gguf", arch)
    drafter = tiny.drafter(tmp_path / "drafter.gguf")
    files = (target, drafter) if speculating else (target,)
    two, fresh = turns(files, SHORT, sampler, **({"draft_max": 4} if speculating else {}))
    assert two.tokens == fresh.tokens
    held = len(SHORT) + 60 - 1 - speculating
    # a recurrent state goes back where the last step kept every guess, and no further than into that step
    assert two.statistics.prompt_kept == held or (arch == "lfm2" and speculating and two.statistics.prompt_kept == 0)


@pytest.mark.parametrize(("arch", "rewind"), [("llama", False), ("lfm2", False), ("lfm2", True)])
def test_states_and_logits_after_going_back_are_those_of_reading_again(tmp_path: Path, arch: str, rewind: bool) -> None:
    """The rollbacks that turns make, up to where a recurrent state is gone, against a target that read it all."""
    from refspec.llama.target import LlamaTarget

    path = tiny.target(tmp_path / "target.gguf", arch)
    how: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "rewind": rewind, "capture_layers": (1, 2), **EXACTLY}
    text, refused, restored = SHORT + MORE, 0, 0
    for sizes in ((40,), (30, 1, 1, 1, 5, 1, 1), (20, 7, 7, 6)):
        for back in ((0,), (1,), (2,), (5,), (6,), (12,), (1, 1), (2, 3)):
            with closing(LlamaTarget(path, **how)) as a, closing(LlamaTarget(path, **how)) as b:
                for n in sizes:
                    a.decode(text[a.n_past : a.n_past + n], logits="all")
                end = sum(sizes)
                for by in back:
                    end -= by
                    if a.n_past > end and end < a.restores:
                        refused += 1
                        a.reset()
                    with suppress(refspec.BackendError) if arch == "lfm2" else nullcontext():
                        a.rollback(min(end, a.n_past))
                if a.n_past not in (0, end):
                    a.reset()
                restored += a.n_past == end and sum(back) > 0
                assert list(a.tokens) == text[: a.n_past]
                rest = text[a.n_past : end] + LONG[:9]
                a.decode(rest, logits="last")
                b.decode(text[:end] + LONG[:9], logits="last")
                np.testing.assert_allclose(a.logits(len(rest) - 1), b.logits(end + 8), atol=2e-5)
                np.testing.assert_allclose(a.features()[-1], b.features()[-1], atol=2e-5)
    assert restored if arch == "llama" or rewind else not restored
    assert (refused > 0) == (arch == "lfm2")


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize(("how", "quantize"), [("exact", "Q8_0"), ("exact", "F16"), ("f32", "F32")])
def test_bits_are_those_of_a_fresh_session(tmp_path: Path, how: str, quantize: str, sampler: Sampler) -> None:
    files = (
        tiny.target(tmp_path / "target.gguf", quantize=quantize),
        tiny.drafter(tmp_path / "drafter.gguf", quantize=quantize),
    )
    logits = []
    for first in (LONG, SHORT):
        two, fresh = turns(files, first, sampler, reproducible=how, draft_max=4)
        assert two.tokens == fresh.tokens
        assert two.statistics.prompt_kept == (512 if first is LONG else 0)
    options: dict[str, Any] = {"threads": 1, "tuned": False, "n_ctx": 1024, "reproducible": how, "draft_max": 4}
    for before in (LONG, SHORT):
        with refspec.load(*files, **options) as session:
            finished(session.generate(tokens=before, max_tokens=40, sampler=sampler))
            last = finished(session.generate(tokens=LONG + MORE, max_tokens=1, sampler=sampler))
            assert last.statistics.prompt_kept == (512 if before is LONG else 0)
            logits.append(np.array(session.target.logits(0)))
    assert logits[0].tobytes() == logits[1].tobytes()
