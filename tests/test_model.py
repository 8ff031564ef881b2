"""SequenceModel: generation against a naive re-run (contract 3), streamed against training likelihood (contract 4), and
what it learns against entropies that are known."""

import math

import pytest
import safetensors.torch
import slow
import torch
from tiny import FRAMES, SPEC_CASES, TOKENS, random_input, tiny_backbone, tiny_model

from audiogen.errors import ConfigError
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.models.flow_matching import FlowMatchingHead
from audiogen.models.patterns import PATTERNS
from audiogen.models.sampling import Sampling
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import FrameSpec, TokenSpec

every_backbone = pytest.mark.parametrize("kind", BACKBONES)
every_spec = pytest.mark.parametrize("spec, pattern", SPEC_CASES)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_logits_are_those_of_the_code_at_their_place(pattern):
    """Cross-entropy of the logits with the codes is the loss of each entry. Guards against logits of the next code, and
    rows of a frame that the pattern has moved."""
    model, x = tiny_model(TOKENS, "gpt", pattern), random_input(TOKENS, 2, 7)
    logits = model.logits(x)
    assert logits.shape == (*x.shape, TOKENS.codebook_size)
    nats = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), x, reduction="none")
    torch.testing.assert_close(nats, model(Batch(x)))
    with pytest.raises(ConfigError, match="logits: only codes have them"):
        tiny_model(FRAMES, "gpt", "parallel").logits(random_input(FRAMES, 2, 7))


def laid_out(model, kind, x):
    """(B, C, T) laid out by the slow definition: (B, C, S)."""
    table = slow.layout(kind, model.spec.num_rows, x.shape[2])
    seq = x.new_full((*x.shape[:2], len(table[0])), model.hole)
    for row in range(x.shape[1]):
        for step, frame in enumerate(table[min(row, len(table) - 1)]):
            if frame is not None:
                seq[:, row, step] = x[:, row, frame]
    return seq


def hidden_after(model, prefix):
    """What the head predicts the step after `prefix` (B, C, s) from, by running all of it."""
    x = model.bos.expand(len(prefix), 1, -1)
    if prefix.shape[2]:
        x = torch.cat([x, model.embed(prefix)], dim=1)
    hole = torch.full_like(model.embed.empty(len(prefix)).sum(dim=2, keepdim=True), model.hole)
    return model.head.attach(model.backbone(x)[0], torch.cat([hole, prefix], dim=2))[:, -1]


def most_probable(model, h):
    """(B, D) -> (B, C): the most probable code of each row, or the mean of the weightiest component."""
    if isinstance(model.spec, TokenSpec):
        return model.head.logits(h).argmax(dim=-1)
    if isinstance(model.head, FlowMatchingHead):  # the midpoint rule from 0, step by step, then what is to be expected
        x, size = h.new_zeros(len(h), model.head.num_features), model.head.CLEAN_FROM / model.head.STEPS
        for step in range(model.head.STEPS):
            t = h.new_full((len(h), 1), step * size)
            middle = x + size / 2 * model.head.velocity(x, t, h)
            x = x + size * model.head.velocity(middle, t + size / 2, h)
        t = model.head.CLEAN_FROM
        return (x + (1 - t) * model.head.velocity(x, h.new_full((len(h), 1), t), h)).clamp(*model.head.range)
    log_weights, means, _ = model.head.parameters_of(h)
    mean = torch.stack([mean[weights.argmax()] for weights, mean in zip(log_weights, means, strict=True)])
    return torch.maximum(torch.minimum(mean, model.head.range[1]), model.head.range[0])


@every_backbone
@every_spec
@pytest.mark.parametrize("prompt_frames", [0, 1, 5])
@torch.no_grad()
def test_greedy_generation_equals_the_naive_rerun(device, spec, pattern, kind, prompt_frames):
    """Contract 3. Guards against a prompt observed twice or a step short, a row of the prompt drawn anew, a hole fed in
    as a code, a position off by one after the prefill, and a drawn row put at another frame."""
    model = tiny_model(spec, kind, pattern).to(device)
    prompt = random_input(spec, 2, prompt_frames, device)
    num_frames = 9
    got = generate(model, num_frames, Request(prompt=prompt, batch_size=2, sampling=Sampling(temperature=0))).x

    x = torch.cat([prompt, prompt.new_zeros(*prompt.shape[:2], num_frames)], dim=2)
    table = slow.layout(pattern, spec.num_rows, x.shape[2])
    for step in range(len(table[0])):
        if all(row[step] is None or row[step] < prompt_frames for row in table):
            continue
        # What later frames hold must not matter: `x` still has zeros there.
        drawn = most_probable(model, hidden_after(model, laid_out(model, pattern, x)[:, :, :step]))
        for row in range(x.shape[1]):
            frame = table[min(row, len(table) - 1)][step]
            if frame is not None and frame >= prompt_frames:
                x[:, row, frame] = drawn[:, row]
    torch.testing.assert_close(got, x, rtol=0, atol=0 if spec.unit == "bits" else 1e-9)
    assert len(got.unique()) > 1


