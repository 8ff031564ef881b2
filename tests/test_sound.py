"""Streaming generation: `Run.stream` and `audiogen generate --stream` give the same sound as `generate`, as soon as it
is ready."""

import copy
import json
import re

import pytest
import soundfile
import torch
from corpus import SOUNDING, TINY_VOCODER, folder_of_notes, note, tiny_frontend, tiny_settings
from processes import audiogen
from tiny import tiny_backbone

from audiogen.audio.io import audio_info, read_audio, write_audio
from audiogen.audio.limiter import Limiter
from audiogen.audio.wav_stream import write_chunks
from audiogen.errors import AudiogenError, ConfigError
from audiogen.frontends import load_frontend
from audiogen.generation.audio import generate_sound, stream_sound
from audiogen.generation.request import Request
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.run import load_run


def model_for(frontend, pattern="delay"):
    return SequenceModel(frontend.spec, tiny_backbone("gpt"), PATTERNS[pattern](frontend.spec.num_rows)).eval()


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("kind", SOUNDING)
def test_a_stream_is_what_generate_makes(kind, with_prompt):
    """Guards against chunks that are lost, repeated or cut wrongly, a prompt that is missing from the sound, and a
    front-end that can't stream but says so only after everything is drawn."""
    frontend = copy.deepcopy(tiny_frontend(kind))
    model = model_for(frontend, "parallel" if frontend.spec.num_rows == 1 else "delay")
    rate = frontend.spec.sample_rate
    prompt = torch.from_numpy(note(3, rate // 20 + 7, rate)).float()[None] if with_prompt else None
    seeds = [4] if frontend.spec.hop_length is None else [4, 5]
    decoder = frontend.base or frontend
    at_once = decoder.decode_frames * decoder.spec.hop_length  # samples
    asked = (frontend, model, max(0.3, 4 * at_once / rate), Request(prompt, seeds=seeds))
    chunks = list(stream_sound(*asked))
    expected = generate_sound(*asked).x
    assert len(chunks) > 3
    assert max(chunk.shape[2] for chunk in chunks) <= max(0.1 * rate, 2 * at_once)
    torch.testing.assert_close(torch.cat(chunks, dim=2), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("base", "settings"), [("codec", {"num_codebooks": 1}), ("melvq", {"num_codebooks": 1, "vocoder": TINY_VOCODER})]
)
def test_a_stream_at_a_variable_rate_ends_where_generate_ends(base, settings):
    """Guards against codes after the end that still affect the sound of the last frame."""
    notes = [torch.from_numpy(note(seed, 4000)).float()[None] for seed in range(6)]
    frontend = load_frontend("bpe", num_merges=4, longest=8, base={**tiny_settings(base), "kind": base, **settings})
    frontend.fit(notes)
    model = model_for(frontend, "parallel")
    for seed in range(6):
        seconds = 40 * frontend.base.spec.hop_length / frontend.spec.sample_rate
        asked = (frontend, model, seconds, Request(seeds=[seed]))
        torch.testing.assert_close(
            torch.cat(list(stream_sound(*asked)), dim=2), generate_sound(*asked).x, rtol=0, atol=1e-4
        )


def test_the_first_sound_comes_before_the_rest_is_drawn():
    """Guards against a stream that draws everything before it returns the first chunk."""
    frontend = copy.deepcopy(tiny_frontend("mulaw"))
    model, steps = model_for(frontend), []
    model.backbone.register_forward_hook(lambda *_: steps.append(1))
    chunks = stream_sound(frontend, model, 10.0, Request(seeds=[1]))
    first = next(chunks)
    assert 0 < first.shape[2] <= frontend.spec.sample_rate // 10
    assert len(steps) <= first.shape[2] + Limiter(frontend.spec.sample_rate).delay + 2


@pytest.mark.parametrize("seconds", [86_400, 1e9, 1e300])
def test_a_stream_may_last_a_day(seconds):
    """Guards against a long stream that allocates gigabytes before its first sound, and one that never ends because of
    a typo."""
    frontend = copy.deepcopy(tiny_frontend("mulaw"))
    if seconds > 86_400:
        with pytest.raises(ConfigError, match="seconds: must be 86,400 or less"):
            stream_sound(frontend, model_for(frontend), seconds, Request(seeds=[1]))
        return
    assert next(stream_sound(frontend, model_for(frontend), seconds, Request(seeds=[1]))).shape[2] > 0


def test_a_variable_rate_streams_one_item():
    """Guards against several items that get out of step with each other."""
    frontend = copy.deepcopy(tiny_frontend("bpe"))
    with pytest.raises(ConfigError, match="num.*one item at a time, not 2"):
        stream_sound(frontend, model_for(frontend), 0.1, Request(seeds=[1, 2]))


def test_the_file_is_whole_after_every_chunk(tmp_path):
    """Guards against a WAV that no player opens before it is finished, and a header that states more samples than the
    file has so far."""
    path, chunks, seen = tmp_path / "new" / "a.wav", list(torch.randn(7, 1, 50).clamp(-1, 1)), []

    def growing():
        for count, chunk in enumerate(chunks):
            if count:
                seen.append(audio_info(path).num_samples)
            yield chunk

    assert write_chunks(path, growing(), 8000) == 350
    assert seen == [50, 100, 150, 200, 250, 300]
    assert soundfile.info(path).subtype == "PCM_16" and soundfile.info(path).samplerate == 8000
    wav = torch.cat(chunks, dim=1)
    assert float((read_audio(path) - wav).abs().max()) <= 0.5 / 32768 + 1 / 32768 * (float(wav.max()) == 1)


@pytest.mark.parametrize(("bits", "subtype"), [(16, "PCM_16"), (24, "PCM_24"), (32, "FLOAT")])
def test_a_stream_of_any_width_is_the_file_that_is_written_at_once(tmp_path, bits, subtype):
    """Guards against a header that promises another width, and 24-bit samples that shift after an odd number of
    bytes."""
    chunks, path = list(torch.randn(7, 1, 51).clamp(-1, 1)), tmp_path / "a.wav"

    def growing():
        for count, chunk in enumerate(chunks):
            if count:
                assert path.stat().st_size % 2 == 0
                assert soundfile.info(path).frames == 51 * count
            yield chunk

    assert write_chunks(path, growing(), 8000, bits) == 357
    write_audio(tmp_path / "b.wav", torch.cat(chunks, dim=1), 8000, bits=bits)
    for name in ("a.wav", "b.wav"):
        info = soundfile.info(tmp_path / name)
        assert (info.subtype, info.frames, info.channels, info.samplerate) == (subtype, 357, 1, 8000)
    assert torch.equal(read_audio(path), read_audio(tmp_path / "b.wav"))
    if bits == 32:
        assert torch.equal(read_audio(path), torch.cat(chunks, dim=1))
    assert not audio_info(path).notes


def test_what_was_made_before_an_error_stays(tmp_path):
    """Guards against losing a minute of sound because the last chunk was NaN."""
    path = tmp_path / "a.wav"
    with pytest.raises(AudiogenError, match="a.wav: NaN"):
        write_chunks(path, [torch.zeros(1, 40), torch.full((1, 40), torch.nan)], 8000)
    assert audio_info(path).num_samples == 40
    (tmp_path / "file").write_text("")
    with pytest.raises(AudiogenError, match="a.wav: can't be written"):
        write_chunks(tmp_path / "file" / "a.wav", [torch.zeros(1, 4)], 8000)


def test_the_command_streams(tmp_path):
    """Guards against a --stream whose sound differs from that of the same seed without it, a first-sound time or speed
    that is not printed, and a precision that reaches neither the model nor the JSON beside the sound."""
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]
    settings += ["backbone.dim=8", "backbone.residual_dim=8", "backbone.num_layers=2", "training.crop_frames=64"]
    run, corpus = tmp_path / "run", folder_of_notes(tmp_path / "corpus", [3000] * 4)
    made = audiogen(
        tmp_path,
        "train",
        corpus,
        "--out",
        run,
        "--frontend",
        "mulaw",
        "--backbone",
        "wavenet",
        "--steps",
        "2",
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert made.code == 0, made.err
    words = ("generate", run, "--seconds", "0.4", "--num", "2", "--seed", "6", "--precision", "bf16", "--out")
    whole = audiogen(tmp_path, *words, tmp_path / "whole")
    streamed = audiogen(tmp_path, *words, tmp_path / "streamed", "--stream")
    assert whole.code == streamed.code == 0, streamed.err
    for seed, line in zip((6, 7), streamed.out.splitlines(), strict=True):
        told = re.fullmatch(
            rf"\S+sample-{seed}.wav  seed {seed}  first sound after ([\d.]+) s, ([\d.]+) times "
            "real time",
            line,
        )
        assert told and float(told[2]) > 0
        a, b = (read_audio(tmp_path / place / f"sample-{seed}.wav") for place in ("whole", "streamed"))
        assert a.shape[1] == 3200
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        a, b = (json.loads((tmp_path / place / f"sample-{seed}.json").read_text()) for place in ("whole", "streamed"))
        assert a == b and a["precision"] == "bf16" and a["seconds"] == 0.4
    assert load_run(run, precision="int8").request().precision == "int8"
    wrong = audiogen(tmp_path, *words[:-2], "int4", "--out", tmp_path / "wrong")
    assert wrong.code == 2 and re.search("precision: 'int4' is unknown; choose fp32, bf16, int8", wrong.err)
