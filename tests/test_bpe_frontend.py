"""The front-end `bpe`, whose rate varies, and the code that has to handle this: cache, split, likelihood, generation,
runs."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from corpus import RATE, folder_of_notes, note, tiny_frontend, tiny_settings
from folders import write_wav
from rich.console import Console
from tiny import lively, tiny_model

from audiogen import encode_folder
from audiogen.commands.decode import decode_file
from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train import train
from audiogen.data import EncodedCache, Part, Sequences, scan, split
from audiogen.doctor.folder import check_folder
from audiogen.errors import ConfigError, DataError, NotFittedError, RunError
from audiogen.evaluation.report import report
from audiogen.evaluation.scores import baselines, held_out_score, score
from audiogen.evaluation.wording import report_rows
from audiogen.frontends import BPE, FRONTENDS, frontend_to_dict, load_frontend, save_frontend
from audiogen.frontends.base import hash_tensors
from audiogen.frontends.bpe.frontend import BASES
from audiogen.generation.generate import generate
from audiogen.generation.request import Request, Until
from audiogen.listen.figures import figures_table
from audiogen.listen.run_reader import read_folder
from audiogen.models.sampling import Sampling
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.run import load_run
from audiogen.utils.files import sha256_file

HOP = 64
TINY = [f"frontend.{name}={json.dumps(value)}" for name, value in tiny_settings("bpe").items() if name != "base"] + [
    f"frontend.base.{name}={json.dumps(value)}" for name, value in tiny_settings("bpe")["base"].items()
]
SMALL = [
    *TINY,
    "backbone.dim=8",
    "backbone.num_layers=1",
    "backbone.num_heads=2",
    "training.crop_frames=16",
    "training.batch_size=2",
    "training.sample_seconds=0.1",
    "training.evaluations=2",
]


def sound(seed, num_samples):
    return torch.from_numpy(note(seed, num_samples)).float()[None]  # (1, N)


@pytest.fixture
def frontend():
    return tiny_frontend("bpe")


@pytest.fixture(scope="module")
def merged_samples():
    """BPE over mu-law, for which codes can be written down by hand: it merges 0 1, then 2 2, then 01 01."""
    front = BPE(BPE.Config(base={"kind": "mulaw", "sample_rate": RATE, "bits": 2}, num_merges=3, longest=4))
    front.learn([torch.tensor([[0, 1, 0, 1, 0, 1, 3, 0, 1, 0, 1]]), torch.tensor([[2, 2, 3, 2, 2, 3, 2, 2]])])
    assert front.merges.tolist() == [[0, 1], [2, 2], [4, 4]]
    return front.eval()


def samples_of(front, codes):
    """Return the wav (1, 1, N) that mu-law encodes as these codes."""
    return front.base.decode(torch.tensor(codes)[None, None])


# ---- codes


def test_nothing_is_lost_beyond_what_the_base_loses(frontend, merged_samples):
    """Guards against codes in another order, a merged code that decodes to its first code only, and a wav that differs
    from the base's."""
    for front in (frontend, merged_samples):
        wav = torch.stack([sound(seed, 3000) for seed in range(3)])
        codes, plain = front.encode(wav), front.base.encode(wav)
        assert torch.equal(torch.stack([front.expand(item) for item in codes]), plain)
        assert torch.equal(front.decode(codes), front.base.decode(plain))
        assert codes.shape[2] < plain.shape[2], "and something was merged"


def test_codes_are_those_written_down(merged_samples):
    """Guards against an off-by-one between a merge and its code, and lengths in frames instead of samples."""
    codes = merged_samples.encode(samples_of(merged_samples, [0, 1, 0, 1, 2, 2, 2, 3]))
    assert codes.tolist() == [[[6, 5, 2, 3]]]
    assert merged_samples.frame_lengths(codes).tolist() == [[4, 2, 1, 1]]
    assert merged_samples.spec.codebook_size == 7 and merged_samples.spec.hop_length is None
    assert merged_samples.longest_frame == 4 and tiny_frontend("bpe").longest_frame == 8 * HOP


