"""Play a run live: labels, numbers, melody and loudness change over OSC while the sound plays.

    pip install python-osc                                       # the extra `live`
    python recipes/live_osc.py RUN | aplay -t raw -f S16_LE -r RATE -c CHANNELS
    python recipes/live_osc.py RUN --out live.wav --seconds 30   # record instead

RATE and CHANNELS are printed at the start. OSC (Open Sound Control) is what controllers, DAWs and patchers send over
UDP. Each condition of the run has an address; an empty message means "not given":

    /lead harp            a label, by the name that it has in the run
    /tempo 112            a number
    /melody 60 64         pitches as MIDI numbers; the model follows their pitch classes. -1: no melody
    /loudness -20         level in dB below a full-scale sine
    /pitch 60             a pitch, as a MIDI number or a name such as C4, if the run has learned one
    /midi 144 60 100      a MIDI message (or OSC's type m): while a key is held, its pitch is the melody and the pitch
    /stop                 end

A message that the run does not understand is reported and changes nothing. The sound is at most `--ahead` seconds ahead
of the clock, so a change is heard after that time and the latency of the front-end, which is printed too.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from audiogen.audio.wav_stream import encode_samples, write_chunks
from audiogen.errors import AudiogenError, ConfigError
from audiogen.models.conditioning import Condition, Loudness, Melody, Pitch
from audiogen.runs.run import Run, load_run
from audiogen.utils.scripts import run_script

DAY = 86_400.0


class Controls:
    """What is asked for at the moment, by the name of the condition.

    Messages arrive on another thread than the one that generates.

    Args:
        run: the run, which says what can be asked for.
        seed: draws what is asked for at first, from the training files.
    """

    def __init__(self, run: Run, seed: int):
        self.run, self.stopped = run, False
        conditioner = run.model.conditioner
        parts: Mapping[str, Condition] = {} if conditioner is None else conditioner.parts
        self.parts = {name: part for name, part in parts.items() if not part.stays_open}
        # What nobody asks for is as in a training file. It is asked for by name, so that a change of one label does
        # not draw the others anew.
        known = run.ask(None, [seed])
        words = {} if known is None else known.words[0]
        self._asked: dict[str, Any] = {name: words.get(name) for name, part in self.parts.items() if part.one_word}
        self._changed = True
        self._keys: list[int] = []  # that are held, the newest last
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """Yield what is asked for whenever a chunk is to be generated, or None if it has not changed."""
        while True:
            with self._lock:
                asked, self._changed = dict(self._asked) if self._changed else None, False
            yield asked

    def receive(self, address: str, *values: Any) -> None:
        """Take a message; one that is not understood changes nothing.

        Raises:
            ConfigError: the run has no such condition, or not this value.
        """
        name = address.strip("/")
        if name == "stop":
            self.stopped = True
            return
        with self._lock:
            changed = self._of_keys(values) if name == "midi" else {name: self._value(name, values)}
            asked = {**self._asked, **changed}
            self.run.ask(asked, [0])  # raises what is wrong with it
            self._asked, self._changed = asked, True

    def _value(self, name: str, values: tuple[Any, ...]) -> Any:
        part = self.parts.get(name)
        if part is None:
            raise ConfigError(f"/{name}: the run has no such condition; it has {', '.join(self.parts) or 'none'}")
        if not values:
            return None
        if isinstance(part, Melody):
            return pitch_classes([int(value) for value in values])
        if isinstance(part, Loudness):
            return torch.tensor([[float(values[0])]])
        return str(values[0])

    def _of_keys(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Follow the keys of a MIDI keyboard: the newest of those that are held is the melody and the pitch.

        Raises:
            ConfigError: the run has learned neither, or not this pitch.
        """
        # OSC's type m is (port, status, data, data), as one value.
        status, key, velocity = values[0][1:] if len(values) == 1 else values
        kind, key = int(status) & 0xF0, int(key)
        if kind in (0x80, 0x90):
            self._keys = [held for held in self._keys if held != key]
            if kind == 0x90 and velocity:  # a velocity of 0 is another way to let go
                self._keys.append(key)
        key = self._keys[-1] if self._keys else -1
        melodies = {name: pitch_classes([key]) for name, part in self.parts.items() if isinstance(part, Melody)}
        pitches = {name: None if key < 0 else str(key) for name, part in self.parts.items() if isinstance(part, Pitch)}
        if not melodies and not pitches:
            raise ConfigError(f"/midi: the run has no melody or pitch; it has {', '.join(self.parts) or 'none'}")
        return {**melodies, **pitches}


