"""From a configuration to a running engine: files, weights, sockets, cache. Done once, off the hot path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvllm._shown import some
from tinyvllm.config.schema import Config, Section
from tinyvllm.device import Gpu
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.blocks import BlockManager
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.errors import CapacityError, ConfigError, PluginError
from tinyvllm.interfaces import (
    Attention,
    AttentionSpec,
    Checkpoint,
    Kernel,
    Kind,
    Loader,
    OpenCall,
    OpSpec,
    PluginContext,
    Sampler,
)
from tinyvllm.models import read_config
from tinyvllm.models.decoder import Decoder, DecoderConfig
from tinyvllm.models.weights import expected_tensors, load_weights
from tinyvllm.ops.checked_kernel import CheckedKernel
from tinyvllm.ops.device_values import Workspace
from tinyvllm.ops.table import DEFAULT_KERNELS, OpTable
from tinyvllm.registry import Registry
from tinyvllm.request import SamplingParams
from tinyvllm.runner.checked_attention import CheckedAttention
from tinyvllm.runner.checked_sampler import CheckedSampler
from tinyvllm.runner.cpu import ModelRunner, allocate_caches
from tinyvllm.shapes import ModelShape
from tinyvllm.start.cache_size import block_bytes, check_weights_fit, free_memory_bytes, num_kv_blocks
from tinyvllm.start.checked_loader import CheckedCheckpoint, open_checkpoint
from tinyvllm.start.cpu_threads import with_threads
from tinyvllm.start.devices import choose_device
from tinyvllm.start.generation_config import GenerationDefaults, generation_defaults
from tinyvllm.start.model_files import ModelFiles, resolve_model
from tinyvllm.start.op_spec import op_spec
from tinyvllm.step import Runner

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer

# Each running sequence has a table of its blocks, and each position a row of cosines and sines.
_MAX_MODEL_LEN = 2**24
_SAFETENSORS_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Built:
    """An engine, and what its makers learnt.

    Attributes:
        engine: ready.
        tokenizer: None if there is none.
        defaults: end tokens and default sampling of the checkpoint.
        shape: the sizes of the model.
        device: where it is; None is the CPU.
        folder: where the checkpoint lies.
        max_model_len: longest sequence.
        report: what was chosen and why, a line each.
    """

    engine: Engine
    tokenizer: Tokenizer | None
    defaults: GenerationDefaults
    shape: ModelShape
    device: Gpu | None
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
        self._device = choice.name
        self._opened: Gpu | None = None
        self._report = [f"device: {choice.name} ({choice.reason})"]

    def build(self) -> Built:
        config = self._config
        files = resolve_model(config.model, self._base)
        raw = files.read_json("config.json")
        assert raw is not None
        decoder_config = read_config(raw, str(files.folder / "config.json"))
        check_weights_fit(expected_tensors(decoder_config), self._device)
        max_model_len = self._max_model_len(decoder_config)
        dtype = decoder_config.dtype if config.dtype == "auto" else config.dtype
        context = PluginContext(
            options=None,
            device=self._device,
            model=decoder_config.shape,
            max_model_len=max_model_len,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
            block_size=config.cache.block_size,
            num_blocks=0,
            batch_invariant=config.batch_invariant,
            seed=config.seed,
        )
        tokenizer = self._tokenizer(files)
        with self._open(files, decoder_config, context) as checkpoint:
            if self._device == "cpu":
                runner, num_blocks = self._cpu_runner(decoder_config, checkpoint, context, dtype)
            else:
                runner, num_blocks = self._device_runner(decoder_config, checkpoint, context, dtype)
        context = replace(context, num_blocks=num_blocks)
        defaults = generation_defaults(
            raw,
            files.read_json("generation_config.json") or {},
            None if tokenizer is None else tokenizer.eos_token_id,
            vocab_size=decoder_config.shape.vocab_size,
            takes_sampling=config.generation_config == "auto",
        )
        self._report += defaults.left_out
        engine = self._engine(runner, context, tokenizer, defaults)
        return Built(
            engine, tokenizer, defaults, decoder_config.shape, self._opened, files.folder, max_model_len, self._report
        )

    def _engine(
        self, runner: Runner, context: PluginContext, tokenizer: Tokenizer | None, defaults: GenerationDefaults
    ) -> Engine:
        config = self._config
        runs_ahead = config.scheduler.async_scheduling
        table = SequenceTable(
            BlockManager(context.num_blocks),
            block_size=context.block_size,
            max_num_seqs=context.max_num_seqs,
            # The last token of a sequence is stored and needs no room in the cache, hence one block more.
            max_blocks=min(-(-context.max_model_len // context.block_size), context.num_blocks + 1),
            budget=context.max_num_batched_tokens,
        )
        admission = Admission(
            tokenizer=tokenizer,
            vocab_size=context.model.vocab_size,
            max_model_len=context.max_model_len,
            num_blocks=context.num_blocks,
            block_size=context.block_size,
            eos_token_ids=defaults.eos_token_ids,
            default_params=SamplingParams.from_mapping(defaults.sampling),
            seed=config.seed,
        )
        return Engine(
            table=table,
            runner=runner,
            scheduler=self._create(Kind.SCHEDULER, config.scheduler, context),
            scheduler_name=self._registry.named(Kind.SCHEDULER, config.scheduler.name),
            admission=admission,
            lag=int(self._device != "cpu" if runs_ahead is None else runs_ahead),
        )

    def _max_model_len(self, decoder_config: DecoderConfig) -> int:
        limit = decoder_config.shape.max_position_embeddings
        wanted = self._config.max_model_len
        rotary = decoder_config.rotary
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

    def _open(self, files: ModelFiles, decoder_config: DecoderConfig, context: PluginContext) -> CheckedCheckpoint:
        loader: Loader = self._create(Kind.LOADER, self._config.loader, context)
        stored = _SAFETENSORS_NAMES[decoder_config.dtype]
        call = OpenCall(files.folder, expected_tensors(decoder_config), stored, self._config.seed)
        checkpoint = open_checkpoint(loader, self._registry.named(Kind.LOADER, self._config.loader.name), call)
        unexpected = checkpoint.unexpected
        if unexpected:
            self._report.append(f"checkpoint: {len(unexpected)} tensors not used: {some(unexpected)}")
        return checkpoint

    def _cpu_runner(
        self, decoder_config: DecoderConfig, checkpoint: Checkpoint, context: PluginContext, dtype: str
    ) -> tuple[Runner, int]:
        """The NumPy runner and the number of KV blocks."""
        cache, shape = self._config.cache, decoder_config.shape

        def affordable_blocks() -> int:
            free = free_memory_bytes()
            share = int(free * cache.gpu_memory_utilization)
            return num_kv_blocks(cache, context, 4, free_bytes=free, share_bytes=share)

        # No sequence is longer than the cache, so positions beyond it need no cosines and sines.
        max_blocks = affordable_blocks()
        num_positions = min(context.max_model_len, max_blocks * cache.block_size)
        weights = load_weights(decoder_config, checkpoint, dtype, context.max_model_len, num_positions)
        num_blocks = min(max_blocks, affordable_blocks())
        self._report_cache(decoder_config, num_blocks, 4)
        context = replace(context, num_blocks=num_blocks)
        attention = self._attention(decoder_config, context)
        config = self._config
        spec = op_spec(decoder_config, context, attention=config.attention.name, sampler=config.sampler.name)
        ops = self._ops(spec, context)
        decoder = Decoder(weights, ops.op, attention)
        ops.check_used()
        self._report_ops(ops)
        sampler = self._sampler(context)
        runner = ModelRunner(decoder, allocate_caches(shape, num_blocks, cache.block_size), sampler)
        threaded = with_threads(runner, shape, config.num_threads, batch_invariant=config.batch_invariant)
        if threaded is not runner:
            self._report.append(f"threads: {threaded}")
        return threaded, num_blocks

    def _device_runner(
        self, decoder_config: DecoderConfig, checkpoint: Checkpoint, context: PluginContext, dtype: str
    ) -> tuple[Runner, int]:
        """The runner on a device and the number of KV blocks."""
        from tinyvllm.start.devices import DeviceSettings, build_device_runner, open_device

        config = self._config
        settings = DeviceSettings(
            cache=config.cache,
            dtype=dtype,
            attention=config.attention.name,
            sampler=config.sampler.name,
            enforce_eager=config.enforce_eager,
            autotune=config.autotune,
            is_card=self._device == "cuda",
        )
        device = self._opened = open_device(self._device, batch_invariant=config.batch_invariant)

        tables: list[OpTable] = []

        def make_table(spec: OpSpec, workspace: Workspace) -> OpTable:
            tables.append(self._ops(spec, context, workspace))
            return tables[0]

        runner, num_blocks = build_device_runner(
            device, decoder_config, checkpoint, context, settings, self._sampler, make_table, self._report.append
        )
        self._report_cache(decoder_config, num_blocks, 2)
        self._report_ops(tables[0])
        return runner, num_blocks

    def _attention(self, decoder_config: DecoderConfig, context: PluginContext) -> Attention:
        name = self._config.attention.name
        plugin = self._registry.named(Kind.ATTENTION, name)
        attention = CheckedAttention(self._create(Kind.ATTENTION, self._config.attention, context), plugin)
        shape = decoder_config.shape
        for window in dict.fromkeys(decoder_config.sliding_windows):
            spec = AttentionSpec(
                device=self._device,
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                block_size=context.block_size,
                dtype="float32",
                sliding_window=window,
                batch_invariant=context.batch_invariant,
            )
            reasons = attention.supports(spec)
            if reasons:
                raise PluginError(f"attention {name!r} cannot serve this model here: {'; '.join(reasons)}")
        return attention

    def _ops(self, spec: OpSpec, context: PluginContext, workspace: Workspace | None = None) -> OpTable:
        replacements = {}
        for op, chosen in self._config.kernels.items():
            name = chosen if isinstance(chosen, str) else chosen.name
            own = replace(context, options=self._plugin_options(Kind.KERNEL, f"kernels.{op}", name))
            kernel: Kernel = self._registry.create(Kind.KERNEL, name, own)
            replacements[op] = (name, CheckedKernel(kernel, self._registry.named(Kind.KERNEL, name)))
        defaults = {
            name: self._registry.create(
                Kind.KERNEL, name, replace(context, options=self._registry.get(Kind.KERNEL, name).options())
            )
            for name in DEFAULT_KERNELS[self._device]
        }
        return OpTable(spec, defaults, replacements, workspace)

    def _sampler(self, context: PluginContext) -> CheckedSampler:
        sampler: Sampler = self._create(Kind.SAMPLER, self._config.sampler, context)
        name = self._registry.named(Kind.SAMPLER, self._config.sampler.name)
        return CheckedSampler(sampler, name, context.model.vocab_size)

    def _report_ops(self, ops: OpTable) -> None:
        self._report += [f"op {r.op}: {r.implementation} ({r.reason})" for r in ops.report()]

    def _create(self, kind: Kind, section: Section, context: PluginContext) -> Any:
        options = self._plugin_options(kind, kind.value, section.name)
        return self._registry.create(kind, section.name, replace(context, options=options))

    def _plugin_options(self, kind: Kind, where: str, name: str) -> Any:
        return self._options[where] if where in self._options else self._registry.get(kind, name).options()

    def _report_cache(self, decoder_config: DecoderConfig, num_blocks: int, element_bytes: int) -> None:
        cache = self._config.cache
        mib = num_blocks * block_bytes(decoder_config.shape, cache.block_size, element_bytes) / 2**20
        self._report.append(
            f"kv cache: {num_blocks} blocks of {cache.block_size} tokens, {mib:.0f} MiB when all are used"
        )