def test_a_sound_takes_as_many_codes_as_it_needs(merged_samples):
    """Guards against a rate that does not vary, and items padded with a code that has a meaning."""
    wav = torch.cat([samples_of(merged_samples, codes) for codes in ([0, 1] * 4, [3, 0, 2, 1] * 2, [2, 2, 2, 1] * 2)])
    codes = merged_samples.encode(wav)
    assert codes[:, 0].tolist() == [[6, 6, 7, 7, 7, 7, 7, 7], [3, 0, 2, 1, 3, 0, 2, 1], [5, 2, 1, 5, 2, 1, 7, 7]]
    assert merged_samples.frame_lengths(codes).sum(dim=1).tolist() == [8, 8, 8]
    assert merged_samples.seconds([codes[0, :, :2], codes[1]]) == 16 / RATE


def test_items_of_any_length_decode_as_they_would_alone(frontend):
    """Guards against padding that affects the sound of a shorter item."""
    items = [frontend.encode(sound(seed, length)[None])[0] for seed, length in enumerate((4000, 300, 64, 1111, 300))]
    longest = max(item.shape[1] for item in items)
    hole = frontend.spec.codebook_size
    padded = torch.stack([torch.nn.functional.pad(item, (0, longest - item.shape[1]), value=hole) for item in items])
    wav = frontend.decode(padded)
    assert wav.shape == (5, 1, math.ceil(4000 / HOP) * HOP)
    for item, decoded, length in zip(items, wav, frontend.frame_lengths(padded).sum(dim=1).tolist(), strict=True):
        torch.testing.assert_close(decoded[:, :length], frontend.decode(item[None])[0], rtol=0, atol=1e-5)
        assert not decoded[:, length:].any()


@pytest.mark.parametrize("codes", [[[7, 7]], [[7, 0]], [[0, 7, 0]], [[8, 0]], [[-1, 0]]])
def test_holes_stand_at_the_end_alone(merged_samples, codes):
    """Guards against holes in the middle of an item that decode to a gap, an item without codes, and codes beyond the
    hole."""
    with pytest.raises(ValueError, match="codes must"):
        merged_samples.decode(torch.tensor([codes]))


# ---- learning


def test_merges_come_from_each_file_by_itself():
    """Guards against a merge of the last code of one file and the first code of the next."""
    front = BPE(BPE.Config(base={"kind": "mulaw", "bits": 2}, num_merges=1))
    ends = samples_of(front, [2, 3, 3, 3, 0])[0]
    front.fit([ends, samples_of(front, [1, 3, 3, 2])[0]] * 3)  # 0 1 at six borders, 3 3 twice in a file
    assert front.merges.tolist() == [[3, 3]]


def test_fewer_files_are_read_where_that_is_asked_for():
    """Guards against `fit_frames` being ignored, so that memory grows with the corpus."""
    read = []

    def sequences():
        for codes in ([0, 1] * 4, [2, 3] * 50, [2, 3] * 50):
            read.append(codes)
            yield torch.tensor([codes])

    front = BPE(BPE.Config(base={"kind": "mulaw", "bits": 2}, num_merges=1, fit_frames=10))
    front.learn(sequences())
    assert front.merges.tolist() == [[0, 1]] and len(read) == 2


def test_too_little_to_learn_from_says_so():
    """Guards against codes without a meaning, and a front-end that counts as fitted after fitting failed."""
    front = BPE(BPE.Config(base={"kind": "mulaw", "bits": 2}, num_merges=5))
    with pytest.raises(DataError, match="num_merges: 5 are too many .* after 1 merges no pair .* choose fewer"):
        front.learn([torch.tensor([[0, 1, 0, 1, 2, 3]])])
    assert not front.fitted
    for call in (front.merge, front.expand):
        with pytest.raises(NotFittedError):
            call(torch.tensor([[0, 1]]))


