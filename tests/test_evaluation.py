"""The yardstick: likelihood, counting, and how close a round trip comes, each against an oracle of its own."""

import json
import logging
import math
import shutil
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
from corpus import folder_of_notes, note, tiny_frontend, tiny_settings
from folders import noise, write_wav
from scipy.stats import multivariate_normal
from tiny import FRAMES, SPEC_CASES, TOKENS, random_input, tiny_model

from audiogen.audio.io import read_audio
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.errors import CacheError, DataError
from audiogen.evaluation import likelihood, wording
from audiogen.evaluation import ngram as counting
from audiogen.evaluation.gaussian import gaussian_baselines
from audiogen.evaluation.likelihood import FileLikelihood, file_likelihoods
from audiogen.evaluation.ngram import Bigram, Unigram, held_out_counts
from audiogen.evaluation.reconstruction import mel_distance, si_sdr
from audiogen.evaluation.report import evaluate_folder, round_trip
from audiogen.evaluation.scores import baselines, held_out_score, score
from audiogen.evaluation.wording import in_words, report_rows, verdict
from audiogen.frontends import load_frontend
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.runs.event_log import read_metrics
from audiogen.runs.run import load_run
from audiogen.spec import FrameSpec, TokenSpec

LENGTHS = [5, 1, 17, 17, 40, 3]


def sequences_of(spec, lengths, device="cpu"):
    return [random_input(spec, 1, length, device)[0] for length in lengths]


# ---- likelihood


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
@torch.no_grad()
def test_padded_batches_equal_one_file_at_a_time(device, spec, pattern, kind):
    """Guards against padding that is scored, files that change each other's likelihood by being neighbours, and results
    in another order than the files."""
    model = tiny_model(spec, kind, pattern).to(device)
    sequences = sequences_of(spec, LENGTHS)
    found = list(file_likelihoods(model, sequences, exact=False))
    for x, result in zip(sequences, found, strict=True):
        total, entries = model.nll(Batch(x[None].to(device)))
        assert result.nats == pytest.approx(float(total), abs=1e-9)
        assert (result.entries, result.frames) == (entries, x.shape[1])
    assert sum(result.entries for result in found) == sum(LENGTHS) * spec.num_rows


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
@torch.no_grad()
def test_long_files_go_through_in_chunks(monkeypatch, spec, pattern, kind):
    """Guards against memory that grows with the longest file, and chunks that begin without what came before them."""
    model = tiny_model(spec, kind, pattern)
    sequences = sequences_of(spec, [90, 4, 200, 7])
    expected = [result.nats for result in file_likelihoods(model, sequences)]
    monkeypatch.setattr(likelihood, "BATCH_STEPS", 16)
    widths = []
    model.backbone.register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[:2].numel()))
    found = [result.nats for result in file_likelihoods(model, sequences)]
    assert found == pytest.approx(expected, abs=1e-9)
    assert max(widths) <= 16
    assert len(widths) < sum([90, 4, 200, 7])  # in chunks, not step by step


@torch.no_grad()
def test_many_choices_mean_shorter_chunks(monkeypatch):
    """Guards against gigabytes of probabilities: 8 codebooks of 1024 codes make 8192 numbers a step."""
    model = tiny_model(TokenSpec(8000, 80, 4, 100), "bigram", "parallel")
    monkeypatch.setattr(likelihood, "BATCH_PROBABILITIES", 4000)
    sizes, logits = [], model.head.logits
    monkeypatch.setattr(model.head, "logits", lambda h: sizes.append((y := logits(h)).numel()) or y)
    list(file_likelihoods(model, sequences_of(model.spec, [64, 3, 5])))
    assert sizes and max(sizes) <= 4000


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_scoring_and_as_before_afterwards(training):
    """Guards against a held-out loss with dropout, a training that goes on without it, and a graph that nobody
    needs."""
    model = tiny_model(TOKENS, "gpt", "delay", dropout=0.5).train(training)
    sequences = sequences_of(TOKENS, LENGTHS)
    first = [result.nats for result in file_likelihoods(model, sequences)]
    assert [result.nats for result in file_likelihoods(model, sequences)] == first
    assert model.training is training
    results = file_likelihoods(model, sequences)
    next(results)
    results.close()
    assert model.training is training


