"""What a kernel may not answer, and what is said of it, on the CPU and on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sockets.plugins import KERNEL, answer, complaint, write_plugin
from tests.testing.own_kernel import write_own_kernel
from tinyvllm.cli.main import main
from tinyvllm.errors import KernelError, PluginError
from tinyvllm.llm import LLM
from tinyvllm.request import SamplingParams

REASONS = "expected a list of strings: the reasons why not, empty if it can"
NAMES = "expected a list of names of ops"
WRITES = "expected None: an op writes to its outputs"
PREPARE = "Mine.prepare = lambda self, op, layer: "

WRONG = [
    ("rms_norm", "Mine.ops = lambda self: None", f"ops returned None; {NAMES}"),
    ("rms_norm", "Mine.ops = lambda self: 'rms_norm'", f"ops returned the str 'rms_norm'; {NAMES}"),
    ("rms_norm", "Mine.ops = lambda self: [len]", "ops returned an object of type builtin_function_or_method as a n"),
    ("rms_norm", "Mine.ops = lambda self: ['rmsnorm']", "'rmsnorm'; expected names of ops; did you mean 'rms_norm'?"),
    ("rms_norm", "Mine.ops = fail", "ops raised ValueError: spoilt"),
    ("rms_norm", "Mine.supports = lambda self, op, spec: 'no'", "supports('rms_norm') returned the str 'no'; expe"),
    ("rms_norm", "Mine.supports = lambda self, op, spec: True", f"supports('rms_norm') returned True; {REASONS}"),
    ("rms_norm", "Mine.supports = lambda self, op, spec: None", f"supports('rms_norm') returned None; {REASONS}"),
    ("rms_norm", "Mine.supports = lambda self, op, spec: [1]", "returned a list that holds the int 1; expected a list"),
    ("rms_norm", "Mine.supports = lambda self, spec: []", "supports('rms_norm') raised TypeError: <lambda>() takes 2"),
    ("rms_norm", "Mine.supports = fail", "supports('rms_norm') raised ValueError: spoilt"),
    ("rms_norm", "Mine.bind = lambda self, op, context: None", "bind('rms_norm') returned None; expected a callable"),
    ("rms_norm", "Mine.bind = fail", "bind('rms_norm') raised ValueError: spoilt"),
    (
        "rms_norm",
        "Mine.bind = lambda self, op, context: lambda out: None",
        "bind('rms_norm') returned a callable that does not take (out: 'Array', x: 'Array', norm: 'Norm') -> 'None';",
    ),
    ("rms_norm", "Mine.bind = lambda self, op, context: context.op('rms_nrom')", "no such op; did you mean 'rms_norm'"),
    ("rms_norm", "Mine.bind = lambda self, op, context: context.gpu", "raised AssertionError: no kernel is launched o"),
    ("rms_norm", "Mine.bind = lambda self, op, context: context.linear", "AssertionError: the op applies no linear la"),
    ("linear", f"{PREPARE}None", "prepare('linear') returned None; expected a Linear"),
    ("lm_head", f"{PREPARE}layer.weight", "prepare('lm_head') returned float32 of shape (61, 48); expected a Linear"),
    ("linear", f"{PREPARE}(layer, 0)", "prepare('linear') returned a tuple of 2; expected a Linear"),
    ("linear", f"{PREPARE}fail()", "prepare('linear') raised ValueError: spoilt"),
    ("linear", "Mine.prepare = lambda self, layer: layer", "prepare('linear') raised TypeError: <lambda>() takes 2"),
    ("linear", f"{PREPARE}layer.weight.fill(0)", "prepare('linear') raised ValueError: assignment destination is read"),
    (
        "lm_head",
        f"{PREPARE}replace(layer, in_features=49)",
        "prepare('lm_head') returned a layer of (49, 61) features; expected one of (48, 61), in and out",
    ),
    ("linear", f"{PREPARE}replace(layer, scheme=4)", "returned a layer whose scheme is the int 4; expected the name o"),
    ("rms_norm", "after = fail", "rms_norm raised ValueError: spoilt"),
    ("rms_norm", "after = lambda out, x, norm: out", f"rms_norm returned float32 of shape (3, 48); {WRITES}"),
    ("rms_norm", "after = lambda out, x, norm: out.tolist()", f"rms_norm returned a list of 3; {WRITES}"),
    ("rms_norm", "after = lambda out, x, norm: True", f"rms_norm returned True; {WRITES}"),
    ("rms_norm", "def after(out, x, norm): out[:] = x[:, 1:]", "rms_norm raised ValueError: could not broadcast"),
    ("rms_norm", "def after(out, x, norm): norm.weight[:] = 0", "rms_norm raised ValueError: assignment destination i"),
    ("rms_norm", "def after(out, x, norm): norm.eps = 0", "rms_norm raised FrozenInstanceError: cannot assign to fiel"),
    ("embedding", "after = lambda out, ids, table: out.T", f"embedding returned float32 of shape (48, 3); {WRITES}"),
    ("embedding", "def after(out, ids, table): table[0] = 1", "embedding raised ValueError: assignment destination is"),
    ("embedding", "def after(out, ids, table): ids[0] = 1", "embedding raised ValueError: assignment destination is r"),
    ("linear", "def after(out, x, layer): layer.weight[0] = 1", "linear raised ValueError: assignment destination is "),
    ("add", "after = lambda residual, x: residual + x", f"add returned float32 of shape (3, 48); {WRITES}"),
    ("silu_mul", "after = lambda out, gate_up: 0.5", f"silu_mul returned the float 0.5; {WRITES}"),
    ("rope_append", "after = lambda *arguments: arguments", f"rope_append returned a tuple of 5; {WRITES}"),
    (
        "rope_append",
        "def after(query, cache, qkv, projection, batch): batch.positions[0] = 7",
        "rope_append raised ValueError: assignment destination is read-only",
    ),
    (
        "rope_append",
        "def after(query, cache, qkv, projection, batch): projection.rotary.cos[:] = 1",
        "rope_append raised ValueError: assignment destination is read-only",
    ),
    ("rms_norm_qkv_rope_append", "after = fail", "rms_norm_qkv_rope_append raised ValueError: spoilt"),
    ("linear_residual", "after = lambda *_: {}", f"linear_residual returned a dict of 0; {WRITES}"),
    ("rms_norm_gate_up_silu", "after = lambda *_: 0", f"rms_norm_gate_up_silu returned the int 0; {WRITES}"),
    ("rms_norm_lm_head", "after = lambda logits, *_: logits", f"returned float32 of shape (1, 61); {WRITES}"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "change", "message"), WRONG)
def test_a_wrong_answer_names_plugin_method_answer_and_rule(
    op: str, change: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = write_plugin(tmp_path, KERNEL, change, op=op)
    text = complaint(tiny, plugins=[str(plugin)], kernels={op: "mine"})
    assert text.startswith(f"kernel 'mine' of local plugin {plugin}: ")
    assert message in text


@pytest.mark.parametrize("op", ["embedding", "rms_norm", "linear", "rope_append", "linear_residual", "silu_mul"])
def test_a_right_answer_is_used(op: str, tiny: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, KERNEL, "", op=op)
    assert answer(tiny, plugins=[str(plugin)], kernels={op: "mine"}) == answer(tiny)


def test_a_check_says_of_a_plugin_what_an_engine_would(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plugins", "check", "--model", str(tiny), "--device", "cpu", "--kind", "kernel", "--name", "mine"]
    for change, code, verdict in [
        ("Mine.ops = lambda self: ['rmsnorm']", 2, "broken   kernel 'mine' of local plugin"),
        ("Mine.supports = lambda self, op, spec: True", 2, "broken   kernel 'mine' of local plugin"),
        ("Mine.supports = lambda self, op, spec: ['not today']", 0, "cannot serve  not today"),
        ("", 0, "mine  ok"),
    ]:
        plugin = write_plugin(tmp_path, KERNEL, change, op="rms_norm")
        assert main([*arguments, "--plugin", str(plugin)]) == code
        assert verdict in capsys.readouterr().out


CALL = 'kernel.launch("my_rms_norm", x.shape[0], 256, (out, x, norm.weight, x.shape[1], norm.eps))'

ON_A_DEVICE = [
    (CALL, CALL.replace(", norm.eps", ""), "rms_norm raised KernelError: kernel my_rms_norm: 4 arguments, the kernel "),
    (CALL, CALL.replace("256", "2000"), "rms_norm raised KernelError: kernel my_rms_norm: block.x is 2000"),
    (CALL, CALL.replace("my_rms_norm", "other"), "rms_norm raised KernelError: "),
    (CALL, CALL + "; return x", "rms_norm returned an object of type Buffer; expected None: an op writes to its outp"),
    (CALL, "raise ValueError('spoilt')", "rms_norm raised ValueError: spoilt"),
    (CALL, "kernel.launch('my_rms_norm', x.shape[0], 256, (out, x, None, 2**40, 1.0))", "rms_norm raised OverflowErro"),
    ("rms_norm(kernel, out, x, norm)", "rms_norm(kernel, out, x)", "bind('rms_norm') returned a callable that does no"),
]  # fmt: skip


def on_emulator(tiny: Path, plugin: Path) -> LLM:
    return LLM(
        str(tiny), device="emulator", dtype="bfloat16", skip_tokenizer_init=True, max_model_len=64,
        cache={"num_blocks_override": 8}, plugins=[str(plugin)], kernels={"rms_norm": "my_rms_norm"},
    )  # fmt: skip


def run_on_emulator(tiny: Path, plugin: Path) -> str:
    with pytest.raises(PluginError) as caught:
        on_emulator(tiny, plugin).generate(
            [{"prompt_token_ids": [3, 14, 15]}], SamplingParams(temperature=0.0, max_tokens=3), use_tqdm=False
        )
    return str(caught.value)


@pytest.mark.parametrize(("old", "new", "message"), ON_A_DEVICE)
def test_a_launch_that_is_refused_names_the_plugin_and_its_line(
    old: str, new: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = write_own_kernel(tmp_path)
    text = plugin.read_text()
    assert old in text
    plugin.write_text(text.replace(old, new))
    said = run_on_emulator(tiny, plugin)
    assert said.startswith(f"kernel 'my_rms_norm' of local plugin {plugin}: {message}")
    assert f'File "{plugin}", line' in said or "returned" in message


FAILS_LATER = [
    (
        "const size_t row",
        "device_assert(threadIdx.x != 7);\n    const size_t row",
        "thread (7, 0, 0): a device_assert fai",
    ),
    (
        "const size_t row",
        "*(volatile int*)uintptr_t(16) = 1;\n    const size_t row",
        "invalid address, at address 0x10",
    ),
    ("const size_t row", "if (threadIdx.x == 0) while (true) __nanosleep(1);\n    const size_t row", "deadlock"),
]


@pytest.mark.parametrize(("old", "new", "message"), FAILS_LATER)
def test_a_kernel_that_fails_when_it_runs_names_the_plugin_that_launched_it(
    old: str, new: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    """The emulator runs a kernel when the next ones come: the call that raises is another plugin's."""
    plugin = write_own_kernel(tmp_path, (old, new))
    said = run_on_emulator(tiny, plugin)
    assert said.startswith(f"kernel 'my_rms_norm' of local plugin {plugin}: ")
    assert "kernel my_rms_norm" in said
    assert message in said