def test_a_front_end_that_is_there_already_can_be_wrapped():
    """Guards against a wrapped copy with other weights than the original, and wrapping that changes the original."""
    base = tiny_frontend("melvq")
    with pytest.raises(ConfigError, match="base.num_codebooks: must be 1"):
        BPE.over(base)
    base = load_frontend("melvq", **{**tiny_settings("melvq"), "num_codebooks": 1})
    base.fit([sound(seed, 4000) for seed in range(4)])
    before = base.fingerprint()
    wav = sound(9, 4000)
    codes = base.encode(wav[None])
    front = BPE.over(base, num_merges=3)
    front.learn([codes[0], codes[0]])
    assert torch.equal(front.expand(front.encode(wav[None])[0]), codes[0])
    assert base.fingerprint() == before == front.base.fingerprint()


# ---- settings, saving


def test_every_front_end_of_one_row_of_codes_can_be_wrapped():
    """Guards against a new front-end that can't be wrapped because nobody added it to a list."""
    for kind, part in FRONTENDS.items():
        one_row = kind not in ("bpe", "encodec") and part(part.Config(**tiny_settings(kind))).spec.unit == "bits"
        assert (BASES.get(kind) is part) == one_row, kind
    base = {**tiny_settings("codec"), "kind": "codec", "num_codebooks": 1}
    front = load_frontend("bpe", base=base, num_merges=2)
    front.fit([sound(seed, 4000) for seed in range(3)])
    assert front.decode(front.encode(sound(5, 999)[None])).shape == (1, 1, 1024)


def test_the_base_is_named_in_many_ways_and_written_in_one():
    """Guards against two configs, and so two fingerprints, of the same front-end."""
    whole = {"kind": "mulaw", "sample_rate": 16000, "bits": 8}
    for base in ("mulaw", {"kind": "mulaw"}, {"kind": "mulaw", "bits": 8}, whole):
        assert BPE.Config(base=base).base == whole
    default = {"kind": "melvq", **dataclasses.asdict(BASES["melvq"].Config(num_codebooks=1))}
    assert BPE.Config(base="melvq").base == default
    assert BPE.Config().base == BPE.Config(base={}).base == default
    assert frontend_to_dict(BPE(BPE.Config(base="mulaw")))["base"] == whole


@pytest.mark.parametrize(
    "assignments, base",
    [
        (["frontend.base=mulaw"], "mulaw"),
        (["frontend.base.codebook_size=9"], {"codebook_size": 9}),
        (["frontend.base=mulaw", "frontend.base.bits=6"], {"kind": "mulaw", "bits": 6}),
        (["frontend.base.bits=6", "frontend.base=mulaw"], {"kind": "mulaw", "bits": 6}),
        (["frontend.base.kind=mulaw", "frontend.base.bits=6"], {"kind": "mulaw", "bits": 6}),
    ],
)
def test_settings_of_the_base_can_be_overridden(assignments, base):
    """Guards against `--set frontend.base.codebook_size=9` that only works for config files, or that drops earlier
    settings."""
    settings, rest = frontend_settings([*assignments, "frontend.num_merges=7", "backbone.dim=8"])
    assert settings == {"base": base, "num_merges": 7} and rest == ["backbone.dim=8"]
    assert BPE.Config(**settings).base.items() >= (base if isinstance(base, dict) else {"kind": base}).items()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base": "mel"}, r"frontend.base: there is no 'mel', did you mean melvq\?"),
        ({"base": "encodec"}, "frontend.base: there is no 'encodec'"),
        ({"base": {"kind": "mulaw", "bit": 8}}, r"did you mean frontend.base.bits\?"),
        ({"base": {"kind": "mulaw", "bits": 99}}, "^frontend.base.bits: must be from 2 to 16"),
        ({"base": {"num_features": 500}}, "^frontend.base.num_features: 500 bands .* frontend.base.hop_length"),
        ({"base": {"num_codebooks": 2}}, "frontend.base.num_codebooks: must be 1"),
        ({"base": 3}, "frontend.base: expected"),
        ({"num_merges": 0}, "frontend.num_merges: must be"),
        ({"longest": 1}, "frontend.longest: must be"),
        ({"num_merges": 65536, "longest": 65536}, "frontend.longest: must be from 2 to 256 frames"),
        ({"fit_frames": 0}, "frontend.fit_frames: must be"),
    ],
)
def test_bad_settings_name_their_key(settings, message):
    """Guards against a message that names `frontend.bits`, which is no setting of this front-end."""
    with pytest.raises(ConfigError, match=message):
        load_frontend("bpe", **settings)