def test_scoring_leaves_the_random_numbers_alone():
    """Guards against an evaluation that changes what is learned after it."""
    model, sequences = tiny_model(TOKENS, "gpt", "delay", dropout=0.5).train(), sequences_of(TOKENS, [4])
    before = torch.get_rng_state()
    list(file_likelihoods(model, sequences))
    assert torch.equal(torch.get_rng_state(), before)


# ---- the arithmetic of bits


def test_bits_per_second_and_per_sample():
    """Guards against nats called bits, K forgotten, a mean over files instead of codes, and a rate that was rounded."""
    nats = [FileLikelihood(30 * math.log(2), 10, 10), FileLikelihood(300 * math.log(2), 200, 200)]
    mulaw = score(TokenSpec(8000, 1, 1, 256), nats)
    assert (mulaw.unit, mulaw.files) == ("bits", 2)
    assert mulaw.loss == mulaw.per_sample == pytest.approx(330 / 210)
    assert mulaw.per_second == pytest.approx(330 / 210 * 8000)
    assert mulaw.seconds == pytest.approx(210 / 8000)

    codes = score(TokenSpec(22050, 320, 4, 512), [FileLikelihood(600 * math.log(2), 400, 100)])
    assert codes.loss == pytest.approx(1.5)  # of a code
    assert codes.per_second == pytest.approx(1.5 * 4 * 22050 / 320)
    assert codes.per_sample is None

    frames = score(FrameSpec(8000, 80, 40), [FileLikelihood(-50.0, 100, 100)])
    assert (frames.unit, frames.loss, frames.per_sample) == ("nats", -0.5, None)
    assert frames.per_second == pytest.approx(-50.0)
    assert score(TokenSpec(8000, 1, 3, 256), [FileLikelihood(1.0, 3, 1)]).per_sample is None  # three codes a sample


def test_a_uniform_model_scores_log2_v():
    """Guards against any factor between the model's loss and what is reported of it."""
    spec = TokenSpec(8000, 80, 3, 7)
    model = tiny_model(spec, "bigram", "delay")
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    found = held_out_score(model, sequences_of(spec, LENGTHS))
    assert found.loss == pytest.approx(math.log2(7), abs=1e-9)
    assert found.per_second == pytest.approx(spec.bitrate)


# ---- counting


def slow_unigram(training, size):
    counts = Counter(code for codes in training for code in codes)
    total = sum(counts.values()) + size
    return [(counts[code] + 1) / total for code in range(size)]


def slow_bigram(training, size, strength):
    prior = slow_unigram(training, size)
    pairs = Counter(pair for codes in training for pair in zip(codes, codes[1:], strict=False))
    rows = Counter(codes[i] for codes in training for i in range(len(codes) - 1))
    return [[(pairs[a, b] + strength * prior[b]) / (rows[a] + strength) for b in range(size)] for a in range(size)]


def slow_strength(training, size):
    """Each pair in turn is left out of the counts and predicted from the rest."""
    prior = slow_unigram(training, size)
    pairs = [pair for codes in training for pair in zip(codes, codes[1:], strict=False)]

    def loss(strength):
        total = 0.0
        for i, (a, b) in enumerate(pairs):
            rest = pairs[:i] + pairs[i + 1 :]
            seen, row = sum(pair == (a, b) for pair in rest), sum(pair[0] == a for pair in rest)
            total -= math.log((seen + strength * prior[b]) / (row + strength))
        return total

    return min((2.0**power for power in range(-4, 14)), key=loss)


