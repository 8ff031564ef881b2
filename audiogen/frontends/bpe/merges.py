"""Compiled byte-pair encoding for long sequences; it learns the same merges as the readable audiogen/course/bpe.py.

Recounting all pairs after each merge would take time proportional to the corpus, and so would closing the gaps.
Instead, tokens form a linked list, each pair lists the places where it occurs, and a merge touches only those places:

    place        0    1    2    3          0    1    2    3
    token        a    b    c    d          a    X    -    d         X = (b, c) was merged at place 1
    link         0 <> 1 <> 2 <> 3          0 <> 1 <------> 3
    pair of      ab   bc   cd              aX   Xd                  ab, bc, cd lose a place, aX and Xd gain one

The next pair to merge comes from a heap. The count of a pair never grows once both tokens exist, so an outdated entry
is too high and surfaces too early; it is put back with the current count.

Importing numba and compiling take seconds (compiled code is cached on disk), so import this module only where it is
used.
"""

import heapq
from collections.abc import Iterable

import numpy as np

from ...utils.jit import compiled

END = -1  # end of the list of tokens and of a pair's list of places


def learn_merges(sequences: Iterable[np.ndarray], codebook_size: int, num_merges: int, longest: int) -> np.ndarray:
    """Learn the merges of sequences, the most frequent pair first.

    Among equally frequent pairs, the smallest is merged first. Learning stops early when no pair occurs twice. No pair
    spans two sequences.

    Args:
        sequences: arrays (T,) of codes in [0, codebook_size).
        codebook_size: number of codes before merging.
        num_merges: number of merges to learn.
        longest: skip pairs that represent more codes than this.

    Returns:
        (at most num_merges, 2) int64; row i makes code `codebook_size + i`.

    Raises:
        ValueError: a code is out of range.
    """
    pieces = []
    for codes in sequences:
        if len(codes) and not 0 <= codes.min() <= codes.max() < codebook_size:
            raise ValueError(f"codes must lie in [0, {codebook_size}), got {codes.min()} to {codes.max()}")
        pieces += [codes.astype(np.int32), np.array([END], np.int32)]
    if not pieces:
        return np.zeros((0, 2), np.int64)
    tokens = np.concatenate(pieces)
    begins = np.flatnonzero((tokens[:-1] != END) & (tokens[1:] != END))
    # numpy uses a radix sort for 16 bits, which is stable.
    small = np.min_scalar_type(codebook_size - 1)
    order = begins[np.lexsort((tokens[begins + 1].astype(small), tokens[begins].astype(small)))]
    return _learn(tokens, order, codebook_size, num_merges, longest)


