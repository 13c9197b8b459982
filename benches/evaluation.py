"""python -m benches.evaluation [--images 3] [--questions 20] [--new 10] [--rounds 3]: times an evaluation in batches.

A random model of about 50 million parameters answers short questions, many on each image, in batches and one question
at a time. Prints the ratio of both, and the answers that differ, each with the gap of the two best tokens at that
place. Ends with 1 where the median ratio misses its gate, or an answer differs by more than a near tie.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from PIL import Image as Pil

import lmmkit
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.evaluate.questions.asking import AskedQuestion, Reply, ask, differences, replies
from tests.support import hf_model_folders
from tests.support.fake_llama_tokenizer import write_llama_like
from tests.support.hf_weights import scramble

GATE = 2.5
NEAR = 1e-4  # the gap of two logits that rounding may swap
WORDS = "is there a red cat on the mat in the left half of this image or is it a dog".split()  # noqa: SIM905


def model_folder(folder: Path) -> Path:
    """Writes a llava-hf folder with random weights: CLIP at 336 pixels, 576 rows an image."""
    vision = hf.CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=336,
        patch_size=14,
    )  # fmt: skip
    text = hf.LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8, vocab_size=32_064,
        max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000)
    theirs = hf.LlavaForConditionalGeneration(config)
    scramble(theirs, 0)
    write_llama_like(hf_model_folders.saved(theirs, folder / "model"))
    return folder / "model"


def questions_on(folder: Path, images: int, each: int) -> list[AskedQuestion]:
    """Writes images of noise, and returns questions about them."""
    out = []
    for i in range(images):
        path = folder / f"{i}.png"
        Pil.effect_noise((320 + i, 240), 60).convert("RGB").save(path)
        for j in range(each):
            words = " ".join(WORDS[: 5 + (3 * i + 7 * j) % 12])
            text = f"{words} {j}?\nAnswer the question using a single word or phrase."
            sample = Sample(key=f"{i}/{j}", images=(Image(str(path)),), turns=(Turn("user", text, images=1),))
            out.append(AskedQuestion(("own", sample.key), sample))
    return out


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    """Prints every round and the median."""
    options = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 3), ("questions", 20), ("new", 10), ("rounds", 3)):
        options.add_argument(f"--{name}", type=int, default=default)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = lmmkit.load(model_folder(folder), device="cpu")
        questions = questions_on(folder, asked.images, asked.questions)
        found: list[tuple[AskedQuestion, Reply]] = []
        alone: list[Reply] = []
        ratios = []
        for _ in range(asked.rounds):
            found.clear()
            alone.clear()
            many = timed(lambda: ask(model, questions, max_new_tokens=asked.new, on_replies=found.extend))
            one = timed(
                lambda: alone.extend(replies(model, [q], max_new_tokens=asked.new)[0] for q in questions)
            )
            ratios.append(one / many)
            rates = f"{len(questions) / many:.1f} answers/s in batches, {len(questions) / one:.1f} alone"
            print(f"{rates}: {one / many:.2f} times")
        differ = differences(model, found, max_new_tokens=asked.new)
        parameters = sum(p.numel() for p in model.objective.parameters())
        kinds = len({reply.ids for reply in alone})
        print(
            f"{parameters / 1e6:.0f}M parameters, {torch.get_num_threads()} threads, {kinds} different answers"
        )
        gaps = f", largest gap {max(each.gap for each in differ):.1e}" if differ else ""
        print(f"{len(differ)} of {len(questions)} answers differ from those alone{gaps}")
        median = statistics.median(ratios)
        print(f"median {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); at least {GATE}")
        return int(median < GATE or any(each.gap >= NEAR for each in differ))


if __name__ == "__main__":
    sys.exit(main())
