"""The contracts of a backbone, a front-end and an engine, for parts kept here or in a repository of their own.

    verify_backbone(Mine(Mine.Config(dim=8)))
    verify_frontend(mine)
    verify_engine(MyEngine, model)

Each function copies the part, takes seconds, does not need pytest, and raises an AssertionError that says which
promise is broken. The single checks can also be called separately, with other sizes.
"""

import copy
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .frontends import Frontend, load_frontend, save_frontend
from .generation.engines import Engine
from .generation.engines.eager import Eager
from .generation.request import Request
from .models.backbones import Backbone
from .models.conditioning import AskedConditions
from .models.layers import clone_state
from .models.sampling import Sampling, probabilities, uniforms
from .models.sequence_model import SequenceModel

#: Length of the sequences for backbones, longer than the receptive field of a small one.
STEPS = 50
#: Frames per block in checks of front-ends, so that a short sound has many blocks.
BLOCK = 8


# ---- backbones


def verify_backbone(backbone: Backbone, steps: int = STEPS) -> None:
    """Check all promises of a backbone.

    Args:
        backbone: a backbone with small settings; a copy is used, in float64 and with large weights (see `lively`).
        steps: length of the sequences, above the receptive field unless that is infinite.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> from audiogen.models.backbones import GRU
        >>> verify_backbone(GRU(GRU.Config(dim=4, num_layers=1)))
    """
    backbone = copy.deepcopy(backbone)
    lively(backbone).double().eval()
    field = backbone.receptive_field
    assert field == math.inf or 1 <= field < steps, f"receptive_field is {field}: give smaller settings or more steps"
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        check_chunks(backbone, torch.randint(1, steps, (6,), generator=generator).tolist())
    for lengths in ([1] * steps, [steps, 1, steps, 1, 1], [1, steps, 3], list(range(2, 10))):
        check_chunks(backbone, lengths)
    check_receptive_field(backbone, steps)
    check_distance(backbone)
    check_state(backbone, steps)
    check_branches(backbone, steps)
    check_fresh_start(backbone)
    check_items(backbone, [steps])
    check_items(backbone, [20, 1, 1, steps - 22])
    check_gradient(backbone, [20, 1, 1, 1, 1])


def lively(module: nn.Module) -> nn.Module:
    """Draw large weights, in place, so that every input affects every output, which initial weights may not ensure."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def run_in_chunks(backbone: Backbone, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Process x (B, S, D) in chunks of the given lengths, passing the state on; return (B, S, D)."""
    state, pieces = None, []
    for piece in x.split(list(lengths), dim=1):
        y, state = backbone(piece, state)
        assert y.shape == piece.shape, f"the output has shape {tuple(y.shape)}, the input {tuple(piece.shape)}"
        pieces.append(y)
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def check_chunks(backbone: Backbone, lengths: Sequence[int]) -> None:
    """Check that the whole equals its chunks (contract 1)."""
    x = _noise(backbone, 2, sum(lengths))
    whole, _ = backbone(x)
    assert whole.std() > 0.01, "the output hardly varies, so equality would mean nothing"
    _close(run_in_chunks(backbone, x, lengths), whole, f"chunks of {list(lengths)} give another output than the whole")


def check_receptive_field(backbone: Backbone, steps: int = STEPS) -> None:
    """Check that the receptive field measured by gradient is the declared one, and causal (contract 2).

    If it is infinite, gradients may vanish, so only causality is checked.
    """
    x = _noise(backbone, 4, steps).requires_grad_()
    y, _ = backbone(x)
    weights = _noise(backbone)
    for t in range(steps):
        (gradient,) = torch.autograd.grad((y[:, t] * weights).sum(), x, retain_graph=True)
        seen = gradient.abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
        if backbone.receptive_field == math.inf:
            assert seen and seen[-1] == t, f"step {t} depends on steps {seen}"
        else:
            expected = list(range(max(0, t - int(backbone.receptive_field) + 1), t + 1))
            assert seen == expected, f"step {t} depends on steps {seen}, declared are {expected}"


