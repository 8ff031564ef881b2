"""Melody and loudness of recordings, beside what is known of them and beside librosa."""

import math

import librosa
import numpy as np
import pytest
import torch

from audiogen.audio.descriptors import BLOCK, loudness, melody

RATE = 16000


def tone(pitch, seconds, rate=RATE, level=0.3):
    """(1, N): a tone with harmonics, each half as strong as the one before."""
    n = torch.arange(round(seconds * rate), dtype=torch.float64)
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    harmonics = [k for k in range(1, 6) if k * hertz < rate / 2]
    wav = sum(0.5**k * torch.sin(2 * math.pi * k * hertz * n / rate) for k in harmonics)
    return (level * wav)[None].float()


def whole(part, wav, rate=RATE, hop=256):
    return torch.cat(list(part([wav], rate, hop)), dim=1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("pitch", range(55, 91, 5))
def test_a_tone_has_its_pitch_class(rate, pitch):
    """Guards against pitch classes counted from A, tuning that is off, and harmonics taken for the tone."""
    found = whole(melody, tone(pitch, 0.5, rate), rate, 512)
    assert found.shape == (12, -(-round(0.5 * rate) // 512))
    found = found[:, :-1]  # the last frame may be centred after the end
    assert (found.argmax(dim=0) == pitch % 12).all() and (found.sum(dim=0) == 1).all()


def test_silence_and_noise_have_no_melody():
    """Guards against a melody heard in rain, or in the rounding of silence."""
    torch.manual_seed(0)
    assert not whole(melody, torch.zeros(1, RATE)).any()
    assert not whole(melody, tone(69, 1, level=1e-4)).any()
    assert whole(melody, 0.1 * torch.randn(1, 20 * RATE)).sum(dim=0).mean() < 0.02


def test_the_melody_of_a_tune_is_heard_over_its_bass(synthetic):
    """Guards against the chroma of librosa, which hears the bass: the notes are known, since the corpus writes them."""
    right = of_librosa = frames = 0
    for number in range(4):
        notes, seconds = synthetic.compose(0, number)
        wav = torch.from_numpy(synthetic.render(notes, seconds, RATE))[None]
        found = whole(melody, wav)
        chroma = librosa.feature.chroma_stft(y=wav[0].numpy(), sr=RATE, n_fft=4096, hop_length=256)
        for t in range(found.shape[1]):
            time = (t + 0.5) * 256 / RATE
            lead = [
                note.pitch % 12
                for note in notes
                if note.instrument in ("guitar", "harp")
                and note.loudness >= 0.8
                and note.start <= time < note.start + note.length
            ]
            if len(lead) == 1:
                frames += 1
                right += float(found[lead[0], t])
                of_librosa += int(chroma[:, t].argmax()) == lead[0]
    assert right / frames > 0.94
    assert right / frames > of_librosa / frames + 0.03


def test_a_note_begins_in_the_frame_in_which_it_begins():
    """Guards against frames that are counted from the edge of the window, off by half of it."""
    hop, change = 160, 100
    wav = torch.cat([tone(72, change * hop / RATE), tone(79, change * hop / RATE)], dim=1)
    found = whole(melody, wav, hop=hop)
    switched = int((found[7] > 0).int().argmax())
    assert abs(switched - change) <= 1
    levels = whole(loudness, torch.cat([torch.zeros(1, change * hop), tone(72, 1)], dim=1), hop=hop)[0]
    middle = (levels[-9] - 3.01 > levels[:-1]).nonzero().max()  # half of the window is full at the edge
    assert abs(int(middle) - change) <= 1


def test_loudness_is_in_decibels_of_a_full_scale_sine():
    """Guards against a power in place of an amplitude: compared with librosa's root mean square."""
    n = torch.arange(RATE)
    for level in (1.0, 0.1, 1e-3):
        found = whole(loudness, level * torch.sin(2 * math.pi * 1000 * n / RATE)[None])
        torch.testing.assert_close(
            found[0, 4:-4], torch.full_like(found[0, 4:-4], 20 * math.log10(level)), atol=0.02, rtol=0
        )
    assert (whole(loudness, torch.zeros(1, RATE)) == -120).all()
    wav = tone(60, 1) * torch.linspace(0.1, 1, RATE)
    rms = librosa.feature.rms(y=wav[0].numpy(), frame_length=800, hop_length=256)[0]
    expected = 20 * np.log10(rms[8:50] * math.sqrt(2))
    got = whole(loudness, wav, hop=256)[0, 8:50].numpy()
    assert np.abs(expected - got).max() < 1.0


@pytest.mark.parametrize("part", [melody, loudness])
def test_chunks_and_lengths_do_not_matter(part):
    """Guards against frames lost or shifted where one chunk ends, and a last frame that is forgotten (contract 8)."""
    torch.manual_seed(0)
    for length in (1, 255, 256, 257, 20_001, 256 * BLOCK + 5, 512 * BLOCK):
        wav = tone(70, length / RATE + 0.01)[:, :length] + 0.001 * torch.randn(1, length)
        expected = whole(part, wav)
        assert expected.shape[1] == -(-length // 256)
        got = torch.cat(list(part(wav.split([1, 0, length - 1], dim=1), RATE, 256)), dim=1)
        assert torch.equal(got, expected)
        if length > 20_000:
            assert torch.equal(torch.cat(list(part(wav.split(3333, dim=1), RATE, 256)), dim=1), expected)
    assert list(part([], RATE, 256)) == []
    assert whole(part, torch.zeros(1, 5000), hop=20_000).shape[1] == 1  # a hop beyond the window
