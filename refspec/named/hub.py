"""Files of the Hugging Face hub, `hf:OWNER/REPO[:FILE]`, through huggingface_hub: its cache, progress and settings.

HF_ENDPOINT names another server, HF_HUB_OFFLINE=1 asks none, HF_TOKEN opens private repositories. A checkpoint of a
drafter becomes a GGUF in refspec's own cache, named after the commit it came from and the target it is for.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refspec.errors import CheckpointError, RefspecError, UsageError
from refspec.gguf.recast import cache_directory

SCHEME = "hf:"
FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[^:]+))?")
CHECKPOINT = ("*.json", "*.safetensors", "*.bin", "*.jinja")


def is_spec(name: str) -> bool:
    """Whether a name is of the hub."""
    return name.startswith(SCHEME)


def fetch(spec: str) -> Path:
    """The GGUF, or the directory of a checkpoint, that hf:OWNER/REPO[:FILE] means, downloaded if it is not here.

    UsageError for a spec of another form and for several files to choose from, CheckpointError for what there is not.
    """
    found = FORM.fullmatch(spec)
    if found is None:
        raise UsageError(f"{spec}: write hf:OWNER/REPO or hf:OWNER/REPO:FILE")
    repo, file = found["repo"], found["file"]
    hub = _client(spec)
    with _said(spec, hub):
        if file is not None:
            return Path(hub.hf_hub_download(repo, file))
        here = _cached(hub, repo)
        names = _listed(hub, repo, here)
        if name := _chosen(spec, names):
            return Path(hub.hf_hub_download(repo, name))
        return Path(hub.snapshot_download(repo, allow_patterns=list(CHECKPOINT)))


def converted(spec: str, checkpoint: Path, target: str | os.PathLike[str]) -> Path:
    """The GGUF of a drafter's checkpoint directory in the hub's cache, for a target; from refspec's cache if there."""
    from refspec.convert import convert_drafter  # not before it is needed: `refspec -h` answers at once

    about = os.stat(target)
    key = [spec, checkpoint.name, os.path.realpath(target), about.st_size, about.st_mtime_ns]  # its name is the commit
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    repo = spec.removeprefix(SCHEME)
    out = cache_directory() / f"{repo.replace('/', '--')}-{digest}.gguf"
    if not out.is_file():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            convert_drafter(checkpoint, target, out, name=repo)
        except RefspecError as error:
            how = f"refspec convert {spec} --target ... -o FILE takes the options that decide"
            raise type(error)(f"{error}; {how}") from None
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror or error}); set REFSPEC_CACHE") from None
    return out


def cached() -> Iterator[tuple[str, Path]]:
    """(hf:OWNER/REPO:FILE, file) of every GGUF in the hub's cache; nothing without huggingface_hub or a cache."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return
    for snapshot in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/snapshots/*")):
        repo = snapshot.parts[-3].removeprefix("models--").replace("--", "/", 1)
        for path in sorted(snapshot.rglob("*.gguf")):
            yield f"{SCHEME}{repo}:{path.relative_to(snapshot).as_posix()}", path


def _client(spec: str) -> Any:
    try:
        import huggingface_hub as hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UsageError(f"{spec}: huggingface_hub is not installed; pip install 'refspec[hf]'") from None
    hub.logging.set_verbosity_error()  # hints about tokens and faster transfers
    return hub


def _cached(hub: Any, repo: str) -> Path | None:
    """The newest snapshot of a repository in the cache."""
    try:
        return Path(hub.snapshot_download(repo, local_files_only=True))
    except Exception:  # the client has several for "not there"
        return None


def _listed(hub: Any, repo: str, here: Path | None) -> list[str]:
    """The files of a repository as the server has them, or where it cannot be reached as the cache does."""
    try:
        return list(hub.HfApi().list_repo_files(repo))
    except hub.errors.HfHubHTTPError:
        raise
    except Exception:
        if here is None:
            raise
        return [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]


def _chosen(spec: str, names: Sequence[str]) -> str | None:
    """The one GGUF among a repository's files, None where it holds a checkpoint instead."""
    ggufs = sorted(name for name in names if name.endswith(".gguf") and not Path(name).name.startswith("mmproj"))
    if len(ggufs) > 1:
        raise UsageError(f"{spec} has {len(ggufs)} files, name one as {spec}:FILE: {', '.join(ggufs)}")
    if not ggufs and not ("config.json" in names and any(n.endswith((".safetensors", ".bin")) for n in names)):
        there = ", ".join(sorted(names)[:8]) or "nothing"
        raise CheckpointError(f"{spec}: neither a GGUF nor a checkpoint (there is {there}); name another repository")
    return ggufs[0] if ggufs else None


@contextmanager
def _said(spec: str, hub: Any) -> Iterator[None]:
    """Failures of the client as one line."""
    errors, where = hub.errors, hub.constants.ENDPOINT
    known: list[tuple[type[BaseException], Callable[[], str]]] = [
        (errors.GatedRepoError, lambda: "its owner asks who wants it: accept that on its page, then set HF_TOKEN"),
        (errors.RepositoryNotFoundError, lambda: f"no such repository at {where}, or a private one (set HF_TOKEN)"),
        (errors.LocalEntryNotFoundError, lambda: f"not in the cache, and {where} cannot be reached; try again online"),
        (errors.EntryNotFoundError, lambda: "the repository has no such file; leave :FILE out to see which it has"),
        (errors.OfflineModeIsEnabled, lambda: "not in the cache, and HF_HUB_OFFLINE forbids to fetch it"),
    ]
    try:
        yield
    except RefspecError:
        raise
    except Exception as error:
        for kind, why in known:
            if isinstance(error, kind):
                raise CheckpointError(f"{spec}: {why()}") from None
        what = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{spec}: cannot be fetched from {where} ({what}); try again, or name a file") from None
