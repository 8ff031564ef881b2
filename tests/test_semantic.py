"""Semantic tokens: the encoder, what it is trained with, and front-ends that only encode."""

import copy
import math

import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
import torchaudio
from corpus import folder_of_notes, note, tiny_frontend, tiny_settings
from processes import Command
from torch import Tensor

from audiogen.audio.dsp import hz_to_mel
from audiogen.errors import ConfigError, DownloadError, NotFittedError
from audiogen.frontends import Frontend, load_frontend, save_frontend
from audiogen.frontends.semantic.encoder import Encoder
from audiogen.frontends.semantic.frontend import SHIPPED
from audiogen.frontends.semantic.hubert import HOP, HuBERT
from audiogen.frontends.semantic.learning import draw_mask
from audiogen.frontends.semantic.units import cepstra
from audiogen.frontends.semantic.voices import Voices, centres, stretch
from audiogen.spec import TokenSpec
from audiogen.testing import made_up_sounds

TYPED = [f"--set=frontend.{name}={value}" for name, value in tiny_settings("semantic").items()]


def sounds(count: int = 6, num_samples: int = 4000) -> list[Tensor]:
    return [torch.from_numpy(note(seed, num_samples)).float()[None] for seed in range(count)]


# ---- the encoder


def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(num_features=5, dim=8, num_layers=2, num_heads=2, window=3).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_a_frame_sees_as_far_as_stated_and_no_farther():
    """Guards against a window that is one frame too wide on a side, so that a stream waits too little, and a reach that
    is stated too large."""
    model = encoder()
    t = model.reach + 3
    x = torch.randn(1, 2 * t + 1, 5, dtype=torch.float64, requires_grad=True)
    model(x)[0, t].sum().backward()
    seen = x.grad[0].abs().sum(1).nonzero()[:, 0]
    assert (int(seen.min()), int(seen.max())) == (t - model.reach, t + model.reach)


def test_joined_pieces_do_not_see_each_other():
    """Guards against a recording whose codes depend on the one that it was joined with in training."""
    model = encoder()
    parts = [torch.randn(1, length, 5, dtype=torch.float64) for length in (4, 9, 1)]
    piece = torch.cat([torch.full((part.shape[1],), i) for i, part in enumerate(parts)])[None]
    joined = model(torch.cat(parts, 1), piece=piece)
    torch.testing.assert_close(joined, torch.cat([model(part) for part in parts], 1), rtol=0, atol=1e-10)


def test_hidden_frames_are_not_heard():
    """Guards against masked frames that still reach the encoder: prediction would be copying."""
    model = encoder()
    masked = torch.zeros(1, 12, dtype=torch.bool)
    masked[0, 4:8] = True
    x = torch.randn(1, 12, 5, dtype=torch.float64)
    other = torch.where(masked[..., None], torch.randn_like(x), x)
    assert torch.equal(model(x, masked), model(other, masked))
    assert not torch.equal(model(x), model(other))


# ---- what it is trained with


def test_units_are_those_of_librosa():
    """Guards against another normalisation of the cosine transform, deltas of another width or sign, and frames of a
    pair that are not neighbours."""
    x = torch.randn(20, 30).half()
    mfcc = scipy.fft.dct(x.double().numpy(), axis=0, norm="ortho")[:13]
    mfcc[0] *= math.sqrt(2)  # scipy divides the first one
    mfcc -= mfcc.mean(1, keepdims=True)
    first = np.stack([slope(row) for row in mfcc])
    second = np.stack([slope(row) for row in first])
    expected = np.concatenate([mfcc, first, second]).reshape(39, 15, 2).mean(2).T
    np.testing.assert_allclose(cepstra(x).numpy(), expected, atol=1e-3)
    inner = librosa.feature.delta(mfcc, width=5, order=1, mode="nearest")
    np.testing.assert_allclose(first[:, 2:-2], inner[:, 2:-2], atol=1e-9)


def slope(x: np.ndarray) -> np.ndarray:
    """The slope of a line through five values, one by one."""
    padded = np.pad(x, 2, mode="edge")
    return np.array([np.polyfit(range(-2, 3), padded[t : t + 5], 1)[0] for t in range(len(x))])


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_a_voice_moves_formants_by_its_factor(factor):
    """Guards against an axis that is stretched in mel instead of Hz, or the other way round."""
    hertz = np.array(centres(80, 8000))
    mels = np.array([hz_to_mel(one) for one in hertz])
    log_power = torch.from_numpy(np.exp(-(((mels - hz_to_mel(1500)) / 3) ** 2))).float()[:, None]
    moved = stretch(80, 8000, factor) @ log_power
    assert abs(hertz[int(moved.argmax())] / (1500 * factor) - 1) < 0.03
    if factor == 1:
        torch.testing.assert_close(moved, log_power)