def walk(generator, rows, length, size=6):
    moves = generator.choice([0, 1, 1, 1, 2], size=(rows, length))
    return np.cumsum(moves, axis=1) % size


def test_counting_models_equal_slow_loops():
    """Guards against pairs counted across the seam of two files, a row and a column swapped, a smoothing that sees the
    held-out codes, codebooks that share their counts, and a first code that nobody predicts."""
    generator = np.random.default_rng(3)
    training = [walk(generator, 2, length) for length in (30, 2, 11)]
    held_out = [walk(generator, 2, length) for length in (9, 2)]
    nats, codes = Counter(), 0
    for row in range(2):
        seen = [x[row].tolist() for x in training]
        strength = slow_strength(seen, 6)
        unigram, bigram = slow_unigram(seen, 6), slow_bigram(seen, 6, strength)

        model = Bigram(6)
        for x in seen:
            model.add(np.array(x))
        assert model.strength() == strength
        np.testing.assert_allclose(model.unigram.probabilities(), unigram, rtol=1e-12)
        np.testing.assert_allclose(model.probabilities(), bigram, rtol=1e-12)
        np.testing.assert_allclose(model.probabilities().sum(axis=1), 1, rtol=1e-12)
        for x in held_out:
            x = x[row].tolist()
            codes += len(x)
            nats["unigram"] -= sum(math.log(unigram[code]) for code in x)
            nats["bigram"] -= math.log(unigram[x[0]]) + sum(
                math.log(bigram[a][b]) for a, b in zip(x, x[1:], strict=False)
            )
    found = held_out_counts([torch.from_numpy(x) for x in training], [torch.from_numpy(x) for x in held_out], 2, 6)
    for name in ("unigram", "bigram"):
        assert found[name] == pytest.approx(nats[name] / codes / math.log(2), rel=1e-12)


def test_counting_learns_what_it_can():
    """Guards against a smoothing that drowns what was counted: of three moves, one as likely as the others together, a
    bigram needs little more than their entropy, a unigram all of log2(6)."""
    generator = np.random.default_rng(0)
    training, held_out = [walk(generator, 1, 20_000)], [walk(generator, 1, 20_000)]
    entropy = -sum(p * math.log2(p) for p in (0.2, 0.6, 0.2))
    found = held_out_counts(training, held_out, 1, 6)
    assert entropy - 0.02 < found["bigram"] < entropy + 0.02
    assert found["unigram"] == pytest.approx(math.log2(6), abs=0.01)
    # Of an unseen code little is lost, and nothing is impossible.
    rare = held_out_counts(training, [np.full((1, 5), 6)], 1, 8)
    assert all(math.isfinite(value) for value in rare.values())


def test_baselines_of_densities_and_of_large_codebooks(monkeypatch):
    """Guards against bits said of a density, and a table of 65536 x 65536 counts."""
    frames = [random_input(FRAMES, 1, 30)[0] for _ in range(3)]
    assert list(baselines(FRAMES, frames, frames)) == ["gaussian", "autoregression"]
    x = [torch.randint(7, (3, 20))]
    found = baselines(TOKENS, x, x)
    assert list(found) == ["uniform", "unigram", "bigram"]
    assert found["uniform"] == pytest.approx(math.log2(7))
    monkeypatch.setattr(counting, "LARGEST_TABLE", 6)
    assert baselines(TOKENS, x, x) == {"uniform": found["uniform"], "unigram": found["unigram"]}
    monkeypatch.setattr(counting, "LARGEST_TABLE", 4096)
    codes = [np.random.default_rng(0).integers(65536, size=(1, 100))]
    assert set(baselines(TokenSpec(8000, 1, 1, 65536), codes, codes)) == {"uniform", "unigram"}
    assert Unigram(3).probabilities().tolist() == [1 / 3] * 3


