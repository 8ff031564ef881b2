"""Train a base model like the one that `audiogen train` starts from.

    python recipes/base_model.py CORPUS --out runs/base [--minutes 90] [--from base]

CORPUS contains sound files in folders KIND/GROUP/. KIND is, for example, speech, drums or notes; the files of a GROUP
sound alike: a speaker, a drum kit, an instrument. About one group in ten is held out, by a hash of its name. Each crop
comes from a single group, like the folders that the base model will be fine-tuned on. A kind is drawn in proportion to
the square root of its duration. CORPUS/metadata.csv may give the pitch of notes (columns file and pitch, MIDI numbers).

A frame of the model is a stack of STACK mel frames, which a flow-matching head draws together. There is one model for
all sample rates. All rates share one grid of mel bands in Hz, so a lower rate has only the leading bands. Each training
batch uses one number of bands, so that the weights for all bands contain a model of the leading ones
(`FlowMatchingHead.leading_bands`). Crops are augmented as frames, which is cheap: their level is changed, and half of
them pass a random smooth filter. Copies with other speed and pitch are made when the corpus is encoded, one of each
group with a higher and one with a lower voice.

The model learns six conditions. KIND, and the position in the file, with which a fine-tuned model knows from the start
how short sounds begin and end, are each dropped in half of the crops. Melody, loudness and timbre are computed from the
recordings, and the pitch of notes is known, so a fine-tuned model follows them from the start. In half of the crops,
the timbre is that of one recording of the group for all of them, so that it does not tell what is said or played. A
share of NOTES of the crops consists of notes of known pitch, which would otherwise be rare. While a note sounds, its
frames tell its pitch, so a pitch that is given would be needed at the few frames where notes begin. Therefore noise
hides the frames of some of these crops from the model.

The model sees frames with noise, of up to INPUT_NOISE of a feature's deviation, so that errors do not grow in
generation (`SequenceModel.perturb`).

After a warm-up, the learning rate falls linearly to 2 % (Bergsma et al. 2025, Straight to Zero). From the base model it
begins at 30 %, since a high one first destroys what was learned (Gupta et al. 2023, How to re-warm your model?); that
of the conditions, which may be new, does not. Stop training with Ctrl-C; the same command continues it, also with more
--minutes.
"""

import argparse
import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from audiogen.audio.descriptors import loudness, melody, tilted, timbre
from audiogen.audio.io import read_audio, resample
from audiogen.data import find_labels, scan
from audiogen.errors import RunError
from audiogen.frontends.mel.mel import Mel
from audiogen.models.backbones import GPT
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Conditions, Label, Loudness, Melody, Pitch, Position, Timbre, positions
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.build import build_model
from audiogen.runs.config import RunConfig
from audiogen.runs.folder import holds_run, save_weights, start_run
from audiogen.runs.start import base_frontend, start_from_base
from audiogen.runs.training_config import DataConfig, TrainingConfig
from audiogen.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from audiogen.training.schedule import make_optimizer
from audiogen.training.trainer import interruptible
from audiogen.utils.devices import bf16_pays
from audiogen.utils.scripts import run_script
from audiogen.utils.tensors import read_tensors, write_tensors

RATE, HOP, BANDS, TOP = 44_100, 512, 100, 20_000.0  # Hz, samples, mel bands, Hz
STACK = 4  # mel frames per frame of the model
RATES = (8000, 16_000, 22_050, 24_000, 32_000)  # Hz; lower sample rates, whose leading bands are also trained
SEMITONES = 3.5  # largest change of speed and pitch in the copies of a recording
CROP, BATCH = 96, 16  # frames per crop, crops per batch
NOTES = 0.25  # share of the crops that are notes of known pitch
BLIND = 0.2  # share of the items of known pitch whose frames the model can't see
SLOWNESS = 0.3  # factor of the learning rate of weights of the base model, apart from those of conditions
# Share of the crops with a condition.
KEPT = {"kind": 0.5, "position": 0.5, "melody": 0.25, "loudness": 0.25, "timbre": 0.5, "pitch": 0.75}
INPUT_NOISE = 0.4  # largest deviation of the noise on what the model sees, in deviations of a feature
EVERY = 240.0  # seconds between evaluations


