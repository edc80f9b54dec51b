"""The core's keys against the schema: every pydantic error as a line that says what to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tinyvllm._nearest import did_you_mean, nearest
from tinyvllm.config.other_words import INSTEAD, LATER, LATER_VALUES, NEVER, RENAMED
from tinyvllm.config.problems import Problem, shown_value
from tinyvllm.config.schema import Config
from tinyvllm.config.tree import KeyPath, Tree, dotted, shown_key
from tinyvllm.request import SamplingParams

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "path_type": "the path of a file, as text",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def check_core(tree: Tree) -> Config | None:
    """The configuration, if the core's keys are right; otherwise None, and the reasons join ``tree.problems``."""
    try:
        return Config.model_validate(tree.data)
    except ValidationError as error:
        tree.problems += problems_of(error, tree, (), Config)
        return None


def problems_of(error: ValidationError, tree: Tree, base: KeyPath, model: type[BaseModel]) -> list[Problem]:
    """One problem for each error of a model that was found at ``base`` in ``tree``."""
    found = []
    for detail in error.errors(include_url=False):
        path: KeyPath = (*base, *detail["loc"])
        found.append(Problem(tree.place(path), partial(_message, path, model, detail)))
    return found


def unknown_key(path: KeyPath, known: Mapping[str, Any], elsewhere: Mapping[str, str] | None = None) -> str:
    """What to say of a key that nobody knows, where ``known`` would have been right.

    Args:
        path: of the key.
        known: the keys that its section has.
        elsewhere: further keys of other sections, by their last word; the core's are always looked at.
    """
    key, word = dotted(path), shown_key(path[-1]).lower().replace("-", "_")
    if word in NEVER:
        return f"{key}: {NEVER[word]}"
    if word in LATER:
        instead = f"; {INSTEAD[word]}" if word in INSTEAD else ""
        return f"{key} is not available in this version of tinyvllm; remove it{instead}"
    places = {**core_keys(), **(elsewhere or {})}
    written = places.get(word) or RENAMED.get(word)
    if word not in known and written:
        return f"unknown key {key}; it is written {written}"
    near = nearest(word, known)
    if near is None:
        far = nearest(word, places)
        near = places[far] if far else None
    if near is not None:
        return f"unknown key {key}; did you mean {near!r}?"
    section = f"{dotted(path[:-1])} has" if len(path) > 1 else "the keys are"
    return f"unknown key {key}; {section}: {', '.join(known) or 'no keys'}"


def core_keys() -> dict[str, str]:
    """Every key of the core, by its last word: ``block_size`` to ``cache.block_size``. Sampling's fields come last."""
    found: dict[str, str] = {}
    for path, _ in walk(Config):
        if path[-1] != "name":
            found.setdefault(path[-1], dotted(path))
    for entry in fields(SamplingParams):
        found.setdefault(entry.name, f"run.sampling.{entry.name}")
    return found


def walk(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of ``model`` and of the models in it, with its field."""
    for name, entry in model.model_fields.items():
        yield (*path, name), entry
        inner = section_model(entry.annotation)
        if inner is not None:
            yield from walk(inner, (*path, name))


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, optional ones included; None for a plain value."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def fields_at(model: type[BaseModel], path: KeyPath) -> Mapping[str, Any]:
    """The fields of the section at ``path``."""
    here: type[BaseModel] | None = model
    for key in path:
        entry = here.model_fields.get(key) if here else None
        here = section_model(entry.annotation) if entry else None
    return here.model_fields if here else {}


def _message(path: KeyPath, model: type[BaseModel], detail: ErrorDetails) -> str:
    key, got, kind = dotted(path), detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return unknown_key(path, fields_at(model, detail["loc"][:-1]))
    context = detail.get("ctx", {})
    if kind == "missing":
        hint = "; add 'model: demo', or a folder in Hugging Face layout" if key == "model" else ""
        return f"{key} is missing{hint}"
    if kind == "value_error":
        return f"{key} {context['error']}".strip()
    if kind in ("literal_error", "enum"):
        return _choice(key, got, context)
    if kind == "invalid_key":
        return f"the key {shown_value(got)} must be text"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{key}: {detail['msg'][:1].lower()}{detail['msg'][1:]}, got {shown_value(got)}"
    return f"{key} must be {expected.format(**context)}, got {shown_value(got)}{_quoting_hint(kind, got)}"


def _choice(key: str, got: Any, context: dict[str, Any]) -> str:
    if isinstance(got, str) and got in LATER_VALUES.get(key, ()):
        return f"{key}: {got} is not available in this version of tinyvllm"
    expected = context["expected"].replace(" or ", ", ")
    choices = [choice.strip("'") for choice in expected.split(", ")]
    return f"{key} must be one of {', '.join(choices)}; got {shown_value(got)}{did_you_mean(got, choices)}"


def _quoting_hint(kind: str, got: Any) -> str:
    if kind == "string_type" and isinstance(got, int | float):
        return f"; put it in quotes: {shown_value(shown_value(got))}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        if got is None:
            return "; remove the key, or give it keys"
        if isinstance(got, str):
            return f"; write {{name: {shown_key(got)}}}"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(got, str) and got:
        return "; remove the quotes" if got.replace(".", "", 1).isdigit() or got in ("true", "false") else ""
    return "; put it in a list: [...]" if kind == "list_type" and isinstance(got, str) else ""
