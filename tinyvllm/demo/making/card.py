"""The model card: ``README.md``, with what the checkpoint scores and the hashes of its files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""The files that make up the checkpoint."""

_CARD = """\
# The demo checkpoint

A Llama decoder of 2 million parameters, made by this project alone: no text and no weights of anybody else are in it.
It adds numbers of up to two digits, copies, reverses and sorts 3 to 10 digits, answers who has what in the end of a
little story, and tells stories of its own. That is all it knows. It is here so that an engine can be shown to be
right: the answers can be checked, and a wrong rotary embedding or a misplaced key in the cache brings them near zero.

| ask | and it writes |
|---|---|
| `12+7=` | `19` |
| `copy 40719=` | `40719` |
| `reverse 40719=` | `91704` |
| `sort 40719=` | `01479` |
| `Grandma gives the kite to Leo. Leo gives the kite to Ida. Who has the kite?` | `Ida` |
| `Once upon a time` | a story |

In a chat the same questions work, with or without `=`, and so do `What is 12+7?`, `Please sort 40719.`, `Hello` and
`Tell me a story about a fox.` Anything else gets an answer to some other question.

## What it scores

On held-out items, greedy, weights as stored in bfloat16, arithmetic in float32, as printed by
`python -m tinyvllm demo --verify --seed {seed} --items {items}`:

```text
{scores}
```

`story` begins with the first sentence of a held-out story and some words more; the grammar's own parser judges the
whole, who is who included. Held out is one item in ten, by a hash: of both operands of a sum whatever their order, of
the digits for all three tasks on digits at once, of the whole question, of a story's first sentence.

## How it was made

`{command}`

9,500 steps of 64 rows of 512 tokens: 311 million tokens, 34 million of them different, in under two minutes on one
H200 GPU with torch 2.11. Without `--compile` it is slower. Another GPU or another torch gives other bits.

| what | how much |
|---|---|
| layers | 5 |
| hidden size, MLP width | 192, 384 |
| query heads, KV heads, head size | 4, 2, 64 |
| vocabulary | 640: 5 special tokens, 256 bytes, 379 merges |
| positions | 512, all of them trained |
| output head | tied to the embeddings |

Prompts begin with `<|begin_of_text|>`, which `tokenizer.json` adds by itself. An answer ends with `<|end_of_text|>`,
in a chat with `<|im_end|>`.

## The files

| file | SHA-256 |
|---|---|
{hashes}
"""


def write_card(folder: Path, command: str, seed: int, items: int, lines: Sequence[str]) -> None:
    """Writes ``README.md`` into ``folder``.

    Args:
        folder: holds the other files of the checkpoint.
        command: what trained it.
        seed: of the evaluation.
        items: of each task in the evaluation.
        lines: what ``demo --verify`` prints for ``seed`` and ``items``.
    """
    hashes = "\n".join(f"| `{name}` | `{sha256(folder / name)}` |" for name in FILES)
    text = _CARD.format(command=command, seed=seed, items=items, scores="\n".join(lines), hashes=hashes)
    (folder / "README.md").write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
