# ruff: noqa: RUF001
"""Regenerate tests/vectors/tokenizer with the `tokenizers` library (extra `train`): a 600-token BPE and its encodings.

Run from the repository root: python tests/formats/make_tokenizer_vectors.py
"""

import json
from pathlib import Path

from refspec.train.tokenizer import load_tokenizer, train_tokenizer

OUT = Path(__file__).parent.parent / "vectors" / "tokenizer"
TEXTS = [
    "The quick brown fox jumps over the lazy dog. It wasn't there; they're here, I'll go and he'd stay.\n",
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n\tprint(i, add(i, 2))\n",
    "Janet has 16 eggs. She eats 3 and bakes 4, so 16 - 3 - 4 = 9 are left: 9 * 2 = 18 dollars.\n",
    "Ein Käse für die Königin, naïve café; Ελληνικά και русский текст, 日本語の文。\n",
] * 3  # fmt: skip
STRINGS = [
    "", "Hello, world!", "The quick brown fox", " leading and trailing ", "two  spaces   three", "\n\n\n",
    "\t\ttabs\n  mixed \n", "line one\nline two\r\nline three\r", "12345 678, 3.14159 and 1,000,000",
    "x1y22z333", "don't I'LL they'Re he'd we'Ve it's 's", "def f(x):\n    return x ** 2  # square\n",
    "if (a[0] != b->c) { return -1; }", "{\"key\": [1, 2.5e-3, null]}", "Käse naïve café Ünïcödé",
    "Ελληνικά русский текст", "日本語の文。中文，标点", "مرحبا بالعالم שלום", "हिन्दी ภาษาไทย 한국어",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 done", "zero\u200bwidth\ufeff and nbsp\u00a0here\u3000ideographic",
    "½ ² Ⅷ ٣ ४ 𝟘", "e\u0301 vs é", "a\u0000b\u0001c", "\u2028line sep\u2029para", "ﬁ ligature ǅ",
    "~!@#$%^&*()_+`-={}|[]\\:\";'<>?,./", "   ", " \n \n x", "a" * 80,
    "https://example.org/path?q=1&r=%20#frag", "CamelCaseIdentifier snake_case_name SCREAMING",
    "\U0001f1e9\U0001f1ea flag",
]  # fmt: skip
SPECIALS = [
    "<|bos|><|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|><|endoftext|>",
    "text <|im_end|> text", "<|im_end|>\n\n<|im_start|>", "<|im_start|", "no<|bos|>space",
]  # fmt: skip


def main() -> None:
    path = OUT / "tokenizer.json"
    train_tokenizer(TEXTS, 600, path)
    tokenizer = load_tokenizer(path)
    plain = [[s, tokenizer.encode(s, add_special_tokens=False).ids] for s in STRINGS + SPECIALS]
    (OUT / "encodings.json").write_text(json.dumps(plain, ensure_ascii=True, indent=0) + "\n")


if __name__ == "__main__":
    main()
