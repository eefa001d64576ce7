"""LlamaTarget on tiny random models:

captured states, logits, rollback, tokens, in every way llama.cpp can be asked for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from refspec import native
from refspec.decoding.penalized_target import under
from refspec.decoding.verifier import MatchVerifier
from refspec.errors import BackendError, ShapeError, UsageError
from refspec.llama.capture import CallbackCapture
from refspec.llama.target import LlamaTarget
from refspec.reference.draft import Draft
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler

IDS = np.random.default_rng(5).integers(3, tiny.V, 45).tolist()
STRICT: dict[str, Any] = dict(n_ctx=256, kv_type="f32", flash_attn="off", n_threads=1)
Make = Callable[..., LlamaTarget]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(arch: str = "llama", *, quantize: str = "F32", **settings: Any) -> LlamaTarget:
        path = tmp_path / f"{arch}-{quantize}.gguf"
        if not path.exists():
            tiny.target(path, arch, quantize=quantize)
        return LlamaTarget(path, **(STRICT | settings))

    return make


def states(target: LlamaTarget, logits: str = "last") -> np.ndarray:
    target.decode(IDS, logits=logits)
    return target.features().copy()


def test_staged_states_equal_the_evaluation_callback_in_c_and_in_python(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = states(make(capture_layers=tiny.LAYERS))
    by_callback = states(make(capture_layers=tiny.LAYERS, capture="callback"))
    assert staged.shape == (len(IDS), 3 * tiny.HT) and np.array_equal(staged, by_callback)
    monkeypatch.setattr(native, "lib", None)
    assert np.array_equal(staged, states(make(capture_layers=tiny.LAYERS, capture="callback")))


def test_states_are_the_residual_stream_entering_the_layer(make: Make) -> None:
    # boundary 0 is the token embedding itself, the only state that can be computed without a model
    target = make(capture_layers=[0, 1])
    _, tensors = tiny.target_parts("llama")
    assert np.array_equal(states(target)[:, : tiny.HT], tensors["token_embd.weight"][IDS])


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen2"])
@pytest.mark.parametrize("logits", ["last", "none"])
def test_states_of_all_rows_do_not_depend_on_batches_or_outputs(make: Make, arch: str, logits: str) -> None:
    whole = states(make(arch, capture_layers=tiny.LAYERS), "all")
    pieces = states(make(arch, capture_layers=tiny.LAYERS, n_batch=16, n_ubatch=7), logits)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=2e-5)


def test_the_order_of_captured_layers_is_kept(make: Make) -> None:
    forward, backward = states(make(capture_layers=[1, 2, 4])), states(make(capture_layers=[4, 2, 1]))
    assert np.array_equal(forward.reshape(-1, 3, tiny.HT), backward.reshape(-1, 3, tiny.HT)[:, ::-1])


def test_logits_of_any_row_are_a_view_of_llama_cpp(make: Make) -> None:
    target = make()
    assert target.decode(IDS) == len(IDS)
    every = [target.logits(i).copy() for i in range(len(IDS))]
    assert not target.logits(3).flags.owndata
    target.reset()
    target.decode(IDS, logits="last")
    np.testing.assert_allclose(target.logits(len(IDS) - 1), every[-1], rtol=0, atol=2e-5)
    for i, token in enumerate(IDS):  # one by one
        if i == 0:
            target.reset()
        target.decode([token])
        np.testing.assert_allclose(target.logits(0), every[i], rtol=0, atol=2e-5)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "lfm2"])  # lfm2: a hybrid, whose recurrent state has to go back too
def test_rollback_equals_recomputing(make: Make, arch: str) -> None:
    target, again = make(arch, capture_layers=tiny.LAYERS), make(arch, capture_layers=tiny.LAYERS)
    target.decode(IDS[:20])
    target.decode([IDS[20], 8, 9, 10])
    target.rollback(21)
    assert target.n_past == 21
    target.decode(IDS[21:25])
    again.decode(IDS[:20])
    again.decode(IDS[20:21])
    again.decode(IDS[21:25])
    np.testing.assert_allclose(target.logits(3), again.logits(3), rtol=0, atol=2e-5)
    np.testing.assert_allclose(target.features(), again.features(), rtol=0, atol=2e-5)


def test_a_recurrent_state_that_is_gone_is_an_error(make: Make) -> None:
    target = make("lfm2")
    target.decode(IDS)
    with pytest.raises(BackendError, match="run it without speculation"):
        target.rollback(3)


@pytest.mark.parametrize("ids", [[1.5], ["1"], [2**33], np.array([2**32 + 7]), np.array([1.5])], ids=repr)
def test_what_is_not_an_id_is_refused_and_not_cut_to_one(make: Make, ids: Any) -> None:
    target = make()
    with pytest.raises(ShapeError, match="tokens must be ids"):
        target.decode(ids)
    assert target.n_past == 0


def test_a_failed_decode_leaves_the_positions_held_before(make: Make) -> None:
    target = make(n_batch=16, n_ubatch=16)
    target.decode(IDS[:10])
    with pytest.raises(ShapeError):
        target.decode([*IDS[10:30], tiny.V], logits="last")  # the second batch of this decode fails
    assert target.n_past == 10
    target.decode(IDS[10:12])
    logits = target.logits(1).copy()
    again = make(n_batch=16, n_ubatch=16)
    again.decode(IDS[:10])
    again.decode(IDS[10:12])
    assert np.array_equal(logits, again.logits(1))


def test_the_context_can_be_filled_to_the_last_position(make: Make) -> None:
    target = make(n_ctx=64)
    assert target.n_ctx == 64
    target.decode([5] * 63, logits="none")
    target.decode([6])
    assert target.n_past == 64 and np.isfinite(target.logits(0)).all()


@pytest.mark.parametrize("quantize", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_quantized_targets_run_and_capture(make: Make, quantize: str) -> None:
    exact, rough = make(capture_layers=tiny.LAYERS), make(quantize=quantize, capture_layers=tiny.LAYERS)
    a, b = states(exact), states(rough)
    relative = np.abs(a - b).mean() / np.abs(a).mean()
    assert 0 < relative < (0.25 if quantize == "Q4_0" else 0.05)


def test_a_half_precision_cache_with_flash_attention_agrees_roughly(make: Make) -> None:
    exact, other = make(), make(kv_type="f16", flash_attn="on")
    exact.decode(IDS)
    other.decode(IDS)
    np.testing.assert_allclose(other.logits(44), exact.logits(44), rtol=0, atol=0.05)


def test_a_cache_type_that_does_not_fit_the_heads_is_refused(make: Make) -> None:
    with pytest.raises(BackendError, match="K cache type q8_0 with block size 32"):
        make(kv_type="q8_0", flash_attn="auto")


def test_tokens_survive_a_round_trip(make: Make) -> None:
    target = make()
    text = "hello wörld \u65e5\u672c\u8a9e \U0001f600\n\tx\x00y"
    tokens = target.tokenize(text)
    assert target.add_bos and tokens[0] == 1
    assert b"".join(target.token_to_bytes(t) for t in tokens).decode() == " " + text
    assert target.tokenize("</s>", add_special=False, parse_special=True) == [2] and 2 in target.end_tokens
    assert target.token_to_bytes(2) == b"" and target.token_to_bytes(2, special=True) == b"</s>"
    assert target.tokenize(b"a\xff\xfeb") == target.tokenize("a\ufffd\ufffdb")
    assert target.tokenize("", add_special=False) == []


def test_a_word_of_a_million_letters_is_tokenized_or_refused(tmp_path: Path) -> None:
    meta, tensors = tiny.target_parts("llama")
    meta |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "default", "tokenizer.ggml.merges": ["a b"]}
    meta["tokenizer.ggml.token_type"] = [1] * tiny.V
    target = LlamaTarget(tiny.write(tmp_path / "x.gguf", "llama", meta, tensors), **STRICT)
    assert len(target.tokenize("a" * 100_000)) == 100_000  # std::regex recursion: beyond the stack of the process
    with pytest.raises(BackendError, match="give a shorter one"):
        target.tokenize("a" * 2_000_000)


def test_an_exception_in_the_python_callback_is_raised(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "lib", None)

    def broken(self: CallbackCapture, i: int, tensor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CallbackCapture, "_append", broken)
    target = make(capture_layers=tiny.LAYERS, capture="callback")
    with pytest.raises(KeyboardInterrupt):
        target.decode(IDS)
    assert target.n_past == 0


def test_time_inside_the_engine_is_counted(make: Make) -> None:
    target = make()
    assert target.seconds == 0
    target.decode(IDS)
    assert 0 < target.seconds < 60


@pytest.mark.parametrize("capture", ["staged", "callback"])
@pytest.mark.parametrize("in_c", [True, False])
def test_capturing_can_be_switched_off_and_on(
    make: Make, monkeypatch: pytest.MonkeyPatch, capture: str, in_c: bool
) -> None:
    if not in_c:
        monkeypatch.setattr(native, "lib", None)
    target = make(capture_layers=tiny.LAYERS, capture=capture)
    before, logits = states(target), target.logits(len(IDS) - 1).copy()
    target.reset()
    target.capturing = False
    target.decode(IDS, logits="last")
    assert np.array_equal(target.logits(len(IDS) - 1), logits)
    with pytest.raises(ShapeError, match="capturing"):
        target.features()
    target.reset()
    target.capturing = True
    assert np.array_equal(states(target), before)


@pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
@pytest.mark.parametrize("layers", [(), tiny.LAYERS])
def test_the_run_in_c_gives_the_bits_python_gives(
    make: Make, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_c = make(capture_layers=layers)
    assert in_c.verifier(Sampler(), 0) is not None
    monkeypatch.setattr("refspec.llama.target.possible", lambda: False)
    in_python = make(capture_layers=layers)
    assert in_python.verifier(Sampler(), 0) is None
    for part in (IDS[:7], IDS[7:8], IDS[8:20], IDS[20:21]):
        for target in (in_c, in_python):
            assert target.decode(part) == len(part)
        for i in range(len(part)):
            np.testing.assert_array_equal(in_c.logits(i), in_python.logits(i))
        if layers:
            np.testing.assert_array_equal(in_c.features(), in_python.features())
    assert in_c.n_past == in_python.n_past == 21 and in_c.seconds > 0


def fixed(*tokens: int) -> Draft:
    """A draft of these tokens."""
    return Draft(np.array(tokens, np.int32), None, np.zeros(len(tokens), np.float32))


needs_c = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
COUNTED = Penalties(repeat=1.4, presence=0.2, frequency=0.1, repeat_last_n=9, prompt=True)


@needs_c
@pytest.mark.parametrize("pair_rows", [False, True])
@pytest.mark.parametrize(
    "penalties",
    [Penalties(), COUNTED, Penalties(dry_multiplier=2.0, dry_allowed_length=1)],
    ids=["free", "counted", "dry"],
)
@pytest.mark.parametrize(
    "sampler",
    [Sampler(), Sampler(temperature=0.7, top_p=0.9), Sampler(logit_bias={4: 2.5, 9: -np.inf})],
    ids=["greedy", "warm", "biased"],
)
def test_one_call_verifies_as_its_twin_does(
    make: Make, sampler: Sampler, penalties: Penalties, pair_rows: bool
) -> None:
    at_once, parts = (
        under(make(n_ctx=64, capture_layers=tiny.LAYERS, pair_rows=pair_rows), penalties, IDS[:2]) for _ in range(2)
    )
    in_c, in_python = at_once.verifier(sampler, 17), MatchVerifier(parts, sampler, 17)  # type: ignore[attr-defined]
    assert in_c is not None
    for target in (at_once, parts):
        target.decode(IDS[:5], logits="none")
    pending, position, rng, accepted = IDS[5], 0, np.random.default_rng(3), set()
    while parts.n_past < parts.n_ctx:
        k = min(int(rng.integers(0, 5)), parts.n_ctx - parts.n_past - 1)
        tokens, start = list[int](), parts.n_past
        for right in rng.random(k) < 0.7:  # what the target will say, or something else
            said = in_python.step(pending, fixed(*tokens), position).tokens
            tokens.append(said[-1] if right else (said[-1] + 1) % tiny.V)
            parts.rollback(start)
        draft = fixed(*tokens)
        wanted, got = in_python.step(pending, draft, position), in_c.step(pending, draft, position)
        assert got == wanted and at_once.n_past == parts.n_past
        for i in range(k + 1):
            np.testing.assert_array_equal(at_once.logits(i), parts.logits(i))
        np.testing.assert_array_equal(at_once.features(), parts.features())
        accepted.add((k, wanted.accepted))
        pending, position = wanted.tokens[-1], position + len(wanted.tokens)
    assert len(accepted) > 6, "drafts of several lengths, of which several numbers are accepted"


@needs_c
def test_one_call_refuses_what_its_parts_refuse_and_holds_what_was_held(make: Make) -> None:
    target = make(n_ctx=64, n_batch=16, n_ubatch=16)
    target.decode(IDS[:10], logits="none")
    verifier = target.verifier(Sampler(), 0)
    assert verifier is not None
    for pending, draft, kind, words in (
        (tiny.V, fixed(), ShapeError, f"{tiny.V} is outside"),
        (-1, fixed(), ShapeError, "outside"),
        (3, fixed(4, tiny.V), ShapeError, f"{tiny.V} is outside"),
        (3, fixed(*[4] * 16), UsageError, "at most 16 rows"),
        (3, fixed(*[4] * 60), ShapeError, "do not fit"),
    ):
        with pytest.raises(kind, match=words):
            verifier.step(pending, draft, 0)
        assert target.n_past == 10
    foreign = target.verifier(Sampler(logit_bias={tiny.V + 5: 1.0}), 0)
    assert foreign is not None
    with pytest.raises(UsageError, match=str(tiny.V + 5)):  # only the rule finds out
        foreign.step(3, fixed(), 0)
    target.rollback(10)
    again = make(n_ctx=64, n_batch=16, n_ubatch=16)
    again.decode(IDS[:10], logits="none")
    assert verifier.step(IDS[10], fixed(), 0) == MatchVerifier(again, Sampler(), 0).step(IDS[10], fixed(), 0)


@needs_c
def test_one_call_says_that_a_recurrent_state_cannot_go_back(make: Make) -> None:
    target = make("lfm2")  # loaded without rewind
    verifier = target.verifier(Sampler(), 0)
    assert verifier is not None
    wrong = fixed(*[(verifier.step(5, fixed(), 0).tokens[0] + 1) % tiny.V] * 3)
    target.reset()
    with pytest.raises(BackendError, match="run it without speculation"):
        verifier.step(5, wrong, 0)
