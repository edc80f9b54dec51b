"""The keys of a configuration, their types and defaults. Where a value came from is :mod:`.resolve`'s business.

Sections are the sockets: the core's keys are named here, the rest of a section belongs to the plugin chosen
in it and is validated by the plugin's own model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
)

from tinyvllm._checks import shown
from tinyvllm.config.path_text import wrong_with_path


def _check_path(value: Path | str) -> Path | str:
    reason = wrong_with_path(str(value))
    if reason:
        raise ValueError(f"{reason}, got {shown(str(value)[:100])}")
    return value


# Text in a file, a path here. Relative to the file that it is written in: see ``Resolved.path``.
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_check_path)]


def _read_bytes(value: Any) -> Any:
    """A number of bytes, from text with a unit too."""
    if not isinstance(value, str):
        return value
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except (ValueError, OverflowError):  # pydantic's ValidationError is a ValueError
        message = f"must be a number of bytes, or one with a unit as in 2GiB or 500MB, got {shown(value[:100])}"
        raise ValueError(message) from None


# A number of bytes; as text with a unit: 2GiB is 2**31, 2GB is 2,000,000,000.
Bytes = Annotated[
    int,
    BeforeValidator(_read_bytes),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}),
]
# Text that may be a path.
PathText = Annotated[str, AfterValidator(_check_path)]
_INT32_MAX = 2**31 - 1
MAX_PLUGINS = 100


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Section(BaseModel):
    """A socket's section: the plugin's name, then the plugin's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field(description="Which plugin fills the socket.")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the plugin."""
        return dict(self.model_extra or {})


class LoaderSection(Section):
    """Who reads the checkpoint."""

    name: str = Field("safetensors", description="Which plugin fills the socket.")


class AttentionSection(Section):
    """Who computes attention."""

    name: str = Field("paged", description="Which plugin fills the socket.")


class SchedulerSection(Section):
    """Who decides what each step computes, and the limits of a step."""

    name: str = Field("continuous", description="Which plugin fills the socket.")
    max_num_seqs: int = Field(64, ge=1, le=2**16, description="Most sequences that run at once.")
    max_num_batched_tokens: int = Field(2048, ge=1, le=2**24, description="Most tokens that one step computes.")
    async_scheduling: bool | None = Field(
        None,
        description="Launch step n+1 before the tokens of step n are read back; stops lag by one step. "
        "null: on cuda and the emulator.",
    )


class SamplerSection(Section):
    """Who chooses tokens."""

    name: str = Field("default", description="Which plugin fills the socket.")


KernelSection = Annotated[Section, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]


class CacheConfig(_Strict):
    """The paged KV cache."""

    block_size: int = Field(16, description="Tokens in a block: a power of two, 1 to 64 on the CPU, else 8 to 64.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the device's memory for weights and cache together (the CPU: of free)."
    )
    num_blocks_override: int | None = Field(
        None, ge=1, le=_INT32_MAX, description="Number of blocks; null sizes the cache by memory."
    )

    kv_bytes: Annotated[Bytes, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Memory of the KV cache, as in 2GiB, instead of a share; null: gpu_memory_utilization says."
    )

    @field_validator("block_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value not in (1, 2, 4, 8, 16, 32, 64):
            raise ValueError(f"must be a power of two from 1 to 64, got {shown(value)}; try 16 or 32")
        return value


class RunConfig(_Strict):
    """What ``python -m tinyvllm --config`` does once the model is loaded."""

    task: Literal["generate"] = Field("generate", description="What to do.")
    prompts: list[str] | None = Field(None, min_length=1, description="Prompts to complete.")
    prompts_file: FilePath | None = Field(None, description="A JSONL file of prompts, instead of ``prompts``.")
    sampling: dict[str, Any] = Field(default_factory=dict, description="Fields of SamplingParams for every prompt.")
    output: FilePath | None = Field(
        None, description="A JSONL file that results are appended to; an interrupted run goes on where it stopped."
    )


class Config(_Strict):
    """A whole configuration. Every key but ``model`` has a default."""

    model: PathText = Field(description="'demo', a folder in Hugging Face layout, or org/name from the local cache.")
    tokenizer: PathText | None = Field(None, description="Folder or file of the tokenizer; null: the model's own.")
    skip_tokenizer_init: bool = Field(False, description="Load no tokenizer; prompts are token ids.")
    device: Literal["auto", "cpu", "cuda", "emulator"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="What weights are rounded to; auto: as stored. The CPU computes in float32 either way."
    )
    load_format: Literal["auto", "safetensors", "dummy"] = Field(
        "auto", description="vLLM's word for loader.name; auto: as loader.name says."
    )
    generation_config: Literal["auto", "vllm"] = Field(
        "auto",
        description="auto: requests are sampled as the checkpoint's generation_config.json says; vllm: they are not.",
    )
    max_model_len: int | None = Field(
        None, ge=1, le=_INT32_MAX, description="Longest sequence; null: the checkpoint's own limit."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of dummy weights and of requests without a seed.")
    num_threads: int | None = Field(
        None, ge=1, le=1024, description="Threads of matrix products on the CPU; null: one for small products."
    )
    batch_invariant: bool = Field(False, description="Bit-equal logits in any company, at a price.")
    enforce_eager: bool = Field(False, description="On a device: launch kernels one by one, record no graphs.")
    autotune: bool = Field(
        True, description="On cuda: time matrix products at the first start with a model, and remember the fastest."
    )
    chat_template: FilePath | None = Field(None, description="A Jinja file instead of the checkpoint's chat template.")
    plugins: list[PathText] = Field(
        default_factory=list, max_length=MAX_PLUGINS, description="Local plugins: ./file.py or package.module."
    )
    loader: LoaderSection = Field(default_factory=lambda: LoaderSection())  # type: ignore[call-arg]
    attention: AttentionSection = Field(default_factory=lambda: AttentionSection())  # type: ignore[call-arg]
    scheduler: SchedulerSection = Field(default_factory=lambda: SchedulerSection())  # type: ignore[call-arg]
    sampler: SamplerSection = Field(default_factory=lambda: SamplerSection())  # type: ignore[call-arg]
    kernels: dict[str, KernelSection] = Field(
        default_factory=dict,
        description="Op name to the kernel plugin that replaces it, or to a section with its name.",
    )
    cache: CacheConfig = Field(default_factory=lambda: CacheConfig())  # type: ignore[call-arg]
    run: RunConfig | None = Field(None, description="What to do; not needed by LLM(...).")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors. Options of plugins are allowed, not described."""
    schema = Config.model_json_schema()
    # A validator that takes a bare name stands before the section's; pydantic cannot know what it accepts.
    kernels = schema["properties"]["kernels"]
    kernels["additionalProperties"] = {"anyOf": [{"type": "string"}, kernels["additionalProperties"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
