"""Captions: found, learned, asked for, and read by a transformer that padding does not disturb."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from corpus import folder_of_notes, tiny_settings
from tiny import SPEC_CASES, TOKENS, lively, random_input, tiny_backbone, tiny_model
from typer.testing import CliRunner

from audiogen.cli import app
from audiogen.commands.train import train
from audiogen.data import choose_conditions, find_labels, scan, split
from audiogen.data.labels import describe_labels
from audiogen.errors import ConfigError
from audiogen.generation.engines import ENGINES
from audiogen.generation.generate import generate, stream
from audiogen.generation.request import Request
from audiogen.models import t5
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Conditioner, Label, Text
from audiogen.models.layers import CrossAttention, Memory
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.run import load_run
from audiogen.spec import TokenSpec

WORDS = ["a dry snare", "a deep kick with a long tail", "noise, as of rain", "ein Glöckchen"]


def text_of(max_bytes=64, dim=8):
    return lively(Text(Text.Config(max_bytes, encoder_dim=16), dim)).double().eval()


def values_of(text, captions):
    """(B, max_bytes, 1)"""
    return torch.stack([text.parse("text", caption) for caption in captions])


def test_a_caption_is_its_folded_bytes():
    """Guards against "A dry snare" and "a  dry SNARE" as two prompts (audiocraft#447), and cut or lost bytes."""
    text = text_of(12)
    x = text.parse("text", " A dry\n SNARE drum")
    assert x.shape == (12, 1) and bytes(x[:, 0].byte().tolist()) == b"a dry snare "
    assert text.describe(x) == "a dry snare "
    assert torch.equal(text.parse("text", "é")[:2, 0], torch.tensor([0xC3, 0xA9]).float())
    assert text.describe(text.parse("text", "aaaaaaaaaaaé")) == "aaaaaaaaaaa"  # the last letter is cut in two
    assert text.parse("text", " \0 ").isnan().all() and text.describe(text.parse("text", "")) is None
    with pytest.raises(ConfigError, match="text: must be a text, got 7"):
        text.parse("text", 7)
    for bad in ({"max_bytes": 0}, {"max_bytes": 10**9}, {"encoder_dim": 12}, {"encoder_dim": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Text.Config(**bad)


def test_padding_by_a_longer_text_changes_nothing():
    """Guards against padding that is attended to or averaged, as in audiocraft (contract 10): each text alone, with
    longer ones, and under another limit of bytes."""
    text = text_of()
    together = text(values_of(text, WORDS))
    for i, caption in enumerate(WORDS):
        torch.testing.assert_close(text(values_of(text, [caption]))[0], together[i], rtol=0, atol=1e-12)
    assert len({tuple(row.tolist()) for row in together[:, 0]}) == len(WORDS)
    longer = text_of(200)
    longer.load_state_dict(text.state_dict())
    torch.testing.assert_close(longer(values_of(longer, WORDS)), together, rtol=0, atol=1e-12)


def test_the_order_of_letters_matters():
    """Guards against a bag of bytes, to which "snare then kick" is "kick then snare"."""
    text = text_of()
    one, other = text(values_of(text, ["kick, then snare", "snare, then kick"]))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_text_is_encoded_once_for_all_its_frames(monkeypatch):
    """Guards against a transformer that runs for each frame of a crop, and against frames that get another's text."""
    text = text_of()
    pieces = values_of(text, WORDS[:2])[:, :, 0]  # (2, max_bytes)
    nothing = torch.full_like(pieces[0], math.nan)
    order = torch.stack([pieces[0]] * 5 + [pieces[1]] * 4 + [nothing] * 3 + [pieces[0]] * 2, dim=1)
    seen = []
    encode = text.encode
    monkeypatch.setattr(text, "encode", lambda texts: (seen.append(len(texts)), encode(texts))[1])
    y = text(order[None])[0]
    assert seen == [4]
    expected = text(values_of(text, WORDS[:2]))[:, 0]
    torch.testing.assert_close(y[:5], expected[:1].expand(5, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(y[5:9], expected[1:].expand(4, -1), rtol=0, atol=1e-12)
    assert torch.equal(y[9:12], text.null.expand(3, -1))
    torch.testing.assert_close(y[12:], expected[:1].expand(2, -1), rtol=0, atol=1e-12)


def test_new_texts_draw_no_random_numbers():
    """Guards against other initial weights of the model for the same seed."""
    before = torch.get_rng_state()
    Text(Text.Config(), 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind, changes", [("bigram", {}), ("gpt", {"cross_attention": True})])
def test_a_model_learns_what_captions_mean(kind, changes):
    """Guards against an encoder that tells texts apart but can't be trained, for example from weights of zero: which
    code is repeated depends on the order of two words, and the model is asked in another sentence."""
    spec = TokenSpec(sample_rate=8000, hop_length=80, num_codebooks=1, codebook_size=2)
    text = Text(Text.Config(32, "bytes", 32), 16)
    if changes:
        text.serve(3)
    backbone = tiny_backbone(kind, dim=16, **changes)
    model = SequenceModel(spec, backbone, PATTERNS["parallel"](1), Conditioner({"text": text}))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.tensor([0, 1]).repeat(3)[:, None, None].expand(-1, 1, 8)
    sentences = ("{} then {}", "first {}, {} after", "{}, later {}")
    orders = [("kick", "snare"), ("snare", "kick")]
    given = {"text": values_of(text, [sentence.format(*words) for sentence in sentences for words in orders])}
    for _ in range(60):
        optimizer.zero_grad()
        model(Batch(x, given)).mean().backward()
        optimizer.step()
    asked = {"text": values_of(text, ["{} and {}".format(*words) for words in orders])}
    loss = model(Batch(x[:2, :, :1], asked))  # nats of the first code, of which only the text tells
    assert float(loss.detach().max()) < 0.2, loss


# ---- captions of a folder


def folder_with(path, header, rows):
    """A folder of notes with a metadata.csv."""
    folder = folder_of_notes(path / "corpus", [1200] * len(rows))
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file", *header], *([f"note-{i:02d}.wav", *row] for i, row in enumerate(rows))])
    return folder


def test_captions_are_told_from_labels(tmp_path):
    """Guards against a thousand captions as a thousand labels, names of takes as captions, and a column `text` of few
    values as labels."""
    rows = [[f"a sound, number {i}", f"take{i}", ["low", "high"][i % 2], f"note of {i} Hz"] for i in range(20)]
    folder = folder_with(tmp_path, ["prompt", "take", "caption", "register"], rows)
    for row in rows:
        row[3] = row[3] if row[0].endswith("1") else "of no pitch"
    index = scan(folder, progress=False)
    sides, labels = split(index), find_labels(index)
    chosen = choose_conditions(labels, sides)
    assert {name for name, config in chosen.items() if config == Text.Config()} == {"prompt", "caption", "register"}
    assert "take" not in chosen
    assert all(not column.one_sided for column in describe_labels(labels, sides) if column.name == "prompt")
    said = CliRunner().invoke(app, ["doctor", str(folder)]).output
    assert 'captions, such as "a sound, number' in said.replace("\n", " ")


OVERRIDES = ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.05", "training.evaluations=2"]
MULAW = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that has learned captions and an instrument."""
    place = tmp_path_factory.mktemp("captions")
    rows = [[f"{['Kick', 'Snare'][i % 2]} number {i}", ["kick", "snare"][i % 2]] for i in range(12)]
    folder = folder_with(place, ["caption", "drum"], rows)
    train(folder, place / "run", "mulaw", "bigram", steps=4, overrides=[*OVERRIDES, *MULAW])
    return place


def test_training_learns_captions(made):
    """Guards against a projection that is never trained (audiocraft had one for months), and a config without it."""
    config = json.loads((made / "run" / "config.json").read_text())
    assert config["conditions"]["caption"] == {"kind": "text", "max_bytes": 256, "encoder": "bytes", "encoder_dim": 128}
    part = load_run(made / "run").model.conditioner.parts["caption"]
    assert (part.linear.weight != 0).all() and (part.null != 0).all()
    fresh = Text(Text.Config(), 8)
    assert not torch.equal(part.encoder.blocks[0].attention.qkv.weight, fresh.encoder.blocks[0].attention.qkv.weight)


def test_a_text_that_is_asked_for_is_heard(made, tmp_path):
    """Guards against a text that is ignored, and labels of a random file that contradict it."""
    run = load_run(made / "run")
    lively(run.model)
    one, other = (run.generate(0.05, seed=1, conditions={"text": text}) for text in ("a soft bell", "hard noise"))
    assert not torch.equal(one, other)
    assert torch.equal(one, run.generate(0.05, seed=1, conditions={"caption": "A soft  bell"}))
    assert run.ask({"text": "a soft bell"}, [1]).words == [{"caption": "a soft bell"}]
    training = [read["caption"] for part in run.split().train if (read := run.labels.files[part.file.sha256])]
    for caption in training:  # its own file's label comes with it
        assert run.ask({"text": caption}, [1]).words == [
            {"caption": caption.lower(), "drum": caption.split()[0].lower()}
        ]
    words = run.ask(None, range(50)).words  # captions that nobody asks for are those of training files
    assert {said["caption"] for said in words} == {caption.lower() for caption in training}
    assert all(said["caption"].startswith(said["drum"]) for said in words)


def test_words_that_were_not_learned_are_told_of(made, caplog):
    """Guards against a caption in words of its own that gives any sound, without a word on why."""
    run = load_run(made / "run")
    for _ in range(2):  # `generate` asks for the length first
        run.ask({"text": "A kick, number 99, on Xylophones"}, [1, 2])
    assert caplog.messages == [
        "caption: no caption of the training files has these words, so they mean little: a, 99, on, xylophones"
    ]
    caplog.clear()
    for text in ("Snare kick", "", None):
        run.ask({"text": text}, [1])
    assert not caplog.messages


def test_generate_takes_a_text(made, tmp_path):
    """Guards against --text that is lost on its way, and a traceback where a run knows none."""
    command = ["generate", str(made / "run"), "--out", str(tmp_path), "--num", "1", "--seconds", "0.05", "--text", "Hi"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0 and "caption hi" in found.output, found.output
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["conditions"] == {"caption": "hi"}
    run = train(made / "corpus", made / "drum", None, "bigram", steps=2, overrides=OVERRIDES, condition=["drum"])
    with pytest.raises(ConfigError, match="text: the run has no such condition; it has drum"):
        run.generate(0.05, conditions={"text": "a kick"})


# ---- T5


@pytest.fixture(scope="module")
def small_t5(tmp_path_factory):
    """A folder with a T5 of random weights and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("t5")
    words = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", "a", "kick", "snare", "number"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = transformers.T5Config(vocab_size=7, d_model=24, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return str(folder)


def test_a_t5_is_read_as_transformers_reads_it(small_t5, monkeypatch):
    """Guards against other tokens, padding that is averaged, and a text that is encoded again for every batch."""
    transformers = pytest.importorskip("transformers")
    captions = [b"a kick", b"a snare number snare kick"]
    found = t5.encode(captions, small_t5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_t5)
    encoder = transformers.T5EncoderModel.from_pretrained(small_t5).eval()
    for caption, vector in zip(captions, found, strict=True):
        with torch.no_grad():
            hidden = encoder(tokenizer(caption.decode(), return_tensors="pt").input_ids).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(dim=0))
    assert t5.width(small_t5) == 24
    monkeypatch.setattr(t5, "load", lambda name: pytest.fail("encoded again"))
    assert torch.equal(t5.encode(captions[::-1], small_t5), found.flip(0))


def test_a_run_learns_from_a_t5_that_stays_as_it_is(made, small_t5):
    """Guards against a projection behind no_grad, which audiocraft had for months; against weights of the T5 in the
    run, and a run that can't be loaded where there is no T5."""
    overrides = [*OVERRIDES, *MULAW, f"conditions.caption.encoder={small_t5}"]
    run = train(made / "corpus", made / "t5", "mulaw", "bigram", steps=4, overrides=overrides)
    part = run.model.conditioner.parts["caption"]
    assert part.config.encoder_dim == 24 and (part.linear.weight != 0).all()
    assert [name for name, _ in part.named_parameters()] == ["null", "linear.weight", "linear.bias"]
    lively(run.model)
    one, other = (run.generate(0.05, seed=1, conditions={"text": text}) for text in ("a kick", "a snare"))
    assert not torch.equal(one, other)
    part.config = Text.Config(encoder="gone", encoder_dim=24)
    with pytest.raises(ConfigError, match="encoder: there is no T5 called gone on this machine"):
        run.generate(0.05, conditions={"text": "a kick"})


def test_settings_of_conditions_are_checked(made):
    """Guards against a typo that is ignored, and an error that comes after the folder has been encoded."""
    for setting, message in {
        "conditions.caption.encodr=t5": "conditions.caption.encodr: unknown setting, did you mean",
        "conditions.captoin.encoder=t5": "conditions.captoin.encoder: unknown setting, did you mean conditions.caption",
        "conditions.caption.encoder=no/such": "encoder: ",
    }.items():
        with pytest.raises(ConfigError, match=message):
            train(made / "corpus", made / "new", "mulaw", "bigram", steps=4, overrides=[*OVERRIDES, *MULAW, setting])
    assert not (made / "new" / "cache").exists()


# ---- cross-attention


def reader(spec=TOKENS, pattern="delay"):
    """A lively GPT that attends to the text, in float64."""
    conditioner = Conditioner(
        {"label": Label(Label.Config(("a", "b")), 8), "text": Text(Text.Config(6, "bytes", 8), 8)}
    )
    conditioner.parts["text"].serve(3)
    backbone = tiny_backbone("gpt", cross_attention=True)
    return lively(SequenceModel(spec, backbone, PATTERNS[pattern](spec.num_rows), conditioner)).double().eval()


def texts(batch_size, num_frames):
    """Texts of four and six letters that change every third frame, and labels."""
    x = torch.randint(97, 123, (batch_size, 6, num_frames)).float()
    x = x[:, :, torch.arange(num_frames) // 3 * 3]
    x[:, 4:, ::2] = math.nan
    return {"text": x, "label": torch.zeros(batch_size, 1, 1)}


def nats(model, x, conditions):
    with torch.no_grad():
        return model(Batch(x, conditions))


@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
def test_cross_attention_reads_the_text_of_its_frame_alone(spec, pattern):
    """Guards against masks that are ignored, as in audiocraft: texts of other items or other frames that leak, a null
    that differs from a text that is not given (contract 10), and texts one step early (contract 11)."""
    model, x, conditions = reader(spec, pattern), random_input(spec, 3, 12), texts(3, 12)
    together = nats(model, x, conditions)
    for item in range(3):
        own = {name: values[item : item + 1] for name, values in conditions.items()}
        torch.testing.assert_close(nats(model, x[item : item + 1], own)[0], together[item], rtol=0, atol=1e-10)
    dropped = {**conditions, "text": torch.full_like(conditions["text"], math.nan)}
    nothing = nats(model, x, {"label": conditions["label"]})
    torch.testing.assert_close(nats(model, x, dropped), nothing, rtol=0, atol=1e-12)
    changed = {**conditions, "text": conditions["text"].clone()}
    changed["text"][:, :, 7:] = math.nan
    seq = model.pattern.apply(x, model.hole)

    def steps(conditions, length):
        found, state, start, given = [], None, 0, model.prepare(conditions)
        for chunk in seq.split(length, dim=2):
            stop = start + chunk.shape[2]
            added, memory = model.added(given, start, stop), model.memory(given, start, stop)
            nll, state = model.nll_of_steps(chunk, state, added, memory=memory)
            found.append(nll)
            start = stop
        return torch.cat(found, dim=2)

    with torch.no_grad():
        whole = steps(conditions, seq.shape[2])
        torch.testing.assert_close(steps(conditions, 1), whole, rtol=0, atol=1e-10)
        differ = (steps(changed, seq.shape[2]) - whole).abs().amax(dim=(0, 1)) > 1e-9
    assert int(differ.int().argmax()) == int(model.pattern.step_index(7, 8).min())


def test_cross_attention_is_what_a_slow_loop_computes():
    """Guards against a wrong scale, heads that are mixed up, and keys of another layer."""
    layer, B, S = CrossAttention(8, 2).double(), 2, 3
    memory = Memory(
        torch.randn(5, 4, 2, 8).double(), torch.tensor([0, 1, 1, 2, 2]), torch.tensor([[0, 1, 2], [2, 2, 1]])
    )
    x = torch.randn(B, S, 8).double()
    expected = torch.zeros(B, S, 8).double()
    for b in range(B):
        for s in range(S):
            q = layer.query(x[b, s])
            own = memory.keys_values[memory.owner == memory.wanted[b, s], 3]  # (n, 2, 8)
            for head in (slice(0, 4), slice(4, 8)):
                weights = (own[:, 0, head] @ q[head] / 2).softmax(dim=0)
                expected[b, s, head] = weights @ own[:, 1, head]
    torch.testing.assert_close(layer(x, memory, 3), layer.out(expected))


def test_a_stream_reads_its_text_as_the_whole_does(monkeypatch, caplog):
    """Guards against generation whose text is another than in training, guidance that mixes its rows, and an engine
    that leaves the text out without a word."""
    model, conditions, x = reader(), texts(2, 12), random_input(TOKENS, 2, 3)
    request = Request(x, seeds=[1, 2], conditions=conditions, guidance=2.0)
    whole = generate(model, 9, request).x
    assert torch.equal(torch.cat(list(stream(model, 9, request)), dim=2), whole)
    for item in range(2):
        own = {name: values[item : item + 1] for name, values in conditions.items()}
        alone = Request(x[item : item + 1], seeds=[item + 1], conditions=own, guidance=2.0)
        assert torch.equal(generate(model, 9, alone).x[0], whole[item])
    other = {**conditions, "text": conditions["text"].flip(1)}
    assert not torch.equal(generate(model, 9, replace(request, conditions=other)).x, whole)
    zero = generate(model, 9, replace(request, guidance=0.0)).x
    assert torch.equal(zero, generate(model, 9, replace(request, conditions=None, guidance=1.0)).x)
    for kind in ENGINES.values():
        assert kind.unsupported_reason(model.float()) in (
            "its backbone attends to a text",
            "its backbone is not WaveNet itself",
        )
    with pytest.raises(ConfigError, match="backbone.cross_attention they can't change during a stream"):
        list(stream(model, 20, replace(request, changes=iter([conditions]))))


def test_every_weight_of_cross_attention_learns():
    """Guards against keys behind no_grad, and a null text that is never trained."""
    model, conditions = reader().train(), texts(4, 12)
    conditions["text"][:2] = math.nan
    model(Batch(random_input(TOKENS, 4, 12), conditions)).sum().backward()
    names = [
        name for name, _ in model.named_parameters() if "cross" in name or "keys_values" in name or "null_byte" in name
    ]
    assert len(names) == 3 * 6 + 3
    for name in names:
        assert (model.get_parameter(name).grad != 0).any(), name


def test_new_cross_attention_changes_nothing_yet():
    """Guards against other initial behaviour than that of the model without it, which fine-tuning would start from."""
    model, plain = reader(), tiny_model(TOKENS, "gpt", "delay")
    for block in model.backbone.blocks:
        torch.nn.init.zeros_(block.cross_attention.out.weight)
        torch.nn.init.zeros_(block.cross_attention.out.bias)
    fresh = tiny_backbone("gpt", cross_attention=True).blocks[0].cross_attention.out
    assert not fresh.weight.any() and not fresh.bias.any()
    for part in model.conditioner.parameters():
        part.data.zero_()
    own = plain.state_dict()
    model.load_state_dict({name: own.get(name, value) for name, value in model.state_dict().items()})
    x = random_input(TOKENS, 2, 12)
    torch.testing.assert_close(nats(model, x, texts(2, 12)), nats(plain, x, None), rtol=0, atol=1e-12)


def test_a_run_learns_by_cross_attention(made):
    """Guards against a setting that is lost between training and loading, or that has no text to attend to."""
    settings = [*OVERRIDES, *MULAW, "backbone.cross_attention=true", "backbone.num_layers=1", "backbone.num_heads=2"]
    run = train(made / "corpus", made / "cross", "mulaw", "gpt", steps=4, overrides=settings)
    assert run.model.backbone.blocks[0].cross_attention.out.weight.abs().sum() > 0
    lively(run.model)
    one, other = (run.generate(0.02, seed=1, conditions={"text": text}) for text in ("a kick", "a snare"))
    assert not torch.equal(one, other)
    for condition in (["drum"], ["none"]):
        with pytest.raises(ConfigError, match="backbone.cross_attention: needs one text among the conditions, not 0"):
            train(made / "corpus", made / "no", "mulaw", "gpt", steps=4, overrides=settings, condition=condition)
    with pytest.raises(ConfigError, match="backbone.cross_attention: the text must be read by encoder=bytes"):
        part = Text(Text.Config(encoder="t5", encoder_dim=24), 8)
        part.serve(2)
