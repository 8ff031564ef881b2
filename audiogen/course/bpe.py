"""Byte-pair encoding from scratch: repeatedly replace the most frequent pair of neighbours by a new token.

    >>> learn_merges([list("aaabdaaabac".encode())], 3, first_new=256)
    [(97, 97), (97, 98), (256, 257)]

That is `aa` -> 256, `ab` -> 257, `aaab` -> 258: the merges, in this order, are the whole tokenizer. Encoding applies
them to other sequences, decoding undoes them, and no information is lost.

The first half of this file works on any integers: bytes of text, or codes of sound. The second half builds tokenizers
of text from it. It is written to be read, in the spirit of minbpe (Karpathy 2024); audiogen/frontends/bpe/merges.py is
a fast version.

Source: Gage 1994, A New Algorithm for Data Compression; Sennrich et al. 2016, Neural Machine Translation of Rare Words
with Subword Units.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ConfigError, RunError
from ..utils.files import atomic_write_json
from ..utils.json_files import read_format

Pair = tuple[int, int]

# ---- integers


def count_pairs(sequences: Iterable[Sequence[int]]) -> Counter[Pair]:
    """Count the pairs of neighbouring tokens. Overlaps count: `aaa` contains `aa` twice."""
    counts: Counter[Pair] = Counter()
    for ids in sequences:
        counts.update(zip(ids, ids[1:], strict=False))
    return counts


def most_frequent(counts: Counter[Pair]) -> Pair:
    """Return the most frequent pair; of several, the smallest, so that the result is deterministic."""
    return min(counts, key=lambda pair: (-counts[pair], pair))


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replace a pair from left to right: `aaa` becomes `Xa`, not `aX`."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def learn_merges(sequences: Iterable[Sequence[int]], num_merges: int, first_new: int) -> list[Pair]:
    """Learn at most `num_merges` merges; merge i makes token `first_new + i`.

    Learning ends early when no pair occurs twice. Pairs do not cross the boundaries of sequences.
    """
    sequences, merges = [list(ids) for ids in sequences], []
    for new in range(first_new, first_new + num_merges):
        counts = count_pairs(sequences)
        if not counts or max(counts.values()) < 2:
            break
        pair = most_frequent(counts)
        sequences = [merge(ids, pair, new) for ids in sequences]
        merges.append(pair)
    return merges


def apply_merges(ids: Sequence[int], merges: Sequence[Pair], first_new: int) -> list[int]:
    """Apply merges in the order in which they were learned."""
    rank = {pair: i for i, pair in enumerate(merges)}
    ids = list(ids)
    while len(ids) > 1:
        # The pair learned first, since later merges may use its token.
        pair = min(zip(ids, ids[1:], strict=False), key=lambda pair: rank.get(pair, len(merges)))
        if pair not in rank:
            break
        ids = merge(ids, pair, first_new + rank[pair])
    return ids


def undo_merges(ids: Sequence[int], merges: Sequence[Pair], first_new: int) -> list[int]:
    """Expand merged tokens to the original ones."""
    plain: list[int] = []
    stack = list(ids)[::-1]
    while stack:
        token = stack.pop()
        if token < first_new:
            plain.append(token)
        else:
            stack += merges[token - first_new][::-1]
    return plain


# ---- text

BYTES = 256

# GPT-4 splits text before merging, so that no token crosses a space, or mixes letters with digits or punctuation. `re`
# lacks \p{L} and \p{N}: [^\W\d_] matches letters (and numerals that are not decimal digits, such as a superscript two,
# which the original counts as numbers), \d matches decimal digits.
# Source: tiktoken, cl100k_base.
GPT4_SPLIT = "|".join(
    [
        r"'(?i:[sdmt]|ll|ve|re)",  # 's 'd 'll
        r"(?:[^\r\n\w]|_)?+[^\W\d_]+",  # a word, with the space (or another sign) before it
        r"\d{1,3}",  # digits, three at most
        r" ?(?:[^\s\w]|_)++[\r\n]*",  # punctuation
        r"\s*[\r\n]",  # line ends, with the spaces before them
        r"\s+(?!\S)",  # spaces, all but the last one: that belongs to the next word
        r"\s+",
    ]
)


class BasicTokenizer:
    """A tokenizer of text: UTF-8 bytes are tokens 0 to 255, followed by one token per merge.

    >>> tokenizer = BasicTokenizer()
    >>> tokenizer.train("aaabdaaabac", num_merges=3)
    >>> tokenizer.encode("aaab"), tokenizer.decode([258, 100])
    ([258], 'aaabd')
    """

    def __init__(self) -> None:
        self.merges: list[Pair] = []

    @property
    def num_tokens(self) -> int:
        """Number of different tokens."""
        return BYTES + len(self.merges)

    def pieces(self, text: str) -> list[str]:
        """Split text into pieces that are merged separately; here, a single piece."""
        return [text]

    def train(self, text: str, num_merges: int) -> None:
        """Learn at most `num_merges` merges."""
        self.merges = learn_merges((piece.encode() for piece in self.pieces(text)), num_merges, BYTES)

    def encode(self, text: str) -> list[int]:
        """Convert text to tokens."""
        ids: list[int] = []
        for piece in self.pieces(text):
            ids += apply_merges(piece.encode(), self.merges, BYTES)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token.

        Raises:
            ValueError: there is no such token.
        """
        if not 0 <= token < BYTES + len(self.merges):
            raise ValueError(f"there is no token {token}: tokens are from 0 to {self.num_tokens - 1}")
        return bytes(undo_merges([token], self.merges, BYTES))

    def decode(self, ids: Iterable[int]) -> str:
        """Convert any sequence of tokens to text; bytes that are not UTF-8 become U+FFFD, the replacement character."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


class SplitTokenizer(BasicTokenizer):
    """A tokenizer that merges only within pieces of text, and has special tokens.

    Text can't produce special tokens unless `encode` is told to accept them.

    Args:
        pattern: a regular expression whose matches are the pieces. It must match all of the text, or `encode` raises.
        specials: special tokens such as "<|endoftext|>", numbered after the merges.

    Raises:
        ConfigError: a special token is empty or occurs twice.
    """

    def __init__(self, pattern: str = GPT4_SPLIT, specials: Sequence[str] = ()) -> None:
        super().__init__()
        self.pattern, self.specials = pattern, list(specials)
        if "" in self.specials or len(set(self.specials)) < len(self.specials):
            raise ConfigError(f"specials: must be distinct and not empty, got {self.specials}")

    @property
    def num_tokens(self) -> int:
        return super().num_tokens + len(self.specials)

    def pieces(self, text: str) -> list[str]:
        found = [match.group() for match in re.finditer(self.pattern, text)]
        if "".join(found) != text:
            raise ConfigError(f"pattern: {self.pattern!r} does not match all of the text; let it end with |.")
        return found

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Convert text to tokens.

        Args:
            text: any text.
            specials: convert the names of special tokens to these; leave it off for untrusted text.

        Raises:
            ConfigError: the pattern does not match all of the text.
        """
        if not specials or not self.specials:
            return super().encode(text)
        ids: list[int] = []
        longest_first = sorted(self.specials, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if part in self.specials:
                ids.append(super().num_tokens + self.specials.index(part))
            else:
                ids += super().encode(part)
        return ids

    def token_bytes(self, token: int) -> bytes:
        special = token - super().num_tokens
        return self.specials[special].encode() if 0 <= special < len(self.specials) else super().token_bytes(token)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as JSON: pattern, special tokens and merges."""
        atomic_write_json(
            path, {"format": 1, "pattern": self.pattern, "specials": self.specials, "merges": self.merges}
        )

    @classmethod
    def load(cls, path: str | Path) -> "SplitTokenizer":
        """Load a tokenizer.

        Raises:
            RunError: the file is missing, damaged or of a newer format; names it.
        """
        try:
            values = read_format(path, 1, RunError, "save it again")
            tokenizer = cls(values["pattern"], values["specials"])
            tokenizer.merges = [(a, b) for a, b in values["merges"]]
            for new, pair in enumerate(tokenizer.merges, BYTES):
                if not all(type(token) is int and 0 <= token < new for token in pair):
                    raise ValueError(f"merge {list(pair)} uses tokens that do not exist yet")
            re.compile(tokenizer.pattern)
        except (OSError, ValueError, LookupError, TypeError, re.error, ConfigError, RecursionError) as error:
            raise RunError(f"{path}: can't be read as a tokenizer ({error}); save it again") from error
        return tokenizer
