"""The generate loop: seeds (contract 6), streaming, prompts, and staying sound long past the training crop."""

import gc
import itertools
import logging
import math

import pytest
import slow
import torch
from tiny import FRAMES, SPEC_CASES, TOKENS, random_input, tiny_backbone, tiny_model

from audiogen.errors import ConfigError
from audiogen.generation import generate as generate_module
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate, stream
from audiogen.generation.request import Request, Until
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.models.patterns import PATTERNS
from audiogen.models.sampling import Sampling, uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import FrameSpec, TokenSpec

every_backbone = pytest.mark.parametrize("kind", BACKBONES)
every_spec = pytest.mark.parametrize("spec, pattern", SPEC_CASES)


def assert_same(got, expected):
    """Codes to the bit; frames to rounding in float64, which differs by batch."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 if got.is_floating_point() else 0)


@every_backbone
@every_spec
@pytest.mark.parametrize("prompt_frames", [0, 3])
def test_an_items_draw_depends_on_its_own_seed_alone(device, spec, pattern, kind, prompt_frames):
    """Contract 6. Guards against one generator for the whole batch, seeds told apart by their place in it, and uniform
    numbers that run on from one item to the next."""
    model = tiny_model(spec, kind, pattern).to(device)
    seeds = [7, 2**40 + 1, 7, 0]
    prompt = random_input(spec, 1, prompt_frames, device).expand(4, -1, -1).contiguous()
    prompt[3] = random_input(spec, 1, prompt_frames, device)[0]
    together = generate(model, 8, Request(prompt=prompt, seeds=seeds)).x
    for item, seed in enumerate(seeds):
        assert_same(
            together[item : item + 1], generate(model, 8, Request(prompt=prompt[item : item + 1], seeds=[seed])).x
        )
    assert_same(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert_same(generate(model, 8, Request(prompt=prompt.flip(0), seeds=seeds[::-1])).x, together.flip(0))


@every_spec
def test_stream_concatenates_to_generate(device, spec, pattern):
    """Guards against frames handed out before all their rows are drawn, twice, or never."""
    model = tiny_model(spec, "gpt", pattern).to(device)
    prompt = random_input(spec, 2, 3, device)
    pieces = list(stream(model, 6, Request(prompt=prompt, seeds=[1, 2])))
    assert [piece.shape[2] for piece in pieces] == [3, 1, 1, 1, 1, 1, 1]
    assert torch.equal(torch.cat(pieces, dim=2), generate(model, 6, Request(prompt=prompt, seeds=[1, 2])).x)


def test_stream_hands_out_a_frame_as_soon_as_it_is_whole():
    """Guards against a stream that first generates everything: it would never sound before its end."""
    model, steps = tiny_model(TOKENS, "wavenet", "delay"), []
    model.backbone.register_forward_hook(lambda *_: steps.append(1))
    pieces = stream(model, 1000, Request(seeds=[0]))
    assert next(pieces).shape[2] == 0
    next(pieces)
    assert len(steps) <= TOKENS.num_codebooks + 1
    next(pieces)
    assert len(steps) <= TOKENS.num_codebooks + 2


def test_stream_pieces_are_not_written_again():
    """Guards against pieces that are views of a buffer the loop goes on writing."""
    model = tiny_model(TOKENS, "gpt", "delay")
    pieces, copies = [], []
    for piece in stream(model, 10, Request(seeds=[4])):
        pieces.append(piece)
        copies.append(piece.clone())
        piece.add_(0)  # whoever receives it may work on it in place
    assert all(map(torch.equal, pieces, copies))


@every_spec
@pytest.mark.parametrize("prompt_frames", [0, 1, 5])
@pytest.mark.parametrize("num_frames", [0, 1, 7])
def test_the_prompt_is_kept_and_the_length_is_as_promised(device, spec, pattern, prompt_frames, num_frames):
    """Guards against holes that leak into the result, and corner cases of nothing to begin with or nothing to add."""
    model = tiny_model(spec, "wavenet", pattern).to(device)
    prompt = random_input(spec, 2, prompt_frames, device)
    given = prompt.clone()
    result = generate(model, num_frames, Request(prompt=prompt, seeds=[1, 2])).x
    assert result.shape == (2, prompt.shape[1], prompt_frames + num_frames)
    assert result.dtype == prompt.dtype
    assert torch.equal(result[:, :, :prompt_frames], given)
    assert torch.equal(prompt, given)
    assert not model.embed.is_hole(result).any()


@pytest.mark.parametrize("pattern", ["parallel", "flatten"])
def test_going_on_from_its_own_frames_gives_the_same(pattern):
    """Guards against uniform numbers counted from the prompt's end: a run continued would repeat the luck of its
    beginning. (With a delay the last frames of the first part never saw the rows of the frames after them.)"""
    model = tiny_model(TOKENS, "gpt", pattern)
    whole = generate(model, 12, Request(batch_size=2, seeds=[3, 9])).x
    assert torch.equal(generate(model, 7, Request(prompt=whole[:, :, :5], seeds=[3, 9])).x, whole)


@every_spec
def test_the_size_of_the_window_does_not_matter(monkeypatch, spec, pattern):
    """Guards against a window that begins with the wrong step, or forgets rows of frames that are not whole yet."""
    model = tiny_model(spec, "mlp", pattern)
    prompt = random_input(spec, 1, 2)
    expected = generate(model, 30, Request(prompt=prompt, seeds=[8])).x
    monkeypatch.setattr(generate_module, "WINDOW", 4)
    assert torch.equal(generate(model, 30, Request(prompt=prompt, seeds=[8])).x, expected)


def drawn_from_the_whole_table(model, kind, prompt, num_frames, request):
    """What `generate` returns, with all steps, uniform numbers and codes laid out at once: memory for the whole length,
    and nothing that moves along."""
    P, rows = prompt.shape[2], slow.layout(kind, model.spec.num_rows, prompt.shape[2] + num_frames)
    frames = torch.tensor([[-1 if frame is None else frame for frame in row] for row in rows])  # (K, S)
    known = frames < P
    seq = torch.full((*prompt.shape[:2], frames.shape[1]), model.hole, dtype=prompt.dtype)
    for row, step in ((frames >= 0) & known).nonzero().tolist():
        channels = slice(row, row + 1) if len(rows) > 1 else slice(None)  # a frame of features is one row
        seq[:, channels, step] = prompt[:, channels, frames[row, step]]
    first = int((~known).any(dim=0).nonzero()[0])
    numbers = uniforms(request.seeds, 0, seq.shape[2], model.head.num_uniforms)
    numbers[:, 0] = model.head.at_start(numbers[:, 0])
    engine = Eager(model, request)
    engine.prefill(seq[:, :, :first])
    engine.decode(seq[:, :, first:], known[:, first:], numbers[:, first:])
    steps = torch.stack([(row[None] == torch.arange(P + num_frames)[:, None]).int().argmax(dim=1) for row in frames])
    return seq.gather(2, steps.expand(*seq.shape[:2], -1))


@every_spec
@pytest.mark.parametrize("prompt_frames", [0, 1, 4])
@pytest.mark.parametrize("window", [1, 5, 1024])
def test_a_window_that_moves_along_draws_what_the_whole_table_does(monkeypatch, spec, pattern, prompt_frames, window):
    """Guards against other codes for the same seeds than before there were windows, when all was laid out at once."""
    model = tiny_model(spec, "gpt", pattern)
    prompt = random_input(spec, 2, prompt_frames)
    request = Request(prompt, seeds=[3, 2**50 + 1])
    monkeypatch.setattr(generate_module, "WINDOW", window)
    expected = drawn_from_the_whole_table(model, pattern, prompt, 23, request)
    assert torch.equal(generate(model, 23, request).x, expected)


@every_spec
def test_a_stream_takes_no_memory_for_its_length(spec, pattern):
    """Guards against a stream of hours that lays out everything first: this one would take petabytes."""
    model = tiny_model(spec, "mlp", pattern)
    pieces = list(itertools.islice(stream(model, 10**15, Request(seeds=[1])), 6))
    assert torch.equal(torch.cat(pieces, dim=2), generate(model, 9, Request(seeds=[1])).x[:, :, :5])


def test_a_stop_rule_bounds_what_is_generated():
    """Guards against items that are not ended, or are ended one frame off; and lengths that count holes."""
    model = tiny_model(TOKENS, "gpt", "delay")
    prompt = random_input(TOKENS, 2, 2)
    until = Until(60, lambda x: torch.tensor([5, 6, 7, 8, 9, 10, 11, 0])[x[:, 0]])
    made = generate(model, 40, Request(prompt, seeds=[1, 2], until=until))
    free = generate(model, 40, Request(prompt, seeds=[1, 2])).x
    for item, length in enumerate(made.lengths):
        ends = until.frame_lengths(free[item : item + 1])[0].cumsum(0)
        assert ends[length - 2] < 60 <= ends[length - 1]
        assert torch.equal(made.x[item, :, :length], free[item, :, :length])
        assert (made.x[item, :, length:] == model.hole).all()
    assert made.x.shape[2] == max(made.lengths) < 42


def test_one_prompt_serves_all_items():
    """Guards against a prompt of one item that silently makes a batch of one."""
    model, prompt = tiny_model(TOKENS, "gpt", "delay"), random_input(TOKENS, 1, 4)
    result = generate(model, 5, Request(prompt=prompt, batch_size=3, seeds=[1, 2, 3])).x
    assert result.shape == (3, 3, 9)
    assert torch.equal(result[:, :, :4], prompt.expand(3, -1, -1))


def test_seeds_are_returned_logged_and_fresh(caplog):
    """Guards against a draw that can't be repeated because nobody knows its seed."""
    model = tiny_model(TOKENS, "gpt", "parallel")
    with caplog.at_level(logging.INFO, logger="audiogen"):
        first, second = generate(model, 6, Request(batch_size=2)), generate(model, 6, Request(batch_size=2))
    assert len({*first.seeds, *second.seeds}) == 4
    assert all(str(seed) in caplog.text for seed in [*first.seeds, *second.seeds])
    assert torch.equal(generate(model, 6, Request(seeds=first.seeds)).x, first.x)
    assert generate(model, 1, Request(seeds=[5])).seeds == (5,)


