"""Requests through the whole engine with the checkpoint that ships: text, ends, log-probabilities, refusals."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm import LLM, SamplingParams
from tinyvllm.devices.cuda import probe
from tinyvllm.errors import ConfigError, DeviceError, PluginError, RequestError

STORY = "Once upon a time there was a"


@cache
def demo() -> LLM:
    return LLM("demo", max_model_len=512)


def text_of(prompt: str, **params: Any) -> str:
    return demo().generate(prompt, SamplingParams(temperature=0, **params))[0].outputs[0].text


def test_it_adds() -> None:
    output = demo().generate("12+7=", SamplingParams(temperature=0))[0]
    assert output.prompt == "12+7="
    assert output.finished
    completion = output.outputs[0]
    assert completion.text == "19"
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert completion.token_ids[-1] in demo().engine._admission._eos_token_ids
    metrics = output.metrics
    assert metrics is not None
    assert metrics.ttft_s is not None
    assert metrics.e2e_latency_s is not None
    assert 0 <= metrics.ttft_s <= metrics.e2e_latency_s


def test_prompts_come_as_text_mapping_or_token_ids() -> None:
    llm = demo()
    ids = llm.get_tokenizer().encode("12+7=")
    params = SamplingParams(temperature=0)
    outputs = llm.generate(["12+7=", {"prompt": "12+7="}, {"prompt_token_ids": ids}], params)
    assert [o.outputs[0].text for o in outputs] == ["19"] * 3
    assert [o.prompt_token_ids for o in outputs] == [ids] * 3
    with pytest.raises(RequestError, match="keys prompt or prompt_token_ids, got \\['promt'\\]"):
        llm.generate({"promt": "12+7="})


def test_outputs_come_in_the_order_of_the_prompts_each_with_its_own_parameters() -> None:
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (30, 1, 10)]
    outputs = demo().generate([STORY] * 3, params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [30, 1, 10]
    assert [o.outputs[0].finish_reason for o in outputs] == ["length"] * 3
    with pytest.raises(RequestError, match="3 prompts but 2 sampling_params"):
        demo().generate([STORY] * 3, params[:2])


def test_stop_strings_end_a_text_wherever_tokens_begin() -> None:
    whole = text_of(STORY, max_tokens=40)
    for start in range(3, 30, 4):
        stop = whole[start : start + 5]
        first = whole.index(stop)
        assert text_of(STORY, max_tokens=40, stop=stop) == whole[:first]
        with_stop = text_of(STORY, max_tokens=40, stop=[stop], include_stop_str_in_output=True)
        assert with_stop == whole[: first + len(stop)]
    output = demo().generate(STORY, SamplingParams(temperature=0, max_tokens=40, stop=whole[5:9]))[0].outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", whole[5:9])


def test_nothing_is_streamed_that_a_stop_string_takes_back() -> None:
    whole = text_of(STORY, max_tokens=40)
    engine = demo().engine
    engine.add_request("s", STORY, SamplingParams(temperature=0, max_tokens=40, stop=whole[10:22]))
    texts = []
    while engine.has_unfinished_requests():
        texts += [delta.text for delta in engine.step()]
    assert "".join(texts) == whole[: whole.index(whole[10:22])]


def test_stop_token_ids_end_a_completion_and_stay_out_of_the_text() -> None:
    whole = demo().generate(STORY, SamplingParams(temperature=0, max_tokens=12))[0].outputs[0]
    stop = whole.token_ids[6]
    first = whole.token_ids.index(stop)
    ended = demo().generate(STORY, SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[stop]))[0].outputs[0]
    assert ended.token_ids == whole.token_ids[: first + 1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", stop)
    assert ended.text == demo().get_tokenizer().decode(whole.token_ids[:first])


def test_min_tokens_and_ignore_eos_go_on_after_the_answer() -> None:
    assert len(demo().generate("12+7=", SamplingParams(temperature=0))[0].outputs[0].token_ids) < 8
    longer = demo().generate("12+7=", SamplingParams(temperature=0, min_tokens=8))[0].outputs[0]
    assert len(longer.token_ids) >= 8
    assert not set(longer.token_ids[:7]) & set(demo().engine._admission._eos_token_ids)
    endless = demo().generate("12+7=", SamplingParams(temperature=0, ignore_eos=True, max_tokens=9))[0].outputs[0]
    assert len(endless.token_ids) == 9
    assert endless.finish_reason == "length"


def test_log_probabilities_are_of_the_raw_logits_and_add_up() -> None:
    params = SamplingParams(temperature=1.7, seed=3, logprobs=4, prompt_logprobs=0, max_tokens=6, presence_penalty=1.0)
    output = demo().generate(STORY, params)[0]
    completion = output.outputs[0]
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    for token_id, told in zip(completion.token_ids, completion.logprobs, strict=True):
        assert token_id in told
        ranks = sorted(each.rank for each in told.values())
        assert ranks[:4] == [1, 2, 3, 4]
        best = sorted(told.values(), key=lambda each: each.rank)
        assert [each.logprob for each in best] == sorted((each.logprob for each in best), reverse=True)
    total = sum(told[t].logprob for t, told in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    told_ids = [next(iter(each)) for each in output.prompt_logprobs[1:] if each]
    assert told_ids == output.prompt_token_ids[1:]
    # What the prompt tells of a position is what generating there would have told.
    again = demo().generate(
        {"prompt_token_ids": output.prompt_token_ids + completion.token_ids[:3]},
        SamplingParams(max_tokens=1, prompt_logprobs=0),
    )[0]
    assert again.prompt_logprobs is not None
    for token_id, told, prompt in zip(
        completion.token_ids[:3], completion.logprobs[:3], again.prompt_logprobs[-3:], strict=True
    ):
        assert prompt is not None
        assert prompt[token_id].logprob == pytest.approx(told[token_id].logprob, abs=1e-4)


def test_the_full_distribution_sums_to_one() -> None:
    told = demo().generate("12+7=", SamplingParams(max_tokens=1, logprobs=-1))[0].outputs[0].logprobs
    assert told is not None
    assert len(told[0]) == demo().shape.vocab_size
    assert sum(np.exp(each.logprob) for each in told[0].values()) == pytest.approx(1.0, abs=1e-4)


def test_seeds_repeat_and_completions_differ() -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=24)
    first, second = demo().generate([STORY, STORY], params)
    assert [c.token_ids for c in first.outputs] == [c.token_ids for c in second.outputs]
    assert len({tuple(c.token_ids) for c in first.outputs}) == 3
    unseeded = demo().generate([STORY] * 3, SamplingParams(temperature=1.0, max_tokens=24))
    assert len({tuple(o.outputs[0].token_ids) for o in unseeded}) == 3


def test_rules_reach_the_sampler() -> None:
    tokenizer = demo().get_tokenizer()
    nine = tokenizer.encode("9", add_special_tokens=False)[-1]
    assert text_of("12+7=", allowed_token_ids=[nine], max_tokens=3) == "999"
    assert text_of("12+7=", logit_bias={nine: 1000.0}, max_tokens=2) == "99"
    whole = text_of(STORY, max_tokens=12)
    word = whole.split()[1]
    assert word not in text_of(STORY, max_tokens=12, bad_words=[word])


def test_a_conversation_goes_through_the_chat_template() -> None:
    output = demo().chat([{"role": "user", "content": "12+7="}], SamplingParams(temperature=0))[0]
    assert output.outputs[0].text.strip() == "19"
    tokenizer = demo().get_tokenizer()
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "12+7="}])
    assert output.prompt_token_ids == tokenizer.encode(rendered, add_special_tokens=False)


def test_token_ids_need_no_tokenizer_and_text_does(tmp_path: Path) -> None:
    llm = LLM(str(write_checkpoint(tmp_path)), skip_tokenizer_init=True)
    output = llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(temperature=0, max_tokens=4))[0]
    assert len(output.outputs[0].token_ids) == 4
    assert output.outputs[0].text == ""
    with pytest.raises(RequestError, match="no tokenizer is loaded"):
        llm.generate("text")
    with pytest.raises(RequestError, match="stop and bad_words need a tokenizer"):
        llm.generate({"prompt_token_ids": [1]}, SamplingParams(stop="x"))
    with pytest.raises(RequestError, match="token 61 in the prompt, but the last of the vocabulary is 60"):
        llm.generate({"prompt_token_ids": [61]})
    with pytest.raises(RequestError, match="stop_token_ids names token 99, but the last one is 60"):
        llm.generate({"prompt_token_ids": [1]}, SamplingParams(stop_token_ids=[99]))
    assert not llm.engine.has_unfinished_requests()


def test_what_can_never_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path))
    llm = LLM(folder, skip_tokenizer_init=True, cache={"block_size": 4, "num_blocks_override": 3}, max_model_len=64)
    with pytest.raises(RequestError, match=r"9 prompt tokens and up to 8 more need 4 KV blocks of 4.*cache has 3"):
        llm.generate({"prompt_token_ids": list(range(9))}, SamplingParams(max_tokens=8))
    assert len(llm.generate({"prompt_token_ids": [1]}, SamplingParams(max_tokens=12))[0].outputs[0].token_ids) == 12
    with pytest.raises(RequestError, match="the prompt has 64 tokens and max_model_len is 64"):
        llm.generate({"prompt_token_ids": [1] * 64}, SamplingParams(max_tokens=1))
    with pytest.raises(ConfigError, match=r"max_model_len is 300.*max_position_embeddings = 256"):
        LLM(folder, skip_tokenizer_init=True, max_model_len=300)


def test_a_bad_prompt_among_good_ones_leaves_nothing_behind() -> None:
    llm = demo()
    with pytest.raises(RequestError):
        llm.generate(["12+7=", {"prompt_token_ids": [10**6]}])
    assert not llm.engine.has_unfinished_requests()
    llm.engine.check()


def test_logits_that_are_not_numbers_end_their_own_request_only(tmp_path: Path) -> None:
    llm = LLM(str(write_checkpoint(tmp_path)), skip_tokenizer_init=True, cache={"block_size": 4})
    alone = llm.generate({"prompt_token_ids": [5, 6]}, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    # One row of the embedding is spoilt, so whoever has token 7 gets NaN everywhere, its cache blocks included.
    runner: Any = llm.engine._runner
    runner = getattr(runner, "_runner", runner)  # within one that counts BLAS threads
    embedding = runner._decoder._weights.embedding
    embedding.flags.writeable = True  # plugins see it read-only
    embedding[7] = np.nan
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    for _ in range(3):  # blocks that held NaN are used again
        bad, good = llm.generate([{"prompt_token_ids": [7, 6]}, {"prompt_token_ids": [5, 6]}], params)
        assert bad.outputs[0].finish_reason == "abort"
        assert "not numbers" in str(bad.outputs[0].stop_reason)
        if 7 not in alone[0].outputs[0].token_ids:
            assert good.outputs[0].token_ids == alone[0].outputs[0].token_ids


def test_a_gpu_that_is_not_there_is_one_clear_error() -> None:
    if probe().is_usable:
        pytest.skip("there is a usable GPU here")
    with pytest.raises(DeviceError, match="cuda"):
        LLM("demo", device="cuda", dtype="bfloat16")


def test_what_a_device_cannot_do_is_refused_before_anything_is_loaded_there() -> None:
    with pytest.raises(
        PluginError, match=r"attention 'paged' cannot serve .*: knows cache.block_size 8, 16, 32, 64, not 4"
    ):
        LLM("demo", device="emulator", cache={"block_size": 4})
    with pytest.raises(ConfigError, match="dtype is float32; on device emulator weights are bfloat16"):
        LLM("demo", device="emulator", dtype="float32")


@pytest.mark.slow
def test_the_emulator_answers_as_the_cpu_does() -> None:
    """Prompts of several chunks, mixed and decode steps, to a stop; test_device_engine.py has log-probabilities."""
    prompts = ["12+7=", "sort 31425=", "reverse 987="]
    sections: Any = {"max_model_len": 128, "scheduler": {"max_num_seqs": 2, "max_num_batched_tokens": 16}}
    told = [
        [(o.outputs[0].text, o.outputs[0].finish_reason) for o in llm.generate(prompts, SamplingParams(temperature=0))]
        for llm in (LLM("demo", device=device, **sections) for device in ("emulator", "cpu"))
    ]
    assert told[0] == told[1] == [(text, "stop") for text in ("19", "12345", "789")]
