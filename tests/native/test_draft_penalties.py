"""Drafting under the target's penalties: the reference chooses by penalized logits, and C chooses the same."""

import numpy as np
import pytest
from small_drafters import small_config, small_rows, small_weights

from refspec import native
from refspec.decoding.draft_penalties import DraftPenalties
from refspec.native.penalties import Penalizer
from refspec.reference import eagle3
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.penalties import Penalties, penalize
from refspec.reference.sampling import Sampler

CONFIG = small_config()
WEIGHTS = small_weights(CONFIG)
TOKENS, FEATURES = small_rows(CONFIG, 9)
TOKENS = TOKENS.astype(np.int32)
K = 6
LAWS = {
    "counting": Penalties(repeat=1.5, presence=2.0, frequency=0.7, repeat_last_n=8),
    "never again": Penalties(presence=1e6, repeat_last_n=-1),
    "dry": Penalties(dry_multiplier=30.0, dry_allowed_length=1, dry_breakers=()),
}


def told(penalties: Penalties, first: int) -> DraftPenalties:
    """As a target would tell it: row P has token x_{P+1}, so after 9 rows the pending token stands at position 9."""
    text = np.zeros(40, np.int32)
    text[1 : len(TOKENS)] = TOKENS[:-1]
    made = DraftPenalties(Penalizer(penalties, CONFIG.vocab_size, len(text)), text, first, CONFIG.vocab_size)
    made.begin(int(TOKENS[-1]), len(TOKENS))
    return made


def reference() -> Eagle3Drafter:
    drafter = Eagle3Drafter(CONFIG, WEIGHTS)
    drafter.extend(TOKENS, FEATURES)
    return drafter


@pytest.mark.parametrize("first", [0, 4, 9, 12, 30])  # 12: only drafted tokens count, and not all; 30: nothing does
@pytest.mark.parametrize("law", LAWS)
def test_each_token_is_the_best_under_the_penalties_of_what_stands_before_it(monkeypatch, law, first):
    seen = []
    monkeypatch.setattr(eagle3, "head", lambda *args, head=eagle3.head: seen.append(head(*args)) or seen[-1])
    drafter, plain = reference(), reference()
    drafter.penalties = told(LAWS[law], first)
    drafted = drafter.draft(K).tokens.tolist()
    assert len(drafted) == K
    for i, (token, raw) in enumerate(zip(drafted, list(seen), strict=True)):
        whole = np.full(CONFIG.vocab_size, -np.inf, np.float32)
        whole[drafter.d2t] = raw[0]
        history = [0, *TOKENS.tolist(), *drafted[:i]][first:]
        assert token == int(penalize(whole, history, LAWS[law]).argmax())
    if first == 0 and law == "never again":
        assert len({*TOKENS.tolist(), *drafted}) == len({*TOKENS.tolist()}) + K
    unchanged = plain.draft(K).tokens.tolist()
    assert (drafted == unchanged) if first == 30 else True
    drafter.penalties = None
    assert drafter.draft(K).tokens.tolist() == unchanged


@pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
@pytest.mark.parametrize("first", [0, 4, 12, 30])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("d2t", [True, False])
def test_c_drafts_the_same(law, first, d2t):
    config = CONFIG if d2t else small_config(draft_vocab_size=CONFIG.vocab_size)
    weights = WEIGHTS if d2t else {k: v for k, v in small_weights(config).items() if k != "d2t"}
    drafter = Eagle3Drafter(config, weights)
    drafter.extend(TOKENS, FEATURES)
    drafter.penalties = told(LAWS[law], first)
    wanted = drafter.draft(K)
    chain = native.Eagle3Chain(config, weights, 40)
    assert chain.extend(TOKENS, np.ascontiguousarray(FEATURES, np.float32), 0) == native.lib.RS_OK
    tokens, confidence = np.zeros(K, np.int32), np.zeros(K, np.float32)
    made = told(LAWS[law], first)
    chain.under(made)
    for pieces in (1, K):  # at once, and as one that may stop after every token drafts
        made.begin(int(TOKENS[-1]), len(TOKENS))
        chain.restart()
        step = K // pieces
        for i in range(0, K, step):
            chain.decide(made.decided + i)
            assert chain.draft(tokens[i : i + step], confidence[i : i + step], len(TOKENS) + i) == native.lib.RS_OK
            if i + step < K:
                assert chain.follow(int(tokens[i + step - 1]), len(TOKENS) + i + step - 1) == native.lib.RS_OK
        assert tokens.tolist() == wanted.tokens.tolist()
        np.testing.assert_allclose(confidence, wanted.confidence, rtol=1e-4)
    chain.under(None)
    chain.restart()
    assert chain.draft(tokens, confidence, len(TOKENS)) == native.lib.RS_OK
    drafter.penalties = None
    assert tokens.tolist() == drafter.draft(K).tokens.tolist()


def test_sampled_drafts_are_drawn_from_the_penalized_law():
    drafter = reference()
    drafter.penalties = told(LAWS["never again"], 0)
    draft = drafter.draft(K, coins=np.full(K, 0.7), sampler=Sampler(temperature=1.0))
    for i in range(K):
        before = {0, *TOKENS.tolist(), *draft.tokens[:i].tolist()}
        assert not draft.q_draft[i][sorted(before)].any() and np.isclose(draft.q_draft[i].sum(), 1)
