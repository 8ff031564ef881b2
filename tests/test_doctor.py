"""The doctor: what it says of an installation, of a folder, and of models that can and can't learn."""

import copy
import dataclasses
import io
import itertools
import shutil

import numpy as np
import pytest
import torch
from folders import noise, write_wav
from rich.console import Console

from audiogen.commands.plan import Flags, Plan
from audiogen.data import EncodedCache
from audiogen.doctor.check import check_overfit, cut, excerpts
from audiogen.doctor.experiment import overfit
from audiogen.doctor.folder import check_folder
from audiogen.doctor.setup import PACKAGES, check_setup, setup_warnings
from audiogen.doctor.verdicts import verdict
from audiogen.errors import ConfigError, DataError
from audiogen.frontends import load_frontend
from audiogen.models.backbones import BACKBONES
from audiogen.runs.build import build_model

RATE = 8000
STEPS = 100  # small models need no more, healthy or ill
FRONTENDS = {
    "mulaw": {"bits": 6},
    "melvq": {"num_features": 20, "num_codebooks": 1, "codebook_size": 32},
    "mel": {"num_features": 20},
}
#: Models a fraction of the default size: the very code, in a second each. Others take their defaults.
SMALL = {
    "mlp": ["backbone.hidden_dim=128"],
    "wavenet": ["backbone.dim=64", "backbone.residual_dim=32", "backbone.num_layers=4"],
    "gpt": ["backbone.dim=32", "backbone.num_layers=2"],
    "gru": ["backbone.dim=64", "backbone.num_layers=1"],
}


def melody(seed: int, seconds: float = 2.0) -> np.ndarray:
    """Decaying tones, eight a second: what comes next follows from what came before."""
    rng, t = np.random.default_rng(seed), np.arange(RATE // 8) / RATE
    tones = [np.exp(-12 * t) * np.sin(2 * np.pi * f * t) for f in (220, 330, 440, 550, 660)]
    return 0.5 * np.concatenate([tones[i] for i in rng.integers(5, size=round(8 * seconds))])


@pytest.fixture(scope="module")
def melodies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("melodies")
    for seed in range(16):
        write_wav(folder / f"{seed:02d}.wav", melody(seed), RATE)
    return folder


@pytest.fixture(scope="module")
def crops():
    """Crops of melodies by name of the front-end, and that front-end."""
    wavs = [torch.from_numpy(melody(seed)).float()[None] for seed in range(16)]
    made = {}
    for name, settings in FRONTENDS.items():
        frontend = load_frontend(name, sample_rate=RATE, **settings)
        if not frontend.fitted:
            frontend.fit(wavs)
        made[name] = (frontend, cut([frontend.encode(wav[None])[0] for wav in wavs], 64))
    return made


def parts(crops, frontend, backbone):
    """A new model, the crops and the training settings that the doctor would take."""
    frontend, x = crops[frontend]
    config = Plan.over(frontend, Flags(None, backbone, SMALL.get(backbone, []))).config
    torch.manual_seed(0)
    return build_model(config, frontend.spec), x, config.training


def shuffled(x: torch.Tensor, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(x.shape[2], generator=generator) for _ in x])
    return x.gather(2, order[:, None].expand_as(x))


def said(width: int | None = None) -> Console:
    """As the command line's own: names of files and reasons are no markup."""
    return Console(
        file=io.StringIO(),
        highlight=False,
        soft_wrap=True,
        markup=False,
        width=width,
        force_terminal=width is not None,
        color_system=None,
    )


cases = pytest.mark.parametrize(
    ("frontend", "backbone"),
    [*((frontend, backbone) for frontend in ("mulaw", "melvq") for backbone in BACKBONES), ("mel", "mlp")],
)
#: Each backbone once, each kind of front-end at least once.
some_cases = pytest.mark.parametrize(
    ("frontend", "backbone"), [*zip(itertools.cycle(("mulaw", "melvq")), BACKBONES), ("mel", "mlp")]
)


