"""Training end to end at toy size: data, target, drafters, kill and resume, exports that refspec reads back."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (torch)")
pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
pytest.importorskip("safetensors", reason="training needs the `train` extra (safetensors)")

from click.testing import CliRunner  # noqa: E402
from toy_training import CONFIG, STEPS  # noqa: E402

from refspec.cli import main  # noqa: E402
from refspec.convert.files import read_tensors  # noqa: E402
from refspec.errors import CheckpointError, UsageError  # noqa: E402
from refspec.gguf.io import read_drafter  # noqa: E402
from refspec.reference.eagle3 import Eagle3Drafter  # noqa: E402
from refspec.train import loop, precision  # noqa: E402
from refspec.train.data import Batches, encode_conversation, prepare, render_pieces  # noqa: E402
from refspec.train.drafters import Training, drafter_for, train_drafters  # noqa: E402
from refspec.train.model import Target, attention, document_mask, fused_attention  # noqa: E402
from refspec.train.precision import Float32Muon  # noqa: E402
from refspec.train.start import start_target  # noqa: E402
from refspec.train.target import is_hidden_matrix, load_target, train_target  # noqa: E402
from refspec.train.tokenizer import BOS, CHAT_TEMPLATE, load_tokenizer  # noqa: E402


def weights(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)["model"]


def test_training_lowers_the_loss_and_reports_it(target_run):
    figures = [json.loads(line) for line in (target_run / "log.jsonl").read_text().splitlines()]
    assert figures[-1]["validation"]["val_loss"] < np.log(CONFIG.vocab_size)


def test_a_killed_run_goes_on_to_the_same_weights(data, target_run, tmp_path, monkeypatch):
    saved, steps_taken = loop.save_atomic, []

    def save_then_die(value, path):
        saved(value, path)
        steps_taken.append(value["step"])
        if value["step"] == 2:
            raise KeyboardInterrupt

    def every_two(*args, **kwargs):
        return run(*args, **(kwargs | {"checkpoint_every": 2}))

    run = loop.run_steps
    monkeypatch.setattr(loop, "save_atomic", save_then_die)
    monkeypatch.setattr("refspec.train.target.run_steps", every_two)
    with pytest.raises(KeyboardInterrupt):
        train_target(data, tmp_path, config=CONFIG, steps=STEPS, seed=3, threads=1)
    train_target(data, tmp_path, config=CONFIG, steps=STEPS, seed=3, threads=1)
    assert steps_taken == [2, 4]
    whole, resumed = weights(target_run), weights(tmp_path)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_run_is_not_resumed_with_other_options(data, target_run):
    with pytest.raises(CheckpointError, match="seed=3, now 4"):
        train_target(data, target_run, config=CONFIG, steps=STEPS, seed=4, threads=1)


def test_training_can_start_from_an_export(data, target_run, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        "refspec.train.target.run_steps", lambda out, identity, model, *_, **__: started.append(model) or {}
    )
    train_target(data, tmp_path, config=CONFIG, steps=1, seed=9, threads=1, init=target_run / "hf")
    for name, value in weights(target_run).items():
        assert torch.equal(value, started[0].state_dict()[name]), name
    with pytest.raises(CheckpointError, match="does not fit"):
        narrower = dataclasses.replace(CONFIG, intermediate_size=CONFIG.intermediate_size // 2)
        train_target(data, tmp_path, config=narrower, steps=1, seed=9, threads=1, init=target_run / "hf")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        train_target(data, tmp_path, config=CONFIG, steps=1, seed=9, threads=1, init=tmp_path)


def begun(target_run, **larger):
    """A target with larger sizes that starts from the run's weights, after a backward pass;

    it computes what the run's target computes.
    """
    torch.manual_seed(7)
    model = Target(dataclasses.replace(CONFIG, **larger))
    start_target(model, target_run / "hf")
    tokens = torch.arange(24).reshape(2, 12) % CONFIG.vocab_size
    mask = document_mask(tokens, -1)
    ours, theirs = (each(tokens, mask)[0] for each in (model, load_target(target_run)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    model.head(ours).square().mean().backward()
    return model


def test_a_wider_target_begins_as_the_same_function_and_its_new_channels_learn(target_run):
    down = begun(target_run, intermediate_size=2 * CONFIG.intermediate_size).layers[0].down.weight
    assert not down[:, CONFIG.intermediate_size :].any() and down.grad[:, CONFIG.intermediate_size :].any()


@pytest.mark.parametrize("more", [1, 2, 5])
def test_a_deeper_target_begins_as_the_same_function_and_its_new_layers_learn(target_run, more):
    deeper = begun(target_run, n_layers=CONFIG.n_layers + more, intermediate_size=2 * CONFIG.intermediate_size)
    fresh = [block for block in deeper.layers if not block.o.weight.any()]
    assert len(fresh) == more and deeper.layers[0].o.weight.any()
    assert all(block.o.weight.grad.any() and block.down.weight.grad.any() for block in fresh)
    with pytest.raises(CheckpointError, match="layers"):
        start_target(Target(dataclasses.replace(CONFIG, n_layers=CONFIG.n_layers - 1)), target_run / "hf")


def test_the_last_part_of_a_run_reads_other_data_in_batches_of_any_size(
    corpus, data, target_run, tmp_path, monkeypatch
):
    finish, read, sizes = tmp_path / "finish", [], []
    prepare(corpus, finish, vocab_size=320, seed=1, val_every=4, tokenizer_file=data / "tokenizer.json")

    class Noted(Batches):
        def __init__(self, folder, split, *, length, rows, seed):
            super().__init__(folder, split, length=length, rows=rows, seed=seed)
            self.about = (folder.name, split, length)

        def __getitem__(self, step):
            read.append(self.about)
            sizes.append(super().__getitem__(step)[0][:, 1:].size)
            return super().__getitem__(step)

    monkeypatch.setattr("refspec.train.target.Batches", Noted)
    how = {"config": CONFIG, "seed": 3, "threads": 1, "device": "cpu", "finish": finish}
    train_target(data, tmp_path / "run", steps=8, batch_tokens=2048, finish_from=0.5, **how)
    seen = [about for about in read if about[1] == "train"]
    assert seen == [(data.name, "train", 256)] * 4 + [("finish", "train", 256)] * 2 + [("finish", "train", 1024)] * 2
    assert {size for size, about in zip(sizes, read, strict=True) if about[1] == "train"} == {2048}
    with pytest.raises(CheckpointError, match=r"finish_from=0\.5, now 0\.75"):
        train_target(data, tmp_path / "run", steps=8, batch_tokens=2048, finish_from=0.75, **how)
    with pytest.raises(UsageError, match="--batch-tokens 1500 is no multiple of 1024"):
        train_target(data, tmp_path / "no", steps=8, batch_tokens=1500, **how)
    with pytest.raises(UsageError, match="--batch-tokens 1500 is no multiple of 1024"):
        train_drafters(
            data,
            target_run,
            tmp_path / "no",
            {"a": drafter_for(target_run, 200, (1, 2, 4))},
            steps=1,
            depth=1,
            seed=1,
            batch_tokens=1500,
        )
    other = tmp_path / "other"
    prepare(corpus, other, vocab_size=280, seed=1, val_every=4)
    with pytest.raises(UsageError, match="its tokenizer is not that of"):
        train_target(data, tmp_path / "no", steps=8, **(how | {"finish": other}))


def test_several_folders_are_read_in_turn(corpus, data, tmp_path, monkeypatch):
    more, read = tmp_path / "more", []
    prepare(corpus, more, vocab_size=320, seed=2, val_every=4, tokenizer_file=data / "tokenizer.json")

    class Noted(Batches):
        def __init__(self, folder, split, *, length, rows, seed):
            super().__init__(folder, split, length=length, rows=rows, seed=seed)
            self.about = (folder.name, split)

        def __getitem__(self, step):
            read.append((*self.about, step))
            return super().__getitem__(step)

    monkeypatch.setattr("refspec.train.target.Batches", Noted)
    how = {"config": CONFIG, "seed": 3, "threads": 1, "device": "cpu"}
    train_target([data, more], tmp_path / "run", steps=3, **how)
    assert [r for r in read if r[1] == "train"] == [
        (data.name, "train", 0),
        ("more", "train", 0),
        (data.name, "train", 1),
    ]
    assert {r[0] for r in read if r[1] == "val"} == {data.name}
    with pytest.raises(CheckpointError, match="this run was started with data="):
        train_target([data, data], tmp_path / "run", steps=3, **how)
    prepare(corpus, tmp_path / "other", vocab_size=280, seed=1, val_every=4)
    with pytest.raises(UsageError, match="its tokenizer is not that of"):
        train_target([data, tmp_path / "other"], tmp_path / "no", steps=3, **how)


def test_weight_decay_is_that_of_the_blocks_matrices():
    shrunk = {}
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        model = Target(CONFIG)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        loop.Optimizers(model, muon_lr=0.1, adam_lr=0.1, is_matrix=is_hidden_matrix, weight_decay=decay).step(1.0)
        shrunk[decay] = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    matrices = {name for name, p in Target(CONFIG).named_parameters() if p.ndim == 2 and "embed" not in name}
    assert not shrunk[0.0] and shrunk[0.5] == matrices


def test_plain_text_is_read_without_what_a_benchmark_has(corpus, data, tmp_path):
    said = "one two three four five six seven eight nine ten eleven twelve thirteen"
    texts, bench, out = tmp_path / "t.jsonl", tmp_path / "b.jsonl", tmp_path / "out"
    texts.write_text(
        json.dumps({"text": f"The cat runs.\n\nHe said: {said.upper()}, and more.\n\nThe dog sees a tree."}) + "\n"
    )
    bench.write_text(json.dumps({"turns": [f"Say {said}!"]}) + "\n")
    made = CliRunner().invoke(
        main,
        [
            "train",
            "data",
            str(corpus),
            "-o",
            str(out),
            "--tokenizer",
            str(data / "tokenizer.json"),
            "--texts",
            str(texts),
            "--without",
            str(bench),
        ],
    )
    assert made.exit_code == 0 and "left out: 1 paragraphs" in made.stdout
    tokens, mask = np.load(out / "train.tokens.npy"), np.load(out / "train.mask.npy")
    tokenizer = load_tokenizer(out / "tokenizer.json")
    kept = tokenizer.encode(f"{BOS}The cat runs.\n\nThe dog sees a tree.", add_special_tokens=False).ids
    (at,) = [i for i in range(len(tokens)) if tokens[i : i + len(kept)].tolist() == kept]
    assert not mask[at : at + len(kept)].any()
    plain = tmp_path / "plain"
    prepare(corpus, plain, vocab_size=320, seed=1, tokenizer_file=data / "tokenizer.json")
    # the held-out text is the same
    np.testing.assert_array_equal(np.load(out / "val.tokens.npy"), np.load(plain / "val.tokens.npy"))
    refused = CliRunner().invoke(main, ["train", "data", str(corpus), "-o", str(out), "--without", str(bench)])
    assert refused.exit_code == 2 and "--without does nothing without --texts" in refused.stderr


def test_batches_are_a_function_of_the_step(data):
    one, other = (Batches(data, "train", length=64, rows=4, seed=5) for _ in range(2))
    later = one.per_epoch + 3
    other[0]
    np.testing.assert_array_equal(one[later][0], other[later][0])
    assert not np.array_equal(one[3][0], one[later][0])


def test_the_template_renders_what_training_saw(data):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    messages = [{"role": "user", "content": "Hi\n there"}, {"role": "assistant", "content": "a b"}]
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)
    assert template.render(messages=messages, bos_token=BOS) == "".join(text for text, _ in render_pieces(messages))
    tokenizer = load_tokenizer(data / "tokenizer.json")
    ids, mask = encode_conversation(tokenizer, messages)
    mine = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
    assert mine == "a b<|im_end|>"


def test_an_accelerators_attention_is_the_one_written_out():
    torch.manual_seed(0)
    tokens = torch.randint(1, 6, (2, 24))  # 1 begins a document
    q, k, v = (torch.randn(2, 3, 24, 16) for _ in range(3))
    mask = document_mask(tokens, 1)
    torch.testing.assert_close(fused_attention(q, k, v, mask), attention(q, k, v, mask), atol=1e-6, rtol=1e-5)


def test_a_document_does_not_see_the_one_before():
    torch.manual_seed(0)
    model = Target(CONFIG).eval()
    ids = torch.randint(2, 300, (1, 12))
    ids[0, [0, 6]] = 1
    changed = ids.clone()
    changed[0, 3] = 7 if ids[0, 3] != 7 else 8
    with torch.no_grad():
        mask = document_mask(ids, 1).float()
        before, after = model(ids, mask)[0], model(changed, mask)[0]
    assert torch.equal(before[0, 6:], after[0, 6:])
    assert not torch.equal(before[0, 3:6], after[0, 3:6])


@pytest.fixture(scope="module")
def drafter_run(data, target_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("drafters")
    variants = {
        "post_norm": drafter_for(target_run, 200, (1, 2, 4)),
        "pre_norm": drafter_for(target_run, 200, (1, 2, 4), feature_norm="none", feedback="pre_norm"),
    }
    figures = train_drafters(data, target_run, out, variants, steps=2, depth=2, seed=1, threads=1)
    return out, figures


def test_drafters_train_and_report_agreement_by_depth(drafter_run):
    _, figures = drafter_run
    for name in ("post_norm", "pre_norm"):
        assert 0 <= figures[f"{name}_agree_0"] <= 1
        assert 1 <= figures[f"{name}_forced_tau"] <= 3


def test_a_run_of_drafters_comes_back_from_its_checkpoint(data, target_run, drafter_run):
    out, figures = drafter_run
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 2 and checkpoint["figures"] == figures
    variants = {
        "post_norm": drafter_for(target_run, 200, (1, 2, 4)),
        "pre_norm": drafter_for(target_run, 200, (1, 2, 4), feature_norm="none", feedback="pre_norm"),
    }
    assert train_drafters(data, target_run, out, variants, steps=2, depth=2, seed=1, threads=1) == figures


@pytest.mark.parametrize("name", ["post_norm", "pre_norm"])
def test_the_exported_drafter_gguf_is_the_trained_one(name, drafter_run, target_run):
    out, _ = drafter_run
    config, loaded = read_drafter(out / f"{name}.gguf")
    assert config.feedback.value == name
    assert config.capture_layers == (1, 2, 4)
    drafter = Eagle3Drafter(config, loaded)
    stored = read_tensors(out / name)
    np.testing.assert_allclose(drafter.weights["output"], stored["lm_head.weight"].load(), atol=2e-3)
    np.testing.assert_array_equal(drafter.d2t, stored["d2t"].load() + np.arange(200))
    drafter.extend(np.array([5, 6]), np.random.default_rng(0).standard_normal((2, 96)).astype(np.float32))
    assert len(drafter.draft(3).tokens) == 3


def test_twins_start_from_the_same_draw(data, target_run):
    from refspec.train.drafter import Eagle3

    made = []
    for feedback in ("post_norm", "pre_norm"):
        torch.manual_seed(1)
        made.append(
            Eagle3(drafter_for(target_run, 200, (1, 2, 4), feedback=feedback), torch.zeros(320, 32), torch.arange(200))
        )
    for (name, a), (_, b) in zip(made[0].named_parameters(), made[1].named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_trained_pair_generates_through_llama_cpp(drafter_run, target_run):
    out, _ = drafter_run
    pair = ["-m", str(target_run / "target.gguf"), "-d", str(out / "post_norm.gguf")]
    result = CliRunner().invoke(
        main, ["generate", *pair, "-p", "the cat", "-n", "12", "-t", "1", "--json", "--compare", "--strict"]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["identical"] is True
    assert record["generated_tokens"] >= 1


def test_commands_say_in_one_line_what_is_missing(tmp_path, data):
    for arguments, words in (
        (["target", "--data", str(tmp_path), "-o", str(tmp_path / "o"), "--steps", "1"], "refspec train data"),
        (
            ["drafter", "--data", str(data), "--target", str(tmp_path), "-o", str(tmp_path / "o"), "--steps", "1"],
            "train the target first",
        ),
        (
            ["drafter", "--data", str(data), "--target", str(tmp_path), "-o", "x", "--steps", "1", "--layer-ids", "a"],
            "2,7,11",
        ),
    ):
        result = CliRunner().invoke(main, ["train", *arguments])
        assert result.exit_code != 0
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_load_target_names_the_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="train the target first"):
        load_target(tmp_path)


def test_a_target_too_shallow_for_the_default_boundaries_is_one_line(target_run, monkeypatch):
    six = type("Six", (), {"config": dataclasses.replace(CONFIG, n_layers=6)})
    monkeypatch.setattr("refspec.train.drafters.load_target", lambda _: six)
    with pytest.raises(UsageError, match=r"6 layers have no three default boundaries .* --layer-ids"):
        drafter_for(target_run, 200)
    assert drafter_for(target_run, 200, (1, 2, 4)).capture_layers == (1, 2, 4)


def test_drafters_can_start_from_an_earlier_run(data, target_run, drafter_run):
    earlier = weights(drafter_run[0])
    variants = {"post_norm": drafter_for(target_run, 200, (1, 2, 4))}
    begun = Training(data, target_run, variants, depth=2, seed=5, threads=1, init=drafter_run[0])
    for name, value in begun.together.named_parameters():
        assert torch.equal(value, earlier[name]), name
    # With fewer draft tokens each row of the head is still its token's.
    fewer = Training(
        data,
        target_run,
        {"post_norm": drafter_for(target_run, 150, (1, 2, 4))},
        depth=2,
        seed=5,
        threads=1,
        init=drafter_run[0],
    )
    ids, head = earlier["post_norm.draft_ids"].tolist(), fewer.drafters["post_norm"].head.weight
    for row, token in enumerate(fewer.drafters["post_norm"].draft_ids.tolist()):
        assert torch.equal(head[row], earlier["post_norm.head.weight"][ids.index(token)])
    with pytest.raises(CheckpointError, match="same variants"):
        Training(data, target_run, {"other": variants["post_norm"]}, depth=2, seed=5, threads=1, init=drafter_run[0])
    with pytest.raises(CheckpointError, match="a target run; --init wants drafters"):
        Training(data, target_run, variants, depth=2, seed=5, threads=1, init=target_run)


def test_drafters_can_start_from_exports(data, target_run, drafter_run, tmp_path):
    """An export of a GGUF in use is enough: the folder holds NAME/ in the speculators layout and no checkpoint."""
    earlier = weights(drafter_run[0])
    shutil.copytree(drafter_run[0] / "post_norm", tmp_path / "post_norm")
    variants = {"post_norm": drafter_for(target_run, 200, (1, 2, 4))}
    begun = Training(data, target_run, variants, depth=2, seed=5, threads=1, init=tmp_path)
    for name, value in begun.together.named_parameters():
        assert torch.equal(value, earlier[name]), name
    with pytest.raises(CheckpointError, match=r"no other/model\.safetensors there"):
        Training(data, target_run, {"other": variants["post_norm"]}, depth=2, seed=5, threads=1, init=tmp_path)
    plain = {"post_norm": drafter_for(target_run, 200, (1, 2, 4), feature_norm="concat")}
    with pytest.raises(CheckpointError, match="input_norm"):
        Training(data, target_run, plain, depth=2, seed=5, threads=1, init=tmp_path)


def test_a_wider_drafter_starts_as_the_same_function(data, target_run, drafter_run):
    def begun(ffn):
        return Training(
            data,
            target_run,
            {"post_norm": drafter_for(target_run, 200, (1, 2, 4), ffn=ffn)},
            depth=2,
            seed=5,
            threads=1,
            init=drafter_run[0],
        )

    same, wider = begun(None), begun(CONFIG.intermediate_size + 24)
    assert wider.drafters["post_norm"].down.weight.shape[1] == CONFIG.intermediate_size + 24
    for name, value in same.validate().items():
        assert wider.validate()[name] == pytest.approx(value, rel=1e-3), name
    loss, _ = wider.loss_of(0)
    loss.backward()
    assert wider.drafters["post_norm"].down.weight.grad[:, -24:].abs().max() > 0, "the new channels would never learn"
    with pytest.raises(CheckpointError, match="does not fit the sizes"):
        begun(CONFIG.intermediate_size - 8)


def test_the_law_to_learn_is_that_of_the_teachers_temperature(data, target_run):
    def lesson(temperature):
        training = Training(
            data,
            target_run,
            {"post_norm": drafter_for(target_run, 200, (1, 2, 4))},
            depth=2,
            seed=5,
            threads=1,
            teacher_temp=temperature,
        )
        tokens, mask = training.batches[0]
        return training.teacher.lesson(tokens[:, :-1], mask[:, :-1], 0.5)

    one, half = lesson(1.0), lesson(0.5)
    for p, sharper in zip(one.p_target, half.p_target, strict=True):
        expected = p.p**2 / (p.p**2).sum(-1, keepdim=True)
        assert torch.allclose(sharper.p, expected, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(one.best, half.best, strict=True))


def test_the_feed_forward_width_of_a_drafter_may_differ_from_its_targets(target_run):
    assert drafter_for(target_run, 200, (1, 2, 4)).intermediate_size == CONFIG.intermediate_size
    assert drafter_for(target_run, 200, (1, 2, 4), ffn=40).intermediate_size == 40


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04K\x01."])
def test_a_damaged_checkpoint_is_one_line(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint") as error:
        load_target(tmp_path)
    assert "\n" not in str(error.value)


def test_float32_muon_takes_the_steps_of_torch_s():
    steps = {}
    for kind in (torch.optim.Muon, Float32Muon):
        torch.manual_seed(4)
        matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 40), (40, 24), (16, 16))]
        optimizer = kind(matrices, lr=0.02, momentum=0.95, weight_decay=0.01)
        before = [m.detach().clone() for m in matrices]
        for _ in range(4):
            for m in matrices:
                m.grad = torch.randn_like(m)
            optimizer.step()
        steps[kind] = [m.detach() - b for m, b in zip(matrices, before, strict=True)]
    for ours, theirs in zip(steps[Float32Muon], steps[torch.optim.Muon], strict=True):
        assert (ours - theirs).norm() < 5 * 2**-8 * theirs.norm(), (
            "bf16's rounding in each of its five iterations, and nothing else"
        )


@pytest.mark.parametrize("pays", [False, True])
def test_both_precisions_train(data, tmp_path, monkeypatch, pays):
    monkeypatch.setattr(precision, "half_pays", lambda kind: pays)
    figures = train_target(data, tmp_path, config=CONFIG, steps=3, seed=1, threads=1)
    assert np.isfinite(figures["val_loss"])
    with precision.mixed(torch.device("cpu")):
        hidden = load_target(tmp_path).layers[0].qkv(torch.randn(1, 12, CONFIG.hidden_size))
    assert hidden.dtype == precision.compute_type(torch.device("cpu")) == (torch.bfloat16 if pays else torch.float32)


def test_the_faster_precision_is_chosen_by_the_clock(monkeypatch):
    for half, pays in ((1.0, True), (60.0, False)):
        precision.half_pays.cache_clear()
        monkeypatch.setattr(precision, "_seconds", lambda dtype, half=half: half if dtype is torch.bfloat16 else 2.0)
        assert precision.half_pays("cpu") is pays and precision.half_pays("cuda")
    precision.half_pays.cache_clear()


def test_a_drafter_trains_on_an_exported_target(data, target_run, tmp_path):
    ours, theirs = (load_target(folder) for folder in (target_run, target_run / "hf"))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert ours.config == theirs.config
    config = json.loads((target_run / "hf" / "config.json").read_text())
    for change, words in (
        ({"model_type": "qwen3"}, "model_type = 'qwen3'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ({"vocab_size": None}, "vocab_size"),
    ):
        changed = {key: value for key, value in (config | change).items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=words):
            load_target(tmp_path)
    for text, words in (("[]", "not a JSON object"), ("{", "not readable")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            load_target(tmp_path)
    variants = {"post_norm": drafter_for(target_run / "hf", 64, (1, 2, 3), ffn=48)}
    train_drafters(data, target_run / "hf", tmp_path / "out", variants, steps=1, depth=2, seed=1, threads=1)
    assert (tmp_path / "out" / "post_norm.gguf").is_file()
