"""The EnCodec front-end against the encodec package itself."""

import pytest
import torch
from encodec_oracle import package_layout, package_model, sounds
from torch.nn import functional as F

from audiogen.errors import ConfigError, NotFittedError
from audiogen.frontends import load_frontend
from audiogen.frontends.determinism import full_precision
from audiogen.frontends.encodec import frontend as encodec
from audiogen.frontends.encodec import seanet
from audiogen.frontends.encodec.frontend import EnCodec
from audiogen.frontends.encodec.lstm import lstm_layer


@pytest.fixture(scope="module")
def frontend():
    return load_frontend("encodec", bandwidth=24.0, weights="random")


@pytest.fixture(scope="module")
def package_state(frontend):
    return package_layout(frontend)


@pytest.fixture(scope="module")
def package(package_state):
    """The oracle: the package's own model, as it is, with these weights."""
    model = package_model()
    model.load_state_dict(package_state)
    return model


@torch.no_grad()
def package_codes(model, wav, bandwidth):
    model.set_target_bandwidth(bandwidth)
    [(codes, _)] = model.encode(wav)
    return codes


def count_ties(codes, other, frontend64, wav, z32):
    """Frames where two sets of codes part, each one checked to be within rounding of a tie.

    Of the distances |r - a|^2 and |r - b|^2 to the two codewords chosen, the difference may move by 2 |a - b| times
    the error of r, and by the rounding of the distances themselves.
    """
    z64 = frontend64.encoder(wav.double())[0].transpose(1, 2)
    error = 2 * (z32.double() - z64).norm(dim=-1)
    books = frontend64.codebooks
    frames = (codes != other).any(1).nonzero().tolist()
    for item, frame in frames:
        row = int((codes[item, :, frame] != other[item, :, frame]).nonzero()[0])
        r = z64[item, frame] - sum(books[k, codes[item, k, frame]] for k in range(row))
        a, b = books[row, codes[item, row, frame]], books[row, other[item, row, frame]]
        margin = ((r - a).square().sum() - (r - b).square().sum()).abs()
        rounding = 16 * torch.finfo(torch.float32).eps * (r.norm() + torch.maximum(a.norm(), b.norm())).square()
        assert margin <= 2 * (a - b).norm() * error[item, frame] + rounding, f"row {row}, frame {frame}"
    return len(frames)


