"""The stereo image: measured, given to mono sound, and kept by a run."""

import dataclasses

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from audiogen import load_run, scan
from audiogen.audio.stereo import BANDS, REACH, StereoImage, StereoLimiter, measure_image
from audiogen.audio.wav_stream import write_chunks
from audiogen.commands.train import train
from audiogen.data import stereo_image
from audiogen.data.split import Part
from audiogen.errors import ConfigError

RATE = 44_100


def recording(balance: float, width: float, seconds: float = 8.0, seed: int = 0) -> np.ndarray:
    """Noise (N, 2) whose side is `balance` times the middle, and `width` times another noise of the same power."""
    rng = np.random.default_rng(seed)
    middle, other = 0.1 * rng.standard_normal((2, round(seconds * RATE)))
    side = balance * middle + width * other
    return np.stack([middle + side, middle - side], axis=1).astype(np.float32)


def spread(image: StereoImage, wav: np.ndarray, *sizes: int) -> np.ndarray:
    """(N, 2) of a mono wav (N,), in chunks of these sizes and a last one."""
    x = torch.from_numpy(wav).float()[None, None]
    limiter, pieces = StereoLimiter(image, RATE), list(x.split([*sizes, x.shape[2] - sum(sizes)], dim=2))
    made = [limiter(piece, last=number == len(pieces) - 1) for number, piece in enumerate(pieces)]
    return torch.cat(made, dim=2)[0].T.numpy()


@pytest.mark.parametrize("balance, width", [(0.0, 0.5), (0.4, 0.0), (-0.3, 0.3), (0.0, 1.0)])
def test_an_image_is_measured_and_given_back(balance, width):
    """Sound from the left would come from the right, or be narrower than the recordings."""
    wav = recording(balance, width)
    image = measure_image([(wav, RATE)])
    # The lowest bands have a few bins each, so their estimates vary.
    assert np.abs(np.array(image.balance[8:]) - balance).max() < 0.06
    assert np.abs(np.array(image.width[8:]) - width).max() < 0.06
    made = spread(image, wav.mean(axis=1))
    # Levels of the channels, and the coherence between them as scipy has it, are those of the recording.
    for channel in (0, 1):
        assert made[:, channel].std() == pytest.approx(wav[:, channel].std(), rel=0.08)
    assert np.corrcoef(made.T)[0, 1] == pytest.approx(np.corrcoef(wav.T)[0, 1], abs=0.08)
    again = measure_image([(made, RATE)])
    levels = np.hypot(again.balance, again.width)  # of a single draw of phases, which part follows the middle varies
    assert np.abs(levels[8:] - np.hypot(balance, width)).max() < 0.1


def test_each_band_has_an_image_of_its_own():
    """A bass in the middle and cymbals all around would become equally wide."""
    low, high = (scipy.signal.butter(8, 1000, kind, fs=RATE, output="sos") for kind in ("low", "high"))
    wide, narrow = recording(0.0, 0.8, seed=1), recording(0.0, 0.1, seed=2)
    wav = scipy.signal.sosfilt(low, narrow, axis=0) + scipy.signal.sosfilt(high, wide, axis=0)
    made = spread(measure_image([(wav, RATE)]), wav.mean(axis=1))
    for edge, kind, expected in ((600, "low", 0.1), (1700, "high", 0.8)):
        left, right = scipy.signal.sosfilt(scipy.signal.butter(8, edge, kind, fs=RATE, output="sos"), made, axis=0).T
        assert (left - right).std() / (left + right).std() == pytest.approx(expected, rel=0.15)


def test_the_mono_mix_does_not_change():
    """On one loudspeaker, the sound would be another than the model's."""
    image = StereoImage((0.3,) * BANDS, (0.5,) * BANDS)
    wav = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    np.testing.assert_allclose(spread(image, wav).mean(axis=1), wav, atol=1e-6)


