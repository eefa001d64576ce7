"""Checkpoint directories -> GGUF: `convert_target` and `convert_drafter`, each returning a `Report`."""

from refspec.convert.eagle3 import Opened, convert_drafter, open_checkpoint, read_checkpoint
from refspec.convert.report import Report, Resolved
from refspec.convert.target import convert_target

__all__ = ["Opened", "Report", "Resolved", "convert_drafter", "convert_target", "open_checkpoint", "read_checkpoint"]