def test_the_rate_of_the_folder_reaches_the_base(tmp_path):
    """Guards against 8 kHz recordings that are upsampled to the base's default rate."""
    folder = folder_of_notes(tmp_path / "notes", [4000] * 6)
    base = {name: value for name, value in tiny_settings("bpe")["base"].items() if name != "sample_rate"}
    encoded = encode_folder(folder, tmp_path / "out", "bpe", base=base, num_merges=4)
    assert encoded.spec.sample_rate == encoded.frontend.base.spec.sample_rate == 8000
    with pytest.raises(ConfigError, match="frontend.base: there is no 3"):
        BPE.at_rate({"base": 3}, 8000)
    set_by_hand = BPE.at_rate({"base": {"kind": "mulaw", "sample_rate": 4000}}, 8000)
    assert set_by_hand == {"base": {"kind": "mulaw", "sample_rate": 4000}}


def test_fewer_merges_can_be_asked_for(frontend, tmp_path):
    """Guards against fewer merges that are not the first ones, and settings that contradict the saved weights."""
    save_frontend(frontend, tmp_path)
    fewer = load_frontend(tmp_path, num_merges=2)
    assert fewer.spec.codebook_size == frontend.spec.codebook_size - 2
    assert torch.equal(fewer.merges, frontend.merges[:2])
    wav = sound(1, 3000)[None]
    assert torch.equal(fewer.expand(fewer.encode(wav)[0]), frontend.expand(frontend.encode(wav)[0]))
    assert load_frontend(tmp_path, base={"griffin_lim_iterations": 1}).base.mel.config.griffin_lim_iterations == 1
    for settings, message in (
        ({"num_merges": 5}, "is more than the saved weights have"),
        ({"longest": 4}, "frontend.longest.* 8, not 4"),
        ({"base": {"codebook_size": 4}}, "frontend.base.codebook_size.* 8, not 4"),
        ({"base": "mulaw"}, "frontend.base.kind.*'melvq', not 'mulaw'"),
        ({"base": {"kind": "mulaw"}}, "frontend.base.kind.*'melvq', not 'mulaw'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_frontend(tmp_path, **settings)


@pytest.mark.parametrize(
    "merges",
    [
        [[0, 1], [8, 8], [9, 9], [10, 10]],  # 16 frames, and 2^M in general: all memory for one code
        [[0, 1], [9, 0], [8, 8], [0, 0]],  # made of itself
        [[0, 1], [-1, 0], [8, 8], [0, 0]],
    ],
)
def test_merges_of_a_stranger_can_at_worst_fail_to_load(frontend, tmp_path, merges):
    """Guards against untrusted merges that crash or exhaust memory instead of being refused."""
    save_frontend(frontend, tmp_path)
    path = tmp_path / "frontend.safetensors"
    tensors = {**safetensors.torch.load_file(path), "merges": torch.tensor(merges)}
    path.write_bytes(safetensors.torch.save(tensors, {"sha256": hash_tensors(tensors)}))
    with pytest.raises(RunError, match="frontend.safetensors: .* code"):
        load_frontend(tmp_path)


# ---- cache and sequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("bpe") / "notes", [4000, 1500, 801, 2200, 3000, 4000])


def test_the_cache_holds_codes_and_gives_back_lengths(folder, tmp_path, frontend):
    """Guards against counting frames as codes, and a file that decodes to more sound than it had."""
    cache = EncodedCache.build(folder, frontend, tmp_path / "cache")
    opened = EncodedCache.open(tmp_path / "cache", frontend, scan(folder))
    assert opened.spec == frontend.spec
    for i, file in enumerate(cache.files):
        codes = cache.codes(i)
        assert file.num_frames == codes.shape[1] < math.ceil(file.num_samples / HOP)
        assert cache.decode(i).shape == (1, file.num_samples)
        assert int(frontend.frame_lengths(codes[None]).sum()) == math.ceil(file.num_samples / HOP) * HOP


def test_a_file_of_one_code_does_not_upset_the_cache(tmp_path, merged_samples):
    """Guards against a cache that is rebuilt at each run because a file with a single code is missing from it."""
    for i, codes in enumerate(([0, 1] * 40, [2, 2, 3] * 30, [0, 1, 0, 1])):
        write_wav(tmp_path / "sound" / f"{i}.wav", samples_of(merged_samples, codes)[0, 0].numpy(), RATE)
    index = scan(tmp_path / "sound")
    cache = EncodedCache.build(index, merged_samples, tmp_path / "cache")
    assert [file.num_frames for file in cache.files] == [20, 60, 1]
    EncodedCache.open(tmp_path / "cache", merged_samples, index)
    assert Sequences(cache, split(index, 0.5).train + split(index, 0.5).held_out).left_out == ["2.wav"]


def test_a_file_is_cut_by_time(tmp_path, merged_samples):
    """Guards against splitting a single file by number of codes: half of the codes are not half of the sound."""
    quiet, busy = [0, 1] * 400, [3, 0, 2, 1] * 200  # 200 codes and 800 codes of 800 samples
    write_wav(tmp_path / "sound" / "one.wav", samples_of(merged_samples, quiet + busy)[0, 0].numpy(), RATE)
    cache = EncodedCache.build(tmp_path / "sound", merged_samples, tmp_path / "cache")
    file = cache.index.files[0]
    first, second, middle = (Sequences(cache, [Part(file, *ends)])[0] for ends in ((0, 0.5), (0.5, 1), (0.251, 0.6)))
    assert (first.shape[1], second.shape[1]) == (200, 800)
    assert torch.equal(merged_samples.expand(second)[0], torch.tensor(busy))
    # [401.6, 960) of 1600 samples: the code from 400 on is cut by the border, and left out.
    assert middle.shape[1] == 99 + 160 and merged_samples.seconds([middle]) == (396 + 160) / RATE


def test_the_gap_in_one_file_is_as_long_as_the_model_can_hear(tmp_path):
    """Guards against a gap that counts one frame per code, although a code lasts up to `longest` frames."""
    place = folder_of_notes(tmp_path / "one", [40_000])
    run = train(
        place,
        tmp_path / "run",
        "bpe",
        "mlp",
        steps=2,
        overrides=[
            *TINY,
            "backbone.dim=8",
            "backbone.context=5",
            "backbone.hidden_dim=8",
            "training.crop_frames=8",
            "training.sample_seconds=0.1",
        ],
    )
    sides = run.split()
    gap = (sides.held_out[0].start - sides.train[0].stop) * 40_000
    assert gap == pytest.approx(5 * 8 * HOP)
    assert run.model.receptive_frames == 5 and run.model.receptive_seconds is None


def test_a_file_of_codes_is_decoded_item_by_item(tmp_path, merged_samples):
    """Guards against silence at the end of shorter items."""
    np.save(tmp_path / "codes.npy", np.array([[[6, 6, 3]], [[5, 7, 7]]]))
    written = decode_file(tmp_path / "codes.npy", merged_samples, tmp_path / "out")
    assert [path.stat().st_size for path in written] == [44 + 2 * 9, 44 + 2 * 2]


def test_doctor_looks_at_a_cache_of_any_rate(folder, tmp_path, frontend):
    """Guards against dividing by a frame rate that does not exist; a crop lasts as long as its codes do on average."""
    cache = EncodedCache.build(folder, frontend, tmp_path / "cache")
    console = Console(file=io.StringIO(), width=200)
    check_folder(console, tmp_path / "cache")
    mean = cache.index.seconds / len(cache.data)
    assert f"{256 * mean:.2f} s; every file is shorter" in console.file.getvalue()


# ---- likelihood


def test_bits_per_second_are_those_of_the_sound(merged_samples):
    """Guards against a duration that is guessed from the number of codes."""
    spec = merged_samples.spec
    model = tiny_model(spec, "bigram", "parallel", dim=8)
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    sequences = [torch.tensor([[6, 6, 6, 5]]), torch.tensor([[3, 7, 7, 7]])]  # 14 samples, and 1 with holes behind
    found = held_out_score(model, sequences, merged_samples.seconds(sequences))
    assert found.seconds == 15 / RATE and found.per_sample is None
    assert found.loss == pytest.approx(math.log2(7))
    assert found.per_second == pytest.approx(5 * math.log2(7) * RATE / 15)
    with pytest.raises(ValueError, match="seconds"):
        score(spec, [])


def test_the_report_stands_beside_plain_codes(folder, tmp_path):
    """Guards against baselines of the unmerged codes that differ from those of the base front-end alone."""
    overrides = [*SMALL, "data.held_out=0.3"]
    run = train(folder, tmp_path / "run", "bpe", "gpt", steps=3, overrides=overrides)
    cache = EncodedCache.open(tmp_path / "run" / "cache")
    sides = run.split()
    training, held_out = Sequences(cache, sides.train), Sequences(cache, sides.held_out)
    found = report(run, held_out, training, [])
    plain = EncodedCache.build(folder, run.frontend.base, tmp_path / "plain")
    counted = baselines(plain.spec, Sequences(plain, sides.train), Sequences(plain, sides.held_out))
    assert found["base_bits_per_second"] == pytest.approx({name: loss * RATE / HOP for name, loss in counted.items()})
    seconds = sum(math.ceil(part.file.num_samples / HOP) * HOP for part in sides.held_out) / RATE
    assert found["seconds"] == pytest.approx(seconds)
    num_codes = int(held_out.num_frames.sum())
    assert found["bits_per_second"] == pytest.approx(found["loss"] * num_codes / seconds)
    unigram = found["baselines"]["unigram"]
    assert unigram["bits_per_second"] == pytest.approx(unigram["loss"] * num_codes / seconds)
    assert any("before merging" in name for name, _ in report_rows(found))
    assert "bigram of the codes before merging" in figures_table(read_folder(tmp_path / "run"))


# ---- generation


class Lengths:
    """Codes 0 to 6, whose number is their length; the hole has no length."""

    def __call__(self, x):
        return torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])[x[:, 0]]