def test_gaussian_baselines_are_those_of_scipy():
    """Guards against a covariance without the floor, a first frame that is forgotten, and rows and columns swapped."""
    generator = torch.Generator().manual_seed(0)
    turn = 0.9 * torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    x = torch.zeros(3, 2000, dtype=torch.float64)
    for t in range(1, 2000):
        x[:, t] = turn @ x[:, t - 1] + 0.3 * torch.randn(3, generator=generator, dtype=torch.float64)
    found = gaussian_baselines([x[:, :1000], x[:, 1000:]], [x])
    covariance = np.cov(x.numpy(), bias=True) + 0.02**2 * np.eye(3)
    expected = -multivariate_normal(x.mean(1).numpy(), covariance).logpdf(x.T.numpy()).mean()
    assert found["gaussian"] == pytest.approx(expected, rel=1e-6)
    noise = -multivariate_normal(np.zeros(3), 0.09 * np.eye(3)).logpdf((x[:, 1:] - turn @ x[:, :-1]).T.numpy()).mean()
    assert found["autoregression"] == pytest.approx(noise, abs=0.06)  # the ridge costs a little


def test_few_frames_do_not_overfit_the_autoregression():
    """Guards against a regression on more features than frames: it must stay near predicting the frame before."""
    x = random_input(FrameSpec(8000, 80, 40), 1, 20, torch.device("cpu"))[0].cumsum(1)
    other = random_input(FrameSpec(8000, 80, 40), 1, 400, torch.device("cpu"))[0].cumsum(1)
    assert math.isfinite(gaussian_baselines([x], [other])["autoregression"])


# ---- round trips


