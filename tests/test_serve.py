"""audiogen serve: what the service generates and refuses, what the guard lets through, and the API and page on top."""

import asyncio
import dataclasses
import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from folders import noise, write_wav
from serving import running, tiny_run

from audiogen.audio.io import read_at_most
from audiogen.audio.stereo import BANDS, StereoImage
from audiogen.errors import AudioReadError, ConfigError
from audiogen.runs.build import build_model
from audiogen.serve import guard as guard_module
from audiogen.serve.guard import Guard
from audiogen.serve.service import FILES, Asked, BusyError, Limits, Service
from audiogen.testing import lively

RATE = 8000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def service(run):
    service = Service(run, Limits(seconds=2.0, upload_seconds=1.0, waiting=6))
    yield service
    service.close()


def wav_file(path, seed, num_samples, rate):
    write_wav(path, noise(seed, num_samples), rate)
    return path


def finished(service, *sounds):
    end = time.monotonic() + 60
    while not all(sound.ended for sound in sounds):
        assert time.monotonic() < end
        time.sleep(0.01)
    return [read_all(sound) for sound in sounds]


def read_all(sound) -> np.ndarray:
    """The samples of its WAV as another library reads them."""
    assert sound.state == "done", sound.error
    data = b""
    while part := sound.read(len(data)):
        data += part
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert rate == sound.sample_rate and len(data) == sound.num_bytes
    return samples.T


# ---- the service


def test_sounds_are_those_of_the_run(run, service):
    """Guards against a page that generates with other seeds, labels or filters than were asked for."""
    conditions = {"register": "low", "tempo": "90"}
    sounds = service.submit(Asked(0.5, 2, 7, conditions, guidance=2.0, temperature=0.7))
    for sound, wav in zip(sounds, finished(service, *sounds), strict=True):
        seed = sound.asked.seed
        expected = run.generate(
            0.5, seed=seed, conditions=conditions, guidance=2.0, sampling=run.sampling_with(temperature=0.7)
        )
        assert np.abs(wav - expected[0].numpy()).max() < 2**-14
        assert sound.words == {"register": "low", "tempo": "90"} and seed in (7, 8)
    again = service.submit(sounds[0].asked)
    assert np.array_equal(finished(service, *again)[0], finished(service, sounds[0])[0])
    drawn = service.submit(Asked(0.1))[0], service.submit(Asked(0.1))[0]
    assert drawn[0].asked.seed != drawn[1].asked.seed


def test_a_recording_is_continued_and_a_melody_followed(run, service, tmp_path):
    """Guards against files that are ignored, cut, or read at another rate."""
    path = wav_file(tmp_path / "x.wav", 0, 8000, 16000)
    (sound,) = service.submit(Asked(0.25, seed=1), {"prompt": path})
    wav = finished(service, sound)[0]
    expected = run.generate(0.25, seed=1, prompt=read_at_most(path, RATE, 1.0))[0].numpy()
    assert wav.shape == (1, 4000 + 2000) == expected.shape and np.abs(wav - expected).max() < 2**-14
    (sound,) = service.submit(Asked(seed=1), {"melody": path})
    expected = run.generate(0.5, seed=1, conditions={"melody": read_at_most(path, RATE, 1.0)[None]})[0].numpy()
    assert np.abs(finished(service, sound)[0] - expected).max() < 2**-14
    (sound,) = service.submit(Asked(seed=1, labels={"register": "low"}), {"like": path})
    assert sound.words["register"] == "low" and sound.num_samples == 4000


def test_of_a_prompt_the_end_is_continued_and_the_rest_left_out(run, service, tmp_path):
    """Guards against a cut at the wrong end, and a sound that begins before or after what is new."""
    path = wav_file(tmp_path / "x.wav", 0, 8000, 16000)
    (sound,) = service.submit(Asked(0.25, seed=1, prompt_seconds=0.2, only_new=True), {"prompt": path})
    prompt = read_at_most(path, RATE, 1.0)[:, -1600:]
    expected = run.generate(0.25, seed=1, prompt=prompt)[0, :, 1600:].numpy()
    wav = finished(service, sound)[0]
    assert wav.shape == expected.shape == (1, 2000) and np.abs(wav - expected).max() < 2**-14
    assert sound.describe()["asked"]["prompt_seconds"] == 0.2


