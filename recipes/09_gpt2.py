"""Lesson 9: the training pipeline of GPT-2, at small scale.

    python recipes/09_gpt2.py FOLDER [--out runs/09_gpt2] [--preset small] [--minutes 5] [--resume]

What it teaches. Training a model well takes more than a model that works: it takes a pipeline, and each part of it can
be examined by itself. Which weights decay? How does the learning rate rise and fall? How is a batch that is too large
for memory split into pieces? What does half precision cost and save? What does compiling gain? How does a run that was
killed continue as if nothing had happened? Two figures say how well the hardware is used: tokens per second, and the
operations per second as a fraction of those of the fastest matrix product.

How it carries over to audio. Nothing in this pipeline depends on the tokens being sound. What differs is how much a
token holds: a text token is about four letters, and speech has some fifteen letters a second; the tokens here are codes
of mel frames, 250 a second. So an hour of sound is almost a million tokens, and one batch of GPT-2, half a million
tokens, is about half an hour of sound.

What to try. Use a separate folder for each experiment (--out runs/09_try). --preset 124M on a GPU: the sizes and the
schedule of GPT-2 small, unchanged. It also runs on a CPU, at some hundred tokens per second. --preset 1.5B, the largest
GPT-2, is for several GPUs (docs/scale.md); what it would cost is worked out for any preset. --minutes 0.5 and then, in
the same folder, --resume --minutes 1: where does the loss curve continue?
"""

import dataclasses
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure

from audiogen.commands.defaults import resolve_precision
from audiogen.commands.plan import Flags, Plan
from audiogen.commands.train import train
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import Crops, encode_folder
from audiogen.frontends import Frontend
from audiogen.listen import Line, clip_cards, grid, line_chart, picture, section, table, text
from audiogen.listen.html import link
from audiogen.listen.run_reader import read_folder
from audiogen.listen.selection import choose
from audiogen.models.batch import Batch
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.build import blank_model, build_model
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import require_no_run
from audiogen.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from audiogen.training.gradients import compiled
from audiogen.training.schedule import learning_rate, make_optimizer
from audiogen.training.throughput import matmul_rate, now, training_flops
from audiogen.utils.devices import choose_device
from audiogen.utils.scripts import run_script

PRESETS = {
    "tiny": [
        "backbone.dim=32",
        "backbone.num_layers=2",
        "training.crop_frames=32",
        "training.batch_size=4",
        "training.accumulation=2",
        "training.evaluations=2",
    ],
    "small": [
        "backbone.dim=256",
        "backbone.num_layers=6",
        "backbone.num_heads=4",
        "training.crop_frames=256",
        "training.batch_size=4",
        "training.accumulation=2",
        "training.learning_rate=1e-3",
    ],
    # Sizes of Radford et al. 2019, table 2, first row; schedule of Brown et al. 2020 (GPT-3), table 2.1 and appendix B,
    # as reproductions of GPT-2 use it: half a million tokens per step, in batches of 16 x 1024.
    "124M": [
        "backbone.dim=768",
        "backbone.num_layers=12",
        "backbone.num_heads=12",
        "backbone.window=1024",
        "backbone.dropout=0.0",
        "training.crop_frames=1024",
        "training.batch_size=16",
        "training.accumulation=32",
        "training.learning_rate=6e-4",
        "training.final_learning_rate=0.1",
        "training.warmup=0.0375",
        "training.weight_decay=0.1",
    ],
    # The last row of that table, 1.5 billion weights: the learning rate and a million tokens per step of GPT-3 1.3B.
    # Activations are computed again in the backward pass; eight GPUs share out weights and optimizer.
    "1.5B": [
        "backbone.dim=1600",
        "backbone.num_layers=48",
        "backbone.num_heads=25",
        "backbone.window=1024",
        "backbone.dropout=0.0",
        "backbone.recompute=true",
        "training.crop_frames=1024",
        "training.batch_size=16",
        "training.accumulation=64",
        "training.learning_rate=2e-4",
        "training.final_learning_rate=0.1",
        "training.warmup=0.0375",
        "training.weight_decay=0.1",
    ],
}

