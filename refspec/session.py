"""The Python API: load a pair once, stream text with a record of every verify step, close.

    import refspec

    with refspec.load() as session:                      # the embedded pair; or load("target.gguf", "drafter.gguf")
        generation = session.generate("Why is the sky blue?", max_tokens=100)
        for event in generation:
            print(event.text, end="", flush=True)        # event.step: what was drafted, accepted, decided, and its cost
        print(generation.statistics.tau)

A session holds one KV cache, so it runs one generation at a time; starting the next ends the one before. What a prompt
has in common with the one before and its output is not read again (`decoding/kept.py`): a chat costs its new turns. A
session takes one caller at a time: a second thread in it gets a UsageError. `Generation.stop` is for any thread.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from refspec import embedded, named, native
from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.tree_policy import TreePolicy
from refspec.decoding import chat
from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.drafter import Drafter
from refspec.decoding.generation import Event, Generation, Latest
from refspec.decoding.grammars import Grammars
from refspec.decoding.kept import Kept
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.target import Target
from refspec.errors import BackendError, PromptError, UsageError
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_gguf_header
from refspec.gguf.recast import cache_directory, is_f32, recast
from refspec.grammar.nodes import Grammar
from refspec.options import (
    ADAPTIVE_MAX,
    DRAFT_LIMIT,
    DRAFT_MAX,
    EXACT_LIMIT,
    DraftOptions,
    ModelOptions,
    draft_length,
    gathered,
    whole,
)
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape
from refspec.tuning import step_costs, store
from refspec.tuning.policy_store import Memory
from refspec.tuning.store import NOT_TUNED, Found

if TYPE_CHECKING:
    from refspec.llama.target import LlamaTarget

__all__ = [
    "ADAPTIVE_MAX", "DRAFT_LIMIT", "DRAFT_MAX", "EXACT_LIMIT", "GREEDY", "DraftOptions", "Event", "Generation",
    "ModelOptions", "Session", "load",
]  # fmt: skip

GREEDY = Sampler()
Name = str | os.PathLike[str] | None
Policy = ChainPolicy | TreePolicy


def load(
    model: Name = None, drafter: Name = None, *, model_options: ModelOptions | None = None,
    draft_options: DraftOptions | None = None, **keywords: Any,
) -> Session:  # fmt: skip
    """Load a target GGUF, or the embedded pair, and a drafter for it: EAGLE-3, or any small GGUF of its vocabulary.

    Both are files, or names: "embedded", "smollm2", "hf:OWNER/REPO[:FILE]" (`refspec.named`). Every field of
    `ModelOptions` and `DraftOptions` is a keyword too, which wins: `load("target.gguf", "drafter.gguf", threads=8)`.
    What nothing says is as `refspec tune` stored it, else a default; `Session.notes` tells what was chosen. Raises
    CheckpointError (a file), ShapeError (other target), BackendError (llama.cpp, this machine), UsageError.
    """
    native.check()  # REFSPEC_BACKEND may ask for what is not there
    how, drafting = gathered(model_options, draft_options, _modern(keywords))
    _check_matmul(how)
    pair = named.pair(model, drafter)
    model, drafter, measured = pair.model, pair.drafter, dict(pair.defaults)
    sampler = Sampler(penalties=Penalties(**measured.get("penalties", {})))
    tuned = store.find(model, drafter) if drafting.tuned and not how.f32 else NOT_TUNED
    measured |= tuned.chosen
    how = how.settled(measured)
    limit = EXACT_LIMIT if how.exact else DRAFT_LIMIT
    drafting = drafting.settled(measured, drafter=drafter is not None, limit=limit)
    model_file = _header(model, f32=how.f32)
    drafter_file = None if drafter is None else _header(drafter, f32=how.f32)
    target, loaded = _opened(model_file, drafter_file, how, drafting)
    memory = None
    if drafting.tuned:
        about = _placed(target, how, drafting, tuned)
        memory = Memory(model_file.path, drafter_file.path if drafter_file else None, about)
    session = Session(
        target, loaded, draft_max=drafting.length, draft_limit=limit, name=str(model), tree=drafting.shape,
        adaptive=bool(drafting.adaptive), sampler=sampler, tuned=tuned,
        batch_invariant=how.exact or (how.f32 and drafting.shape is None and is_f32(target.info)),
        memory=memory,
    )  # fmt: skip
    session.notes += [*(pair.notes if loaded is not None else ()), *_notes(session, how)]
    return session


def _modern(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords with `exact`, `strict`, `panels` and `repack` of refspec 0.1 as `reproducible` and `matmul`."""
    old = {name: keywords[name] for name in ("exact", "strict", "panels", "repack") if name in keywords}
    if not old:
        return keywords
    from refspec.llama.amx import repacking_works

    asked = {name for name, value in old.items() if value}
    for pair in ({"exact", "strict"}, {"panels", "repack"}):
        if pair <= asked:
            raise UsageError(f"{' and '.join(sorted(pair))} exclude each other; leave one of them out")
    new: dict[str, Any] = {}
    if asked & {"exact", "strict"}:
        new["reproducible"] = "exact" if "exact" in asked else "f32"
    if asked & {"panels", "repack"}:
        new["matmul"] = "refspec" if "panels" in asked else "repack"
    elif old.get("repack") is False or old.get("panels") is False:
        new["matmul"] = "repack" if old.get("repack") is None and repacking_works() else "stored"
    said = ", ".join(f"{name}={value!r}" for name, value in new.items()) or "the defaults"
    warnings.warn(f"load: {', '.join(old)} will go with the next release; use {said}", DeprecationWarning, stacklevel=3)
    return {name: value for name, value in keywords.items() if name not in old} | new