@torch.no_grad()
def check_distance(backbone: Backbone) -> None:
    """Check that a late step depends on its receptive field alone; skipped if that is infinite."""
    if backbone.receptive_field == math.inf:
        return
    field = int(backbone.receptive_field)
    x = _noise(backbone, 2, field + 170)
    steps = run_in_chunks(backbone, x, [1] * x.shape[1])
    for t in (field - 1, field, field + 1, field + 97, field + 169):
        alone, _ = backbone(x[:, t - field + 1 : t + 1])
        _close(steps[:, t], alone[:, -1], f"step {t} depends on more than its receptive field of {field} steps")


def check_state(backbone: Backbone, steps: int = STEPS) -> None:
    """Check that the state is a tree of tensors of fixed shape that own their memory and keep no graph alive."""
    first = None
    for lengths in ([1], [steps], [3, steps, 1], [1] * steps, [steps, 1, 2]):
        state = None
        for length in lengths:
            _, state = backbone(_noise(backbone, 2, length), state)  # with gradients enabled, as in training
        tensors = state_tensors(state)
        described = {name: (x.shape, x.dtype, x.device) for name, x in tensors.items()}
        first = first or described
        assert described == first, f"after chunks of {lengths} the state is {described}, after one step {first}"
        for name, x in tensors.items():
            assert x.untyped_storage().nbytes() == x.numel() * x.element_size(), f"{name} is a view of a larger tensor"
            assert not x.requires_grad, f"{name} keeps a graph alive"


@torch.no_grad()
def check_branches(backbone: Backbone, steps: int = STEPS) -> None:
    """Check that continuing from a clone of a state works: there is no state outside it."""
    x, other = _noise(backbone, 2, steps), _noise(backbone, 2, steps)
    _, state = backbone(x[:, :20])
    branch = clone_state(state)
    for t in range(20, steps):
        _, state = backbone(other[:, t : t + 1], state)
    y, _ = backbone(x[:, 20:], branch)
    _close(y, backbone(x)[0][:, 20:], "continuing from a clone of the state gives another output")


@torch.no_grad()
def check_fresh_start(backbone: Backbone) -> None:
    """Check that a call without a state starts over, and that neither input nor output is overwritten."""
    x = _noise(backbone, 2, 20)
    before = x.clone()
    y, state = backbone(x)
    kept = y.clone()
    backbone(_noise(backbone, 2, 5), state)
    assert torch.equal(backbone(x)[0], kept), "a call without a state depends on the calls before"
    assert torch.equal(y, kept), "an output is overwritten by a later call"
    assert torch.equal(x, before), "the input is overwritten"


@torch.no_grad()
def check_items(backbone: Backbone, lengths: Sequence[int]) -> None:
    """Check that an item does not depend on the others of its batch."""
    x = _noise(backbone, 3, sum(lengths))
    together = run_in_chunks(backbone, x, lengths)
    for item in range(3):
        alone = run_in_chunks(backbone, x[item : item + 1], lengths)
        _close(together[item : item + 1], alone, f"item {item} depends on the others of its batch")


def check_gradient(backbone: Backbone, lengths: Sequence[int]) -> None:
    """Check that the last steps get the gradient of their own input, also in chunks of the given lengths.

    No gradient flows through the state.
    """
    steps = sum(lengths)
    x, weights = _noise(backbone, 2, steps), _noise(backbone)
    whole, chunked = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, y = backbone(whole)[0], run_in_chunks(backbone, chunked, lengths)
    for t in range(steps - 4, steps):
        (wanted,) = torch.autograd.grad((expected[:, t] * weights).sum(), whole, retain_graph=True)
        (got,) = torch.autograd.grad((y[:, t] * weights).sum(), chunked, retain_graph=True)
        _close(got[:, t], wanted[:, t], f"in chunks of {list(lengths)}, step {t} loses gradient of its own input")


def state_tensors(state: Any, name: str = "state") -> dict[str, Tensor]:
    """Return the tensors of a state by path; assert that it consists of dicts, lists and tensors."""
    if isinstance(state, Tensor):
        return {name: state}
    assert isinstance(state, dict | list | tuple), f"{name} is {state!r}: a state is a tree of tensors"
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {path: tensor for key, value in items for path, tensor in state_tensors(value, f"{name}.{key}").items()}


def _noise(backbone: Backbone, *shape: int) -> Tensor:
    """Return noise (*shape, D) float64 on the backbone's device, drawn on the CPU, so it is the same on all devices."""
    device = next((tensor.device for tensor in backbone.parameters()), torch.device("cpu"))
    return torch.randn(*shape, backbone.dim, dtype=torch.float64).to(device)


