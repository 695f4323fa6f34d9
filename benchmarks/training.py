"""What training a head for binary codes is worth, and which part of it.

    python benchmarks/training.py           # everything, some thirty minutes on two cores
    python benchmarks/training.py --quick   # little of everything: does it run?
    python benchmarks/training.py --parts prefixes --variants ITQ  # the rest stays in the file

A fifth of the Debian and WordNet texts is held out; nobody trains on them, nor on any query.
Recall@10 is that of Hamming distances, of the ten nearest by floats: among all texts, among those
held out, and of Cranfield, whose texts no head has seen. The ablation gives every head the same few
steps, with three seeds; one head with the defaults of `fit_head` is trained for longer, and another
one for short codes. Results go to ``benchmarks/results/training.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import Floats
from flat import RESULTS
from machine import describe
from numpy.typing import NDArray

import hamming_engine as he
from hamming_engine.evaluate import exact_top_k, recall_at_k
from hamming_engine.quantize import ITQQuantizer, Quantizer, SignQuantizer

K = 10
HELD_OUT = 5  # this share of the texts
SEEDS = (0, 1, 2)
STEPS = 200
LONG_STEPS, LONG_BATCH = 1_500, 2_048
PREFIX_STEPS = 1_000
PREFIXES = (64, 128, 192, 256)
PARTS = ("long", "prefixes", "ablation")
MATRYOSHKA = "coupled bits, distillation (correlation), STE, Matryoshka"
# Nearly linear: no sign is taken in training.
NO_STE = "tanh", 100.0


class Corpus(NamedTuple):
    """What is searched, and what should be found."""

    docs: Floats
    queries: Floats
    truth: NDArray[np.int64]

    @classmethod
    def of(cls, docs: Floats, queries: Floats) -> Corpus:
        """With the truth by floats."""
        return cls(docs, queries, exact_top_k(queries, docs, K)[0])

    def recall(self, encode: Callable[[Floats], NDArray[np.uint64]]) -> float:
        """Of codes by Hamming distance."""
        rows = he.search(encode(self.queries), encode(self.docs), K).rows
        return float(recall_at_k(rows, self.truth))

    def asymmetric_recall(self, quantizer: Quantizer) -> float:
        """Of codes by what float queries weigh their bits with."""
        index = he.FlatIndex(quantizer.n_bits)
        index.add(quantizer.encode(self.docs))
        rows = index.search(quantizer.weights(self.queries).weights, K).rows
        return float(recall_at_k(rows, self.truth))


def corpora(quick: bool) -> tuple[Floats, dict[str, Corpus]]:
    """Rows to train on, and what to search, by name."""
    data = datasets.load("debian-minilm")
    if quick:
        data = data.smaller(3_000, 30, 384)
    held_out = np.zeros(len(data.docs), np.bool_)
    rng = np.random.default_rng(0)
    held_out[rng.choice(len(held_out), len(held_out) // HELD_OUT, replace=False)] = True
    searched = {
        "all": Corpus.of(data.docs, data.queries),
        "held out": Corpus.of(data.docs[held_out], data.queries),
    }
    if datasets.missing("cranfield-minilm") is None:
        other = datasets.load("cranfield-minilm")
        searched["cranfield"] = Corpus.of(other.docs, other.queries)
    return data.docs[~held_out], searched


def trained(rows: Floats, steps: int, seed: int, **settings: Any) -> tuple[Any, float]:
    """A fitted head, and the seconds it took."""
    from hamming_engine.training import fit_head

    begin = time.perf_counter()
    fitted = fit_head(rows, n_steps=steps, seed=seed, **settings)
    return fitted, time.perf_counter() - begin


def variants(rows: Floats, steps: int, seed: int) -> dict[str, Callable[[], Quantizer]]:
    """What is compared, each with one thing more than the one before.

    Linear heads begin with plain signs; where training only loses, the beginning is what is kept.
    """
    from hamming_engine.training import Binarize

    def head(**settings: Any) -> Callable[[], Quantizer]:
        return lambda: trained(rows, steps, seed, **settings)[0].quantizer

    contrastive = {"start": "sign", "objective": "contrastive"}
    return {
        "ITQ": lambda: ITQQuantizer(seed=seed).fit(rows),
        "head, contrastive, without STE": head(
            **contrastive, binarize=Binarize(NO_STE[0], temperature=NO_STE[1])
        ),
        "head, contrastive, STE": head(**contrastive),
        "head, distillation (KL), STE": head(start="sign", objective="kl"),
        "head, distillation (correlation), STE": head(start="sign"),
        "coupled bits, not trained": lambda: _untrained(rows, seed),
        "coupled bits, distillation (correlation), STE": head(),
        MATRYOSHKA: head(prefixes=PREFIXES),
    }


def _untrained(rows: Floats, seed: int) -> Quantizer:
    from hamming_engine.training import BinaryHead

    return BinaryHead.coupled(rows, seed=seed).to_quantizer(rows, seed=seed)


def ablation(
    rows: Floats,
    searched: dict[str, Corpus],
    steps: int,
    seeds: tuple[int, ...],
    chosen: list[str] | None,
) -> list[dict[str, Any]]:
    """A row for each variant and seed; for some of the variants only, if they are chosen."""
    found = [_row("signs", 0, SignQuantizer().fit(rows), searched)] if chosen is None else []
    for seed in seeds:
        for name, make in variants(rows, steps, seed).items():
            if chosen is not None and name not in chosen:
                continue
            found.append(_row(name, seed, make(), searched))
            print(f"{name}, seed {seed}: {found[-1]['recall']}", flush=True)
    return found


def _row(name: str, seed: int, quantizer: Quantizer, searched: dict[str, Corpus]) -> dict[str, Any]:
    recall = {of: round(corpus.recall(quantizer.encode), 5) for of, corpus in searched.items()}
    return {"variant": name, "seed": seed, "recall": recall}


def long_run(rows: Floats, searched: dict[str, Corpus], steps: int) -> dict[str, Any]:
    """The head that users get, trained for longer."""
    every = max(1, steps // 10)
    fitted, seconds = trained(
        rows, steps, 0, evaluate_every=every, patience=20, batch_size=LONG_BATCH
    )
    row = _row("coupled bits, trained for longer", 0, fitted.quantizer, searched)
    others = {
        "signs": SignQuantizer().fit(rows),
        "ITQ": ITQQuantizer().fit(rows),
        row["variant"]: fitted.quantizer,
    }
    return {
        **row,
        "n_rows": len(rows),
        "steps": steps,
        "batch": LONG_BATCH,
        "seconds": seconds,
        "history": [tuple(each)[::2] for each in fitted.history],  # steps and recalls
        "asymmetric": {
            name: {of: corpus.asymmetric_recall(each) for of, corpus in searched.items()}
            for name, each in others.items()
        },
    }


def prefixes(rows: Floats, searched: dict[str, Corpus], steps: int) -> list[dict[str, Any]]:
    """Recall by the number of bits: first dimensions' signs, ITQ, and a Matryoshka head."""
    fitted, _ = trained(rows, steps, 0, prefixes=PREFIXES, evaluate_every=steps)
    found = []
    for n_bits in (*PREFIXES, rows.shape[1]):
        itq = ITQQuantizer(n_bits).fit(rows)
        cut = fitted.quantizer.truncated(n_bits)
        for of, corpus in searched.items():
            before = corpus.recall(lambda x, n=n_bits: he.pack_signs(x[:, :n]))  # type: ignore[misc]
            found.append(
                {
                    "n_bits": n_bits,
                    "data": of,
                    "signs": before,
                    "itq": corpus.recall(itq.encode),
                    "head": corpus.recall(cut.encode),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--variants", nargs="*", help="of the ablation; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "training.json")
    arguments = parser.parse_args()
    reason = datasets.missing("debian-minilm")
    if reason:
        raise SystemExit(reason)
    quick = arguments.quick
    steps, long_steps, prefix_steps = (4, 8, 8) if quick else (STEPS, LONG_STEPS, PREFIX_STEPS)
    seeds = SEEDS[:1] if quick else SEEDS
    rows, searched = corpora(quick)
    result: dict[str, Any] = {}
    if arguments.output.exists() and (arguments.variants or set(arguments.parts) != set(PARTS)):
        result = json.loads(arguments.output.read_text())
    result |= {
        "machine": describe(),
        "quick": quick,
        "n_rows": {of: len(corpus.docs) for of, corpus in searched.items()},
        "n_trained": len(rows),
        "steps": steps,
    }
    if "long" in arguments.parts:
        result["long"] = long_run(rows, searched, long_steps)
        print(f"long: {result['long']['seconds']:.0f} s, {result['long']['recall']}", flush=True)
    if "prefixes" in arguments.parts:
        result["prefixes"] = prefixes(rows, searched, prefix_steps)
        print(*result["prefixes"], sep="\n", flush=True)
    if "ablation" in arguments.parts or arguments.variants:
        chosen = arguments.variants or None
        kept = [r for r in result.get("ablation", []) if chosen and r["variant"] not in chosen]
        order = ["signs", *variants(rows, steps, 0)]
        result["ablation"] = sorted(
            kept + ablation(rows, searched, steps, seeds, chosen),
            key=lambda row: (row["seed"], order.index(row["variant"])),
        )
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
