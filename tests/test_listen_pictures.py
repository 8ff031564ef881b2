"""The pieces of a page: pictures that are true and can be compared, curves, tables, and a page of one's own."""

import base64
import io
import math

import numpy as np
import torch
from listening import RATE, Page, make_run, put, tone
from matplotlib.figure import Figure
from PIL import Image

from audiogen.audio.dsp import hz_to_mel, mel_filterbank
from audiogen.listen import write_page
from audiogen.listen.charts import Line, line_chart, nice_ticks, spread, thinned
from audiogen.listen.clips import Clip, clip_cards, time_spans
from audiogen.listen.html import format_number, picture, section, table, text, write_document
from audiogen.listen.spectrograms import NUM_MELS, SHADES, mel_power, outline


def test_pictures_share_their_scales(tmp_path):
    """A sound half as loud is 6 dB darker, one half as long half as wide, and a tone is where its frequency is.
    Guards against pictures normalised one by one, in which noise and silence look like music."""
    run = make_run(tmp_path / "run", samples=False)
    put(run, "a", tone(2, 1000, 0.8), kind="generated")
    put(run, "b", tone(2, 1000, 0.4), kind="generated")
    put(run, "c", tone(1, 2000, 0.8), kind="generated")
    put(run, "d", tone(1, 2000, 0.8, 4 * RATE), 4 * RATE, kind="generated")
    page = Page(write_page([run]))
    loud, soft, short, fine = page.pictures()
    middle = slice(100, 380)
    row = int(loud[:, middle].mean(1).argmax())
    step = 80 / (len(SHADES) - 1)  # dB
    assert abs(step * (loud[row, middle].mean() - soft[row, middle].mean()) - 6.02) < step
    assert loud.shape == (NUM_MELS, 480) and short.shape[1] == 240
    widths = [a["style"] for a in page.all("img")]
    assert widths == ["width:100.00%", "width:100.00%", "width:50.00%", "width:50.00%"]
    for image, hertz in ((loud, 1000), (short, 2000), (fine, 2000)):  # top: 16 kHz, from the one at 32 kHz
        place = (image[:, image.shape[1] // 2].argmax() + 0.5) / NUM_MELS
        assert abs(place - hz_to_mel(hertz) / hz_to_mel(16000)) < 1.2 / NUM_MELS
    assert loud[int(NUM_MELS * hz_to_mel(4100) / hz_to_mel(16000)) + 1 :].max() == 0  # nothing above half its rate


def test_mel_power_equals_one_big_transform():
    """Blocks and their borders leave no trace, and an impulse stands where it is: a slow loop over frames agrees."""
    torch.manual_seed(0)
    wav = 0.01 * torch.randn(1, 60000)
    wav[0, 31234] = 1.0
    power = mel_power(wav, RATE, 240, RATE / 2)
    window, hop, n_fft = torch.hann_window(320), 160, 1024
    padded = torch.nn.functional.pad(wav[0], (160, 320))
    frames = [torch.fft.rfft(padded[start : start + 320] * window, n_fft).abs() ** 2 for start in range(0, 60000, hop)]
    mel = (
        torch.stack(frames) @ mel_filterbank(RATE, n_fft, NUM_MELS, unit_area=False).T.float() / window.sum() ** 2
    )  # (375, mels)
    edges = [(math.floor(i * 375 / 240), math.ceil((i + 1) * 375 / 240)) for i in range(240)]
    expected = torch.stack([mel[start:stop].mean(0) for start, stop in edges])
    assert power.shape == (NUM_MELS, 240)
    assert torch.allclose(power.T, expected, rtol=1e-4, atol=1e-12)
    assert abs(int(power.sum(0).argmax()) - 31234 / 60000 * 240) < 1.5


def test_outline_is_the_range_of_each_stretch():
    wav = torch.randn(1, 1000)
    low, high = outline(wav, 7)
    edges = [int(i * 1000 / 7) for i in range(7)] + [1000]
    for i in range(7):
        part = wav[0, edges[i] : edges[i + 1]]
        assert low[i] == part.min() and high[i] == part.max()
    assert outline(torch.ones(1, 3), 480).shape == (2, 3)


def test_tiny_silent_and_long_sounds(tmp_path):
    """A few samples, silence, and a file far longer than the others: all have their card."""
    paths = [
        put(tmp_path, "tiny", tone(0.001)),
        put(tmp_path, "silent", np.zeros(RATE)),
        put(tmp_path, "long", tone(40, 200)),
        put(tmp_path, "other", tone(1)),
    ]
    cards = clip_cards([Clip(path, path.stem) for path in paths])
    assert len(cards) == 4 and all("<audio" in card for card in cards)
    assert "the pictures show the first 10.0" in cards[2] and "the pictures show" not in cards[3]
    assert all("nan" not in card.split("</audio>")[1] for card in cards)
    assert clip_cards([]) == []
    assert time_spans([20, 30, 30]) == [30] * 3 and time_spans([4, 4, 600]) == [12] * 3


def test_short_clips_share_a_time_axis_of_their_own(tmp_path):
    """Drum hits of 0.3 s were slivers beside a clip of 4 s."""
    assert time_spans([0.4, 0.5, 4.0]) == [0.5, 0.5, 4.0] and time_spans([0.3, 0.4]) == [0.4, 0.4]
    paths = [put(tmp_path, name, tone(seconds)) for name, seconds in (("hit", 0.3), ("tap", 0.15), ("loop", 4.0))]
    cards = clip_cards([Clip(path, path.stem) for path in paths])
    for card, span, width in zip(cards, (0.3, 0.3, 4.0), (100, 50, 100), strict=True):
        assert f'data-span="{span:.4f}"' in card and f'style="width:{width:.2f}%"' in card
        assert ("A short clip: its time axis ends at 0.3 seconds" in card) == (span < 1)


def test_ticks_labels_and_long_curves():
    assert nice_ticks(0, 4) == [0, 1, 2, 3, 4] and nice_ticks(0, 1.25) == [0, 0.5, 1.0] and nice_ticks(3, 3) == [3]
    for high in (0.013, 1, 7, 9.99, 123456):
        assert 2 <= len(nice_ticks(0, high)) <= 6
    assert [i for _, i in spread([50, 49, 51], 7)] == [1, 0, 2]
    for places in ([50, 49, 51], [0, 0, 0], [100, 99, 100], []):
        moved = [place for place, _ in spread(places, 7)]
        assert all(0 <= place <= 100 for place in moved)
        assert all(b - a >= 7 - 1e-9 for a, b in zip(moved, moved[1:], strict=False))
    line = thinned(Line("x", range(5001), [math.nan, *range(1, 5001)]))
    assert len(line.x) <= 500 and line.x == line.y and abs(np.mean(line.x) - 2500.5) < 10
    assert thinned(Line("x", [], [])).x == []
    assert "NaN" not in line_chart([Line("flat", [0], [1.0])], {}, "x", "y", "a point")
    assert [format_number(v) for v in (None, 12345, 4.64061, 31234.6, 312.34, -0.5, "a", 0)] == [
        "–",
        "12,345",
        "4.641",
        "31,235",
        "312.3",
        "-0.500",
        "a",
        "0",
    ]
    assert "98.2" in table(["", "x"], [["a", 98.238], ["b", 387.04], ["c", None]])


def test_a_page_of_ones_own(tmp_path):
    """A lesson's page from the same pieces: text, a table, a matplotlib figure, a sound."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2, 3])
    sound = put(tmp_path, "sound")
    path = write_document(
        tmp_path / "lesson.html",
        "Lesson <1>",
        section(
            "What broke",
            text("It is a < b."),
            table(["step", "loss"], [["first", 27.1], ["last", 3.4]], main_row=1),
            picture(figure, alt="A line that rises", caption="It rises"),
            *clip_cards([Clip(sound, "The sound")]),
        ),
    )
    page = Page(path)
    assert page.texts["what-broke"][:2] == ["What broke", "It is a < b."]
    assert "27.100" in page.text() and "It rises" in page.text() and "Lesson <1>" in page.text("")
    image = base64.b64decode(page.all("img")[0]["src"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(image)).width > 300
    assert page.sounds() == [sound.read_bytes()]
