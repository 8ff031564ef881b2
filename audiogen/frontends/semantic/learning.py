"""Train the encoder of semantic tokens: masked prediction of units, from recordings whose voice is changed."""

import copy
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...distributed import TreeSum, World
from ...errors import TrainingError
from ...utils.devices import bf16_pays, send
from ..base import training_wavs
from ..mel.mel import SMALLEST_STD, Mel
from ..neural.kmeans import nearest
from .encoder import Encoder
from .units import cepstra, cluster
from .voices import Voices, centres

NUM_UNITS = 100  # of MFCCs
UNIT_TOP = 4000.0  # Hz; MFCCs see no higher bands, which recordings of low sample rates lack
SECOND_ROUND = 0.5  # fraction of the run after which the units are the encoder's own
LEAST_PIECE, LONGEST_PIECE = 60, 200  # frames of a recording in a crop
MOST_FRAMES = 360_000  # of training audio in memory: two hours at 50 frames/s, 115 MB
MASK_STARTS, MASK_LENGTH = 0.08, 8  # fraction of frames at which a masked span begins, and its length in frames
HEARD_WEIGHT = 0.5  # of the loss on frames that are not masked
VOICES = 3  # other voices in which a recording is heard to find its units
CLUSTERED_FRAMES = 40_000
AVERAGE = 0.998  # moving average of the weights, whose encoder is the result
WARMUP_STEPS, DECAY = 100, 0.4  # of the learning rate; DECAY is the fraction of the run at its end


@dataclass(frozen=True)
class LearningSettings:
    """How an encoder is trained.

    Attributes:
        crop_frames: frames per crop; short recordings are joined.
        batch_size: crops per step.
        learning_rate: its peak.
        spread: standard deviation of the changes of voice, in nats of frequency.
        seed: determines initial weights and all draws.
    """

    crop_frames: int = 128
    batch_size: int = 12
    learning_rate: float = 1.5e-3
    spread: float = 0.1
    seed: int = 0


