"""Stages: each is conditioned on the codes of the one before, in training and in generation, and draws by itself."""

import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from corpus import folder_of_notes, tiny_frontend, tiny_settings
from tiny import tiny_backbone

from audiogen.audio.descriptors import timbre
from audiogen.audio.io import read_audio, write_audio
from audiogen.commands.plan import FLOW_GUIDANCE, STAGE_GUIDANCE, Flags, Plan
from audiogen.commands.samples import FileRequest, generate_files, stream_files
from audiogen.commands.stages import budget_share, own_settings, plan_stages
from audiogen.commands.train import train
from audiogen.data import Crops, EncodedCache, FileConditions, Labels, StageFrames, scan, split, stage_config
from audiogen.errors import ConfigError, DataError, RunError
from audiogen.evaluation.report import evaluate_folder
from audiogen.frontends import load_frontend
from audiogen.frontends.mel.melvq import MelVQ
from audiogen.generation.cascade import stage_seed
from audiogen.generation.generate import generate, stream
from audiogen.generation.request import Request
from audiogen.listen import write_page
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Codes, Conditioner, Frames
from audiogen.models.patterns import PATTERNS
from audiogen.models.sampling import Sampling
from audiogen.models.sequence_model import SequenceModel
from audiogen.models.stages import Alignment, Arriving
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import holds_run
from audiogen.runs.run import load_run
from audiogen.spec import FrameSpec, TokenSpec
from audiogen.testing import lively
from audiogen.utils.tensors import hash_tensors

RATE = 8000
FIRST = TokenSpec(RATE, 64, 1, 7)
#: (earlier, later): slower, faster, of equal and of unequal sample rates.
RATES = [(FIRST, TokenSpec(RATE, 200, 2, 5)), (TokenSpec(16000, 320, 1, 9), FrameSpec(44100, 2048, 6))]
RATES += [(FrameSpec(RATE, 400, 3), TokenSpec(11025, 64, 1, 4)), (FIRST, FIRST)]


# ---- which frames belong to which


@pytest.mark.parametrize("earlier, later", RATES)
def test_frames_are_aligned_exactly(earlier, later):
    """Guards against a rule that rounds, drifts over an hour, leaves out a code, or looks ahead."""
    alignment = Alignment(earlier, later)
    rate, own = Fraction(earlier.sample_rate, earlier.hop_length), Fraction(later.sample_rate, later.hop_length)
    hour = int(3600 * own)
    for begin in (0, hour):
        frames = torch.arange(begin, begin + 60)
        found = alignment.frames(frames)
        assert found.shape == (60, alignment.per_frame)
        for frame, row in zip(frames.tolist(), found.tolist(), strict=True):
            parts = [(frame + Fraction(part, len(row))) / own for part in range(len(row))]  # in seconds
            assert row == [math.floor(time * rate) for time in parts]
            assert Fraction(row[-1]) / rate < Fraction(frame + 1) / own  # it has begun when the frame ends
            assert alignment.num_needed(frame + 1) == row[-1] + 1
        flat = found.flatten().tolist()
        assert set(flat) == set(range(flat[0], flat[-1] + 1))
    assert alignment.num_needed(0) == 0
    assert alignment.num_values == alignment.per_frame * earlier.num_channels


def test_the_config_of_the_condition_follows_from_the_specs():
    """Guards against codes whose embeddings are too few, or frames that are taken for codes."""
    assert stage_config(*RATES[0]) == Codes.Config(4, 7)
    assert stage_config(*RATES[2]) == Frames.Config(3)
    with pytest.raises(ConfigError, match="constant frame rate"):
        stage_config(TokenSpec(RATE, None, 1, 7), FIRST)


# ---- training


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """The same short files, encoded by both stages."""
    place = tmp_path_factory.mktemp("encoded")
    index = scan(folder_of_notes(place / "sound", [700, 2000, 900, 1500, 1200, 650]), progress=False)
    fronts = load_frontend("mel", **{**tiny_settings("mel"), "hop_length": 100, "stack": 2}), tiny_frontend("melvq")
    fronts[0].fit([torch.randn(1, 4000) / 10])
    later, earlier = (
        EncodedCache.build(index, front, place / type(front).__name__, progress=False) for front in fronts
    )
    return earlier, later


