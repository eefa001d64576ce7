"""The Python API on a toy pair: prompts, events, statistics, and what ends a generation."""

import gc
import math
import weakref

import pytest
from loop_toys import Noisy, Perfect, ToyTarget

from refspec.decoding import cycle, generation, lookup
from refspec.errors import CheckpointError, PromptError, UsageError
from refspec.reference.sampling import Sampler
from refspec.session import Session
from refspec.tuning.store import Found

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
EURO = [b"a", b"\xe2", b"\x82", b"\xac", b"\xff", b" ", b"!"]


def session(target=None, drafter=Noisy, **options):
    target = target or ToyTarget(n_ctx=300, end=())
    return Session(target, drafter and drafter(target), draft_max=3, **options)


def test_events_add_up_to_the_text_and_the_tokens():
    with session(ToyTarget(n_ctx=300, end=(), pieces=EURO)) as s:
        generation = s.generate("hello", raw=True, max_tokens=100)
        events = list(generation)
    tokens = [token for event in events for token in event.step.tokens]
    assert tokens == generation.tokens and len(tokens) == 100
    assert "".join(event.text for event in events) == generation.text
    assert generation.text == b"".join(EURO[token] for token in tokens).decode("utf-8", "replace")
    assert generation.statistics.stop == "length"
    assert generation.statistics.prompt_tokens == 5


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_plain_and_speculative_text_are_equal(temperature):
    s = session()
    sampler = Sampler(temperature=temperature)
    plain = s.generate("hello", raw=True, sampler=sampler, seed=7, speculate=False)
    plain_text = "".join(event.text for event in plain)
    fast = s.generate("hello", raw=True, sampler=sampler, seed=7)
    assert "".join(event.text for event in fast) == plain_text
    assert plain.statistics.tau == 1.0 and fast.statistics.tau > 1.0
    assert plain.statistics.seconds.drafter == 0.0


def test_plain_text_of_a_seed_is_the_same_with_draft_sampling():
    s = session()
    options = {"raw": True, "sampler": Sampler(temperature=0.8), "seed": 7, "speculate": False}
    texts = ["".join(e.text for e in s.generate("hello", draft_sampling=asked, **options)) for asked in (False, True)]
    assert texts[0] == texts[1] != ""


def test_an_end_token_prints_nothing_and_counts_as_generated():
    target = ToyTarget(n_ctx=300, salt=1)
    generation = session(target).generate("q", raw=True, max_tokens=200)
    text = "".join(event.text for event in generation)
    assert generation.statistics.stop == "end"
    assert len(text) == len(generation.tokens) - 1 == generation.statistics.generated_tokens - 1


def test_a_full_context_stops_cleanly_and_keeps_what_was_generated():
    generation = session(ToyTarget(n_ctx=12, end=())).generate("hello", raw=True, max_tokens=100)
    assert len("".join(event.text for event in generation)) == 12 - 5 + 1
    assert generation.statistics.stop == "context"


def test_a_prompt_may_fill_the_context_but_not_exceed_it():
    s = session(ToyTarget(n_ctx=5, end=()))
    assert len(list(s.generate("hello", raw=True))) == 1
    with pytest.raises(PromptError, match="6 tokens, the context 5"):
        s.generate("hello!", raw=True)


def test_stop_ends_after_the_step_under_way_and_keeps_the_statistics():
    generation = session(drafter=Perfect).generate("hello", raw=True, max_tokens=100)
    next(generation)
    generation.stop()
    assert list(generation) == []
    assert generation.statistics.stop == "interrupted"
    assert generation.statistics.verify_steps == 1 and len(generation.tokens) == 4


def test_stop_before_the_first_step_generates_nothing():
    generation = session().generate("hello", raw=True)
    generation.stop()
    assert list(generation) == [] and generation.statistics.stop == "interrupted"


def test_zero_tokens_are_allowed():
    generation = session().generate("hello", raw=True, max_tokens=0)
    assert list(generation) == [] and generation.statistics.stop == "length"


def test_a_later_generation_ends_the_one_before():
    s = session()
    first = s.generate("hello", raw=True)
    next(first)
    next(s.generate("other", raw=True))
    with pytest.raises(UsageError, match="ended by a later one"):
        next(first)


def test_templates_are_applied_unless_raw():
    s = session(ToyTarget(n_ctx=300, template=TEMPLATE))
    text = s.target.tokenize("[system]S[user]U")
    assert s.encode("U", system="S") == text
    assert s.encode([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]) == text
    assert s.encode("U", raw=True) == s.target.tokenize("U")


