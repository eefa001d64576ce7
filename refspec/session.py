"""The Python API: load a pair once, stream text with a record of every verify step, close.

    import refspec

    with refspec.load() as session:                      # the embedded pair; or load("target.gguf", "drafter.gguf")
        generation = session.generate("Why is the sky blue?", max_tokens=100)
        for event in generation:
            print(event.text, end="", flush=True)        # event.step: what was drafted, accepted, decided, and its cost
        print(generation.statistics.tau)

Not an engine: models are `refspec.targets` and `refspec.drafters`, the cycle is `speculate.py`. A session holds one KV
cache, so it runs one generation at a time; starting the next ends the one before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from refspec import embedded, native
from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.tree_policy import TreePolicy
from refspec.decoding import chat
from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.drafter import Drafter
from refspec.decoding.generation import Event, Generation
from refspec.decoding.target import Target
from refspec.errors import BackendError, PromptError, UsageError
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape
from refspec.tuning.policy_store import Memory
from refspec.tuning.store import Found

if TYPE_CHECKING:
    from refspec.llama.native_eagle3 import Kernels

__all__ = ["ADAPTIVE_MAX", "DRAFT_LIMIT", "DRAFT_MAX", "GREEDY", "Event", "Generation", "Session", "load"]

DRAFT_MAX = 3  # draft length where nothing measured says better: verification is dear on a CPU
ADAPTIVE_MAX = 8  # the longest draft considered where its length is chosen every step
DRAFT_LIMIT = 64  # more rows than a hybrid model can take back, and far more than pays
EXACT_LIMIT = 6  # with the pending token the most rows that round alike, `llama/rounding.py`
GREEDY = Sampler()


def load(
    model: str | os.PathLike[str] | None = None,
    drafter: str | os.PathLike[str] | None = None,
    *,
    n_ctx: int = 0,
    threads: int | None = None,
    threads_batch: int | None = None,
    threads_draft: int | None = None,
    gpu_layers: int = 0,
    flash_attn: str | None = None,
    strict: bool = False,
    exact: bool = False,
    draft_max: int | None = None,
    lookup: bool | None = None,
    adaptive: bool | None = False,
    kv_type: str | None = None,
    repack: bool | None = None,
    panels: bool | None = None,
    pair_rows: bool | None = None,
    tuned: bool = False,
    tree: str | TreeShape | None = None,
    drafter_kernels: Kernels = "auto",
) -> Session:
    """Load a target GGUF and, if named, a drafter for it (EAGLE-3, or any small GGUF of its vocabulary); without a
    model, the embedded pair.

    n_ctx 0 is the context the model was trained for, at most 8192 positions. `threads` decode one token,
    `threads_batch` verify several, `threads_draft` run the drafter; None is what was measured for the embedded pair,
    else every processor. `gpu_layers` -1 is all of them. `draft_max` is draft tokens per verify step, 0..64; `tree`
    instead drafts trees, "N", "N:topk" or "N:topk:depth": N nodes per verify step, at most topk after each and depth on
    a path. `flash_attn` is off, on or auto (llama.cpp decides). `strict` runs everything in F32 without flash attention
    (other weights are first recast, exactly, into the user's cache directory): a row then rounds alike whatever stands
    beside it. `exact` promises the same for the weights as they are, whatever their type: single rows in pairs, nothing
    laid out anew, drafts of at most 6 tokens, no trees; that the kernels here keep it is looked at first
    (`llama/rounding.py`). `lookup` drafts from the text itself, where the drafter is unsure or without one; None is
    off, but for what suits the embedded pair. `adaptive` chooses the draft length every step, up to draft_max, or of a
    tree how many nodes are verified; None does for chains of a named pair of which nothing else says how much to draft,
    neither draft_max nor what was measured. `tuned` takes over what `refspec tune` stored for these files, where no
    setting is given here, and what an adaptive session learned of them before this one, which keeps what it learns.
    `panels` has refspec's own kernels multiply with the weights, where they can (`llama/matmul_hook.py`); None does so
    wherever they can, `repack` is not given and no GPU is used. `repack` lets llama.cpp lay out quantized weights anew
    instead; None is its default, but where that would crash (`llama/amx.py`). `pair_rows` runs a single row beside a
    copy of itself, which llama.cpp does faster for some weights on some machines; None is what `tune` found, else no.
    `drafter_kernels` is what runs an EAGLE-3 drafter: llama, own (refspec's), or auto, which is llama.cpp unless the
    drafter is tiny or beyond its graph (`llama/native_eagle3.py`). Raises CheckpointError (a file), ShapeError (a
    drafter for another target), BackendError (llama.cpp refused), UsageError (a setting).
    """
    native.check()  # REFSPEC_BACKEND may ask for what is not there
    # Imported here: a session on other targets needs no llama.cpp.
    from refspec.gguf.recast import is_f32, recast
    from refspec.llama import open_pair
    from refspec.llama.amx import REFUSED, repacking_works
    from refspec.llama.weights import why_not
    from refspec.tuning import store

    for name, named in (("model", model), ("drafter", drafter)):
        if named is not None and not os.fspath(named):  # an unset shell variable must not mean "without a drafter"
            raise UsageError(f"{name}: the file name is empty; name a GGUF file or leave the option out")
    chosen, sampler = dict[str, Any](), GREEDY
    if model is None:
        chosen, sampler = embedded.defaults(), Sampler(penalties=embedded.penalties())
        model, drafter = embedded.path(embedded.TARGET), drafter or embedded.path(embedded.DRAFTER)
    found = store.find(model, drafter) if tuned and not strict else store.Found(None, "")
    if found.record:
        chosen = chosen | found.record["chosen"]
    lookup = bool(chosen.get("lookup", False)) if lookup is None else lookup
    shape = _shape(tree, draft_max)
    limit = DRAFT_LIMIT
    if exact:
        _check_exact(strict=strict, repack=repack, pair_rows=pair_rows, tree=shape)
        repack, pair_rows, limit = False, True, EXACT_LIMIT
    if adaptive is None:
        adaptive = "draft_max" not in chosen and drafter is not None and draft_max is None and shape is None
    default = shape.nodes if shape else ADAPTIVE_MAX if adaptive else int(chosen.get("draft_max", DRAFT_MAX))
    length = min(default, limit) if draft_max is None else _draft_length(draft_max, limit)
    if threads_draft is None:
        threads_draft = chosen.get("threads_draft") if threads is None else threads
    if threads is None:
        threads, threads_batch = (
            chosen.get("threads"),
            chosen.get("threads_batch") if threads_batch is None else threads_batch,
        )
    if strict:
        model = model if is_f32(model) else recast(model, "f32")
        drafter = drafter if drafter is None or is_f32(drafter) else recast(drafter, "f32")
    settings: dict[str, Any] = {
        "n_threads": threads,
        "n_threads_batch": threads if threads_batch is None else threads_batch,
        "n_gpu_layers": gpu_layers,
        "kv_type": "f32" if strict else kv_type or chosen.get("kv_type", "f16"),
        "flash_attn": "off" if strict else flash_attn or chosen.get("flash_attn", "auto"),
    }
    placed: dict[str, Any] = settings | {
        "threads_draft": threads_draft,
        "strict": strict,
        "exact": exact,
        "lookup": lookup,
        "kernels": drafter_kernels,
    }
    panels = _panels(panels, repack, gpu_layers, why_not, bool(chosen.get("panels", True)))
    if repack and not repacking_works():
        raise BackendError(REFUSED)
    capture, repack = open_pair.capture_layers(drafter), chosen.get("repack") if repack is None else repack
    repack = True if repack is None else repack
    target = open_pair.make_target(
        model, tree=shape, n_ctx=n_ctx, capture_layers=capture, rewind=bool(drafter) or lookup, repack=repack, panels=panels,
        pair_rows=strict or exact or (bool(chosen.get("pair_rows")) if pair_rows is None else pair_rows), **settings,
    )  # fmt: skip
    try:
        if exact:
            _exact_or_raise(target.smallest_differing_batch())
        if threads_draft is not None:
            settings |= {"n_threads": threads_draft, "n_threads_batch": threads_draft}
        settings |= {"kv_type": "f32" if strict else "f16", "panels": panels}  # --kv-type is about the target's cache
        loaded = open_pair.make_drafter(drafter, target, lookup=lookup, tree=shape, kernels=drafter_kernels, **settings)
    except BaseException:
        target.close()
        raise
    types = {tensor.type for tensor in target.info.tensors.values() if len(tensor.shape) > 1}
    session = Session(
        target, loaded, draft_max=length, name=str(model), bit_strict=exact or (strict and types <= {"F32"} and shape is None),
        adaptive=adaptive, tree=shape, draft_limit=limit,
    )  # fmt: skip
    session.tuned, session.sampler = found, sampler
    if tuned:
        placed |= {
            "repack": target.model.repack,
            "panels": target.model.packed is not None,
            "pair_rows": target.pair_rows,
            "tree": str(shape),
            "costs": found.record["costs"] if found.record else None,
        }
        session.memory = Memory(model, drafter, placed)
    return session


def _panels(
    wanted: bool | None, repack: bool | None, gpu_layers: int, why_not: Callable[[], str | None], known: bool
) -> bool:
    """Whether refspec's kernels are to multiply, `known` where nothing is said;

    UsageError or BackendError where they were asked for in vain.
    """
    if not wanted:
        return wanted is None and not repack and known
    if repack or gpu_layers:
        other = "--repack" if repack else f"gpu_layers = {gpu_layers} (-ngl)"
        raise UsageError(f"--panels and {other} exclude each other; leave one of them out")
    if (reason := why_not()) is not None:
        raise BackendError(f"--panels: refspec's own kernels cannot multiply here: {reason}; leave it out")
    return True


def _shape(tree: str | TreeShape | None, draft_max: int | None) -> TreeShape | None:
    """The shape asked for; UsageError where something else asks for chains."""
    if tree is None:
        return None
    if draft_max is not None:
        raise UsageError(f"draft_max = {draft_max} is for chains and tree = {str(tree)!r} for trees; give one of them")
    return TreeShape.parse(tree) if isinstance(tree, str) else tree.checked()


def _draft_length(draft_max: int, limit: int = DRAFT_LIMIT) -> int:
    """draft_max itself; UsageError unless it is 0..limit."""
    if _whole("draft_max", draft_max) > limit:
        why = (
            "verifying so many rows never pays"
            if limit == DRAFT_LIMIT
            else "exact text is not promised for more rows together (--exact)"
        )
        raise UsageError(f"draft_max = {draft_max} exceeds {limit}; {why}")
    return draft_max


def _check_exact(*, strict: bool, repack: bool | None, pair_rows: bool | None, tree: TreeShape | None) -> None:
    """UsageError for settings that exact text cannot be promised with."""
    for name, wrong in (
        ("strict", strict),
        ("repack", repack),
        ("no-pair-rows", pair_rows is False),
        ("tree", tree is not None),
    ):
        if wrong:
            raise UsageError(f"--exact and --{name} exclude each other; leave one of them out")


def _exact_or_raise(unlike: int | None) -> None:
    """BackendError where the kernels here do not keep what `exact` promises."""
    if unlike is not None:
        raise BackendError(
            f"--exact: here llama.cpp rounds a row otherwise among {unlike} than alone, so the text cannot be promised; use --strict"
        )


def _whole(name: str, value: int) -> int:
    """A count itself; UsageError unless it is an integer >= 0."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise UsageError(f"{name} = {value!r} is not an integer")
    if value < 0:
        raise UsageError(f"{name} = {value} is negative; use 0 or more")
    return value


class Session:
    """A target, with or without a drafter, ready to generate; a context manager that closes both. `load` makes one.

    target, drafter   the models (`targets.base`, `drafters.base`); drafter None means plain decoding
    draft_max         draft tokens per verify step where `generate` does not say otherwise
    name              the target's file, for messages
    tree              the shape of draft trees, for a TreeTarget and a TreeDrafter; None drafts chains
    bit_strict        strict settings and F32 weights, or exact: a row's logits are the same bits in every batch of a chain
    draft_limit       the most draft tokens per verify step that `generate` may be asked for
    adaptive          the draft length, or a tree's nodes, are chosen every step where `generate` does not say otherwise, up to draft_max
    tuned             what `refspec tune` stored for this pair, if `load` was asked for it
    sampler           the law of a text where `generate` is not given one: greedy, of the embedded pair with what keeps it from repeating itself
    policy            the policy that chooses, with all it has learned
    memory            where that is kept for the next session, if `load` was asked for it
    current           the last generation; starting the next one ends it
    """

    def __init__(
        self, target: Target, drafter: Drafter | None = None, *, draft_max: int = DRAFT_MAX, name: str = "target",
        bit_strict: bool = False, adaptive: bool = False, tree: TreeShape | None = None, draft_limit: int = DRAFT_LIMIT,
    ) -> None:  # fmt: skip
        self.target = target
        self.drafter = drafter
        self.draft_max = draft_max
        self.name = name
        self.bit_strict = bit_strict
        self.draft_limit = draft_limit
        self.adaptive = adaptive
        self.tuned = Found(None, "")
        self.sampler = GREEDY
        self.policy: ChainPolicy | TreePolicy | None = None
        self.memory: Memory | None = None
        self._deferred: DeferredDrafter | None = None
        self.tree = tree
        self.current: Generation | None = None

    def encode(
        self, prompt: str | Sequence[chat.Message], *, system: str | None = None, raw: bool = False
    ) -> list[int]:
        """Tokens of a prompt: through the chat template of the target's file, or as it is when `raw`.

        A string is one user message, after `system` if given. A file without a template takes the prompt as it is.
        Raises PromptError for an empty prompt, CheckpointError when the template fails, UsageError for messages or a
        system text that cannot be used.
        """
        template = None if raw else self.chat_template
        if template is None:
            if system is not None or not isinstance(prompt, str):
                why = "raw" if raw else f"{self.name} has no chat template"
                raise UsageError(
                    f"a system text and messages need a chat template, and here it is off ({why}); put all into the prompt"
                )
            tokens = self.target.tokenize(prompt, add_special=True, parse_special=True)
            if not tokens:
                raise PromptError(f"the prompt is empty and {self.name} has no token to begin with; give some text")
            return list(tokens)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("the prompt is empty; give some text, or use raw (--raw) to start from nothing")
            prompt = [{"role": "user", "content": prompt}]
        if system is not None:
            prompt = [{"role": "system", "content": system}, *prompt]
        return list(self.target.tokenize(self.render(prompt, template), add_special=True, parse_special=True))

    def render(self, messages: Sequence[chat.Message], template: str) -> str:
        """The text of messages in a Jinja template, a BOS it writes left to the tokenizer that adds one;

        CheckpointError when it fails.
        """
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
        self,
        prompt: str | Sequence[chat.Message] | None = None,
        *,
        tokens: Sequence[int] | None = None,
        max_tokens: int = 256,
        sampler: Sampler | None = None,
        seed: int = 0,
        draft_max: int | None = None,
        speculate: bool = True,
        draft_sampling: bool = False,
        adaptive: bool | None = None,
        policy: ChainPolicy | TreePolicy | None = None,
        system: str | None = None,
        raw: bool = False,
    ) -> Generation:
        """Start a generation from a prompt text, chat messages, or `tokens` [N] as they are; nothing runs until it is
        iterated, except that an adaptive session without a record of `tune` first measures what steps cost, if that
        takes at most 0.4 s (`tuning/step_costs.py`).

        Stops after max_tokens tokens, at an end-of-generation token, or when the context is full. `sampler` defines the
        target's law (None: the session's), `seed` its coins, one per output position (`sampling.coin`). With
        deterministic drafts (the default, `verify_deterministic`) the tokens depend on prompt, sampler and seed only,
        not on speculation, up to the engine's rounding; `draft_sampling` is Leviathan 2023, Alg. 1
        (`verify_rejection`), which keeps the law. `speculate=False` or draft_max 0 decodes plainly. `adaptive` chooses
        the draft length every step, at most draft_max, by the session's policy or the one given, which need not be a
        `ChainPolicy`: any policy with its methods keeps the text. `system` and `raw` are as in `encode`.

        Raises PromptError (empty, or longer than the context), UsageError (a setting), CheckpointError (the chat
        template); iterating it may raise BackendError (llama.cpp failed, or logits that are not finite).
        """
        if (prompt is None) == (tokens is None):
            raise UsageError("give either a prompt or tokens, and not both")
        _whole("max_tokens", max_tokens)
        draft_max = _draft_length(self.draft_max if draft_max is None else draft_max, self.draft_limit)
        encoded = self._known(tokens) if tokens is not None else self.encode(prompt or "", system=system, raw=raw)
        if not encoded:
            raise PromptError("the prompt has no tokens; give at least one")
        if len(encoded) > self.target.n_ctx:
            raise PromptError(
                f"the prompt has {len(encoded)} tokens, the context {self.target.n_ctx}; shorten it or raise the context (-c)"
            )
        drafter: Drafter | None = self.drafter if speculate and draft_max > 0 else None
        options: dict[str, object] = {
            "sampler": self.sampler if sampler is None else sampler,
            "seed": seed,
            "max_tokens": max_tokens,
            "draft_max": draft_max,
            "draft_sampling": draft_sampling,
        }
        wants_policy = policy is not None or (self.adaptive if adaptive is None else adaptive)
        if self.tree is not None and drafter is not None:
            del options["draft_max"]
            options["shape"] = self.tree._replace(nodes=min(draft_max, self.tree.nodes))
        if drafter is not None and wants_policy:
            policy = self._policy(draft_max) if policy is None else policy
            policy.begin(len(encoded) - 1)
            drafter, options["policy"] = self._deferring(drafter, policy), policy
        # plain decoding is measured without what only a drafter needs
        self.target.capturing = drafter is not None and bool(drafter.capture_layers)
        self.current = Generation(self, encoded, drafter, options)
        return self.current

    def _deferring(self, drafter: Drafter, policy: ChainPolicy | TreePolicy) -> DeferredDrafter:
        """The drafter, its rows waiting when the policy says so;

        kept from text to text, because a new buffer's pages have to be found first.
        """
        if self._deferred is None or self._deferred.inner is not drafter:
            self._deferred = DeferredDrafter(drafter, policy.waiting)
        self._deferred.waiting = policy.waiting
        return self._deferred

    def _policy(self, most: int) -> ChainPolicy | TreePolicy:
        """The session's policy; a new one when the limit changes."""
        if self.policy is None or self.policy.most != most:
            from refspec.tuning import step_costs

            self._remember()
            kind: type[ChainPolicy | TreePolicy] = ChainPolicy if self.tree is None else TreePolicy
            known = self.tuned.record["costs"] if self.tuned.record else step_costs.quick(self.target, self.drafter)
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
        """Release both models, and keep what the policy has learned; calling it twice is harmless."""
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
