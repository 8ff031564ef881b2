"""What every front-end promises. They come from the registry: a new one is tested by being registered."""

import dataclasses
import json
import shutil
from copy import deepcopy

import pytest
import torch
from corpus import tiny_frontend, tiny_settings

from audiogen import testing
from audiogen.config import to_dict
from audiogen.errors import ConfigError, DataError, NotFittedError, RunError
from audiogen.frontends import FRONTENDS, frontend_from_dict, frontend_to_dict, load_frontend, save_frontend
from audiogen.spec import FrameSpec
from audiogen.testing import base_hop_length, made_up_sounds

LEARNED = [kind for kind, part in FRONTENDS.items() if part.learned]
RESIDUAL = [kind for kind, part in FRONTENDS.items() if "num_codebooks" in part.reconfigurable]


@pytest.fixture(params=FRONTENDS)
def kind(request):
    return request.param


@pytest.fixture
def frontend(kind):
    return tiny_frontend(kind)


def training_files(rate, seed=0):
    return [made_up_sounds(rate // 2, seed=seed + index)[0] for index in range(3)]


@pytest.mark.parametrize("hops, extra", [(0, 1), (1, -1), (1, 0), (1, 1), (7, 0), (7, 3), (40, -2)])
def test_shapes_types_and_ranges(frontend, hops, extra):
    """Guards against a frame too few or too many, a wav of another length than promised, codes outside of [0, V)."""
    testing.check_shapes(frontend, max(1, hops * base_hop_length(frontend) + extra))


def test_an_item_does_not_depend_on_its_batch(frontend):
    """Guards against statistics, phases or noise shared out over the batch."""
    testing.check_batch(frontend)


def test_a_list_is_padded(frontend):
    """Guards against codes of padding that are taken for sound, and a short clip that hears its padding."""
    clips = [made_up_sounds(n, seed=n)[0] for n in (4000, 1500)]
    x, lengths, mask = frontend.encode(clips)
    for i, clip in enumerate(clips):
        alone, T = frontend.encode(clip[None])[0], int(lengths[i])
        assert torch.equal(x[i, :, :T], alone) and not x[i, :, T:].any()
        assert mask[i].tolist() == [t < T for t in range(x.shape[2])]
    with pytest.raises(ValueError, match="wav: the list is empty"):
        frontend.encode([])


def test_it_is_described_in_a_line(frontend):
    """Guards against a notebook that prints hundreds of layers for a front-end."""
    assert repr(frontend) == f"{type(frontend).__name__}({frontend.spec})"


def test_encoding_and_decoding_repeat_themselves(frontend):
    """Guards against noise drawn from the program's own generator, and one that it moves."""
    testing.check_repeatable(frontend)


def test_silence_stays_quiet(frontend):
    """Guards against log(0), a division by a loudness of 0, and noise where there was nothing. (An untrained EnCodec,
    and a codec after three steps, know nothing of silence.)"""
    x = frontend.encode(torch.zeros(1, 1, 4000))
    if not frontend.decodes:
        assert len(x[..., 5:-5].unique()) == 1, "silence has one code"
        return
    wav = frontend.decode(x)
    assert bool(torch.isfinite(wav).all())
    if not any(hasattr(frontend.base or frontend, name) for name in ("encoder", "quantizer")):
        assert float(wav.abs().max()) < 0.02


def test_what_was_not_encoded_is_refused(frontend):
    """Guards against a (1, N) wav read as a batch of channels, codes out of range that read another codeword, rows
    taken for items, and numbers that only fail far downstream."""
    testing.check_refusals(frontend)


def test_nothing_works_before_there_are_weights(kind, tmp_path):
    """Guards against codes from codebooks of zeros. Front-ends without weights are always fitted and can't be."""
    frontend = FRONTENDS[kind](FRONTENDS[kind].Config(**tiny_settings(kind)))
    if frontend.fitted:
        with pytest.raises(TypeError, match="nothing to fit"):
            frontend.fit([made_up_sounds(4000)[0]])
        return
    if isinstance(frontend.spec, FrameSpec):
        x = torch.zeros(1, frontend.spec.num_features, 2)
    else:
        x = torch.zeros(1, frontend.spec.num_codebooks, 2, dtype=torch.int64)
    for call in (
        lambda: frontend.encode(made_up_sounds(500)),
        *([lambda: frontend.decode(x)] if frontend.decodes else []),
        lambda: save_frontend(frontend, tmp_path / "saved"),
    ):
        with pytest.raises(NotFittedError, match="fit|load_pretrained"):
            call()
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind", LEARNED)
def test_fitting_repeats_itself(kind):
    """Guards against a fit that hangs on the program's generator, that goes on from the last one, or that changes
    nothing."""
    settings = tiny_settings(kind)
    first, second = load_frontend(kind, **settings), load_frontend(kind, **settings)
    files = training_files(first.spec.sample_rate)
    first.fit(files)
    torch.manual_seed(99)
    second.fit(training_files(first.spec.sample_rate, seed=50))
    assert first.fingerprint() != second.fingerprint(), "other files give other weights"
    before = torch.get_rng_state()
    second.fit(iter_again(files))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint() == second.fingerprint()


class iter_again:
    """A re-iterable that is no list, as the training files of a folder are."""

    def __init__(self, files):
        self.files = files

    def __iter__(self):
        return (wav.clone() for wav in self.files)


LONG = {"codec": {"fit_steps": 10**6}, "mel": {"vocoder": {"steps": 10**6}}, "melvq": {"vocoder": {"steps": 10**6}}}
LONG["bpe"] = {"base": {"kind": "melvq", **tiny_settings("melvq"), **LONG["melvq"], "num_codebooks": 1}}


@pytest.mark.parametrize("kind", LONG)
def test_a_draft_of_what_is_trained_for_long_is_soon_fitted(kind):
    """Guards against a doctor that trains for an hour before it says anything."""
    frontend = load_frontend(kind, **{**tiny_settings(kind), **LONG[kind]})
    draft = frontend.quick_variant()
    draft.fit(training_files(frontend.spec.sample_rate))
    assert draft.quick_variant() is draft
    assert draft.fitted and not frontend.fitted and draft.spec == frontend.spec
    assert draft.encode(made_up_sounds(4000)).shape[2] <= frontend.num_frames(4000)


@pytest.mark.parametrize("kind", LEARNED)
def test_fit_says_what_it_can_not_use(kind):
    """Guards against a second pass over a used-up generator, which would see no files, and statistics of nothing."""
    frontend = load_frontend(kind, **tiny_settings(kind))
    files = training_files(frontend.spec.sample_rate)
    with pytest.raises(ValueError, match="re-iterable"):
        frontend.fit(wav for wav in files)
    for nothing in ([], [torch.zeros(1, 0)]):
        with pytest.raises(DataError, match="training"):
            frontend.fit(nothing)
    with pytest.raises(ValueError, match=r"\(1, N\)"):
        frontend.fit([files[0][0]])
    assert not frontend.fitted


@pytest.mark.parametrize("kind", LEARNED)
def test_fit_survives_silence_and_scraps(kind):
    """Guards against a division by the variance, or loudness, of files of digital silence, and crops longer than all
    files."""
    settings = tiny_settings(kind)
    frontend = load_frontend(kind, **settings)
    files = [torch.zeros(1, 4000), made_up_sounds(3000)[0] * 1e-4, made_up_sounds(70)[0]]
    frontend.fit(files)
    x = frontend.encode(made_up_sounds(4000))
    assert not frontend.decodes or bool(torch.isfinite(frontend.decode(x)).all())


def test_saved_and_loaded_it_is_the_same(frontend, tmp_path):
    """Guards against weights or settings that stay behind."""
    save_frontend(frontend, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "frontend.safetensors"]
    loaded = load_frontend(tmp_path / "saved")
    assert type(loaded) is type(frontend) and loaded.config == frontend.config and loaded.spec == frontend.spec
    assert loaded.fitted and not loaded.training
    assert loaded.fingerprint() == frontend.fingerprint()
    testing.check_saving(frontend)
    again = frontend_from_dict(frontend_to_dict(frontend), frontend.state_dict())
    assert again.fingerprint() == frontend.fingerprint()
    assert load_frontend(str(tmp_path / "saved")).fingerprint() == frontend.fingerprint()


def test_a_runs_config_is_left_alone(frontend, tmp_path):
    """Guards against a run's settings overwritten by those of its front-end, and weights put beside another's
    settings."""
    values = {"format": 1, "frontend": frontend_to_dict(frontend), "backbone": {"kind": "gpt"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_frontend(frontend, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == values
    assert load_frontend(tmp_path).fingerprint() == frontend.fingerprint()
    other = load_frontend("mulaw", sample_rate=12345)
    with pytest.raises(RunError, match="another front-end"):
        save_frontend(other, tmp_path)
    assert load_frontend(tmp_path).fingerprint() == frontend.fingerprint()


def test_the_fingerprint_tells_settings_and_weights_apart(frontend):
    """Guards against a cache that is taken for that of another front-end."""
    assert len(frontend.fingerprint()) == 64
    assert deepcopy(frontend).fingerprint() == frontend.fingerprint()
    changed = deepcopy(frontend)
    for tensor in [tensor for tensor in changed.state_dict().values() if tensor.is_floating_point()][::-4][:3]:
        last = tensor.view(-1)[-1].clone()
        tensor.view(-1)[-1] += 1
        assert changed.fingerprint() != frontend.fingerprint()
        tensor.view(-1)[-1] = last
        assert changed.fingerprint() == frontend.fingerprint()
    if "sample_rate" in to_dict(frontend.config):
        other = type(frontend)(dataclasses.replace(frontend.config, sample_rate=frontend.config.sample_rate + 1))
        assert other.fingerprint() != type(frontend)(frontend.config).fingerprint()


@pytest.mark.parametrize("cut", [0, 7, 9, 100, -1])
def test_truncated_weights_are_refused(frontend, tmp_path, cut):
    save_frontend(frontend, tmp_path)
    path = tmp_path / "frontend.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    with pytest.raises(RunError, match="frontend.safetensors"):
        load_frontend(tmp_path)


def test_flipped_bits_are_refused(frontend, tmp_path):
    """Guards against weights that are silently a little off: safetensors itself has no checksum."""
    save_frontend(frontend, tmp_path)
    path = tmp_path / "frontend.safetensors"
    data = path.read_bytes()
    for place in {8, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        try:
            loaded = load_frontend(tmp_path)
        except RunError as error:
            assert "frontend.safetensors" in str(error)
        else:  # a bit of the padding
            assert loaded.fingerprint() == frontend.fingerprint()
            assert place < 8 + int.from_bytes(data[:8], "little")


@pytest.mark.parametrize(
    "text, what",
    [
        (None, "has no config.json"),
        ("", "damaged"),
        ('{"format": 1, "front', "damaged"),
        ("\x00\x00", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "format"),
        ('{"frontend": {}}', "format"),
        ('{"format": true, "frontend": {}}', "format"),
        ('{"format": 3, "frontend": {"kind": "mulaw"}}', "upgrade audiogen"),
        ('{"format": 1}', "frontend: .* missing"),
        ('{"format": 1, "frontend": {}}', "kind"),
        ('{"format": 1, "frontend": {"kind": "mulow"}}', "mulaw"),
        ('{"format": 1, "frontend": {"kind": "mulaw", "bit": 8}}', "bits"),
        ('{"format": 1, "frontend": {"kind": "mulaw", "bits": 1000}}', "bits"),
        ('{"format": 1, "frontend": {"kind": "mel"}}', "frontend.safetensors.*missing"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, text, what):
    """Guards against a traceback from the depths of json, and a newer folder half-understood."""
    save_frontend(load_frontend("mulaw"), tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=rf"{tmp_path}.*{what}"):
        load_frontend(tmp_path)


def test_a_missing_folder_and_missing_weights(tmp_path):
    with pytest.raises(RunError, match="nowhere: there is no such folder"):
        load_frontend(tmp_path / "nowhere")
    save_frontend(load_frontend("mulaw"), tmp_path)
    (tmp_path / "frontend.safetensors").unlink()
    with pytest.raises(RunError, match="frontend.safetensors.*is missing"):
        load_frontend(tmp_path)


def test_unknown_names_and_settings_name_the_nearest(kind):
    with pytest.raises(ConfigError, match=f"did you mean {kind}.*{', '.join(FRONTENDS)}"):
        load_frontend(kind[:-1] + "x" if kind != "mel" else "mell")
    with pytest.raises(ConfigError, match="frontend"):
        load_frontend(kind, no_such_setting=1)
    name, value = next(iter(tiny_settings(kind).items()))
    with pytest.raises(ConfigError, match=f"did you mean frontend.{name}"):
        load_frontend(kind, **{name[:-1]: value})
    with pytest.raises(ConfigError, match=f"frontend.{name}"):
        load_frontend(kind, **{name: [value]})


@pytest.mark.parametrize("kind", RESIDUAL)
def test_fewer_codebooks_can_be_asked_for(kind, tmp_path):
    """Guards against a coarser codec that is not the first rows of the finer one."""
    frontend = tiny_frontend(kind)
    save_frontend(frontend, tmp_path)
    coarse = load_frontend(tmp_path, num_codebooks=1)
    assert coarse.spec == dataclasses.replace(frontend.spec, num_codebooks=1)
    assert coarse.fingerprint() != frontend.fingerprint()
    wav = made_up_sounds(3000)
    codes = frontend.encode(wav)
    assert torch.equal(coarse.encode(wav), codes[:, :1])
    assert torch.equal(coarse.decode(codes[:, :1]), frontend.decode(codes[:, :1]))
    shutil.rmtree(tmp_path)
    save_frontend(coarse, tmp_path)
    assert load_frontend(tmp_path).fingerprint() == coarse.fingerprint()
    with pytest.raises(ConfigError, match="num_codebooks=3.*is more than the saved weights have"):
        load_frontend(tmp_path, num_codebooks=3)


@pytest.mark.parametrize("kind", LEARNED)
def test_weights_are_not_used_with_settings_they_were_not_made_for(kind, tmp_path):
    """Guards against a front-end for 8 kHz that runs, and whistles, at 16."""
    save_frontend(tiny_frontend(kind), tmp_path)
    wrapped = tiny_frontend(kind).base is not None
    where = "frontend.base" if wrapped else "frontend"
    # Shipped weights have a rate of their own.
    own = {key: value for key, value in tiny_settings(kind).items() if value == "fit"}
    with pytest.raises(ConfigError, match=f"{where}.sample_rate.*8000.*16000"):
        load_frontend(tmp_path, **FRONTENDS[kind].at_rate(own, 16000))
    same = load_frontend(tmp_path, **FRONTENDS[kind].at_rate(own, 8000))
    assert same.fingerprint() == tiny_frontend(kind).fingerprint()
    with pytest.raises(ConfigError, match=f"did you mean {where}.sample_rate"):
        load_frontend(tmp_path, **({"base": {"sample_rat": 8000}} if wrapped else {"sample_rat": 8000}))


def test_on_each_device(frontend, device):
    """Guards against tensors made on the CPU in the middle of a GPU's work, from wav to wav."""
    moved = deepcopy(frontend).to(device)
    wav = made_up_sounds(5000, batch_size=2)
    x = moved.encode(wav.to(device))
    assert x.device.type == device.type and moved.device.type == device.type
    expected = frontend.encode(wav)
    if frontend.base is not None:
        expanded = [
            torch.cat([front.expand(item) for item in codes], dim=1).cpu()
            for front, codes in ((moved, x), (frontend, expected))
        ]
        assert float((expanded[0] == expanded[1]).float().mean()) > 0.98
    elif x.dtype == torch.int64:
        assert float((x.cpu() == expected).float().mean()) > 0.98
    else:
        torch.testing.assert_close(x.cpu(), expected, rtol=0, atol=1e-3)
    length = -(-5000 // base_hop_length(frontend)) * base_hop_length(frontend)
    assert int(moved.frame_lengths(x).sum(dim=1).max()) == length
    if moved.decodes:
        decoded = moved.decode(x)
        assert decoded.device.type == device.type and decoded.shape[-1] == length
    assert moved.fingerprint() == frontend.fingerprint()
    if device.type == "cpu" or not frontend.learned:
        return
    fresh = load_frontend(
        next(kind for kind in FRONTENDS if FRONTENDS[kind] is type(frontend)),
        **{name: value for name, value in to_dict(frontend.config).items()},
    ).to(device)
    fresh.fit(training_files(fresh.spec.sample_rate))
    x = fresh.encode(wav.to(device))
    assert not fresh.decodes or bool(torch.isfinite(fresh.decode(x)).all())