def pitch_classes(pitches: Iterable[int]) -> Tensor:
    """Return the pitch classes (12, 1) of MIDI pitches; negative ones are none."""
    found = torch.zeros(12, 1)
    for pitch in pitches:
        if pitch >= 0:
            found[pitch % 12] = 1.0
    return found


def paced(chunks: Iterable[Tensor], sample_rate: int, ahead: float) -> Iterator[Tensor]:
    """Yield chunks (1, C, n), but never more than `ahead` seconds before it is their turn to be heard.

    Otherwise a run that generates faster than real time would soon be minutes ahead of whoever plays it.
    """
    began, sent = 0.0, 0
    for chunk in chunks:
        began = began or time.monotonic()
        early = sent / sample_rate - ahead - (time.monotonic() - began)
        if early > 0:
            time.sleep(early)
        sent += chunk.shape[-1]
        yield chunk


def play(run: Run, controls: Controls, seconds: float, seed: int, guidance: float | None) -> Iterator[Tensor]:
    """Generate what the controls ask for until they are stopped: chunks (1, C, n)."""
    for chunk in run.stream(seconds, seed=seed, guidance=guidance, conditions=iter(controls)):
        if controls.stopped:
            return
        yield chunk


def listen(controls: Controls, host: str, port: int) -> Any:
    """Receive OSC messages on a thread of their own; return the server, whose `server_address` has the port."""
    try:
        from pythonosc.dispatcher import Dispatcher
        from pythonosc.osc_server import BlockingOSCUDPServer
    except ImportError as error:
        raise AudiogenError("live_osc: needs python-osc, which is not installed; pip install python-osc") from error

    def receive(address: str, *values: Any) -> None:
        try:
            controls.receive(address, *values)
        except (AudiogenError, TypeError, ValueError) as error:
            print(f"ignored {address} {' '.join(map(str, values))}: {error}", file=sys.stderr)

    dispatcher = Dispatcher()
    dispatcher.set_default_handler(receive)
    try:
        server = BlockingOSCUDPServer((host, port), dispatcher)
    except OSError as error:
        raise AudiogenError(f"{host}:{port}: can't be listened at ({error.strerror}); choose another --port") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def write_raw(out: BinaryIO, chunks: Iterable[Tensor]) -> None:
    """Write chunks (1, C, n) as interleaved 16-bit samples, each as soon as it is there, until the reader is gone."""
    try:
        for chunk in chunks:
            out.write(encode_samples(chunk[0].T.contiguous().numpy()))
            out.flush()
    except BrokenPipeError:
        pass


def main() -> None:
    """Load the run, listen to OSC, and play."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="a WAV to write (default: raw 16-bit samples to stdout)")
    parser.add_argument("--seconds", type=float, default=DAY, help="stop after so long (default: a day)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, help="how strongly to follow what is asked for")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=9000, help="UDP port to listen at; 0 for a free one")
    parser.add_argument("--ahead", type=float, default=0.1, help="seconds of sound ahead of the clock")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or int8: rounded weights are faster")
    args = parser.parse_args()
    run = load_run(args.run, precision=args.precision)
    controls = Controls(run, args.seed)
    run.generate(0.2, seed=0)  # compiles the engine
    server = listen(controls, args.host, args.port)
    latency, port = run.frontend.latency_ms / 1000 + args.ahead, server.server_address[1]
    names = " ".join(f"/{name}" for name in controls.parts)
    print(f"{run.sample_rate} Hz, {run.num_channels} channel(s), latency {latency:.2f} s", file=sys.stderr)
    print(f"OSC at {args.host}:{port}: {names}", file=sys.stderr)
    chunks = paced(play(run, controls, args.seconds, args.seed, args.guidance), run.sample_rate, args.ahead)
    if args.out is None:
        write_raw(sys.stdout.buffer, chunks)
    else:
        write_chunks(args.out, chunks, run.sample_rate)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
