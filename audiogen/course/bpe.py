"""Byte-pair encoding from scratch: the pair of neighbours that occurs most often becomes a new token, again and again.

    >>> learn_merges([list("aaabdaaabac".encode())], 3, first_new=256)
    [(97, 97), (97, 98), (256, 257)]

That is `aa` -> 256, `ab` -> 257, `aaab` -> 258: the merges, in this order, are the whole tokenizer. Encoding carries
them out on other sequences, decoding undoes them, and nothing is lost on the way.

The first half below works on any integers: bytes of text, or codes of sound. The second makes tokenizers of text from
it. It is written to be read, in the spirit of minbpe (Karpathy 2024); audiogen/frontends/bpe/merges.py does the same,
fast.

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
    """How often each two tokens are neighbours. Overlaps count: `aaa` holds `aa` twice."""
    counts: Counter[Pair] = Counter()
    for ids in sequences:
        counts.update(zip(ids, ids[1:], strict=False))
    return counts


def most_frequent(counts: Counter[Pair]) -> Pair:
    """The pair with the highest count; of several the smallest, so that the same text always gives the same merges."""
    return min(counts, key=lambda pair: (-counts[pair], pair))


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replaces a pair from left to right: `aaa` becomes `Xa`, not `aX`."""
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
    """At most so many merges; merge i makes token `first_new + i`.

    Learning ends early when no pair occurs twice. Pairs never reach from one sequence into the next.
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
    """Carries out the merges in the order in which they were learned."""
    rank = {pair: i for i, pair in enumerate(merges)}
    ids = list(ids)
    while len(ids) > 1:
        # The one that was learned first: a later one may be made of what it makes.
        pair = min(zip(ids, ids[1:], strict=False), key=lambda pair: rank.get(pair, len(merges)))
        if pair not in rank:
            break
        ids = merge(ids, pair, first_new + rank[pair])
    return ids


def undo_merges(ids: Sequence[int], merges: Sequence[Pair], first_new: int) -> list[int]:
    """What was merged, apart again."""
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

# How GPT-4 cuts text before it merges, so that no token reaches across a space, or from letters into digits or
# punctuation. `re` knows no \p{L} and no \p{N}: [^\W\d_] is letters (and numerals that are no decimal digits, such as
# a superscript two, which the original counts as numbers), \d is decimal digits.
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
    """Text as tokens: its UTF-8 bytes are tokens 0 to 255, then comes a token for each merge.

    >>> tokenizer = BasicTokenizer()
    >>> tokenizer.train("aaabdaaabac", num_merges=3)
    >>> tokenizer.encode("aaab"), tokenizer.decode([258, 100])
    ([258], 'aaabd')
    """

    def __init__(self) -> None:
        self.merges: list[Pair] = []

    @property
    def num_tokens(self) -> int:
        return BYTES + len(self.merges)

    def pieces(self, text: str) -> list[str]:
        """What is merged by itself: here the whole text."""
        return [text]

    def train(self, text: str, num_merges: int) -> None:
        """Learns at most so many merges."""
        self.merges = learn_merges((piece.encode() for piece in self.pieces(text)), num_merges, BYTES)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self.pieces(text):
            ids += apply_merges(piece.encode(), self.merges, BYTES)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for.

        Raises:
            ValueError: there is no such token.
        """
        if not 0 <= token < BYTES + len(self.merges):
            raise ValueError(f"there is no token {token}: tokens are from 0 to {self.num_tokens - 1}")
        return bytes(undo_merges([token], self.merges, BYTES))

    def decode(self, ids: Iterable[int]) -> str:
        """Any tokens in any order are text: bytes that are no UTF-8 become U+FFFD, the replacement character."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


class SplitTokenizer(BasicTokenizer):
    """The same within pieces of text, and with special tokens, which no text can imitate unless it is allowed to.

    Args:
        pattern: a regular expression; each match is a piece. It must leave nothing out, or `encode` raises.
        specials: such as "<|endoftext|>"; they are numbered after the merges.
    """

    def __init__(self, pattern: str = GPT4_SPLIT, specials: Sequence[str] = ()) -> None:
        super().__init__()
        self.pattern, self.specials = pattern, list(specials)
        if "" in self.specials or len(set(self.specials)) < len(self.specials):
            raise ConfigError(f"specials: must differ from each other, and none may be empty, got {self.specials}")

    @property
    def num_tokens(self) -> int:
        return super().num_tokens + len(self.specials)

    def pieces(self, text: str) -> list[str]:
        found = [match.group() for match in re.finditer(self.pattern, text)]
        if "".join(found) != text:
            raise ConfigError(f"pattern: {self.pattern!r} leaves out a part of the text; let it end with |.")
        return found

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """
        Args:
            specials: take the names of special tokens for what they mean. Text of strangers is encoded without.
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
        """Writes it as JSON: the pattern, the special tokens and the merges are all that there is to it."""
        atomic_write_json(
            path, {"format": 1, "pattern": self.pattern, "specials": self.specials, "merges": self.merges}
        )

    @classmethod
    def load(cls, path: str | Path) -> "SplitTokenizer":
        """
        Raises:
            RunError: the file is not there, damaged or of a newer format; names it.
        """
        try:
            values = read_format(path, 1, RunError, "save it again")
            tokenizer = cls(values["pattern"], values["specials"])
            tokenizer.merges = [(a, b) for a, b in values["merges"]]
            for new, pair in enumerate(tokenizer.merges, BYTES):
                if not all(type(token) is int and 0 <= token < new for token in pair):
                    raise ValueError(f"merge {list(pair)} is of tokens that are not there yet")
            re.compile(tokenizer.pattern)
        except (OSError, ValueError, LookupError, TypeError, re.error, ConfigError, RecursionError) as error:
            raise RunError(f"{path}: is no tokenizer that can be read ({error}); save it again") from error
        return tokenizer