def test_the_best_of_several_draws_is_kept(run, service):
    """Guards against seeds that overlap between sounds, and a choice that the service does not pass on."""
    asked = Asked(0.25, 2, 7, {"register": "low"}, best_of=3)
    wavs = finished(service, *(sounds := service.submit(asked)))
    assert [sound.asked.seed for sound in sounds] == [7, 10]
    for wav, seed in zip(wavs, (7, 10), strict=True):
        expected = run.generate(0.25, seed=seed, conditions={"register": "low"}, best_of=3)[0].numpy()
        assert np.abs(wav - expected).max() < 2**-14


def test_a_run_without_conditions_has_no_best_draw(run):
    """Guards against a page that offers what then fails in the queue."""
    plain = dataclasses.replace(run.config, conditions={})
    model = lively(build_model(plain, run.frontend.spec)).eval()
    service = Service(dataclasses.replace(run, config=plain, model=model), Limits())
    assert service.describe()["best_of"] == 1
    with pytest.raises(ConfigError, match="best_of: must be from 1 to 1"):
        service.submit(Asked(0.1, best_of=2))
    service.close()


@pytest.mark.parametrize(
    "asked, said",
    [
        (Asked(1.0, best_of=9), "best_of: must be from 1 to 8"),
        (Asked(1.0, labels={"register": None, "tempo": None}, best_of=0), "best_of: must be from 1 to 8"),
        (Asked(1.0, only_new=True), "only_new: there is no prompt"),
        (Asked(1.0, prompt_seconds=1.0), "prompt_seconds: there is no prompt"),
        (Asked(1.0, prompt_seconds=float("nan")), "prompt_seconds: must be above 0"),
        (Asked(3.0), "seconds: must be above 0 and at most 2"),
        (Asked(float("nan")), "seconds"),
        (Asked(1.0, num=5), "num: must be from 1 to 4"),
        (Asked(1.0, seed=-1), "seed"),
        (Asked(1.0, seed=2**60), "seed"),
        (Asked(1.0, guidance=1e9), "guidance"),
        (Asked(1.0, temperature=-1.0), "temperature"),
        (Asked(1.0, temperature=float("inf")), "temperature"),
        (Asked(1.0, top_k=0), "top_k"),
        (Asked(1.0, labels={"register": "lo"}), "did you mean low"),
        (Asked(1.0, labels={"register": "x" * 5000}), "5000 characters"),
        (Asked(1.0, labels={"colour": "red"}), "no such label"),
        (Asked(1.0, labels={"tempo": "1e999"}), "tempo"),
        # As the value of a melody, the run would read a file of this machine.
        (Asked(1.0, labels={"melody": __file__}), "no such label"),
        (Asked(1.0, labels={"Melody ": __file__}), "no such label"),
    ],
)
def test_what_is_out_of_range_is_refused(service, asked, said):
    """Guards against a request that takes hours, or reads a file of the server."""
    with pytest.raises(ConfigError, match=said):
        service.submit(asked)


def test_files_are_refused_by_the_name_of_their_field(service, tmp_path):
    """Guards against a message with the place of a file on this machine, and against files that decode to days."""
    long, wrong = tmp_path / "bomb.flac", tmp_path / "wrong.wav"
    soundfile.write(long, np.zeros((4_000_000, 8), np.int16), 8000)  # 8 minutes of silence in a few kB
    wrong.write_bytes(b"#!/bin/sh\n" * 100)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for path, said in ((long, "is longer than 1 s"), (wrong, "prompt: "), (empty, "prompt: ")):
        with pytest.raises(AudioReadError, match=said) as caught:
            service.submit(Asked(0.1), {"prompt": path})
        assert str(tmp_path) not in str(caught.value) and str(caught.value).startswith("prompt: ")
    with pytest.raises(ConfigError, match="loudness: this run can't use such a file; it can use prompt, melody, like"):
        service.submit(Asked(0.1), {"loudness": long})


def test_long_files_are_not_decoded_to_their_end(tmp_path, monkeypatch):
    """Guards against hours of decoding, or gigabytes of samples, for a file that is then refused."""
    path, decoded = tmp_path / "bomb.flac", []
    soundfile.write(path, np.zeros((4_000_000, 2), np.int16), 8000)
    from audiogen.audio.decoder import Decoder

    following = Decoder.next
    monkeypatch.setattr(Decoder, "next", lambda self, n: decoded.append(len(x := following(self, n))) or x)
    with pytest.raises(AudioReadError, match="longer than 2 s"):
        read_at_most(path, 16000, 2.0)
    assert 16000 < sum(decoded) <= 16001 + (1 << 16)
    whole = wav_file(tmp_path / "whole.wav", 1, 16000, 8000)
    from audiogen import read_audio

    assert torch.equal(read_at_most(whole, 8000, 2.0), read_audio(whole, 8000))
    assert torch.allclose(read_at_most(whole, 16000, 2.0), read_audio(whole, 16000), atol=1e-6)


@pytest.fixture
def stalled(run, monkeypatch):
    """A service whose run generates a chunk, then waits to be told to go on."""
    go = threading.Event()

    def chunks(seconds, request):
        yield torch.zeros(1, 1, 80)
        go.wait(30)
        while True:
            yield torch.zeros(1, 1, 80)

    monkeypatch.setattr(type(run), "stream_request", lambda self, seconds, request: chunks(seconds, request))
    service = Service(run, Limits(waiting=3, work_seconds=1e9, kept_bytes=60_000))
    yield service, go
    go.set()
    service.close()


def test_the_queue_is_bounded_and_sounds_are_heard_as_they_grow(stalled):
    """Guards against memory that grows with the number of requests, and a player that waits for the whole sound."""
    service, go = stalled
    (first,) = service.submit(Asked(1.0))
    while len(first.read(0)) < 44 + 160:
        time.sleep(0.01)
    assert first.state == "running" and first.describe()["seconds_made"] == pytest.approx(80 / RATE)
    waiting = service.submit(Asked(1.0, num=3))
    with pytest.raises(BusyError, match="too many sounds are waiting"):
        service.submit(Asked(1.0))
    service.cancel(waiting[0])
    go.set()
    finished(service, first, *waiting[1:])
    assert waiting[0].ended and waiting[0].read(44) == b""


def test_finished_sounds_are_dropped_when_there_are_too_many(stalled):
    """Guards against a server that keeps every sound that it ever made."""
    service, go = stalled
    go.set()
    sounds = []
    for _ in range(6):  # of 16 kB each, where 60 kB are kept
        sounds += service.submit(Asked(1.0))
        finished(service, sounds[-1])
    assert [service.find(sound.id) is not None for sound in sounds] == [False] * 3 + [True] * 3


def test_a_sound_that_takes_too_long_fails_and_the_next_one_is_made(stalled, monkeypatch):
    """Guards against one request that holds up all others, and a worker that ends with an error."""
    service, go = stalled
    go.set()
    service.limits = Limits(work_seconds=-1.0)
    (slow,) = service.submit(Asked(1.0))
    while not slow.ended:
        time.sleep(0.01)
    assert slow.state == "failed" and "it took more than" in slow.error
    service.limits = Limits()
    monkeypatch.setattr(type(service.run), "stream_request", lambda self, seconds, request: iter([None]))
    (broken,) = service.submit(Asked(1.0))
    while not broken.ended:
        time.sleep(0.01)
    assert broken.state == "failed" and broken.error == "an internal error, which the server's log describes"


@pytest.fixture(scope="module")
def stereo_run(run):
    """The same run, trained on stereo files."""
    image = StereoImage((0.3,) * BANDS, (0.5,) * BANDS)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, stereo=image))


@pytest.mark.parametrize("best_of", [1, 2])
def test_a_stereo_run_gives_stereo_sounds(stereo_run, tmp_path, best_of):
    """Guards against half a sound, channels one after the other, and a stereo prompt that is played twice."""
    path, service = tmp_path / "x.wav", Service(stereo_run, Limits(seconds=2.0, upload_seconds=1.0))
    both = np.stack([noise(0, 4000), noise(1, 4000)])
    soundfile.write(path, both.T, RATE, subtype="FLOAT")
    labels = {"register": "low"}
    (whole,) = service.submit(Asked(0.5, seed=1, labels=labels, best_of=best_of), {"prompt": path})
    (new,) = service.submit(Asked(0.5, seed=1, labels=labels, best_of=best_of, only_new=True), {"prompt": path})
    wavs = finished(service, whole, new)
    prompt = torch.from_numpy(both.mean(axis=0, keepdims=True)).float()
    expected = stereo_run.generate(0.5, seed=1, prompt=prompt, conditions=labels, best_of=best_of)[0].numpy()
    assert wavs[0].shape == expected.shape == (2, 8000) and np.abs(expected[0] - expected[1]).max() > 0.01
    assert np.abs(wavs[0] - expected).max() < 2**-14
    assert np.array_equal(wavs[1], wavs[0][:, 4000:])
    assert new.describe()["seconds_made"] == new.describe()["seconds"] == 0.5
    service.close()


@pytest.mark.parametrize("best_of", [1, 2])
def test_whole_sounds_are_given_up_too(run, monkeypatch, best_of):
    """Guards against a front-end that can't stream, or a choice among draws, that ignores limits and cancelling."""
    if best_of == 1:
        monkeypatch.setattr(type(run.frontend), "streams", False)
        hop_length = run.frontend.spec.hop_length
        monkeypatch.setattr(
            type(run.frontend), "decode", lambda _, x, limiter: x.new_zeros(1, 1, 99 * hop_length) * 0.0
        )
    service, labels = Service(run, Limits(seconds=1e4, work_seconds=0.1)), {"register": "low"}
    (sound,) = service.submit(Asked(1e4, labels=labels, best_of=best_of))  # takes minutes
    while not sound.ended:
        time.sleep(0.01)
    assert sound.state == "failed" and "it took more than 0.1 s" in sound.error
    service.limits = Limits(seconds=1e4)
    (first,) = service.submit(Asked(1e4, labels=labels, best_of=best_of))
    (second,) = service.submit(Asked(0.1))
    while first.state != "running":
        time.sleep(0.01)
    service.cancel(first)
    finished(service, second)
    service.close()


# ---- the guard


def through(guard, method, path, body=(b"",), headers=()):
    """What the guard answers: (status, body), as an HTTP server would call it."""
    messages, sent = (
        [{"type": "http.request", "body": part, "more_body": i < len(body) - 1} for i, part in enumerate(body)],
        [],
    )

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def echo(scope, receive, send):
    """An app that reads the whole body and answers with its size."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
def guard(tmp_path):
    (tmp_path / "uploads").mkdir()
    return Guard(echo, 1000, tmp_path / "uploads", folder_bytes=5000)


@pytest.mark.parametrize(
    "method, path, status",
    [
        *(("GET", path, 200) for path in ("/", "/config", "/api/run", "/api/sounds/x.wav", "/assets/index.js")),
        ("POST", "/api/generate", 200),
        ("DELETE", "/api/sounds/x", 200),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/file=UPLOADS/../../secret", 404),
        ("GET", "/gradio_api/file=UPLOADS/a.wav", 200),
        ("GET", "/gradio_api/file=http://127.0.0.1:80/", 404),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:80/", 404),
        ("GET", "/gradio_api/file/etc/passwd", 404),
        ("GET", "/gradio_api/stream/a/b/1/playlist.m3u8", 404),
        ("POST", "/gradio_api/vibe-edit", 404),
        ("POST", "/gradio_api/process_recording", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/gradio_api/run/predict", 404),
        ("GET", "/api/../secret", 404),
        ("GET", "/monitoring", 404),
        ("PUT", "/api/generate", 404),
        ("POST", "/", 404),
    ],
)
def test_only_the_routes_that_are_needed_are_there(guard, tmp_path, method, path, status):
    """Guards against a route of the page's library that reads files or fetches addresses for a stranger."""
    assert through(guard, method, path.replace("UPLOADS", str(tmp_path / "uploads")))[0] == status


def test_a_link_among_the_uploads_leads_nowhere(guard, tmp_path):
    """Guards against an uploaded name that resolves to another file."""
    (tmp_path / "uploads" / "link").symlink_to("/etc/passwd")
    assert through(guard, "GET", f"/gradio_api/file={tmp_path}/uploads/link")[0] == 404