@cases
def test_healthy(crops, frontend, backbone):
    """Guards against a doctor that finds a fault in every model. The model that was passed in is left as it was."""
    model, x, training = parts(crops, frontend, backbone)
    before = copy.deepcopy(model.state_dict())

    found = verdict(overfit(model, x, training, STEPS))

    assert found.fault is None, found
    assert found.text.startswith("the model can learn this: loss ")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@some_cases
def test_learning_rate_far_too_high(crops, frontend, backbone):
    model, x, training = parts(crops, frontend, backbone)
    wrong = dataclasses.replace(training, learning_rate=300 * training.learning_rate)

    found = verdict(overfit(model, x, wrong, STEPS))

    assert found.fault == "learning rate", found
    assert "too high" in found.text
    suggested = float(found.text.split("--set training.learning_rate=")[1])
    assert 0.9 * training.learning_rate < suggested < 0.2 * wrong.learning_rate


@cases
@pytest.mark.parametrize("matrices_alone", [False, True])
def test_initialisation_times_10(crops, frontend, backbone, matrices_alone):
    """Norm layers keep the scale of a GPT's hidden: only its head starts too loud, a fraction of a bit."""
    model, x, training = parts(crops, frontend, backbone)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 or not matrices_alone:
                parameter.mul_(10)

    found = verdict(overfit(model, x, training, STEPS))

    assert found.fault == "initialisation", found
    assert found.text.startswith("starting loss is far from ")


@pytest.mark.parametrize(
    ("frontend", "backbone", "layer"),
    [("melvq", "mlp", "backbone.first.linear tanh"), ("mulaw", "wavenet", "backbone.gates.0.linear tanh")],
)
def test_initialisation_that_the_first_loss_does_not_show(crops, frontend, backbone, layer):
    """The head starts quietly, but behind saturated units. Guards against "the model can learn this": slowly, and
    little."""
    model, x, training = parts(crops, frontend, backbone)
    with torch.no_grad():
        for parameter in model.get_submodule(layer.removesuffix(" tanh")).parameters():
            parameter.mul_(20)

    found = verdict(overfit(model, x, training, STEPS))

    assert found.fault == "initialisation", found
    assert f"of {layer} was saturated" in found.text


def test_a_layer_that_is_dead_throughout(crops):
    """Guards against blaming the recordings, since a model that hears nothing finds no order in them."""
    model, x, training = parts(crops, "mulaw", "wavenet")
    with torch.no_grad():
        model.backbone.skip.bias.fill_(-50)

    found = verdict(overfit(model, x, training, STEPS))

    assert found.fault == "dead units", found
    assert "backbone.skip relu" in found.text


@some_cases
def test_shuffled_targets(crops, frontend, backbone):
    """Guards against a check of memorising alone, which any large model passes on shuffled targets too."""
    model, x, training = parts(crops, frontend, backbone)

    found = verdict(overfit(model, shuffled(x), training, STEPS))

    assert found.fault == "order", found
    assert "shuffled" in found.text


