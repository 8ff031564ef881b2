"""The listening page: it plays the files of a run, explains them, and copes with missing or damaged ones."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from listening import Page, make_run, put

from audiogen.errors import AudiogenError, RunError
from audiogen.listen import html as pieces
from audiogen.listen import write_page
from audiogen.listen.page import run_names
from audiogen.listen.run_reader import RunFolder


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "first")


def test_sounds_are_the_files_in_listening_order(run):
    """Guards against players with another file's bytes, originals paired with the wrong round trip by file order, and
    samples of older weights before those of the newest."""
    (run / "samples" / "round-trip-0.wav").rename(run / "samples" / "round-trip-9.wav")
    (run / "samples" / "round-trip-0.json").rename(run / "samples" / "round-trip-9.json")
    path = write_page([run])
    assert path == run / "index.html"
    page = Page(path)
    order = ["original-0", "round-trip-9", "original-1", "round-trip-1", "step-100-0", "step-100-1", "step-50-0"]
    assert page.sounds() == [(run / "samples" / f"{name}.wav").read_bytes() for name in order]
    assert "step-50-0" in page.text("on-the-way") and "step-100-0" in page.text("generated")
    assert [a["aria-label"] for a in page.all("audio")][:2] == ["Original a0.wav", "Round trip a0.wav"]
    assert all("controls" in a for a in page.all("audio"))


def test_axes_labels_and_alt_texts(run):
    """Guards against pictures without labels or alt texts, and a prompt that is not marked or not to scale."""
    page = Page(write_page([run]))
    generated = page.texts["generated"]
    for label in ("seconds", "Hz", "200", "500", "1,000", "2,000", "0.5", "1", "−0.5", "prompt"):
        assert label in generated, label
    assert generated.count("prompt") == 1  # of the one that has a prompt
    assert "−80 dB" in page.text() and "0 dB" in page.text()
    assert "temperature 0.9, top-k 50, seed 7" in page.text("generated")
    assert "0.2 s are the prompt, from a0.wav" in page.text("generated")
    prompts = [a["style"] for a in page.all("span") if a.get("class") == "prompt"]
    assert prompts == ["width:20.00%"] * 2  # 0.25 s of an axis as long as the longest sound, 1.25 s
    assert all(a["alt"] for a in page.all("img"))
    assert all(a["aria-label"] for a in page.all("svg"))
    links = [a["href"] for a in page.all("a")]
    assert links and {link.removeprefix("#") for link in links} == {a["id"] for a in page.all("section")}


def test_the_curve_and_the_figures(run):
    """Guards against a loss curve without the counted models as named lines, and a table without the best held-out loss
    in each unit."""
    page = Page(write_page([run]))
    curve = page.texts["how-it-learned"]
    for name in (
        "uniform",
        "unigram",
        "bigram",
        "uniform 8.000",
        "unigram 6.500",
        "bigram 5.250",
        "held-out files",
        "training files",
        "training steps",
        "Loss in bits per code, lower is better",
    ):
        assert name in curve, name
    loss = 4.1 + 4 * math.exp(-100 / 30)
    figures = page.texts["figures"]
    assert {"bits per code", "bits per second", "bits per sample"} <= set(figures)
    assert {f"{loss:.3f}", f"{8000 * loss:,.0f}", "5.250", "42,000", "6.500", "52,000", "64,000"} <= set(figures)
    said = page.text("figures")
    assert f"guessing among {2**loss:.1f} codes, out of 256" in said
    assert f"saves {5.25 - loss:.2f} bits per code over counting pairs" in said
    assert "A gpt model of mulaw codes, trained for 100 steps in 1.7 minutes" in page.text("")
    assert '"dim": 96' in page.text("settings")
    paths = [a["d"] for a in page.all("path") if a.get("class") == "level l2"]
    line = [a["d"] for a in page.all("path") if a.get("class") == "line c0"]
    height = float(paths[0].split()[1].split("H")[0])
    assert len(line) == 1 and height < float(line[0].split()[-1])  # the model ends below the bigram


def test_the_final_report_wins(run):
    """Guards against showing the overfitted last step: the figures are those of the final evaluation if there is one,
    and the first samples those of the weights that were kept."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(
            json.dumps(
                {
                    "event": "final",
                    "loss": 4.5,
                    "unit": "bits",
                    "bits_per_second": 36000.0,
                    "bits_per_sample": 4.5,
                    "round_trip": {"si_sdr": 21.5, "mel_distance": None},
                    "files": 12,
                    "step": 50,
                    "baselines": {
                        name: {"loss": loss, "bits_per_second": loss * 8000}
                        for name, loss in (("uniform", 8.0), ("unigram", 6.0), ("bigram", 4.25))
                    },
                }
            )
            + "\n"
        )
    page = Page(write_page([run]))
    figures = page.texts["figures"]
    assert {"4.500", "36,000", "4.250", "34,000", "21.500", "round trip: SI-SDR (dB)", "files held out"} <= set(figures)
    assert "does not yet beat the best count-based model (bigram)" in page.text("figures")
    assert "round trip: mel distance" not in figures
    assert "bigram 4.250" in page.texts["how-it-learned"]
    # The weights of step 50 were kept: its samples are the run's, later ones are on the way.
    assert "step-50-0" in page.texts["generated"] and "step-100-0" in page.texts["on-the-way"]


