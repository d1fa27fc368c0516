"""Models of images and text: refused with what to do, and their text part is an ordinary model."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from plain_folders import byte_tokenizer, opened
from transformers import AutoConfig, AutoModelForImageTextToText

from search_r3.models.folder import ModelFolderError

RECIPE = Path(__file__).parents[1] / "docs" / "models.md"
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "head_dim": 8,
}  # fmt: skip


def write_larger(folder, kind):
    """A folder of a small model of images and text, with random weights."""
    tokenizer = byte_tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer) + 20}
    options = {"text_config": text, "vision_config": VISION}
    if kind == "mistral3":
        options = {
            "text_config": text | {"model_type": "mistral"},
            "vision_config": VISION | {"model_type": "pixtral"},
        }
    config = AutoConfig.for_model(kind, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_a_larger_model_is_refused_and_the_recipe_makes_its_text_part_an_ordinary_model(tmp_path, kind):
    whole = write_larger(tmp_path / "whole", kind)
    with pytest.raises(ModelFolderError, match=r"is no model of text alone; .*docs/models\.md#the-text-part"):
        opened(whole)

    section = RECIPE.read_text(encoding="utf-8").partition("### The text part of a larger model")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    code = re.sub(r"name, folder = .*", f"name, folder = {str(whole)!r}, {str(tmp_path / 'text')!r}", code)
    exec(code, {})

    embedder = opened(tmp_path / "text")
    ids = torch.tensor([embedder.encoder.plain_ids(TEXTS[0])])
    with torch.no_grad():
        expected = AutoModelForImageTextToText.from_pretrained(whole).eval()(input_ids=ids).logits
        found = embedder.causal_lm(input_ids=ids).logits
    n_old = embedder.embed_token_id  # the new token's row is another one
    torch.testing.assert_close(found[..., :n_old], expected[..., :n_old])


def test_a_larger_model_whose_text_part_is_no_model_of_its_own_says_so(tmp_path):
    AutoConfig.for_model("qwen2_5_vl").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="has no model of text alone for its Qwen2_5_VLTextConfig"):
        opened(tmp_path)