def test_crops_of_joined_files_carry_the_codes_of_the_same_file(encoded):
    """Guards against teacher forcing with the codes of another file or another time: compared with a lookup in the
    file's own codes, by time."""
    earlier, later = encoded
    sides = split(later.index)
    config = stage_config(earlier.spec, later.spec)
    known = FileConditions({"first": config}, Labels(), {"first": StageFrames(earlier, later.spec)})
    crops = Crops(later, sides.train, 40, 4, known=known)
    stack = later.spec.stack
    own = {
        tuple(np.round(short, 6)): (i, t)
        for i in range(len(later))
        for t, frame in enumerate(later.codes(i).T.numpy())
        for short in frame.reshape(-1, stack).T
    }
    alignment, joined = Alignment(earlier.spec, later.spec), 0
    places = {file.sha256: i for i, file in enumerate(earlier.files)}
    for step in range(5):
        batch, files = crops.batch(step)
        joined += sum(len(names) > 1 for names in files)
        for b in range(4):
            for s in range(40):
                # A crop may begin within a stack; the codes are those of the middle of each frame.
                middle = batch.x[b, :, s].numpy().reshape(-1, stack)[:, stack // 2]
                i, t = own[tuple(np.round(middle, 6))]
                codes = earlier.codes(places[later.files[i].sha256])
                wanted = alignment.frames(torch.tensor([t]))[0].clamp(max=codes.shape[1] - 1)
                assert batch.conditions["first"][b, :, s].tolist() == codes[:, wanted].T.flatten().tolist()
    assert joined
    unknown = StageFrames(earlier, later.spec).frames("0" * 64, 0, 3)
    assert unknown.shape == (config.num_codes, 3) and np.isnan(unknown).all()


# ---- generation


def stage_model(spec, condition=None, pattern="parallel", seed=0):
    """A lively model in float64 of one stage."""
    torch.manual_seed(seed)
    backbone = tiny_backbone("mlp")
    conditioner = condition and Conditioner({"first": Codes(condition, backbone.dim)})
    model = lively(SequenceModel(spec, backbone, PATTERNS[pattern](spec.num_rows), conditioner))
    return model.double().eval()


@pytest.fixture(params=PATTERNS)
def stages(request):
    """Two models, the second of which is conditioned on the codes of the first, and their alignment."""
    later = RATES[0][1]
    alignment = Alignment(FIRST, later)
    return stage_model(FIRST), stage_model(later, stage_config(FIRST, later), request.param, 1), alignment


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_codes_that_arrive_equal_codes_that_are_there(stages, guidance):
    """Guards against a stage that is conditioned on other codes while they arrive than when all are known: those of
    another frame or item, of the next chunk, or none."""
    first, second, alignment = stages
    prompt = torch.randint(5, (1, 2, 3))
    codes = generate(first, alignment.num_needed(23), Request(seeds=[1, 2, 3])).x
    values = alignment.values(codes, alignment.frames(torch.arange(23)))
    request = Request(prompt, seeds=[7, 8, 9], guidance=guidance, conditions={"first": values})
    expected = generate(second, 20, request).x
    pieces = stream(first, alignment.num_needed(23), Request(seeds=[1, 2, 3]))
    arriving = {"first": Arriving(pieces, alignment, 3, 23)}
    assert torch.equal(generate(second, 20, replace(request, conditions=arriving)).x, expected)
    assert not torch.equal(generate(second, 20, replace(request, conditions={})).x, expected)


def test_the_first_stage_runs_only_as_far_as_it_is_needed(stages):
    """Guards against a stream that begins when the whole first stage is done, and memory that grows with its length."""
    first, second, alignment = stages
    drawn = 0

    def pieces():
        nonlocal drawn
        for piece in stream(first, 10_000, Request(seeds=[1])):
            drawn += piece.shape[2]
            yield piece

    arriving = Arriving(pieces(), alignment, 1, 60)
    for count, _ in enumerate(stream(second, 60, Request(seeds=[2], conditions={"first": arriving}))):
        assert drawn <= alignment.num_needed(count + 4) + 1
        assert arriving._kept.shape[2] <= 2 * alignment.per_frame + 1
    assert count == 60


def test_a_code_changes_no_step_before_its_own_frame(stages):
    """Guards against a later stage that sees the future of the earlier one (contract 11), in training and in
    generation."""
    _, second, alignment = stages
    x = torch.randint(5, (1, 2, 8))
    codes = torch.randint(7, (1, 1, alignment.num_needed(8)))
    frames = alignment.frames(torch.arange(8))

    def outcome(codes):
        values = alignment.values(codes, frames)
        with torch.no_grad():
            nats = second(Batch(x, {"first": values}))
        drawn = generate(second, 8, Request(seeds=[3], conditions={"first": values})).x
        return [second.pattern.apply(found, -1)[0] for found in (nats, drawn)]  # (rows, steps)

    before = outcome(codes)
    for t in range(codes.shape[2]):
        changed = codes.clone()
        changed[0, 0, t] = (changed[0, 0, t] + 3) % 7
        own = int((frames == t).any(dim=1).int().argmax())
        first = int(second.pattern.step_index(own, own + 1).min())
        nats, drawn = outcome(changed)
        assert torch.equal(nats[:, :first], before[0][:, :first])
        assert torch.equal(drawn[:, :first], before[1][:, :first])
        assert not torch.equal(nats[:, first], before[0][:, first])


def test_the_seeds_of_stages_differ():
    """Guards against stages that share random numbers, and a last stage that a seed no longer repeats."""
    seeds = {stage_seed(seed, distance) for seed in (0, 1, 2**64 - 1) for distance in range(4)}
    assert len(seeds) == 12 and all(0 <= seed < 2**64 for seed in seeds)
    assert stage_seed(5, 0) == 5 and stage_seed(5, 1) == stage_seed(5, 1)


# ---- runs

STEPS = 8
SETTINGS = ["training.crop_frames=16", "training.batch_size=2", "training.evaluations=2", "backbone.dim=8"]
SETTINGS += ["training.sample_seconds=0.1", "backbone.hidden_dim=8", "backbone.context=4"]
SETTINGS += [f"melvq.frontend.{name}={value}" for name, value in tiny_settings("melvq").items()]
SETTINGS += [f"mel.frontend.{name}={value}" for name, value in tiny_settings("mel").items() if name != "hop_length"]
SETTINGS += ["melvq.frontend.num_codebooks=1", "mel.frontend.hop_length=200"]
SETTINGS += ["mel.training.learning_rate=0.01"]
QUICK = [*SETTINGS, "sampling.temperature=1.0"]


def start(corpus, out, pages=False, **more):
    """Train a run whose first stage only encodes; without pages and tuning, unless asked for."""
    typed = {"steps": STEPS, "stages": ["melvq", "mel"], "backbone": "mlp", "overrides": QUICK, **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MelVQ, "decodes", False)
        for name in ("commands.train.NUM_SAMPLES", "commands.after_training.NUM_SAMPLES"):
            patch.setattr(f"audiogen.{name}", 2)
        for name in ("commands.after_training.NUM_CLIPS", "evaluation.tuning.NUM_CLIPS"):
            patch.setattr(f"audiogen.{name}", 2)
        if not pages:
            patch.setattr("audiogen.commands.train.write_page", lambda runs: runs[0])
        return train(corpus, out, **typed)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("corpus"), [4000] * 5 + [1500] * 3)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """A run with an encode-only first stage, which nobody may change."""
    out = tmp_path_factory.mktemp("made") / "run"
    start(corpus, out, pages=True, overrides=SETTINGS)
    return out


