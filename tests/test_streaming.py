"""Streaming: any chunks give the same codes and the same sound as the whole recording, in memory that does not grow."""

import math
from copy import deepcopy

import pytest
import torch
from corpus import SOUNDING, tiny_frontend

from audiogen import testing
from audiogen.frontends import FRONTENDS
from audiogen.frontends.streaming import reblocked
from audiogen.testing import BLOCK, cut, made_up_sounds


@pytest.fixture(params=[*FRONTENDS, "mel with a vocoder", "melvq with a vocoder"])
def frontend(request, monkeypatch):
    kind, *vocoder = request.param.split(" with a ")
    found = deepcopy(tiny_frontend(kind, bool(vocoder)))
    for part in filter(None, (found, found.base)):
        monkeypatch.setattr(type(part), "block_frames", BLOCK, raising=False)
    return found


@pytest.mark.parametrize("hops, extra", [(0, 1), (3, 1), (BLOCK, 0), (BLOCK, 1), (3 * BLOCK + 2, -1)])
def test_a_stream_is_encoded_as_the_whole(frontend, hops, extra):
    """Guards against a state that is lost or used twice between chunks, blocks counted from the start of a chunk, a
    last block that is forgotten or processed twice, and padding in the middle. Bit for bit, in float32."""
    testing.check_encode_stream(frontend, hops, extra)


@pytest.mark.parametrize("num_frames", [1, 3, BLOCK, BLOCK + 1, 3 * BLOCK + 2])
def test_a_stream_is_decoded_as_the_whole(frontend, num_frames):
    """Guards against the same faults in decoding, and a front-end that can't stream but says so only after reading
    something."""
    testing.check_decode_stream(frontend, num_frames)


def test_what_streams_are_there():
    """Guards against a front-end that is skipped by the tests above because it claims that it can't stream. One that is
    not named here is expected to stream."""
    assert all(tiny_frontend(kind).streams for kind in SOUNDING)


def test_small_blocks_give_the_same_codes_at_once(frontend):
    """Guards against differences between blocks that rounding would hide, a latency above the stated one, and work
    postponed until the next chunk. In float64, where rounding changes no code."""
    if frontend.base is not None:
        pytest.skip("encodes at the end alone")
    frontend = frontend.double()
    hop, hops = frontend.spec.hop_length, 20 + 2 * (frontend.decode_frames - 1)
    wav = made_up_sounds(hops * hop, batch_size=2).double()
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
    if not frontend.decodes:
        return
    fed, back, sounding = 0, [], 0
    limiter_delay = frontend.limiter().delay if frontend.overshoots else 0

    def frames():
        nonlocal fed
        for chunk in cut(codes, [1]):
            fed += 1
            yield chunk
        fed = math.inf  # what is given out now is the rest

    for piece in frontend.decode_stream(frames(), block_frames=1):
        back.append(piece)
        sounding += piece.shape[2]
        waiting = (fed - frontend.output_delay) * hop - limiter_delay - sounding
        assert 0 <= waiting < frontend.decode_frames * hop or fed == math.inf
    assert sounding == hops * hop and len(back) > 1
    torch.testing.assert_close(torch.cat(back, dim=2), frontend.decode(codes), rtol=0, atol=1e-9)


def test_the_latency_is_the_one_stated(frontend):
    """Guards against a stated latency that leaves out the encoder or the decoder; measured sample by sample after the
    first block."""
    testing.check_latency(frontend)


@pytest.mark.parametrize(
    "kind, latency", [("mulaw", 1 / 8), ("pcm", 1 / 8), ("encodec", 1000 / 75 + 100 / 24), ("codec", 16 + 44 / 8)]
)
def test_latencies_by_hand(kind, latency):
    """Guards against a measurement and a stated latency that are wrong in the same way."""
    assert tiny_frontend(kind).latency_ms == pytest.approx(latency)


def test_an_endless_stream_takes_no_more_memory(frontend):
    """Guards against a stream that is read to its end first, and a state that grows or keeps whole blocks alive."""
    testing.check_stream_memory(frontend)


def test_streams_refuse_what_the_whole_would(frontend):
    """Guards against NaN that is accepted in a chunk, and a chunk of another batch size that fails deep inside."""
    good = made_up_sounds(50)
    for bad, words in (
        (good.double(), "must be"),
        (good[0], "shape"),
        (good * float("nan"), "finite"),
        (made_up_sounds(50, batch_size=2), "one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            list(frontend.encode_stream(iter([good, bad])))
    with pytest.raises(ValueError, match="block_frames"):
        list(frontend.encode_stream(iter([good]), block_frames=0))
    assert list(frontend.encode_stream(iter([]))) == [] == list(frontend.encode_stream(iter([good[..., :0]])))


def test_a_stream_of_a_variable_rate_holds_one_item():
    """Guards against items of a batch that get out of step without an error."""
    base = tiny_frontend("mulaw")
    bpe = FRONTENDS["bpe"].over(base, num_merges=2, longest=4)
    bpe.learn([base.encode(made_up_sounds(4000))[0]])
    codes = bpe.encode(made_up_sounds(500))
    assert torch.equal(torch.cat(list(bpe.decode_stream(iter(cut(codes, [3])))), dim=2), bpe.decode(codes))
    with pytest.raises(ValueError, match="one item"):
        list(bpe.decode_stream(iter([codes.expand(2, -1, -1)])))
    assert bpe.streams


def test_blocks_are_cut_as_drawn():
    """Guards against an off-by-one in cutting blocks; this is the example in the docstring."""
    x = torch.arange(15).view(1, 1, 15)
    chunks = [x[..., :5], x[..., :0], x[..., 5:6], x[..., 6:]]
    found = [(block.flatten().tolist(), last) for block, last in reblocked(iter(chunks), 4, 4)]
    assert found == [([0, 1, 2, 3], False), ([4, 5, 6, 7], False), ([8, 9, 10, 11], False), ([12, 13, 14], True)]
    found = [(block.shape[-1], last) for block, last in reblocked(iter(chunks), 7, 4)]
    assert found == [(7, False), (4, False), (4, False), (0, True)]
