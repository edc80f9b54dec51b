"""Which model a ``config.json`` is of, or why it is none that is served: ``model_type`` and ``architectures``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinyvllm._nearest import nearest
from tinyvllm._shown import shown
from tinyvllm.errors import LoadError

# Types of transformers 5.24 whose names are so like a served one that they could pass for a slip of the pen.
# Types that begin with a served name, or differ from one in digits at the end alone, need no list.
_OTHERS = frozenset(
    {
        "bamba", "colqwen2", "dia_decoder", "dia_encoder", "diffllama", "flava", "gemma", "gemma2", "gemma3",
        "internvl", "jamba", "llava", "mamba",
        "mimi_decoder", "mimi_encoder", "minimax", "mistral_large4", "mixtral", "mllama", "mra", "omniasr", "pixtral",
        "starcoder2", "vipllava", "zamba",
    }
)  # fmt: skip
_GENERATION = re.compile(r"[\d_.]+$")
# Ends of class names in transformers, and what such a model does.
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
_OTHER_TASKS = {
    "ForConditionalGeneration": "it needs more than text, or an encoder",
    "ForSequenceClassification": "it puts a text into classes",
    "ForTokenClassification": "it puts tokens into classes",
    "ForQuestionAnswering": "it marks answers in a text",
    "ForMaskedLM": "it fills in masked tokens",
    "ForRewardModel": "it scores a text",
    "Model": "it has no language-model head",
}


def check_model_type(raw: Mapping[str, Any], served: Sequence[str], where: str) -> str:
    """``model_type``, which is one of those ``served``.

    Raises:
        LoadError: it is another, or absent; a nearest one is proposed where it was most likely misspelt.
    """
    model_type = raw.get("model_type")
    expected = f"served are {', '.join(served)}"
    if model_type is None:
        raise LoadError(f"{where}: model_type is missing; {expected}")
    if isinstance(model_type, str) and model_type in served:
        return model_type
    if _is_another(model_type, served):
        raise LoadError(
            f"{where}: model_type {shown(model_type)} is another architecture, which is not served; {expected}"
        )
    meant = nearest(model_type, served)
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    raise LoadError(f"{where}: model_type {shown(model_type)} is not supported{hint or ';'} {expected}")


def check_architectures(raw: Mapping[str, Any], where: str) -> None:
    """Return if ``architectures`` names a language model, or nothing.

    Raises:
        LoadError: it names something else, such as a classifier or an encoder.
    """
    names = raw.get("architectures")
    if names is None or names == []:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LoadError(f"{where}: architectures must be a list of class names, got {shown(names)}")
    if any(name.endswith(_LANGUAGE_MODELS) for name in names):
        return
    name = names[0]
    why = next((f" ({why})" for end, why in _OTHER_TASKS.items() if name.endswith(end)), "")
    raise LoadError(
        f"{where}: architectures names {shown(name)}, which is no model that generates text{why}; "
        "expected a class whose name ends with ForCausalLM"
    )


def _is_another(model_type: object, served: Sequence[str]) -> bool:
    """Whether it is a name of its own and no misspelt one: known as such, a served one with something after it, or one
    of another generation.
    """
    if not isinstance(model_type, str):
        return False
    generations = {_GENERATION.sub("", name) for name in served}
    return (
        model_type in _OTHERS
        or any(model_type.startswith(name) for name in served)
        or _GENERATION.sub("", model_type) in generations
    )
