"""The files of the checkpoint: small, as the model card says, and what every device needs."""

import itertools
import json
import re
import struct

import jinja2.sandbox
import pytest
from tokenizers import Tokenizer

from tinyvllm.demo import CHECKPOINT, chat, verify
from tinyvllm.demo.making import card, corpus, make_tokenizer
from tinyvllm.demo.randomness import stream

MAX_SIZE_BYTES = 5_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def read_json(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((CHECKPOINT / name).read_text(encoding="utf-8"))
    return content


def tensors() -> dict[str, dict[str, object]]:
    with (CHECKPOINT / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, object]] = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_the_checkpoint_is_at_most_five_megabytes() -> None:
    assert sum((CHECKPOINT / name).stat().st_size for name in (*card.FILES, "README.md")) <= MAX_SIZE_BYTES


def test_the_model_card_names_the_hash_of_every_file() -> None:
    text = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    hashes = dict(re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", text))
    assert hashes == {name: card.sha256(CHECKPOINT / name) for name in card.FILES}


def test_the_model_card_shows_every_task_above_its_threshold() -> None:
    text = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert "below the required" not in text
    for task, threshold in verify.THRESHOLDS.items():
        right, total = re.search(rf"^{task} (\d+)/(\d+) ", text, re.MULTILINE).groups()  # type: ignore[union-attr]
        assert int(right) >= threshold * int(total)


def test_the_shape_suits_every_device() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["head_dim"] == 64
    assert isinstance(config["hidden_size"], int)
    assert config["hidden_size"] % 64 == 0
    assert isinstance(config["intermediate_size"], int)
    assert config["intermediate_size"] % 64 == 0
    assert isinstance(config["max_position_embeddings"], int)
    assert config["max_position_embeddings"] >= 512
    assert isinstance(config["num_attention_heads"], int)
    assert isinstance(config["num_key_value_heads"], int)
    assert config["num_attention_heads"] > config["num_key_value_heads"] > 0
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_every_weight_is_bfloat16_under_its_hugging_face_name() -> None:
    config = read_json("config.json")
    found = tensors()
    assert {entry["dtype"] for entry in found.values()} == {"BF16"}
    assert found["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert isinstance(config["num_hidden_layers"], int)
    assert len(found) == 2 + 9 * config["num_hidden_layers"]
    assert "lm_head.weight" not in found


def test_the_tokens_that_end_a_sequence_are_named_alike_everywhere(tokenizer: Tokenizer) -> None:
    ends = [tokenizer.token_to_id(chat.END), tokenizer.token_to_id(chat.TURN_END)]
    assert read_json("config.json")["eos_token_id"] == ends
    assert read_json("generation_config.json")["eos_token_id"] == ends
    assert read_json("config.json")["bos_token_id"] == tokenizer.token_to_id(chat.BEGIN)
    assert read_json("config.json")["vocab_size"] == tokenizer.get_vocab_size()


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    rng = stream("test unicode", 0)
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for _ in range(200):
        text = "".join(map(chr, rng.choices(codes, k=20))) + " a  b\n\n\t12+7="
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_stand_alone_and_a_text_begins_with_its_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12+7=").tokens == [chat.BEGIN, "1", "2", "+", "7", "="]


def test_pieces_encode_as_the_whole_document_does(tokenizer: Tokenizer) -> None:
    for document in itertools.islice(corpus.documents(5), 500):
        whole = tokenizer.encode("".join(piece.text for piece in document), add_special_tokens=False).ids
        parts = [tokenizer.encode(piece.text, add_special_tokens=False).ids for piece in document]
        assert list(itertools.chain.from_iterable(parts)) == whole


def test_the_chat_template_is_what_the_model_was_trained_on() -> None:
    config = read_json("tokenizer_config.json")
    assert config == make_tokenizer.tokenizer_config(512)
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(chat.CHAT_TEMPLATE)
    rng = stream("test chat", 0)
    for _ in range(50):
        messages = chat.draw_conversation(rng)
        mappings = [message._asdict() for message in messages]
        assert template.render(messages=mappings, bos_token=chat.BEGIN) == chat.BEGIN + chat.render(messages)
    asked = template.render(
        messages=[{"role": "user", "content": "12+7="}], bos_token=chat.BEGIN, add_generation_prompt=True
    )
    assert asked == chat.BEGIN + chat.render_prompt("12+7=")
