"""hf:OWNER/REPO[:FILE] through huggingface_hub, against a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from loopback_hub import serving

import refspec
from refspec import named
from refspec.convert.export import export_drafter
from refspec.errors import CheckpointError, UsageError
from refspec.named.hub import cached

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hf` is not installed")


@pytest.fixture
def server(tmp_path, monkeypatch):
    root = tmp_path / "hub"
    for repo in ("me/target", "me/many", "me/nothing", "me/drafter"):
        (root / repo).mkdir(parents=True)
    tiny.target(root / "me/target/model.gguf")
    (root / "me/target/mmproj-model.gguf").write_bytes(b"of another kind")
    (root / "me/nothing/README.md").write_text("nothing")
    for name in ("a-Q4_0.gguf", "a-Q8_0.gguf"):
        tiny.target(root / "me/many" / name)
    drafter = tiny.drafter(tmp_path / "drafter.gguf")
    (root / "me/drafter").rmdir()
    export_drafter(drafter, root / "me/drafter", "speculators")
    with serving(root) as running:
        monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield running


def test_the_only_gguf_of_a_repository_is_fetched_once(server):
    path = named.model("hf:me/target")
    assert (
        Path(path).name == "model.gguf"
        and Path(path).read_bytes() == (server.root / "me/target/model.gguf").read_bytes()
    )
    before = len([line for line in server.asked if line.startswith("GET") and line.endswith(".gguf")])
    assert named.model("hf:me/target:model.gguf") == path and before == 1
    assert len([line for line in server.asked if line.startswith("GET") and line.endswith(".gguf")]) == 1
    assert [name for name, _ in cached()] == ["hf:me/target:model.gguf"]


def test_several_files_are_listed_and_one_can_be_named(server):
    with pytest.raises(UsageError, match=r"hf:me/many has 2 files.*a-Q4_0.gguf, a-Q8_0.gguf"):
        named.model("hf:me/many")
    assert Path(named.model("hf:me/many:a-Q8_0.gguf")).name == "a-Q8_0.gguf"


def test_a_checkpoint_of_a_drafter_is_converted_once_for_each_target(server, tmp_path):
    target = named.model("hf:me/target")
    made = named.drafter("hf:me/drafter", target)
    assert Path(made).parent == tmp_path / "cache" and Path(made).name.startswith("me--drafter-")
    changed = Path(made).stat().st_mtime_ns
    assert named.drafter("hf:me/drafter", target) == made and Path(made).stat().st_mtime_ns == changed
    assert named.drafter("hf:me/drafter", tiny.target(tmp_path / "other.gguf", seed=5)) != made
    with refspec.load("hf:me/target", "hf:me/drafter", n_ctx=128, threads=1, draft_max=3) as session:
        generation = session.generate(tokens=[5, 6, 7], max_tokens=20)
        assert list(generation) and session.drafter.capture_layers == tuple(tiny.LAYERS)
        plain = session.generate(tokens=[5, 6, 7], max_tokens=20, speculate=False)
        assert list(plain) and plain.tokens == generation.tokens
    assert Path(named.local("hf:me/drafter")).is_dir(), "as `refspec inspect` and `convert` want it"
    with pytest.raises(CheckpointError, match="a target is a GGUF"):
        named.model("hf:me/drafter")


def test_a_checkpoint_that_does_not_fit_says_how_to_go_on(server, tmp_path):
    other = tiny.target(tmp_path / "other.gguf", with_tokenizer=False)
    config = server.root / "me/drafter/config.json"
    config.write_text(config.read_text().replace('"draft_vocab_size"', '"draft_vocab_sizes"'))
    with pytest.raises(refspec.RefspecError, match="refspec convert hf:me/drafter --target") as caught:
        named.drafter("hf:me/drafter", other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("hf:me", UsageError, "write hf:OWNER/REPO"),
        ("hf:me/target:", UsageError, "write hf:OWNER/REPO"),
        ("hf:me/absent", CheckpointError, "no such repository at http://127.0.0.1"),
        ("hf:me/absent:x.gguf", CheckpointError, "no such repository at http://127.0.0.1"),
        ("hf:me/target:x.gguf", CheckpointError, "no such file; leave :FILE out"),
        ("hf:me/nothing", CheckpointError, "neither a GGUF nor a checkpoint .there is README.md."),
        ("hf:me/gated:x.gguf", CheckpointError, "accept that on its page"),
    ],
)
def test_what_is_not_there_is_one_line(server, spec, error, words):
    server.gated.add("me/gated")
    with pytest.raises(error, match=words) as caught:
        named.model(spec)
    assert "\n" not in str(caught.value)


def test_offline_what_is_cached_is_used_and_the_rest_is_one_line(server, monkeypatch):
    path = named.model("hf:me/target")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    assert named.model("hf:me/target") == path and named.model("hf:me/target:model.gguf") == path
    for spec in ("hf:me/many", "hf:me/many:a-Q8_0.gguf"):
        with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9") as caught:
            named.model(spec)
        assert "\n" not in str(caught.value)


def test_the_command_honours_hf_endpoint_and_hf_hub_offline(server, tmp_path):
    def run(**env):
        environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url} | env
        command = [sys.executable, "-m", "refspec", "inspect", "hf:me/target", "--json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    refused = run(HF_HUB_OFFLINE="1")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "HF_HUB_OFFLINE" in refused.stderr
    assert '"architecture": "llama"' in run().stdout
    assert '"architecture": "llama"' in run(HF_HUB_OFFLINE="1").stdout
