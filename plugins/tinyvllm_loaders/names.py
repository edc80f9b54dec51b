"""Why the names in a checkpoint are not those that the model expects: one hint for the known causes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tinyvllm._shown import shown

HEAD = "lm_head.weight"
_MODEL = "model."
# What puts a prefix before every name, and how to be rid of it.
_CAUSES = {
    "module.": "they come from a model wrapped in DataParallel; save model.module instead",
    "_orig_mod.": "they come from a model under torch.compile; save model._orig_mod instead",
    "base_model.model.": "they come from a model wrapped by peft; save model.merge_and_unload() instead",
    "language_model.": "they come from a multimodal model; save its language model alone",
}


def hint_about(missing: Sequence[str], stored: Collection[str]) -> str | None:
    """Why ``missing`` may be missing, with the remedy; None where nothing is known.

    Args:
        missing: names that the model expects and the checkpoint lacks.
        stored: all names in the checkpoint.
    """
    if list(missing) == [HEAD]:
        return (
            "where the head is the embedding table, config.json must say tie_word_embeddings: true; "
            "where it is not, fetch the shard that holds it"
        )
    for name in missing[:1]:
        for own in dict.fromkeys(("", _MODEL if name.startswith(_MODEL) else "")):
            hint = _about_prefix(name.removeprefix(own), own, missing, stored)
            if hint is not None:
                return hint
    return None


def _about_prefix(tail: str, own: str, missing: Sequence[str], stored: Collection[str]) -> str | None:
    """A hint if names in the file begin with something else than ``own``, and go on as ``tail`` does."""
    candidates = {name.removesuffix(tail) for name in stored if name.endswith(tail)}
    for prefix in sorted(candidates, key=len):
        is_whole = prefix == "" or prefix.endswith(".")
        renamed = [prefix + name.removeprefix(own) for name in missing if name.startswith(own)]
        if not is_whole or prefix == own or not all(name in stored for name in renamed):
            continue
        begin = f"begin with {shown(prefix)}" if prefix else f"lack the prefix {own!r}"
        wrapped = prefix.removeprefix(_MODEL)
        cause = next((why for known, why in _CAUSES.items() if wrapped.startswith(known)), "rename them")
        if not prefix:
            cause = "they come from a model without its head; save it with AutoModelForCausalLM's save_pretrained"
        return f"the names in the file {begin}: {shown(prefix + tail)}; {cause}"
    return None