@every_backbone
@every_spec
@torch.no_grad()
def test_nll_equals_a_slow_loop_over_steps(device, spec, pattern, kind):
    """Guards against an entry scored at the wrong step or row, and a model that sees the code it is to predict."""
    model = tiny_model(spec, kind, pattern).to(device)
    x = random_input(spec, 2, 6, device)
    seq, table = laid_out(model, pattern, x), slow.layout(pattern, spec.num_rows, 6)
    expected = torch.zeros(2, spec.num_rows, 6, dtype=torch.float64, device=device)
    for step in range(seq.shape[2]):
        h = hidden_after(model, seq[:, :, :step])
        for row in range(spec.num_rows):
            if (frame := table[row][step]) is None:
                continue
            if spec.unit == "bits":
                odds = model.head.logits(h).log_softmax(dim=-1)
                expected[:, row, frame] = -torch.stack([odds[b, row, x[b, row, frame]] for b in range(2)])
            else:
                expected[:, row, frame] = model.head.nll(h[:, None], x[:, :, frame : frame + 1])[:, 0, 0]
    torch.testing.assert_close(model(Batch(x)), expected, rtol=0, atol=1e-10)
    total, count = model.nll(Batch(x))
    assert total.dtype == torch.float64
    assert count == 2 * spec.num_rows * 6
    torch.testing.assert_close(total, expected.sum())


@every_backbone
@every_spec
@torch.no_grad()
def test_streamed_nll_equals_training_nll(device, spec, pattern, kind):
    """Contract 4. Guards against a chunk whose first step is predicted without the one before it, and a second copy of
    the arithmetic that has drifted from the first."""
    model = tiny_model(spec, kind, pattern).to(device)
    x = random_input(spec, 2, 23, device)
    expected, _ = model.nll(Batch(x))
    seq = laid_out(model, pattern, x)

    h, state = model.start(2)
    by_steps = 0.0
    for step in range(seq.shape[2]):
        by_steps += model.head.nll(h[:, None], seq[:, :, step : step + 1]).sum()
        h, state = model.advance(seq[:, :, step : step + 1], state)
    torch.testing.assert_close(by_steps, expected, rtol=0, atol=1e-9)

    for lengths in ([1] * seq.shape[2], [20, 1, seq.shape[2] - 21], [2, seq.shape[2] - 2]):
        state, by_chunks = None, 0.0
        for chunk in seq.split(lengths, dim=2):
            nll, state = model.nll_of_steps(chunk, state)
            assert nll.shape == (2, spec.num_rows, chunk.shape[2])
            by_chunks += nll.sum()
        torch.testing.assert_close(by_chunks, expected, rtol=0, atol=1e-9)


@every_backbone
@every_spec
@torch.no_grad()
def test_padding_leaves_the_nll_of_an_item_as_it_is_alone(device, spec, pattern, kind):
    """Guards against padding that is scored, counted or looked at, and a hole that embeds as code 0."""
    model = tiny_model(spec, kind, pattern).to(device)
    lengths = [1, 4, 9, 6]
    items = [random_input(spec, 1, length, device) for length in lengths]
    width = max(lengths) + 2
    padded = torch.cat(
        [
            torch.cat([item, item.new_full((1, item.shape[1], width - item.shape[2]), model.hole)], dim=2)
            for item in items
        ]
    )
    together = model(Batch(padded))
    for row, item in zip(together, items, strict=True):
        alone = model(Batch(item))[0]
        torch.testing.assert_close(row[:, : item.shape[2]], alone, rtol=0, atol=1e-10)
        assert not row[:, item.shape[2] :].any()
    total, count = model.nll(Batch(padded))
    assert count == sum(lengths) * spec.num_rows
    torch.testing.assert_close(total, sum(model.nll(Batch(item))[0] for item in items))


@every_backbone
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_a_fresh_model_loses_ln_v(device, kind, pattern):
    """Guards against an initialisation that begins with opinions: the first hundred steps would be spent on losing
    them."""
    spec = TokenSpec(8000, 80, num_codebooks=2, codebook_size=64)
    model = SequenceModel(spec, tiny_backbone(kind, dim=64), PATTERNS[pattern](2)).to(device)
    total, count = model.nll(Batch(random_input(spec, 8, 50, device)))
    assert float(total) / count == pytest.approx(math.log(64), rel=0.01)


@every_backbone
@every_spec
@torch.no_grad()
def test_half_precision_takes_the_same_way(device, spec, pattern, kind):
    """Guards against rings of one type that are handed another, which only shows under autocast."""
    model = tiny_model(spec, kind, pattern).float().to(device)
    x = random_input(spec, 2, 20, device)
    x = x.float() if x.is_floating_point() else x
    expected, count = model.nll(Batch(x))
    seq, state, streamed = laid_out(model, pattern, x), None, 0.0
    with torch.autocast(device.type, torch.bfloat16):
        whole, _ = model.nll(Batch(x))
        for chunk in seq.split([9, 1, 1, seq.shape[2] - 11], dim=2):
            nll, state = model.nll_of_steps(chunk, state)
            streamed += nll.sum(dtype=torch.float64)
        assert generate(model, 3, Request(prompt=x)).x.shape[2] == 23
    assert float(whole) == pytest.approx(float(expected), abs=0.1 * count)
    assert float(streamed) == pytest.approx(float(whole), abs=0.1 * count)