def test_chunks_give_the_same_sound_and_onsets_stay_sharp():
    """Clicks at the seams of a stream; a drum hit that is heard before it begins, or is smeared."""
    image = StereoImage((0.1,) * BANDS, (0.6,) * BANDS)
    wav = np.random.default_rng(0).standard_normal(9000) * 0.1
    np.testing.assert_allclose(spread(image, wav, 1, 0, 777, 50, 4000), spread(image, wav), atol=1e-6)
    click = np.zeros(RATE // 2)
    click[RATE // 4] = 0.5
    left, right = spread(image, click).T
    side = ((left - right) / 2) ** 2
    begin = RATE // 4
    assert side[: begin - round(0.001 * RATE)].sum() < 0.06 * side.sum()
    assert side[begin : begin + round(0.008 * RATE)].sum() > 0.85 * side.sum()
    assert not side[begin + round(REACH * RATE) + 1 :].any()


def test_peaks_of_both_channels_are_limited():
    """The side makes a channel louder than the middle, so limiting the middle would not do."""
    made = spread(StereoImage((0.9,) * BANDS, (0.0,) * BANDS), 0.8 * np.sin(np.arange(RATE) * 0.05))
    assert 0.8 < np.abs(made).max() <= 10 ** (-1 / 20)


def test_same_channels_and_silence_have_no_image():
    """Files with two equal channels are mono; a division by no power gives NaN."""
    wav = recording(0.0, 0.5)
    assert measure_image([(wav[:, :1].repeat(2, axis=1), RATE)]) is None
    assert measure_image([(np.zeros_like(wav), RATE)]) is None
    assert measure_image([]) is None
    low = scipy.signal.sosfilt(scipy.signal.butter(8, 3000, fs=RATE, output="sos"), wav, axis=0)
    assert np.isfinite(measure_image([(low, RATE)]).width).all()


@pytest.mark.parametrize(
    "changes", [{"balance": (0.0,) * 3}, {"width": (-0.1,) * BANDS}, {"balance": (np.nan,) * BANDS}]
)
def test_an_image_from_a_damaged_config_is_refused(changes):
    """A NaN would silence the sound."""
    image = StereoImage((0.0,) * BANDS, (0.0,) * BANDS)
    with pytest.raises(ConfigError, match=f"stereo.{next(iter(changes))}"):
        dataclasses.replace(image, **changes)


def test_a_folder_is_stereo_if_most_of_its_sound_is(tmp_path):
    """One stereo file among many mono ones would make all of them wide; of a split file, the held-out part counts."""
    soundfile.write(tmp_path / "wide.wav", recording(0.0, 0.5, 4.0), RATE)
    soundfile.write(tmp_path / "mono.wav", recording(0.0, 0.5, 5.0, seed=1)[:, 0], RATE)
    files = scan(tmp_path).files
    parts = {part.file.path: part for part in map(Part, files)}
    assert stereo_image(tmp_path, list(parts.values())) is None
    assert np.median(stereo_image(tmp_path, [parts["wide.wav"]]).width) == pytest.approx(0.5, abs=0.05)
    half = np.concatenate([recording(0.0, 0.2, 4.0, seed=2), recording(0.0, 0.9, 4.0, seed=3)])
    soundfile.write(tmp_path / "halves.wav", half, RATE)
    (file,) = [file for file in scan(tmp_path).files if file.path == "halves.wav"]
    image = stereo_image(tmp_path, [Part(file, 0.5, 1.0)])
    assert np.median(image.width) == pytest.approx(0.9, abs=0.08)


def test_a_run_on_stereo_files_generates_stereo_sound(tmp_path):
    """From 48 kHz stereo came mono. The stream and a reloaded run have the same image."""
    (tmp_path / "sound").mkdir()
    for number in range(4):
        soundfile.write(tmp_path / "sound" / f"{number}.wav", recording(0.2, 0.4, 1.5, seed=number), RATE)
    small = ["backbone.dim=16", "backbone.num_layers=1", "training.sample_seconds=0.2", "training.crop_frames=8"]
    run = train(tmp_path / "sound", tmp_path / "run", "mel", "gpt", steps=2, start="scratch", overrides=small)
    wav = run.generate(0.5, num=2, seed=3)
    assert wav.shape == (2, 2, RATE // 2)
    left, right = wav[0].numpy()
    assert left.std() > 1.1 * right.std() and np.corrcoef(left, right)[0, 1] < 0.95
    # What was generated can be continued; its channels one after the other would be a prompt of twice the length.
    made = run.request(seeds=[1], prompt=wav[0])
    torch.testing.assert_close(made.prompt, wav[:1].mean(dim=1, keepdim=True))
    again = load_run(run.folder)
    assert again.config == run.config and torch.equal(again.generate(0.5, num=2, seed=3), wav)
    chunks = list(run.stream(0.5, num=2, seed=3))
    torch.testing.assert_close(torch.cat(chunks, dim=2), wav, atol=1e-4, rtol=0)
    assert soundfile.info(run.folder / "samples" / "generated-0.wav").channels == 2


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_stereo_wav_is_written_chunk_by_chunk(tmp_path, bits):
    """Channels in the wrong order, or one after the other."""
    wav = np.random.default_rng(0).uniform(-1, 1, (101, 2)).astype(np.float32)
    x = torch.from_numpy(wav.T.copy())[None]
    assert write_chunks(tmp_path / "a.wav", x.split([40, 0, 61], dim=2), 8000, bits) == 101
    read, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 8000 and read.shape == (101, 2)
    np.testing.assert_allclose(read, wav, atol=2.0 ** (1 - bits) if bits < 32 else 0)
