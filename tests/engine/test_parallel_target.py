"""ParallelTarget: the answer to a prompt does not depend on the sequences decoded beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from refspec.decoding.penalized_target import under
from refspec.decoding.requests import Request
from refspec.errors import BackendError, CheckpointError, ShapeError, UsageError
from refspec.llama.parallel_target import ParallelTarget
from refspec.llama.target import LlamaTarget
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler, sample

RNG = np.random.default_rng(11)
PROMPTS = [RNG.integers(3, tiny.V, n).astype(np.int32) for n in (1, 40, 7, 23, 2, 64, 11, 5, 30)]
COINS = RNG.random((len(PROMPTS), 24))
F32: dict[str, Any] = dict(n_ctx=128, kv_type="f32", flash_attn="off", n_threads=1)
Make = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> Make:
    def model(arch: str = "llama", **how: Any) -> Path:
        path = tmp_path / f"{arch}.gguf"
        return path if path.exists() else tiny.target(path, arch, **how)

    return model


def plain(
    path: Path, prompt: np.ndarray, max_new: int, stop: frozenset[int], coins: np.ndarray, sampler: Sampler
) -> list[int]:
    """One text alone, one token at a time."""
    target = under(LlamaTarget(path, **F32), sampler.penalties, prompt)
    out: list[int] = []
    row = target.decode(prompt, logits="last") - 1
    while True:
        out.append(sample(target.logits(row), sampler, coins[len(out)]))
        if out[-1] in stop or len(out) == max_new:
            target.close()
            return out
        row = target.decode(out[-1:], logits="last") - 1


def answered(
    path: Path,
    *,
    temperature: float = 0.0,
    max_new: int = 24,
    stop: frozenset[int] = frozenset(),
    penalties: Penalties | None = None,
    **settings: Any,
) -> list[list[int]]:
    target = ParallelTarget(path, **(F32 | settings))
    requests = [Request(i, p, COINS[i] if temperature else None) for i, p in enumerate(PROMPTS)]
    found = {
        a.request.key: a.tokens
        for a in target.answers(
            requests, max_new=max_new, sampler=Sampler(temperature, penalties=penalties or Penalties()), stop=stop
        )
    }
    target.close()
    assert len(found) == len(PROMPTS)
    return [found[i] for i in range(len(PROMPTS))]


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "lfm2"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_are_those_of_plain_decoding_whatever_runs_beside_them(
    model: Make, arch: str, temperature: float
) -> None:
    path, stop = model(arch), frozenset(range(0, tiny.V, 9))
    alone = [plain(path, p, 24, stop, c, Sampler(temperature)) for p, c in zip(PROMPTS, COINS, strict=True)]
    assert {len(tokens) for tokens in alone} != {24}, "no answer ended by itself: the test would not see it"
    for parallel, n_batch in ((1, 512), (3, 512), (4, 16), (len(PROMPTS) + 3, 512)):
        assert answered(path, temperature=temperature, stop=stop, parallel=parallel, n_batch=n_batch) == alone, (
            parallel,
            n_batch,
        )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    "penalties",
    [
        Penalties(dry_multiplier=3.0, dry_allowed_length=1, dry_breakers=()),
        Penalties(dry_multiplier=3.0, dry_allowed_length=1, dry_breakers=("a", "e"), prompt=True),
        Penalties(repeat=1.4, presence=0.5, frequency=0.3, repeat_last_n=9),
    ],
    ids=["dry", "dry with breakers and the prompt", "counting"],
)
def test_answers_under_penalties_are_those_of_plain_decoding_under_them(
    model: Make, penalties: Penalties, temperature: float
) -> None:
    path, stop, sampler = model(), frozenset(range(0, tiny.V, 9)), Sampler(temperature, penalties=penalties)
    alone = [plain(path, p, 24, stop, c, sampler) for p, c in zip(PROMPTS, COINS, strict=True)]
    assert alone != answered(path, temperature=temperature, stop=stop, parallel=4), (
        "the penalties changed nothing: the test would not see them"
    )
    for parallel in (1, 4):
        assert answered(path, temperature=temperature, stop=stop, penalties=penalties, parallel=parallel) == alone, (
            parallel
        )


def test_an_answer_ends_with_a_stop_token_or_at_its_length(model: Make) -> None:
    free = answered(model(), parallel=4)
    stop = frozenset({free[1][3]})
    for whole, cut in zip(free, answered(model(), parallel=4, stop=stop), strict=True):
        at = next((i for i, t in enumerate(whole) if t in stop), len(whole) - 1)
        assert cut == whole[: at + 1]
    assert {len(tokens) for tokens in free} == {24}


def test_answers_that_nobody_waits_for_leave_nothing_behind(model: Make) -> None:
    target = ParallelTarget(model(), parallel=3, **F32)
    requests = [Request(i, p, None) for i, p in enumerate(PROMPTS)]
    whole = sorted(
        (a.request.key, a.tokens) for a in target.answers(requests, max_new=8, sampler=Sampler(0), stop=frozenset())
    )
    next(target.answers(requests, max_new=20, sampler=Sampler(0), stop=frozenset()))
    again = sorted(
        (a.request.key, a.tokens) for a in target.answers(requests, max_new=8, sampler=Sampler(0), stop=frozenset())
    )
    assert again == whole


@pytest.mark.parametrize(
    "prompt", [[], [tiny.V], [-1], [1.5], [3] * 105], ids=["empty", "large", "negative", "float", "long"]
)
def test_a_prompt_that_cannot_be_run_is_one_error(model: Make, prompt: list[Any]) -> None:
    target = ParallelTarget(model(), parallel=2, **F32)
    with pytest.raises(ShapeError):
        next(target.answers([Request(0, np.asarray(prompt), None)], max_new=24, sampler=Sampler(0), stop=frozenset()))


def test_settings_outside_their_range_are_named(model: Make) -> None:
    for parallel in (0, 257):
        with pytest.raises(UsageError, match="parallel"):
            ParallelTarget(model(), parallel=parallel, **F32)
    with pytest.raises(UsageError, match=r"513 positions .* its 1\.\.512"):
        ParallelTarget(model(), parallel=2, **(F32 | {"n_ctx": 513}))
    target = ParallelTarget(model(), parallel=2, **F32)
    with pytest.raises(UsageError, match="max_new"):
        next(target.answers([], max_new=0, sampler=Sampler(), stop=frozenset()))
    with pytest.raises(ShapeError, match="3 coins"):
        next(target.answers([Request(0, PROMPTS[0], COINS[0][:3])], max_new=4, sampler=Sampler(1), stop=frozenset()))
    target.close()
    with pytest.raises(BackendError, match="already closed"):
        next(target.answers([Request(0, PROMPTS[0], None)], max_new=4, sampler=Sampler(0), stop=frozenset()))


def test_a_drafter_is_not_a_target(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a drafter"):
        ParallelTarget(tiny.drafter(tmp_path / "d.gguf"), parallel=2, n_ctx=64)
