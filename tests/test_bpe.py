"""Byte-pair encoding, readable and fast: against worked examples, Unicode's own tables, each other, and a library."""

import json
import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core import caching

from audiogen.course.bpe import (
    GPT4_SPLIT,
    BasicTokenizer,
    SplitTokenizer,
    apply_merges,
    count_pairs,
    learn_merges,
    merge,
    most_frequent,
    undo_merges,
)
from audiogen.errors import ConfigError, RunError
from audiogen.frontends.bpe import merges as fast
from audiogen.utils import jit as compiled

TEXT = (
    "The cat sat on the mat. The cat's hat sat on the cat! In 2024 the cat counted 12345 hats.\n\n"
    "   \tWo der Hut saß, saß die Katze: Ähm, «ähm». 猫は帽子の上に座った。 "
) * 4
FAR = 10**9  # no limit to a code's length

# Few codes and many repeats: ties, runs, and pairs that overlap. A tail of sequences of 0 and 1 codes as well.
sequences = st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=5)


def arrays(lists):
    return [np.array(codes, np.int64) for codes in lists]


# ---- the readable one


def test_the_worked_example():
    """Guards against merges in another order. https://en.wikipedia.org/wiki/Byte_pair_encoding, as in minbpe's
    tests."""
    tokenizer = BasicTokenizer()
    tokenizer.train("aaabdaaabac", num_merges=3)
    assert tokenizer.merges == [(97, 97), (97, 98), (256, 257)]
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
    assert tokenizer.num_tokens == 259


def test_of_equals_the_smallest_pair_is_merged():
    """Guards against merges that depend on a dict's order, and so on what was read first."""
    assert learn_merges([[3, 4, 1, 2, 3, 4, 1, 2]], 1, 5) == [(1, 2)]
    assert learn_merges([[1, 3, 9, 1, 2, 8, 1, 3, 7, 1, 2]], 1, 10) == [(1, 2)]
    assert learn_merges([[5, 6, 5, 6, 5, 6, 5, 5]], 1, 10) == [(5, 6)], "the count comes first"


def test_runs_are_merged_from_the_left():
    """Guards against aX for aaa, and overlapping pairs that are merged twice."""
    assert merge([7, 7, 7], (7, 7), 9) == [9, 7]
    assert merge([7, 7, 7, 7, 1, 7], (7, 7), 9) == [9, 9, 1, 7]
    assert count_pairs([[7, 7, 7], [7, 7]]) == {(7, 7): 3}, "neighbours count, not replacements, and only inside"


def test_learning_ends_when_nothing_occurs_twice():
    """Guards against tokens for what was seen once, and an endless loop on a text of one letter."""
    assert learn_merges([[1, 2, 3, 4]], 5, 10) == []
    assert learn_merges([[1, 2, 1, 2]], 5, 10) == [(1, 2)]
    assert learn_merges([], 5, 10) == learn_merges([[], [1]], 5, 10) == []


@pytest.fixture(scope="module")
def trained():
    tokenizers = [BasicTokenizer(), SplitTokenizer(), SplitTokenizer(r"\s+|\S+", ["<|end|>"])]
    for tokenizer in tokenizers:
        tokenizer.train(TEXT, num_merges=40)
    return tokenizers


@given(text=st.text(max_size=60))
def test_any_text_survives(trained, text):
    """Guards against bytes that are lost or doubled, a split that leaves out a sign, and text that was never trained
    on."""
    for tokenizer in trained:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) <= len(text.encode())


def test_bytes_that_are_no_text_are_replaced():
    """Guards against a UnicodeDecodeError on what a model made up: half a character."""
    tokenizer = BasicTokenizer()
    assert tokenizer.decode([104, 0x80, 105, 0xE7]) == "h\ufffdi\ufffd"
    for token in (-1, 256):
        with pytest.raises(ValueError, match=f"no token {token}"):
            tokenizer.decode([token])


def test_the_split_keeps_words_apart():
    """Guards against tokens for `cat.`, `cat!` and `t sat`, one each, in the place of one for the word."""
    basic, split = BasicTokenizer(), SplitTokenizer()
    for tokenizer in (basic, split):
        tokenizer.train(TEXT, num_merges=60)
    crossing = re.compile(rb"[a-z][ .!]|[a-z][0-9]|[0-9]{4}")
    assert [t for t in range(basic.num_tokens) if crossing.search(basic.token_bytes(t))]
    assert not [t for t in range(split.num_tokens) if crossing.search(split.token_bytes(t))]
    assert b" cat" in {split.token_bytes(t) for t in range(split.num_tokens)}


def test_the_split_is_that_of_gpt4():
    """Guards against a rewritten pattern that cuts elsewhere. Expected by hand from cl100k_base's pattern."""
    expected = [
        "Hello",
        "'ve",
        " world",
        "123",
        "45",
        " how",
        "'s",
        " are",
        " you",
        "!!!?",
        "  ",
        "  x",
        "_y",
        " \n",
        "\t",
        "DON",
        "'T",
        " été",
    ]
    assert SplitTokenizer().pieces("".join(expected)) == [
        "Hello",
        "'ve",
        " world",
        "123",
        "45",
        " how",
        "'s",
        " are",
        " you",
        "!!!?",
        "   ",
        " x",
        "_y",
        " \n",
        "\tDON",
        "'T",
        " été",
    ]
    with pytest.raises(ConfigError, match="does not match all"):
        SplitTokenizer("[a-z]+").pieces("ab 1")


def test_letters_and_digits_are_those_of_unicode():
    """Guards against an unchecked `[^\\W\\d_]`: it is \\p{L} and the numerals that are no decimal digits, nothing
    else."""
    everything = [chr(code) for code in range(0x20000)]  # the planes in which nearly all of them are
    categories = {sign: unicodedata.category(sign) for sign in everything}
    letters, digits = (set(re.findall(pattern, "".join(everything))) for pattern in (r"[^\W\d_]", r"\d"))
    assert letters == {sign for sign, kind in categories.items() if kind[0] == "L" or kind in ("Nl", "No")}
    assert digits == {sign for sign, kind in categories.items() if kind == "Nd"}


def test_the_split_equals_the_original_pattern():
    """Guards against the same, in all of its alternatives at once. The original needs the `regex` package."""
    regex = pytest.importorskip("regex", reason="the regex package is not installed")
    original = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
        r"\s+(?!\S)|\s+"
    )
    rng = random.Random(0)
    texts = [
        TEXT,
        *(
            "".join(rng.choices("ab Z_'sSlLv19\t\n\r .,!-é中\u0301\u00a0\u2028ªº", k=rng.randint(1, 12)))
            for _ in range(20_000)
        ),
    ]
    for text in texts:
        assert [match.group() for match in re.finditer(GPT4_SPLIT, text)] == regex.findall(original, text)


def test_special_tokens_are_for_those_who_may_use_them():
    """Guards against a text from a stranger that ends the document, and one special token cut out of a longer one."""
    tokenizer = SplitTokenizer(specials=["<|end|>", "<|end|>now", "<|a|>"])
    tokenizer.train(TEXT, num_merges=20)
    assert tokenizer.num_tokens == 279
    text = "the cat<|end|>now sat<|a|><|end|>"
    plain, special = tokenizer.encode(text), tokenizer.encode(text, specials=True)
    assert max(plain) < 276
    assert [token for token in special if token >= 276] == [277, 278, 276]
    assert tokenizer.decode(plain) == tokenizer.decode(special) == text
    for specials in (["a", "a"], ["a", ""]):
        with pytest.raises(ConfigError, match="specials"):
            SplitTokenizer(specials=specials)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = SplitTokenizer(specials=["<|end|>"])
    tokenizer.train(TEXT, num_merges=30)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = SplitTokenizer.load(tmp_path / "tokenizer.json")
    assert vars(again) == vars(tokenizer)
    assert again.encode(TEXT + "<|end|>", specials=True) == tokenizer.encode(TEXT + "<|end|>", specials=True)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"merges": [[256, 97]]},
        {"merges": [[97, -1]]},
        {"merges": [[97]]},
        {"merges": [[97.0, 98]]},
        {"merges": 3},
        {"pattern": "("},
        {"pattern": 3},
        {"specials": ["", "a"]},
        "half",
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    """Guards against a merge of a token that comes later, on which decoding would never end, and tracebacks of json."""
    path = tmp_path / "tokenizer.json"
    SplitTokenizer().save(path)
    text = path.read_text()
    path.write_text(text[:20] if change == "half" else json.dumps({**json.loads(text), **change}))
    with pytest.raises(RunError, match="tokenizer.json"):
        SplitTokenizer.load(path)
    with pytest.raises(RunError, match="nowhere.json"):
        SplitTokenizer.load(tmp_path / "nowhere.json")


# ---- the fast one


def slow_merges(lists, num_codes, num_merges, longest):
    """The rule with its bound on lengths: all pairs counted anew for each merge."""
    lists, lengths, merges = [list(codes) for codes in lists], [1] * num_codes, []
    while len(merges) < num_merges:
        counts = count_pairs(lists)
        for pair in list(counts):
            if counts[pair] < 2 or lengths[pair[0]] + lengths[pair[1]] > longest:
                del counts[pair]
        if not counts:
            break
        merges.append(pair := most_frequent(counts))
        lists = [merge(codes, pair, len(lengths)) for codes in lists]
        lengths.append(lengths[pair[0]] + lengths[pair[1]])
    return merges


