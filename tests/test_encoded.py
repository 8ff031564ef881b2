"""A folder's two sides in one call, and what file names say."""

import numpy as np
import pytest
import torch
from corpus import RATE, folder_of_notes, tiny_settings

from audiogen import encode_folder
from audiogen.commands.decode import read_codes
from audiogen.data import label_names, label_of
from audiogen.errors import CacheError, DataError
from audiogen.frontends import load_frontend


def test_a_folder_is_split_fitted_and_encoded(tmp_path):
    """Guards against a front-end that was fitted to held-out files, sides that share one, and codes of the wrong
    file."""
    folder = folder_of_notes(tmp_path / "notes", [4000] * 10)
    encoded = encode_folder(folder, tmp_path / "out", "melvq", **tiny_settings("melvq"))
    assert encoded.spec.sample_rate == RATE and encoded.frontend.fitted
    assert not set(encoded.training.names) & set(encoded.held_out.names)
    assert len(encoded.training) == 9 and len(encoded.held_out) == 1
    alone = encode_folder(
        folder_of_notes(tmp_path / "again", [4000] * 10), tmp_path / "other", "melvq", **tiny_settings("melvq")
    )
    (tmp_path / "notes" / encoded.held_out.names[0]).unlink()
    assert alone.frontend.fingerprint() == encoded.frontend.fingerprint(), "names and places decide nothing"
    torch.testing.assert_close(alone.held_out[0], encoded.held_out[0], rtol=0, atol=0)
    batch, files = encoded.crops(16, 3).batch(0)
    x = batch.x
    assert x.shape == (3, 2, 16) and set(sum(files, [])) <= set(encoded.training.names)


def test_the_rate_is_the_folder_s_own_unless_it_is_set(tmp_path):
    """Guards against speech of 8 kHz that is blown up to 16, and music of 44.1 kHz that no small model can take."""
    low = folder_of_notes(tmp_path / "low", [800] * 3, rate=8000)
    high = folder_of_notes(tmp_path / "high", [4410] * 3, rate=44100)
    assert encode_folder(low, tmp_path / "1", "mulaw").spec.sample_rate == 8000
    assert encode_folder(high, tmp_path / "2", "mulaw").spec.sample_rate == 16000
    assert encode_folder(high, tmp_path / "3", "mulaw", sample_rate=4000).spec.sample_rate == 4000


def test_an_empty_folder_says_so(tmp_path):
    """Guards against a lesson that ends in a traceback from a division by zero."""
    with pytest.raises(DataError, match=str(tmp_path)):
        encode_folder(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "path, label",
    [("7_jackson_32.wav", "7"), ("yes/004ae714_nohash_0.wav", "yes"), ("a/b/c_1.wav", "b"), ("note.wav", "")],
)
def test_labels_come_from_folder_or_name(path, label):
    """Guards against a digit that is called after its speaker."""
    assert label_of(path) == label


def test_labels_are_for_all_files_or_none():
    """Guards against a classifier with one class, or with one for the files that nobody labelled."""
    assert label_names(["1_a.wav", "0_b.wav", "1_c.wav"]) == ["0", "1"]
    assert label_names(["1_a.wav", "note.wav"]) == []
    assert label_names(["1_a.wav", "1_b.wav"]) == []


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path):
    """Guards against memory, or a traceback, for the word of a stranger's file of codes."""
    frontend = load_frontend("mulaw", sample_rate=RATE)
    np.save(tmp_path / "codes.npy", np.zeros(9, np.int64))
    content = (tmp_path / "codes.npy").read_bytes()
    claim, padding = b"(1000000000000000,)", b" " * (len("1000000000000000") - 1)
    (tmp_path / "codes.npy").write_bytes(content.replace(b"(9,)" + b", }" + padding, claim + b", }"))
    assert (tmp_path / "codes.npy").stat().st_size == len(content)
    with pytest.raises(CacheError, match="codes.npy: can't be read as codes"):
        read_codes(tmp_path / "codes.npy", frontend)
