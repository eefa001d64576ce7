"""`refspec train drafter -m MODEL.gguf`: a drafter for any GGUF that llama.cpp runs and whose states it can capture.

Four stages, each of which goes on where a killed run left it: prompts through the model's own chat template, its
answers (`answers.py`), what it shows of each token of them (`lessons.py`), and the drafter alone in torch
(`drafter_loss.py`). The model is never loaded into torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refspec.convert import convert_drafter
from refspec.errors import ShapeError, UsageError
from refspec.evaluate.journal import Journal, fingerprint
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_gguf_header, read_tensor
from refspec.gguf.recommended_sampling import recommended
from refspec.gguf.target_checks import check_boundaries
from refspec.llama.parallel_target import ParallelTarget
from refspec.llama.target import LlamaTarget
from refspec.reference.sampling import Sampler
from refspec.session import Session
from refspec.train import lesson_training
from refspec.train.answers import Answered, Collecting, collect, encode, read_prompts
from refspec.train.budget import OF_FREE_DISK, Plan, Rates, check_disk, described, fit, free_disk
from refspec.train.drafter import TrainedDrafter
from refspec.train.drafters import export_drafter
from refspec.train.lesson_training import LessonTraining
from refspec.train.lessons import Lessons, bytes_per_token, draft_vocabulary
from refspec.train.loop import CHECKPOINT, read_checkpoint, run_steps
from refspec.train.outcome import held_out_prompts, outcome
from refspec.train.start import start_drafters

PLAIN: dict[str, Any] = {"feature_norm": "none", "feedback": "pre_norm", "residual": "raw"}  # EAGLE-3
STEPS_TIMED = 3
TEMPERATURE = 0.7  # of sampled answers, where the file recommends none


def default_boundaries(info: GgufInfo) -> tuple[int, ...]:
    """Boundaries 2, n/2 and n-3 of n layers, every trainer's default; UsageError for a model too shallow for three."""
    n = info.need(f"{info.arch}.block_count", int)
    found = (2, n // 2, n - 3)
    if n < 6 or len(set(found)) < 3:
        raise UsageError(f"{info.path}: {n} layers have no boundaries 2, n/2, n-3; name some with --layer-ids 1,2,3")
    return found


def drafter_config(info: GgufInfo, plan: Plan, switches: dict[str, Any]) -> TrainedDrafter:
    """A drafter with the target's width, heads and RoPE."""
    m, a = info.metadata, info.arch
    hidden, heads = info.need(f"{a}.embedding_length", int), info.need(f"{a}.attention.head_count", int)
    kv_heads = m.get(f"{a}.attention.head_count_kv", heads)
    head_dim = int(m.get(f"{a}.attention.key_length", hidden // heads))
    ffn = m.get(f"{a}.feed_forward_length")
    vocab = info.tensors["token_embd.weight"].shape[0]
    return TrainedDrafter(
        hidden_size=hidden,
        target_hidden_size=hidden,
        capture_layers=plan.layer_ids or default_boundaries(info),
        n_heads=heads,
        n_kv_heads=kv_heads if isinstance(kv_heads, int) and heads % kv_heads == 0 else heads,
        head_dim=head_dim,
        intermediate_size=plan.ffn or (ffn if isinstance(ffn, int) else 4 * hidden),
        vocab_size=vocab,
        draft_vocab_size=min(plan.draft_vocab, vocab),
        rms_eps=float(m.get(f"{a}.attention.layer_norm_rms_epsilon", 1e-6)),
        rope_theta=float(m.get(f"{a}.rope.freq_base", 10000.0)),
        context_length=int(m.get(f"{a}.context_length", 8192)),
        **switches,
    )


def train_from_gguf(
    model: Path,
    out: Path,
    plan: Plan,
    *,
    hours: float | None = None,
    prompts: Path | None = None,
    parallel: int = 32,
    threads: int | None = None,
    gpu_layers: int = 0,
    device: str = "auto",
    outtype: str = "q8_0",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make `out/NAME.gguf` for every variant of the plan; returns held-out figures. Raises RefspecError subclasses.

    `hours` decide tokens and epochs by what each stage costs here (`budget.py`); a run that goes on keeps its plan.
    """
    info = read_gguf_header(model)
    config = drafter_config(info, plan, {n: getattr(plan, n) for n in PLAIN})
    check_boundaries(info.path, info.arch, info.need(f"{info.arch}.block_count", int), config.capture_layers)
    variants = {"drafter": config}
    if plan.twin:
        variants["drafter-plain"] = replace(config, **PLAIN)
    stage: dict[str, Any] = {"threads": threads, "gpu_layers": gpu_layers}
    asking: dict[str, Any] = {"prompts": prompts, "parallel": parallel, "tell": tell, **stage}
    per_token = bytes_per_token(len(config.capture_layers), config.target_hidden_size)
    if hours is not None:
        plan = _planned(model, out, plan, hours, variants, asking, device)
    check_disk(out, plan.tokens * per_token)
    answered = answer_stage(model, out, plan, **asking)
    draft_ids = _kept_vocabulary(out, answered, config)
    share = np.isin(answered.tokens[answered.mine == 1], draft_ids).mean()
    tell(f"draft vocabulary: {len(draft_ids)} of {config.vocab_size} tokens, {100 * share:.1f} % of the answers")
    lessons = lesson_stage(model, out / "lessons", config, answered, draft_ids, **stage)
    training = LessonTraining(lessons, variants, plan, embedding_of(info), threads=threads, device=device)
    step_tokens = lesson_training.ROWS * lesson_training.LENGTH
    steps = max(int(plan.epochs * training.batches.per_epoch), 1)
    identity = {"kind": "drafters of a GGUF", "target": fingerprint(model), "steps": steps, **asdict(plan)}
    identity = json.loads(json.dumps(identity))
    if (before := _trained_before(out, identity)) is not None:
        start_drafters(training.drafters, before)
        tell(f"starts from {before}")
    figures = run_steps(
        out, identity, training.together, training.optimizers, steps=steps,  # type: ignore[arg-type]
        loss_of=training.loss_of, validate=training.validate, tokens_per_step=step_tokens,
    )  # fmt: skip
    for name, drafter in training.drafters.items():
        export_drafter(drafter, out / name, embedding=False)
        convert_drafter(out / name, None, out / f"{name}.gguf", outtype, metadata=_made_for(info))
    if unseen := held_out_prompts(answered, training.held):
        for name in variants:
            seen = outcome(model, out / f"{name}.gguf", unseen, threads=threads, gpu_layers=gpu_layers)
            figures |= {f"{name}_{key}": round(value, 4) for key, value in seen.items()}
    (out / "summary.json").write_text(json.dumps(figures, indent=1), "utf-8")
    return figures


def _trained_before(out: Path, identity: dict[str, Any]) -> Path | None:
    """The weights that a longer run in the same folder starts from: those of the run that ended there, put aside."""
    last, before = out / CHECKPOINT, out / "before.pt"
    if last.exists():
        state = read_checkpoint(last)
        old = state["identity"]
        longer = {k for k in identity.keys() | old.keys() if identity.get(k) != old.get(k)}
        if longer and longer <= {"tokens", "epochs", "steps"} and state["step"] == old["steps"]:
            os.replace(last, before)
    return before if before.exists() else None


def _kept_vocabulary(out: Path, answered: Answered, config: TrainedDrafter) -> npt.NDArray[np.int64]:
    """The draft vocabulary of the run's first answers, which more of them do not change: lessons hold its ids."""
    file = out / "draft_vocabulary.npy"
    if file.exists():
        kept: npt.NDArray[np.int64] = np.load(file)
        if len(kept) == config.draft_vocab_size:
            return kept
    ids = draft_vocabulary(answered, config.draft_vocab_size, config.vocab_size)
    np.save(file, ids)
    return ids


def _planned(
    model: Path,
    out: Path,
    plan: Plan,
    hours: float,
    variants: dict[str, TrainedDrafter],
    asking: dict[str, Any],
    device: str,
) -> Plan:
    """The plan that fits into the hours, from rates measured on the run's first answers; kept in out/plan.json."""
    file = out / "plan.json"
    if file.exists():
        kept = json.loads(file.read_text("utf-8"))
        if kept["hours"] != hours:
            raise UsageError(f"{file}: this run was planned for {kept['hours']:g} hours; give the same, or another -o")
        return replace(plan, tokens=kept["tokens"], epochs=kept["epochs"])
    rates = measure_rates(model, out, plan, variants, asking, device)
    config = variants["drafter"]
    each = bytes_per_token(len(config.capture_layers), config.target_hidden_size)
    plan = fit(plan, hours, rates, int(OF_FREE_DISK * free_disk(out)) // each)
    nbytes = plan.tokens * each
    for line in described(plan, rates, nbytes):
        asking["tell"](line)
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"hours": hours, "tokens": plan.tokens, "epochs": plan.epochs, "rates": asdict(rates)}))
    return plan


def measure_rates(
    model: Path, out: Path, plan: Plan, variants: dict[str, TrainedDrafter], asking: dict[str, Any], device: str
) -> Rates:
    """Tokens a second of every stage here: the run's first answers, lessons of some of them, a few steps on those."""
    began = perf_counter()
    wanted = asking["parallel"] * plan.max_new  # so that answers of every length have ended
    answered = answer_stage(model, out, replace(plan, tokens=wanted), **asking)
    answers = len(answered.tokens) / (perf_counter() - began)
    config = variants["drafter"]
    ids = draft_vocabulary(answered, config.draft_vocab_size, config.vocab_size)
    step_tokens = lesson_training.ROWS * lesson_training.LENGTH
    few = answered.first(2 * step_tokens)
    with TemporaryDirectory(prefix="refspec-rates-") as folder:
        began = perf_counter()
        stage = {name: asking[name] for name in ("threads", "gpu_layers")}
        lessons = lesson_stage(model, Path(folder), config, few, ids, **stage)
        made = len(few.tokens) / (perf_counter() - began)
        embedding = embedding_of(read_gguf_header(model))
        training = LessonTraining(lessons, variants, plan, embedding, threads=asking["threads"], device=device)
        took = []
        for step in range(STEPS_TIMED):
            began = perf_counter()
            training.loss_of(step)[0].backward()
            training.optimizers.step(0.0)
            took.append(perf_counter() - began)
        del training, lessons
    return Rates(answers, made, step_tokens / min(took))


def answer_stage(
    model: Path,
    out: Path,
    plan: Plan,
    *,
    prompts: Path | None,
    parallel: int,
    threads: int | None,
    gpu_layers: int,
    tell: Callable[[str], None],
) -> Answered:
    """The model's answers, journaled in out/answers.jsonl."""
    from tqdm import tqdm

    info = read_gguf_header(model)
    asked = read_prompts(prompts)
    target = LlamaTarget(
        model, n_ctx=min(plan.max_prompt + plan.max_new, 8192), n_threads=threads, n_gpu_layers=gpu_layers
    )
    try:
        session = Session(target)
        if session.chat_template is None:
            tell(f"{model.name} has no chat template: prompts are used as they are")
            asked = [p if isinstance(p, str) else "\n".join(m["content"] for m in p) for p in asked]
        shown = tqdm(asked, unit="", desc="prompts", leave=False)
        ids = encode(shown, lambda p: session.encode(p, raw=isinstance(p, str)), plan.max_prompt)
    finally:
        target.close()
    if not ids:
        raise UsageError(f"no prompt has {plan.max_prompt} tokens or fewer; raise --max-prompt")
    said = recommended(info.metadata, info.path.name)
    sampler = said.applied(Sampler(TEMPERATURE if plan.temperature is None else plan.temperature), set())
    if plan.temperature is not None:
        sampler = replace(sampler, temperature=plan.temperature)
    if said:
        tell(f"answers are sampled as {model.name} recommends: {said}")
    settings = {
        "target": fingerprint(model),
        "prompts": fingerprint(prompts) if prompts else "built-in",
        "seed": plan.seed,
    }
    settings |= {name: getattr(plan, name) for name in ("temperature", "greedy", "max_new", "max_prompt")}
    out.mkdir(parents=True, exist_ok=True)
    with Journal(str(out / "answers.jsonl"), "refspec train drafter", settings) as journal:
        work = Collecting(ids, journal, tokens=plan.tokens, max_new=plan.max_new, greedy=plan.greedy, seed=plan.seed)
        answering = ParallelTarget(
            model, parallel=parallel, n_ctx=plan.max_prompt + plan.max_new, n_threads=threads, n_gpu_layers=gpu_layers
        )
        try:
            with tqdm(total=plan.tokens, initial=min(work.held, plan.tokens), unit="tok", desc="answers") as bar:
                return collect(
                    answering, work, sampler=sampler,
                    progress=lambda tokens: bar.update(min(tokens, plan.tokens) - bar.n) and None,
                )  # fmt: skip
        finally:
            answering.close()


def lesson_stage(
    model: Path,
    folder: Path,
    config: TrainedDrafter,
    answered: Answered,
    draft_ids: np.ndarray,
    *,
    threads: int | None,
    gpu_layers: int,
) -> Lessons:
    """What the model shows of its answers, in a folder."""
    from tqdm import tqdm

    lessons = Lessons(folder, answered, config.capture_layers, config.target_hidden_size, draft_ids)
    if lessons.done + 1 == len(answered.starts):
        return lessons
    longest = int(np.diff(answered.starts).max())
    target = LlamaTarget(
        model, n_ctx=longest, capture_layers=config.capture_layers, n_threads=threads, n_gpu_layers=gpu_layers
    )
    try:
        with tqdm(
            total=len(answered.tokens), initial=int(answered.starts[lessons.done]), unit="tok", desc="lessons"
        ) as bar:
            lessons.make(target, lambda tokens: bar.update(tokens) and None)
    finally:
        target.close()
    return lessons


def embedding_of(info: GgufInfo) -> Tensor:
    """The target's token embedding [V, H], float32."""
    if "token_embd.weight" not in info.tensors:
        raise ShapeError(f"{info.path}: has no token_embd.weight, which a drafter reads; use another model")
    return torch.from_numpy(np.ascontiguousarray(read_tensor(info, "token_embd.weight"), np.float32))


def head_of(info: GgufInfo) -> Tensor:
    """The target's output head [V, H], float32: what a drafter's own begins with."""
    name = "output.weight" if "output.weight" in info.tensors else "token_embd.weight"
    return torch.from_numpy(np.ascontiguousarray(read_tensor(info, name), np.float32))


def _made_for(info: GgufInfo) -> dict[str, Any]:
    name = info.metadata.get("general.name") or info.path.stem
    licence = info.metadata.get("general.license")  # a drafter begins with rows of the target's embedding
    return ({"general.license": licence} if licence else {}) | {
        "general.name": f"drafter for {name}",
        "refspec.provenance.target": f"{info.path.name}; {fingerprint(info.path)}",
    }