def test_bodies_are_bounded_whatever_their_headers_say(guard, monkeypatch):
    """Guards against memory filled by a body without a length, with a false one, or one that never ends."""
    assert through(guard, "POST", "/api/sounds", [b"x" * 1000])[1] == b"1000"
    for headers, body in (
        ([(b"content-length", b"1001")], [b""]),
        ([(b"content-length", b"-1")], [b""]),
        ([(b"content-length", b"10")], [b"x" * 600] * 2),
        ([], [b"x" * 600] * 2),
    ):
        status, said = through(guard, "POST", "/api/sounds", body, headers)
        assert status == 413 and "1,000 bytes" in json.loads(said)["detail"]
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.05)
    messages = [{"type": "http.request", "body": b"x", "more_body": True}]
    sent = []

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/sounds", "headers": []}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 408
    assert guard._arriving == 0  # or the guard would refuse all later requests


def test_uploads_are_refused_while_their_folder_is_full(guard, tmp_path):
    """Guards against a disk that is filled by uploads."""
    (tmp_path / "uploads" / "a").mkdir()
    (tmp_path / "uploads" / "a" / "x").write_bytes(bytes(5001))
    assert through(guard, "POST", "/gradio_api/upload")[0] == 503
    assert through(guard, "GET", "/api/run")[0] == 200


def test_pages_of_others_get_no_answer(guard):
    """Guards against a page of the web that uses the server of whoever looks at it."""
    host = (b"host", b"127.0.0.1:7860")
    for origin, status in ((b"http://127.0.0.1:7860", 200), (b"http://evil.example", 403), (b"null", 403)):
        assert through(guard, "POST", "/api/sounds", headers=[host, (b"origin", origin)])[0] == status
        assert through(guard, "DELETE", "/api/sounds/x", headers=[host, (b"origin", origin)])[0] == status


def test_events_name_uploaded_files_only(guard, tmp_path):
    """Guards against an event whose file is one of the server, or an address that the server would fetch."""
    inside = str(tmp_path / "uploads" / "a.wav")
    for path, status in (
        (inside, 200),
        (None, 200),
        ("/etc/passwd", 404),
        ("http://127.0.0.1/x", 404),
        (f"{tmp_path}/uploads/../x", 404),
        ("a.wav", 404),
        ("\0", 404),
        (["/etc/passwd"], 400),
    ):
        body = json.dumps({"data": [1, [{"path": path, "meta": {"_type": "gradio.FileData"}}]]}).encode()
        assert through(guard, "POST", "/gradio_api/queue/join", [body[:9], body[9:]])[0] == status
    for body in (b"{", b"[" * 10_000, b"\xff", b'{"x": NaN}'):
        assert through(guard, "POST", "/gradio_api/queue/join", [body])[0] == 400


# ---- the API and the page


@pytest.fixture(scope="module")
def url(run):
    pytest.importorskip("gradio")
    with running(run, Limits(seconds=5.0, upload_seconds=1.0, upload_bytes=200_000)) as url:
        yield url


@pytest.fixture
def client(url):
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_the_api_generates_what_python_generates(run, client, tmp_path):
    """Guards against an API that forgets a field on the way."""
    form = {"seconds": 0.5, "seed": 3, "labels": '{"register": "low", "tempo": 90}', "guidance": 1.5, "top_p": 0.9}
    answer = client.post("/api/generate", data=form)
    assert answer.status_code == 200 and answer.headers["x-seed"] == "3", answer.text
    wav, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    asked = {"register": "low", "tempo": "90"}
    expected = run.generate(0.5, seed=3, conditions=asked, guidance=1.5, sampling=run.sampling_with(top_p=0.9))
    assert rate == RATE and np.abs(wav - expected[0, 0].numpy()).max() < 2**-14
    path = wav_file(tmp_path / "x.wav", 0, 4000, RATE)
    answer = client.post("/api/generate", data={"seconds": 0.25, "seed": 1}, files={"prompt": path.read_bytes()})
    wav, _ = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    expected = run.generate(0.25, seed=1, prompt=read_at_most(path, RATE, 1.0))
    assert np.abs(wav - expected[0, 0].numpy()).max() < 2**-14
    form = {"seconds": 0.25, "seed": 1, "only_new": "true", "prompt_seconds": 0.25, "best_of": 2}
    answer = client.post("/api/generate", data=form, files={"prompt": path.read_bytes()})
    wav, _ = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    expected = run.generate(0.25, seed=1, prompt=read_at_most(path, RATE, 1.0)[:, -2000:], best_of=2)[..., 2000:]
    assert np.abs(wav - expected[0, 0].numpy()).max() < 2**-14