@given(sequences, st.integers(0, 12), st.sampled_from([2, 3, 5, FAR]))
def test_the_fast_one_learns_the_same_merges(lists, num_merges, longest):
    """Guards against a place that a pair has lost track of, a stale count in the heap, a chain that was linked wrongly,
    runs merged from the right, pairs across the border of two files, and codes that are too long."""
    expected = slow_merges(lists, 4, num_merges, longest)
    if longest == FAR:
        assert expected == learn_merges(lists, num_merges, 4)
    found = fast.learn_merges(arrays(lists), 4, num_merges, longest)
    assert found.dtype == np.int64 and found.shape == (len(expected), 2)
    assert found.tolist() == [list(pair) for pair in expected]


@given(sequences, sequences)
def test_the_fast_one_applies_them_alike(lists, others):
    """Guards against a merge at a place that has changed since, an order by place in the place of rank, lost codes."""
    merges = learn_merges(lists, 12, 4)
    table = fast.rank_table(np.array(merges).reshape(-1, 2))
    for codes in [*lists, *others]:
        found = fast.apply_merges(np.array(codes, np.int64), table, 4).tolist()
        assert found == apply_merges(codes, merges, 4)
        assert undo_merges(found, merges, 4) == codes


@given(sequences)
def test_no_two_codes_mean_the_same(lists):
    """Guards against two codes for one sound, between which a model would have to guess."""
    merges = learn_merges(lists, 12, 4)
    meanings = [tuple(undo_merges([code], merges, 4)) for code in range(4 + len(merges))]
    assert len(set(meanings)) == len(meanings)


def test_large_alphabets_and_long_sequences():
    """Guards against codes cut to 8 or 16 bits, and tables that are too small."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 60_000, (200, 3))
    lists = [words[rng.integers(0, 200, 300)].reshape(-1) for _ in range(4)]
    found = fast.learn_merges(lists, 60_000, 50, FAR)
    merges = learn_merges([codes.tolist() for codes in lists], 50, 60_000)
    assert found.tolist() == [list(pair) for pair in merges]
    table = fast.rank_table(found)
    assert fast.apply_merges(lists[0], table, 60_000).tolist() == apply_merges(lists[0].tolist(), merges, 60_000)


def test_learning_leaves_its_input_alone():
    codes = np.array([1, 1, 2, 1, 1, 2])
    fast.learn_merges([codes], 3, 2, FAR)
    fast.apply_merges(codes, fast.rank_table(np.array([[1, 1]])), 3)
    assert codes.tolist() == [1, 1, 2, 1, 1, 2]


@pytest.mark.parametrize("code", [-1, 3])
def test_codes_out_of_range_are_refused(code):
    """Guards against a write to memory that belongs to others: compiled code does not look."""
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 3\)"):
        fast.learn_merges([np.array([0, 1]), np.array([0, code, 0, code])], 3, 2, FAR)


def test_where_nothing_can_be_kept_it_is_compiled_anew(monkeypatch):
    """Guards against a front-end that can't be used from a read-only place, where numba finds no room for its cache."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    function = compiled.compiled(fastmath=True)(lambda x: x + 1)
    assert function(1) == 2 and function.stats.cache_path is None


@pytest.mark.parametrize("longest", [3, 6, None])
def test_equals_the_tokenizers_library(longest):
    """Guards against a rule of our own. Hugging Face's trainer breaks ties by the smallest pair, too."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    rng = np.random.default_rng(0)
    num_codes, num_merges = 50, 300
    followers = rng.integers(0, num_codes, (num_codes, 4))
    lists = []
    for _ in range(30):
        codes = [0]
        while len(codes) < 400:
            codes.append(int(followers[codes[-1], min(3, rng.geometric(0.6) - 1)]))
        lists.append(np.array(codes))
    words = ["".join(chr(0x4E00 + code) for code in codes) for codes in lists]  # letters, in the order of the codes
    limit = {} if longest is None else {"max_token_length": longest + 1}  # theirs is a length that is not reached
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=num_codes + num_merges,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[chr(0x4E00 + code) for code in range(num_codes)],
        **limit,
    )
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.train_from_iterator(words, trainer)
    model = json.loads(library.to_str())["model"]
    expected = [[model["vocab"][token] for token in pair] for pair in model["merges"]]
    found = fast.learn_merges(lists, num_codes, num_merges, longest or FAR)
    assert found.tolist() == expected and len(expected) > 50
    table = fast.rank_table(found)
    for codes, word in zip(lists, words, strict=True):
        assert fast.apply_merges(codes, table, num_codes).tolist() == library.encode(word).ids
