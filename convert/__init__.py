"""Checkpoint directories of trainers -> GGUF and back, and what is inside either.

- `eagle3`, `target`: a drafter, or a Llama target, to GGUF; each returns a `Report`.
- `flags`, `config_keys`, `names`, `biases`, `vocabulary`, `rope`: how a drafter's checkpoint is read.
- `shared_tensors`, `target_info`: whether it fits, and what the target supplies.
- `other_models`: what a directory is that holds no EAGLE-3 drafter.
- `files`, `safetensors_io`, `torch_bin`, `tokenizer`: the files of a directory.
- `export`, `export_hf`: GGUF to the directory of a drafter, or of a Llama target.
- `export_config`, `rope_out`, `checkpoint_out`: the parts of such a directory.
- `stock`: the nearest drafter that stock llama.cpp can run.
- `inspect`: what a GGUF or a directory is, with `inspect_checkpoint` and `inspect_words`.
"""

from refspec.convert.eagle3 import Opened, convert_drafter, open_checkpoint, read_checkpoint
from refspec.convert.report import Report, Resolved
from refspec.convert.target import convert_target

__all__ = ["Opened", "Report", "Resolved", "convert_drafter", "convert_target", "open_checkpoint", "read_checkpoint"]