def test_the_api_sends_both_channels(stereo_run):
    """Guards against a header of one channel before the samples of two, and parts that are counted in frames."""
    pytest.importorskip("gradio")
    httpx = pytest.importorskip("httpx")
    with running(stereo_run, Limits(seconds=5.0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/api/generate", data={"seconds": 0.5, "seed": 3, "labels": '{"register": "low"}'})
        wav, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
        expected = stereo_run.generate(0.5, seed=3, conditions={"register": "low"})[0].numpy()
        assert rate == RATE and wav.shape == (4000, 2) and np.abs(wav.T - expected).max() < 2**-14
        assert len(answer.content) == int(answer.headers["content-length"]) == 44 + 4 * 4000
        part = client.get(f"/api/sounds/{answer.headers['x-sound-id']}.wav", headers={"Range": "bytes=16000-"})
        assert part.status_code == 206 and part.content == answer.content[16000:]


def test_sounds_are_queued_found_read_in_parts_and_cancelled(client):
    """Guards against a player that can't seek, and sounds that nobody can stop."""
    first, second = client.post("/api/sounds", data={"seconds": 1, "num": 2}).json()
    whole = client.get(f"/api/sounds/{first['id']}.wav")
    assert whole.status_code == 200 and len(whole.content) == 44 + 2 * RATE
    for asked, part in (
        ("bytes=0-", slice(None)),
        ("bytes=44-99", slice(44, 100)),
        ("bytes=16000-99999", slice(16000, None)),
    ):
        answer = client.get(f"/api/sounds/{first['id']}.wav", headers={"Range": asked})
        assert answer.status_code == 206 and answer.content == whole.content[part]
    assert client.get(f"/api/sounds/{first['id']}.wav", headers={"Range": "bytes=99999-"}).status_code == 416
    assert client.head(f"/api/sounds/{first['id']}.wav").headers["content-length"] == "16044"
    about = client.get(f"/api/sounds/{second['id']}").json()
    assert about["asked"]["seed"] == first["asked"]["seed"] + 1
    assert client.delete(f"/api/sounds/{second['id']}").status_code == 204
    assert client.get("/api/sounds/nothing").status_code == 404 == client.get("/api/sounds/nothing.wav").status_code


@pytest.mark.parametrize(
    "form, status",
    [
        ({"seconds": "99"}, 400),
        ({"seconds": "long"}, 422),
        ({"seed": "1e3"}, 422),
        ({"labels": "{"}, 400),
        ({"labels": "[" * 50_000}, 400),
        ({"labels": '["register"]'}, 400),
        ({"labels": '{"register": ["low"]}'}, 400),
        ({"labels": '{"melody": "/etc/passwd"}'}, 400),
        ({"prompt": "/etc/passwd"}, 422),
        ({"num": "1000000"}, 400),
        ({"best_of": "1000000"}, 400),
        ({"best_of": "two"}, 422),
        ({"only_new": "perhaps"}, 422),
        ({"only_new": "true"}, 400),
    ],
)
def test_malformed_requests_are_answered_in_one_line(client, form, status):
    """Guards against a traceback, or a status of 500, for what a client has got wrong."""
    answer = client.post("/api/sounds", data=form)
    assert answer.status_code == status and answer.json()["detail"]
    assert "Traceback" not in answer.text and "/root" not in answer.text


def test_the_api_describes_itself_and_the_run(client):
    """Guards against an OpenAPI document that misses a field, and a page that must guess what was learned."""
    document = client.get("/api/openapi.json").json()
    paths = document["paths"]
    assert set(paths) == {"/api/run", "/api/generate", "/api/sounds", "/api/sounds/{id}", "/api/sounds/{id}.wav"}
    known = {field.name for field in dataclasses.fields(Asked)} | set(FILES)
    for route, fields in (("sounds", known), ("generate", known - {"num"})):
        (content,) = paths[f"/api/{route}"]["post"]["requestBody"]["content"].values()
        form = document["components"]["schemas"][content["schema"]["$ref"].split("/")[-1]]["properties"]
        assert set(form) == fields and all(field["description"] for field in form.values())
    about = client.get("/api/run").json()
    assert about["best_of"] == 8
    assert about["labels"]["register"] == {"kind": "label", "values": ["low", "<b>high</b>"]}
    assert about["labels"]["tempo"] == {"kind": "number", "low": 60.0, "high": 180.0}
    assert about["files"] == ["prompt", "melody", "like"] and about["limits"]["seconds"] == 5.0


def test_hanging_up_stops_the_sound(run, monkeypatch):
    """Guards against a queue that is full of sounds that nobody waits for any more."""
    pytest.importorskip("gradio")
    httpx = pytest.importorskip("httpx")

    def chunks(self, seconds, request):
        while True:
            yield torch.zeros(1, 1, 80)
            time.sleep(0.05)

    monkeypatch.setattr(type(run), "stream_request", chunks)
    with running(run, Limits(seconds=600)) as url, httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/api/generate", data={"seconds": 600}) as answer:
            parts = answer.iter_bytes(1000)
            assert next(parts)[:4] == b"RIFF"  # long before its end
            about = f"/api/sounds/{answer.headers['x-sound-id']}"
            assert client.get(about).json()["state"] == "running"
        end = time.monotonic() + 20
        while client.get(about).json()["state"] != "cancelled":
            assert time.monotonic() < end
            time.sleep(0.1)


def test_the_protocol_of_the_page_reads_no_file_of_the_server(client):
    """Guards against Gradio's events, which pass on any file of this machine when Gradio is mounted on another app."""
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    event = client.get("/config").json()["dependencies"][0]
    values = [None, "low", "", 1, 1, "", 1, 1, 1, 0, False, *[None] * (len(event["inputs"]) - 11)]
    for path, status in (
        (__file__, 404),
        (str(client.base_url.join("/config")), 404),
        (str(uploads / "gone.wav"), 200),
    ):
        values[11] = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": values, "fn_index": event["id"], "session_hash": "x", "event_data": None, "trigger_id": 1}
        assert client.post("/gradio_api/queue/join", json=body).status_code == status
    assert not list(uploads.rglob(Path(__file__).name))
    twice = json.dumps(body).replace(
        '"path": ', f'"path": {json.dumps(str(uploads / "a"))}, "path": "/etc/passwd", "x": '
    )
    assert client.post("/gradio_api/queue/join", content=twice).status_code == 404


def test_other_hosts_and_too_large_bodies_are_refused(client):
    """Guards against a name of somebody else that leads to this server, and a body that fills memory."""
    assert client.get("/api/run", headers={"Host": "evil.example"}).status_code == 400
    assert client.post("/api/sounds", files={"prompt": bytes(300_000)}).status_code == 413
    chunks = (b"x" * 50_000 for _ in range(10))  # without a length
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/api/sounds", content=chunks, headers=form).status_code in (400, 413)


def test_the_page_works_in_a_browser(url, tmp_path):
    """Guards against a page with errors, with parts from elsewhere, that runs what a label says, or that is silent."""
    from chromium import PROGRAM, WHY_NOT, Chromium

    if PROGRAM is None:
        pytest.skip(WHY_NOT)

    def wait_for(script, seconds=60):
        end = time.monotonic() + seconds
        while not (found := browser.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.1)
        return found

    with Chromium(tmp_path) as browser:
        for width in (1280, 390):
            browser.open(f"{url}/", width)
            wait_for("!!document.querySelector('button.primary')")
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")
            browser.run("[...document.querySelectorAll('button.primary')].at(-1).click()")
            assert wait_for("(document.querySelector('.sound audio') || {}).currentTime > 0.2")
            assert "seed" in browser.run("document.querySelector('.sound span').textContent")
            assert not browser.run("!!document.querySelector('.sound b')")
            assert browser.errors == []
            assert [address for address in browser.requests if not address.startswith((url, "blob:"))] == []
