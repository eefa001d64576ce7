"""Train the byte-level BPE tokenizer of the embedded model.

The pre-tokenizer is the one llama.cpp calls ``qwen2``: a digit is a token of its own, which small models need for
arithmetic. The same regular expression is written here because GGUF stores only the name (`tokenizer.ggml.pre`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refspec.errors import CheckpointError

GGUF_PRE = "qwen2"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS, TURN_START, TURN_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (EOS, BOS, TURN_START, TURN_END)

# ChatML, the template most small chat models use; the BOS token in front is the attention sink.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path):
    """Train a byte-level BPE vocabulary of `vocab_size` entries (specials included) and save it as tokenizer.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def load_tokenizer(path: Path):
    """The tokenizer saved in `path`; CheckpointError when there is none."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; make the data folder with `refspec train data`")
    return Tokenizer.from_file(str(path))