def _check_matmul(how: ModelOptions) -> None:
    """BackendError where the kernels that `matmul` insists on do not work here."""
    from refspec.llama.amx import REFUSED, repacking_works
    from refspec.llama.weights import why_not

    if how.matmul == "refspec" and (reason := why_not()) is not None:
        raise BackendError(f"matmul = refspec: refspec's kernels cannot multiply here: {reason}; use auto")
    if how.matmul == "repack" and not repacking_works():
        raise BackendError(REFUSED)


def _header(name: str | os.PathLike[str], *, f32: bool) -> GgufInfo:
    """The header of a file, with `f32` of its copy with F32 weights."""
    header = read_gguf_header(name)
    return read_gguf_header(recast(header, "f32")) if f32 and not is_f32(header) else header


def _opened(
    model: GgufInfo, drafter: GgufInfo | None, how: ModelOptions, drafting: DraftOptions
) -> tuple[LlamaTarget, Drafter | None]:
    """Both models, their options settled; what `matmul` means for llama.cpp is said here and nowhere else."""
    from refspec.llama import first_load, open_pair

    open_pair.check_grower(drafter, drafting.shape)
    if model.path.parent != embedded.folder():
        first_load.check(model, drafter)
    settings: dict[str, Any] = {
        "n_threads": how.threads, "n_threads_batch": how.threads_batch, "n_gpu_layers": how.gpu_layers,
        "flash_attn": how.flash_attn, "panels": how.matmul in ("auto", "refspec"),
    }  # fmt: skip
    target = open_pair.make_target(
        model, tree=drafting.shape, n_ctx=how.n_ctx, capture_layers=open_pair.capture_layers(drafter),
        rewind=drafter is not None or bool(drafting.lookup), repack=how.matmul != "stored" and not how.exact,
        kv_type=how.kv_type, pair_rows=bool(how.pair_rows), **settings,
    )  # fmt: skip
    try:
        if how.matmul == "refspec" and target.model.packed is None:
            raise BackendError(
                f"matmul = refspec: {target.path} has no matrices for refspec's kernels, or memory no room; use auto"
            )
        if how.exact and (size := target.smallest_differing_batch()) is not None:
            raise BackendError(
                f"reproducible = exact: llama.cpp rounds a token's logits otherwise among {size} tokens than alone, so "
                "equal output cannot be promised here; use f32"
            )
        if how.threads_draft is not None:
            settings |= {"n_threads": how.threads_draft, "n_threads_batch": how.threads_draft}
        settings["kv_type"] = "f32" if how.f32 else "f16"  # kv_type is about the target's cache
        what: dict[str, Any] = {"lookup": bool(drafting.lookup), "tree": drafting.shape}
        what["kernels"] = drafting.drafter_kernels
        return target, open_pair.make_drafter(drafter, target, **what, **settings)
    except BaseException:
        target.close()
        raise


