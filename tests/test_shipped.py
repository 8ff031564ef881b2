"""The codec that comes with the package: there after installation, and as good as its card says in small."""

import socket
import tomllib
from pathlib import Path

import pytest
import torch
from corpus import folder_of_notes, note

from audiogen.audio.io import resample
from audiogen.commands.train_frontend import export_weights
from audiogen.data import scan
from audiogen.data.pipeline import fit_to, frontend_for
from audiogen.data.split import split
from audiogen.errors import ConfigError
from audiogen.evaluation.reconstruction import mel_distance
from audiogen.frontends import Codec, load_frontend, save_frontend
from audiogen.frontends.codec import SHIPPED, WEIGHTS, shipped_rate
from audiogen.frontends.neural import trainer as training
from audiogen.spec import TokenSpec


def sound(num_samples=32000, seeds=3):
    """Plucked notes one after the other at 16 kHz: (1, 1, N), a whole number of frames."""
    notes = [torch.from_numpy(note(seed, num_samples // seeds + 1, 16000)).float() for seed in range(seeds)]
    return torch.cat(notes)[None, None, :num_samples]


def test_it_is_there_without_a_network(monkeypatch):
    """Guards against a download, and a file that was forgotten in the package."""

    def refuse(*args):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    frontend = load_frontend("codec")
    assert frontend.fitted and not frontend.training
    assert frontend.spec == TokenSpec(16000, 320, 6, 1024)
    assert frontend.encode(sound()).shape == (1, 6, 100)
    assert frontend.latency_ms == 44.5


def test_the_package_takes_it_along():
    """Guards against an installation that has the code and not the weights, or grows without anybody's notice."""
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["audiogen"]
    packed = [path for pattern in patterns for path in WEIGHTS.parent.glob(pattern)]
    for path in SHIPPED.values():
        assert path in packed and path.stat().st_size <= 10_000_000
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    for part in ("Trained on", "Licence", "Limits", "CC BY-SA 4.0", "CC BY 3.0", "CC0"):
        assert part in card, part


def test_more_codebooks_come_closer():
    """Guards against weights that do not belong to their codebooks: each further one must pay."""
    frontend, wav = load_frontend("codec", num_codebooks=12), sound()
    codes = frontend.encode(wav)
    distances = [mel_distance(wav, frontend.decode(codes[:, :rows]), 16000) for rows in (1, 3, 12)]
    assert distances[0] > distances[1] > distances[2]
    noise = wav.std() * torch.randn(wav.shape, generator=torch.Generator().manual_seed(0))
    assert distances[2] < 0.75 * mel_distance(wav, noise, 16000)
    assert torch.equal(load_frontend("codec", num_codebooks=3).encode(wav), codes[:, :3])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dim": 96}, "frontend.dim: the shipped weights are for 256, not 96.*frontend.weights=fit"),
        ({"sample_rate": 8000}, "frontend.sample_rate: the shipped weights are for 16000 and 44100 Hz, not 8000"),
        ({"num_codebooks": 13}, "frontend.num_codebooks: must be at most 12"),
        ({"weights": "shiped"}, "frontend.weights"),
    ],
)
def test_what_the_weights_can_not_do(settings, message):
    """Guards against weights that are cut or stretched to what was asked for."""
    with pytest.raises(ConfigError, match=message):
        load_frontend("codec", **settings)


def test_it_is_not_fitted_by_mistake():
    """Guards against an hour of training that silently replaced what was shipped."""
    frontend = load_frontend("codec")
    before = frontend.fingerprint()
    with pytest.raises(ConfigError, match="frontend.weights=fit"):
        frontend.fit([sound()[0]])
    assert frontend.fingerprint() == before and frontend.fitted


@pytest.mark.parametrize(("rate", "shipped"), [(8000, 16000), (22050, 16000), (44100, 44100), (48000, 44100)])
def test_a_folder_of_any_rate_takes_the_weights_that_suit_it(tmp_path, rate, shipped):
    """Guards against `--frontend codec` that fits a codec of its own, fails, or drops what is above 8 kHz."""
    index = scan(folder_of_notes(tmp_path, [rate // 2] * 3, rate))
    frontend = frontend_for(index, "codec", {})
    fit_to(frontend, index, split(index))
    assert frontend.spec.sample_rate == shipped
    assert frontend.fingerprint() == load_frontend("codec", sample_rate=shipped).fingerprint()
    own = frontend_for(index, "codec", {"weights": "fit"})
    assert own.spec.sample_rate == min(rate, 44100) and not own.fitted


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_fine_tuning_begins_with_the_shipped_weights_at_any_rate(rate):
    """Guards against fine-tuning that begins with noise: weights of bins that lie elsewhere at another sample rate."""
    low = torch.cat([torch.from_numpy(note(seed, 8000, 8000)).float() for seed in range(2)])[None, None]
    wav = resample(low, 8000, rate)  # both have heard these bins
    codec = load_frontend("codec", weights="finetune", sample_rate=rate, num_codebooks=12)
    assert not codec.fitted
    trainer = codec.trainer([wav[0]])
    shipped = load_frontend("codec", sample_rate=shipped_rate(rate), num_codebooks=12)
    codec.level.copy_(shipped.level)
    codec.load_trained(trainer)
    there = resample(wav, rate, shipped_rate(rate))
    own, theirs = (
        mel_distance(sound, one.decode(one.encode(sound))[..., : sound.shape[-1]], one.spec.sample_rate)
        for one, sound in ((codec, wav), (shipped, there))
    )
    assert own < 1.3 * theirs
    if rate in SHIPPED:
        assert torch.equal(codec.encode(wav), shipped.encode(wav))
    assert "rolled_back_to" not in trainer.train_step(0.0)


def test_a_saved_copy_says_the_same(tmp_path):
    """Guards against a copy in a run folder that looks for the package's weights, which another version may have
    changed."""
    frontend = load_frontend("codec", num_codebooks=4)
    save_frontend(frontend, tmp_path)
    copy, wav = load_frontend(tmp_path), sound()
    assert copy.fingerprint() == frontend.fingerprint()
    assert torch.equal(copy.encode(wav), frontend.encode(wav))
    assert load_frontend(tmp_path, num_codebooks=2).spec.num_codebooks == 2


def test_it_can_be_wrapped():
    """Guards against byte-pair encoding over a base whose weights nobody fetched."""
    frontend = load_frontend("bpe", base={"kind": "codec", "num_codebooks": 1}, num_merges=3)
    assert frontend.base.fitted and not frontend.fitted


def test_exported_weights_are_read_to_the_bit(tmp_path, monkeypatch):
    """Guards against codes that depend on whether the weights were rounded before or after they were loaded."""
    codec = Codec(Codec.Config(weights="fit", num_codebooks=12))
    codec.is_fitted.fill_(1)
    torch.manual_seed(0)
    codec.quantizer.codebooks.normal_()
    path = tmp_path / "weights.safetensors"
    export_weights(codec, path)
    monkeypatch.setitem(SHIPPED, 16000, path)
    loaded, wav = load_frontend("codec", num_codebooks=12), sound()
    rounded = {name: value.half().to(value.dtype) for name, value in codec.state_dict().items()}
    codec.load_state_dict(rounded)
    assert all(torch.equal(value, rounded[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.encode(wav), codec.encode(wav))
    assert path.stat().st_size <= 8_000_000


def test_the_trainer_is_the_one_that_made_it():
    """Guards against a card that speaks of settings which the code no longer has."""
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card for name in training.WEIGHTS if name not in ("adversarial", "features"))
