"""`refspec train regenerate`: the target's own answers to the prompts of a prepared data set, in the same format.

A drafter drafts what the target would say, so it learns best from the target's output (regenerated data). Only first
turns are regenerated: a second question was asked about another answer. The target is a GGUF, run by llama.cpp without
torch, or the folder of a training run, run by torch on the device that trains (`answering.py`).

Every document has a random generator of its own, made of seed, split and its number in the source, and the result has
the first documents of a seeded order: neither depends on how many sequences are decoded at once, but for the rounding
of llama.cpp or torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.decoding.requests import Answers, Request
from refspec.errors import CheckpointError, ShapeError, UsageError
from refspec.evaluate.journal import Journal, fingerprint
from refspec.reference.penalties import NO_PENALTIES, Penalties
from refspec.reference.sampling import Sampler
from refspec.train.tokenizer import BOS, load_tokenizer

SPLITS = ("val", "train")  # the short one first; the order is part of every document's randomness
ADVICE = "prepare the data with the target's tokenizer"
PARALLEL = 32  # sequences in llama.cpp at once, by default
Tokens = npt.NDArray[np.uint16]


class Prompt(NamedTuple):
    """Everything before the first answer of document `number` of a split, and what decides the new answer."""

    number: int
    tokens: Tokens
    coins: npt.NDArray[np.float64] | None  # [max_new], None is greedy


class Source:
    """The prompts of one split of a prepared data set."""

    def __init__(self, folder: Path, split: str, *, bos: int, vocab: int):
        """Raises CheckpointError for files that are missing or damaged, ShapeError for ids outside the vocabulary."""
        self.tokens, self.mask = (_load(folder / f"{split}.{name}.npy") for name in ("tokens", "mask"))
        if self.tokens.shape != self.mask.shape or self.tokens.ndim != 1 or not len(self.tokens):
            raise CheckpointError(
                f"{folder}: {split}.tokens.npy and {split}.mask.npy differ in length or are empty; make the folder"
                " again"
            )
        if self.tokens.max() >= vocab:
            raise ShapeError(
                f"{folder}: {split}.tokens.npy has token {self.tokens.max()}, its tokenizer.json only {vocab}; make"
                " the folder again"
            )
        starts, answers = np.flatnonzero(self.tokens == bos), np.flatnonzero(self.mask)
        ends = np.append(starts[1:], len(self.tokens))
        first = np.append(answers, len(self.tokens))[np.searchsorted(answers, starts)]
        kept = (first < ends) & (first > starts)
        self.starts, self.firsts = starts[kept], first[kept]
        if not len(self.starts):
            raise CheckpointError(
                f"{folder}: {split} has no document with an answer; make the folder with `refspec train data`"
            )

    def prompts(
        self, order: npt.NDArray[np.int64], *, key: list[int], greedy: float, max_new: int, longest: int
    ) -> Iterator[Prompt]:
        """Prompts of at most `longest` tokens in the order given, each with a greedy answer at most once.

        Mixes repeat documents, and a second greedy answer would be the first again.
        """
        asked: set[bytes] = set()
        for number in order.tolist():
            tokens = self.tokens[self.starts[number] : self.firsts[number]]
            if len(tokens) > longest:
                continue
            rng = np.random.default_rng([*key, number + 1])  # NumPy ignores trailing zeros
            if rng.random() < greedy:
                if tokens.tobytes() in asked:
                    continue
                asked.add(tokens.tobytes())
                yield Prompt(number, tokens, None)
            else:
                yield Prompt(number, tokens, rng.random(max_new))


def regenerate(
    source: Path,
    model: Path,
    out: Path,
    *,
    tokens: int,
    temperature: float = 0.7,
    greedy_share: float = 0.5,
    max_new: int = 192,
    max_prompt: int = 600,
    seed: int = 1,
    parallel: int | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    device: str = "auto",
    penalties: Penalties = NO_PENALTIES,
) -> dict[str, dict[str, float]]:
    """Write a data set of about `tokens` tokens (prompts included; all prompts of `val`) to `out`; each split's counts.

    A kill loses only the answers in progress: `out/answers.jsonl` keeps every finished one, and the same call continues
    from it, also with more tokens than before. `model` is a GGUF, or a run folder of `train target` or a Hugging Face
    directory; `gpu_layers` is for the first, `device` for the others. `penalties` (with a GGUF only) change answers as
    they do where the model is used, so that the drafter learns what it will have to draft. Raises CheckpointError
    (files), ShapeError (vocabularies differ), UsageError (settings), BackendError.
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"--out {out} is --data itself; name another folder")
    if not 0 <= greedy_share <= 1:
        raise UsageError(f"--greedy-share {greedy_share} is outside 0..1")
    tokenizer = load_tokenizer(source / "tokenizer.json")
    bos, vocab = tokenizer.token_to_id(BOS), tokenizer.get_vocab()
    if bos is None:
        raise CheckpointError(f"{source / 'tokenizer.json'}: has no {BOS}; make the folder with `refspec train data`")
    after = tokenizer.encode("\n", add_special_tokens=False).ids
    sources = {split: Source(source, split, bos=bos, vocab=len(vocab)) for split in SPLITS}
    target = _open(
        model, parallel=parallel, n_ctx=max_prompt + max_new, threads=threads, gpu_layers=gpu_layers, device=device
    )
    try:
        _check_vocabulary(source / "tokenizer.json", vocab, target)
        settings = {
            "data": {name: fingerprint(source / name) for name in _files()},
            "target": fingerprint(_weights(model)),
            "temperature": temperature,
            "greedy_share": greedy_share,
            "max_new": max_new,
            "max_prompt": max_prompt,
            "seed": seed,
        } | ({"penalties": asdict(penalties)} if penalties.on else {})
        made, stop = {}, target.end_tokens | {bos}
        greedy = 1.0 if temperature == 0 else greedy_share
        out.mkdir(parents=True, exist_ok=True)
        with Journal(str(out / "answers.jsonl"), "refspec train regenerate", settings) as journal:
            for i, split in enumerate(SPLITS):
                held = sources[split]
                count = len(held.starts)
                # The validation set is complete, in the order of the source.
                order = np.arange(count) if split == "val" else np.random.default_rng([seed, i]).permutation(count)
                prompts = held.prompts(order, key=[seed, i], greedy=greedy, max_new=max_new, longest=max_prompt)
                work = _Work(split, prompts, journal, limit=None if split == "val" else tokens)
                work.run(target, max_new=max_new, sampler=Sampler(temperature, penalties=penalties), stop=stop)
                made[split] = work.write(out, after, target.end_tokens)
    finally:
        target.close()
    _replace(out / "tokenizer.json", (source / "tokenizer.json").read_bytes())
    counts = {
        split: {name: made[split][name] for name in ("records", "tokens", "assistant")} for split in reversed(SPLITS)
    }
    _replace(out / "counts.json", json.dumps(counts, indent=1).encode())
    return made