@pytest.mark.parametrize("prompt", [None, [3, 3, 1]])
def test_an_item_ends_with_the_code_that_reaches_the_length(merged_samples, prompt):
    """Guards against one code too many or too few, other draws than those of `generate`, and an item that depends on
    the length of the others (contract 6)."""
    model = tiny_model(merged_samples.spec, "gpt", "parallel", window=32)
    prompt = None if prompt is None else torch.tensor(prompt)[None, None]
    seeds, total = [5, 6, 7, 8], 40
    until = Until(total, Lengths())
    made = generate(model, 60, Request(prompt, seeds=seeds, until=until))
    together, plain = made.x, generate(model, 60, Request(prompt, seeds=seeds)).x
    for item, seed in enumerate(seeds):
        ends = Lengths()(plain[item : item + 1])[0].cumsum(0)
        needed = int((ends < total).sum()) + 1
        codes = together[item, 0].tolist()
        assert codes[:needed] == plain[item, 0, :needed].tolist()
        assert set(codes[needed:]) <= {7}
        assert made.lengths[item] == needed
        alone = generate(model, 60, Request(prompt, seeds=[seed], until=until)).x
        assert alone[0, 0].tolist() == codes[:needed]
    assert (together != 7).any(dim=(0, 1)).all(), "and it stops once the last one is there"


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Return a run whose model has large weights and is in float64, so that rounding changes no draw."""
    made = train(folder, tmp_path_factory.mktemp("made") / "run", "bpe", "gpt", steps=4, overrides=SMALL)
    made.model = lively(made.model).double()
    return made


@pytest.mark.parametrize("seconds", [0.25, 0.01005, 0.00001])
@pytest.mark.parametrize("prompt", [None, 1, 3 * HOP + 5])
def test_generate_gives_the_length_it_is_asked_for(run, seconds, prompt):
    """Guards against a wav that is as long as its codes happen to be."""
    given = None if prompt is None else sound(0, prompt)
    wav = run.generate(seconds=seconds, num=3, seed=0, prompt=given)
    assert wav.shape == (3, 1, max(1, round(seconds * RATE)) + (prompt or 0))
    assert wav.isfinite().all()


def test_an_item_sounds_as_it_would_alone(run):
    """Guards against a longer item adding frames to a shorter one, which Griffin-Lim would spread over its whole sound
    (contract 6)."""
    wavs = run.generate(seconds=0.3, num=5, seed=3)
    assert len({tuple(wav.flatten().tolist()) for wav in wavs}) == 5
    for item in range(5):
        alone = run.generate(seconds=0.3, seeds=[3 + item])
        torch.testing.assert_close(alone[0], wavs[item], rtol=0, atol=1e-5)


def test_generation_stops_when_the_sound_is_there(run):
    """Guards against always drawing as many steps as the shortest codes would need."""
    steps = []
    hook = run.model.backbone.register_forward_hook(lambda *_: steps.append(1))
    run.generate(seconds=2.0, num=1, seed=0)
    hook.remove()
    assert len(steps) < 2.0 * RATE / HOP


def test_generate_goes_on_from_the_prompt(run):
    """Guards against a prompt that is ignored, or encoded by the base without merging."""
    prompt = sound(1, 20 * HOP)
    given = run.frontend.encode(prompt[None])
    seen = []
    hook = run.model.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    wav = run.generate(seconds=0.1, seed=1, prompt=prompt)
    hook.remove()
    assert any(torch.equal(x, given) for x in seen)
    assert not torch.equal(run.generate(seconds=0.1, seed=1, prompt=sound(3, 20 * HOP)), wav)


def test_a_run_folder_is_enough(run, folder, tmp_path):
    """Guards against merges that are not saved, resuming that learns other merges, and another sound after loading."""
    loaded = load_run(run.folder)
    assert loaded.frontend.fingerprint() == run.frontend.fingerprint()
    assert loaded.frontend.base is not None and loaded.config.frontend == run.frontend.config
    first = train(folder, tmp_path / "run", "bpe", "gpt", steps=4, overrides=SMALL)
    again = train(folder, tmp_path / "run", steps=6, resume=True)
    whole = train(folder, tmp_path / "whole", "bpe", "gpt", steps=6, overrides=SMALL)
    assert first.frontend.fingerprint() == again.frontend.fingerprint() == whole.frontend.fingerprint()
    assert again.frontend.merges.tolist() != np.zeros((4, 2)).tolist()
    options = {"seconds": 0.2, "seed": 0, "sampling": Sampling(0.8)}
    assert torch.equal(load_run(tmp_path / "run").generate(**options), again.generate(**options))
    assert sha256_file(tmp_path / "run" / "frontend.safetensors") == sha256_file(run.folder / "frontend.safetensors")


def test_a_model_needs_no_rate(merged_samples):
    """Guards against a model that can't be built from a spec without a frame rate."""
    model = tiny_model(merged_samples.spec, "wavenet", "parallel")
    assert isinstance(model, SequenceModel) and model.receptive_seconds is None
    assert model.spec.frame_rate is None and model.spec.bitrate is None
