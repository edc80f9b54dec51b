"""Which files of a checkpoint folder hold its tensors, and which tensor is in which file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tinyvllm._checkpoint_file import FIRST_BYTES, is_there, read_bounded, what_it_is
from tinyvllm._shown import shown, some
from tinyvllm.plugin import LoadError
from tinyvllm_loaders.header import Entry, parse_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
MAX_NAME_BYTES = 255  # of a file, on every common file system
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class _HasEntries(Protocol):
    @property
    def entries(self) -> Mapping[str, Entry]: ...


_File = TypeVar("_File", bound=_HasEntries)


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a checkpoint.

    Attributes:
        paths: of the files, each once.
        weight_map: tensor name to file name, as the index says; None where there is one file and no index.
        where: the file that says so, for messages.
    """

    paths: Sequence[Path]
    weight_map: Mapping[str, str] | None
    where: str

    def homes(self, files: Mapping[str, _File], needed: Collection[str]) -> dict[str, _File]:
        """The file of every stored tensor, from opened files by name.

        Raises:
            LoadError: index and shards disagree about a tensor that is ``needed``. About others they may: old
                checkpoints list buffers that no shard has, or store a tied head that the index leaves out.
        """
        stored = [(tensor, name) for name, file in files.items() for tensor in file.entries]
        if self.weight_map is not None:
            self._check_index(stored, needed)
        return {tensor: files[name] for tensor, name in stored}

    def _check_index(self, stored: Sequence[tuple[str, str]], needed: Collection[str]) -> None:
        assert self.weight_map is not None
        pairs = set(stored)
        absent = [pair for pair in self.weight_map.items() if pair[0] in needed and pair not in pairs]
        if absent:
            example = f"{shown(absent[0][0])} is not in {shown(absent[0][1])}"
            raise LoadError(f"{self.where}: {len(absent)} of the tensors are not where the index says: {example}")
        for tensor, name in stored:
            if tensor in needed and self.weight_map.get(tensor) != name:
                says = f"in {shown(self.weight_map[tensor])}" if tensor in self.weight_map else "nowhere"
                raise LoadError(f"{self.where}: tensor {shown(tensor)} is in {shown(name)}, but by the index {says}")


def find_files(folder: Path) -> Found:
    """The safetensors files of ``folder``: ``model.safetensors`` if there is one, else the shards of the index.

    Raises:
        LoadError: there is neither, or the index is wrong.
    """
    if is_there(folder / SINGLE):
        return Found([folder / SINGLE], None, str(folder / SINGLE))
    if is_there(folder / INDEX):
        weight_map = _read_index(folder / INDEX)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not is_there(folder / shard)]
        if missing:
            raise LoadError(f"{folder}: {len(missing)} of {len(shards)} shards missing: {some(missing)}; fetch them")
        return Found([folder / shard for shard in shards], weight_map, str(folder / INDEX))
    raise LoadError(_nothing_found(folder))


def _read_index(path: Path) -> dict[str, str]:
    raw = read_bounded(path, MAX_INDEX_BYTES)
    what = what_it_is(raw[:FIRST_BYTES])
    if what is not None:
        raise LoadError(f"{path}: {what}")
    weight_map = parse_json_object(raw, str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{path}: weight_map must map tensor names to shard names, got {shown(weight_map)}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise LoadError(
                f"{path}: weight_map: {shown(tensor)} is in {shown(shard)}, expected a plain *.safetensors name"
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether it names a file of the folder itself; nothing that leads elsewhere."""
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and not set(name) & set("/\\:\0")
        and name[0] != "."
        and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
    )


def _nothing_found(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; it must hold config.json and {SINGLE}, or shards with {INDEX}"
    expected = f"expected {SINGLE}, or shards with {INDEX}"
    if is_there(folder / "adapter_config.json"):
        return (
            f"{folder}: holds an adapter (adapter_config.json) and not a model; adapters are not served. Merge it into "
            "its base model with peft, model.merge_and_unload().save_pretrained(new_folder), and name that folder"
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: {expected}, found only {some(pickles, 3)}. Pickle files are never read, because loading one "
            "runs code from it; where you trust them, convert them with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{folder}: {expected}, found {some(others, 3)}; rename a single file, or fetch the index of the shards"
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return (
            f"{folder}: {expected}, found {some(ggufs, 3)}. GGUF files are not served; fetch the model that they were "
            "made from in Hugging Face layout"
        )
    return f"{folder}: {expected}, found no weights; for random ones use loader: {{name: dummy}}"