# ---- front-ends


def verify_frontend(frontend: Frontend) -> None:
    """Check all promises of a front-end.

    Args:
        frontend: a fitted front-end with small settings, on the CPU, and registered in FRONTENDS, so that it can be
            saved. A copy is used.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> verify_frontend(load_frontend("mulaw", sample_rate=8000))
    """
    frontend = copy.deepcopy(frontend).eval()
    assert frontend.fitted, "give a front-end that is fitted: call fit(wavs) first"
    hop_length = base_hop_length(frontend)
    for hops, extra in ((0, 1), (1, -1), (1, 0), (1, 1), (7, 0), (7, 3), (40, -2)):
        check_shapes(frontend, max(1, hops * hop_length + extra))
    check_batch(frontend)
    check_repeatable(frontend)
    check_refusals(frontend)
    check_saving(frontend)
    check_encode_stream(frontend, 0, 1)
    check_encode_stream(frontend, 3 * BLOCK + 2, -1)
    check_decode_stream(frontend, 3 * BLOCK + 2)
    check_latency(frontend)
    check_stream_memory(frontend)


def made_up_sounds(num_samples: int, batch_size: int = 1, seed: int = 0) -> Tensor:
    """Return test sounds, tones in noise: (B, 1, N) float32 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 0.02 + 0.2 * torch.rand(batch_size, 1, 1, generator=generator)
    noise = torch.randn(batch_size, 1, num_samples, generator=generator)
    return (0.5 * torch.sin(pitch * torch.arange(num_samples)) + 0.05 * noise).clamp(-1, 1)


def base_hop_length(frontend: Frontend) -> int:
    """Return the samples per frame; of the wrapped front-end if the rate varies."""
    return (frontend.base or frontend).spec.hop_length


def check_shapes(frontend: Frontend, num_samples: int) -> None:
    """Check that codes or frames have the right shape, dtype and range, and decode to whole frames in [-1, 1]."""
    spec, hop_length = frontend.spec, base_hop_length(frontend)
    num_frames = -(-num_samples // hop_length)
    x = frontend.encode(made_up_sounds(num_samples, batch_size=2))
    assert frontend.num_frames(num_samples) == num_frames, "num_frames is not ceil(N / hop_length)"
    lengths = frontend.frame_lengths(x)
    assert lengths.dtype == torch.int64 and int(lengths.max()) <= frontend.longest_frame, "frame_lengths are wrong"
    assert lengths.sum(dim=1).tolist() == [num_frames * hop_length] * 2, "frame_lengths do not add up to the wav"
    assert math.isclose(frontend.seconds(x), 2 * num_frames * hop_length / spec.sample_rate), "seconds are wrong"
    shape, varies = tuple(x.shape), spec.hop_length is None
    assert shape[:2] == (2, spec.num_channels), f"encode gives {shape}, the spec says {spec.num_channels} rows"
    assert (1 <= shape[2] <= num_frames) if varies else shape[2] == num_frames, f"{shape[2]} frames, not {num_frames}"
    if spec.discrete:
        assert x.dtype == torch.int64, f"codes are {x.dtype}, not int64"
        most = spec.codebook_size - (not varies)  # shorter items are padded with holes, the code V
        assert 0 <= int(x.min()) and int(x.max()) <= most, f"codes lie in [{int(x.min())}, {int(x.max())}]"
        assert bool((x.amin(dim=0) < spec.codebook_size).all()), "there are more holes than the longest item needs"
    else:
        assert x.dtype == torch.float32, f"frames are {x.dtype}, not float32"
    assert not x.requires_grad, "encode keeps a graph alive"
    if not frontend.decodes:
        return
    wav = frontend.decode(x)
    assert wav.shape == (2, 1, num_frames * hop_length), f"decode gives {tuple(wav.shape)} for {num_frames} frames"
    assert wav.dtype == torch.float32 and bool(torch.isfinite(wav).all()), "decoded sound is not finite float32"
    assert float(wav.abs().max()) <= 1, "decoded sound leaves [-1, 1]"
    assert not wav.requires_grad, "decode keeps a graph alive"


def check_batch(frontend: Frontend) -> None:
    """Check that an item does not depend on its batch; in float64, so that rounding does not change a code."""
    frontend = copy.deepcopy(frontend).double()
    wav = made_up_sounds(11 * base_hop_length(frontend) + 1, batch_size=3).double()
    wav[1] *= 1e-3
    together = frontend.encode(wav)
    decoded = frontend.decode(together) if frontend.decodes else None
    for item in range(3):
        alone = frontend.encode(wav[item : item + 1])
        own, rest = together[item, :, : alone.shape[2]], together[item, :, alone.shape[2] :]
        what = f"item {item} of a batch is not what it is alone"
        _close(alone[0], own, what, 0 if frontend.spec.discrete else 1e-9)
        holes = rest.numel() == 0 or frontend.spec.hop_length is None and rest.unique() == frontend.spec.codebook_size
        assert holes, "a shorter item is padded with something other than holes"
        if decoded is not None:
            _close(frontend.decode(together[item : item + 1])[0], decoded[item], what, 1e-7)


def check_repeatable(frontend: Frontend) -> None:
    """Check that encode and decode are deterministic, and leave the global random generator alone."""
    x = frontend.encode(made_up_sounds(5000))
    with torch.random.fork_rng(devices=[]):
        if frontend.decodes:
            before = torch.get_rng_state()
            first = frontend.decode(x)
            assert torch.equal(torch.get_rng_state(), before), "decode draws from the program's random numbers"
            torch.manual_seed(123)
            assert torch.equal(frontend.decode(x), first), "decode gives another sound the second time"
        assert torch.equal(frontend.encode(made_up_sounds(5000)), x), "encode gives other codes the second time"


def check_refusals(frontend: Frontend) -> None:
    """Check that encode raises ValueError for tensors that are not wavs, and decode for ones that are not codes.

    A front-end that only encodes must raise ConfigError when it is asked to decode.
    """
    good = made_up_sounds(500)
    for bad in (
        good[0],
        good[0, 0],
        good.expand(1, 2, 500),
        good[..., :0],
        good[:0],
        good.double(),
        good.half(),
        (good * 100).to(torch.int16),
        good.index_fill(2, torch.tensor([3]), float("nan")),
    ):
        _refused(lambda bad=bad: frontend.encode(bad), "wav must", f"encode takes {bad.dtype} {tuple(bad.shape)}")
    good = frontend.encode(good)
    if not frontend.decodes:
        _refused(lambda: frontend.decode(good), "only encodes", "decode accepts codes", ConfigError)
        _refused(lambda: frontend.decode_stream(iter([good])), "only encodes", "decode_stream starts", ConfigError)
        return
    wrong = [good[0], good[:, :0], good[..., :0], torch.cat([good, good], dim=1)]
    if frontend.spec.discrete:
        size = frontend.spec.codebook_size
        wrong += [good.int(), good.float(), good - size, good + size]
    else:
        wrong += [good.double(), good.long(), good * float("inf"), good[:, :-1]]
    for bad in wrong:
        _refused(lambda bad=bad: frontend.decode(bad), "must", f"decode takes {bad.dtype} {tuple(bad.shape)}")


def check_saving(frontend: Frontend) -> None:
    """Check that saving and loading preserves config, spec, fingerprint, codes and sound."""
    wav = made_up_sounds(3000, batch_size=2)
    with tempfile.TemporaryDirectory() as folder:
        save_frontend(frontend, folder)
        loaded = load_frontend(folder)
    assert type(loaded) is type(frontend) and loaded.config == frontend.config, "the config is not saved completely"
    assert loaded.spec == frontend.spec and loaded.fitted and not loaded.training, "what is loaded is not ready"
    assert loaded.fingerprint() == frontend.fingerprint(), "the weights are not saved completely"
    x = frontend.encode(wav)
    assert torch.equal(loaded.encode(wav), x), "what is loaded gives other codes"
    if frontend.decodes:
        assert torch.equal(loaded.decode(x), frontend.decode(x)), "what is loaded gives another sound"


def check_encode_stream(frontend: Frontend, hops: int, extra: int) -> None:
    """Check that encoding a stream equals encoding the whole, bit for bit, whatever the chunks (contract 8)."""
    frontend, hop_length = _in_small_blocks(frontend), base_hop_length(frontend)
    wav = made_up_sounds(max(1, hops * hop_length + extra), batch_size=2)
    whole = frontend.encode(wav)
    for name, lengths in chunkings(BLOCK * hop_length, hop_length, wav.shape[2]).items():
        pieces = list(frontend.encode_stream(iter(cut(wav, lengths))))
        assert torch.equal(torch.cat(pieces, dim=2), whole), f"encoded in chunks ({name}), the codes are others"
        assert all(piece.shape[2] for piece in pieces), f"encoded in chunks ({name}), a piece is empty"


def check_decode_stream(frontend: Frontend, num_frames: int) -> None:
    """Check that decoding a stream equals decoding the whole, bit for bit (contract 8).

    A front-end that can't stream must raise ConfigError at once. One that only encodes is passed over.
    """
    if not frontend.decodes:
        return
    frontend = _in_small_blocks(frontend)
    items = 1 if frontend.base is not None else 2
    x = frontend.encode(made_up_sounds(num_frames * base_hop_length(frontend), items))
    if not frontend.streams:
        _refused(lambda: frontend.decode_stream(iter([x])), "all frames at once", "decode_stream starts", ConfigError)
        return
    whole = frontend.decode(x)
    for name, lengths in chunkings(BLOCK, 2, x.shape[2]).items():
        pieces = list(frontend.decode_stream(iter(cut(x, lengths))))
        assert torch.equal(torch.cat(pieces, dim=2), whole), f"decoded in chunks ({name}), the sound is another"


def check_latency(frontend: Frontend) -> None:
    """Check that the latency measured sample by sample, after the first block, is the stated one."""
    if frontend.base is not None or not frontend.streams:
        assert frontend.latency_ms == math.inf, "what does not stream both ways has an infinite latency"
        return
    hop_length, fed, heard, worst = frontend.spec.hop_length, 0, 0, 0
    wav = made_up_sounds((frontend.start_frames + 6 + 3 * (frontend.decode_frames - 1)) * hop_length)

    def samples() -> Iterator[Tensor]:
        nonlocal fed
        for sample in wav.split(1, dim=2):
            fed += 1
            yield sample

    for piece in frontend.decode_stream(frontend.encode_stream(samples(), block_frames=1), block_frames=1):
        if heard >= frontend.start_frames * hop_length and fed < wav.shape[2]:
            worst = max(worst, fed - heard)
        heard += piece.shape[2]
    measured = 1000 * worst / frontend.spec.sample_rate
    assert math.isclose(measured, frontend.latency_ms), f"latency is {measured:g} ms, stated {frontend.latency_ms:g} ms"


def check_stream_memory(frontend: Frontend) -> None:
    """Check that a stream is read no further than needed, and that its state neither grows nor keeps whole blocks."""
    if frontend.base is not None:
        return  # needs all codes of the base first
    frontend = _in_small_blocks(frontend)
    chunk = made_up_sounds(3 * frontend.spec.hop_length)
    for way, given in (("encode", chunk), ("decode", frontend.encode(chunk))):
        if way == "decode" and not frontend.streams:
            continue
        sizes: list[int] = []
        setattr(frontend, f"{way}_block", _watched(getattr(frontend, f"{way}_block"), sizes))
        fed = itertools.count(1)
        last = 0

        def endless(given: Tensor = given, fed: Iterator[int] = fed) -> Iterator[Tensor]:
            nonlocal last
            while True:
                last = next(fed)
                yield given

        for _ in itertools.islice(getattr(frontend, f"{way}_stream")(endless()), 12):
            pass
        limiter = frontend.limiter()
        delay = 0 if limiter is None else limiter.delay / frontend.spec.hop_length
        most = 12 * max(BLOCK, frontend.decode_frames) + frontend.lookahead + frontend.output_delay + delay + 3
        assert (last - 1) * 3 <= most, f"{way}_stream reads ahead of what it gives"
        half = len(sizes) // 2
        assert max(sizes[half:]) <= max(sizes[:half]), f"the state of {way}_block grows: {sizes}"
        assert sizes[-1] < 64 * BLOCK * frontend.spec.hop_length * 4 + 2**20, f"the state of {way}_block is too large"


def cut(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Cut x (B, C, n) into chunks of the given lengths, repeating the last one."""
    chunks: list[Tensor] = []
    begin = 0
    for length in itertools.chain(lengths, itertools.repeat(lengths[-1])):
        if begin >= x.shape[-1]:
            break
        chunks.append(x[..., begin : begin + length])
        begin += length
    return chunks