class _Work:
    """One split: its prompts, those answered, and the arrays made of them.

    The result is the shortest beginning of the prompts' order that has `limit` tokens, so it does not depend on which
    answer ended first.
    """

    def __init__(self, split: str, prompts: Iterable[Prompt], journal: Journal, *, limit: int | None) -> None:
        self.split, self.journal, self.limit = split, journal, limit
        self._source = iter(prompts)
        self.asked: list[Prompt] = []  # in order
        self.whole, self.tokens = 0, 0  # how many of them are answered without a gap, and their tokens
        self.finished = 0  # tokens of all answered ones
        self.generated, self.seconds = 0, 0.0  # in this run

    def run(self, target: Answers, *, max_new: int, sampler: Sampler, stop: frozenset[int]) -> None:
        """Answer what is not in the journal, until there is enough."""
        from tqdm import tqdm

        began = perf_counter()
        with tqdm(total=self.limit, unit="tok", desc=self.split, mininterval=0.5) as bar:
            answers = target.answers(self._requests(), max_new=max_new, sampler=sampler, stop=stop)
            for answer in answers:
                self.journal.add(f"{self.split} {answer.request.key}", {"answer": answer.tokens})
                self.generated += len(answer.tokens)
                self.finished += len(answer.request.prompt) + len(answer.tokens)
                self._advance()
                bar.set_postfix(documents=self.whole, refresh=False)
                bar.update(min(self.finished, self.limit or self.finished) - bar.n)
                if self._enough():
                    break
            self._advance()
        self.seconds = perf_counter() - began

    def _requests(self) -> Iterator[Request]:
        for prompt in self._source:
            self.asked.append(prompt)
            answer = self._answer(prompt)
            if answer is None:
                yield Request(prompt.number, prompt.tokens, prompt.coins)
            else:
                self.finished += len(prompt.tokens) + len(answer)
                self._advance()
            if self._enough():
                return

    def _answer(self, prompt: Prompt) -> list[int] | None:
        found = self.journal.done.get(f"{self.split} {prompt.number}")
        return None if found is None else found["answer"]

    def _advance(self) -> None:
        while not self._enough() and self.whole < len(self.asked):
            answer = self._answer(prompt := self.asked[self.whole])
            if answer is None:
                return
            self.whole += 1
            self.tokens += len(prompt.tokens) + len(answer)

    def _enough(self) -> bool:
        return self.limit is not None and self.tokens >= self.limit

    def write(self, out: Path, after: list[int], ends: frozenset[int]) -> dict[str, float]:
        """Write the split's arrays: prompt (mask 0), answer (mask 1), and `after` where it ended by itself (mask 0)."""
        tokens, mask = list[Any](), list[Any]()
        records = ended = answered = 0
        for prompt in self.asked[: self.whole]:
            answer = self._answer(prompt) or []
            by_itself = answer[-1] in ends
            if not by_itself and answer[-1] == prompt.tokens[0]:
                answer = answer[:-1]  # BOS means a new document, to every reader of this format
            if not answer:
                continue
            tail = after if by_itself else []
            tokens += [prompt.tokens, np.array([*answer, *tail], np.uint16)]
            mask += [np.zeros(len(prompt.tokens), np.uint8), np.array([1] * len(answer) + [0] * len(tail), np.uint8)]
            records, ended, answered = records + 1, ended + by_itself, answered + len(answer)
        if not records:
            raise UsageError(f"{self.split}: no prompt is short enough and has an answer; raise --max-prompt")
        packed = np.concatenate(tokens)
        _replace(out / f"{self.split}.tokens.npy", packed)
        _replace(out / f"{self.split}.mask.npy", np.concatenate(mask))
        return {
            "records": records, "tokens": len(packed), "assistant": answered, "ended": ended / records,
            "generated": self.generated, "tokens_per_second": self.generated / self.seconds if self.generated else 0.0,
        }  # fmt: skip