@pytest.fixture
def run(made, monkeypatch):
    monkeypatch.setattr(MelVQ, "decodes", False)
    return load_run(made)


def sound(seed, seconds=0.2):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (1, round(seconds * RATE)))).float()


def test_a_folder_holds_all_of_its_stages(made, run, tmp_path):
    """Guards against a run that needs another folder, samples of a stage that has no sound, and a stage that takes the
    budget or the settings of another."""
    assert json.loads((made / "config.json").read_text()) == {"format": 2, "stages": ["melvq", "mel"]}
    assert (made / "index.html").exists() and not list((made / "melvq" / "samples").glob("*"))
    assert {path.name for path in (made / "mel" / "samples").glob("*.wav")} >= {"generated-0.wav", "continued-0.wav"}
    assert "rendered-0.wav" in {path.name for path in (made / "mel" / "samples").glob("*.wav")}
    first, last = run.stages
    assert last is run and run.before is first and (first.name, last.name) == ("melvq", "mel")
    assert (first.config.training.steps, last.config.training.steps) == (STEPS // 2, STEPS // 2)
    assert last.config.training.learning_rate == 0.01 != first.config.training.learning_rate
    assert not first.config.conditions and list(last.config.conditions) == ["timbre", "melvq"]
    moved = shutil.copytree(made, tmp_path / "moved", ignore=shutil.ignore_patterns("cache", "checkpoints", "*.jsonl"))
    again = load_run(moved).generate(0.2, seed=3)
    assert torch.equal(again, run.generate(0.2, seed=3))


@pytest.mark.parametrize("prompt, meaning", [(False, False), (True, False), (False, True), (True, True)])
def test_a_stream_equals_the_whole(run, prompt, meaning):
    """Guards against a cascade whose stages meet at other frames in a stream, and a rendering that begins with the
    prompt."""
    given = {"prompt": sound(1) if prompt else None, "meaning": sound(2, 0.3) if meaning else None}
    whole = run.generate(0.3, seeds=[4, 5], **given)
    assert whole.shape == (2, 1, round((0.3 + 0.2 * (prompt and not meaning)) * RATE))
    streamed = torch.cat(list(run.stream(0.3, seeds=[4, 5], **given)), dim=2)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-6)
    alone = run.generate(0.3, seeds=[5], **given)
    torch.testing.assert_close(alone[0], whole[1], rtol=0, atol=1e-5)


