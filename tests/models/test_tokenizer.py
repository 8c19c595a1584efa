"""Token ids against those of the original tokenizers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidlose.models.tokenizer import ClipTokenizer, clean

GOLDENS = Path(__file__).parents[1] / "goldens/videocrafter_full/vc2_tiny"


def test_golden_ids():
    golden = json.loads((GOLDENS / "text.json").read_text())
    ids = ClipTokenizer(pad=0)(golden["prompts"])
    assert ids.dtype == torch.int64
    torch.testing.assert_close(ids, load_file(GOLDENS / "text.safetensors")["token_ids"], rtol=0, atol=0)
    for row, trimmed in zip(ids.tolist(), golden["token_ids_trimmed"], strict=True):
        assert row == trimmed + [0] * (77 - len(trimmed))


# Ids from the tokenizer of open_clip 3.3.0.
@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("It's DON'T they'll", [585, 568, 847, 713, 889, 1342]),
        ("sci-fi 24fps, 1080p!!!", [8309, 268, 3589, 273, 275, 25300, 267, 272, 271, 279, 271, 335, 995]),
        ("fish &amp;amp; chips &lt;b&gt;", [2759, 261, 8855, 283, 321, 285]),
        ("Ångström naïve ½ ٣", [23176, 10352, 807, 7255, 332, 1097, 35689, 563, 33613, 149, 352]),
        ("  tabs\tand\n lines\u3000 ", [29163, 537, 3418]),
    ],
)
def test_awkward_prompts(prompt, ids):
    assert ClipTokenizer(pad=0, length=len(ids) + 2)([prompt]).tolist() == [[49406, *ids, 49407]]


def test_pad_and_truncation():
    short, long = ClipTokenizer(pad=49407, length=8)(["a cat", "cat " * 20]).tolist()
    assert short == [49406, 320, 2368] + [49407] * 5
    assert long == [49406] + [2368] * 6 + [49407]


def test_clean():
    assert clean("“It’s”  \uff21\uff22 e\u0301 &rsquo;") == "\"it's\" ab é '"
    assert clean("a\udcff") == "a\ufffd"  # what Python makes of a stray byte on the command line
