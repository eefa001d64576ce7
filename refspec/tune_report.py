"""What `refspec tune` found, in words. Not a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def settings(chosen: Mapping[str, Any]) -> str:
    """A setting in one line."""
    parts = []
    if "threads" in chosen:
        parts.append(f"threads {chosen['threads']} for one token, {chosen.get('threads_batch', chosen['threads'])} for several")
    if "flash_attn" in chosen:
        parts.append(f"flash attention {chosen['flash_attn']}")
    if "kv_type" in chosen:
        parts.append(f"{chosen['kv_type']} cache")
    if "repack" in chosen:
        parts.append("weights repacked" if chosen["repack"] else "weights as in the file")
    if "draft_max" in chosen:
        parts.append(f"draft length {chosen['draft_max']}")
    return ", ".join(parts)