def main() -> None:
    """Train the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder of KIND/GROUP/ folders of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/base"), help="run folder")
    parser.add_argument("--minutes", type=float, default=90.0, help="training time")
    parser.add_argument("--from", dest="start", choices=("base", "scratch"), default="scratch", help="initial weights")
    parser.add_argument("--dim", type=int, default=256, help="dimension of the GPT")
    parser.add_argument("--layers", type=int, default=6, help="number of layers of the GPT")
    parser.add_argument("--seed", type=int, default=0, help="give another one when you train the base model further")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()

    # 1. Encode every recording, once: (KIND, GROUP) -> what is known of each.
    frontend = Mel(Mel.Config(RATE, num_features=BANDS, hop_length=HOP, f_max=TOP, stack=STACK))
    groups = encode(args.corpus, frontend, args.out / "frames.pt")
    train, held_out = sides(groups)
    base = base_frontend(RATE) if args.start == "base" else None
    pools = pools_of(train)
    mean, std = statistics(train) if base is None else (base.mean, base.std)
    with torch.no_grad():
        frontend.mean.copy_(mean)
        frontend.std.copy_(std)
        frontend.is_fitted.fill_(1)

    # 2. A model of all bands, and one for the leading bands of each rate, which shares the weights of the first.
    training = TrainingConfig(
        minutes=args.minutes, seed=args.seed, crop_frames=CROP, batch_size=BATCH, input_noise=INPUT_NOISE
    )
    gpt = GPT.Config(dim=args.dim, num_layers=args.layers, window=CROP // 2)
    conditions = {"kind": Label.Config(tuple(train)), "position": Position.Config()}
    conditions |= {"melody": Melody.Config(), "loudness": Loudness.Config()}
    conditions |= {"timbre": Timbre.Config(), "pitch": Pitch.Config()}
    config = RunConfig(frontend.config, gpt, "parallel", DataConfig(), training, conditions, head="flow")
    torch.manual_seed(training.seed)
    model = build_model(config, frontend.spec)
    if args.start == "base":
        start_from_base(model)
    for part in model.conditioner.parts.values():
        part.null.requires_grad_(False)  # stays 0: a fine-tuned model may not have the condition
    device = torch.device(args.device)
    model.to(device).train()
    widths = sorted({frontend.resampled(rate).config.num_features for rate in RATES} | {BANDS})
    narrow = {width: leading(config, frontend, width) for width in widths if width < BANDS}

    def nll(frames: Tensor, width: int, known: Conditions | None = None) -> Tensor:
        """Compute the loss on the first `width` bands of standardised mel frames (B, BANDS, T * STACK).

        Returns:
            Nats per mel frame and band.
        """
        batch = Batch(frontend.stacked(frames[:, :width]), known).to(device)
        if model.training:
            batch = blinded(model.perturb(batch, INPUT_NOISE))
        if width == BANDS:
            return model(batch).mean() / (width * STACK)
        narrow[width].train(model.training)
        return functional_call(narrow[width], leading_weights(model, width), (batch,)).mean() / (width * STACK)

    # 3. Train until the budget is spent.
    optimizer, state = optimizer_of(model, training), {"step": 0, "seconds": 0.0}
    checkpoint = args.out / "training.safetensors"
    if checkpoint.exists():
        tensors, about = read_tensors(checkpoint, RunError, "remove it to begin again")
        model.load_state_dict({name[6:]: x for name, x in tensors.items() if name.startswith("model.")})
        load_optimizer_tensors(
            optimizer, {name[10:]: x for name, x in tensors.items() if name.startswith("optimizer.")}
        )
        state = {"step": about["step"], "seconds": about["seconds"]}
    if not holds_run(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        start_run(args.out, config, frontend)
    budget, last, scores = 60 * args.minutes, state["seconds"], None
    with interruptible() as interrupted:
        while state["seconds"] < budget and not interrupted.is_set():
            began = time.perf_counter()
            left = 1 - state["seconds"] / budget
            rate = training.learning_rate * min(1.0, (state["step"] + 1) / 200, max(0.02, left))
            for group in optimizer.param_groups:
                group["lr"] = rate * (SLOWNESS if args.start == "base" and not group["of_conditions"] else 1.0)
            rng = np.random.default_rng([training.seed, state["step"]])
            frames, width, known = batch_of(pools, widths, mean, std, rng)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device)):
                loss = nll(frames, width, known)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state = {"step": state["step"] + 1, "seconds": state["seconds"] + time.perf_counter() - began}
            if state["seconds"] - last > EVERY or state["seconds"] >= budget or interrupted.is_set():
                last = state["seconds"]
                scores = evaluate(model, nll, held_out, widths, mean, std)
                print(
                    f"step {state['step']}, {last / 60:.1f} min: "
                    + ", ".join(f"{k} {v:.3f}" for k, v in scores.items())
                )
                tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
                tensors |= {f"optimizer.{name}": x for name, x in optimizer_tensors(optimizer).items()}
                write_tensors(checkpoint, tensors, **state)

    # 4. Save the weights in bfloat16: half the size, and rounding changes them less than fine-tuning does.
    if scores is None:  # the budget was already spent
        scores = evaluate(model, nll, held_out, widths, mean, std)
    loss = BANDS * STACK * scores["mean"]
    save_weights(args.out, config, model.cpu().to(torch.bfloat16), state["step"], loss)
    print(
        f"{args.out}: {loss:.2f} nats per frame on held-out groups; frames.pt and training.safetensors can be removed"
    )


class Recording(NamedTuple):
    """What the model learns of a recording.

    Attributes:
        bands: number of bands that it has.
        power: log power (BANDS, T).
        known: conditions by name, (F, T // STACK) each, or (F, 1) for the whole recording.
    """

    bands: int
    power: Tensor
    known: dict[str, Tensor]


def encode(corpus: Path, frontend: Mel, cache: Path) -> dict[tuple[str, str, int], list[Recording]]:
    """Encode each file; files of training groups also in two copies, as groups of their own with other speed and pitch.

    Args:
        corpus: the folder.
        frontend: the front-end.
        cache: file that the frames are kept in; it is read if it exists.

    Returns:
        (KIND, GROUP, copy) -> recordings; the copy 0 is the group as it is.
    """
    if cache.exists():
        stored = torch.load(cache, weights_only=True)
        return {group: [Recording(*item) for item in items] for group, items in stored.items()}
    groups: dict[tuple[str, str, int], list[Recording]] = {}
    index = scan(corpus)
    labels = find_labels(index).files
    for file in index.files:
        kind, group, *_ = Path(file.path).parts
        wav = read_audio(corpus / file.path, file.sample_rate)
        pitch = float(labels.get(file.sha256, {}).get("pitch", "nan"))
        for copy, semitones in enumerate(semitones_of(kind, group)):
            played_at = round(file.sample_rate * 2 ** (semitones / 12) / 50) * 50  # Hz; resampling likes round numbers
            played = resample(wav, played_at, RATE)
            log_power = torch.log(frontend.power(played[None])[0] + frontend.floor).half()
            width = BANDS if played_at >= RATE else frontend.resampled(int(0.96 * played_at)).config.num_features
            length = log_power.shape[1] // STACK
            known = {"position": positions(length)}
            for name, describe in (("melody", melody), ("loudness", loudness)):
                known[name] = torch.cat(list(describe([played], RATE, HOP * STACK)), 1)[:, :length]
            known |= {"timbre": timbre([played], RATE), "pitch": torch.tensor([[pitch + semitones]])}
            groups.setdefault((kind, group, copy), []).append(Recording(width, log_power, known))
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save({group: [tuple(item) for item in items] for group, items in groups.items()}, cache)
    return groups


def semitones_of(kind: str, group: str) -> tuple[float, ...]:
    """Return the changes of pitch and speed of the copies of a group; none for a group that is held out."""
    if is_held_out(kind, group):
        return (0.0,)
    rng = np.random.default_rng(list(f"{kind}/{group}".encode()))
    return 0.0, rng.uniform(0.8, SEMITONES), -rng.uniform(0.8, SEMITONES)


def is_held_out(kind: str, group: str) -> bool:
    """Decide by a hash of its name whether a group is held out; about one in ten is."""
    return int(hashlib.sha256(f"{kind}/{group}".encode()).hexdigest(), 16) % 10 == 0


def sides(groups):
    """Split the groups into training and held-out ones: two dicts, kind -> list of groups of recordings."""
    train, held_out = {}, {}
    for (kind, group, _), items in groups.items():
        (held_out if is_held_out(kind, group) else train).setdefault(kind, []).append(items)
    return train, held_out


def pools_of(train) -> list[tuple[float, list[tuple[int, list[Recording]]]]]:
    """Say what crops are drawn from: pools of groups, each with its probability; a group has the index of its kind.

    There is a pool of each kind, whose probability follows the square root of its duration, and one of notes.
    """
    pools = [[(kind, group) for group in groups] for kind, groups in enumerate(train.values())]
    known = [(kind, [note for note in group if pitch_is_known(note)]) for pool in pools for kind, group in pool]
    notes = [(kind, group) for kind, group in known if group]
    roots = [math.sqrt(sum(x.shape[1] for _, group in pool for _, x, _ in group)) for pool in pools]
    share = NOTES if notes else 0.0
    of_kinds = [((1 - share) * root / sum(roots), pool) for root, pool in zip(roots, pools, strict=True)]
    return [*of_kinds, (share, notes)] if notes else of_kinds


def pitch_is_known(recording: Recording) -> bool:
    """Tell whether a recording is a note of known pitch."""
    return not recording.known["pitch"].isnan().any()


def statistics(train) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each band (BANDS,), giving every kind the same weight."""
    count = total = squares = torch.zeros(BANDS, dtype=torch.float64)
    for kind in train.values():
        weight = 1 / sum(x.shape[1] for group in kind for _, x, _ in group)
        for width, x, _ in (item for group in kind for item in group):
            there = (torch.arange(BANDS) < width).double() * weight
            count = count + there * x.shape[1]
            total = total + there * x.double().sum(1)
            squares = squares + there * x.double().square().sum(1)
    heard, count = count > 0, count.clamp_min(1e-9)  # no recording may reach the highest bands
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0.01).sqrt()
    return torch.where(heard, mean, 0.0).float(), torch.where(heard, std, 1.0).float()