def stages_by_hand(run, seed, num_frames, prompt=None, meaning=None):
    """Codes of the first stage and frames of the last, each generated in one piece, without Arriving."""
    first, last = run.stages
    alignment = Alignment(first.frontend.spec, last.frontend.spec)
    wavs = [wav for wav in (prompt, meaning) if wav is not None]
    known = torch.cat([first.frontend.encode(wav[None]) for wav in wavs], dim=2) if wavs else None
    own = None if prompt is None else last.frontend.encode(prompt[None])
    total = num_frames + (0 if own is None else own.shape[2])
    new = max(0, alignment.num_needed(total) - (0 if known is None else known.shape[2]))
    codes = generate(first.model, new, Request(known, seeds=[stage_seed(seed, 1)])).x
    values = alignment.values(codes, alignment.frames(torch.arange(total)))
    voice = {} if prompt is None else {"timbre": timbre([prompt], RATE)[None]}
    request = Request(own, seeds=[seed], sampling=last.sampling, conditions={"melvq": values, **voice})
    return codes, generate(last.model, num_frames, replace(request, guidance=last.config.guidance.scale)).x


def test_each_stage_continues_the_prompt_and_draws_by_its_own_seed(run):
    """Guards against a prompt that only one stage hears, a meaning that is shifted, and stages that share their draws:
    compared with the stages run one by one."""
    prompt, meaning = sound(1), sound(2, 0.3)
    for given in ({}, {"prompt": prompt}, {"prompt": prompt, "meaning": meaning}):
        _, frames = stages_by_hand(run, 6, run.frontend.num_frames(2400), **given)
        wav = run.frontend.decode(frames)[..., 1600 if len(given) == 2 else 0 :]
        found = run.generate(0.3, seed=6, **given)
        torch.testing.assert_close(found, wav[..., : found.shape[2]], rtol=0, atol=1e-5)
    hop = run.frontend.spec.hop_length
    longer = torch.cat([prompt, sound(3, 0.5 * hop / RATE)], dim=1)  # by half a frame
    torch.testing.assert_close(run.generate(0.3, seed=6, prompt=longer), run.generate(0.3, seed=6, prompt=prompt))


def test_takes_of_a_meaning_share_its_codes(run):
    """Guards against takes that say something else, and a default length that is not that of the meaning."""
    meaning = sound(2, 0.25)
    takes = run.generate(num=2, seed=0, meaning=meaning)
    assert takes.shape[2] == 2000 and not torch.equal(takes[0], takes[1])
    codes = [stages_by_hand(run, seed, 10, meaning=meaning)[0] for seed in (0, 1)]
    assert torch.equal(codes[0][:, :, :32], codes[1][:, :, :32])


def test_sampling_of_each_stage(run):
    """Guards against a temperature that reaches one stage only, or the wrong one."""
    greedy = Sampling(temperature=0.0)
    assert run.sampling_with(temperature=0.5)["melvq"] == Sampling(0.5)
    request = run.request(seeds=[1], sampling={"melvq": greedy})
    assert request.before.request.sampling == greedy and request.sampling == run.sampling
    request = run.request(seeds=[1], sampling=greedy)
    assert request.before.request.sampling == request.sampling == greedy