@every_backbone
def test_a_step_of_training_reaches_every_weight(device, kind):
    """Guards against a part left out of the sum, a detached input, and a `bos` that is never learned."""
    model = tiny_model(TOKENS, kind, "delay").to(device).train()
    model.nll(Batch(random_input(TOKENS, 4, 30, device)))[0].backward()
    dead = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert dead == []


def train(model, make_batch, steps, learning_rate):
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        loss = model(Batch(make_batch(step)))[:, :, 1:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_the_bigram_learns_the_conditional_entropy_of_its_corpus():
    """Guards against a bigram that is less than a table: a head of lower rank, or a step that sees the wrong
    neighbour."""
    size = 6
    spec = TokenSpec(8000, None, num_codebooks=1, codebook_size=size)
    odds = torch.randn(size, size).mul(2).softmax(dim=1)
    items = torch.zeros(16, 1, 80, dtype=torch.long)
    for t in range(1, items.shape[2]):
        items[:, :, t] = torch.multinomial(odds[items[:, 0, t - 1]], 1)

    counts = [[0] * size for _ in range(size)]
    for item in items[:, 0].tolist():
        for a, b in zip(item, item[1:], strict=False):
            counts[a][b] += 1
    pairs = sum(map(sum, counts))
    entropy = -sum(n / pairs * math.log(n / sum(row)) for row in counts for n in row if n)

    model = SequenceModel(spec, tiny_backbone("bigram", dim=8), PATTERNS["parallel"](1))
    loss = train(model, lambda step: items, 250, 0.1)
    assert entropy - 1e-5 < loss < entropy + 2e-3
    assert entropy < 0.9 * math.log(size)  # the corpus has something to learn


def gaussian_walk(generator, batch_size, num_frames):
    """Frames of 3 features, each 0.8 of the one before and noise of deviation 0.6: variance 1 throughout."""
    x = torch.randn(batch_size, 3, num_frames, generator=generator)
    for t in range(1, num_frames):
        x[:, :, t] = 0.8 * x[:, :, t - 1] + 0.6 * x[:, :, t]
    return x


def two_pitches(generator, batch_size, num_frames):
    """One feature that is near -1 or near 1, at even odds, with a deviation of 0.1."""
    side = torch.randint(2, (batch_size, 1, num_frames), generator=generator) * 2 - 1
    return side + 0.1 * torch.randn(batch_size, 1, num_frames, generator=generator)


@pytest.mark.parametrize(
    "make, num_features, entropy",
    [
        (gaussian_walk, 3, 3 * 0.5 * math.log(2 * math.pi * math.e * 0.6**2)),
        (two_pitches, 1, math.log(2) + 0.5 * math.log(2 * math.pi * math.e * 0.1**2)),
    ],
    ids=["gaussian-walk", "two-pitches"],
)
def test_a_density_learns_the_entropy_of_its_corpus(make, num_features, entropy):
    """Guards against a density that does not sum to one (it would fall below the entropy), or whose means, deviations
    or weights can't follow the frame before."""
    spec = FrameSpec(8000, 80, num_features)
    model = SequenceModel(spec, tiny_backbone("bigram", dim=16), PATTERNS["parallel"](1))
    generator = torch.Generator().manual_seed(1)
    train(model, lambda step: make(generator, 32, 32), 300, 0.02)
    with torch.no_grad():
        loss = float(model(Batch(make(generator, 512, 64)))[:, :, 1:].mean())
    assert loss == pytest.approx(entropy, abs=0.02)


def test_misfits_are_refused():
    """Guards against a model that is built of parts that do not fit, and fails (or worse, does not) much later."""
    with pytest.raises(ConfigError, match="pattern.*2 rows.*3"):
        SequenceModel(TOKENS, tiny_backbone("bigram"), PATTERNS["delay"](2))
    with pytest.raises(ConfigError, match="pattern.*4 rows.*1"):
        SequenceModel(FRAMES, tiny_backbone("bigram"), PATTERNS["parallel"](4))
    for kind in [kind for kind in PATTERNS if kind != "parallel"]:
        with pytest.raises(ConfigError, match="pattern.*parallel"):
            SequenceModel(FRAMES, tiny_backbone("bigram"), PATTERNS[kind](1))


@every_backbone
@every_spec
@torch.no_grad()
def test_saved_weights_give_the_same_likelihood(tmp_path, spec, pattern, kind):
    """Guards against a weight that is not in the state dict, or a table that is saved though it follows from the
    spec."""
    x = random_input(spec, 2, 12)
    model = tiny_model(spec, kind, pattern)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(99)
    loaded = tiny_model(spec, kind, pattern)
    assert not torch.equal(loaded.nll(Batch(x))[0], model.nll(Batch(x))[0])
    loaded.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(loaded.nll(Batch(x))[0], model.nll(Batch(x))[0])
    assert model.state_dict().keys() - {"head.range"} == dict(model.named_parameters()).keys()
