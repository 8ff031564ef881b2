"""Streams of sound: whatever the chunks, the codes and the sound of the whole, in memory that does not grow."""

import itertools
import math
from copy import deepcopy

import pytest
import torch
from corpus import tiny_frontend

from audiogen.errors import ConfigError
from audiogen.frontends import FRONTENDS
from audiogen.frontends.streaming import reblocked
from audiogen.models.layers import clone_state

BLOCK = 8  # frames, so that a short sound has many blocks


@pytest.fixture(params=[*FRONTENDS, "mel with a vocoder", "melvq with a vocoder"])
def frontend(request, monkeypatch):
    kind, *vocoder = request.param.split(" with a ")
    found = deepcopy(tiny_frontend(kind, bool(vocoder)))
    for part in filter(None, (found, found.base)):
        monkeypatch.setattr(type(part), "block_frames", BLOCK)
    return found


def sounds(num_samples, batch=1, seed=0):
    """Tones with noise: (B, 1, N) float32 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 0.02 + 0.2 * torch.rand(batch, 1, 1, generator=generator)
    noise = torch.randn(batch, 1, num_samples, generator=generator)
    return 0.5 * torch.sin(pitch * torch.arange(num_samples)) + 0.05 * noise


def cut(x, lengths):
    """x (B, C, n) in chunks of these lengths, and then of the last one."""
    chunks, begin = [], 0
    for length in itertools.chain(lengths, itertools.repeat(lengths[-1])):
        if begin >= x.shape[-1]:
            return chunks
        chunks.append(x[..., begin : begin + length])
        begin += length


def chunkings(block, hop, whole):
    """Lengths of chunks, around those of frames and blocks."""
    return {
        "whole": [whole],
        "ones": [1],
        "frames": [hop],
        "blocks": [block],
        "first alone": [1, whole],
        "empty ones": [0, 0, 3, 0, block - 3, 0, 0, hop + 1],
        "odd": [block + 1, hop - 1 or 1, 17],
        "long": [3 * block + 1],
    }


@pytest.mark.parametrize("hops, extra", [(0, 1), (3, 1), (BLOCK, 0), (BLOCK, 1), (3 * BLOCK + 2, -1)])
def test_a_stream_is_encoded_as_the_whole(frontend, hops, extra):
    """Buries a state that is lost or used twice at a seam, blocks counted from a chunk's start, a last block that is
    forgotten or taken twice, and an end that is padded at each seam. To the bit, in float32."""
    hop = (frontend.base or frontend).spec.hop_length
    wav = sounds(hops * hop + extra, batch=2)
    whole = frontend.encode(wav)
    for name, lengths in chunkings(BLOCK * hop, hop, wav.shape[2]).items():
        pieces = list(frontend.encode_stream(iter(cut(wav, lengths))))
        assert torch.equal(torch.cat(pieces, dim=2), whole), name
        assert all(piece.shape[2] for piece in pieces)


@pytest.mark.parametrize("num_frames", [1, 3, BLOCK, BLOCK + 1, 3 * BLOCK + 2])
def test_a_stream_is_decoded_as_the_whole(frontend, num_frames):
    """Buries the same on the way back. A front-end that can't says so at once, before anything is read."""
    hop = (frontend.base or frontend).spec.hop_length
    x = frontend.encode(sounds(num_frames * hop, batch=1 if frontend.base else 2))
    if not frontend.streams:
        with pytest.raises(ConfigError, match="all frames at once"):
            frontend.decode_stream(iter([x]))
        return
    whole = frontend.decode(x)
    for name, lengths in chunkings(BLOCK, 2, x.shape[2]).items():
        pieces = list(frontend.decode_stream(iter(cut(x, lengths))))
        assert torch.equal(torch.cat(pieces, dim=2), whole), name


def test_what_streams_are_there(frontend):
    """Buries a front-end that falls out of the tests above because it says that it can't."""
    kind = next(kind for kind in FRONTENDS if FRONTENDS[kind] is type(frontend))
    expected = {
        "mulaw": (True, 1 / 8),
        "mel": (False, None),
        "melvq": (False, None),
        "encodec": (True, 1000 / 75),
        "codec": (True, 16),
        "bpe": (False, None),
    }
    if getattr(getattr(frontend, "mel", frontend), "vocoder", None) is not None:
        expected[kind] = (True, 20)
    if kind in expected:
        streams, latency = expected[kind]
        assert frontend.streams == streams
        assert frontend.latency_ms == (pytest.approx(latency) if streams else float("inf"))


def test_small_blocks_give_the_same_codes_at_once(frontend):
    """Buries a seam that only rounding hides, a latency that is more than what is stated, and work put off until the
    next chunk is there. In float64, where rounding moves no code."""
    if frontend.base is not None:
        pytest.skip("encodes at the end alone")
    frontend = frontend.double()
    hop, hops = frontend.spec.hop_length, 20
    wav = sounds(hops * hop, batch=2).double()
    fed = 0

    def chunks():
        nonlocal fed
        for chunk in cut(wav, [hop]):
            fed += 1
            yield chunk

    count, pieces = 0, []
    for piece in frontend.encode_stream(chunks(), block_frames=1):
        pieces.append(piece)
        count += piece.shape[2]
        assert count == math.floor(fed - frontend.lookahead) or fed == hops
        assert fed <= max(frontend.start_frames, count + math.ceil(frontend.lookahead))
    codes = torch.cat(pieces, dim=2)
    whole = frontend.encode(wav)
    torch.testing.assert_close(codes, whole, rtol=0, atol=0 if codes.dtype == torch.int64 else 1e-9)
    if frontend.streams:
        back, sounding = [], 0
        for count, piece in enumerate(frontend.decode_stream(iter(cut(codes, [1])), block_frames=1), start=1):
            back.append(piece)
            sounding += piece.shape[2]
            given = frontend.start_frames - 1 + count
            assert sounding == (given - frontend.output_delay if given <= hops else hops) * hop
        back = torch.cat(back, dim=2)
        torch.testing.assert_close(back, frontend.decode(codes), rtol=0, atol=1e-9)