#: The example of the cost: hours of sound, and a GPU by its data sheet (NVIDIA H100 SXM: dense bf16 operations per
#: second), the share of them that good training reaches, and the price of an hour in dollars.
HOURS, GPU, GPU_RATE, GPU_SHARE, GPU_PRICE = 10_000, "H100", 989e12, 0.4, 2.5


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="size of the model (--short: tiny)")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of the final run")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="continue the final run")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=1", help="a setting of the model"
    )
    args = parser.parse_args()
    device, place = choose_device(args.device), args.out / "gpt"
    if not args.resume:
        require_no_run(place)
    preset, minutes, repeats = ("tiny", 0.02, 2) if args.short else (args.preset, args.minutes, 5)
    settings = {"num_codebooks": 2, "codebook_size": 16, "num_features": 20} if args.short else {}

    # 1. Sound to tokens: and the complete configuration of the run.
    encoded = encode_folder(args.folder, args.out, "melvq", **settings)
    overrides = [*PRESETS[preset], *args.overrides]
    spec = encoded.spec
    config = Plan.over(encoded.frontend, Flags(None, "gpt", overrides, training={"minutes": minutes})).config
    crops = encoded.crops(config.training.crop_frames, config.training.batch_size)
    torch.manual_seed(0)
    model = build_model(config, spec).to(device)
    size = sum(p.numel() for p in model.parameters())
    tokens = config.training.batch_size * config.training.crop_frames * spec.num_codebooks  # in one batch of crops
    print(f"{encoded.sides.summary}; {spec.num_codebooks * spec.frame_rate:.0f} tokens per second")
    print(
        f"preset {preset}: {size:,} parameters, {tokens:,} tokens per batch, "
        f"{tokens * config.training.accumulation:,} per step"
    )

    # 2. Which weights decay: matrices, since decay spreads weight over all inputs. Biases and gains don't decay;
    #    pulling them to zero has no such benefit.
    groups = [
        [
            "with decay" if group["weight_decay"] else "without decay",
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
        ]
        for group in make_optimizer(model, config.training).param_groups
    ]
    for row in groups:
        print(f"  {row[0]:>13}: {row[1]} tensors, {row[2]:,} numbers")

    # 3. The schedule: a linear warm-up while the optimizer's running averages fill up, then half a cosine down.
    progress = [i / 200 for i in range(201)]
    schedule = Line("learning rate", [100 * p for p in progress], [learning_rate(p, config.training) for p in progress])

    # 4. Accumulation: the gradient of a batch is the mean of its pieces' gradients, so memory does not limit its size.
    difference = accumulation_difference(model, crops, device)
    print(f"the gradient of a batch and the sum over its pieces differ by {difference:.1e} of the norm")

    # 5. Precision and compiling: how long does a step take, and which fraction of the fastest matrix product is that?
    flops = config.training.batch_size * size_and_flops(config, spec)[1]
    speeds = []
    for name, precision, compile in modes(device):
        seconds = step_seconds(config, spec, crops, device, precision, compile, repeats)
        best = matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32, 0.2 if args.short else 1)
        speeds.append(
            [name, 1000 * seconds, tokens / seconds, flops / seconds / 1e9, best / 1e9, 100 * flops / seconds / best]
        )
        print(
            f"  {name:>13}: {1000 * seconds:8.1f} ms for {tokens:,} tokens, {tokens / seconds:9,.0f} tokens/s, "
            f"{flops / seconds / 1e9:8,.0f} GFLOP/s, {100 * flops / seconds / best:4.0f} % of a matrix product"
        )
    rate = max(row[2] for row in speeds)
    costs = [cost(name, encoded.frontend) for name in ("124M", "1.5B")]
    heard = HOURS * 3600 * spec.num_codebooks * spec.frame_rate  # tokens
    print(f"{HOURS:,} hours of sound are {heard:.1e} tokens, {heard / rate / 86400:,.0f} days for this model here")
    for name, weights, each, _, hours, dollars in costs:
        print(f"  {name}: {weights:,} weights, {each:.2f} GFLOP per token, {hours:,.0f} {GPU} hours, ${dollars:,.0f}")

    # 6. Checkpoint and resume: crops and dropout are functions of (seed, step); the checkpoint holds everything else.
    resumed = resume_difference(config, spec, crops, args.out / "checkpoint-demo", device)
    print(
        f"the weights of a resumed and an uninterrupted run differ by at most {resumed:g}"
        + ("" if device.type == "cpu" else " (a GPU may add numbers in another order)")
    )

    # 7. All together: the library's training loop.
    run = train(
        args.folder,
        place,
        frontend=str(args.out / "cache"),
        backbone="gpt",
        minutes=minutes,
        device=args.device,
        resume=args.resume,
        overrides=[
            *overrides,
            f"training.sample_seconds={1 if args.short else 4}",
            *(["training.compile=true"] if device.type == "cuda" else []),
        ],
    )
    events = read_metrics(run.folder)
    curve = [event for event in events if event["event"] == "train"]
    final = [event for event in events if event["event"] == "final"][-1]
    steps, seconds = (curve[-1][key] - curve[0][key] for key in ("step", "seconds"))
    speed = (
        f"{steps:,} steps at {tokens * config.training.accumulation * steps / seconds:,.0f} tokens per second"
        if steps
        else "too few steps to measure a speed"
    )
    print(
        f"run: {speed}; held-out {final['loss']:.3f} bits per token, counted bigram "
        f"{final['baselines']['bigram']['loss']:.3f}"
    )

    held_out = [event for event in events if event["event"] == "held_out"]
    loss = line_chart(
        [
            Line("held-out files", [e["step"] for e in held_out], [e["loss"] for e in held_out]),
            Line("training files", [e["step"] for e in curve], [e["loss"] for e in curve]),
        ],
        {name: counted["loss"] for name, counted in final["baselines"].items()},
        "training steps",
        "Bits per token, lower is better",
        "Loss by training step; horizontal lines are the counted models.",
    )
    sounds = choose(read_folder(run.folder))
    page = write_lesson(
        __file__,
        args,
        section(
            "The model and its batch",
            text(
                f"{encoded.sides.summary}. Preset {preset}: {size:,} parameters. Each step accumulates the gradients "
                f"of {config.training.accumulation} batches of {tokens:,} tokens."
            ),
            table(["weights", "tensors", "numbers"], groups),
            text("Weight decay applies to matrices, not to biases and gains."),
        ),
        section(
            "The schedule",
            line_chart(
                [schedule],
                {},
                "percent of the run",
                "Learning rate",
                "Learning rate: a short linear warm-up, then half a cosine down.",
            ),
            text(
                "The warm-up is short and matters at the very start: AdamW divides by a running mean of squared "
                "gradients, which at first is an average of very few."
            ),
        ),
        section(
            "Gradient accumulation",
            text(
                "The gradient of one batch was computed at once, and as the sum over two halves. The two differ by "
                f"{difference:.1e} of the gradient's norm" + (", which is rounding." if difference < 1e-4 else ".")
            ),
        ),
        section(
            "Precision, compiling, and the hardware",
            table(
                ["a step in", "ms", "tokens per second", "GFLOP/s", "best matrix product, GFLOP/s", "% of it"], speeds
            ),
            picture(speed_picture(speeds), "Bars: tokens per second of each mode"),
            text(
                "GFLOP/s are the operations of a step (two for each weight and token in the forward pass, four in the "
                "backward pass, plus those of attention) divided by its time. The last column compares them with the "
                "fastest matrix product of the same precision, measured right afterwards. The rest of the time goes "
                "to memory traffic, normalisation, the optimizer and Python."
                + (" Compiling is measured on a GPU only." if device.type == "cpu" else "")
            ),
        ),
        section(
            f"What {HOURS:,} hours would cost",
            text(
                f"{HOURS:,} hours x 3600 s x {spec.num_codebooks * spec.frame_rate:.0f} tokens per second = "
                f"{heard:.1e} tokens. At {rate:,.0f} tokens per second, this machine would read them once, "
                f"with the model of preset {preset}, in {heard / rate / 86400:,.0f} days."
            ),
            table(["model", "weights", "GFLOP per token", "EFLOP in all", f"{GPU} hours", "dollars"], costs),
            text(
                f"For one pass, by the counted operations: an {GPU} computes {GPU_RATE / 1e12:.0f} TFLOP per second in "
                f"bf16 by its data sheet, of which training is assumed to reach {100 * GPU_SHARE:.0f} %, at "
                f"${GPU_PRICE} per hour. Eight of them take an eighth of the hours, for the same money, if they do not "
                "wait for each other. Activations that are computed again (1.5B) add a third to the time, but not to "
                "the counted operations. Models have fewer weights than the presets are named for, since there are "
                f"{spec.num_choices} codes instead of 50,257 tokens."
            ),
        ),
        section(
            "Killed and resumed",
            text(
                "One model was trained for eight steps without interruption. Another was created anew after four "
                "steps, loaded from a checkpoint together with its optimizer, and trained for four more. Their weights "
                f"differ by at most {resumed:g}."
            ),
        ),
        section(
            "The run",
            loss,
            text(
                f"Training: {speed}. Held-out files: {final['loss']:.3f} bits per token, "
                f"{final['bits_per_second']:.0f} bits per second of sound. The run's own page has more:"
            ),
            link("gpt/index.html"),
        ),
        section(
            "How it sounds",
            text(
                "Held-out files, each followed by its round trip through the tokens; then samples without a prompt, "
                "and a continuation of the beginning of a held-out file, which is marked as prompt."
            ),
            grid(clip_cards([*sounds.pairs[:4], *sounds.generated[:2], *sounds.generated[-1:]])),
        ),
    )
    print(f"open {page}")


