"""Word an evaluation report."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..spec import Unit
from ..utils.text import plural
from .likeness import in_words as likeness_in_words

#: Maximum number of values of a label in a table.
MOST_ROWS = 24


def report_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the report as table rows: (name, value) each; those of earlier stages come first."""
    rows = []
    for name, earlier in result.get("stages", {}).items():
        rows += [(f"stage {name}: {what}", value) for what, value in _loss_rows(earlier)]
    rows += _loss_rows(result)
    if result["round_trip"]:
        trip = result["round_trip"]
        name = f"round trip of {plural(trip['files'], 'file')}: mel distance (0 is perfect)"
        rows.append((name, f"{trip['mel_distance']:.3f}"))
    rows.append(("held out", f"{result['files']} files, {result['seconds'] / 60:.1f} min"))
    if result.get("generated"):
        rows += _generated_rows(result["generated"])
    if result.get("melody") and result["melody"]["generated"]:
        made, trips = result["melody"]["generated"], result["melody"]["round_trips"]
        said = f"{made['value']:.2f} ({made['low']:.2f} to {made['high']:.2f}); melodies of other clips (floor) "
        said += f"{made['shuffled']:.2f}; round trips of the recordings (ceiling) {trips['value']:.2f}"
        rows.append((f"melody of {result['melody']['num']} clips: chroma cosine with what was asked for", said))
    if result.get("seen"):
        rows.append(("left out (used in training)", f"{result['seen']} files"))
    return rows


def _loss_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows on the held-out loss, beside those of simple models."""
    rows = [(Unit(result["unit"]).per_entry, f"{result['loss']:.3f}")]
    for name, own in result.get("corpora", {}).items():
        rows.append((f"of {name}, {own['files']} files", f"{own['loss']:.3f}"))
    if "weighted_loss" in result:
        rows.append(("mean of these, by the weights", f"{result['weighted_loss']:.3f}"))
    if result["bits_per_sample"] is not None:
        rows.append(("bits per sample", f"{result['bits_per_sample']:.3f}"))
    if result["bits_per_second"] is not None:
        rows.append(("bits per second of audio", f"{result['bits_per_second']:.0f}"))
    for name, counted in (result["baselines"] or {}).items():
        if counted["bits_per_second"] is None:
            rows.append((f"{name}, fitted to the training frames", f"{counted['loss']:.3f} nats per frame"))
        else:
            bits = f"{counted['loss']:.3f} bits per code, {counted['bits_per_second']:.0f} bits per second"
            rows.append((f"{name}, counted on the training codes", bits))
    for name, value in result.get("base_bits_per_second", {}).items():
        rows.append((f"{name}, counted on the codes before merging", f"{value:.0f} bits per second"))
    return rows


def _generated_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows on what was generated, each beside the same for recordings."""
    if found["kad"] is None:
        return [(f"{found['num']} generated clips", "less than two seconds of recordings to compare them with")]

    def distance(name: str) -> str:
        value, low, high = (1000 * found["kad"][name][key] for key in ("value", "low", "high"))
        return f"{value:.0f} ({low:.0f} to {high:.0f})"

    names = {"generated": "generated", "training": "training recordings (floor)", "noise": "noise of their spectrum"}
    shown = [f"{words} {distance(name)}" for name, words in names.items() if name in found["kad"]]
    rows = [(f"{found['num']} generated clips: KAD x 1000 to the recordings", "; ".join(shown))]
    low, middle, high = found["centroid"]["recordings"]
    rows.append(
        (
            "spectral centroid, median",
            f"{found['centroid']['generated'][1]:.0f} Hz; recordings {middle:.0f} Hz ({low:.0f} to {high:.0f})",
        )
    )
    shares = (100 * found["silence"][name] for name in ("generated", "recordings"))
    rows.append(("silence", "{:.0f} %; recordings {:.0f} %".format(*shares)))
    for name, words in (("level", "level"), ("change", "change of a band's level within a second")):
        both = found[name]
        if None not in both.values():
            rows.append((words, "{generated:.1f} dB; recordings {recordings:.1f} dB".format(**both)))
    if all((found.get("pulse") or {"recordings": None}).values()):
        low, middle, high = found["pulse"]["recordings"]
        rows.append(
            (
                "regularity of onsets, median",
                f"{found['pulse']['generated'][1]:.2f}; recordings {middle:.2f} ({low:.2f} to {high:.2f})",
            )
        )
    if found["copies"]:
        nearer, least = 100 * found["copies"]["nearer"], 100 * found["copies"]["low"]
        verdict = "it copies" if least > 5 else "no sign of copies"
        rows.append(("seconds closer to training sound than 95 % of the recordings are", f"{nearer:.0f} %: {verdict}"))
    return rows


