"""The ways that EnCodec's weights can come: by download, from a file, from a saved folder; and the ways they can't."""

import inspect
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from encodec_oracle import encodec_package, package_layout, sounds
from local_server import local_server

from audiogen.errors import DownloadError
from audiogen.frontends import load_frontend, save_frontend
from audiogen.frontends.encodec import weights as encodec_weights
from audiogen.frontends.encodec.frontend import EnCodec
from audiogen.utils import download
from audiogen.utils.files import sha256_file


@pytest.fixture(scope="module")
def frontend():
    return load_frontend("encodec", bandwidth=24.0, weights="random")


@pytest.fixture(scope="module")
def package_state(frontend):
    return package_layout(frontend)


@pytest.fixture(scope="module")
def checkpoint(package_state, tmp_path_factory):
    """A .th named as the published one is, after its own hash."""
    path = tmp_path_factory.mktemp("published") / "weights.th"
    torch.save(package_state, path)
    return path.rename(path.with_name(f"encodec_24khz-{sha256_file(path)[:8]}.th"))


@pytest.fixture
def published(checkpoint, tmp_path, monkeypatch):
    """The made-up .th counts as the published one, and the cache folder is empty."""
    monkeypatch.setenv("AUDIOGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encodec_weights, "CHECKPOINT", checkpoint.name)
    monkeypatch.setattr(encodec_weights, "ROOT_URL", "http://127.0.0.1:9/")  # nobody listens there
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return checkpoint


def test_names_are_the_ones_that_the_package_publishes():
    source = inspect.getsource(encodec_package.EncodecModel.encodec_model_24khz)
    assert f"'{encodec_weights.CHECKPOINT}'" in source
    assert encodec_weights.ROOT_URL == encodec_package.model.ROOT_URL
    assert encodec_weights.published_digits() == "d7cc33bc"


def test_the_key_layout_is_the_packages(package_state, frontend):
    """Every key of the package's state dict is wanted, none is made up, and weight norm is gone afterwards."""
    for change in (
        lambda s: s.pop("encoder.model.0.conv.conv.weight_g"),
        lambda s: s.update(extra=torch.zeros(1)),
        lambda s: s.update({"quantizer.vq.layers.3._codebook.embed": torch.zeros(1024, 64)}),
    ):
        state = dict(package_state)
        change(state)
        with pytest.raises(RuntimeError):
            EnCodec(EnCodec.Config()).load_package_state(state)
    loaded = EnCodec(EnCodec.Config(bandwidth=24.0)).double()
    loaded.load_package_state(package_state)
    assert not [name for name in loaded.state_dict() if "weight_g" in name or "weight_v" in name]
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, frontend.state_dict()[name], check_dtype=False, msg=name)
    name = "decoder.model.3.convtr.convtr.weight"
    v, g = (package_state[f"{name}_{part}"].double() for part in "vg")
    torch.testing.assert_close(
        loaded.state_dict()[name],
        g * v / v.square().sum((1, 2), keepdim=True).sqrt(),
        rtol=1e-14,
        atol=0,
        msg="folded in float64",
    )
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_are_downloaded_once_and_kept(published, monkeypatch, frontend):
    cache = Path(os.environ["AUDIOGEN_CACHE"])
    with local_server(files={f"/{published.name}": published.read_bytes()}, cuts=[50_000_000]) as server:
        monkeypatch.setattr(encodec_weights, "ROOT_URL", server.url + "/")
        first = load_frontend("encodec")
        assert [status for *_, status in server.requests] == [200, 206]
    assert [path.name for path in cache.iterdir()] == [Path(published.name).with_suffix(".safetensors").name]
    second = load_frontend("encodec", bandwidth=12.0)  # with no server any more
    wav = sounds(3200)
    assert torch.equal(first.encode(wav), second.encode(wav)[:, :8])
    assert torch.equal(first.encode(wav), frontend.encode(wav)[:, :8])
    [kept] = cache.iterdir()
    state = safetensors.torch.load_file(kept)
    state["decoder.model.0.conv.conv.bias"][0] += 1
    with safetensors.safe_open(kept, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(state, kept, metadata)
    with pytest.raises(DownloadError, match="checksum.*delete it"):
        load_frontend("encodec")


def test_without_network_or_with_another_file_one_error_says_what_to_do(published, monkeypatch):
    with local_server(files={f"/{published.name}": b"not found, but politely"}) as server:
        with monkeypatch.context() as patch:
            patch.setattr(encodec_weights, "ROOT_URL", server.url + "/")
            with pytest.raises(DownloadError, match="SHA-256.*or get that file in another way"):
                load_frontend("encodec")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9.*refused.*weights=/path/to/encodec_24khz-") as info:
        load_frontend("encodec")
    assert "\n" not in str(info.value)


def test_weights_from_a_local_file(published, tmp_path, frontend):
    """The .th is read once; afterwards neither it nor the network is needed."""
    before = torch.get_rng_state()
    local = load_frontend("encodec", weights=str(published))
    assert torch.equal(torch.get_rng_state(), before)
    wav = sounds(3200)
    assert torch.equal(local.encode(wav), frontend.encode(wav)[:, :8])
    assert load_frontend("encodec").fingerprint() == local.fingerprint(), "the same weights, wherever they came from"
    kept = encodec_weights.kept_weights()
    assert torch.equal(load_frontend("encodec", weights=str(kept)).encode(wav), local.encode(wav))

    damaged = tmp_path / published.name
    damaged.write_bytes(published.read_bytes()[:-1] + b"x")
    with pytest.raises(DownloadError, match=f"{damaged}: its SHA-256 is .* begins with {published.stem[-8:]}"):
        load_frontend("encodec", weights=str(damaged))
    with pytest.raises(DownloadError, match="no such file"):
        load_frontend("encodec", weights=str(tmp_path / "absent.th"))
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DownloadError, match="other.safetensors: these are not the weights.*is missing"):
        load_frontend("encodec", weights=str(tmp_path / "other.safetensors"))


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("content", [Malicious(), {"encoder": [1, 2]}, [torch.zeros(1)]])
def test_a_file_that_holds_more_than_weights_is_refused(content, tmp_path, monkeypatch):
    """Guards against torch.load with pickle, which runs what a file says."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "a.th")
    monkeypatch.setattr(encodec_weights, "CHECKPOINT", f"encodec_24khz-{sha256_file('a.th')[:8]}.th")
    with pytest.raises(DownloadError, match="a.th: contains"):
        load_frontend("encodec", weights="a.th")
    assert not Path("executed").exists()


def test_a_saved_folder_needs_neither_network_nor_the_weights_file(published, tmp_path):
    local = load_frontend("encodec", weights=str(published))
    save_frontend(local, tmp_path / "run")
    encodec_weights.kept_weights().unlink()
    loaded = load_frontend(tmp_path / "run")
    wav = sounds(3200)
    codes = loaded.encode(wav)
    assert torch.equal(codes, local.encode(wav)) and loaded.fingerprint() == local.fingerprint()
    assert torch.equal(loaded.decode(codes), local.decode(codes))
    narrow = load_frontend(tmp_path / "run", bandwidth=1.5)
    assert torch.equal(narrow.encode(wav), codes[:, :2]) and narrow.fingerprint() != local.fingerprint()
