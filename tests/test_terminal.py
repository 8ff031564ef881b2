"""What commands print: a line for each thing that is said, whatever files are called, and an end in good order."""

import io
import logging
import os
import re
import signal
import subprocess
import sys

import pytest
from folders import folder_of_noise
from processes import Command, audiogen
from rich.table import Table
from rich.text import Text

from audiogen.errors import DataError, printable
from audiogen.utils.files import walk
from audiogen.utils.terminal import Formatter, Terminal

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone")
EVIL = "a\x1b[2J\n\x9b\u202eb\udcff.wav"
SHOWN = r"a\x1b[2J\n\x9b\u202eb\udcff.wav"


def test_names_are_made_printable():
    """Guards against a name that clears the screen, begins a line of its own or turns the text around."""
    assert printable(EVIL) == SHOWN
    assert printable(SHOWN) == SHOWN
    assert printable("Klänge 音.wav") == "Klänge 音.wav"
    assert str(DataError(f"{EVIL}: is bad")) == f"{SHOWN}: is bad"


@pytest.mark.parametrize("what", [str, Text, lambda name: Text.assemble(("left out", "red"), "  ", name)])
def test_the_console_prints_a_line(what):
    """Guards against the same in what commands print, where styles are no part of a name."""
    console = Terminal(file=io.StringIO(), force_terminal=True, highlight=False, soft_wrap=True, markup=False)
    console.print(what(EVIL))
    said = console.file.getvalue()
    assert SHOWN in said and said.count("\n") == 1 and said.endswith("\n")
    assert said.replace("\x1b[31m", "").replace("\x1b[0m", "").count("\x1b") == 0


def test_the_console_keeps_styles_and_tables():
    """Guards against colours that are printed as text, and a table that is a single line."""
    console = Terminal(file=io.StringIO(), force_terminal=True, width=60)
    console.print(Text.assemble(("red", "red"), " and not"))
    assert console.file.getvalue() == "\x1b[31mred\x1b[0m and not\n"
    table = Table("what", "value", title="t")
    table.add_row("name", "a\x1b[2J")
    console.print(table)
    assert r"a\x1b[2J" in console.file.getvalue() and console.file.getvalue().count("\n") > 5


def test_log_lines():
    """Guards against names raw in what is logged; a traceback keeps its lines."""
    record = logging.LogRecord("audiogen", logging.INFO, "", 0, "left out: %s", (EVIL,), None)
    assert Formatter("%(message)s").format(record) == f"left out: {SHOWN}"
    try:
        raise ValueError("x")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert Formatter("%(message)s").format(record).count("\n") > 1


@posix
def test_names_of_any_bytes(tmp_path):
    """Guards against a UnicodeEncodeError for a name that is no UTF-8, or that a terminal of few characters can't show;
    and a name that is said twice."""
    folder_of_noise(tmp_path / "sound", [3000, 3500], sample_rate=8000)
    for name in (b"\xff.wav", "ü.wav".encode(), b"bad\x1b[2J\n.wav"):
        with open(os.path.join(os.fsencode(tmp_path / "sound"), name), "wb") as file:
            file.write(b"no sound")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "audiogen", "doctor", tmp_path / "sound"]
    done = subprocess.run(command, capture_output=True, env=environment)
    said = done.stdout.decode("ascii")
    assert done.returncode == 0 and done.stderr == b"" and "\x1b" not in said
    for name in (r"\udcff.wav", r"\xfc.wav", r"bad\x1b[2J\n.wav"):
        (line,) = [line for line in said.splitlines() if name in line]
        assert line.startswith(f"left out  {name}: ") and line.count(".wav") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    "words",
    ["doctor {}", "train {} --out {}-out", "generate {} --out {}-out", "decode {} {}-out", "decode {}/a.npy {}-out"],
)
def test_a_path_that_can_not_be_read_is_one_line(tmp_path, words):
    """Guards against a box of five lines, and the exit code of wrong usage."""
    (closed := tmp_path / "closed").mkdir(mode=0)
    command = Command(tmp_path / "log", *words.replace("{}", str(closed)).split(), privileged=False)
    result = command.wait()
    assert result.code == 1 and result.err.count("\n") == 1 and "Permission denied" in result.err, result.err
    assert not (tmp_path / "closed-out").exists()


@posix
def test_a_reader_that_goes_away_ends_the_command_in_silence(tmp_path):
    """Guards against a traceback for `audiogen doctor | head -1`."""
    script = f"{sys.executable} -m audiogen doctor | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stderr == "" and done.returncode in (0, 141)


@posix
def test_closed_streams(tmp_path):
    """Guards against a failure for want of a place to print to, and what is printed going into a file that is opened
    next."""
    folder_of_noise(tmp_path / "sound", [3000, 3500], sample_rate=8000)
    words = f"tokenize {tmp_path}/sound {tmp_path}/cache --frontend mulaw"
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m audiogen {words} <&- >&- 2>&-"])
    assert done.returncode == 0
    assert audiogen(tmp_path, "decode", tmp_path / "cache", tmp_path / "out").code == 0


@posix
def test_terminated_outside_of_the_training_loop(tmp_path):
    """Guards against an end without a word, and half a file left behind."""
    folder_of_noise(tmp_path / "sound", [400_000] * 6, sample_rate=8000)
    command = Command(tmp_path, "tokenize", tmp_path / "sound", tmp_path / "cache", "--frontend", "mulaw")
    assert command.wait_until(lambda: any((tmp_path / "cache").glob(".data*")) if (tmp_path / "cache").exists() else 0)
    command.send(signal.SIGTERM)
    result = command.wait()
    assert (result.code, result.err) == (143, "audiogen: terminated; what was saved stays\n")
    left = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert all(
        re.fullmatch(r"\d{6}-[0-9a-f]{16}\.(bin|json)|\.lock", name) for name in left
    )  # whole shards, to go on from
    assert audiogen(tmp_path, "tokenize", tmp_path / "sound", tmp_path / "cache", "--frontend", "mulaw").code == 0


@posix
def test_deep_folders(tmp_path):
    """Guards against a RecursionError of os.walk for 1,200 folders within one another."""
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(os.open("a.wav", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    errors = []
    found = [(root, names) for root, _, names in walk(tmp_path, errors.append)]
    assert len(found) == 1201 and found[-1][1] == ["a.wav"] and not errors
    while (tmp_path / "d").exists():  # shutil.rmtree calls itself too
        for root, names in reversed(found):
            for name in names:
                os.unlink(os.path.join(root, name))
            if root != str(tmp_path):
                os.rmdir(root)


def test_walking_is_as_os_walk_has_it(tmp_path):
    """Guards against folders that are passed over, entered though taken off the list, or reported in another order."""
    for name in ("a/b/x.txt", "a/y.txt", "c/z.txt", "w.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "link").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    def listed(walker):
        found = []
        for root, folders, names in walker:
            folders[:] = sorted(name for name in folders if name != "b")
            found.append((root, list(folders), sorted(names)))
        return found

    assert listed(walk(tmp_path, pytest.fail)) == listed(os.walk(tmp_path, onerror=pytest.fail, followlinks=True))
    missing = []
    assert list(walk(tmp_path / "nowhere", missing.append)) == [] and len(missing) == 1