def test_evaluation_reports_every_stage(run, corpus, tmp_path):
    """Guards against a loss of the last stage without the codes it was trained with, and stages that are left out."""
    found = evaluate_folder(run, corpus, 1)
    assert found["stages"].keys() == {"melvq"} and found["stages"]["melvq"]["baselines"].keys() > {"bigram"}
    last = [event for event in read_metrics(run.folder) if event["event"] == "final"][-1]
    assert found["loss"] == pytest.approx(last["loss"], abs=1e-4)
    assert found["generated"]["num"] == 1
    page = write_page([run.folder.parent], tmp_path / "page.html").read_text()
    assert "melvq" in page and "mel" in page
    cache = EncodedCache.open(run.folder / "cache")
    with pytest.raises(DataError, match="cache of one front-end"):
        evaluate_folder(run, cache.folder)


def test_every_stage_is_compared_with_its_own_held_out_files(run, tmp_path):
    """Guards against a last stage whose own files are scored without the codes of the stage before, so that every other
    folder looks easy beside them."""
    found = evaluate_folder(run, folder_of_notes(tmp_path / "other", [4000] * 2, seed=50))
    for result, stage in ((found, run), (found["stages"]["melvq"], run.before)):
        last = [event for event in read_metrics(stage.folder) if event["event"] == "final"][-1]
        assert result["likeness"]["own"]["loss"] == pytest.approx(last["loss"], abs=1e-4)


def test_resuming_gives_the_same_bits(corpus, made, tmp_path, monkeypatch):
    """Guards against a stage that resumes with other codes than it was trained on; stopped in the first stage, and in
    the second."""
    for stage, batch in (("melvq", 2), ("mel", 2)):
        out, batch_of, calls = tmp_path / stage, Crops.batch, []

        def interrupted(self, step, stage=stage, at=batch, calls=calls, batch_of=batch_of):
            if step == at and self.sequences.cache.folder.parent.name == stage and not calls:
                calls.append(step)
                raise KeyboardInterrupt
            return batch_of(self, step)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Crops, "batch", interrupted)
            start(corpus, out)
        assert holds_run(out) and not list((out / "mel").glob("samples/generated*"))
        start(corpus, out, resume=True)
        for name in ("melvq", "mel"):
            for file in ("model.safetensors", "frontend.safetensors"):
                assert (out / name / file).read_bytes() == (made / name / file).read_bytes()


def test_a_resumed_run_trains_longer(corpus, made, tmp_path):
    """Guards against a budget that only the last stage gets."""
    out = shutil.copytree(made, tmp_path / "run")
    start(corpus, out, steps=2 * STEPS, resume=True, stages=None, overrides=(), backbone=None)
    assert [stage.config.training.steps for stage in load_run(out).stages] == [STEPS, STEPS]


def test_a_loaded_stage_is_a_run_of_its_own(run, made):
    """Guards against a stage that only works within the run."""
    alone = load_run(made / "mel")
    assert alone.before is None and hash_tensors(alone.model.state_dict()) == hash_tensors(run.model.state_dict())
    assert alone.generate(0.1, seed=0).shape == (1, 1, 800)
    with pytest.raises(ConfigError, match="front-end MelVQ only encodes"):
        load_run(made / "melvq").generate(0.1)
    with pytest.raises(ConfigError, match="meaning: this run has no stages"):
        alone.generate(0.1, meaning=sound(0))
    with pytest.raises(ConfigError, match="best_of: only for a run without stages"):
        run.generate(0.1, best_of=2)