def test_si_sdr_is_the_closed_form():
    """Guards against a power taken for an amplitude, a scale that matters, a mean that is left in, and the two
    swapped."""
    t = torch.arange(1000) / 1000
    signal, noise = torch.sin(2 * math.pi * 5 * t), torch.sin(2 * math.pi * 7 * t)  # orthogonal, mean-free
    for level in (1.0, 0.1, 1e-3):
        expected = -20 * math.log10(level)
        assert si_sdr(signal, signal + level * noise) == pytest.approx(expected, abs=1e-3)
        assert si_sdr(signal, 0.3 * (signal + level * noise)) == pytest.approx(expected, abs=1e-3)
        assert si_sdr(signal, -(signal + level * noise)) == pytest.approx(expected, abs=1e-3)
        assert si_sdr(0.2 * signal + 0.5, signal + level * noise - 0.1) == pytest.approx(expected, abs=1e-3)
    assert si_sdr(signal, noise) < -60
    assert si_sdr(signal, 0.5 * signal) == math.inf
    assert math.isnan(si_sdr(torch.zeros(10), torch.randn(10)))
    x, y = torch.randn(1, 500), torch.randn(1, 500)
    assert si_sdr(x, y) == pytest.approx(si_sdr(x[None], y[None]))


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
def test_mel_distance_has_its_known_properties(rate, recwarn):
    """Guards against a distance that is not 0 for the same sound, that ignores decades, and bands of no
    frequency."""
    wav = 0.3 * torch.randn(1, rate // 2)
    assert mel_distance(wav, wav, rate) == 0
    assert mel_distance(wav, 0.1 * wav, rate) == pytest.approx(1, abs=0.01)  # a tenth is a decade
    assert mel_distance(wav, -wav, rate) == pytest.approx(0, abs=1e-6)
    other = 0.3 * torch.randn(1, rate // 2)
    near, far = mel_distance(wav, wav + 0.1 * other, rate), mel_distance(wav, wav + 0.4 * other, rate)
    assert 0 < near < far < mel_distance(wav, torch.zeros_like(wav), rate)
    assert mel_distance(wav, other, rate) == mel_distance(other, wav, rate)
    assert mel_distance(torch.zeros(1, 10), torch.zeros(1, 10), rate) == 0  # shorter than any window
    assert [str(warning.message) for warning in recwarn] == []


def test_round_trip_of_an_exact_front_end():
    """Guards against the two sounds compared at different places: mu-law at 16 bits gives back what it was given."""
    sound = [("a", torch.from_numpy(note(0, 4000)).float()[None]), ("b", torch.from_numpy(note(1, 801)).float()[None])]
    fine, coarse = (round_trip(load_frontend("mulaw", sample_rate=8000, bits=bits), sound) for bits in (16, 4))
    assert fine["mel_distance"] < 0.001 and fine["si_sdr"] > 60
    assert coarse["mel_distance"] > 0.05 and 5 < coarse["si_sdr"] < 25
    assert round_trip(tiny_frontend("melvq"), sound)["mel_distance"] > 0.05
    assert round_trip(tiny_frontend("melvq"), []) is None
    json.dumps(round_trip(tiny_frontend("mel"), [("silence", torch.zeros(1, 800))]), allow_nan=False)


# ---- a folder


def start(corpus, out, kind="mulaw", backbone="bigram", *overrides):
    return train(
        corpus,
        out,
        kind,
        backbone,
        steps=6,
        overrides=[
            "training.crop_frames=32",
            "training.batch_size=2",
            "training.evaluations=1",
            "training.sample_seconds=0.02",
            "backbone.dim=8",
            "data.held_out=0.25",
            *overrides,
            *(f"frontend.{name}={value}" for name, value in tiny_settings(kind).items()),
        ],
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("corpus"), [2000, 1500, 2500, 1800, 2200, 900, 1000, 3000])


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return start(corpus, tmp_path_factory.mktemp("run") / "run")


def held_out_files(run, folder):
    return [folder / part.file.path for part in run.split().held_out]


def test_only_files_that_were_not_trained_on_are_scored(run, corpus):
    """Guards against a score on training files, which would make every model look good."""
    found = evaluate_folder(run, corpus)
    assert (found["files"], found["seen"]) == (2, 6)
    wanted = {part.file.path: part.seconds for part in run.split().held_out}
    assert found["seconds"] == pytest.approx(sum(wanted.values()))
    final = [event for event in read_metrics(run.folder) if event["event"] == "final"][-1]
    same_as_in_training = {**found, "event": "final"}
    assert {**final, "seen": 6} == same_as_in_training
    assert set(found["baselines"]) == {"uniform", "unigram", "bigram"}
    for loss in found["baselines"].values():
        assert loss["bits_per_second"] == pytest.approx(loss["loss"] * 8000)
    assert found["bits_per_sample"] == found["loss"] and found["bits_per_second"] == pytest.approx(found["loss"] * 8000)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_loss_is_that_of_the_files(run, corpus):
    """Guards against a score of other codes than those of the files, by way of the cache or of the split."""
    total = entries = 0
    with torch.no_grad():
        for path in held_out_files(run, corpus):
            nats, count = run.model.nll(Batch(run.frontend.encode(read_audio(path, 8000)[None])))
            total, entries = total + float(nats), entries + count
    assert evaluate_folder(run, corpus)["loss"] == pytest.approx(total / entries / math.log(2), rel=1e-6)


def test_files_are_known_by_their_content(run, corpus, tmp_path, caplog):
    """Guards against a training file that is scored because someone renamed it, and a held-out one that is looked for
    under the name it used to have. What can't be read is told of."""
    for path in corpus.iterdir():
        (tmp_path / "deep").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "deep" / f"renamed-{path.name}")
    folder_of_notes(tmp_path / "new", [1200], seed=77)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with caplog.at_level(logging.WARNING, logger="audiogen"):
        found = evaluate_folder(run, tmp_path)
    assert (found["files"], found["seen"]) == (3, 6)
    assert found["round_trip"] is not None
    assert "broken.wav" in caplog.text


def test_a_folder_of_training_files_alone_is_refused(run, corpus, tmp_path):
    """Guards against a division by nothing, or worse, a score."""
    for part in run.split().train[:3]:
        shutil.copy(corpus / part.file.path, tmp_path)
    with pytest.raises(DataError, match="the model was trained on every file in it; evaluate on others"):
        evaluate_folder(run, tmp_path)


def test_a_cache_is_scored_as_its_folder(run, corpus, tmp_path):
    """Guards against a cache whose files count as unseen, and one of another front-end that is scored all the same."""
    tokenize(corpus, tmp_path / "cache", str(run.folder))
    folder, cached = evaluate_folder(run, corpus), evaluate_folder(run, tmp_path / "cache")
    assert cached == {**folder, "round_trip": None}
    tokenize(corpus, tmp_path / "other", "mulaw", overrides=["frontend.bits=3"])
    with pytest.raises(CacheError, match="another front-end"):
        evaluate_folder(run, tmp_path / "other")


def test_without_its_training_codes_a_run_is_scored_without_counting(run, corpus, tmp_path):
    """Guards against counts taken from the held-out codes themselves for want of others."""
    copy = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(copy / "cache")
    found = evaluate_folder(load_run(copy), corpus)
    assert found["baselines"] is None
    assert found["loss"] == evaluate_folder(run, corpus)["loss"]


def test_of_one_long_file_the_held_out_end_is_scored(tmp_path):
    """Guards against a whole file scored of which nine tenths were trained on."""
    corpus = folder_of_notes(tmp_path / "corpus", [16000])
    run = start(corpus, tmp_path / "run")
    found = evaluate_folder(run, corpus)
    assert (found["files"], found["seen"]) == (1, 0)
    assert found["seconds"] == pytest.approx(0.25 * 2)


def test_a_density_is_told_in_nats_beside_nothing(tmp_path, corpus):
    """Guards against nats beside bits, as if one could be compared with the other."""
    run = start(corpus, tmp_path / "run", "mel", "mlp", "backbone.hidden_dim=8")
    found = evaluate_folder(run, corpus)
    assert found["unit"] == "nats"
    assert found["bits_per_second"] is found["bits_per_sample"] is None
    assert [one["bits_per_second"] for one in found["baselines"].values()] == [None, None]
    rows = dict(report_rows(found))
    assert next(iter(rows)) == "nats per frame"
    assert not [name for name in rows if "bit" in name or "counted" in name]
    assert rows["autoregression, fitted to the training frames"].endswith(" nats per frame")
    assert "linearly from the previous one" in in_words(found)
    events = read_metrics(run.folder)
    assert [event["bits_per_second"] for event in events if event["event"] == "held_out"] == [None]


def test_rows_for_people_say_what_was_found(run, corpus):
    """Guards against a table that leaves out the yardstick, or rounds it to something else."""
    found = evaluate_folder(run, corpus)
    rows = dict(report_rows(found))
    assert rows["bits per code"] == rows["bits per sample"] == f"{found['loss']:.3f}"
    assert rows["bits per second of audio"] == f"{found['bits_per_second']:.0f}"
    assert rows["uniform, counted on the training codes"].startswith("4.000 bits per code, 32000 bits per second")
    assert rows["held out"].startswith("2 files")
    assert rows["left out (used in training)"] == "6 files"


def test_the_verdict_compares_with_the_best_of_counting():
    """Guards against praise for beating a bigram that is worse than knowing nothing, as it is where pairs are rare."""
    assert "further back" in verdict(5.0, "bits", {"uniform": 8.0, "unigram": 7.0, "bigram": 6.0})
    rare = verdict(9.9, "bits", {"uniform": 10.0, "unigram": 9.95, "bigram": 10.5})
    assert "0.05 bits per code over the best count-based model (unigram)" in rare and "further back" not in rare
    blind = verdict(10.1, "bits", {"uniform": 10.0, "bigram": 10.5}, turned=True)
    assert (
        "does not yet beat the best count-based model (uniform)" in blind
        and "noise" in blind
        and "more recordings" in blind
    )
    better = verdict(9.9, "bits", {"uniform": 10.0, "unigram": 9.8, "bigram": 10.5})
    assert (
        "does not yet beat the best count-based model (unigram)" in better
        and "noise" not in better
        and "longer" in better
    )


def test_another_folder_is_not_explained_by_how_training_ended():
    """Guards against "more recordings will help" for files that the run was never meant for, and "292.7 out of 256"."""
    said = verdict(8.2, "bits", {"uniform": 8.0, "bigram": 7.0}, turned=True, elsewhere=True)
    assert said == (
        "On these files the model is as unsure as someone guessing among 294.1 codes, although there are only 256. It "
        "does not beat the best count-based model (bigram), nor even a uniform guess."
    )


def test_files_of_another_folder_are_compared_with_those_of_the_run(tmp_path):
    """Guards against a comparison with training files, with the wrong end of the ranking, and of other files."""
    corpus = folder_of_notes(tmp_path / "corpus", [2000, 1500, 2500, 1800, 2200, 900, 1000, 3000] * 2)
    run = start(corpus, tmp_path / "run", "mulaw", "bigram", "training.learning_rate=0.1")
    folder_of_notes(tmp_path / "alike", [2000, 1500, 2500, 1800, 2200, 3000], seed=32)
    for seed in range(6):
        write_wav(tmp_path / "noise" / f"{seed}.wav", noise(seed, 600), 8000)
        write_wav(tmp_path / "quiet" / f"{seed}.wav", 0.1 * note(100 + seed, 14_000, 4000), 4000)
    own = []
    with torch.no_grad():
        for path in held_out_files(run, corpus):
            nats, count = run.model.nll(Batch(run.frontend.encode(read_audio(path, 8000)[None])))
            own.append((float(nats) / count, float(nats), count))
    for name, kind in (("noise", "unlike"), ("quiet", "unlike"), ("alike", "as well as its own")):
        found = evaluate_folder(run, tmp_path / name)["likeness"]
        losses = []
        for path in sorted((tmp_path / name).iterdir()):
            with torch.no_grad():
                nats, count = run.model.nll(Batch(run.frontend.encode(read_audio(path, 8000)[None])))
            losses.append(float(nats) / count)
        assert found["own"]["files"] == len(own) == 4
        assert found["own"]["harder"] == sum(loss > max(own)[0] for loss in losses)
        expected = sum(nats for _, nats, _ in own) / sum(count for *_, count in own) / math.log(2)
        assert found["own"]["loss"] == pytest.approx(expected, rel=1e-6)
        trained = [part.file for part in run.split().train]
        assert found["seconds"][1] == statistics.median(file.duration for file in trained)
        assert found["narrow"] == (6 if name == "quiet" else 0)
        said = in_words({**evaluate_folder(run, tmp_path / name), "turned": True})
        assert f": {found['own']['harder']} of 6 are harder than 95% of its own 4 files" in said and kind in said
        assert ("up to 4000 Hz" in said and "dB quieter" in said and "much longer" in said) == (name == "quiet")
    assert "likeness" not in evaluate_folder(run, corpus)
    shutil.rmtree(run.folder / "cache")
    assert "own" not in evaluate_folder(run, tmp_path / "noise")["likeness"]


def test_a_verdict_on_frames_says_what_a_linear_prediction_has():
    """Guards against one that says nothing where the model has learned nothing."""
    counted = {"autoregression": -100.0}
    said = wording.verdict(-90.0, "nats", counted)
    assert said.startswith("-90.000 nats per frame (lower is better) on held-out")
    assert ", 10.00 worse than" in said and "train it longer" in said
    assert "train it longer" not in wording.verdict(-90.0, "nats", counted, elsewhere=True)
    assert ", 20.00 better than" in wording.verdict(-120.0, "nats", counted)