def test_a_failure_of_another_kernel_is_not_laid_at_the_plugins_door(tiny: Path, tmp_path: Path) -> None:
    """A kernel of the core fails while the plugin's call runs the stream: the plugin is not named."""
    plugin = write_own_kernel(tmp_path)
    plugin.write_text(
        plugin.read_text().replace(
            "    kernel.launch(",
            "    from tinyvllm.errors import KernelError\n"
            "    error = KernelError('kernel linear: trap')\n"
            "    error.is_of_earlier_launch = True\n"
            "    raise error\n"
            "    kernel.launch(",
        )
    )
    with pytest.raises(KernelError, match=r"^kernel linear: trap$"):
        on_emulator(tiny, plugin).generate([{"prompt_token_ids": [3]}], SamplingParams(max_tokens=1), use_tqdm=False)


def test_a_source_that_does_not_compile_stays_a_kernels_error(tiny: Path, tmp_path: Path) -> None:
    plugin = write_own_kernel(tmp_path, ("block_sum(squares", "block_sum(cubes"))
    with pytest.raises(KernelError, match="cubes"):
        on_emulator(tiny, plugin)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"rms_norm", Path',
            '"rmsnorm", Path',
            "there is no such op; did you mean 'rms_norm'? the ops are embedding, ",
        ),
        ('"rms_norm", Path', '"kv_append", Path', "there is no such op; did you mean 'rope_append'? the ops are "),
    ],
)
def test_a_registration_that_can_serve_nothing_is_refused(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_own_kernel(tmp_path)
    plugin.write_text(plugin.read_text().replace(old, new))
    for command in (["kernels", "check", "rms_norm"], ["plugins", "check", "--device", "emulator"]):
        assert main([*command, "--plugin", str(plugin)]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "cuda_kernel('my_rms_norm', " in err
        assert "Traceback" not in err


def test_a_source_that_is_not_there_is_named_by_every_check_and_by_the_engine(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_own_kernel(tmp_path)
    plugin.with_suffix(".cu").unlink()
    problem = f"there is no file {plugin.with_suffix('.cu')}; expected the path of a .cu file"
    for command in (["kernels", "check", "rms_norm"], ["plugins", "check", "--device", "emulator", "--kind", "kernel"]):
        assert main([*command, "--plugin", str(plugin)]) == 2
        assert problem in "".join(capsys.readouterr())
    with pytest.raises(PluginError, match=r"cuda_kernel\('my_rms_norm', 'rms_norm', ...\): there is no file"):
        on_emulator(tiny, plugin)