@pytest.mark.parametrize("write", [generate_files, stream_files])
def test_only_new_sound_is_written_whole(run, tmp_path, write):
    """Guards against new sound that is cut where the prompt ends, which stages cut to whole frames."""
    hop = run.frontend.spec.hop_length
    write_audio(tmp_path / "prompt.wav", sound(1)[:, : 4 * hop + hop // 2], RATE)
    request = FileRequest(0.1, tmp_path / "prompt.wav", only_new=True)
    list(write(run, tmp_path / "out", request, 1, seed=3))
    assert read_audio(tmp_path / "out" / "sample-3.wav").shape[1] == round(0.1 * RATE)


# ---- refusals


def test_stages_that_do_not_fit_are_refused(corpus, made, tmp_path, monkeypatch):
    """Guards against minutes of training before a run that can make no sound, and against runs that mix stages."""

    def refused(message, kind=ConfigError, out="run", folder=corpus, **more):
        with pytest.raises(kind, match=message) as caught:
            start(folder, tmp_path / out if isinstance(out, str) else out, **more)
        assert "\n" not in str(caught.value)

    refused("--stages: melvq only encodes, so it can't be the last one", stages=["mel", "melvq"], overrides=())
    refused("constant frame rate", stages=["bpe", "mel"], overrides=())
    refused("frontend.stack: begin with the name of the stage: melvq.frontend.stack", overrides=["frontend.stack=2"])
    refused("--frontend: --stages names the front-ends already", frontend="mel")
    refused("is a cache of one front-end", folder=made / "mel" / "cache")
    refused("holds a run already", RunError, out=made)
    refused("was started with melvq,mel", out=made, resume=True, stages=["mulaw", "mel"], overrides=())
    refused("holds a run without stages", RunError, out=made / "mel", resume=True)
    with pytest.raises(RunError, match="holds several stages; give the folder of one, such as .*mel"):
        load_frontend(made)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"format": 3, "stages": ["melvq", "mel"]}, "has format 3, this audiogen reads up to 2"),
        ({"format": 2, "stages": ["mel"]}, "two names or more"),
        ({"format": 2, "stages": ["mel", "mel"]}, "the same name"),
        ({"format": 2, "stages": ["../mel", "mel"]}, "is no name"),
        ({"format": 2, "stages": ["mel", "melvq"]}, "not conditioned on the codes of"),
        ({"format": 2, "stages": ["melvq", "gone"]}, "gone: there is no such folder"),
        ({"format": 2, "stages": ["melvq", "mel"], "data": {}}, "data: unknown setting"),
    ],
)
def test_a_damaged_list_of_stages_is_refused(made, tmp_path, values, message):
    """Guards against a folder from elsewhere that leads out of itself, or mixes stages that do not belong together."""
    out = shutil.copytree(made, tmp_path / "run")
    (out / "config.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=message) as caught:
        load_run(out)
    assert "\n" not in str(caught.value) and holds_run(out)


def test_options_of_stages():
    """Guards against an option that reaches the wrong stage."""
    overrides = ["training.seed=1", "a.training.seed=2", "b.frontend.stack=4"]
    flags = Flags(overrides=overrides, start="base")
    a, b = plan_stages(["a", "b"], ["melvq", "mel"], flags)
    assert a.flags == Flags("melvq", None, ["training.seed=1", "training.seed=2"])
    assert b.flags == Flags("mel", None, ["training.seed=1", "frontend.stack=4"], "base", after_stage=True)
    assert [stage.flags.start for stage in plan_stages("ab", "ab", Flags(start="scratch"))] == ["scratch"] * 2
    assert own_settings(["ab.c=1"], "a", ["a", "b"]) == ["ab.c=1"]
    assert budget_share({"steps": 9, "minutes": None, "seed": 1}, 2) == {"steps": 4, "minutes": None, "seed": 1}
    assert budget_share({"steps": None, "minutes": 9.0}, 3) == {"steps": None, "minutes": 3.0}
    assert budget_share({}, 2) == {"steps": None, "minutes": 5.0}


def test_a_stage_after_codes_follows_them_less_closely():
    """Guards against guidance that brings out the voice of the meaning instead of the prompt's."""
    stages = plan_stages(["semantic", "mel"], ["semantic", "mel"], Flags())
    plans = [Plan.draft(stage.flags) for stage in stages]
    assert plans[1].config.guidance.scale == STAGE_GUIDANCE < FLOW_GUIDANCE
    assert Plan.draft(Flags("mel")).config.guidance.scale == FLOW_GUIDANCE
    typed = plan_stages(["semantic", "mel"], ["semantic", "mel"], Flags(overrides=["guidance.scale=3"]))
    assert Plan.draft(typed[1].flags).config.guidance.scale == 3


def test_what_a_stage_has_left_of_its_minutes_goes_to_the_next(run, tmp_path):
    """Guards against a budget that is lost where a stage stops early, as a small model of tokens does."""

    def after(stages: int, minutes: float, seconds: float) -> float:
        first = run.stages[0]
        training = replace(first.config.training, steps=None, minutes=minutes)
        events = [{"event": "train", "step": 1}, {"event": "held_out", "step": 2, "seconds": seconds}]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        before = replace(first, folder=tmp_path, config=replace(first.config, training=training))
        return budget_share({"steps": None, "minutes": 30.0}, stages, before)["minutes"]

    assert after(2, 15.0, 300.0) == 25.0
    assert after(3, 10.0, 240.0) == 13.0
    assert after(2, 15.0, 1000.0) == 15.0
