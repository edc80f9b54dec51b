"""From a configuration to a running engine: files, weights, sockets, cache. Done once, off the hot path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm._shown import some
from tinyvllm.config.schema import Config
from tinyvllm.device import Device
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.blocks import BlockManager
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.errors import CapacityError, ConfigError
from tinyvllm.interfaces import OpenCall, PluginContext
from tinyvllm.models import read_config
from tinyvllm.models.model import Model, expected_tensors
from tinyvllm.registry import Registry
from tinyvllm.request import SamplingParams
from tinyvllm.shapes import ModelShape
from tinyvllm.start.cache_size import check_weights_fit
from tinyvllm.start.checked_loader import open_checkpoint
from tinyvllm.start.devices import choose_device, open_device
from tinyvllm.start.generation_config import GenerationDefaults, generation_defaults
from tinyvllm.start.model import StartedModel, start_model
from tinyvllm.start.model_files import ModelFiles, resolve_model
from tinyvllm.start.sockets import Sockets
from tinyvllm.start.specs import SAFETENSORS_NAMES, plugin_context

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer

# Each running sequence has a table of its blocks, and each position a row of cosines and sines.
_MAX_MODEL_LEN = 2**24


@dataclass(frozen=True, slots=True)
class Built:
    """An engine, and what its makers learnt.

    Attributes:
        engine: ready.
        tokenizer: None if there is none.
        defaults: end tokens and default sampling of the checkpoint.
        shape: the sizes of the model.
        device: where it is.
        folder: where the checkpoint lies.
        max_model_len: longest sequence.
        report: what was chosen and why, a line each.
    """

    engine: Engine
    tokenizer: Tokenizer | None
    defaults: GenerationDefaults
    shape: ModelShape
    device: Device
    folder: Path
    max_model_len: int
    report: Sequence[str]


def build_engine(config: Config, registry: Registry, options: Mapping[str, Any], base: Path | None = None) -> Built:
    """The engine that ``config`` describes.

    Args:
        config: validated.
        registry: where plugins come from.
        options: validated options of each plugin, by section (``scheduler``, ``kernels.rms_norm``).
        base: the folder that relative paths are relative to; None: the current one.
    Raises:
        LoadError, PluginError, DeviceError, CapacityError: see their meaning in :mod:`tinyvllm.errors`.
    """
    return _Builder(config, registry, options, base).build()


class _Builder:
    """One build, step by step."""

    def __init__(self, config: Config, registry: Registry, options: Mapping[str, Any], base: Path | None) -> None:
        self._config = config
        self._registry = registry
        self._options = options
        self._base = base
        choice = choose_device(config.device)
        self._device_name = choice.name
        self._report = [f"device: {choice.name} ({choice.reason})"]

    def build(self) -> Built:
        config = self._config
        files = resolve_model(config.model, self._base)
        raw = files.read_json("config.json")
        assert raw is not None
        model = read_config(raw, str(files.folder / "config.json"))
        tensors = expected_tensors(model)
        check_weights_fit(tensors, self._device_name)
        context = plugin_context(config, model.shape, self._device_name, self._max_model_len(model))
        sockets = Sockets(config, self._registry, self._options, context)
        tokenizer = self._tokenizer(files)
        call = OpenCall(files.folder, tensors, SAFETENSORS_NAMES[model.dtype], config.seed)
        with open_checkpoint(*sockets.loader(), call) as checkpoint:
            if checkpoint.unexpected:
                unexpected = checkpoint.unexpected
                self._report.append(f"checkpoint: {len(unexpected)} tensors not used: {some(unexpected)}")
            device = open_device(self._device_name, batch_invariant=config.batch_invariant)
            started = start_model(device, model, checkpoint, context, config, sockets, self._report.append)
        defaults = generation_defaults(
            raw,
            files.read_json("generation_config.json") or {},
            None if tokenizer is None else tokenizer.eos_token_id,
            vocab_size=model.shape.vocab_size,
            takes_sampling=config.generation_config == "auto",
        )
        self._report += defaults.left_out
        engine = self._engine(started, sockets, context, tokenizer, defaults)
        return Built(
            engine, tokenizer, defaults, model.shape, device, files.folder, context.max_model_len,
            self._report,
        )  # fmt: skip

    def _engine(
        self,
        started: StartedModel,
        sockets: Sockets,
        context: PluginContext,
        tokenizer: Tokenizer | None,
        defaults: GenerationDefaults,
    ) -> Engine:
        config = self._config
        scheduler, scheduler_name = sockets.scheduler()
        num_blocks = started.num_blocks
        runs_ahead = config.scheduler.async_scheduling
        table = SequenceTable(
            BlockManager(num_blocks),
            block_size=context.block_size,
            max_num_seqs=context.max_num_seqs,
            # The last token of a sequence is stored and needs no room in the cache, hence one block more.
            max_blocks=min(-(-context.max_model_len // context.block_size), num_blocks + 1),
            budget=context.max_num_batched_tokens,
        )
        admission = Admission(
            tokenizer=tokenizer,
            vocab_size=context.model.vocab_size,
            max_model_len=context.max_model_len,
            num_blocks=num_blocks,
            block_size=context.block_size,
            eos_token_ids=defaults.eos_token_ids,
            default_params=SamplingParams.from_mapping(defaults.sampling),
            seed=config.seed,
        )
        return Engine(
            table=table,
            runner=started.runner,
            scheduler=scheduler,
            scheduler_name=scheduler_name,
            admission=admission,
            lag=int(self._device_name != "cpu" if runs_ahead is None else runs_ahead),
        )

    def _max_model_len(self, model: Model) -> int:
        limit = model.shape.max_position_embeddings
        wanted = self._config.max_model_len
        rotary = model.rotary
        scaled = "" if rotary.rope_type == "default" else f", its {rotary.rope_type} RoPE included"
        if wanted is not None and wanted > limit:
            raise ConfigError(
                f"max_model_len is {wanted}, but the checkpoint was made for max_position_embeddings = {limit}"
                f"{scaled}; lower max_model_len to at most {limit}, or correct config.json if it reaches further"
            )
        chosen = limit if wanted is None else wanted
        if chosen > _MAX_MODEL_LEN:
            raise CapacityError(
                f"the longest sequence would be {chosen} tokens (max_model_len; null takes the checkpoint's "
                f"max_position_embeddings = {limit}{scaled}), at most {_MAX_MODEL_LEN} are served; set max_model_len"
            )
        return chosen

    def _tokenizer(self, files: ModelFiles) -> Tokenizer | None:
        if self._config.skip_tokenizer_init:
            return None
        from tinyvllm.text.tokenizer import Tokenizer

        folder = files.folder if self._config.tokenizer is None else Path(self._config.tokenizer)
        template = self._config.chat_template
        base = self._base or Path.cwd()
        tokenizer = Tokenizer.from_folder(base / folder, chat_template=None if template is None else base / template)
        self._report.extend(tokenizer.report)
        return tokenizer