class Learner:
    """Train an encoder step by step on log-mel frames of recordings.

    The encoder predicts the units of a recording from a version of it whose voice is changed and of which about half is
    masked. Units are first the clusters of MFCCs. After SECOND_ROUND of the run, they are clusters of the encoder's own
    output, averaged over several voices.

    Source: HuBERT (Hsu et al. 2021) for masks and rounds; ContentVec (Qian et al. 2022) for changed voices, and Spin
    (Chang et al. 2023) for units that do not depend on them.

    A step is one batch, unless `share_out` says otherwise.

    Args:
        encoder: the encoder to train; it is copied, and stays as it is.
        mel: the fitted front-end of its frames.
        kinds: log power (F, 2 T) of recordings, as `recordings` returns it. Kinds are drawn equally often, and within
            a kind each recording as often as it is long.
        num_codes: units of the second round, and of the result.
        settings: see LearningSettings.
    """

    def __init__(
        self, encoder: Encoder, mel: Mel, kinds: Sequence[Sequence[Tensor]], num_codes: int, settings: LearningSettings
    ):
        self.mel, self.num_codes, self.settings = mel, num_codes, settings
        self.pieces = [x for pieces in kinds for x in pieces]
        shares = [np.array([x.shape[1] for x in pieces]) for pieces in kinds]
        self.cumulative = np.cumsum(np.concatenate([share / share.sum() / len(kinds) for share in shares]))
        top = mel.config.f_max or mel.config.sample_rate / 2
        self.voices = Voices(mel.config.num_features, top, float(np.log(mel.floor)), settings.spread)
        self.unit_bands = sum(hertz < UNIT_TOP for hertz in centres(mel.config.num_features, top))
        self.encoder, self.average = copy.deepcopy(encoder).train(), copy.deepcopy(encoder)
        self.step, self.round = 0, 0
        self.world, self.num_batches = World(), 1
        self._begin(self._first_units(), NUM_UNITS)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.encoder.mask_vector.device

    def share_out(self, world: World, num_batches: int) -> None:
        """Train with other ranks, which share out the `num_batches` batches of each step and hold the same recordings.

        Raises:
            ConfigError: they can't be shared out equally.
        """
        world.share(num_batches)
        self.world, self.num_batches = world, num_batches
        for module in (self.encoder, self.average, self.head):
            world.copy_from_first(module.state_dict().values())
        world.copy_from_first(self.units)

    def train_step(self, progress: float) -> dict[str, float]:
        """Train for one step; `progress` is the fraction of the run that is done, from 0 to 1.

        Returns:
            The cross-entropy in nats of `masked` and of `heard` frames.

        Raises:
            TrainingError: it is not finite.
        """
        if self.round == 0 and progress >= SECOND_ROUND:
            self.round = 1
            self._begin(self._own_units(), self.num_codes)
            self.world.copy_from_first(self.units)
        settings = self.settings
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS, max(0.03, (1 - progress) / DECAY))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        parameters, total, found = [*self.encoder.parameters(), *self.head.parameters()], TreeSum(), []
        for number in self.world.share(self.num_batches):
            self.optimizer.zero_grad(set_to_none=True)
            of_masked, of_heard = self._losses(self.step * self.num_batches + number)
            (of_masked + HEARD_WEIGHT * of_heard).backward()
            total.add([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            found.append(torch.stack([of_masked, of_heard]).detach())
        masked, heard = self.world.gather(torch.stack(found)).mean(0).tolist()  # of all ranks, so that all stop
        if not np.isfinite(masked + heard):
            raise self.world.shared(
                TrainingError(
                    f"the encoder's loss is not finite at step {self.step}: lower its learning_rate from "
                    f"{settings.learning_rate:g}, or look for odd files with audiogen doctor"
                )
            )
        for p, gradient in zip(parameters, self.world.add_up(total.result()), strict=True):
            p.grad = gradient / self.num_batches
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            kept = min(AVERAGE, self.step / (self.step + 10))
            for mean, weight in zip(self.average.parameters(), self.encoder.parameters(), strict=True):
                mean.lerp_(weight, 1 - kept)
        return {"masked": masked, "heard": heard}

    def _losses(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the masked frames of a batch, and of the others."""
        rng = np.random.default_rng([self.settings.seed, number])
        x, units, piece = (send(part, self.device) for part in self._batch(rng))
        masked = send(draw_mask(len(units), units.shape[1], rng), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_pays(self.device)):
            scores = self.head(self.encoder(x, masked, piece)).float()
        losses = F.cross_entropy(scores.flatten(0, 1), units.flatten(), reduction="none").view_as(masked)
        of_masked = (losses * masked).sum() / masked.sum().clamp_min(1)
        return of_masked, (losses * ~masked).sum() / (~masked).sum().clamp_min(1)

    def codewords(self) -> Tensor:
        """Cluster the averaged encoder's output, averaged over several voices: (num_codes, D)."""
        rng = np.random.default_rng([self.settings.seed, 2**31])
        points, count = [], 0
        while count < min(CLUSTERED_FRAMES, sum(x.shape[1] for x in self.pieces)):
            points.append(self._heard(self._cut(self._draw(rng), rng)[0], rng))
            count += len(points[-1])
        return cluster(points, self.num_codes, self.settings.seed)

    def state(self) -> dict[str, Any]:
        """Return everything needed to continue, as a tree of tensors and numbers."""
        return {
            "encoder": self.encoder.state_dict(),
            "average": self.average.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "units": [units.to(torch.int16) for units in self.units],
            "step": self.step,
            "round": self.round,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`; without "optimizer", that begins anew."""
        self.step, self.round = state["step"], state["round"]
        self._begin([units.long() for units in state["units"]], self.num_codes if self.round else NUM_UNITS)
        for name in ("encoder", "average", "head", "optimizer"):
            if name in state:
                getattr(self, name).load_state_dict(state[name])

    def _begin(self, units: list[Tensor], count: int) -> None:
        """Begin a round with the units (T,) of each piece."""
        self.units = units
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + self.round)
            self.head = nn.Linear(self.encoder.dim, count).to(self.device)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, self.settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )

    def _first_units(self) -> list[Tensor]:
        points = [cepstra(x[: self.unit_bands]) for x in self.pieces]
        rng = np.random.default_rng([self.settings.seed, 2**31 - 1])
        drawn = torch.cat([points[self._draw(rng)] for _ in range(min(1000, 4 * len(points)))])
        scale = drawn.std(0).clamp_min(1e-6)
        codewords = cluster([drawn / scale], NUM_UNITS, self.settings.seed)
        return [nearest(x / scale, codewords) for x in points]

    def _own_units(self) -> list[Tensor]:
        codewords = self.codewords()
        rng = np.random.default_rng([self.settings.seed, 2**31 + 1])
        return [nearest(self._heard(x, rng), codewords) for x in self.pieces]

    @torch.no_grad()
    def _heard(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Encode log power (F, 2 T) in VOICES other voices and its own, and average: (T, D)."""
        heard = torch.stack([self._frames(y) for y in [x.float(), *(self.voices(x, rng) for _ in range(VOICES))]])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_pays(self.device)):
            return self.average(heard.to(self.device)).float().mean(0).cpu()

    def _frames(self, log_power: Tensor) -> Tensor:
        """Standardise log power and stack pairs of frames: (F, 2 T) -> (T, 2 F)."""
        mean, std = self.mel.mean.cpu()[:, None], self.mel.std.cpu()[:, None]
        return self.mel.stacked(((log_power - mean) / std)[None])[0].T

    def _draw(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self.cumulative, rng.random()).clip(0, len(self.pieces) - 1))

    def _cut(self, i: int, rng: np.random.Generator, most: int = LONGEST_PIECE) -> tuple[Tensor, Tensor]:
        """Cut a random part out of a piece: log power (F, 2 t), units (t,)."""
        length = self.pieces[i].shape[1] // 2
        wanted = min(most, int(rng.integers(LEAST_PIECE, LONGEST_PIECE + 1)))
        start = int(rng.integers(max(0, length - wanted) + 1))
        stop = min(length, start + wanted)
        return self.pieces[i][:, 2 * start : 2 * stop], self.units[i][start:stop]

    def _batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw crops of joined pieces: frames (B, S, 2 F), units (B, S), number of the piece (B, S)."""
        crops = []
        for _ in range(self.settings.batch_size):
            frames, units, piece, left = [], [], [], self.settings.crop_frames
            while left:
                x, own = self._cut(self._draw(rng), rng, left)
                frames.append(self._frames(self.voices(x, rng)))
                units.append(own)
                piece.append(torch.full_like(own, len(piece)))
                left -= len(own)
            crops.append([torch.cat(parts) for parts in (frames, units, piece)])
        x, units, piece = (torch.stack(parts) for parts in zip(*crops, strict=True))
        return x, units, piece


def recordings(wavs: Iterable[Tensor], mel: Mel, seed: int) -> list[Tensor]:
    """Compute log power (F, 2 T) float16 of recordings, cut into pieces of up to ten seconds.

    If they are longer than MOST_FRAMES together, a random choice of the pieces is returned, so memory is bounded.

    Raises:
        DataError: there are no wavs.
    """
    rng = np.random.default_rng([seed, 2**31 - 2])
    chosen: list[tuple[float, int, Tensor]] = []
    count = number = 0
    for wav in training_wavs(wavs):
        for piece in wav.split(10 * mel.spec.sample_rate // mel.spec.hop_length * mel.spec.hop_length, dim=1):
            power = mel.power(piece.to(mel.mean)[None])[0]
            x = torch.log(power + mel.floor).half().cpu()
            heapq.heappush(chosen, (rng.random(), number, x))
            number, count = number + 1, count + x.shape[1] // 2
            while count > MOST_FRAMES and len(chosen) > 1:
                count -= heapq.heappop(chosen)[2].shape[1] // 2
    return [x for _, _, x in sorted(chosen, key=lambda one: one[1])]


@torch.no_grad()
def standardise(mel: Mel, kinds: Sequence[Sequence[Tensor]]) -> None:
    """Set the mean and standard deviation of each band, with the same weight for every kind."""
    moments = []
    for pieces in kinds:
        count = sum(x.shape[1] for x in pieces)
        sums = [torch.stack([x.double().sum(1), x.double().square().sum(1)]) for x in pieces]
        moments.append(torch.stack(sums).sum(0) / count)
    mean, square = torch.stack(moments).mean(0)  # (F,) each
    mel.mean.copy_(mean)
    mel.std.copy_((square - mean.square()).clamp_min(SMALLEST_STD**2).sqrt())
    mel.is_fitted.fill_(1)


def draw_mask(batch_size: int, num_frames: int, rng: np.random.Generator) -> Tensor:
    """Draw spans of frames to mask, about half of all: (B, S) bool."""
    starts = torch.from_numpy(rng.random((batch_size, 1, num_frames)) < MASK_STARTS).float()
    return F.max_pool1d(F.pad(starts, (MASK_LENGTH - 1, 0)), MASK_LENGTH, stride=1)[:, 0] > 0