def optimizer_of(model: SequenceModel, training: TrainingConfig) -> torch.optim.AdamW:
    """Make the optimizer, with groups of their own for the weights of the conditions."""
    optimizer = make_optimizer(model, training)
    own = {id(parameter) for parameter in model.conditioner.parameters()}
    groups = []
    for group in optimizer.param_groups:
        for of_conditions in (False, True):
            params = [parameter for parameter in group["params"] if (id(parameter) in own) == of_conditions]
            groups.append({**group, "params": params, "of_conditions": of_conditions})
    return torch.optim.AdamW(groups)


def batch_of(pools, widths, mean: Tensor, std: Tensor, rng: np.random.Generator) -> tuple[Tensor, int, Conditions]:
    """Draw augmented, standardised crops.

    Returns:
        Mel frames (BATCH, BANDS, CROP * STACK), the number of bands that all of them have, and their conditions.
    """
    crops = [crop_of(pools, rng) for _ in range(BATCH)]
    most = (max if rng.random() < 0.5 else min)(crop.bands for crop in crops)
    while any(crop.bands < most for crop in crops):  # replace recordings with fewer bands
        crops = [crop if crop.bands >= most else crop_of(pools, rng) for crop in crops]
    width = max((w for w in widths if w <= most), default=widths[0])
    shifts = [level_shift(rng) for _ in crops]
    frames = torch.stack([shifted(crop.power, shift) for crop, shift in zip(crops, shifts, strict=True)])
    known = {name: torch.stack([crop.known[name] for crop in crops]) for name in KEPT}
    known["loudness"] += torch.stack([shift.mean() for shift in shifts])[:, None, None]
    known["timbre"] = torch.stack([tilted(x, shift[:, 0]) for x, shift in zip(known["timbre"], shifts, strict=True)])
    for name, values in known.items():
        values[torch.from_numpy(rng.random(BATCH) >= KEPT[name])] = math.nan
    return (frames - mean[:, None]) / std[:, None], width, known


def blinded(batch: Batch) -> Batch:
    """Hide the frames of some of the items of known pitch from the model, under noise: the pitch must tell them."""
    seen, pitch = batch.observed, batch.conditions["pitch"]
    blind = ~pitch.isnan().any(dim=2, keepdim=True) & (torch.rand(len(pitch), 1, 1, device=pitch.device) < BLIND)
    return batch._replace(observed=torch.where(blind, seen + 3 * torch.randn_like(seen), seen))


def crop_of(pools, rng: np.random.Generator) -> Recording:
    """Draw a crop of CROP frames from one group, joining short recordings."""
    groups = pools[rng.choice(len(pools), p=[share for share, _ in pools])][1]
    kind, group = groups[rng.integers(len(groups))]
    width, parts, have = BANDS, [], 0
    while have < CROP:
        bands, x, known = group[rng.integers(len(group))]
        length = x.shape[1] // STACK
        start = int(rng.integers(length)) if not parts and rng.random() < 0.7 else 0
        shift = int(rng.integers(STACK)) if 0 < start < length - 1 else 0  # crops begin at any mel frame
        stop = min(length - (shift > 0), start + CROP - have)
        width, have = min(width, bands), have + stop - start
        values = {name: value.expand(-1, length)[:, start:stop] for name, value in known.items()}
        parts.append({"power": x[:, shift + start * STACK : shift + stop * STACK], **values})
    joined = {name: torch.cat([part[name] for part in parts], 1).float() for name in parts[0]}
    if rng.random() < 0.5:
        joined["timbre"] = group[rng.integers(len(group))].known["timbre"].expand(-1, CROP)
    return Recording(width, joined.pop("power"), {"kind": torch.tensor([[float(kind)]]), **joined})


