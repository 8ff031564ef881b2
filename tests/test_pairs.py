"""Contract 5: every front-end x backbone x pattern trains a step, generates, decodes, and survives a run folder."""

import copy
import dataclasses

import pytest
import tiny
import torch
from corpus import note, tiny_frontend, tiny_settings

from audiogen.errors import ConfigError
from audiogen.evaluation.scores import held_out_score
from audiogen.frontends import FRONTENDS
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.models.patterns import PATTERNS
from audiogen.models.sampling import Sampling
from audiogen.runs.build import build_model
from audiogen.runs.config import RunConfig
from audiogen.runs.event_log import Metrics
from audiogen.runs.folder import save_weights, start_run
from audiogen.runs.run import load_run
from audiogen.runs.training_config import DataConfig, TrainingConfig
from audiogen.spec import FrameSpec
from audiogen.training.trainer import Trainer

pairs = [
    pytest.param(frontend, backbone, pattern, id=f"{frontend}-{backbone}-{pattern}")
    for frontend in FRONTENDS
    for backbone in BACKBONES
    for pattern in PATTERNS
]


class Same:
    """The same batch at every step."""

    def __init__(self, x):
        self.x = x

    def loader(self, numbers, num_workers):
        for _ in numbers:
            yield Batch(self.x), [["made-up.wav"]] * len(self.x)


def config_of(frontend, backbone, pattern):
    small = tiny.tiny_backbone(backbone).config
    return RunConfig(
        frontend.config,
        small,
        pattern,
        DataConfig(),
        TrainingConfig(steps=1, minutes=None, warmup=0.0, learning_rate=0.01),
    )


@pytest.mark.parametrize("frontend, backbone, pattern", pairs)
def test_every_pair_trains_generates_decodes_and_is_saved(device, tmp_path, frontend, backbone, pattern):
    """Guards against a part that works with the one it was written beside and with no other: a shape, a dtype, a
    device, a spec of more or fewer rows, frames where codes were expected, or a weight that the run folder forgets."""
    frontend = copy.deepcopy(tiny_frontend(frontend)).to(device)
    spec, rate = frontend.spec, frontend.spec.sample_rate
    config = config_of(frontend, backbone, pattern)
    if isinstance(spec, FrameSpec) and pattern != "parallel":
        with pytest.raises(ConfigError, match="pattern.*only parallel fits"):
            build_model(config, spec)
        return
    wavs = torch.stack([torch.from_numpy(note(seed, rate // 10, rate)).float()[None] for seed in range(2)]).to(device)
    x = frontend.encode(wavs)  # (2, C, T)
    model = build_model(config, spec).to(device)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(
        model,
        Same(x),
        lambda weights: held_out_score(weights, list(x), frontend.seconds(x)),
        lambda weights, progress: save_weights(tmp_path, config, weights, progress.step, progress.best_loss),
        config.training,
        tmp_path / "checkpoints",
        "bf16" if device.type == "cuda" else "fp32",
    )
    start_run(tmp_path, config, frontend)
    trainer.run(Metrics(tmp_path))
    still = [name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])]
    still = [name for name in still if name != "head.range"]  # learned by `Head.fit`
    assert still == [], "a step moves every weight"

    run = load_run(tmp_path, device)
    assert run.step == 1
    trained = copy.copy(run)
    trained.frontend, trained.model = frontend, model.eval()
    hop_length = (frontend.base or frontend).spec.hop_length
    if not frontend.decodes:
        with pytest.raises(ConfigError, match="only encodes"):
            run.generate(seconds=1)
        return
    length, prompt = 3 * (hop_length if hop_length > 1 else 20) + 1, wavs[0, :, : rate // 50 + 1]
    for sound in (None, prompt):
        # 2 items: the batch, too, has to fit.
        asked = {"seconds": length / rate, "num": 2, "seed": 3, "prompt": sound, "sampling": Sampling(0.9, top_k=5)}
        request = trained.request(2, 3, sound, Sampling(0.9, top_k=5))
        made, again = trained.generate_request(length / rate, request), run.generate(**asked)
        wav = made.x
        assert wav.shape == (2, 1, length + (0 if sound is None else sound.shape[-1]))
        assert wav.isfinite().all() and wav.abs().max() <= 1
        assert made.seeds == (3, 4) and made.lengths == (wav.shape[2],) * 2
        # On a GPU sums may be added up in another order.
        torch.testing.assert_close(again, wav, rtol=0, atol=0 if device.type == "cpu" else 1e-4)


def test_a_front_end_without_small_settings_is_told_of():
    """Guards against a front-end that is registered and never tested: no pair would be made of it, or all would take
    hours."""
    assert all(tiny_settings(kind) for kind in FRONTENDS)
    with pytest.raises(pytest.fail.Exception, match="front-end 'theremin' is registered but has no small settings"):
        tiny_settings("theremin")


def test_a_backbone_without_small_settings_is_told_of(monkeypatch):
    """Guards against a backbone that is registered and tested at its full size."""

    class Large:
        Config = dataclasses.make_dataclass("Config", [("num_experts", int, 64)], frozen=True)

    monkeypatch.setitem(BACKBONES, "large", Large)
    with pytest.raises(pytest.fail.Exception, match="backbone 'large' has the settings num_experts"):
        tiny.tiny_backbone("large")