def test_the_global_generator_is_left_alone():
    """Guards against draws that depend on torch.manual_seed, and generation that disturbs the training it
    interrupts."""
    model = tiny_model(TOKENS, "gpt", "parallel")
    before = torch.get_rng_state()
    generate(model, 4, Request())
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_is_used():
    """Guards against filters that never reach the head."""
    model = tiny_model(TOKENS, "gpt", "parallel")
    free = generate(model, 20, Request(seeds=[1])).x
    assert not torch.equal(generate(model, 20, Request(seeds=[1], sampling=Sampling(temperature=0.1))).x, free)
    assert torch.equal(
        generate(model, 20, Request(seeds=[1], sampling=Sampling(top_k=1))).x,
        generate(model, 20, Request(seeds=[2], sampling=Sampling(temperature=0))).x,
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training):
    """Guards against a training run that goes on without dropout after its first samples, and samples drawn with
    dropout on: also when the stream is dropped half-way, or its model raises."""
    model = tiny_model(TOKENS, "gpt", "parallel", dropout=0.5).train(training)
    first = generate(model, 6, Request(seeds=[1])).x
    assert model.training is training
    assert torch.equal(generate(model, 6, Request(seeds=[1])).x, first)  # no dropout while drawing

    pieces = stream(model, 6, Request(seeds=[1]))
    next(pieces), next(pieces)
    pieces = None
    gc.collect()
    assert model.training is training

    def fail(*_):
        raise RuntimeError("planted")

    handle = model.backbone.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        generate(model, 6, Request(seeds=[1]))
    handle.remove()
    assert model.training is training