def accumulation_difference(model: SequenceModel, crops: Crops, device: torch.device) -> float:
    """Compute a gradient for a whole batch and for its halves: the norm of the difference, relative to the gradient."""
    batch = crops.batch(0)[0].to(device)
    model.eval()  # dropout would drop other units in each piece
    gradients = []
    for pieces in (1, 2):
        model.zero_grad()
        for piece in batch.x.chunk(pieces):
            (model(Batch(piece)).sum() / model.num_entries(batch)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def size_and_flops(config, spec) -> tuple[int, int]:
    """Count the weights, and the operations of a crop, forward and backward, without those that are computed again.

    All layers are alike, so models of one and two layers are enough.
    """
    found = []
    for num_layers in (1, 2):
        backbone = dataclasses.replace(config.backbone, num_layers=num_layers, recompute=False)
        model = blank_model(dataclasses.replace(config, backbone=backbone), spec).to("meta")
        weights = sum(p.numel() for p in model.parameters())
        found.append((weights, training_flops(model, config.training.crop_frames)))
    (weights, flops), (weights_of_two, flops_of_two) = found
    more = config.backbone.num_layers - 1
    return weights + more * (weights_of_two - weights), flops + more * (flops_of_two - flops)


def cost(preset: str, frontend: Frontend) -> list:
    """Work out what one pass over `HOURS` hours costs: a row of the table, without running the model."""
    spec, config = frontend.spec, Plan.over(frontend, Flags(None, "gpt", PRESETS[preset])).config
    weights, flops = size_and_flops(config, spec)
    each = flops / (config.training.crop_frames * spec.num_codebooks)  # per token
    total = each * HOURS * 3600 * spec.num_codebooks * spec.frame_rate
    hours = total / (GPU_RATE * GPU_SHARE) / 3600
    return [preset, weights, each / 1e9, total / 1e18, hours, hours * GPU_PRICE]


def modes(device: torch.device) -> list[tuple[str, str, bool]]:
    """Return the modes to measure: name, precision, and whether to compile.

    Compiling is left out on a CPU, where it takes minutes and does not make training faster.
    """
    out = [("fp32", "fp32", False), ("bf16", "bf16", False)]
    return [*out, ("bf16, compiled", "bf16", True)] if device.type == "cuda" else out


def step_seconds(
    config, spec, crops: Crops, device: torch.device, precision: str, compile: bool, repeats: int
) -> float:
    """Measure the median time of a step on one batch: forward, backward and optimizer, in seconds.

    Args:
        config: config of the run.
        spec: spec of the tokens.
        crops: training crops.
        device: where to measure.
        precision: "fp32" or "bf16".
        compile: compile the model, block by block.
        repeats: number of steps to measure.
    """
    torch.manual_seed(0)
    model = build_model(config, spec).to(device)
    optimizer = make_optimizer(model, config.training)
    loss_of = compiled(model) if compile else model
    batch = crops.batch(0)[0].to(device)
    entries, times = model.num_entries(batch), []
    for _ in range(2 + repeats):
        began = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(batch).sum() / entries
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(now(device) - began)
    return statistics.median(times[2:])  # the first two allocate memory, and compile


def resume_difference(config, spec, crops: Crops, folder: Path, device: torch.device) -> float:
    """Return the largest difference between weights after eight steps, and after four, a checkpoint and four more."""
    precision = resolve_precision(config.training.precision, device)

    def fresh() -> tuple[SequenceModel, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = build_model(config, spec).to(device)
        return model, make_optimizer(model, config.training)

    def steps(model: SequenceModel, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        for step in range(start, stop):
            torch.manual_seed(step)  # dropout
            batch = crops.batch(step)[0].to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / 8, config.training)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = model(batch).sum() / model.num_entries(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    first, optimizer = fresh()
    steps(first, optimizer, 0, 4)
    save_checkpoint(folder, Checkpoint(4, {"model": first.state_dict(), "optimizer": optimizer_tensors(optimizer)}, {}))
    steps(first, optimizer, 4, 8)

    second, optimizer = fresh()  # as after a crash: only the file is left
    checkpoint = load_checkpoint(folder, device)
    second.load_state_dict(checkpoint.tensors["model"])
    load_optimizer_tensors(optimizer, checkpoint.tensors["optimizer"])
    steps(second, optimizer, checkpoint.step, 8)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def speed_picture(speeds: list[list]) -> Figure:
    """Plot the tokens per second of each mode."""
    figure = Figure(figsize=(6, 0.6 + 0.5 * len(speeds)), layout="constrained")
    axes = figure.subplots()
    axes.barh([row[0] for row in speeds], [row[2] for row in speeds], color="#7a4fd0")
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second")
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