def test_a_waveform_that_is_not_kept_is_not_scored(run):
    """Guards against "-26 dB" among the figures of every run on mel frames, which says nothing of how they sound."""
    event = {"event": "final", "loss": 4.5, "round_trip": {"si_sdr": -26.0, "mel_distance": 0.3}}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
    figures = Page(write_page([run])).texts["figures"]
    assert "round trip: mel distance" in figures and not any("SI-SDR" in text for text in figures)


def test_a_density_is_in_nats(tmp_path):
    """Guards against nats shown as bits, and counted baselines, where the model is a density over frames."""
    run = make_run(tmp_path / "density", "mel", metrics=False)
    (run / "metrics.jsonl").write_text(
        '{"event": "train", "step": 1, "seconds": 1.0, "loss": 90.5}\n'
        '{"event": "held_out", "step": 1, "seconds": 1.0, "loss": -12.25, "best": true, "bits_per_second": null}\n'
    )
    page = Page(write_page([run]))
    assert "-12.250" in page.texts["figures"] and "nats per frame" in page.texts["figures"]
    assert "mel frames" in page.text("")
    assert "bits per" not in page.text("", "how-it-learned") and "uniform" not in page.text()


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("samples", [False, True])
def test_a_run_that_has_only_begun(tmp_path, metrics, samples):
    """Guards against a traceback or an empty section where metrics or samples do not exist yet."""
    page = Page(write_page([make_run(tmp_path / "run", metrics=metrics, samples=samples)]))
    assert ("None yet." in page.text("generated")) is not samples
    assert ("No held-out file has been evaluated yet." in page.text("figures")) is not metrics
    assert ("No step has been logged yet." in page.text("how-it-learned")) is not metrics


