"""NumPy reference, training code and llama.cpp:

the same states, the same drafts, the same acceptance, from depth 1 to 8.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (torch)")

from chain_twins import TorchDrafter, argmax, forced_chain, tiny, torch_twin  # noqa: E402

from refspec import embedded  # noqa: E402
from refspec.evaluate import acceptance  # noqa: E402
from refspec.evaluate.drift import record, select  # noqa: E402
from refspec.evaluate.drift_models import load_pairs  # noqa: E402
from refspec.gguf.io import read_drafter  # noqa: E402
from refspec.llama.eagle3 import LlamaEagle3Drafter  # noqa: E402
from refspec.llama.target import LlamaTarget  # noqa: E402
from refspec.reference import ops  # noqa: E402
from refspec.reference.config import Feedback  # noqa: E402
from refspec.reference.draft import magnitude  # noqa: E402
from refspec.reference.eagle3 import Eagle3Drafter  # noqa: E402
from refspec.reference.sampling import Sampler  # noqa: E402
from refspec.session import Session  # noqa: E402

DEPTH = 8
SWITCHES = list(itertools.product(("none", "concat", "per_state"), ("pre_norm", "post_norm"), ("raw", "normed")))
STRICT = {"kv_type": "f32", "flash_attn": "off", "n_threads": 1}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A tiny target, 30 tokens and the states of their rows."""
    target = LlamaTarget(
        tiny.target(tmp_path_factory.mktemp("target") / "t.gguf"), n_ctx=64, capture_layers=tiny.LAYERS, **STRICT
    )
    ids = np.random.default_rng(4).integers(3, tiny.V, 31)
    target.decode(ids[:-1], logits="none")
    yield target, ids[1:], target.features().copy()
    target.close()


@pytest.mark.parametrize(("feature_norm", "feedback", "residual"), SWITCHES)
def test_state_magnitudes_and_drafts_are_one_over_the_chain(feature_norm, feedback, residual, prefix, tmp_path):
    target, tokens, features = prefix
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm=feature_norm, feedback=feedback, residual=residual)
    config, weights = read_drafter(path)

    reference, rows = Eagle3Drafter(config, weights), []
    reference.probe = rows.append
    reference.extend(tokens, features)
    drafted = reference.draft(DEPTH + 1).tokens.tolist()
    by_reference = [float(magnitude(row.state_out)[-1]) for row in rows]

    llama, states = LlamaEagle3Drafter(path, target, **STRICT), []
    llama.probe = lambda depth, logits, state: states.append(state[None])
    llama.extend(tokens, features)
    assert llama.draft(DEPTH + 1).tokens.tolist() == drafted
    llama.close()
    if config.feedback is Feedback.POST_NORM:
        states = [ops.rms_norm(state, weights["output_norm"], config.rms_eps) for state in states]
    by_llama = [float(magnitude(state)[0]) for state in states]

    twin = torch_twin(config, weights)
    steps = forced_chain(twin, tokens, features, drafted, DEPTH)
    by_training = [float(magnitude(step.state_out[0].numpy())[0]) for step in steps]
    assert [argmax(twin, step) for step in steps] == drafted[:DEPTH]

    assert len(by_training) == DEPTH and max(by_reference) > 0.1
    np.testing.assert_allclose(by_llama[:DEPTH], by_reference[:DEPTH], rtol=1e-4)
    np.testing.assert_allclose(by_training, by_reference[:DEPTH], rtol=1e-4)
    own = [float(row.attention[:, -1, len(tokens) :].sum(-1).mean()) for row in rows[:DEPTH]]
    # what the regularizer weighs is what drift measures
    np.testing.assert_allclose([float(step.own_mass) for step in steps], own, atol=1e-5)


@pytest.mark.skipif(not (embedded.folder() / embedded.TARGET).exists(), reason="refspec/models/target.gguf is absent")
def test_acceptance_over_the_embedded_target_s_text_is_one_for_all_three():
    target, drafters, _ = load_pairs(None, [], threads=1, strict=True, engine="llama")
    names = {
        path: embedded.path(path)
        for path in (embedded.DRAFTER, embedded.DRAFTER_PRENORM)
        if (embedded.folder() / path).exists()
    }
    with Session(target) as session:
        prompt = session.encode("Tom has 5 apples and buys 7 more. How many apples does he have now?")
        text = record(target, prompt, target.capture_layers, max_tokens=24, sampler=Sampler(), seed=0)
        for name, llama in zip(names, drafters.values(), strict=True):
            config, weights = read_drafter(names[name])
            features = select(text.features, target.capture_layers, config.capture_layers)
            three = [llama, Eagle3Drafter(config, weights), TorchDrafter(torch_twin(config, weights))]
            found = [acceptance.follow(drafter, text, features, [DEPTH])[DEPTH] for drafter in three]
            assert len({(s.verify_steps, tuple(s.judged), tuple(s.accepted)) for s in found}) == 1, name
            assert found[0].accepted[0] > 0 and len(found[0].judged) == DEPTH
            llama.close()
