"""The floors and the workloads that fractions are made from, against figures worked out by hand."""

import json
import random
from pathlib import Path

import pytest

from tinyvllm.bench.roofline import (
    Machine,
    ModelCost,
    decode_bytes,
    decode_floor_s,
    model_cost,
    prefill_floor_s,
    schedule_floor,
)
from tinyvllm.bench.workload import offline_jobs
from tinyvllm.models import read_config

H200 = Machine(4.29e12, 798e12, "NVIDIA H200")
LLAMA_1B = Path(__file__).parents[2] / "configs" / "llama-3.2-1b-shape" / "config.json"


@pytest.fixture(scope="module")
def cost() -> ModelCost:
    return model_cost(read_config(json.loads(LLAMA_1B.read_text())).shape, element_bytes=2)


def test_constants_come_from_the_models_sizes(cost: ModelCost) -> None:
    matrices = 16 * 2048 * (2 * 2048 + 2 * 512 + 3 * 8192)
    assert cost.weight_bytes == 2 * (matrices + 128256 * 2048)
    assert cost.flops_per_token == 2 * (matrices + 128256 * 2048)
    assert cost.layer_flops_per_token == pytest.approx(1.946e9, rel=1e-3)
    assert cost.kv_bytes_per_token == 32768
    assert cost.attention_flops_per_pair == 131072


@pytest.mark.parametrize(
    ("batch", "context", "floor_ms"),
    [(1, 128, 0.577), (1, 1024, 0.584), (1, 4096, 0.607), (32, 1024, 0.827), (128, 1024, 1.578), (256, 1024, 2.797)],
)
def test_a_decode_step_takes_at_least_weights_and_context_once(
    cost: ModelCost, batch: int, context: int, floor_ms: float
) -> None:
    floor_s = decode_floor_s(cost, H200, batch=batch, num_visible=batch * (context + 1))
    assert 1e3 * floor_s == pytest.approx(floor_ms, abs=6e-4)


@pytest.mark.parametrize(("num_tokens", "floor_ms"), [(1024, 2.6), (4096, 11.4)])
def test_a_prefill_takes_at_least_its_products(cost: ModelCost, num_tokens: int, floor_ms: float) -> None:
    assert 1e3 * prefill_floor_s(cost, H200, num_tokens) == pytest.approx(floor_ms, rel=0.01)


def test_a_short_prefill_takes_at_least_the_weights(cost: ModelCost) -> None:
    assert prefill_floor_s(cost, H200, 1) == cost.weight_bytes / H200.bandwidth


def test_the_offline_workload_is_nano_vllms() -> None:
    jobs = offline_jobs(128256)
    assert len(jobs) == 256
    assert sum(len(job.prompt) for job in jobs) == 142_827
    assert sum(job.num_output for job in jobs) == 133_966
    random.seed(0)  # nano-vllm's bench.py, in its order
    first_len = random.randint(100, 1024)
    assert jobs[0].prompt == [random.randint(0, 10000) for _ in range(first_len)]


def test_the_floor_of_the_offline_workload(cost: ModelCost) -> None:
    lengths = [(len(job.prompt), job.num_output) for job in offline_jobs(128256)]
    floor = schedule_floor(cost, H200, lengths, max_num_seqs=256)
    assert floor.seconds == pytest.approx(1.91, abs=0.01)
    assert 133_966 / floor.seconds == pytest.approx(70.1e3, rel=0.005)


def test_the_ideal_schedule_refills_a_place_at_the_step_after_it_was_left() -> None:
    # A step costs 1 s whatever is in it, a prompt 1 s: two places, outputs of 2, 4, 3 tokens.
    cost = ModelCost(1.0, 0.0, 0.0, 0.0, 0.0)
    floor = schedule_floor(cost, Machine(1.0, 1.0), [(5, 2), (5, 4), (5, 3)], max_num_seqs=2)
    # Steps: [1st, 2nd], [2nd, 3rd], [2nd, 3rd].
    assert floor.seconds == 3 + 3
    assert floor.decode_bytes == 3 * decode_bytes(cost, 0)


def test_an_output_of_one_token_costs_no_decode_step() -> None:
    cost = ModelCost(1.0, 0.0, 0.0, 0.0, 0.0)
    assert schedule_floor(cost, Machine(1.0, 1.0), [(5, 1)] * 3, max_num_seqs=2).seconds == 3


def test_only_known_cards_have_a_datasheet() -> None:
    assert H200.datasheet_fraction(4.8e12, 2.0) == 0.5
    assert Machine(1.0, 1.0, "NVIDIA H100 80GB HBM3").datasheet_fraction(3.35e12, 1.0) == 1.0
    assert Machine(1.0, 1.0, "NVIDIA H100 PCIe").datasheet_fraction(1.0, 1.0) is None
