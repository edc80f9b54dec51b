"""Peers compute what the engine computes, from the same weights; one that fails leaves ours standing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm.bench.latency import measure_latency
from tinyvllm.bench.peers import PEERS, PeerSeries, PeerTiming
from tinyvllm.bench.peers.source import WeightSource, as_torch, weight_source
from tinyvllm.bench.roofline import Machine
from tinyvllm.bench.throughput import measure_throughput
from tinyvllm.bench.workload import Job, uniform_jobs
from tinyvllm.config.resolve import config_from_mapping
from tinyvllm.errors import ConfigError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MACHINE = Machine(1e10, 1e11)
RAGGED = [Job([3, 1, 4, 1, 5, 9, 2], 6), Job([2, 7, 1], 9), Job([8, 2, 8], 4), Job(list(range(20)), 7)]


def engine(folder: Path, **more: Any) -> tuple[LLM, WeightSource]:
    resolved = config_from_mapping({"model": str(folder), "device": "cpu", "skip_tokenizer_init": True, **more})
    llm = LLM.from_config(resolved)
    return llm, weight_source(resolved, llm)


def greedy(llm: LLM, jobs: list[Job]) -> list[list[int]]:
    params = [SamplingParams(temperature=0, max_tokens=job.num_output, ignore_eos=True) for job in jobs]
    outputs = llm.generate([{"prompt_token_ids": job.prompt} for job in jobs], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


class StandIn:
    """A peer that needs 1 s a step, or breaks at some run."""

    name = "transformers"

    def __init__(self, breaks_at: int | None = None) -> None:
        self.breaks_at, self.num_runs = breaks_at, 0

    def run(self, jobs: list[Job]) -> PeerTiming:
        self.num_runs += 1
        if self.num_runs == self.breaks_at:
            raise RuntimeError("out of memory\nand more")
        return PeerTiming(1.0, 8.0)


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_torch_loop_generates_our_tokens(tmp_path: Path, is_tied: bool) -> None:
    pytest.importorskip("torch")
    from tinyvllm.bench.peers.torch_loop import TorchLoopPeer

    folder = write_checkpoint(tmp_path, rope_scaling=ROPE, tie_word_embeddings=is_tied)
    llm, source = engine(folder)
    peer = TorchLoopPeer(source)
    uniform = uniform_jobs(llm.shape.vocab_size, 3, 40, 12, seed=1)  # beyond the original length of llama3
    assert peer.generate(uniform) == greedy(llm, uniform)
    assert peer.generate(RAGGED) == greedy(llm, RAGGED)
    timing = peer.run(RAGGED)
    assert 0 < timing.step_s < timing.total_s


def test_a_step_that_is_not_the_written_one_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from tinyvllm.bench.peers import torch_loop as peer_torch_loop
    from tinyvllm.bench.peers.torch_loop import TorchLoopPeer

    _, source = engine(write_checkpoint(tmp_path))
    make = TorchLoopPeer._make

    def nothing(run: Any) -> None:
        """A graph that is empty."""

    def other(run: Any) -> None:
        run.state.positions.add_(1)
        run.state.tokens.add_(1)

    for step, message in ((nothing, "does not advance"), (other, "chose . tokens of 16 alike")):

        def broken(self: Any, *key: int, step: Any = step) -> Any:
            made = make(self, *key)
            return peer_torch_loop._Run(made.state, lambda: step(made))

        monkeypatch.setattr(TorchLoopPeer, "_make", broken)
        with pytest.raises(RuntimeError, match=message):
            TorchLoopPeer(source).run(RAGGED)


def test_the_torch_loop_generates_transformers_tokens(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tinyvllm.bench.peers.torch_loop import TorchLoopPeer
    from tinyvllm.bench.peers.transformers import load_model

    _, source = engine(write_checkpoint(tmp_path, rope_scaling=ROPE))
    (job,) = uniform_jobs(61, 1, 50, 16, seed=2)
    model = load_model(source, "cpu", torch.float32)
    ids = model.generate(
        torch.tensor([job.prompt]), do_sample=False, max_new_tokens=16, eos_token_id=None, pad_token_id=0
    )
    assert TorchLoopPeer(source).generate([job]) == [ids[0, 50:].tolist()]


def test_the_torch_loop_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    _, source = engine(write_checkpoint(tmp_path, model_type="qwen3"))
    with pytest.raises(ConfigError, match="norms of queries and keys"):
        PeerSeries("torch-loop", source, torch_device="cpu")


@pytest.mark.parametrize("is_tied", [False, True])
def test_transformers_gets_the_values_that_the_dummy_loader_makes(tmp_path: Path, is_tied: bool) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tinyvllm.bench.peers.transformers import load_model

    folder = write_checkpoint(tmp_path, rope_scaling=ROPE, tie_word_embeddings=is_tied, torch_dtype="bfloat16")
    (folder / "model.safetensors").unlink()
    llm, source = engine(folder, load_format="dummy", seed=5)
    model = load_model(source, "cpu", torch.float32)
    state = model.state_dict()
    with source.open() as checkpoint:
        for name in checkpoint.names():
            assert np.array_equal(state[name].numpy(), checkpoint.read(name).astype(np.float32)), name
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is is_tied

    prompt = list(range(40))
    output = llm.generate(
        {"prompt_token_ids": prompt}, SamplingParams(temperature=0, max_tokens=1, logprobs=-1), use_tqdm=False
    )
    ours = {token: each.logprob for token, each in output[0].outputs[0].logprobs[0].items()}  # type: ignore[index]
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert max(abs(ours[token] - value) for token, value in enumerate(theirs.tolist())) < 1e-4


def test_transformers_times_prompts_of_different_lengths(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    _, source = engine(write_checkpoint(tmp_path))
    series = PeerSeries("transformers", source, torch_device="cpu")
    series.run(RAGGED)
    assert series.error is None
    (timing,) = series.take()
    assert timing.step_s < timing.total_s  # a difference of two runs: on a busy machine it may be anything below


def test_bfloat16_goes_to_torch_bit_by_bit() -> None:
    torch = pytest.importorskip("torch")
    import ml_dtypes

    values = np.array([[1.5, -0.02], [3e38, 1e-40]]).astype(ml_dtypes.bfloat16)
    tensor = as_torch(torch, values)
    assert tensor.dtype == torch.bfloat16
    assert np.array_equal(tensor.float().numpy(), values.astype(np.float32))


def test_a_peer_runs_in_turn_with_us_and_the_warm_up_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, source = engine(write_checkpoint(tmp_path))
    stand_in = StandIn()
    monkeypatch.setattr("tinyvllm.bench.peers.PEERS", {**PEERS, "transformers": lambda *_: stand_in})
    peers = [PeerSeries("transformers", source, torch_device="cpu")]
    result = measure_latency(llm, MACHINE, batch_size=2, input_len=5, output_len=8, repeats=3, peers=peers)
    assert stand_in.num_runs == 4
    (peer,) = result.peers
    assert (peer.ms_per_token, peer.tokens_per_s, peer.error) == (1000.0, 2.0, None)
    assert peer.speedup == pytest.approx(1000.0 / result.ms_per_token)


@pytest.mark.parametrize("breaks_at", [1, 3])
def test_a_peer_that_fails_is_reported_and_ours_still_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks_at: int
) -> None:
    llm, source = engine(write_checkpoint(tmp_path))
    stand_in = StandIn(breaks_at)
    monkeypatch.setattr("tinyvllm.bench.peers.PEERS", {**PEERS, "transformers": lambda *_: stand_in})
    peers = [PeerSeries("transformers", source, torch_device="cpu")]
    result = measure_latency(llm, MACHINE, batch_size=2, input_len=5, output_len=8, repeats=3, peers=peers)
    assert result.ms_per_token > 0
    assert [(peer.ms_per_token, peer.error) for peer in result.peers] == [(None, "RuntimeError: out of memory")]
    assert stand_in.num_runs == breaks_at, "it is not asked again"


def test_latency_counts_only_steps_in_which_every_sequence_gets_a_token(tmp_path: Path) -> None:
    # Prompts of 10 tokens, 10 tokens a step: the second prompt is computed beside the first one's first decode.
    llm, _ = engine(write_checkpoint(tmp_path), scheduler={"max_num_batched_tokens": 11, "max_num_seqs": 2})
    result = measure_latency(llm, MACHINE, batch_size=2, input_len=10, output_len=6, repeats=1)
    # First 0 to 5 tokens ahead; both decode together for some steps, at contexts between 11 and 15.
    assert 11 < result.context_len < 15
    with pytest.raises(ConfigError, match="no step decoded all 2 sequences together"):
        measure_latency(llm, MACHINE, batch_size=2, input_len=30, output_len=2, repeats=1)


def test_throughput_counts_the_tokens_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, source = engine(write_checkpoint(tmp_path), scheduler={"max_num_seqs": 2})
    monkeypatch.setattr("tinyvllm.bench.peers.PEERS", {**PEERS, "transformers": lambda *_: StandIn()})
    peers = [PeerSeries("transformers", source, torch_device="cpu")]
    result = measure_throughput(llm, MACHINE, RAGGED, temperature=0.6, repeats=2, peers=peers)
    assert (result.input_tokens, result.output_tokens, result.max_num_seqs) == (33, 26, 2)
    assert result.peers[0].tokens_per_s == 26 / 8.0
    assert result.tokens_per_s == pytest.approx(26 / result.duration_s)
    assert json.dumps(result.device) == '"cpu"'
