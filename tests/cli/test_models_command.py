"""`refspec models`: what is here, as a table and as JSON."""

import json

from cli_models import call

from refspec import embedded
from refspec.named import hub, listing, names


def test_the_embedded_pair_is_listed_with_its_facts(monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    result = call("models", "--json")
    assert result.exit_code == 0
    target, drafter = json.loads(result.stdout)[:2]
    assert {*listing.KEYS, "file", "error"} == target.keys()
    assert (target["name"], target["kind"], target["layers"], target["licence"]) == ("embedded", "target", 24, "MIT")
    assert target["drafter"] == drafter["file"] == str(embedded.path(embedded.DRAFTER)) and drafter["kind"] == "drafter"
    assert target["size"] == embedded.path(embedded.TARGET).stat().st_size
    said = call("models").stdout
    assert "embedded" in said and "4,096 tokens" in said and names.INSTALL in said


def test_a_damaged_file_of_the_cache_is_listed_as_such(monkeypatch, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF and no more")
    monkeypatch.setattr(hub, "cached", lambda: iter([("hf:me/x:x.gguf", path)]))
    lines = call("models").stdout.splitlines()
    assert any(line.startswith("hf:me/x:x.gguf") and "cannot be read" in line for line in lines)
