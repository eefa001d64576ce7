"""NumPy = C = llama.cpp for every switch combination of the drafter; the numbers are those `make agree` prints."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import table
import tiny
from table import DEPTH, STRICT, TOLERANCE, Row, apart, by_llama, by_own, by_reference

from refspec import native
from refspec.gguf.io import read_drafter, read_gguf_header
from refspec.llama.native_eagle3 import NativeEagle3Drafter
from refspec.llama.target import LlamaTarget
from refspec.reference import ops
from refspec.reference.config import Feedback
from refspec.reference.eagle3 import Eagle3Drafter

PACKED_TOLERANCE = 1e-2
WIDE = 64  # a width whose rows fill whole blocks of packed types


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Row]:
    found = table.table(tmp_path_factory.mktemp("agreement"))
    return {(row.feature_norm, row.feedback, row.residual): row for row in found}


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LlamaTarget, np.ndarray, np.ndarray]]:
    path = tiny.target(tmp_path_factory.mktemp("target") / "target.gguf")
    target = LlamaTarget(path, n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    ids = np.random.default_rng(12).integers(3, tiny.V, 41)
    target.decode(ids[:-1], logits="none")
    yield target, ids[1:], target.features().copy()
    target.close()


@pytest.mark.parametrize("feature_norm", ["none", "concat", "per_state"])
@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("residual", ["raw", "normed"])
def test_all_engines_agree(
    rows: dict[tuple[str, str, str], Row], feature_norm: str, feedback: str, residual: str
) -> None:
    row = rows[feature_norm, feedback, residual]
    assert row.worst <= TOLERANCE and row.same_tokens


@pytest.mark.parametrize("switch", ["feature_norm", "feedback", "residual"])
def test_a_wrong_switch_would_not_agree(
    captured: tuple[LlamaTarget, np.ndarray, np.ndarray], tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tolerance separates right from wrong:

    each switch ignored, as stock llama.cpp ignores two of them, is far above it.
    """
    target, tokens, features = captured
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm", residual="normed")
    llama = by_llama(path, target, tokens, features)
    right = by_reference(path, ops, tokens, features, llama.tokens)
    other = {"feature_norm": "none", "feedback": "pre_norm", "residual": "raw"}[switch]
    config, weights = read_drafter(path)
    wrong_config = dataclasses.replace(config, **{switch: other})
    kept = {name: a for name, a in weights.items() if switch != "feature_norm" or not name.startswith("fc_norm")}
    monkeypatch.setattr(table, "read_drafter", lambda _: (wrong_config, kept))
    wrong = by_reference(path, ops, tokens, features, llama.tokens)
    assert apart(right, llama) <= TOLERANCE < 100 * TOLERANCE < apart(wrong, llama)


def test_confidence_and_feedback_agree(captured: tuple[LlamaTarget, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    target, tokens, features = captured
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    config, weights = read_drafter(path)
    assert config.feedback is Feedback.POST_NORM
    reference = Eagle3Drafter(config, weights)
    reference.extend(tokens, features)
    from_llama = table.LlamaEagle3Drafter(path, target, **STRICT)
    from_llama.extend(tokens, features)
    ours, theirs = reference.draft(DEPTH), from_llama.draft(DEPTH)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_allclose(ours.confidence, theirs.confidence, rtol=1e-4)


def test_llama_cpp_without_refspec_would_draft_something_else(
    captured: tuple[LlamaTarget, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Why the architecture name differs:

    the same tensors under 'eagle3' are a valid file that computes another drafter.
    """
    target, tokens, features = captured
    normed = tiny.drafter(tmp_path / "normed.gguf", feature_norm="none", feedback="post_norm")
    stock = tiny.drafter(tmp_path / "stock.gguf", feature_norm="none", feedback="pre_norm")
    a, b = by_llama(normed, target, tokens, features), by_llama(stock, target, tokens, features)
    assert np.array_equal(a.logits[0], b.logits[0])  # the first draft token is the same drafter's
    assert np.abs(a.logits[1] - b.logits[1]).max() > 100 * TOLERANCE


# Both engines multiply a packed row by the same function of ggml, and packing the input rounds away what float32 order
# left: 0 to 1e-6 apart on AVX-512, logits up to 11, against 14 for weights of another seed. The bound leaves room for a
# processor where llama.cpp takes another function for several rows, and an input falls into another of Q8_0's 255
# steps.
@pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
def test_packed_weights_agree_with_llama_cpp(
    captured: tuple[LlamaTarget, np.ndarray, np.ndarray], tmp_path: Path, kind: str, feedback: str
) -> None:
    target, tokens, features = captured
    switches = dict(feature_norm="per_state", feedback=feedback, width=WIDE, draft_vocab=64)
    path = tiny.drafter(tmp_path / "d.gguf", quantize=kind, **switches)
    other = tiny.drafter(tmp_path / "other.gguf", quantize=kind, seed=5, **switches)
    assert {t.type for t in read_gguf_header(path).tensors.values()} >= {kind, "F32"}
    llama = by_llama(path, target, tokens, features)
    assert apart(by_own(path, target, tokens, features, llama.tokens), llama) <= PACKED_TOLERANCE
    assert apart(by_own(other, target, tokens, features, llama.tokens), llama) > 100 * PACKED_TOLERANCE


@pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
def test_rows_extended_together_are_rows_extended_one_by_one(
    captured: tuple[LlamaTarget, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    target, tokens, features = captured
    path = tiny.drafter(
        tmp_path / "d.gguf", quantize="Q8_0", feature_norm="per_state", feedback="post_norm", width=WIDE
    )
    together, single = NativeEagle3Drafter(path, target), NativeEagle3Drafter(path, target)
    together.extend(tokens, features)
    for i in range(len(tokens)):
        single.extend(tokens[i : i + 1], features[i : i + 1])
    assert np.array_equal(together._chain.logits(), single._chain.logits())
    assert np.array_equal(together._chain.keys, single._chain.keys) and np.array_equal(
        together._chain.state(), single._chain.state()
    )