@pytest.mark.parametrize("bandwidth", encodec.BANDWIDTHS)
def test_codes_equal_the_packages_in_float64(bandwidth, package, package_state):
    """Guards against weight norm folded along the wrong dimension, reflection padding of short wavs, a last frame lost
    where 320 does not divide N."""
    frontend = EnCodec(EnCodec.Config(bandwidth=bandwidth)).double()
    frontend.load_package_state(package_state)
    package = package.double()
    try:
        for num_samples, batch in [(1, 1), (5, 3), (319, 1), (320, 1), (321, 2), (9999, 2)]:
            wav = sounds(num_samples, batch).double()
            codes = frontend.encode(wav)
            assert codes.dtype == torch.int64
            assert codes.shape == (batch, frontend.spec.num_codebooks, -(-num_samples // 320))
            assert torch.equal(codes, package_codes(package, wav, bandwidth))
    finally:
        package.float()
    assert frontend.spec.num_codebooks == 2 * bandwidth / 1.5
    assert frontend.spec.bitrate == 1000 * bandwidth


def test_codes_in_float32_differ_only_at_ties(package, package_state):
    """Guards against distances computed in another form, and TF32 or bf16 creeping in. That the count can see a tie is
    shown with planted ones."""
    ours = EnCodec(EnCodec.Config(bandwidth=24.0))
    ours.load_package_state(package_state)
    wav = sounds(24000, batch=2)
    codes, z32 = ours.encode(wav), ours.encoder(wav)[0].transpose(1, 2)
    exact = EnCodec(EnCodec.Config(bandwidth=24.0)).double()
    exact.load_state_dict(ours.state_dict())
    against_package = count_ties(codes, package_codes(package, wav, 24.0), exact, wav, z32)
    against_double = count_ties(codes, exact.encode(wav.double()), exact, wav, z32)
    assert against_package <= 1 and against_double <= 3, f"of {codes.numel()} codes"

    ours.codebooks[-1, :512] = ours.codebooks[-1, 512:] * (1 + torch.finfo(torch.float32).eps)
    exact.load_state_dict(ours.state_dict())
    planted = count_ties(ours.encode(wav), exact.encode(wav.double()), exact, wav, z32)
    assert planted > 10


@pytest.mark.parametrize("num_samples", [320 * 40, 320 * 41 - 7, 320 * 40 + 1, 320 * 47 + 113])
def test_blocks_give_the_packages_codes_in_float64(package, package_state, num_samples, monkeypatch):
    """Guards against an end that is reflected within its own block alone, one step too few carried over a seam, pieces
    of the fast layers that end elsewhere than the blocks do."""
    monkeypatch.setattr(EnCodec, "block_frames", 20)
    monkeypatch.setattr(seanet, "PIECE_FRAMES", 8)
    frontend = EnCodec(EnCodec.Config(bandwidth=6.0)).double()
    frontend.load_package_state(package_state)
    package = package.double()
    try:
        wav = sounds(num_samples, batch=2).double()
        codes = frontend.encode(wav)
        assert torch.equal(codes, package_codes(package, wav, 6.0))
        with torch.no_grad():
            expected = package.decode([(codes, None)]).clamp(-1, 1)
        torch.testing.assert_close(frontend.decode(codes), expected, rtol=0, atol=1e-10)
    finally:
        package.float()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_compiled_lstm_is_torchs(dtype, tolerance, batch):
    """Guards against gates in another order, a state that is not carried on, items that read each other's, and gates so
    far out that e^x overflows."""
    torch.manual_seed(0)
    layer = torch.nn.LSTM(12, 12).to(dtype)
    x = torch.randn(9, batch, 12, dtype=dtype)
    x[4] *= 1e4
    state = torch.randn(2, 1, batch, 12, dtype=dtype)
    with torch.no_grad():
        expected, after = layer(x, tuple(state))
        h, c = (part[0].clone() for part in state)
        given = torch.nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
        found = torch.cat([lstm_layer(part.contiguous(), layer.weight_hh_l0, h, c) for part in given.split(4)])
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.stack([h, c]), torch.stack([part[0] for part in after]), rtol=0, atol=tolerance)


def test_decode_equals_the_packages(frontend, package):
    """Guards against codebooks added in the wrong order or number, weights of a transposed convolution folded along the
    wrong dimension."""
    codes = torch.randint(0, 1024, (2, 32, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for rows in (1, 7, 32):
            wav = torch.cat(list(frontend.unlimited([codes[:, :rows]])), dim=2)
            assert wav.shape == (2, 1, 11 * 320)
            torch.testing.assert_close(wav, package.decode([(codes[:, :rows], None)]))
            assert frontend.decode(codes[:, :rows]).abs().max() <= 1
    assert frontend.decode(codes[:, :, :1]).shape == (2, 1, 320)
    for wrong in (torch.zeros(1, 33, 4, dtype=torch.int64), codes.float(), codes + 1000):
        with pytest.raises(ValueError):
            frontend.decode(wrong)


def test_random_weights_are_always_the_same_and_give_varied_codes(frontend):
    """Guards against codebooks of zeros, where every code is the same; weights drawn from the program's own
    generator."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = load_frontend("encodec", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.codebooks, frontend.codebooks[:8])
    for name in ("encoder", "decoder"):
        ours, others = getattr(again, name).state_dict(), getattr(frontend, name).state_dict()
        assert all(torch.equal(ours[key], others[key]) for key in others)
    codes = frontend.encode(sounds(72000, seed=123))
    for row in codes[0]:
        assert len(row.unique()) > 75, "of 225 frames"
    z = frontend.encoder(sounds(72000, seed=123))[0].transpose(1, 2)
    errors = []
    for row, book in zip(codes.unbind(1), frontend.codebooks, strict=True):
        z = z - F.embedding(row, book)
        errors.append(z.square().mean())
    assert errors[0] > errors[7] > errors[31], "each codebook refines what the ones before it left"


def test_the_precision_of_the_rest_of_the_program_moves_no_code(frontend):
    """Guards against TF32, bf16 products or autocast around `encode`, as a training loop has them. Not every machine
    computes in these, so the settings are looked at, too."""

    def settings():
        backends = torch.backends
        return [
            place.fp32_precision
            for place in (
                backends.cudnn.conv,
                backends.cudnn.rnn,
                backends.cuda.matmul,
                backends.mkldnn.conv,
                backends.mkldnn.rnn,
                backends.mkldnn.matmul,
            )
        ]

    wav, seen = sounds(9600), []
    codes = frontend.encode(wav)
    hook = frontend.encoder.register_forward_hook(lambda *_: seen.append(settings()))
    try:
        torch.set_float32_matmul_precision("medium")
        before = settings()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(frontend.encode(wav), codes)
        assert seen == [["ieee"] * 6]
        assert settings() == before and "ieee" not in before
    finally:
        torch.set_float32_matmul_precision("highest")
        hook.remove()


def test_threads_that_encode_at_once_leave_the_precision_as_it_was():
    """Guards against a thread that takes the settings of another one for those of the program, and keeps them."""
    conv, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    first, second = full_precision(torch.device("cpu")), full_precision(torch.device("cpu"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert conv.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert conv.fp32_precision == before


def test_settings_and_use_before_there_are_weights():
    for settings in ({"bandwidth": 5.0}, {"weights": "rnadom"}, {"bandwith": 6.0}):
        with pytest.raises(ConfigError, match="frontend.*(bandwidth|weights)"):
            load_frontend("encodec", **settings)
    unready = EnCodec(EnCodec.Config())
    for call in (lambda: unready.encode(torch.zeros(1, 1, 320)), lambda: unready.decode(torch.zeros(1, 8, 1).long())):
        with pytest.raises(NotFittedError, match="load_pretrained"):
            call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_codes_differ_only_at_ties(frontend):
    """Guards against TF32, which cuDNN's convolutions use unless told not to."""
    wav = sounds(72000, batch=2)
    moved = EnCodec(frontend.config).cuda()
    moved.load_state_dict(frontend.state_dict())
    codes = moved.encode(wav.cuda())
    assert codes.device.type == "cuda"
    exact = EnCodec(frontend.config).double()
    exact.load_state_dict(frontend.state_dict())
    z32 = moved.encoder(wav.cuda())[0].transpose(1, 2).cpu()
    assert count_ties(codes.cpu(), frontend.encode(wav), exact, wav, z32) <= 0.02 * 450
    torch.testing.assert_close(moved.decode(codes).cpu(), frontend.decode(codes.cpu()), atol=1e-4, rtol=1e-3)