def test_the_latency_is_the_one_stated(frontend):
    """Measured, sample by sample, once the first block is through: buries a sum that forgets one side."""
    if frontend.base is not None or not frontend.streams:
        pytest.skip("does not stream both ways")
    hop, fed, heard, worst = frontend.spec.hop_length, 0, 0, 0
    wav = sounds((frontend.start_frames + 6) * hop)

    def samples():
        nonlocal fed
        for sample in wav.split(1, dim=2):
            fed += 1
            yield sample

    for piece in frontend.decode_stream(frontend.encode_stream(samples(), block_frames=1), block_frames=1):
        if heard >= frontend.start_frames * hop and fed < wav.shape[2]:
            worst = max(worst, fed - heard)
        heard += piece.shape[2]
    assert 1000 * worst / frontend.spec.sample_rate == pytest.approx(frontend.latency_ms)


def leaves(state):
    """The tensors of a state tree."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return list(itertools.chain.from_iterable(map(leaves, values)))


def test_an_endless_stream_takes_no_more_memory(frontend):
    """Buries a stream that is read to its end first, and a state that grows or that holds on to whole blocks."""
    if frontend.base is not None:
        pytest.skip("the base's codes wait for the end")
    sizes, views, fed = [], [], 0
    chunk = sounds(3 * frontend.spec.hop_length)

    def endless():
        nonlocal fed
        while True:
            fed += 1
            yield chunk

    def spied(block):
        def run(x, state, last):
            y, state = block(x, state, last)
            sizes.append(sum(leaf.nbytes for leaf in leaves(state)))
            views.extend(leaf for leaf in leaves(state) if leaf.untyped_storage().nbytes() > leaf.nbytes)
            return y, clone_state(state)

        return run

    for way, inputs, ratio in (("encode", chunk, 3), ("decode", frontend.encode(chunk), 3)):
        if way == "decode" and not frontend.streams:
            continue
        setattr(frontend, f"{way}_block", spied(getattr(frontend, f"{way}_block")))
        chunk, fed = inputs, 0
        sizes.clear()
        for _ in itertools.islice(getattr(frontend, f"{way}_stream")(endless()), 12):
            pass
        assert (fed - 1) * ratio <= 12 * BLOCK + frontend.lookahead + ratio
        assert len(set(sizes[2:])) == 1, sizes
        assert sizes[-1] < 64 * BLOCK * frontend.spec.hop_length * 4 + 2**20
        assert not views, "each of which keeps more than itself in memory"


def test_streams_refuse_what_the_whole_would(frontend):
    """Buries NaNs that pass because they came in a chunk, and a chunk of another batch that fails deep inside."""
    good = sounds(50)
    for bad, words in (
        (good.double(), "must be"),
        (good[0], "shape"),
        (good * float("nan"), "finite"),
        (sounds(50, batch=2), "one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            list(frontend.encode_stream(iter([good, bad])))
    with pytest.raises(ValueError, match="block_frames"):
        list(frontend.encode_stream(iter([good]), block_frames=0))
    assert list(frontend.encode_stream(iter([]))) == [] == list(frontend.encode_stream(iter([good[..., :0]])))


def test_a_stream_of_a_variable_rate_holds_one_item():
    """Buries items of a batch that get out of step without a word."""
    frontend = tiny_frontend("bpe")
    base = tiny_frontend("mulaw")
    bpe = FRONTENDS["bpe"].over(base, num_merges=2, longest=4)
    bpe.learn([base.encode(sounds(4000))[0]])
    codes = bpe.encode(sounds(500))
    assert torch.equal(torch.cat(list(bpe.decode_stream(iter(cut(codes, [3])))), dim=2), bpe.decode(codes))
    with pytest.raises(ValueError, match="one item"):
        list(bpe.decode_stream(iter([codes.expand(2, -1, -1)])))
    assert not frontend.streams and bpe.streams


def test_blocks_are_cut_as_drawn():
    """Buries an off-by-one in the re-blocking: the docstring's own example."""
    x = torch.arange(15).view(1, 1, 15)
    chunks = [x[..., :5], x[..., :0], x[..., 5:6], x[..., 6:]]
    found = [(block.flatten().tolist(), last) for block, last in reblocked(iter(chunks), 4, 4)]
    assert found == [([0, 1, 2, 3], False), ([4, 5, 6, 7], False), ([8, 9, 10, 11], False), ([12, 13, 14], True)]
    found = [(block.shape[-1], last) for block, last in reblocked(iter(chunks), 7, 4)]
    assert found == [(7, False), (4, False), (4, False), (0, True)]