def test_a_part_held_in_evaluation_mode_stays_so():
    """Guards against a restored mode that wakes parts which their owner had frozen."""
    model = tiny_model(TOKENS, "gpt", "parallel").train()
    model.backbone.eval()
    generate(model, 2, Request())
    assert model.training
    assert not model.backbone.training


def test_gradients_are_never_recorded():
    """Guards against a graph that grows with every step."""
    model = tiny_model(FRAMES, "mlp", "parallel")
    result = generate(model, 3, Request(seeds=[1])).x
    assert not result.requires_grad
    assert not result.is_inference()  # so that it can be used in training all the same


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_frames": -1}, "num_frames.*-1"),
        ({"seeds": [1, 2], "batch_size": 3}, "seeds.*3 in all.*2"),
        ({"prompt": torch.zeros(2, 3, 1, dtype=torch.long), "batch_size": 3}, "prompt: .*for all 3, got 2"),
        ({"batch_size": 0}, "batch_size: must be from 1 to 65,536 items, got 0"),
        ({"seeds": range(10**15)}, "batch_size: .*1,000,000,000,000,000"),
        ({"num_frames": 10**15}, "num_frames: .*more than the limit of 268,435,456"),
        ({"seeds": [-1]}, "seeds?.*-1"),
        ({"seeds": [2**64]}, "seeds?.*18446744073709551616"),
        ({"prompt": torch.zeros(1, 2, 5, dtype=torch.long)}, r"prompt.*\(B, 3, P\).*\(1, 2, 5\)"),
        ({"prompt": torch.zeros(3, 5, dtype=torch.long)}, r"prompt.*\(B, 3, P\).*\(3, 5\)"),
        ({"prompt": torch.full((1, 3, 2), 7)}, "prompt.*7"),
        ({"prompt": torch.full((1, 3, 2), -1)}, "prompt.*-1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    """Guards against tracebacks from deep inside, and codes beyond the codebook, which would embed as another row's."""
    model = tiny_model(TOKENS, "bigram", "parallel")
    with pytest.raises(ConfigError, match=message):
        generate(model, arguments.pop("num_frames", 2), Request(**arguments))


def test_a_prompt_of_broken_frames_is_refused():
    """Guards against NaN in a prompt, which is how a hole looks: it would be taken for silence."""
    model, prompt = tiny_model(FRAMES, "bigram", "parallel"), torch.zeros(1, 4, 5)
    prompt[0, 2, 3] = math.nan
    with pytest.raises(ConfigError, match="prompt.*finite"):
        generate(model, 2, Request(prompt=prompt))


CROP = 24
SIZE = 12


def melody(generator, batch_size, num_frames):
    """Two rows of codes: the upper walks up by 1, 2 or 5 (of 12), the lower follows it 3 or 4 above."""
    steps = torch.tensor([1, 2, 5])[torch.randint(3, (batch_size, num_frames), generator=generator)]
    upper = steps.cumsum(dim=1) % SIZE
    lower = (upper + torch.randint(3, 5, (batch_size, num_frames), generator=generator)) % SIZE
    return torch.stack([upper, lower], dim=1)


def train(model, make_batch, steps=150, learning_rate=0.01):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        total, count = model.nll(Batch(make_batch(generator, 16, CROP)))
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def entropy(codes):
    """Of the frequencies of codes, in bits."""
    odds = torch.bincount(codes.flatten(), minlength=SIZE).double() / codes.numel()
    return -float((odds * odds.clamp(min=1e-12).log2()).sum())


@every_backbone
def test_codes_stay_healthy_ten_times_past_the_crop(kind):
    """Guards against what breaks only beyond the length that was trained on: positions never seen, rings that go stale,
    a run that falls into one code, steps that no longer follow the corpus."""
    spec = TokenSpec(8000, 80, num_codebooks=2, codebook_size=SIZE)
    model = train(SequenceModel(spec, tiny_backbone(kind, dim=32), PATTERNS["delay"](2)), melody)
    codes = generate(model, 10 * CROP, Request(batch_size=6, seeds=range(6))).x
    for tenth in codes.split(CROP, dim=2):
        assert entropy(tenth[:, 0]) > 0.8 * math.log2(SIZE)
        assert entropy(tenth[:, 1]) > 0.8 * math.log2(SIZE)
        upper = tenth[:, 0]
        right = torch.isin((upper[:, 1:] - upper[:, :-1]) % SIZE, torch.tensor([1, 2, 5]))
        assert right.float().mean() > 0.8


def swell(generator, batch_size, num_frames):
    """Four features that follow one slow random phase, with a little noise: variance near 1 throughout."""
    phase = 2 * math.pi * torch.rand(batch_size, 1, 1, generator=generator) + 0.5 * torch.arange(num_frames)
    x = math.sqrt(2) * (phase + torch.arange(4)[:, None]).sin()
    return 0.9 * x + 0.44 * torch.randn(x.shape, generator=generator)


@every_backbone
def test_frames_keep_their_loudness_ten_times_past_the_crop(kind):
    """Guards against frames that fade, blow up or turn NaN once they feed on themselves."""
    spec = FrameSpec(8000, 80, num_features=4)
    model = train(SequenceModel(spec, tiny_backbone(kind, dim=32), PATTERNS["parallel"](1)), swell)
    frames = generate(model, 10 * CROP, Request(batch_size=6, seeds=range(6))).x
    assert frames.isfinite().all()
    for tenth in frames.split(CROP, dim=2):
        assert 0.5 < float(tenth.var(dim=(0, 2)).min()) <= float(tenth.var(dim=(0, 2)).max()) < 2


def test_frames_that_feed_on_themselves_stay_frames():
    """Guards against a bigram of mel frames, linear in the frame before: after one rare draw it went from large to
    larger, and the front-end was given infinity."""
    spec = FrameSpec(8000, 80, num_features=4)
    model = SequenceModel(spec, tiny_backbone("bigram", dim=8), PATTERNS["parallel"](1))
    for end in (model.embed, model.head):
        torch.nn.init.normal_(end.linear.weight, generator=torch.Generator().manual_seed(0))
    frames = generate(model, 200, Request(batch_size=4, seeds=range(4))).x
    assert float(frames.abs().max()) == model.head.LIMIT


def test_sound_begins_without_noise():
    """Guards against the burst with which clips began: the first frame, of which nothing is known, drawn with the noise
    of all sounds. Later frames keep theirs, and so does the first one after a prompt."""
    model = tiny_model(FRAMES, "gpt", "parallel")
    model.head.fit([torch.tensor([[-6.0, 6.0]]).repeat(FRAMES.num_features, 1)])  # no draw at the edge
    first = generate(model, 3, Request(seeds=range(20))).x
    means = model.head.parameters_of(model.start(1)[0])[1][0].detach()  # (M, F)
    for frame in first[:, :, 0]:
        assert float((means.clamp(*model.head.range) - frame).abs().amax(dim=1).min()) < 1e-6
    assert len(first[:, :, 1].unique(dim=0)) == 20
    prompt = random_input(FRAMES, 1, 1)
    assert len(generate(model, 1, Request(prompt=prompt, seeds=range(20))).x[:, :, 1].unique(dim=0)) == 20