def level_shift(rng: np.random.Generator) -> Tensor:
    """Draw a change of the level in dB, and of the filter in half of the cases: a tilt and a wave over (BANDS, 1)."""
    bands = torch.linspace(-1, 1, BANDS)[:, None]
    shift = torch.full_like(bands, float(np.clip(rng.normal(0, 6), -20, 10)))
    if rng.random() < 0.5:
        shift = shift + rng.normal(0, 4) * bands
        shift = shift + rng.normal(0, 2.5) * torch.cos(bands * math.pi * rng.uniform(0.5, 3) + rng.uniform(0, 6.28))
    return shift.float()


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """Change log power (BANDS, T) by dB (BANDS, 1), above the floor."""
    floor = math.log(1e-11 * HOP**2)  # the front-end's floor, below which noise is inaudible
    power = torch.log((x.exp() - math.exp(floor)).clamp_min(1e-12))
    return torch.logaddexp(power + shift * math.log(10) / 10, torch.tensor(floor))


def leading(config: RunConfig, frontend: Mel, width: int) -> SequenceModel:
    """Build a model of the first `width` bands, to be called with the weights from `leading_weights`."""
    return build_model(config, replace(frontend.spec, num_features=width * STACK)).requires_grad_(False)


def leading_weights(model: SequenceModel, width: int) -> dict[str, Tensor]:
    """Slice a model's weights to its first `width` bands; gradients flow back to the full weights."""
    weights = model.state_dict(keep_vars=True)
    for name, part in (("embed", model.embed), ("head", model.head)):
        own = {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
        weights |= {f"{name}.{key}": x for key, x in part.leading_bands(own, width * STACK).items()}
    return weights


@torch.no_grad()
def evaluate(model: SequenceModel, nll, held_out, widths, mean: Tensor, std: Tensor, most: int = 3000) -> dict:
    """Compute the loss on held-out groups in nats per mel frame and band: one for each kind, and their mean.

    Args:
        model: the model.
        nll: computes the loss of frames (B, BANDS, T) on their first bands.
        held_out: kind -> list of groups.
        widths: numbers of bands of the model.
        mean: (BANDS,), mean of each band.
        std: (BANDS,), standard deviation of each band.
        most: stop after about this many frames of each kind.
    """
    model.eval()
    scores = {}
    for kind, groups in held_out.items():
        total = seen = 0.0
        for width, x, _ in (item for turn in range(4) for group in groups for item in group[turn : turn + 1]):
            if seen > most:
                break
            frames = ((x[:, :600].float() - mean[:, None]) / std[:, None])[None]
            fitting = max((w for w in widths if w <= width), default=widths[0])
            total += float(nll(frames, fitting)) * frames.shape[2]
            seen += frames.shape[2]
        if seen:
            scores[kind] = total / seen
    model.train()
    return {**scores, "mean": sum(scores.values()) / max(1, len(scores))}


if __name__ == "__main__":
    raise SystemExit(run_script(main))
