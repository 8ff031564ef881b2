"""Melody, loudness and timbre of recordings: computed once, stored beside the codes, and learned frame by frame."""

import math
import pickle

import librosa
import numpy as np
import pytest
import scipy.fft
import torch
from corpus import folder_of_notes, tiny_frontend, tiny_settings
from folders import write_wav
from tiny import lively, tiny_conditioner

from audiogen.audio.descriptors import loudness, melody, tilted, timbre
from audiogen.audio.io import read_audio
from audiogen.commands.samples import FileRequest, generate_files
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.data import (
    Crops,
    EncodedCache,
    FileConditions,
    Labels,
    Sequences,
    choose_conditions,
    described_value,
    open_descriptors,
    scan,
    split,
)
from audiogen.errors import ConfigError, DataError
from audiogen.evaluation.likelihood import file_likelihoods, joined
from audiogen.evaluation.report import evaluate_folder
from audiogen.frontends.mulaw import MuLaw
from audiogen.models.backbones import MLP
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Conditioner, Loudness, Melody, Position, Timbre
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.run import load_run
from audiogen.spec import TokenSpec

RATE = 8000
CONFIGS = {"melody": Melody.Config(), "loudness": Loudness.Config(), "timbre": Timbre.Config()}
CONFIGS["position"] = Position.Config()


def tones(folder, pitches, seconds=0.5):
    """Files 00.wav, 01.wav, ...: a tone of each pitch, ever louder."""
    n = np.arange(round(seconds * RATE))
    for number, pitch in enumerate(pitches):
        tone = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * n / RATE)
        write_wav(folder / f"{number:02d}.wav", 0.5 * np.linspace(0.05, 1, len(n)) * tone, RATE)
    return folder


@pytest.fixture(params=["mulaw", "mel"])
def corpus(request, tmp_path):
    """A cache of tones: with a code for each sample, and with a frame for each 64."""
    index = scan(tones(tmp_path / "sound", range(60, 84, 3), 0.3), progress=False)
    frontend = tiny_frontend("mel") if request.param == "mel" else MuLaw(MuLaw.Config(sample_rate=RATE))
    return EncodedCache.build(index, frontend, tmp_path / "cache", progress=False), index


def expected(part, index, sha256, hop):
    """What the file with this content should give, analysed at once."""
    path = next(index.folder / file.path for file in index.files if file.sha256 == sha256)
    return torch.cat(list(part([read_audio(path)], RATE, hop)), dim=1).numpy()


