"""Playing live: messages over UDP change what is generated, from the next chunk on, and nothing else does."""

import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from serving import tiny_run

from audiogen.audio.wav_stream import write_chunks
from audiogen.errors import AudiogenError, ConfigError

LIVE = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "live_osc.py"))
Controls, paced, pitch_classes, play = (LIVE[name] for name in ("Controls", "paced", "pitch_classes", "play"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


def test_what_a_client_sends_is_heard(run, tmp_path):
    """Guards against messages that arrive but change nothing, that change what was played before, or that are asked of
    the wrong condition. The oracle asks for the same without a network."""
    pytest.importorskip("pythonosc")
    from pythonosc.udp_client import SimpleUDPClient

    first = {"register": "low", "tempo": "90"}
    messages = {3: ("/register", "<b>high</b>"), 5: ("/melody", [60, 64]), 7: ("/tempo", 150), 9: ("/melody", [])}
    later = {
        3: {"register": "<b>high</b>"},
        5: {"melody": pitch_classes([60, 64])},
        7: {"tempo": "150"},
        9: {"melody": None},
    }

    class Scripted(Controls):
        """Controls to which the client sends each message before a certain chunk."""

        def __iter__(self):
            asked = super().__iter__()
            for number in range(1000):
                if number in messages:
                    client.send_message(*messages[number])
                    while not self._changed:  # until it has arrived
                        time.sleep(0.001)
                yield next(asked)

    def asked():
        now = dict(first)
        for number in range(1000):
            now |= later.get(number, {})
            yield dict(now)

    controls = Scripted(run, seed=5)
    for name, value in first.items():
        controls.receive(f"/{name}", value)
    server = LIVE["listen"](controls, "127.0.0.1", 0)
    client = SimpleUDPClient(*server.server_address)
    write_chunks(tmp_path / "live.wav", play(run, controls, 2.0, 5, 2.0), run.sample_rate)
    server.shutdown()
    server.server_close()
    heard, _ = soundfile.read(tmp_path / "live.wav", dtype="float32")
    expected = torch.cat(list(run.stream(2.0, seed=5, guidance=2.0, conditions=asked())), dim=-1)[0, 0].numpy()
    assert heard.shape == expected.shape and np.abs(heard - expected).max() < 2**-14
    unchanged = run.generate(2.0, seed=5, guidance=2.0, conditions=first)[0, 0].numpy()
    different = np.abs(heard - unchanged) > 2**-10
    assert not different[: 3 * run.frontend.spec.hop_length].any() and different.any()


def test_what_is_not_understood_changes_nothing(run, capsys):
    """Guards against a performance that ends with a traceback because of a typing error on a controller."""
    controls = Controls(run, seed=0)
    before = next(iter(controls))
    for address, values, said in (
        ("/register", ("lo",), "did you mean low"),
        ("/colour", ("red",), "no such condition; it has register, tempo, melody"),
        ("/tempo", ("fast",), "tempo"),
        ("/melody", (__file__,), "invalid literal"),
        ("/loudness", (-20.0,), "no such condition"),
    ):
        with pytest.raises((ConfigError, ValueError), match=said):
            controls.receive(address, *values)
    assert next(iter(controls)) is None and set(before) == {"register", "tempo"}
    controls.receive("/stop")
    assert list(play(run, controls, 1.0, 0, None)) == []


def test_keys_are_the_melody_while_they_are_held(run):
    """Guards against notes that hang, and a key let go that silences another one which is still held."""
    controls = Controls(run, seed=0)
    for message, expected in (
        ((0x90, 60, 100), 0),
        ((0x93, 64, 1), 4),
        ((0x80, 64, 0), 0),
        ((0x90, 67, 9), 7),
        ((0x90, 60, 0), 7),
        (((0, 0x90, 67, 0),), None),  # OSC's type m
        ((0xB0, 1, 64), None),  # another kind of message
    ):
        controls.receive("/midi", *message)
        melody = next(iter(controls))["melody"][:, 0]
        assert melody.nonzero().flatten().tolist() == ([] if expected is None else [expected])


def test_sound_is_not_made_long_before_it_is_heard(monkeypatch):
    """Guards against a run that is minutes ahead of its player, which then hears no message for as long; and against
    one that waits although it is late."""
    now = [50.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setitem(paced.__globals__, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    slow = {4: 2.5}  # a second each, but for this one

    def chunks():
        for number in range(8):
            now[0] += slow.get(number, 0.0)
            yield torch.zeros(1, 1, 100)

    heard = [now[0] - 50.0 for _ in paced(chunks(), sample_rate=100, ahead=0.25)]
    assert heard == pytest.approx([0.0, 0.75, 1.75, 2.75, 5.25, 5.25, 5.75, 6.75])


def test_without_python_osc_one_line_says_what_to_install(run, monkeypatch):
    """Guards against a traceback where the extra is missing."""
    monkeypatch.setitem(sys.modules, "pythonosc.dispatcher", None)
    with pytest.raises(AudiogenError, match="pip install python-osc"):
        LIVE["listen"](Controls(run, 0), "127.0.0.1", 0)
