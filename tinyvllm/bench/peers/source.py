"""Where a benchmark's weights come from, so that a peer computes with the same values as the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tinyvllm._json_file import read_json_object
from tinyvllm.config.resolve import Resolved
from tinyvllm.interfaces import Checkpoint, Kind, Loader, OpenCall, PluginContext
from tinyvllm.llm import LLM
from tinyvllm.models import read_config
from tinyvllm.models.model import Model, expected_tensors
from tinyvllm.start.checked_loader import open_checkpoint
from tinyvllm.start.specs import SAFETENSORS_NAMES, plugin_context


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The checkpoint of an engine, to be opened again by whoever needs the same weights.

    Attributes:
        folder: in Hugging Face layout; of dummy weights it need hold ``config.json`` only.
        config: of the model.
        resolved: names the loader.
        context: what the loader is created with.
    """

    folder: Path
    config: Model
    resolved: Resolved
    context: PluginContext

    @property
    def is_dummy(self) -> bool:
        """Whether the folder holds no weights."""
        return self.resolved.config.loader.name == "dummy"

    @contextmanager
    def open(self) -> Iterator[Checkpoint]:
        """The checkpoint, read by the loader that the configuration names."""
        name, registry = self.resolved.config.loader.name, self.resolved.registry
        loader: Loader = registry.create(Kind.LOADER, name, self.context)
        stored = SAFETENSORS_NAMES[self.config.dtype]
        call = OpenCall(self.folder, expected_tensors(self.config), stored, self.resolved.config.seed)
        with open_checkpoint(loader, registry.named(Kind.LOADER, name), call) as checkpoint:
            yield checkpoint


def weight_source(resolved: Resolved, llm: LLM) -> WeightSource:
    """The weights that ``llm``, made from ``resolved``, has."""
    path = llm.folder / "config.json"
    config = read_config(read_json_object(path), str(path))
    name = resolved.config.loader.name
    options = resolved.plugin_options.get("loader") or resolved.registry.get(Kind.LOADER, name).options()
    context = plugin_context(resolved.config, config.shape, llm.device.name)
    return WeightSource(llm.folder, config, resolved, replace(context, options=options))


def as_torch(torch: Any, array: np.ndarray[Any, Any]) -> Any:
    """The same values as a tensor on the CPU; NumPy knows bfloat16 by a name that torch does not."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
