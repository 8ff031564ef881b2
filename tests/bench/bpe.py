"""Byte-pair encoding of codes beside Hugging Face's `tokenizers`: learning merges, and encoding by them.

    pip install tokenizers
    python tests/bench/bpe.py [--codes 1000000] [--merges 1000] [--rounds 5] [--threads 1] [--json bpe.json]

Both sides are given the same made-up codes in pieces of 1,000, in turn, in one process; each round is of other codes.
Theirs reads text, so each code is a letter there, of the same order, and a piece is a word. Merges and encodings are
compared and must be equal. What the first call costs, compiling and not, is measured in processes of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: For all.py.
SHORT = "--codes 100000 --merges 200 --rounds 1"
NEEDS = ("tokenizers",)

ALPHABET, PIECE = 1024, 1000
FIRST_LETTER = 0x4E00
KINDS = ("by chance", "with habits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--merges", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="that the peer may use; ours uses one")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    os.environ |= {"RAYON_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": str(args.threads > 1).lower()}
    try:
        import tokenizers
    except ImportError:
        raise SystemExit("the peer is not installed: pip install tokenizers") from None
    from audiogen.frontends.bpe.merges import apply_merges, learn_merges, rank_table

    first = {"compiling": first_call(fresh=True), "compiled before": first_call(fresh=False)}
    for name, seconds in first.items():
        print(f"first call, {name}: {seconds:.2f} s")
    learn_merges([np.arange(4)], ALPHABET, 1, 2)
    apply_merges(np.arange(4), rank_table(np.zeros((0, 2), np.int64)), ALPHABET)

    rows = []
    for kind in KINDS:
        times: dict[str, list[float]] = {name: [] for name in ("learn", "their learn", "encode", "their encode")}
        for seed in range(args.rounds):
            pieces = codes_of(kind, args.codes, seed)
            words = ["".join(map(chr, (piece + FIRST_LETTER).tolist())) for piece in pieces]
            library = tokenizers.Tokenizer(tokenizers.models.BPE())
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=ALPHABET + args.merges,
                min_frequency=2,
                show_progress=False,
                initial_alphabet=[chr(FIRST_LETTER + code) for code in range(ALPHABET)],
            )

            merges = timed(times["learn"], lambda x=pieces: learn_merges(x, ALPHABET, args.merges, args.codes))
            timed(times["their learn"], lambda x=words, y=library, z=trainer: y.train_from_iterator(x, z, len(x)))
            table = rank_table(merges)
            ours = timed(times["encode"], lambda x=pieces, y=table: [apply_merges(piece, y, ALPHABET) for piece in x])
            theirs = timed(times["their encode"], lambda x=words, y=library: y.encode_batch_fast(x))

            model = json.loads(library.to_str())["model"]
            assert merges.tolist() == [[model["vocab"][token] for token in pair] for pair in model["merges"]]
            assert all(codes.tolist() == found.ids for codes, found in zip(ours, theirs, strict=True))
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        shorter = args.codes / sum(len(codes) for codes in ours)
        rows.append(
            {
                "codes": kind,
                "merges": len(merges),
                "shorter": shorter,
                **medians,
                "learn ratio": medians["their learn"] / medians["learn"],
                "encode ratio": medians["their encode"] / medians["encode"],
            }
        )

    print(
        f"\n{args.codes:,} codes of {ALPHABET}, {args.merges:,} merges, medians of {args.rounds} rounds; "
        f"tokenizers {tokenizers.__version__} on {args.threads} thread(s), ours on one\n"
    )
    print(
        "| codes | shorter by | learning, s | theirs, s | ratio | encoding, s | theirs, s | ratio |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for row in rows:
        print(
            f"| {row['codes']} | {row['shorter']:.2f} | {row['learn']:.3f} | {row['their learn']:.3f} | "
            f"{row['learn ratio']:.1f}x | {row['encode']:.3f} | {row['their encode']:.3f} | "
            f"{row['encode ratio']:.1f}x |"
        )
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "machine": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                    "settings": vars(args) | {"json": str(args.json)},
                    "first_call_seconds": first,
                    "rows": rows,
                },
                indent=2,
            )
            + "\n"
        )


def codes_of(kind: str, num_codes: int, seed: int) -> list[np.ndarray]:
    """Pieces of codes: drawn one by one, few of them often (Zipf's law), or each with habits in what follows it."""
    rng = np.random.default_rng(seed)
    if kind == KINDS[0]:
        weights = 1 / np.arange(1, ALPHABET + 1)
        codes = rng.choice(ALPHABET, num_codes, p=weights / weights.sum())
    else:
        followers = rng.integers(ALPHABET, size=(ALPHABET, 16)).tolist()
        weights = 1 / np.arange(1, 17) ** 1.5
        code, codes = 0, []
        for choice in rng.choice(16, num_codes, p=weights / weights.sum()).tolist():
            code = followers[code][choice]
            codes.append(code)
    return [np.array(codes[start : start + PIECE], np.int64) for start in range(0, num_codes, PIECE)]


def timed(seconds: list[float], call: Callable):
    began = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - began)
    return result


def first_call(fresh: bool) -> float:
    """Seconds until a few codes are learned from and encoded in a new process, numba's import included, torch's not."""
    script = (
        "import time; import numpy as np; import audiogen.frontends; began = time.perf_counter()\n"
        "from audiogen.frontends.bpe.merges import *\n"
        "merges = learn_merges([np.array([1, 2, 1, 2])], 3, 1, 9)\n"
        "apply_merges(np.array([1, 2]), rank_table(merges), 3)\n"
        "print(time.perf_counter() - began)"
    )

    def run(cache: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    with tempfile.TemporaryDirectory() as cache:
        cold = run(cache)
        return cold if fresh else statistics.median(run(cache) for _ in range(3))


if __name__ == "__main__":
    main()