def test_bos_is_there_once_whether_or_not_the_template_writes_it():
    for template in (TEMPLATE, "{{ bos_token }}" + TEMPLATE):
        target = ToyTarget(n_ctx=300, template=template, bos=True)
        target.metadata["tokenizer.ggml.bos_token_id"] = 0
        assert session(target).encode("U") == target.tokenize("[user]U")


@pytest.mark.parametrize(
    "template, options, error",
    [
        (None, {"prompt": ""}, PromptError),
        (TEMPLATE, {"prompt": " \n"}, PromptError),
        (TEMPLATE, {"prompt": "x", "system": "S", "raw": True}, UsageError),
        (None, {"prompt": "x", "system": "S"}, UsageError),
        (None, {"prompt": [{"role": "user", "content": "x"}]}, UsageError),
        ("{% for %}", {"prompt": "x"}, CheckpointError),
        (None, {"prompt": "x", "max_tokens": -1}, UsageError),
        (None, {"prompt": "x", "draft_max": -1}, UsageError),
        (None, {}, UsageError),
        (None, {"tokens": []}, PromptError),
        (None, {"prompt": "x", "tokens": [1]}, UsageError),
        (None, {"tokens": [1, 2**33]}, UsageError),
        (None, {"tokens": [-1, 1]}, UsageError),
        (None, {"tokens": [1.5]}, UsageError),
        (None, {"prompt": "x", "max_tokens": 2.5}, UsageError),
        (None, {"prompt": "x", "draft_max": "3"}, UsageError),
        (None, {"prompt": "x", "draft_max": 65}, UsageError),
    ],
)
def test_what_cannot_be_used_is_one_line(template, options, error):
    with pytest.raises(error) as caught:
        session(ToyTarget(template=template)).generate(**options)
    assert "\n" not in str(caught.value)


def test_an_empty_raw_prompt_starts_from_bos():
    target = ToyTarget(bos=True, end=())
    assert session(target).generate("", raw=True).prompt == [0]


def test_close_releases_drafter_and_target():
    with session() as s:
        pass
    assert s.target.closed and s.drafter.closed


@pytest.mark.parametrize("adaptive", [False, True])
def test_models_are_freed_with_the_last_reference_to_them(adaptive):
    target = ToyTarget(n_ctx=300, end=())
    s = session(target, adaptive=adaptive)
    generation = s.generate("hello", raw=True)
    next(generation)
    kept = [weakref.ref(x) for x in (s, target, s.drafter)]
    gc.disable()  # nothing waits for the collector of reference cycles
    try:
        del s, target
        assert kept[0]() is None and kept[1]() is not None and kept[2]() is not None
        assert next(generation).step.tokens, "a generation keeps its models alive"
        del generation
        assert [ref() for ref in kept] == [None] * 3
    finally:
        gc.enable()


def test_a_generation_that_was_never_started_is_ended_by_a_later_one_too():
    s = session()
    first, second = s.generate("hello", raw=True), s.generate("other", raw=True)
    with pytest.raises(UsageError, match="ended by a later one"):
        next(first)
    assert list(first) == [], "it has ended"
    assert len(list(second)) > 0


class TimedTarget(ToyTarget):
    """A clock that only its decodes move: 0.7 + 0.3 r for r tokens."""

    now = 0.0

    def decode(self, tokens, *, logits="all"):
        took = 0.7 + 0.3 * len(tokens)
        self.now, self.seconds = self.now + took, self.seconds + took
        return super().decode(tokens, logits=logits)


class Silent(lookup.LookupDrafter):
    """Prompt lookup that gives no confidence."""

    def draft(self, k, *, stop=None, **options):
        return super().draft(k, stop=stop and (lambda i, confidence: stop(i, math.nan)), **options)


@pytest.mark.parametrize("drafter", [lookup.LookupDrafter, Silent])
def test_prompt_lookup_that_never_helps_is_given_up(drafter, monkeypatch):
    target = TimedTarget(n_vocab=13, n_ctx=400, end=())
    for module in (cycle, generation, lookup):
        monkeypatch.setattr(module, "perf_counter", lambda: target.now)
    costs = {"target": {r: 0.7 + 0.3 * r for r in range(1, 10)}, "switch": 0.0, "feed": 0.0, "draft": 0.0}
    s = Session(target, drafter(), draft_max=8, adaptive=True, tuned=Found({"costs": costs}, ""))
    run = s.generate("hello", raw=True, max_tokens=200)
    drafted = [len(event.step.draft) for event in run]
    spent, target.now = target.now, 0.0
    plain = s.generate("hello", raw=True, max_tokens=200, speculate=False)
    list(plain)
    assert run.tokens == plain.tokens
    assert 0 < sum(drafted) < 30 and sum(drafted[-100:]) <= 5, "plain decoding, but for a try now and then"
    assert spent < 1.05 * target.now, "where three tokens at a time would take 1.8 times as long"
