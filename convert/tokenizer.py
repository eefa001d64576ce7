"""tokenizer.json of a byte-level BPE tokenizer -> the `tokenizer.*` metadata of a GGUF.

GGUF stores only the NAME of the pre-tokenizer, so its regular expression must be one llama.cpp knows; another one would
tokenize differently without a word and is refused unless the name is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refspec.convert.safetensors_io import read_json, whole_number
from refspec.errors import CheckpointError, reads_file

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF token types
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# regular expression of the split -> the name llama.cpp knows it by
PRE_TOKENIZERS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
LONGEST = 1 << 20  # characters of a chat template
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


def _pre_tokenizer(path: Path, tokenizer: dict[str, Any]) -> str:
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre]) if pre.get("type") == "Sequence" else [pre]
    splits = [s["pattern"].get("Regex") for s in steps if s.get("type") == "Split"]
    byte_level = [s for s in steps if s.get("type") == "ByteLevel"]
    if len(byte_level) == 1 and len(steps) == 1 + len(splits):
        if byte_level[0].get("add_prefix_space"):
            raise CheckpointError(f"{path}: add_prefix_space is true, which llama.cpp's BPE does not do")
        if not splits and byte_level[0].get("use_regex", True):
            return "gpt-2"
        if len(splits) == 1 and splits[0] in PRE_TOKENIZERS and not byte_level[0].get("use_regex", True):
            return PRE_TOKENIZERS[splits[0]]
    raise CheckpointError(f"{path}: the pre-tokenizer {str(pre)[:60]!r} is unknown; give llama.cpp's name with pre=")


def _add_bos(directory: Path, tokenizer: dict[str, Any], bos: int | None) -> bool:
    """tokenizer_config.json decides, then the post-processor; where nothing is said a BOS that exists is used."""
    config = directory / "tokenizer_config.json"
    if config.exists() and isinstance(said := read_json(config).get("add_bos_token"), bool):
        return said
    post = tokenizer.get("post_processor")
    if post is not None:
        return bos is not None and "SpecialToken" in str(post.get("single", post))
    return bos is not None


def _own_text(path: Path) -> str:
    """The text of a file of a checkpoint; CheckpointError where it links to a file that is none of it."""
    real, folder = path.resolve(), path.parent.resolve()
    # the cache of the Hugging Face hub: snapshots/REVISION/NAME links to blobs/HASH
    blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else folder
    if real.parent not in (folder, blobs):
        raise CheckpointError(f"{path}: links to {real}, outside its checkpoint; put the template itself there")
    try:
        with open(real, encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if len(text) > LONGEST:
        raise CheckpointError(f"{path}: more than {LONGEST >> 20} MiB, no chat template")
    return text


def chat_template(directory: Path) -> str | None:
    """The chat template: `chat_template.jinja`, else the one in tokenizer_config.json, else None."""
    jinja, config = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if jinja.exists():
        return _own_text(jinja)
    template = read_json(config).get("chat_template") if config.exists() else None
    return template if isinstance(template, str) else None


@reads_file
def tokenizer_metadata(
    directory: Path, config: dict[str, Any], *, pre: str | None = None, add_bos: bool | None = None
) -> dict[str, Any]:
    """The `tokenizer.*` keys for a directory with tokenizer.json; `CheckpointError` if llama.cpp cannot reproduce it.

    `pre` names the pre-tokenizer, `add_bos` decides about the first token where the files do not.
    """
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict) or model.get("byte_fallback"):
        raise CheckpointError(f"{path}: model type {model.get('type')!r}; refspec converts byte-level BPE only")
    pre = pre or _pre_tokenizer(path, tokenizer)
    if bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        raise CheckpointError(f"{path}: ignore_merges = {model.get('ignore_merges')} contradicts pre-tokenizer {pre!r}")
    size = whole_number(config, "vocab_size", str(directory / "config.json"))
    by_id = {i: (text, NORMAL) for text, i in model["vocab"].items()}
    for token in tokenizer.get("added_tokens", []):
        by_id[token["id"]] = (token["content"], CONTROL if token.get("special") else USER_DEFINED)
    last = max(by_id, default=-1)
    if not by_id or last >= size:
        raise CheckpointError(f"{path}: token id {last} does not fit vocab_size = {size} of config.json")
    tokens = [by_id.get(i, (f"[unused{i}]", UNUSED)) for i in range(size)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    bos, eos = _first_id(config, "bos_token_id"), _first_id(config, "eos_token_id")
    out: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": _add_bos(directory, tokenizer, bos) if add_bos is None else add_bos,
        "tokenizer.ggml.add_eos_token": False,
    }
    specials = {text: i for i, (text, kind) in by_id.items() if kind == CONTROL}
    eot = next((specials[t] for t in TURN_ENDS if t in specials), None)
    pad = _first_id(config, "pad_token_id")
    for name, value in (("bos", bos), ("eos", eos), ("eot", eot), ("padding", pad)):
        if value is not None:
            if value not in by_id:
                raise CheckpointError(f"{directory / 'config.json'}: {name} token id {value} is not in {path.name}")
            out[f"tokenizer.ggml.{name}_token_id"] = value
    if (template := chat_template(directory)) is not None:
        out["tokenizer.chat_template"] = template
    return out


def _first_id(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    if isinstance(value, list):  # several end tokens: llama.cpp finds the others by their text
        value = value[0] if value else None
    return value if type(value) is int else None