def rank_table(merges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the table for `apply_merges`: merges (M, 2), and a hash table from a pair to its row."""
    merges = np.ascontiguousarray(merges, np.int64)
    slots = np.full(1 << (4 * len(merges)).bit_length(), END, np.int32)
    _fill_slots(merges, slots)
    return merges, slots


def apply_merges(codes: np.ndarray, table: tuple[np.ndarray, np.ndarray], codebook_size: int) -> np.ndarray:
    """Apply the merges to one sequence: (T,) int64 -> (at most T,) int64."""
    return _apply(np.ascontiguousarray(codes, np.int64), *table, codebook_size)


# ---- learning

TOKEN, LEFT, RIGHT, PAIR, BEFORE, AFTER = range(6)  # columns of a place: links, pair, neighbours in the pair's list
FIRST, SECOND, COUNT, HEAD, TAIL = range(5)  # columns of a pair: tokens, number of places, ends of its list


@compiled()
def _join(place, pair, places, pairs):
    """Append a place to the list of a pair."""
    last = pairs[pair, TAIL]
    places[place, PAIR], places[place, BEFORE], places[place, AFTER] = pair, last, END
    if last == END:
        pairs[pair, HEAD] = place
    else:
        places[last, AFTER] = place
    pairs[pair, TAIL] = place
    pairs[pair, COUNT] += 1


@compiled()
def _leave(place, places, pairs):
    """Remove a place from the list of its pair."""
    pair, last, following = places[place, PAIR], places[place, BEFORE], places[place, AFTER]
    if last == END:
        pairs[pair, HEAD] = following
    else:
        places[last, AFTER] = following
    if following == END:
        pairs[pair, TAIL] = last
    else:
        places[following, BEFORE] = last
    pairs[pair, COUNT] -= 1


@compiled()
def _new_pair(first, second, pairs, num_pairs):
    pairs[num_pairs, FIRST], pairs[num_pairs, SECOND], pairs[num_pairs, COUNT] = first, second, 0
    pairs[num_pairs, HEAD], pairs[num_pairs, TAIL] = END, END


@compiled()
def _learn(tokens, order, codebook_size, num_merges, longest):
    """Learn merges from tokens (N,), END after each sequence; `order` sorts places by their pair, then by place."""
    N = len(tokens)
    places = np.empty((N, 6), np.int32)
    for place in range(N):
        places[place, TOKEN], places[place, LEFT], places[place, RIGHT] = tokens[place], place - 1, place + 1
    pairs, num_pairs = np.empty((1024, 5), np.int32), 0
    for i in range(len(order)):
        a, b = tokens[order[i]], tokens[order[i] + 1]
        if num_pairs == 0 or pairs[num_pairs - 1, FIRST] != a or pairs[num_pairs - 1, SECOND] != b:
            if num_pairs == len(pairs):
                pairs = np.concatenate((pairs, np.empty_like(pairs)))
            _new_pair(a, b, pairs, num_pairs)
            num_pairs += 1
        _join(order[i], num_pairs - 1, places, pairs)

    # Tuples compare in the order of merging: the highest count first, then the smallest pair.
    heap = [(-pairs[i, COUNT], pairs[i, FIRST], pairs[i, SECOND], i) for i in range(num_pairs) if pairs[i, COUNT] > 1]
    heapq.heapify(heap)
    length = np.ones(codebook_size + num_merges, np.int64)
    as_first, as_second = np.full(len(length), END), np.full(len(length), END)  # the new token's pairs
    merges, num_done = np.empty((num_merges, 2), np.int64), 0
    while num_done < num_merges and len(heap) > 0:
        stated, a, b, pair = heapq.heappop(heap)
        count = pairs[pair, COUNT]
        if count != -stated:
            if count > 1:
                heapq.heappush(heap, (-count, a, b, pair))
            continue
        if length[a] + length[b] > longest:
            continue
        new = codebook_size + num_done
        merges[num_done, 0], merges[num_done, 1] = a, b
        length[new] = length[a] + length[b]
        num_done += 1
        oldest = num_pairs
        while len(pairs) < num_pairs + 2 * count:
            pairs = np.concatenate((pairs, np.empty_like(pairs)))
        # A pair's places are in sequence order, so that aaa becomes Xa.
        while pairs[pair, HEAD] != END:
            place = pairs[pair, HEAD]
            left, gone = places[place, LEFT], places[place, RIGHT]
            right = places[gone, RIGHT]
            _leave(place, places, pairs)
            places[place, TOKEN], places[place, RIGHT], places[right, LEFT] = new, right, place
            if left != END and places[left, TOKEN] != END:
                c = places[left, TOKEN]
                if as_second[c] == END:
                    _new_pair(c, new, pairs, num_pairs)
                    as_second[c] = num_pairs
                    num_pairs += 1
                _leave(left, places, pairs)
                _join(left, as_second[c], places, pairs)
            if places[right, TOKEN] != END:
                d = places[right, TOKEN]
                if as_first[d] == END:
                    _new_pair(new, d, pairs, num_pairs)
                    as_first[d] = num_pairs
                    num_pairs += 1
                _leave(gone, places, pairs)
                _join(place, as_first[d], places, pairs)
        for i in range(oldest, num_pairs):
            as_second[pairs[i, FIRST]] = END
            as_first[pairs[i, SECOND]] = END
            if pairs[i, COUNT] > 1:
                heapq.heappush(heap, (-pairs[i, COUNT], pairs[i, FIRST], pairs[i, SECOND], i))
    return merges[:num_done]


# ---- encoding


@compiled()
def _slot(first, second, merges, slots):
    """Find the slot of a pair, or the empty slot where it would go (Knuth's multiplicative hash)."""
    key = (np.uint64(first) << np.uint64(32)) | np.uint64(second)
    slot = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & (len(slots) - 1)
    while slots[slot] != END and (merges[slots[slot], 0] != first or merges[slots[slot], 1] != second):
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@compiled()
def _fill_slots(merges, slots):
    for rank in range(len(merges)):
        slots[_slot(merges[rank, 0], merges[rank, 1], merges, slots)] = rank


@compiled()
def _apply(codes, merges, slots, codebook_size):
    """Apply each merge in turn at the places listed for it; skip places that have changed since."""
    N = len(codes)
    token, left, right = codes.copy(), np.arange(-1, N - 1, dtype=np.int32), np.arange(1, N + 1, dtype=np.int32)
    head, tail = np.full(len(merges), END), np.full(len(merges), END)  # ends of each merge's list of places
    # Each merge removes a token and adds at most two pairs.
    listed, following, num_listed = np.empty(3 * N, np.int32), np.full(3 * N, END, np.int32), 0
    for place in range(N - 1):
        num_listed = _list(
            place, token[place], token[place + 1], merges, slots, head, tail, listed, following, num_listed
        )
    for rank in range(len(merges)):
        node = head[rank]
        while node != END:
            place, node = listed[node], following[node]
            gone = right[place]
            if token[place] != merges[rank, 0] or gone == N or token[gone] != merges[rank, 1]:
                continue
            token[place], token[gone], right[place] = codebook_size + rank, END, right[gone]
            if right[place] < N:
                left[right[place]] = place
                num_listed = _list(
                    place, token[place], token[right[place]], merges, slots, head, tail, listed, following, num_listed
                )
            if left[place] != END:
                num_listed = _list(
                    left[place],
                    token[left[place]],
                    token[place],
                    merges,
                    slots,
                    head,
                    tail,
                    listed,
                    following,
                    num_listed,
                )
    return token[token != END]


@compiled()
def _list(place, first, second, merges, slots, head, tail, listed, following, num_listed):
    """Append a place to the list of the merge of its pair, if there is one."""
    rank = slots[_slot(first, second, merges, slots)]
    if rank == END:
        return num_listed
    if head[rank] == END:
        head[rank] = num_listed
    else:
        following[tail[rank]] = num_listed
    tail[rank], listed[num_listed] = num_listed, place
    return num_listed + 1