def test_voices_differ_and_repeat_themselves():
    """Guards against draws from the program's generator, and changes that leave silence louder than it was."""
    voices = Voices(80, 8000, floor=-20.0, spread=0.1)
    silence, x = torch.full((80, 6), -20.0), torch.randn(80, 6)
    one, again, other = (voices(x, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert float(voices(silence, np.random.default_rng(3)).max()) < -13


def test_masks_are_spans_of_about_half_of_all_frames():
    """Guards against single frames, which their neighbours give away, and masks that leave nothing to predict from."""
    masked = draw_mask(200, 128, np.random.default_rng(0))
    assert 0.4 < float(masked.float().mean()) < 0.55
    for row in masked.tolist():
        runs = "".join("x" if one else " " for one in row).rstrip("x").split()
        assert all(len(run) >= 8 for run in runs)


def test_training_continues_where_it_stopped():
    """Guards against an optimizer, a moving average, units or a round that a checkpoint leaves out."""
    frontend = load_frontend("semantic", **tiny_settings("semantic"))
    recordings = frontend.recordings(sounds())
    for stop in (1, 3):  # in the first round, and in the second
        whole, first, second = (frontend.learner(recordings) for _ in range(3))
        for step in range(5):
            whole.train_step(step / 4)
        for step in range(stop):
            first.train_step(step / 4)
        second.load(copy.deepcopy(first.state()))
        for step in range(stop, 5):
            second.train_step(step / 4)
        assert torch.equal(whole.codewords(), second.codewords())


def test_what_is_predicted_can_be_learned():
    """Guards against units of other frames than those that are heard, and gradients that do not arrive."""
    frontend = load_frontend("semantic", **{**tiny_settings("semantic"), "learning_rate": 0.02, "dim": 16})
    learner = frontend.learner(frontend.recordings(sounds()))
    losses = [learner.train_step(0.0)["heard"] for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])


# ---- front-ends that only encode


def test_a_run_of_codes_without_sound_trains_and_says_so(tmp_path):
    """Guards against a training that ends in a traceback because there is nothing to listen to, and a generation that
    draws for minutes before it finds out."""
    folder = folder_of_notes(tmp_path / "notes", [6000] * 6)
    small = ["--set=training.crop_frames=16", "--set=backbone.dim=8", "--set=backbone.num_layers=1", "--steps=2"]
    out = tmp_path / "run"
    done = Command(tmp_path, "train", folder, "--out", out, "--frontend=semantic", *TYPED, *small).wait()
    assert done.code == 0, done.err
    assert not list(out.glob("samples/*.wav"))
    for typed in (("generate", out, "--out", tmp_path / "out", "--seconds=1"), ("decode", out / "cache", tmp_path)):
        said = Command(tmp_path, *typed).wait()
        assert said.code == 2 and "only encodes" in said.err and len(said.err.strip().splitlines()) == 1


def test_settings_are_checked():
    """Guards against an encoder that is not there, and one at a rate that it was not made for."""
    with pytest.raises(ConfigError, match="frontend.sample_rate: must be 16000 Hz for HuBERT base"):
        load_frontend("semantic", encoder="hubert_base", sample_rate=8000)
    with pytest.raises(ConfigError, match="frontend.encoder.*one of shipped, fit, hubert_base"):
        load_frontend("semantic", encoder="hubert")
    with pytest.raises(ConfigError, match="frontend.codebook_size: the shipped weights are for 300"):
        load_frontend("semantic", codebook_size=100)
    with pytest.raises(ConfigError, match="frontend.dim: must be a multiple of twice frontend.num_heads"):
        load_frontend("semantic", dim=12)


def test_the_shipped_encoder_hears_what_is_said_more_than_who_says_it():
    """Guards against weights that do not belong together: the same vowels by two voices must be nearer to each other
    than other vowels by the same voice."""
    assert SHIPPED.stat().st_size <= 8_000_000
    card = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    assert SHIPPED.name in card
    frontend = load_frontend("semantic")
    assert frontend.fitted and frontend.spec == TokenSpec(16000, 320, 1, 300)
    low, high = 110.0, 160.0
    words = [[(700, 1200), (300, 2300)], [(300, 2300), (350, 800)], [(500, 1700), (700, 1200)]]  # Hz of two formants
    codes = {(voice, i): frontend.encode(spoken(word, voice)) for voice in (low, high) for i, word in enumerate(words)}
    for i in range(len(words)):
        same = differing(frontend, codes[low, i], codes[high, i])
        assert all(same < differing(frontend, codes[low, i], codes[low, k]) for k in range(len(words)) if k != i)


def spoken(vowels: list[tuple[int, int]], pitch: float) -> Tensor:
    """Vowels of 0.3 s each, as pulses through two resonances whose frequencies grow with the pitch: (1, 1, N)."""
    parts = []
    for formants in vowels:
        x = (np.arange(4800) * pitch % 16000 < pitch).astype(float)
        for hertz in formants:
            centre = hertz * (pitch / 110) ** 0.4
            x = scipy.signal.lfilter(
                [1], np.poly(0.98 * np.exp(np.array([2j, -2j]) * math.pi * centre / 16000)).real, x
            )
        parts.append(0.1 * x / x.std())
    return torch.from_numpy(np.concatenate(parts)).float()[None, None]


def differing(frontend: Frontend, a: Tensor, b: Tensor) -> float:
    """The mean distance between the codewords of two recordings, frame by frame."""
    x, y = (frontend.codewords[codes[0, 0]] for codes in (a, b))
    return float((x - y).norm(dim=1).mean())


# ---- HuBERT


@pytest.fixture
def small_hubert(monkeypatch):
    """A model of HuBERT's structure, with fewer channels."""
    convolutions = [(4, 10, 5), *[(4, 3, 2)] * 4, *[(4, 2, 2)] * 2]

    def build():
        return torchaudio.models.wav2vec2_model(
            "group_norm", convolutions, False, 16, 0.1, 16, 4, 12, 2, 0.1, 32, 0.0, 0.1, False, 0.05, None
        )

    monkeypatch.setattr(torchaudio.models, "hubert_base", build)
    return build


def test_hubert_is_torchaudios(small_hubert):
    """Guards against another layer, a missing normalisation, and blocks that do not give a frame each."""
    model = HuBERT()
    with pytest.raises(NotFittedError, match="no weights yet"):
        model.check_loaded()
    model.load("random")
    wav = made_up_sounds(25 * HOP)
    torch.manual_seed(0)
    expected, _ = small_hubert().eval().extract_features(torch.nn.functional.pad(wav[:, 0], (40, 40)))
    assert torch.equal(model.train()(wav[:, 0].unflatten(1, (-1, HOP))), expected[8])


def test_hubert_encodes_in_blocks_and_is_saved(small_hubert, tmp_path, monkeypatch):
    """Guards against codes of a stream that are not those of the whole, and weights that stay behind."""
    frontend = load_frontend("semantic", encoder="hubert_base", weights="random", codebook_size=5)
    with pytest.raises(NotFittedError, match="fit"):
        frontend.encode(made_up_sounds(500))
    frontend.fit([made_up_sounds(16000, seed=seed)[0] for seed in range(3)])
    wav = made_up_sounds(30000)
    whole = frontend.encode(wav)
    assert whole.shape == (1, 1, math.ceil(30000 / HOP)) and len(whole.unique()) > 1
    assert torch.equal(torch.cat(list(frontend.encode_stream(wav.split(777, 2))), 2), whole)
    save_frontend(frontend, tmp_path)
    assert torch.equal(load_frontend(tmp_path).encode(wav), whole)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_hubert_is_loaded_from_a_file(small_hubert, tmp_path, suffix):
    """Guards against a local file that is ignored, and code that is run from one."""
    torch.manual_seed(1)
    state = small_hubert().state_dict()
    path = tmp_path / f"hubert{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    frontend = load_frontend("semantic", encoder="hubert_base", weights=str(path))
    assert all(torch.equal(frontend.encoder.model.state_dict()[name], tensor) for name, tensor in state.items())
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(DownloadError, match="part.pth: these are not the weights of HuBERT base"):
        load_frontend("semantic", encoder="hubert_base", weights=str(tmp_path / "part.pth"))
    torch.save({"model": tiny_frontend("mulaw")}, tmp_path / "code.pth")
    with pytest.raises(DownloadError, match="code.pth: contains more than weights"):
        load_frontend("semantic", encoder="hubert_base", weights=str(tmp_path / "code.pth"))
    with pytest.raises(DownloadError, match="there is no such file"):
        load_frontend("semantic", encoder="hubert_base", weights=str(tmp_path / "none.pth"))
