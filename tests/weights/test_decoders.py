"""Logits and greedy tokens of public models equal transformers', on random weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmkit
from tests.support import hf_model_folders

TOLERANCE = 1e-5


def check_logits(theirs, folder, image=None, image_starts=None, pixels=None, n=0):
    vocab = theirs.get_input_embeddings().num_embeddings
    id_BT, mask_BT = hf_model_folders.ids(vocab, [41, 33, 7 if image is None else 25])
    if image is not None:
        hf_model_folders.with_images(id_BT, mask_BT, image_starts, image, n)
    ours = lmmkit.load(folder, device="cpu")
    extra = {} if pixels is None else {"pixel_values": pixels}
    with torch.no_grad():
        want = theirs(input_ids=id_BT, attention_mask=mask_BT, **extra).logits
    got = ours.logits(id_BT, pixels, mask_BT)
    assert got.shape == want.shape and got.dtype == torch.float32
    seen = mask_BT.bool()
    assert hf_model_folders.error(got[seen], want[seen]) < TOLERANCE
    assert not got[~seen].any()


@pytest.mark.parametrize("shape", hf_model_folders.ODD)
@pytest.mark.parametrize("family", hf_model_folders.DECODERS)
def test_logits_of_decoders(family, shape, tmp_path):
    theirs = hf_model_folders.decoder(family, shape)
    check_logits(theirs, hf_model_folders.saved(theirs, tmp_path / "model"))


@pytest.mark.parametrize("rope", hf_model_folders.ROPES)
def test_logits_with_stretched_positions(rope, tmp_path):
    theirs = hf_model_folders.decoder("llama", "grouped", rope)
    check_logits(theirs, hf_model_folders.saved(theirs, tmp_path / "model"))


@pytest.mark.parametrize(
    "text, vision, shape",
    [("llama", "clip", "plain"), ("qwen2", "clip gelu", "grouped"), ("mistral", "siglip", "tied")],
)
def test_logits_of_llava_with_several_images(text, vision, shape, tmp_path):
    theirs = hf_model_folders.llava(text, vision, shape)
    size = hf_model_folders.VISIONS[vision].image_size
    n = (size // 10) ** 2
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    image_starts = [[2, 2 + n], [5], []]
    check_logits(theirs, hf_model_folders.saved(theirs, tmp_path / "model"), 90, image_starts, pixels, n)


def test_logits_of_a_sharded_folder(tmp_path):
    theirs = hf_model_folders.llava("llama", "clip", "plain")
    folder = hf_model_folders.saved(theirs, tmp_path / "model", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    pixels = torch.randn(1, 3, 30, 30)
    check_logits(theirs, folder, 90, [[3], [], []], pixels, 9)


@pytest.mark.parametrize("head", ["another", "the same", "none"])
@pytest.mark.parametrize("says", ["decoder", "both", "top", "text"])
def test_a_head_beside_a_config_that_ties(says, head, tmp_path, caplog):
    """Compares with transformers: a head of other bits than the embedding is used, and the model is not tied."""
    theirs = (
        hf_model_folders.decoder("llama", "grouped")
        if says == "decoder"
        else hf_model_folders.llava("llama", "clip", "grouped")
    )
    with torch.no_grad():
        embed, out = theirs.get_input_embeddings().weight, theirs.get_output_embeddings().weight
        if head != "another":
            out.copy_(embed)
    folder = hf_model_folders.saved(theirs, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    ties = {"decoder": ("top",), "both": ("top", "text")}.get(says, (says,))
    for place, section in ("top", config), ("text", config.get("text_config", {})):
        section.pop("tie_word_embeddings", None)
        if place in ties:
            section["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    if head == "none":
        state = load_file(folder / "model.safetensors")
        save_file(
            {n: t for n, t in state.items() if "lm_head" not in n},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    again = type(theirs).from_pretrained(folder).eval()
    check_logits(again, folder)
    ours = lmmkit.load(folder, device="cpu").objective.lmm.decoder
    assert torch.equal(ours.head.weight, out) and ours.shape.tied == (head != "another")
    assert ("not tied" in caplog.text) == (head == "another")


def check_bf16(theirs, folder, id_BT, pixels=None):
    """Root mean square of our bfloat16 error against float64, over transformers' own."""
    theirs = theirs.bfloat16()
    hf_model_folders.saved(theirs, folder)
    low_pixels, wide_pixels = {}, {}
    if pixels is not None:
        pixels = pixels.bfloat16()
        low_pixels, wide_pixels = {"pixel_values": pixels}, {"pixel_values": pixels.double()}
    with torch.no_grad():
        low = theirs(input_ids=id_BT, **low_pixels).logits
        exact = theirs.double()(input_ids=id_BT, **wide_pixels).logits
    ours = lmmkit.load(folder, dtype=torch.bfloat16, device="cpu").logits(id_BT, pixels)
    error = [float(((got - exact) ** 2).mean().sqrt()) for got in (ours, low)]
    print(f"bf16 error over transformers': {error[0] / error[1]:.3f}")
    assert error[0] <= 1.2 * error[1], error


@pytest.mark.parametrize("family", hf_model_folders.DECODERS)
def test_bf16_is_as_near_to_float64_as_theirs(family, tmp_path):
    id_BT, _ = hf_model_folders.ids(97, [40, 40, 40, 40])
    check_bf16(hf_model_folders.decoder(family, "grouped"), tmp_path / "model", id_BT)


# each family of decoders in a LLaVA, each kind of encoder
SEEING = [
    ("llama", "clip", "plain"), ("qwen2", "clip gelu", "grouped"), ("mistral", "siglip", "tied"), ("qwen3", "clip", "grouped"),
]  # fmt: skip


def seeing(text, vision, shape, lengths, image_starts, side="right"):
    """Returns a LLaVA, prompts with its images at `image_starts`, and their pixels."""
    theirs = hf_model_folders.llava(text, vision, shape)
    size = hf_model_folders.VISIONS[vision].image_size
    n = (size // 10) ** 2
    id_BT, mask_BT = hf_model_folders.ids(hf_model_folders.ODD[shape]["vocab_size"], lengths, side=side)
    hf_model_folders.with_images(id_BT, mask_BT, image_starts, 90, n)
    pixels = torch.randn(
        sum(map(len, image_starts)), 3, size, size, generator=torch.Generator().manual_seed(2)
    )
    return theirs, id_BT, mask_BT, pixels


@pytest.mark.parametrize("text, vision, shape", SEEING)
def test_bf16_of_llava_is_as_near_to_float64_as_theirs(text, vision, shape, tmp_path):
    theirs, id_BT, _, pixels = seeing(text, vision, shape, [40] * 4, [[3], [9, 19], [1], []])
    check_bf16(theirs, tmp_path / "model", id_BT, pixels)


def differences(got: torch.Tensor, want: torch.Tensor, theirs, prompt, mask, **extra) -> int:
    """Rows whose tokens differ; each must do so first where the reference's two best are as good as equal."""
    count = 0
    for b in range(len(want)):
        n = min(got.shape[1], want.shape[1])
        unequal = (got[b, :n] != want[b, :n]).nonzero()
        if len(unequal) == 0:
            continue
        at = int(unequal[0])
        whole = torch.cat([prompt, want[:, :at]], 1)
        seen = torch.cat([mask, torch.ones_like(want[:, :at])], 1)
        position = (seen.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = theirs(input_ids=whole, attention_mask=seen, position_ids=position, **extra).logits
        best = logits[b, -1].topk(2).values
        assert best[0] - best[1] < 1e-4, (b, at, float(best[0] - best[1]))
        count += 1
    return count


@pytest.mark.parametrize("family", hf_model_folders.DECODERS)
@pytest.mark.parametrize("lengths", [[29], [29, 11, 3, 20]], ids=["one", "left-padded four"])
def test_greedy_tokens(family, lengths, tmp_path):
    theirs = hf_model_folders.decoder(family, "grouped")
    theirs.generation_config.eos_token_id = None
    theirs.config.max_position_embeddings = 128
    ours = lmmkit.load(hf_model_folders.saved(theirs, tmp_path / "model"), device="cpu")
    id_BT, mask_BT = hf_model_folders.ids(97, lengths, side="left")
    want = theirs.generate(
        input_ids=id_BT, attention_mask=mask_BT, max_new_tokens=64, do_sample=False, pad_token_id=0
    )[:, id_BT.shape[1] :]
    got = ours.generate(id_BT, max_new_tokens=64, attention_mask=mask_BT, eos_token_id=[96_000])
    assert got.shape == want.shape and got.dtype == torch.int64
    near = differences(got, want, theirs, id_BT, mask_BT)
    print(f"{family}: {near} of {len(want)} differ at a near tie")


@pytest.mark.parametrize("text, vision, shape", SEEING)
@pytest.mark.parametrize("lengths", [[29], [29, 14, 3, 22]], ids=["one", "left-padded four"])
def test_greedy_tokens_of_llava(text, vision, shape, lengths, tmp_path):
    image_starts = [[2, 13], [17], [], [9]][: len(lengths)]
    theirs, id_BT, mask_BT, pixels = seeing(text, vision, shape, lengths, image_starts, side="left")
    theirs.generation_config.eos_token_id = None
    ours = lmmkit.load(hf_model_folders.saved(theirs, tmp_path / "model"), device="cpu")
    want = theirs.generate(
        input_ids=id_BT, attention_mask=mask_BT, pixel_values=pixels, max_new_tokens=64, do_sample=False,
        pad_token_id=0,
    )[:, id_BT.shape[1] :]  # fmt: skip
    got = ours.generate(id_BT, pixels, max_new_tokens=64, attention_mask=mask_BT, eos_token_id=[96_000])
    assert got.shape == want.shape == (len(lengths), 64)
    near = differences(got, want, theirs, id_BT, mask_BT, pixel_values=pixels)
    print(f"LLaVA of {text} and {vision}: {near} of {len(want)} differ at a near tie")


def test_greedy_tokens_end_and_pad_as_theirs(tmp_path):
    theirs = hf_model_folders.decoder("qwen2", "grouped")
    ours = lmmkit.load(hf_model_folders.saved(theirs, tmp_path / "model"), device="cpu")
    id_BT, mask_BT = hf_model_folders.ids(97, [9, 14, 4], side="left")
    free = ours.generate(id_BT, max_new_tokens=30, attention_mask=mask_BT, eos_token_id=[1_000_000])
    ends = sorted({int(free[0, 5]), int(free[1, 9]), int(free[2, 2])})
    want = theirs.generate(
        input_ids=id_BT, attention_mask=mask_BT, max_new_tokens=30, do_sample=False, eos_token_id=ends,
        pad_token_id=ours.tokens.pad,
    )[:, id_BT.shape[1] :]  # fmt: skip
    got = ours.generate(id_BT, max_new_tokens=30, attention_mask=mask_BT, eos_token_id=ends)
    assert got.shape[1] < 30 and torch.equal(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_answer(side, tmp_path):
    ours = lmmkit.load(
        hf_model_folders.saved(hf_model_folders.decoder("qwen2", "plain"), tmp_path / "m"), device="cpu"
    )
    id_BT, mask_BT = hf_model_folders.ids(131, [12, 5], side=side)
    both = ours.generate(id_BT, max_new_tokens=9, attention_mask=mask_BT, eos_token_id=[10**6])
    for b in range(2):
        alone = ours.generate(id_BT[b][mask_BT[b].bool()][None], max_new_tokens=9, eos_token_id=[10**6])
        assert torch.equal(both[b], alone[0])


@pytest.mark.parametrize(
    "id_BT, pixels, wrong",
    [
        (torch.full((1, 4), 131), None, "token id 131"),
        (torch.tensor([[1, -3]]), None, "token id -3"),
        (torch.tensor([1, 2]), None, "[B, T]"),
        (torch.tensor([[1, 2]]), torch.zeros(1, 3, 30, 30), "0 image placeholders"),
    ],
)
def test_ids_that_fit_nothing_are_refused(id_BT, pixels, wrong, tmp_path):
    ours = lmmkit.load(
        hf_model_folders.saved(hf_model_folders.llava("llama", "clip", "plain"), tmp_path / "m"), device="cpu"
    )
    with pytest.raises(ValueError, match=wrong.replace("[", r"\[")):
        ours.logits(id_BT, pixels)
