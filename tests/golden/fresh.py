"""Draws shapes and seeds beyond the committed ones and compares the engine with transformers on each.

Development only: ``python -m tests.golden.fresh --cases 50 --seed 1`` from the repository's root, with torch and
transformers installed. One line a case; exit code 1 when any of them is out of tolerance. ``--only I`` runs the I-th
case of a seed again, ``--keep FOLDER`` leaves the checkpoints there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .compare import TOLERANCE, compare, generate
from .oracle import Spec, answer, hf, old_spelling, read_checkpoint, write_checkpoint

MODEL_TYPES = ("llama", "llama", "qwen2", "qwen3", "mistral", "ministral", "seed_oss", "internlm3", "iquestcoder")
MAX_MODEL_LEN = 512  # of every case, so that frequencies which depend on it are those of short sequences
HEAD_DIMS = (16, 32, 64, 80, 96, 128)
GROUP_SIZES = (1, 2, 3, 4, 8)  # H / K
ROPE_TYPES = ("default", "linear", "llama3", "dynamic", "yarn", "longrope")
MAX_ROW = 512  # bound on H * D, so that a case takes about a second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, metavar="I")
    parser.add_argument("--keep", type=Path, default=None, metavar="FOLDER")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    hf.utils.logging.disable_progress_bar()
    hf.utils.logging.set_verbosity_error()
    indices = range(arguments.cases) if arguments.only is None else [arguments.only]
    num_failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        for index in indices:
            num_failed += not run(draw(arguments.seed, index), root)
    print(f"{len(indices) - num_failed} of {len(indices)} cases agree within {TOLERANCE}")
    return 1 if num_failed else 0


def run(spec: Spec, root: Path) -> bool:
    """Compare on one checkpoint and print a line; whether all was well. A refused sliding window counts as well."""
    folder = root / spec.name
    write_checkpoint(spec, folder)
    model = read_checkpoint(folder)
    rng = np.random.default_rng(spec.seed)
    goldens = [answer(model, rng.integers(0, model.config.vocab_size, n, dtype=np.int32)) for n in spec.prompt_lengths]
    try:
        outputs = generate(folder, goldens, max_model_len=MAX_MODEL_LEN)
    except Exception as error:
        if spec.config.get("use_sliding_window") and "sliding_window" in str(error):
            print(f"refused  {spec.name}: {error}", flush=True)
            return True
        print(f"RAISED   {summary(spec)}\n{traceback.format_exc()}", flush=True)
        return False
    comparisons = [compare(output, golden) for output, golden in zip(outputs, goldens, strict=True)]
    complaints = [complaint for comparison in comparisons for complaint in comparison.complaints]
    num_steps = sum(comparison.num_steps for comparison in comparisons)
    worst = max(comparison.worst for comparison in comparisons)
    print(f"{'DIFFERS' if complaints else 'ok':8} {worst:.1e} {num_steps:3} steps  {summary(spec)}", flush=True)
    for complaint in complaints:
        print(f"         {complaint}")
    return not complaints


def summary(spec: Spec) -> str:
    values = {key: value for key, value in spec.config.items() if key != "max_position_embeddings"}
    spelling = "old" if spec.rewrite is old_spelling else "new"
    return f"{spec.name} {spec.dtype} {spelling} shards<{spec.max_shard_size} prompts {spec.prompt_lengths} {values}"


def draw(seed: int, index: int) -> Spec:
    """The ``index``-th random case of ``seed``, the same whatever else is run."""
    rng = np.random.default_rng([seed, index])
    model_type = pick(rng, MODEL_TYPES)
    group_size = pick(rng, GROUP_SIZES)
    head_dim = pick(rng, [size for size in HEAD_DIMS if size * group_size <= MAX_ROW])
    num_kv_heads = pick(rng, [count for count in (1, 1, 2, 3, 4) if count * group_size * head_dim <= MAX_ROW])
    num_heads = num_kv_heads * group_size
    hidden = num_heads * head_dim if model_type == "qwen2" else num_heads * int(rng.integers(1, 1 + 160 // num_heads))
    config: dict[str, Any] = {
        "hidden_size": max(hidden, 2 * num_heads),
        "intermediate_size": int(rng.integers(17, 200)),
        "vocab_size": int(rng.integers(40, 300)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": MAX_MODEL_LEN,
        "tie_word_embeddings": bool(rng.integers(2)),
        "rms_norm_eps": float(10.0 ** rng.uniform(-7, -2)),
        "rope_parameters": draw_rope(rng, head_dim),
    }
    if model_type != "qwen2":
        config["head_dim"] = head_dim
    if model_type in ("llama", "qwen3", "seed_oss", "iquestcoder"):
        config["attention_bias"] = bool(rng.integers(2))
    if model_type in ("llama", "seed_oss", "iquestcoder"):
        config["mlp_bias"] = bool(rng.integers(2))
    if model_type == "seed_oss":
        config["attention_out_bias"] = bool(rng.integers(2))
    if model_type == "internlm3":
        config["attention_bias"] = config["mlp_bias"] = bool(rng.integers(2))
    if model_type == "ministral":
        config["sliding_window"] = int(rng.integers(2, 100))
        kinds = ("full_attention", "sliding_attention")
        config["layer_types"] = [pick(rng, kinds) for _ in range(config["num_hidden_layers"])]
    if model_type == "mistral":
        config["sliding_window"] = pick(rng, (None, int(rng.integers(2, 100))))
    if model_type in ("qwen2", "qwen3") and rng.random() < 0.2:
        config |= {"use_sliding_window": True, "sliding_window": int(rng.integers(2, 60)), "max_window_layers": 1}
    return Spec(
        name=f"{model_type}-{seed}-{index}",
        model_type=model_type,
        config=config,
        seed=int(rng.integers(2**31)),
        prompt_lengths=tuple(int(length) for length in rng.integers(1, (8, 64, 200), 3)),
        dtype=pick(rng, ("float32", "float32", "bfloat16", "float16")),
        max_shard_size=pick(rng, ("50GB", "100KB")),
        rewrite=pick(rng, (old_spelling, lambda written: written)),
        all_bits=True,
    )


def draw_rope(rng: np.random.Generator, head_dim: int) -> dict[str, Any]:
    """Any of the supported kinds, as ``rope_parameters``."""
    parameters: dict[str, Any] = {"rope_theta": float(np.round(10.0 ** rng.uniform(2.5, 6), 1))}
    match pick(rng, ROPE_TYPES):
        case "linear":
            return {**parameters, "rope_type": "linear", "factor": float(rng.uniform(1.5, 8))}
        case "dynamic":
            return {**parameters, "rope_type": "dynamic", "factor": float(rng.uniform(1.5, 8))}
        case "yarn":
            mscale = {"mscale": float(rng.uniform(0.5, 1.5)), "mscale_all_dim": float(rng.uniform(0.1, 1))}
            return {
                **parameters,
                **(mscale if rng.integers(2) else {}),
                "rope_type": "yarn",
                "factor": float(rng.uniform(8, 20)),  # so that the case's longest sequence is reached
                "original_max_position_embeddings": int(rng.integers(MAX_MODEL_LEN // 8, 400)),
                "beta_fast": float(rng.uniform(2, 40)),
                "truncate": bool(rng.integers(2)),
            }
        case "longrope":
            factors = {name: rng.uniform(1, 9, head_dim // 2).tolist() for name in ("short_factor", "long_factor")}
            original = {"original_max_position_embeddings": MAX_MODEL_LEN}
            return {**parameters, **factors, **original, "rope_type": "longrope", "factor": float(rng.uniform(1, 4))}
        case "llama3":
            low = float(rng.uniform(0.5, 2))
            return {
                **parameters,
                "rope_type": "llama3",
                "factor": float(rng.uniform(2, 40)),
                "low_freq_factor": low,
                "high_freq_factor": low + float(rng.uniform(0.5, 6)),
                "original_max_position_embeddings": int(rng.integers(16, 128)),
            }
        case _:
            return {**parameters, "rope_type": "default"}


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of ``choices`` as it is; ``rng.choice`` would make a NumPy scalar of it."""
    return choices[int(rng.integers(len(choices)))]


if __name__ == "__main__":
    sys.exit(main())
