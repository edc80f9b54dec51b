"""Makes ``tokenizer.json`` and ``tokenizer_config.json``: ``python -m tinyvllm.demo.making.make_tokenizer --out DIR``.

Byte-level BPE, so every text can be written; digits always alone, so that numbers are made of ten tokens only.
"""

import argparse
import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tinyvllm.demo import chat
from tinyvllm.demo.making import corpus

VOCAB_SIZE = 640
_WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DOCUMENTS = 20_000


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer of ``VOCAB_SIZE`` tokens, trained on the corpus of ``seed``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in chat.SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{chat.BEGIN} $A", special_tokens=[(chat.BEGIN, id_of(tokenizer, chat.BEGIN))]
    )
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of ``token``.

    Raises:
        KeyError: it is not in the vocabulary.
    """
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise KeyError(token)
    return token_id


def tokenizer_config(max_length: int) -> dict[str, object]:
    """The content of ``tokenizer_config.json`` for a model of ``max_length`` positions."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": chat.BEGIN,
        "eos_token": chat.END,
        "pad_token": chat.PAD,
        "additional_special_tokens": [chat.TURN, chat.TURN_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": chat.CHAT_TEMPLATE,
    }


def _texts(seed: int) -> list[str]:
    documents = itertools.islice(corpus.documents(seed), _DOCUMENTS)
    texts = [piece.text for document in documents for piece in document]
    return [_without_special(text) for text in texts]


def _without_special(text: str) -> str:
    for token in chat.SPECIAL_TOKENS:
        text = text.replace(token, "\n")
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the two files to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=512)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(arguments.seed).save(str(arguments.out / "tokenizer.json"), pretty=False)
    config = json.dumps(tokenizer_config(arguments.max_length), indent=2) + "\n"
    (arguments.out / "tokenizer_config.json").write_text(config, encoding="utf-8")


if __name__ == "__main__":
    main()
