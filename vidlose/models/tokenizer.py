"""Prompts -> token ids [B L]: CLIP's byte-level BPE, whose vocabulary lies beside this file, or words."""

import functools
import gzip
import html
import re
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = 49406, 49407
FIRST = 3  # of a word tokenizer's words, after what pads, starts and ends
MERGES = 48894  # the file lists 262144, in order of rank; CLIP took the first ones
# What one token may be made of: a clitic, a run of letters, one digit, or a run of anything else but space.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Latin ligatures, full and half widths, curly quotes: variants of a plain character.
VARIANTS = (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0))
PLAIN = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in VARIANTS},
    **dict.fromkeys(range(0x2018, 0x201C), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}


class ClipTokenizer:
    """prompts [B] -> int64 [B L]: start, text cut to fit, end, then `pad` (SD uses 49407, OpenCLIP 0)."""

    def __init__(self, pad: int, length: int = 77) -> None:
        self.pad = pad
        self.length = length

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        bpe = _bpe()
        rows = torch.full((len(prompts), self.length), self.pad)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = [START, *bpe.encode(clean(prompt)).ids[: self.length - 2], END]
            row[: len(ids)] = torch.tensor(ids)
        return rows


class WordTokenizer:
    """prompts [B] -> int64 [B L]: a word, or a comma, is a token; words that it does not know are passed over.

    Ids: 0 pads, 1 starts, 2 ends, then the words in their order.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.ids = {word: FIRST + i for i, word in enumerate(words)}
        self.length = length

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            found = re.findall(r"[^\W_]+(?:['-][^\W_]+)*|,", clean(prompt))
            ids = [1, *[self.ids[word] for word in found if word in self.ids][: self.length - 2], 2]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def clean(text: str) -> str:
    """Text as CLIP learnt it: entities resolved, quotes and widths plain, NFC, single spaces, lower case.

    The original runs ftfy first. Of that, the repair of mojibake (text decoded with the wrong encoding) and
    the removal of control characters and terminal escapes are left out.
    """
    # Undecodable bytes of a command line arrive as lone surrogates, which have no UTF-8 form to tokenize.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = html.unescape(html.unescape(text)).translate(PLAIN)
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


@functools.cache
def _bpe() -> "Tokenizer":
    """The byte-pair encoder, without start and end; neither can be written in a prompt."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    # CLIP numbers the 256 bytes by the characters that stand for them: the printable ones themselves, then
    # replacements for the others, taken from 256 on. So sorting the characters gives CLIP's order.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = gzip.decompress(files(__package__).joinpath("clip_bpe.txt.gz").read_bytes()).decode().split("\n")
    merges = [(left, right) for left, right in map(str.split, lines[1 : MERGES + 1])]  # line 0 is a title
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    ids = {token: i for i, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe
