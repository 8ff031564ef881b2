"""Train our own codec: first as a plain autoencoder, then with the quantizer, then against discriminators.

A vocoder is trained like the codec's decoder.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...distributed import TreeSum, World
from ...errors import TrainingError
from ...utils.devices import send
from .balancer import Balancer
from .crops import generator_for
from .discriminators import Discriminators, generator_losses, hinge_loss
from .losses import ReconstructionLoss
from .networks import Decoder
from .quantizer import CodebookLearner, ResidualVQ

WEIGHTS = {"wave": 0.05, "mel": 1.0, "stft": 1.0, "adversarial": 1.0, "features": 1.0}  # shares of the gradient
COMMITMENT_WEIGHT = 1.0
USE_ALL = 0.25  # fraction of items that use all codebooks; the others use the first few
UNQUANTIZED = 0.05  # fraction of the run before k-means on encoder outputs initialises the codebooks
START_POINTS = 8  # per codeword, for k-means
WARMUP_STEPS = 20  # of the learning rate schedule
DISC_PAUSE_LOSS = 0.5  # discriminators pause while their hinge loss (2 = chance) is below this
LOOK_EVERY = 10  # steps between looks at the losses on a GPU; on a CPU each step is looked at
SNAPSHOT_EVERY = 200  # steps; an exploding run rolls back to the last snapshot
EXPLODED = 5.0  # times the moving average of the reconstruction loss
MAX_ROLLBACKS = 3

Batch = Callable[[int], Tensor]


@dataclass(frozen=True)
class TrainingSettings:
    """How a codec or a vocoder is trained.

    Attributes:
        batch_size: crops per step, a second each.
        learning_rate: peak of the cosine schedule.
        adversarial_from: fraction of the run after which discriminators are used; 1 for never.
        discriminator_channels: channels per layer; EnCodec's 32 need a GPU.
        discriminator_windows: window length of each discriminator's spectrum, in seconds.
        seed: determines initial weights, crops and all draws.
    """

    batch_size: int = 4
    learning_rate: float = 8e-4
    adversarial_from: float = 1.0
    discriminator_channels: int = 8
    discriminator_windows: tuple[float, ...] = (0.064, 0.032, 0.016)
    seed: int = 0


class Pass(NamedTuple):
    """The forward pass of a batch.

    Attributes:
        decoded: (B, 1, N).
        losses: scalars by name.
        found: the reconstruction losses' sum, float64.
        commitment: the loss of the quantizer; 0 without one.
        real: what the discriminators return for the recordings; None where they are not used.
    """

    decoded: Tensor
    losses: dict[str, Tensor]
    found: Tensor
    commitment: Tensor
    real: Any


class Trainer:
    """Trains copies of the networks step by step; `export` copies the weights back.

    Most items use only the first few codebooks, a random number each (quantizer dropout, Zeghidour et al. 2021, section
    3.4), so that the first rows alone decode well. Training depends only on settings, batches and progress: a trainer
    that loads the `state` of another continues exactly as that one would, bit for bit on a CPU.

    A step that explodes (the loss is NaN or many times its average) changes no weight, and neither do those after it.
    At the next look at the losses, the trainer rolls back to its last snapshot, halves the learning rate and says so.

    A step is one batch, unless `share_out` says otherwise.

    Args:
        encoder: wavs -> (B, D, T) and an unused state; may have no parameters.
        quantizer: None to train only a decoder, as for a vocoder.
        decoder: (B, D, T) -> wavs.
        sample_rate: Hz.
        settings: see TrainingSettings.
        batch: step -> wavs (B, 1, N) of about RMS 1, on the CPU.
    """

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: ResidualVQ | None,
        decoder: Decoder,
        sample_rate: int,
        settings: TrainingSettings,
        batch: Batch,
    ):
        self.settings, self.batch = settings, batch
        self.world, self.num_batches = World(), 1
        self.like = like = decoder.window  # device and dtype
        self.device = like.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            discriminators = Discriminators(
                sample_rate, settings.discriminator_channels, settings.discriminator_windows
            ).to(like)
        codec = [copy.deepcopy(encoder), copy.deepcopy(decoder)]
        self.modules = nn.ModuleDict({"encoder": codec[0], "decoder": codec[1], "discriminators": discriminators})
        self.learner = None if quantizer is None else CodebookLearner(copy.deepcopy(quantizer))
        if self.learner is not None:
            self.modules["learner"] = self.learner
            codec.append(self.learner)
        self.modules.train()
        self.loss_of = ReconstructionLoss(sample_rate).to(like)
        self.balancer = Balancer(WEIGHTS)
        self.optimizers: dict[str, Any] = {
            name: torch.optim.AdamW(
                [p for part in parts for p in part.parameters()],
                settings.learning_rate,
                betas=(0.8, 0.99),
                weight_decay=0.0,
                fused=True,
            )
            for name, parts in (("codec", codec), ("discriminators", [discriminators]))
        }
        for parameter in self.modules.parameters():
            parameter.grad = torch.zeros_like(parameter)  # so that optimizers have a state for each from the start
        self.step = 0
        self.quantized = False  # whether the codebooks have been initialised
        self.lr_scale = 1.0  # factor of the learning rate; halved by each rollback
        self.ema_loss: Tensor | None = None  # moving average of the reconstruction loss, float64
        self.ema_disc_loss: Tensor | None = None  # moving average of the discriminators' hinge loss, float64
        self.exploded = torch.zeros((), device=self.device)  # 1 from an explosion until the rollback
        self._snapshot: dict[str, Any] = {}
        self.looks_always = self.device.type == "cpu"  # at each step, since there is nothing to wait for
        self._unseen: list[Tensor] = []  # `exploded` after each step since the last look
        self._losses: dict[str, Tensor] = {}  # of the last step

    def share_out(self, world: World, num_batches: int) -> None:
        """Train with other ranks, which share out the `num_batches` batches of each step.

        Raises:
            ConfigError: they can't be shared out equally.
        """
        world.share(num_batches)
        self.world, self.num_batches = world, num_batches
        if self.learner is not None:
            self.learner.world = world
        world.copy_from_first(self.modules.state_dict().values())

    def train_step(self, progress: float) -> dict[str, float]:
        """Train for one step.

        Args:
            progress: fraction of the run that is done, from 0 to 1.

        Returns:
            What `look` returns, or {} where nobody looked because the host would have waited for a GPU.

        Raises:
            TrainingError: see `look`.
        """
        if self.step % SNAPSHOT_EVERY == 0 or not self._snapshot:
            self._snapshot = copy.deepcopy(self.state())
        self._losses = self._step(progress)
        self._unseen.append(self.exploded)
        self.step += 1
        looks = self.looks_always or self.step == 1 or self.step % LOOK_EVERY == 0
        return self.look() if looks else {}

    def look(self) -> dict[str, float]:
        """Wait for the steps since the last look, and roll back if one of them exploded.

        Returns:
            The last step's losses by name; after an explosion {"rolled_back_to", "exploded_at", "lr_scale"}; {} if
            there was no step.

        Raises:
            TrainingError: the loss exploded repeatedly.
        """
        if not self._unseen:
            return {}
        numbers = torch.stack([x.double() for x in (*self._unseen, *self._losses.values())]).tolist()
        exploded, losses = numbers[: len(self._unseen)], numbers[len(self._unseen) :]
        self._unseen.clear()
        if not any(exploded):
            rate = self.optimizers["codec"].param_groups[0]["lr"]
            return {**dict(zip(self._losses, losses, strict=True)), "learning_rate": rate}
        exploded_at, lr_scale = self.step - exploded.count(1.0) + 1, self.lr_scale / 2
        if lr_scale < 0.5**MAX_ROLLBACKS:
            raise self.world.shared(
                TrainingError(
                    f"the front-end's loss explodes or is NaN at step {exploded_at}, after {MAX_ROLLBACKS} rollbacks: "
                    f"lower its learning_rate from {self.settings.learning_rate:g}, or look for odd files with "
                    "audiogen doctor"
                )
            )
        self.load(copy.deepcopy(self._snapshot))
        self._snapshot["lr_scale"] = self.lr_scale = lr_scale
        return {"rolled_back_to": float(self.step), "exploded_at": float(exploded_at), "lr_scale": lr_scale}

    def figures(self) -> dict[str, list[float]]:
        """Return the perplexity and the used fraction of each codebook; empty without a quantizer."""
        if self.learner is None:
            return {}
        return {"perplexity": self.learner.perplexity().tolist(), "usage": self.learner.usage().tolist()}

    def export(self, encoder: nn.Module, quantizer: ResidualVQ, decoder: Decoder) -> None:
        """Copy the current weights into networks of the same shape."""
        self.look()
        encoder.load_state_dict(self.modules["encoder"].state_dict())
        decoder.load_state_dict(self.modules["decoder"].state_dict())
        if self.learner is not None:
            quantizer.load_state_dict(self.learner.quantizer.state_dict())

    def state(self) -> dict[str, Any]:
        """Return everything needed to continue: `modules` and `optimizers` by name, and scalars."""
        self.look()
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "step": self.step,
            "quantized": self.quantized,
            "lr_scale": self.lr_scale,
            "ema_loss": None if self.ema_loss is None else float(self.ema_loss),
            "ema_disc_loss": None if self.ema_disc_loss is None else float(self.ema_disc_loss),
            "norms": {name: float(norm) for name, norm in self.balancer.norms.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.step, self.quantized, self.lr_scale = state["step"], state["quantized"], state["lr_scale"]
        self.ema_loss, self.ema_disc_loss = self._scalar(state["ema_loss"]), self._scalar(state["ema_disc_loss"])
        self.balancer.norms = {name: self._scalar(norm) for name, norm in state["norms"].items()}
        self.exploded = torch.zeros((), device=self.device)

    def _scalar(self, x: float | None) -> Any:
        return None if x is None else torch.tensor(x, dtype=torch.float64, device=self.device)

    def _step(self, progress: float) -> dict[str, Tensor]:
        """Return the step's losses, without waiting for a GPU; after an explosion no weight changes any more."""
        first = self.step * self.num_batches
        generator = generator_for(self.settings.seed, first, 1)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = self.settings.learning_rate * self.lr_scale * self._schedule(progress)
        if self.learner is not None and not self.quantized and progress >= UNQUANTIZED:
            self._start_codebooks(self.learner, first, generator)
        passes = [
            self._pass(first + i, generator_for(self.settings.seed, first + i, 1) if i else generator, progress)
            for i in self.world.share(self.num_batches)
        ]
        if self.learner is not None and self.quantized:
            self.learner.update()
        gradients = self.balancer.gradients([(one.losses, one.decoded) for one in passes], self.world)
        rows = [
            [*one.losses.values(), one.found, one.commitment, gradient.isfinite().all()]
            for one, gradient in zip(passes, gradients, strict=True)
        ]
        *losses, found, commitment, finite = self._means(rows)
        usual = math.inf if self.ema_loss is None else self.ema_loss
        sound = (found <= EXPLODED * usual) & commitment.isfinite() & (finite == 1)
        self.exploded = torch.maximum(self.exploded, (~sound).float())
        self._backward("codec", [self._roots(one, gradient) for one, gradient in zip(passes, gradients, strict=True)])
        optimizer = self.optimizers["codec"]
        optimizer.found_inf = self.exploded  # the fused step leaves all as it is where this is 1
        optimizer.step()
        self.ema_loss = found if self.ema_loss is None else 0.98 * self.ema_loss + 0.02 * found
        record = {"loss": found, **dict(zip(passes[0].losses, losses, strict=True))}
        if self.quantized:
            record["commitment"] = commitment
        if passes[0].real is not None:
            record["discriminators"] = self._train_discriminators(passes)
        return record

    def _pass(self, number: int, generator: torch.Generator, progress: float) -> Pass:
        """Run the networks on a batch."""
        wav = send(self.batch(number), self.like.device).to(self.like)
        latent, _ = self.modules["encoder"](wav)  # (B, dim, T)
        commitment = latent.new_zeros(())
        if self.learner is not None and self.quantized:
            depths = draw_depths(len(wav), len(self.learner.quantizer.codebooks), generator)
            latent, commitment = self.learner.quantize(latent, depths, generator)
        decoded, _ = self.modules["decoder"](latent)
        losses = self.loss_of(decoded, wav)
        found = sum((loss.detach() for loss in losses.values()), wav.new_zeros(())).double()
        adversarial = (self.quantized or self.learner is None) and progress >= self.settings.adversarial_from
        real = self.modules["discriminators"](wav) if adversarial else None
        if real is not None:
            losses |= generator_losses(real, self.modules["discriminators"](decoded))
        return Pass(decoded, losses, found, commitment, real)

    def _means(self, rows: list[list[Tensor]]) -> Tensor:
        """Average figures over the batches of all ranks: a row for each of this rank's batches -> float64."""
        return self.world.gather(torch.stack([torch.stack([x.detach().double() for x in row]) for row in rows])).mean(0)

    def _roots(self, one: Pass, gradient: Tensor) -> Callable[[], None]:
        """Return the backward pass of a batch, from the balanced gradient of what was decoded."""
        roots, seeds = [one.decoded], [gradient]
        if self.quantized:
            roots, seeds = [*roots, one.commitment], [*seeds, torch.full_like(one.commitment, COMMITMENT_WEIGHT)]
        return lambda: torch.autograd.backward(roots, seeds)

    def _backward(self, name: str, passes: list[Callable[[], None]]) -> None:
        """Set the mean gradient of all ranks' batches, given the backward pass of each of this rank's."""
        total, parameters = TreeSum(), self.optimizers[name].param_groups[0]["params"]
        for backward in passes:
            self.optimizers[name].zero_grad(set_to_none=False)
            backward()
            if self.num_batches > 1:
                total.add([p.grad.clone() for p in parameters])
        if self.num_batches > 1:
            for p, gradient in zip(parameters, self.world.add_up(total.result()), strict=True):
                p.grad.copy_(gradient / self.num_batches)

    def _train_discriminators(self, passes: list[Pass]) -> Tensor:
        """Train the discriminators unless they are far ahead of the codec; return their hinge loss."""
        losses = [hinge_loss(one.real, self.modules["discriminators"](one.decoded.detach())) for one in passes]
        [value] = self._means([[loss] for loss in losses])
        self.ema_disc_loss = value if self.ema_disc_loss is None else 0.98 * self.ema_disc_loss + 0.02 * value
        ahead = ~(self.ema_disc_loss >= DISC_PAUSE_LOSS)
        if self.looks_always and bool(ahead):
            return value  # spares a CPU the backward pass; a GPU would be waited for
        self._backward("discriminators", [loss.backward for loss in losses])
        optimizer = self.optimizers["discriminators"]
        optimizer.found_inf = torch.maximum(self.exploded, ahead.float())
        optimizer.step()
        return value

    @torch.no_grad()
    def _start_codebooks(self, learner: CodebookLearner, first: int, generator: torch.Generator) -> None:
        points: list[Tensor] = []
        wanted, found = START_POINTS * learner.quantizer.codebooks.shape[1], 0
        while found < wanted:
            latent, _ = self.modules["encoder"](self.batch(first + len(points)).to(self.like))
            points.append(latent.transpose(1, 2).flatten(0, 1))  # (B * T, dim)
            found += len(points[-1])
        learner.start(torch.cat(points), generator)
        self.quantized = True

    def _schedule(self, progress: float) -> float:
        """Return the factor of the learning rate: linear warm-up, then a cosine down to a twentieth."""
        return min(1.0, (self.step + 1) / WARMUP_STEPS) * (0.525 + 0.475 * math.cos(math.pi * progress))


def draw_depths(batch_size: int, num_codebooks: int, generator: torch.Generator) -> Tensor:
    """Draw how many codebooks each item uses: K with probability USE_ALL, else uniform from 1 to K. (B,) int64."""
    few = torch.randint(1, num_codebooks + 1, (batch_size,), generator=generator)
    return torch.where(torch.rand(batch_size, generator=generator) < USE_ALL, num_codebooks, few)