def test_crops_of_joined_files_carry_the_right_piece(corpus):
    """Guards against a descriptor of one file that is learned with the codes of another, or frames late: compared with
    the analysis of each file by itself, at the frame that `position` names."""
    cache, index = corpus
    stored = open_descriptors(CONFIGS, cache, index)
    stride = stored["melody"].stride
    assert stride == (80 if cache.spec.hop_length == 1 else 2)  # at most 100 columns a second
    sides = split(cache.index)
    crops = Crops(cache, sides.train, 1000 // stride, 4, seed=3, known=FileConditions(CONFIGS, Labels(), stored))
    paths = {file.sha256: file.path for file in index.files}
    own = {
        file.sha256: (
            cache.codes(i).numpy(),
            expected(melody, index, file.sha256, stride * cache.spec.hop_length),
            expected(loudness, index, file.sha256, stride * cache.spec.hop_length),
            timbre([read_audio(index.folder / paths[file.sha256])], RATE).numpy(),
        )
        for i, file in enumerate(cache.files)
    }
    seen, timbres = set(), 0
    for step in range(20):
        batch, _ = crops.batch(step)
        for b in range(4):
            since, left = batch.conditions["position"][b]
            for t in range(0, batch.x.shape[2], 7):
                if math.isnan(float(since[t])):
                    continue
                frame, length = int(since[t]), int(since[t] + left[t]) + 1
                fitting = [
                    sha
                    for sha, (codes, *_) in own.items()
                    if codes.shape[1] == length and np.array_equal(codes[:, frame], batch.x[b, :, t])
                ]
                found = batch.conditions["melody"][b, :, t].numpy()
                assert any(np.array_equal(own[sha][1][:, frame // stride], found) for sha in fitting)
                level = float(batch.conditions["loudness"][b, 0, t])
                assert any(abs(own[sha][2][0, frame // stride] - level) < 0.05 for sha in fitting)
                sound = batch.conditions["timbre"][b, :, t].numpy()
                if not np.isnan(sound).any():
                    assert any(np.allclose(own[sha][3][:, 0], sound, atol=0.01) for sha in fitting)
                    timbres += 1
                seen.add(int(found.argmax()) if found.any() else None)
    assert len(seen) >= 4 and timbres


def noises(rate, seconds=1.0):
    """A wav (1, N) that is a tone, then noise."""
    n = np.arange(round(seconds * rate))
    wav = 0.3 * np.sin(2 * np.pi * 330 * n / rate) * (n < len(n) // 2)
    return torch.from_numpy(wav + 0.02 * np.random.default_rng(0).standard_normal(len(n))).float()[None]


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_timbre_is_that_of_a_slow_loop(rate):
    """Guards against a wrong filter, weight or coefficient: compared with librosa, scipy and a loop over frames."""
    wav, length = noises(rate), 2 ** round(math.log2(0.064 * rate))
    hop, window = length // 2, scipy.signal.get_window("hann", length)
    filters = librosa.filters.mel(sr=rate, n_fft=length, n_mels=40, fmax=20_000)
    padded = np.pad(wav[0].double().numpy(), (length // 4, length))
    rows, weights = [], []
    for t in range(-(-wav.shape[1] // hop)):
        frame = padded[t * hop : t * hop + length]
        bands = filters @ np.abs(np.fft.rfft(frame * window)) ** 2
        rows.append(scipy.fft.dct(10 * np.log10(bands / bands.sum() + 1e-7) / 20, norm="ortho")[:25])
        weights.append((2 * np.mean(frame**2)) ** 0.125)
    mean = np.average(rows, axis=0, weights=weights)
    deviation = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights))
    lifter = 1 + np.arange(25) / 4
    expected = np.concatenate([(lifter * mean)[1:], (2 * lifter * deviation)[:-1]])
    np.testing.assert_allclose(timbre([wav], rate)[:, 0], expected, rtol=0, atol=2e-3)


def test_a_timbre_depends_on_neither_level_nor_chunks():
    """Guards against a quieter take of a voice that is another voice, and long files that are read differently."""
    wav = noises(8000)
    whole = timbre([wav], 8000)
    torch.testing.assert_close(timbre(wav.split(777, dim=1), 8000), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(timbre([0.25 * wav], 8000), whole, rtol=0, atol=1e-3)
    assert not timbre([torch.zeros(1, 8000)], 8000).any() and not timbre([torch.zeros(1, 0)], 8000).any()
    assert (timbre([wav.flip(0)[:, :2000]], 8000) - whole).abs().max() > 0.1  # the tone alone


def test_a_filter_changes_the_mean_of_a_timbre():
    """Guards against a change in the wrong direction or unit: compared with the timbre of filtered noise."""
    wav = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((1, 44100))).float()
    spectrum, top = torch.fft.rfft(wav), librosa.hz_to_mel(20_000)
    mels = torch.from_numpy(librosa.hz_to_mel(np.linspace(0, 22_050, spectrum.shape[1])))
    filtered = torch.fft.irfft(spectrum * 10 ** (12 * (mels / top - 0.5) / 20), n=wav.shape[1]).float()
    before, after = timbre([wav], 44100), timbre([filtered], 44100)
    found = tilted(before, torch.linspace(-6, 6, 100))
    torch.testing.assert_close(found[:24], after[:24], rtol=0, atol=0.15)
    assert (before - after)[:24].abs().max() > 1 and torch.equal(found[24:], before[24:])


def test_descriptors_are_stored_beside_the_codes(corpus, monkeypatch):
    """Guards against an analysis at each start, one of other files that is believed, and loader processes that copy
    the data of the whole corpus."""
    cache, index = corpus
    before = open_descriptors(CONFIGS, cache, index)["melody"]
    sha256, length = cache.files[2].sha256, cache.files[2].num_frames
    values = before.frames(sha256, 0, length)
    again = pickle.loads(pickle.dumps(before))
    assert len(pickle.dumps(before)) < 5000 and np.array_equal(again.frames(sha256, 0, length), values)
    assert np.array_equal(before.frames(sha256, 5, 9), values[:, 5:14])
    with monkeypatch.context() as patch:
        patch.setattr("audiogen.data.descriptors._write", None)
        open_descriptors(CONFIGS, EncodedCache.open(cache.folder))
    path = cache.folder / "descriptors" / "melody.bin"
    path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(open_descriptors(CONFIGS, cache, index)["melody"].frames(sha256, 0, length), values)
    # the folder changes, and the cache with it
    tones(index.folder, [70], 0.3)
    index = scan(index.folder, progress=False)
    cache = EncodedCache.open_or_build(index, cache.frontend(), cache.folder, progress=False)
    assert open_descriptors(CONFIGS, cache, index)["melody"].frames(cache.files[0].sha256, 0, 80)[70 % 12].any()
    tones(index.folder, [75], 0.2)
    path.unlink()
    with pytest.raises(DataError, match="00.wav: has changed since it was encoded"):
        open_descriptors(CONFIGS, cache, index)


def test_a_cache_without_recordings_is_decoded(tmp_path):
    """Guards against `audiogen train CACHE --condition melody` that asks for files which are gone."""
    index = scan(tones(tmp_path / "sound", [60, 67]), progress=False)
    cache = EncodedCache.build(index, MuLaw(MuLaw.Config(sample_rate=RATE)), tmp_path / "cache", progress=False)
    stored = open_descriptors(CONFIGS, cache)["melody"]
    for file in cache.files:
        found = stored.frames(file.sha256, 2000, 1000)
        assert (found[[60 % 12, 67 % 12]].sum(axis=0) == 1).all()


def test_evaluation_gives_the_model_the_descriptors(corpus):
    """Guards against a held-out loss without the conditions that training gives, those of the whole file for a part of
    it, and padding that changes the last steps of a shorter item."""
    cache, index = corpus
    stored = open_descriptors(CONFIGS, cache, index)
    known = FileConditions(CONFIGS, Labels(), stored)
    sequences = Sequences(cache, split(cache.index).train)
    piece = sequences.piece(1, length=100)._replace(first=20)
    item = known.of_item(piece)
    assert item.keys() == {"melody", "loudness", "timbre"} and item["melody"].shape == (1, 12, 100)
    assert np.array_equal(item["melody"][0], stored["melody"].frames(piece.sha256, 20, 100))
    if not cache.spec.discrete:
        return
    torch.manual_seed(0)
    conditioner = Conditioner({name: kind({}, 8) for name, kind in (("melody", Melody), ("loudness", Loudness))})
    spec = TokenSpec(RATE, 64, 3, 7)
    model = lively(SequenceModel(spec, MLP(MLP.Config(8, 3, 8)), PATTERNS["delay"](3), conditioner)).double()
    xs = [torch.randint(7, (3, length)) for length in (9, 20)]
    asked = [{"melody": torch.rand(1, 12, x.shape[1]), "loudness": -40 * torch.rand(1, 1, x.shape[1])} for x in xs]
    both = [result.nats for result in file_likelihoods(model, xs, asked)]
    alone = [next(iter(file_likelihoods(model, [x], [one]))).nats for x, one in zip(xs, asked, strict=True)]
    assert both == pytest.approx(alone, abs=1e-9)
    assert joined([{"melody": torch.zeros(1, 12, 3)}, {}])["melody"][1].isnan().all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_melody_that_is_one_frame_off_is_less_likely(pattern):
    """Guards against a condition that is learned of the frame before or after: codes that are the pitch class of their
    frame are certain given the melody, and not given one that is shifted by a frame."""
    torch.manual_seed(0)
    spec = TokenSpec(RATE, 80, 2, 12)
    conditioner = Conditioner({"melody": Melody({}, 24)})
    model = SequenceModel(spec, MLP(MLP.Config(24, 2, 32)), PATTERNS[pattern](2), conditioner)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def batch():
        notes = torch.randint(12, (8, 33))
        chroma = torch.nn.functional.one_hot(notes, 12).transpose(1, 2).float()
        return notes[:, None, 1:].expand(-1, 2, -1), chroma

    for _ in range(150):
        x, chroma = batch()
        model(Batch(x, {"melody": chroma[:, :, 1:]})).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    x, chroma = batch()
    with torch.no_grad():
        right, late, none = (
            float(model(Batch(x, given)).mean())
            for given in ({"melody": chroma[:, :, 1:]}, {"melody": chroma[:, :, :-1]}, None)
        )
    assert right < 0.2 and late > right + 1 and none > right + 1


# ---- what users give


def test_a_recording_may_be_given_in_several_ways(tmp_path):
    """Guards against a wav taken for an array, and silence of the model where a file is shorter than what is made."""
    spec, parts = tiny_frontend("mel").spec, tiny_conditioner().parts
    path = tones(tmp_path, [69]) / "00.wav"
    wav = read_audio(path)
    found = described_value(parts["melody"], path, spec)
    assert found.shape[0] == 12 and found.shape[1] >= 63 and (found[9, :62] == 1).all() and found[:, -1].isnan().all()
    for same in (str(path), wav, wav[None], wav.numpy()):
        torch.testing.assert_close(described_value(parts["melody"], same, spec), found, equal_nan=True)
    sound = described_value(parts["timbre"], path, spec)
    assert sound.shape == (48, 1) and torch.equal(sound, described_value(parts["timbre"], wav[None], spec))
    levels = described_value(parts["loudness"], wav[None], spec)
    assert levels.shape == (1, found.shape[1])
    array = torch.rand(12, 40)
    assert described_value(parts["melody"], array, spec) is array
    assert described_value(parts["label"], "kick", spec) == "kick"
    with pytest.raises(ConfigError, match=r"loudness: levels are in dB .* a wav has the shape \(1, 1, N\)"):
        parts["loudness"].parse("loudness", described_value(parts["loudness"], wav, spec))
    for bad, message in (
        (torch.zeros(11, 4), r"melody: must have the shape \(12, frames\), got \(11, 4\)"),
        (torch.full((12, 4), 1.5), "melody: the strength of a pitch class is from 0 to 1"),
        ("tune", r"melody: must have the shape \(12, frames\), got 'tune'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parts["melody"].parse("melody", bad)
    with pytest.raises(ConfigError, match="constant frame rate"):
        described_value(parts["melody"], wav, TokenSpec(RATE, None, 1, 8))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of mel frames that learned melody, loudness and timbre."""
    place = tmp_path_factory.mktemp("stored")
    folder_of_notes(place / "corpus", [2400] * 8)
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mel").items()]
    overrides = ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.1", "training.evaluations=2"]
    arguments = dict(steps=4, overrides=[*overrides, *settings], condition=["melody", "loudness", "timbre"])
    train(place / "corpus", place / "run", "mel", "bigram", **arguments)
    return place


def test_from_the_command_to_the_sound(made, tmp_path):
    """Guards against a melody that training, the run folder or generation forgets, and a file that is shorter than the
    sound being refused."""
    run = load_run(made / "run")
    assert list(run.config.conditions) == ["melody", "loudness", "timbre"]
    assert all(bool(parameter.abs().sum() > 0) for parameter in run.model.conditioner.parameters())
    lively(run.model)
    path = tones(tmp_path / "tune", [69], 0.1) / "00.wav"
    one, other = run.generate(0.5, seed=1, conditions={"melody": path}), run.generate(0.5, seed=1)
    assert one.shape == other.shape and not torch.equal(one, other)
    array = torch.zeros(12, 20)
    array[9] = 1
    assert not torch.equal(run.generate(0.5, seed=1, conditions={"melody": array}), other)
    asked = run.ask({"melody": [path, None]}, [1, 2])
    assert asked.conditions["melody"][1].isnan().all() and asked.words == [{"melody": str(path)}, {}]
    written = list(generate_files(run, tmp_path / "out", FileRequest(0.3, asked={"loudness": path}), 2, seed=1))
    assert [said for *_, said in written] == [{"loudness": str(path)}] * 2
    with pytest.raises(ConfigError, match="loudness: this run was trained without|no such condition"):
        run.generate(0.1, conditions={"label": path})
    assert math.isfinite(evaluate_folder(run, made / "corpus")["loss"])
    train(made / "corpus", made / "run", resume=True, steps=6)


def test_a_prompt_gives_its_timbre(made, tmp_path):
    """Guards against a sound that goes on in another voice than that of the prompt, and one asked for that is lost."""
    run = load_run(made / "run")
    lively(run.model)
    path = tones(tmp_path, [69], 0.5) / "00.wav"
    prompt, expected = read_audio(path), timbre([read_audio(path)], RATE)
    given = run.request(seeds=[1], prompt=prompt).conditions["timbre"]
    torch.testing.assert_close(given, expected[None])
    other = torch.zeros(48, 1)
    assert not run.request(seeds=[1], prompt=prompt, conditions={"timbre": other}).conditions["timbre"].any()
    assert "timbre" not in run.request(seeds=[1], prompt=prompt, conditions={"timbre": None}).conditions
    assert "timbre" not in run.request(seeds=[1]).conditions
    sounds = [run.generate(0.2, seed=1, conditions={"timbre": x}) for x in (path, other, None)]
    assert not torch.equal(sounds[0], sounds[1]) and not torch.equal(sounds[0], sounds[2])


def test_a_cache_can_be_trained_on(made, tmp_path):
    """Guards against a melody for which the recordings must be there, and another front-end's refusal in no words."""
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]
    tokenize(made / "corpus", tmp_path / "cache", "mulaw", overrides=settings)
    overrides = ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.05", "training.evaluations=2"]
    run = train(
        tmp_path / "cache", tmp_path / "run", None, "bigram", steps=2, overrides=overrides, condition=["melody"]
    )
    assert list(run.config.conditions) == ["melody"]
    sides = split(EncodedCache.open(tmp_path / "cache").index)
    assert list(choose_conditions(Labels(), sides)) == ["position"]  # descriptors only where they are asked for
    assert choose_conditions(Labels(), sides, ["loudness"]) == {"loudness": Loudness.Config()}