def _open(
    model: Path, *, parallel: int | None, n_ctx: int, threads: int | None, gpu_layers: int, device: str
) -> Answers:
    """The model that answers: llama.cpp for a file, torch for a folder."""
    if not model.is_dir():
        from refspec.llama.parallel_target import ParallelTarget

        return ParallelTarget(
            model, parallel=parallel or PARALLEL, n_ctx=n_ctx, n_threads=threads, n_gpu_layers=gpu_layers
        )
    try:
        from refspec.train.answering import TorchAnswers
    except ImportError as error:
        raise UsageError(
            f"{model}: a folder needs {error.name}: .venv/bin/pip install -e '.[train]' in a checkout, or name a GGUF"
        ) from None
    return TorchAnswers(model, n_ctx=n_ctx, parallel=parallel, device=device, threads=threads)


def _weights(model: Path) -> Path:
    """The file that says which target this is."""
    if not model.is_dir():
        return model
    from refspec.train.target import hf_directory

    return hf_directory(model) / "model.safetensors"


def _check_vocabulary(where: Path, vocab: dict[str, int], target: Answers) -> None:
    """ShapeError unless the ids of the data, whose tokenizer is the file `where`, mean the same to the target."""
    theirs = target.vocabulary
    if len(theirs) != len(vocab):
        raise ShapeError(f"{where}: {len(vocab)} tokens, but {target.path} has {len(theirs)}; {ADVICE}")
    if len(theirs) > 1 << 16:
        raise ShapeError(
            f"{target.path}: {len(theirs)} tokens do not fit into this data format, which has 16 bits for each"
        )
    for text, i in theirs.items():
        if vocab.get(text) != i:
            raise ShapeError(f"{where}: {text!r} is token {vocab.get(text)}, but {i} in {target.path}; {ADVICE}")
    if not target.end_tokens:
        raise CheckpointError(
            f"{target.path}: names no token that ends an answer (eos_token_id); convert or export it again"
        )


def _files() -> list[str]:
    return ["tokenizer.json", *(f"{split}.{name}.npy" for split in SPLITS for name in ("tokens", "mask"))]


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        loaded: npt.NDArray[Any] = np.load(path)
        return loaded
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; make the data folder with `refspec train data`") from None
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path}: not a NumPy array ({' '.join(str(error).split())[:100]}); make the folder again"
        ) from None


def _replace(path: Path, content: bytes | npt.NDArray[Any]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)
    os.replace(temporary, path)