def test_damaged_pieces_are_passed_over(run):
    """Guards against a page that fails because of a half-written last line, odd lines, NaN, or a damaged JSON or WAV;
    the card of a bad WAV says what is wrong with it."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(
            '[1]\nnull\n{"event": "train", "step": 110, "loss": NaN}\n'
            '{"event": "held_out", "step": "x", "loss": 1}\n{"event": "train", "step": 1'
        )
    bare = put(run, "bare")
    broken = put(run, "broken")
    broken.with_suffix(".json").write_text('{"kind": "gen')
    odd = put(run, "odd", kind="generated", step="ten", seed=True, sampling=[1], prompt_seconds="x")
    cut = put(run, "cut", kind="generated", step=100)
    cut.write_bytes(cut.read_bytes()[:1000])
    page = Page(write_page([run]))
    assert {bare.read_bytes(), broken.read_bytes(), odd.read_bytes()} <= set(page.sounds())
    assert cut.read_bytes() not in page.sounds()
    assert "cut.wav" in page.text("generated") and "bare" in page.text("other-sounds")
    assert "seed True" not in page.text() and "NaN" not in page.text() and "nan" not in page.text("how-it-learned")


def test_what_is_no_run_is_refused_in_one_line(tmp_path, run):
    """Guards against a traceback, or a written page, for a folder that is not a run."""
    (tmp_path / "empty").mkdir()
    folders = {"absent": "no such folder", "empty": "no config.json", "first/config.json": "no config.json"}
    for name, config, message in (
        ("damaged", "{", "damaged"),
        ("list", "[]", "damaged"),
        ("newer", '{"format": 99}', "99"),
        ("frontend", '{"format": 1, "frontend": {}}', "not a run"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        folders[name] = message
    for name, message in folders.items():
        with pytest.raises(RunError, match=message) as error:
            write_page([run, tmp_path / name], tmp_path / "out.html")
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RunError, match="at least one"):
        write_page([])
    assert not (tmp_path / "out.html").exists()


def test_nothing_on_the_page_is_taken_for_html(tmp_path):
    """Guards against names and settings that are interpreted as HTML or run as scripts."""
    evil = '"><script>document.title="x"</script><img src=http://example.org/x onerror=alert(1)>&amp;'
    run = make_run(tmp_path / "a & <b>run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["note"] = config["backbone"]["kind"] = evil
    (run / "config.json").write_text(json.dumps(config))
    put(run, "x' onload='1 <i>", kind="original", source=evil)
    put(run, "y", kind=evil, prompt=evil, prompt_seconds=0.1, sampling={evil: 1})
    page = Page(write_page([run]))
    assert page.text("settings").count(json.dumps(evil)) == 2 and "a & <b>run" in page.text("")
    assert len(page.all("script")) == 1 and not page.all("i onload") and not page.all("b>run")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), tag


def test_several_runs_side_by_side(tmp_path):
    """Guards against ranking losses of different front-ends, and a run that is compared with itself because it was
    named twice."""
    runs = [
        make_run(tmp_path / "one" / "x"),
        make_run(tmp_path / "two" / "x"),
        make_run(tmp_path / "z", "melvq", 16000),
    ]
    page = Page(write_page(runs[:2], tmp_path / "both.html"))
    names = ["one/x", "two/x"]
    assert all(name in page.texts["generated"] for name in names)
    assert len(page.sounds()) == 14
    assert "share one front-end" in page.text("figures")
    assert not (runs[0] / "index.html").exists()
    (runs[1] / "frontend.safetensors").write_bytes(b"other weights")
    assert "different front-ends" in Page(write_page(runs[:2])).text("figures")
    page = Page(write_page(runs))
    assert "different front-ends" in page.text("figures")
    assert "8,000" not in page.texts["generated"] and "4,000" in page.texts["generated"]  # 16 kHz sets the common axis
    alone = write_page([runs[0], tmp_path / "one" / "y" / ".." / "x"])  # the same folder twice
    assert alone == runs[0] / "index.html" and len(Page(alone).sounds()) == 7


def test_names_are_as_much_of_the_path_as_tells_them_apart():
    """Guards against two runs with the same name, and two slashes where the whole path is needed."""
    folders = [RunFolder(Path(path), {}, [], []) for path in ("/x", "/a/x", "/b/a/x")]
    assert run_names(folders[:2]) == ["/x", "a/x"]
    assert run_names(folders) == ["/x", "/a/x", "b/a/x"]


def test_a_long_history_stays_small(tmp_path):
    """Guards against a page that is too large for a phone after a night of training: it shows a few of hundreds of
    samples, from the whole training, and says how many it leaves out."""
    run = make_run(tmp_path / "night", samples=False, rate=24000)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 24000 * 4)
    for i in range(6):
        put(run, f"original-{i}", noise, 24000, kind="original", source=f"{i}.wav")
        put(run, f"round-trip-{i}", noise, 24000, kind="round-trip", source=f"{i}.wav")
    for step in range(0, 1001, 50):
        for i in range(9 if step == 1000 else 2):
            put(run, f"step-{step:04d}-{i}", noise, 24000, kind="generated", step=step)
    path = write_page([run])
    assert path.stat().st_size < 10e6
    page = Page(path)
    assert len(page.all("audio")) == 20
    assert f"{len(list((run / 'samples').glob('*.wav'))) - 20} more in the samples folder" in page.text()
    shown = [line for line in page.texts["on-the-way"] if line.startswith("step-")]
    assert shown == ["step-0000-0", "step-0300-0", "step-0650-0", "step-0950-0"]


def test_a_failed_write_keeps_the_old_page(run, monkeypatch):
    """Guards against a full disk that destroys the existing page or leaves temporary files."""
    path = write_page([run])
    before = path.read_bytes()
    put(run, "new", kind="generated", step=100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(AudiogenError, match=r"index\.html.*disk is full"):
        write_page([run])
    assert path.read_bytes() == before and sorted(p.name for p in run.iterdir()) == [
        "config.json",
        "index.html",
        "metrics.jsonl",
        "samples",
    ]


def test_a_lesson_s_note_is_its_docstring_below_the_title():
    """Guards against a drawing in a docstring whose lines are joined, and markup in a docstring that is not escaped."""
    html = pieces.note("Lesson 0: <nothing>.\n\n    python x.py\n\nTwo\nlines & more.\n\n    a\n      b\n")
    assert html == "<pre>python x.py</pre><p>Two lines &amp; more.</p><pre>a\n  b</pre>"
