"""The listening page in headless Chromium: players load, nothing is fetched, and it fits a phone."""

import io
import json

import pytest
import soundfile
from chromium import PROGRAM, WHY_NOT, Chromium
from listening import Page, make_run, put, tone
from matplotlib.figure import Figure

from audiogen.listen import Clip, clip_slider, picture, section, write_document, write_page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


DURATIONS = """Promise.all([...document.querySelectorAll("audio")].map((a) => new Promise((done) => {
  const tell = () => done(a.error ? a.error.message : a.duration);
  if (a.readyState >= 1 || a.error) tell(); else a.onloadedmetadata = a.onerror = tell; })))"""
# What reaches beyond the screen's edge, but for what scrolls by itself. (A phone makes innerWidth grow with the page,
# so that the width has to come from outside.)
OVERFLOW = """[...document.querySelectorAll("html, body *")].filter((e) => !e.closest(".scroll, .area") && Math.max(
  e.getBoundingClientRect().right, e.tagName == "HTML" ? e.scrollWidth : 0) > %d + 0.5)
  .map((e) => e.outerHTML.slice(0, 200))"""


def test_the_browser_would_tell(browser, tmp_path):
    """The checks below can fail: a page with an error, a request, a sound that is none, and a wide line."""
    (tmp_path / "bad.html").write_text(
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<p style="width:900px">wide</p><img src="http://127.0.0.1:9/x.png">'
        '<audio src="data:audio/wav;base64,AAAA"></audio><script>nothing()</script>'
    )
    browser.open(tmp_path / "bad.html", width=360)
    assert browser.requests == ["http://127.0.0.1:9/x.png"]
    assert any("nothing is not defined" in error for error in browser.errors)
    assert isinstance(browser.run(DURATIONS)[0], str)
    assert any("wide" in str(found) for found in browser.run(OVERFLOW % 360))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_players_load_and_the_page_fits(browser, tmp_path, width, dark):
    """Durations are those of the files, nothing overflows (with names and settings that have no place to break), the
    console is silent and nothing is fetched: for one run and for two."""
    runs = [make_run(tmp_path / ("a_run_with_a_name_that_never_ends_" * 3)), make_run(tmp_path / "b", rate=44100)]
    put(runs[0], "long_" * 30, tone(2.2), kind="generated", step=100, prompt="p" * 90, prompt_seconds=1.0)
    config = json.loads((runs[0] / "config.json").read_text())
    config["data"]["path"] = "x" * 300
    (runs[0] / "config.json").write_text(json.dumps(config))
    for chosen in (runs[:1], runs):
        path = write_page(chosen, tmp_path / "page.html")
        browser.open(path, width=width, dark=dark)
        browser.run('document.querySelectorAll("details").forEach((d) => d.open = true)')
        assert browser.run(OVERFLOW % width) == []
        expected = [soundfile.info(io.BytesIO(sound)).duration for sound in Page(path).sounds()]
        assert browser.run(DURATIONS) == pytest.approx(expected, abs=1e-3)
        assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert browser.run('document.querySelectorAll("nav a").length') >= 5
        assert browser.errors == [] and browser.requests == []


def test_columns_stand_beside_each_other_or_stack(browser, tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    path = write_page(runs)
    tops = '[...document.querySelectorAll("#generated .columns > div")].map((d) => d.getBoundingClientRect().top)'
    browser.open(path, width=1200)
    first, second = browser.run(tops)
    assert first == second
    browser.open(path, width=360)
    first, second = browser.run(tops)
    assert second > first + 300


def test_one_sound_at_a_time_and_a_tap_seeks(browser, tmp_path):
    browser.open(write_page([make_run(tmp_path / "run")]))
    browser.run(DURATIONS)
    playing = '[...document.querySelectorAll("audio")].map((a) => !a.paused)'
    browser.run('document.querySelectorAll("audio")[0].play()')
    browser.run('document.querySelectorAll("audio")[2].play()')
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run(playing) == [False, False, True, False, False, False, False]
    time = browser.run("""new Promise((done) => {
        const clip = document.querySelectorAll(".clip")[4], area = clip.querySelector(".mel");
        const box = area.getBoundingClientRect(), player = clip.querySelector("audio");
        player.addEventListener("seeked", () => done(player.currentTime), { once: true });
        area.dispatchEvent(new MouseEvent("click", { clientX: box.left + 0.6 * box.width, bubbles: true })); })""")
    assert time == pytest.approx(0.6 * 1.25, abs=0.05)
    assert float(browser.run('document.querySelectorAll(".clip")[4].style.getPropertyValue("--at")')) >= 0.59
    assert browser.errors == []


def test_a_picture_shows_that_there_is_more_to_scroll(browser, tmp_path):
    """Guards against the right half of a picture that nobody finds on a phone, and a shadow where nothing is hidden."""
    wide, small = Figure(figsize=(10, 2)), Figure(figsize=(3, 2))
    path = write_document(tmp_path / "a.html", "A", section("B", picture(wide, "wide"), picture(small, "small")))
    shadows = """new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(
      [...document.querySelectorAll("figure .scroll")].map((e) => +getComputedStyle(e, "::after").opacity)))))"""
    browser.open(path, width=390)
    if not browser.run("CSS.supports('animation-timeline: --x')"):
        pytest.skip("Chromium before 115 draws no shadow")
    assert browser.run(shadows) == [1, 0]
    browser.run("document.querySelector('figure .scroll').scrollLeft = 9999")
    assert browser.run(shadows) == [0, 0]
    browser.open(path, width=1280)
    assert browser.run(shadows) == [0, 0] and browser.run(OVERFLOW % 1280) == []


def test_a_slider_shows_one_block_and_goes_on_playing(browser, tmp_path):
    """Guards against a slider that arrow keys do not move, that shows several positions or none, that leaves a sound
    playing where it can't be seen, and that a phone cuts off."""
    stops = {
        name: [Clip(put(tmp_path, f"{name}-{i}", tone(60.0, 200 * (i + 1))), f"clip {i}") for i in range(2)]
        for name in ("1 (0.25 kbit/s)", "3 (0.75 kbit/s)", "original")
    }
    path = write_document(tmp_path / "slider.html", "Codebooks", section("Heard", clip_slider("codebooks", stops, 1)))
    shown = """[...document.querySelectorAll(".stop")].filter((s) => s.offsetParent).map((s) => s.dataset.name)"""
    playing = """[...document.querySelectorAll("audio")].findIndex((a) => !a.paused)"""
    for width in (390, 1280):
        browser.open(path, width=width)
        assert browser.run(OVERFLOW % width) == []
        assert browser.run(shown) == ["3 (0.75 kbit/s)"]
        assert browser.run("document.querySelectorAll('audio')[3].play().then(() => 0)") == 0
        browser.run("document.querySelectorAll('audio')[3].currentTime = 0.5")
        browser.run("document.querySelector('input').focus()")
        for key, place, name in (("ArrowRight", 5, "original"), ("Home", 1, "1 (0.25 kbit/s)")):
            for kind in ("rawKeyDown", "keyUp"):
                code = {"ArrowRight": 39, "Home": 36}[key]
                browser.send(
                    "Input.dispatchKeyEvent", tab=True, type=kind, key=key, code=key, windowsVirtualKeyCode=code
                )
            assert browser.run(shown) == [name]
            assert browser.run("document.querySelector('output').textContent") == name
            assert browser.run("document.querySelector('input').ariaValueText") == name
            assert browser.run(playing) == place
            assert browser.run(f"document.querySelectorAll('audio')[{place}].currentTime") >= 0.5
        assert browser.errors == [] and browser.requests == []