class Misaligned(torch.nn.Module):
    """A model whose targets are shuffled inside, where no look at the data can find it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.spec, self.bos = model, model.spec, model.bos

    def num_entries(self, batch):
        return self.model.num_entries(batch)

    def forward(self, batch):
        h, _ = self.model.backbone(self.model.embed(batch.x))
        return self.model.head.nll(h, shuffled(batch.x, 3))


def test_targets_shuffled_within_the_model(crops):
    model, x, training = parts(crops, "melvq", "mlp")
    assert verdict(overfit(Misaligned(model), x, training, STEPS)).fault == "order"


def test_learning_rate_far_too_low(crops):
    """Guards against blaming the model for what a higher rate would mend."""
    model, x, training = parts(crops, "melvq", "mlp")
    found = verdict(overfit(model, x, dataclasses.replace(training, learning_rate=training.learning_rate / 30), STEPS))
    assert found.fault == "learning rate" and "too low" in found.text, found


@pytest.mark.parametrize("frontend", ["mulaw", "melvq"])
def test_near_silent_folder(tmp_path, frontend):
    """At -60 dBFS, also where k-means could not tell the frames apart: it must not come to that."""
    for seed in range(8):
        write_wav(tmp_path / f"{seed}.wav", 0.002 * melody(seed), RATE)
    console = said()

    found = check_overfit(console, tmp_path, frontend, "bigram", "cpu")

    assert found.fault == "silence", found
    assert "near-silent" in console.file.getvalue()


def test_a_few_faint_files_are_no_silence(tmp_path):
    for seed in range(8):
        write_wav(tmp_path / f"{seed}.wav", (0.002 if seed < 2 else 1) * melody(seed), RATE)
    assert check_overfit(said(), tmp_path, "mulaw", "bigram", "cpu").fault is None


def test_a_vocoder_need_not_be_trained(melodies, monkeypatch):
    """Guards against a check that trains for long what no model reads."""
    monkeypatch.setattr("audiogen.frontends.mel.vocoder.learn", lambda *_: pytest.fail("the vocoder is trained"))
    settings = ["frontend.num_features=20", "frontend.codebook_size=32", "frontend.vocoder.steps=1000000"]
    assert check_overfit(said(), melodies, "melvq", "bigram", "cpu", settings).fault is None


def test_from_a_folder_with_settings(melodies):
    """The whole way: front-end fitted on the folder, rate set on the command line."""
    settings = ["frontend.num_features=20", "frontend.codebook_size=32"]
    console = said()
    assert check_overfit(console, melodies, "melvq", "bigram", "cpu", settings).fault is None
    assert "bigram on melvq: the model can learn this" in console.file.getvalue()
    found = check_overfit(said(), melodies, "melvq", "bigram", "cpu", [*settings, "training.learning_rate=0.3"])
    assert found.fault == "learning rate"


def test_bad_settings_are_one_error(melodies):
    with pytest.raises(ConfigError, match="learning_rate"):
        check_overfit(said(), melodies, "mulaw", "bigram", "cpu", ["training.learning_rat=1"])
    with pytest.raises(ConfigError, match="gpt"):
        check_overfit(said(), melodies, "mulaw", "gtp", "cpu")


def test_from_a_cache(melodies, tmp_path):
    cache = EncodedCache.build(melodies, load_frontend("mulaw", sample_rate=RATE), tmp_path / "cache", progress=False)
    source = check_folder(said(), cache.folder)
    assert check_overfit(said(), source, backbone="bigram", device="cpu").fault is None


def test_excerpts_take_the_middle_of_long_files(melodies):
    from audiogen.data import Part, scan

    index = scan(melodies, progress=False)
    assert [part.stop - part.start for part in excerpts([Part(index.files[0])], 120)] == [1.0]
    long = dataclasses.replace(index.files[0], num_samples=RATE * 1000)
    (part,) = excerpts([Part(long)], 100)
    assert (part.start, part.stop) == pytest.approx((0.45, 0.55))
    assert sum(part.seconds for part in excerpts([Part(file) for file in index.files], 5)) == pytest.approx(6.0)


def test_cut_wants_two_crops():
    assert cut([torch.zeros(1, 100)], 64).shape == (2, 1, 50)
    with pytest.raises(DataError, match="too few"):
        cut([torch.zeros(1, 3)], 64)


@pytest.fixture
def mixed_folder(tmp_path):
    write_wav(tmp_path / "good.wav", noise(0, 8000))
    write_wav(tmp_path / "[red].wav", noise(1, 16000), 16000)
    write_wav(tmp_path / "stereo.wav", np.stack([noise(2, 24000)] * 2, axis=1))
    write_wav(tmp_path / "faint.wav", noise(3, 8000, 1e-4))
    write_wav(tmp_path / "loud.wav", noise(4, 8000, 3.0))
    write_wav(tmp_path / "zeros.wav", np.zeros(8000))
    write_wav(tmp_path / "tick.wav", noise(5, 40))
    shutil.copy(tmp_path / "good.wav", tmp_path / "later.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def test_each_file_of_a_folder_has_its_line(mixed_folder):
    """Guards against names that are taken for markup, lines that wrap where grep reads them, files that no line speaks
    of."""
    console = said()
    index = check_folder(console, mixed_folder)
    lines = console.file.getvalue().splitlines()

    for name, words in {
        "good.wav": "kept",
        "[red].wav": "16000",
        "faint.wav": "near-silent",
        "loud.wav": "clipped",
        "zeros.wav": "silent",
        "broken.wav": "left out",
        "later.wav": "same content as good.wav",
        "stereo.wav": " 2 ",
    }.items():
        (line,) = (line for line in lines if name in line and (name != "good.wav" or "later" not in line))
        assert words in line
    assert len(index.files) == 6 and len(index.rejected) == 3


def test_totals_of_a_folder(mixed_folder):
    console = said()
    check_folder(console, mixed_folder)
    rows = {line.split("  ")[0]: line for line in console.file.getvalue().splitlines()}

    assert "6 of 9 sound files (1 file of other kinds skipped)" in rows["kept"]
    assert "shortest 0.01 s, median 1.00 s, longest 3.00 s" in rows["length"]
    assert "8000 Hz: 5, 16000 Hz: 1" in rows["sample rates"]
    assert "mono: 5, stereo: 1" in rows["channels"]
    assert "1 file whose peaks are below" in rows["near-silent"]
    assert "1 file with over" in rows["clipped"]
    assert "1 file left out" in rows["duplicates"]
    assert "1 kept file of at most one frame" in rows["too short"] and rows["too short"].endswith(": tick.wav")
    assert rows["split"].split()[1:3] == ["4", "files"] and "1 (" in rows["split"]
    assert "every file is shorter" in rows["default crop"]


def test_many_files_are_summed_up_unless_asked_for(tmp_path):
    """Guards against lines that were folded at 80 columns with a letter lost at each fold."""
    for seed in range(32):
        write_wav(tmp_path / f"{seed:02d}.wav", noise(seed, 2000))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    console = said(80)
    check_folder(console, tmp_path)
    text = console.file.getvalue()
    assert "[/" not in text and "[red]" not in text, "a style's name is no word of the report"
    assert "broken.wav" in text and "07.wav" not in text and "32 other files kept without remark" in text
    assert (
        "broken.wav: is not a sound file of a supported kind; convert it, for example with ffmpeg, or remove it\n"
        in text
    )
    console = said(80)
    check_folder(console, tmp_path, verbose=True)
    assert all(f"{seed:02d}.wav" in console.file.getvalue() for seed in range(32))


def test_reasons_come_before_the_error(tmp_path):
    """A folder of which nothing is left: each file's reason is printed all the same."""
    write_wav(tmp_path / "zeros.wav", np.zeros(8000))
    console = said()
    with pytest.raises(DataError, match="none of its 1 sound files"):
        check_folder(console, tmp_path)
    assert "zeros.wav" in console.file.getvalue()
    with pytest.raises(DataError, match="no such folder"):
        check_folder(said(), tmp_path / "gone")


def test_setup_names_versions_and_devices():
    console = said()
    check_setup(console)
    text = console.file.getvalue()
    for name in ("python", "audiogen", *PACKAGES, "libsndfile", "CPU cores", "torch threads", "--device auto"):
        assert name in text
    assert torch.__version__ in text


@pytest.mark.parametrize(("changes", "words"), [({}, None), ({"safetensors": None}, "safetensors is not installed")])
def test_warnings_of_the_setup(changes, words, monkeypatch):
    monkeypatch.setattr("audiogen.doctor.setup.shutil.which", lambda name: None)
    versions = {**dict.fromkeys(PACKAGES, "1.0"), **changes}
    found = setup_warnings(versions)
    assert (words is None and not found) or (len(found) == 1 and words in found[0])


def test_a_driver_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr("audiogen.doctor.setup.shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (found,) = setup_warnings(dict.fromkeys(PACKAGES, "1.0"))
    assert "NVIDIA driver" in found
