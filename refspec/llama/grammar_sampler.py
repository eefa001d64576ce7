"""llama.cpp's own grammar sampler, to be compared with: greedy decoding under a GBNF grammar, one token a call."""

from __future__ import annotations

from collections.abc import Iterator

from refspec.errors import BackendError
from refspec.llama import api
from refspec.llama.target import LlamaTarget


def gbnf_of_schema(schema: str) -> str:
    """What llama.cpp's converter makes of a JSON schema."""
    return str(api.schema_to_gbnf(schema))


def constrained(target: LlamaTarget, pending: int, grammar: str, max_tokens: int) -> Iterator[int]:
    """The tokens after what the target holds and `pending`, up to an end token; BackendError for another grammar."""
    chain = api.sampler_chain(api.chain_params())
    grammar_part = api.sampler_grammar(target.model.vocab, grammar.encode(), b"root")
    if not grammar_part:
        api.sampler_free(chain)
        raise BackendError("llama.cpp does not read this grammar; leave the comparison out")
    api.sampler_chain_add(chain, grammar_part)
    api.sampler_chain_add(chain, api.sampler_greedy())
    try:
        for _ in range(max_tokens):
            target.decode([pending], logits="all")
            pending = int(api.sampler_sample(chain, target.context.handle, -1))
            yield pending
            if pending in target.end_tokens:
                return
    finally:
        api.sampler_free(chain)