def heard_tables(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table for each label of a run: what generated sound was asked for and how often that is heard.

    Returns:
        (title, header, rows) each; none if nothing was generated, or the run has no labels.
    """
    header = ["value", "asked", "heard as asked", "mostly mistaken for", "held-out files", "their round trips"]
    tables = []
    for label, sets in result.get("heard", {}).items():
        made, *others = (sets[name] for name in ("generated", "held_out", "round_trips"))

        def row(
            value: str, of: Callable[[Mapping[str, Any]], Mapping[str, Any]], made=made, others=others
        ) -> list[str]:
            own = of(made)
            return [value, str(own["n"]), _share(own), own.get("mistaken") or "", *(_share(of(one)) for one in others)]

        values = [value for value in made["values"] if any(one["values"][value]["n"] for one in (made, *others))]
        rows = [row(value, lambda one, value=value: one["values"][value]) for value in values[:MOST_ROWS]]
        rows += [[f"and {len(values) - MOST_ROWS} more"]] if len(values) > MOST_ROWS else []
        rows.append(row("all", lambda one: one))
        tables.append((f"{label}: asked of the model, and heard by a classifier of its training files", header, rows))
    return tables


def _share(found: Mapping[str, Any]) -> str:
    """Word a share: "94 %", with its interval if there is one."""
    if found["right"] is None:
        return "-"
    around = f" ({100 * found['low']:.0f} to {100 * found['high']:.0f})" if "low" in found else ""
    return f"{100 * found['right']:.0f} %{around}"


def in_words(result: Mapping[str, Any]) -> str:
    """Return the `verdict` on a report; "turned" may be missing."""
    counted = {name: values["loss"] for name, values in (result["baselines"] or {}).items()}
    turned = bool(result.get("turned"))
    found, unit = result.get("likeness"), Unit(result["unit"])
    said = verdict(result["loss"], result["unit"], counted, result["step"], turned, elsewhere=found is not None)
    if found is None:
        return said
    likeness = likeness_in_words(found, result["loss"], result["files"], unit.per_entry, result["sample_rate"])
    return f"{said} {likeness}".strip()


def verdict(
    loss: float,
    unit: str,
    baselines: Mapping[str, float],
    step: float | None = None,
    turned: bool = False,
    elsewhere: bool = False,
) -> str:
    """Explain a held-out loss in two sentences.

    Args:
        loss: bits per code or nats per frame.
        unit: "bits" or "nats".
        baselines: losses of the simple models, by name; may be incomplete.
        step: step of the weights.
        turned: whether the held-out loss had stopped improving before training ended.
        elsewhere: whether the files are of another folder, so that how training ended explains nothing.
    """
    when = "" if step is None else f" (step {step:,})"
    files = "these files" if elsewhere else "held-out files"
    unit = Unit(unit)
    if (perplexity := unit.perplexity(loss)) is None:
        said = f"{loss:.3f} {unit.per_entry} (lower is better) on {files}{when}"
        linear = baselines.get("autoregression")
        if linear is not None:
            said += f", {abs(linear - loss):.2f} {'better' if loss < linear else 'worse'} than predicting each frame "
            said += "linearly from the previous one"
            if loss >= linear and not elsewhere:
                said += "; if you hear noise, train it longer"
        return f"{said}. Compare it with runs of the same front-end only."
    said = f"On {files}{when} the model is as unsure as someone guessing among {perplexity:,.1f} codes"
    if "uniform" in baselines:
        there_are = 2 ** baselines["uniform"]
        only = ", although there are only" if perplexity > there_are else ", out of"
        said += f"{only} {there_are:,.0f}"
    if "bigram" in baselines:
        name = min(baselines, key=baselines.__getitem__)
        gain = baselines[name] - loss
        if gain > 0.005 and name == "bigram":
            said += (
                f". It saves {gain:.2f} bits per code over counting pairs of codes, so it has learned from further "
                "back than one code"
            )
        elif gain > 0.005:
            said += (
                f". It saves {gain:.2f} bits per code over the best count-based model ({name}); pairs are too rare "
                "here for the bigram to be better"
            )
        else:
            said += f". It does not {'' if elsewhere else 'yet '}beat the best count-based model ({name})"
            if baselines.get("uniform", math.inf) - loss <= 0.005:
                said += f", nor even a uniform guess{'' if elsewhere else ', so it generates noise'}"
            if elsewhere:
                return said + "."
            said += ": " + (
                "its held-out loss had stopped improving, so training longer will not help, but more recordings, more "
                "similar ones, or a smaller model (such as --set backbone.dim=64) may"
                if turned
                else "train it longer, or give it more context (--set backbone.window=..., or backbone.context=... "
                "for an mlp)"
            )
    return said + "."