def chunkings(block: int, hop_length: int, whole: int) -> dict[str, list[int]]:
    """Return sequences of chunk lengths by name, around the lengths of frames and blocks."""
    return {
        "whole": [whole],
        "ones": [1],
        "frames": [hop_length],
        "blocks": [block],
        "first alone": [1, whole],
        "empty ones": [0, 0, 3, 0, block - 3, 0, 0, hop_length + 1],
        "odd": [block + 1, hop_length - 1 or 1, 17],
        "long": [3 * block + 1],
    }


def _in_small_blocks(frontend: Frontend) -> Frontend:
    """Return a copy of a front-end and its base that process BLOCK frames at a time."""
    frontend = copy.deepcopy(frontend)
    for part in filter(None, (frontend, frontend.base)):
        kind = type(part)
        part.__class__ = type(kind.__name__, (kind,), {"block_frames": BLOCK, "__module__": kind.__module__})
    return frontend


def _watched(block: Callable, sizes: list[int]) -> Callable:
    """Wrap a block function to record the size of its state, and to assert that its tensors own their memory."""

    def run(x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        y, state = block(x, state, last)
        tensors = _leaves(state)
        sizes.append(sum(tensor.nbytes for tensor in tensors))
        for tensor in tensors:
            assert tensor.untyped_storage().nbytes() <= tensor.nbytes, "a state keeps a larger tensor in memory"
        return y, clone_state(state)

    return run


def _leaves(state: Any) -> list[Tensor]:
    """Return the tensors of a front-end's state, which may also hold other values."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return list(itertools.chain.from_iterable(map(_leaves, values)))


# ---- engines


def verify_engine(kind: type[Engine], model: SequenceModel, batch_size: int = 3, steps: int = 60) -> None:
    """Check that an engine equals the plain loop, and does not change the model's weights (contract 7).

    Args:
        kind: class of the engine.
        model: a model of codes with small settings, in float32 and evaluation mode, whose predictions are sharp enough
            that few draws depend on rounding (use `lively`).
        batch_size: number of items.
        steps: steps to generate.

    Raises:
        AssertionError: says what differs.
    """
    reason = kind.unsupported_reason(model)
    assert reason is None, f"the engine can't run this model: {reason}"
    before = copy.deepcopy(model.state_dict())
    spec = model.spec
    x = torch.randint(spec.num_choices // spec.num_rows, (batch_size, spec.num_channels, steps))
    seq = model.pattern.apply(x, model.hole)
    check_logits(kind(model, Request(batch_size=batch_size)), seq)
    for prompt in (0, 1, 5):
        for sampling in (Sampling(), Sampling(0.0), Sampling(0.7, top_k=3), Sampling(top_p=0.6), Sampling(min_p=0.3)):
            check_draws(kind, model, seq[:, :, :prompt], steps, sampling)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed, f"the engine writes to the model's weights: {changed}"


def true_logits(model: SequenceModel, seq: Tensor, request: Request | None = None) -> Tensor:
    """Compute the logits for each step (B, K, S) with whole forward passes in float64: (B, S, K, V).

    With guidance, they are combined as null + scale (given - null), on log-probabilities.
    """
    model = copy.deepcopy(model).double()
    first = model.bos.expand(seq.shape[0], 1, -1)
    conditions, scale = (None, 1.0) if request is None else (request.conditions, request.guidance)

    def logits(conditions: AskedConditions | None) -> Tensor:
        x = torch.cat([first, model.embed(seq[:, :, :-1])], dim=1)
        added = model.added(conditions, 0, seq.shape[2])
        h, _ = model.backbone(x if added is None else x + added)
        return model.head.logits(h)

    with torch.inference_mode():
        if not conditions or scale == 1:
            return logits(conditions)
        given, null = logits(conditions).log_softmax(dim=-1), logits(None).log_softmax(dim=-1)
        return null + scale * (given - null)


def check_logits(engine: Engine, seq: Tensor) -> None:
    """Check that teacher-forced logits differ by at most 1e-4, and greedy codes only where the margin is below 1e-3."""
    expected, got = true_logits(engine.model, seq, engine.request), engine.logits(seq)
    if engine.request.guided:  # log-probabilities equal logits up to a constant
        got = got.log_softmax(dim=-1)
        expected = expected.log_softmax(dim=-1)
    assert got.shape == expected.shape, f"the logits have shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    error = float((got - expected).abs().max())
    assert error <= 1e-4, f"logits are up to {error:.2e} off"
    best = expected.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 1e-3
    assert clear.float().mean() > 0.99, "too many margins are within rounding: give a model with sharper predictions"
    assert torch.equal(got.argmax(-1)[clear], expected.argmax(-1)[clear]), "greedy codes differ"


def check_draws(kind: type[Engine], model: SequenceModel, prompt: Tensor, steps: int, sampling: Sampling) -> None:
    """Check that an engine draws what the plain loop draws, in blocks of any size, and for single items (contract 6).

    Args:
        kind: class of the engine.
        model: the model.
        prompt: (B, K, P), known steps.
        steps: steps to draw.
        sampling: temperature and filters.
    """
    seeds = list(range(len(prompt)))
    expected = _drawn(Eager, model, prompt, steps, sampling, seeds, [steps])
    got = _drawn(kind, model, prompt, steps, sampling, seeds, [steps])
    assert_same_luck(model, got, expected, seeds, sampling)
    pieces = _drawn(kind, model, prompt, steps, sampling, seeds, [1, 7, steps])
    assert torch.equal(pieces, got), "codes depend on the blocks in which they are drawn"
    for seed in seeds:
        item = slice(seed, seed + 1)
        alone = _drawn(kind, model, prompt[item], steps, sampling, [seed], [steps])
        assert_same_luck(model, alone, got[item], [seed], sampling)


def assert_same_luck(
    model: SequenceModel, got: Tensor, expected: Tensor, seeds: Sequence[int], sampling: Sampling = Sampling()
) -> None:
    """Check that steps (B, K, S) are equal up to a draw that fp32 rounding may decide either way.

    After such a draw, the two sequences are different ones.
    """
    for item, seed in enumerate(seeds):
        differ = (got[item] != expected[item]).nonzero()  # (n, 2): row, step
        if not len(differ):
            continue
        step = int(differ[:, 1].min())
        logits = true_logits(model, got[item : item + 1, :, : step + 1])[0, -1]  # (K, V)
        edges = probabilities(logits, sampling).cumsum(dim=-1)
        numbers = uniforms([seed], step, step + 1, len(logits))[0, 0]
        for row in differ[differ[:, 1] == step, 0].tolist():
            gap = float((edges[row] - numbers[row]).abs().min())
            assert gap < 1e-4, f"item {item}: the first divergence is at step {step}, row {row}, {gap:.2e} off an edge"


def _drawn(
    kind: type[Engine],
    model: SequenceModel,
    prompt: Tensor,
    steps: int,
    sampling: Sampling,
    seeds: Sequence[int],
    blocks: Sequence[int],
) -> Tensor:
    """Draw steps after the prompt in blocks of the given lengths; return (B, K, P + steps)."""
    begin = prompt.shape[2]
    seq = prompt.new_full((*prompt.shape[:2], begin + steps), int(model.hole))
    seq[:, :, :begin] = prompt
    known = torch.zeros(seq.shape[1:], dtype=torch.bool)
    engine = kind(model, Request(batch_size=len(prompt), seeds=seeds, sampling=sampling))
    engine.prefill(prompt)
    for numbers in cut(torch.arange(begin, begin + steps)[None, None], blocks):
        first, end = int(numbers[0, 0, 0]), int(numbers[0, 0, -1]) + 1
        drawn = uniforms(seeds, first, end, model.head.num_uniforms)
        engine.decode(seq[:, :, first:end], known[:, first:end], drawn)
    return seq


def _close(got: Tensor, expected: Tensor, what: str, atol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol, msg=lambda details: f"{what}: {details}")


def _refused(call: Callable[[], Any], words: str, what: str, kind: type[Exception] = ValueError) -> None:
    try:
        call()
    except kind as error:
        assert words in str(error), f"{what}, with the message {str(error)!r}, in which {words!r} is missing"
    else:
        raise AssertionError(f"{what}, which it should refuse with a {kind.__name__}")