def _placed(target: LlamaTarget, how: ModelOptions, drafting: DraftOptions, tuned: Found) -> dict[str, Any]:
    """All that changes what steps cost, by which learned policies are kept apart."""
    about = asdict(how) | {"tree": str(drafting.shape), "lookup": drafting.lookup, "kernels": drafting.drafter_kernels}
    del about["n_ctx"]
    about |= {"repack": target.model.repack, "panels": target.model.packed is not None, "pair_rows": target.pair_rows}
    return about | {"costs": tuned.costs()}


def _notes(session: Session, how: ModelOptions) -> list[str]:
    """What a user should be told of how a session was loaded."""
    from refspec.llama import open_pair

    notes = open_pair.notes(session.target, session.drafter)
    if session.tuned.record:
        chosen = store.described(session.tuned.chosen)
        notes.append(f"as tuned: {chosen} (--no-tune, or tuned=False, ignores it; options win)")
    elif session.tuned.why:
        notes.append(session.tuned.why)
    if how.f32 and not session.batch_invariant:
        what = "the nodes of trees" if session.tree else "weights that are not F32"
        notes.append(f"reproducible = f32: {what} still round differently in batches of different shapes")
    return notes


class Session:
    """A target, with or without a drafter, ready to generate; a context manager that closes both. `load` makes one.

    Dropped without `close`, it frees the models with the last reference to it and its generations, and forgets what its
    policy has learned.

    target, drafter   the models (`decoding/target.py`, `decoding/drafter.py`); drafter None means plain decoding
    draft_max         draft tokens per verify step where `generate` does not say otherwise
    draft_limit       the most draft tokens per verify step that `generate` may be asked for
    name              the target's file, for messages
    tree              the shape of draft trees, for a TreeTarget and a TreeDrafter; None drafts chains
    batch_invariant   a position's logits are the same bits in every batch of a chain, so output is reproducible
    adaptive          the draft length, or a tree's nodes, are chosen every step where `generate` does not say otherwise
    sampler           the distribution where `generate` is not given one: greedy, of the embedded pair with penalties
    tuned             what `refspec tune` stored for this pair; without it, what steps cost is measured before the first
                      adaptive generation
    policy            chooses how much to draft, with all it has learned; None before the first adaptive generation
    memory            where the policy is kept for the next session
    notes             lines that a user should read
    grammars          grammars as automata over the target's tokens, each made once
    """

    def __init__(
        self, target: Target, drafter: Drafter | None = None, *, draft_max: int = DRAFT_MAX,
        draft_limit: int = DRAFT_LIMIT, name: str = "target", tree: TreeShape | None = None,
        batch_invariant: bool = False, adaptive: bool = False, sampler: Sampler = GREEDY, tuned: Found = NOT_TUNED,
        memory: Memory | None = None,
    ) -> None:  # fmt: skip
        self.target, self.drafter = target, drafter
        self.draft_max, self.draft_limit, self.name, self.tree = draft_max, draft_limit, name, tree
        self.batch_invariant, self.adaptive, self.sampler, self.tuned = batch_invariant, adaptive, sampler, tuned
        self.memory = memory
        self.policy: Policy | None = None
        self.notes: list[str] = []
        self._deferred: DeferredDrafter | None = None
        self._control: list[str] | None = None  # names of control tokens, once a template asks
        self._latest, self._kept = Latest(), Kept(whole=batch_invariant)
        self.grammars = Grammars(target, cache_directory())

    def encode(
        self, prompt: str | Sequence[chat.Message], *, system: str | None = None, raw: bool = False
    ) -> list[int]:
        """Tokens of a prompt: through the chat template of the target's file, or as it is when `raw` or without one.

        A string is one user message, after `system` if given. Names of control tokens in messages, or in a prompt that
        is not `raw`, are text like any other. Raises PromptError (empty), CheckpointError (the template
        fails), UsageError (messages or a system prompt without a template).
        """
        template = None if raw else self.chat_template
        if template is None:
            if system is not None or not isinstance(prompt, str):
                why = "raw" if raw else f"{self.name} has no chat template"
                raise UsageError(
                    f"a system prompt and messages need a chat template, and here is none ({why}); "
                    "put all into the prompt"
                )
            tokens = self.target.tokenize(prompt, add_special=True, parse_special=raw)
            if not tokens:
                raise PromptError(f"the prompt is empty and {self.name} has no token to begin with; write something")
            return list(tokens)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("the prompt is empty; write something, or use raw (--raw) to start from nothing")
            prompt = [{"role": "user", "content": prompt}]
        if system is not None:
            prompt = [{"role": "system", "content": system}, *prompt]
        if self._control is None:
            self._control = chat.control_tokens(self.target.metadata)
        contents = chat.Contents(self.target, prompt, template, self._control)
        return contents.tokens(self.render(contents.messages, template))

    def render(self, messages: Sequence[chat.Message], template: str) -> str:
        """Messages in a Jinja template, without a BOS that the tokenizer adds; CheckpointError when it fails."""
        text = chat.render(template, messages, bos=self._special("bos"), eos=self._special("eos"), source=self.name)
        return text.removeprefix(self._special("bos")) if self.target.add_bos else text

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the target's file, None when it has none."""
        return self.target.metadata.get("tokenizer.chat_template") or None

    def _special(self, name: str) -> str:
        token = self.target.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return "" if token is None else self.target.token_to_bytes(int(token), special=True).decode("utf-8", "replace")

    def generate(
        self, prompt: str | Sequence[chat.Message] | None = None, *, tokens: Sequence[int] | None = None,
        max_tokens: int = 256, sampler: Sampler | None = None, seed: int = 0, draft_max: int | None = None,
        speculate: bool = True, draft_sampling: bool = False, adaptive: bool | None = None,
        policy: Policy | None = None, system: str | None = None, raw: bool = False, fresh: bool = False,
        grammar: Grammar | None = None, fidelity: str = "local",
    ) -> Generation:  # fmt: skip
        """Start a generation from a prompt, chat messages, or `tokens` [N]; nothing runs until it is iterated.

        It stops after max_tokens tokens, at an end-of-generation token, or when the context is full. `sampler` defines
        the distribution, `seed` its coins, one per output position. With deterministic drafts (`verify_deterministic`)
        the tokens depend on prompt, sampler and seed only, up to the engine's rounding; `draft_sampling` is Leviathan
        2023, Alg. 1 (`verify_rejection`), which keeps the distribution. `speculate=False` or draft_max 0 decodes
        plainly. `adaptive` chooses the draft length, at most draft_max, by the session's policy or the one given; the
        first such call may measure what steps cost, for at most 0.4 s. `system` and `raw` are as in `encode`.
        `fresh` reads the whole prompt, whatever is held of it.

        With a `grammar` (`refspec.grammar`: `json_schema(...)`, `regex(...)`, `gbnf(...)`) every output matches it and
        ends within max_tokens and the context. `fidelity` says which distribution: `local` masks the next token, every
        other approaches the model given that the whole output matches (`grammar/future.py`), `exact` is that.

        Raises PromptError (empty, or longer than the context), UsageError (a setting), CheckpointError (the chat
        template); iterating it may raise BackendError (llama.cpp failed, or logits that are not finite).
        """
        if (prompt is None) == (tokens is None):
            raise UsageError("give either a prompt or tokens, and not both")
        whole("max_tokens", max_tokens)
        draft_max = draft_length(self.draft_max if draft_max is None else draft_max, self.draft_limit)
        encoded = self._known(tokens) if tokens is not None else self.encode(prompt or "", system=system, raw=raw)
        if not encoded:
            raise PromptError("the prompt has no tokens; give at least one")
        if len(encoded) > self.target.n_ctx:
            raise PromptError(
                f"the prompt has {len(encoded)} tokens, the context {self.target.n_ctx}; shorten it or raise n_ctx (-c)"
            )
        drafter = self.drafter if speculate and draft_max > 0 else None
        with self._latest.turn():
            if fresh:
                self._kept.forget()
            return self._started(
                encoded, drafter, sampler=sampler, seed=seed, max_tokens=max_tokens, draft_max=draft_max,
                draft_sampling=draft_sampling, adaptive=adaptive, policy=policy, grammar=grammar, fidelity=fidelity,
            )  # fmt: skip

    def _started(
        self, encoded: list[int], drafter: Drafter | None, *, sampler: Sampler | None, seed: int, max_tokens: int,
        draft_max: int, draft_sampling: bool, adaptive: bool | None, policy: Policy | None, grammar: Grammar | None,
        fidelity: str,
    ) -> Generation:  # fmt: skip
        options: dict[str, Any] = {
            "sampler": self.sampler if sampler is None else sampler, "seed": seed, "max_tokens": max_tokens,
            "draft_sampling": draft_sampling,
        }  # fmt: skip
        shape = None if drafter is None else self.tree
        if shape is None:
            options["draft_max"] = draft_max
        else:
            options["shape"] = shape._replace(nodes=min(draft_max, shape.nodes))
        if drafter is not None and (policy is not None or (self.adaptive if adaptive is None else adaptive)):
            policy = self._policy(draft_max) if policy is None else policy
            policy.begin(len(encoded) - 1)
            drafter, options["policy"] = self._deferring(drafter, policy), policy
        most = min(max_tokens, self.target.n_ctx - len(encoded) + 1)
        constrained = self.grammars.constrained(grammar, fidelity, most, trees=shape is not None)
        # plain decoding is measured without what only a drafter needs
        self.target.capturing = drafter is not None and bool(drafter.capture_layers)
        return Generation(
            self.target, drafter, encoded, options, trees=shape is not None, is_latest=self._latest, kept=self._kept,
            **constrained,
        )  # fmt: skip

    def _deferring(self, drafter: Drafter, policy: Policy) -> Drafter:
        """The drafter, its rows waiting while the policy says so; kept, for new buffers cost page faults."""
        if isinstance(drafter, LookupDrafter):
            return drafter
        if self._deferred is None or self._deferred.inner is not drafter:
            self._deferred = DeferredDrafter(drafter, policy.waiting)
        self._deferred.waiting = policy.waiting
        return self._deferred

    def _policy(self, most: int) -> Policy:
        """The session's policy; another one when the limit changes."""
        if self.policy is None or self.policy.most != most:
            self._remember()
            kind: type[Policy] = ChainPolicy if self.tree is None else TreePolicy
            known = self.tuned.costs() or step_costs.measure_in_time(self.target, self.drafter)
            self.policy = self.memory.find(kind, most, Costs.of(known) if known else None) if self.memory else None
            if self.policy is None:
                self.policy = kind(most, Costs.of(known))
        return self.policy

    def _remember(self) -> None:
        if self.memory is not None and self.policy is not None and self.policy.remembered:
            self.memory.keep(self.policy)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        for token in tokens:
            if not isinstance(token, (int, np.integer)) or not 0 <= token < self.target.n_vocab:
                raise UsageError(f"tokens: {token!r} is not a token id in 0..{self.target.n_vocab - 1}")
        return [int(token) for token in tokens]

    def close(self) -> None:
        """Release both models, and keep what the policy has learned; calling it twice is harmless.

        Waits for a step that another thread is in.
        """
        with self._latest.turn(wait=True):
            self._remember()
            if self.drafter is not None:
                self.drafter.close()  # first: it may borrow weights of the target
            self.target.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
