"""The native CPU kernel against its twin, and its standing as a PyTorch operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from grounding_dino.ops import loader, ms_deform_attn, ms_deform_attn_torch

import pytest
import torch
from torch import Tensor


class Case(NamedTuple):
    """Sizes of a problem; `shapes` are (height, width) of the levels."""

    batch: int = 2
    queries: int = 7
    heads: int = 2
    channels: int = 32
    points: int = 4
    shapes: tuple[tuple[int, int], ...] = ((6, 9), (3, 5), (2, 1), (1, 1))


CASES = [
    Case(),
    Case(channels=16),
    Case(channels=64, heads=1),
    Case(channels=8),
    Case(channels=5, heads=3),
    Case(channels=48),
    Case(channels=70, heads=1),
    Case(channels=128, heads=1, queries=2),
    Case(channels=1),
    Case(points=1, shapes=((1, 1),)),
    Case(points=3, shapes=((4, 4), (2, 2), (2, 2), (1, 7), (1, 1))),  # 15 samples
    Case(points=5, shapes=((4, 4), (2, 2), (1, 7), (1, 1))),  # 20 samples
    Case(points=4, shapes=((9, 6), (5, 3), (3, 2), (2, 1), (1, 1)), queries=100),  # 5 scales
    Case(batch=0),
    Case(queries=0),
    Case(batch=5, queries=1, heads=1),
    Case(batch=3, queries=301, heads=8),  # several blocks of queries, several threads
]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a kernel these tests would compare the twin with itself; they fail then."""
    monkeypatch.setenv("GROUNDING_DINO_KERNELS", "native")
    assert loader.cpu_kernel().library is not None


def _arguments(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.tensor(case.shapes)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    value = torch.randn(case.batch, int(shapes.prod(1).sum()), case.heads, case.channels, generator=generator).to(dtype)
    shape = (case.batch, case.queries, case.heads, len(shapes), case.points)
    locations = torch.rand(*shape, 2, generator=generator) * 1.6 - 0.3
    weights = torch.randn(shape, generator=generator)
    return [value, shapes, starts, locations, weights]


def _with_gradients(function: Callable[..., Tensor], arguments: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """The output, and the gradients of value, locations and weights."""
    leaves = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in arguments]
    output = function(*leaves)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [leaf for leaf in leaves if leaf.requires_grad], gradient)]


def _assert_agree(arguments: Sequence[Tensor], rtol: float = 1e-4, atol: float = 1e-4) -> None:
    results = _with_gradients(ms_deform_attn, arguments)
    expected = _with_gradients(ms_deform_attn_torch, arguments)
    for name, ours, theirs in zip(("output", "value", "locations", "weights"), results, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp32_equals_the_twin(case: Case) -> None:
    _assert_agree(_arguments(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bf16_equals_the_twin_on_the_same_values(case: Case) -> None:
    # Both hold sums in fp32 and round at the end: at most the last bit of bf16 (2^-8) differs.
    _assert_agree(_arguments(case, torch.bfloat16), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_random_sizes_equal_the_twin(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    shapes = tuple((pick(1, 12), pick(1, 12)) for _ in range(pick(1, 5)))
    case = Case(pick(1, 3), pick(1, 60), pick(1, 8), pick(1, 70), pick(1, 6), shapes)
    _assert_agree(_arguments(case, seed=seed), rtol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_points_that_are_nowhere_count_as_outside(bad: float) -> None:
    arguments = _arguments(Case())
    arguments[3][0, 1, 0, 1, 0, 0] = bad
    arguments[3][1, 2, 1, 0, 1, 1] = bad
    _assert_agree(arguments)
    assert all(result.isfinite().all() for result in _with_gradients(ms_deform_attn, arguments))


def test_borders_are_read_as_by_the_twin() -> None:
    """Points exactly on cells, on borders and one cell beyond, where a wrong comparison would show."""
    arguments = _arguments(Case(queries=9, points=1, shapes=((4, 8),)))
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 3.5, 4.0, 7.5, 8.0, 8.5]) / 8
    arguments[3] = torch.stack([x, torch.full_like(x, 0.375)], -1).view(1, 9, 1, 1, 1, 2).expand(2, 9, 2, 1, 1, 2)
    torch.testing.assert_close(ms_deform_attn(*arguments), ms_deform_attn_torch(*arguments))


def test_values_beyond_the_levels_and_bad_numbers_outside_are_not_read() -> None:
    """NaN in rows of `value` that no level covers, or that no point touches, stays out of the result."""
    arguments = _arguments(Case(points=1, shapes=((3, 3),)))
    arguments[0] = torch.cat([arguments[0], torch.full((2, 4, 2, 32), math.nan)], 1)
    arguments[0][:, 8] = math.nan  # the last cell
    arguments[3] = arguments[3] * 0 + 0.25
    assert ms_deform_attn(*arguments).isfinite().all()


def test_any_strides_are_taken() -> None:
    value, shapes, starts, locations, weights = _arguments(Case())
    expected = _with_gradients(ms_deform_attn, [value, shapes, starts, locations, weights])
    head_major = value.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.cat([value, value], -1)[..., :32]
    strange = value.movedim(-1, 0).contiguous().movedim(0, -1)
    for other in (head_major, wide, strange):
        moved = [
            other,
            shapes.t().contiguous().t(),
            torch.stack([starts, starts], 1)[:, 0],
            locations.movedim(-1, 0).contiguous().movedim(0, -1),
            weights.transpose(1, 2).contiguous().transpose(1, 2),
        ]
        assert not moved[0].is_contiguous()
        output = ms_deform_attn(*moved)
        torch.testing.assert_close(output, expected[0], rtol=0, atol=0)
        for ours, theirs in zip(_with_gradients(ms_deform_attn, moved), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_gradient_that_is_expanded() -> None:
    arguments = _arguments(Case())
    leaves = [a.clone().requires_grad_(a.is_floating_point()) for a in arguments]
    twins = [a.clone().requires_grad_(a.is_floating_point()) for a in arguments]
    ms_deform_attn(*leaves).sum().backward()
    ms_deform_attn_torch(*twins).sum().backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    arguments = _arguments(Case(batch=2, queries=600, heads=8), dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 16, 2):
            torch.set_num_threads(threads)
            results.append(_with_gradients(ms_deform_attn, arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_several_python_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    problems = [_arguments(Case(queries=300, heads=8), seed=seed) for seed in range(4)]
    expected = [ms_deform_attn(*arguments) for arguments in problems]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda arguments: ms_deform_attn(*arguments), problems * 5))
    assert all(torch.equal(result, expected[i % 4]) for i, result in enumerate(results))


def test_mixed_precision_as_under_autocast() -> None:
    value, shapes, starts, locations, weights = _arguments(Case(), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = ms_deform_attn(value, shapes, starts, locations, weights.bfloat16())
    assert output.dtype == torch.bfloat16
    exact = ms_deform_attn(value.float(), shapes, starts, locations, weights.bfloat16().float())
    torch.testing.assert_close(output, exact.bfloat16(), rtol=2**-7, atol=1e-3)
    results = _with_gradients(ms_deform_attn, [value, shapes, starts, locations, weights.bfloat16()])
    assert [r.dtype for r in results] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_go_to_the_twin(dtype: torch.dtype) -> None:
    value, shapes, starts, locations, weights = _arguments(Case())
    arguments = (value.to(dtype), shapes, starts, locations.to(dtype), weights.to(dtype))
    assert torch.equal(ms_deform_attn(*arguments), ms_deform_attn_torch(*arguments))
    assert torch.equal(torch.ops.grounding_dino.ms_deform_attn(*arguments), ms_deform_attn_torch(*arguments))


def test_switched_off_goes_to_the_twin(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("GROUNDING_DINO_KERNELS", "off")
    arguments = _arguments(Case())
    assert torch.equal(ms_deform_attn(*arguments), ms_deform_attn_torch(*arguments))
    exact = _with_gradients(ms_deform_attn_torch, arguments)
    for ours, theirs in zip(_with_gradients(torch.ops.grounding_dino.ms_deform_attn, arguments), exact, strict=True):
        assert torch.equal(ours, theirs)
    assert not caplog.records


def test_levels_that_leave_the_value_are_refused() -> None:
    value, shapes, starts, locations, weights = _arguments(Case())
    with pytest.raises(ValueError, match="does not fit in 71 tokens"):
        ms_deform_attn(value[:, :-1], shapes, starts, locations, weights)
    with pytest.raises(ValueError, match="does not fit"):
        ms_deform_attn(value, shapes, starts - 1, locations, weights)


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4])
def test_shapes_that_do_not_fit_are_refused(position: int) -> None:
    arguments = _arguments(Case())
    arguments[position] = arguments[position][:1] if position else arguments[position][0]
    with pytest.raises(ValueError, match="ms_deform_attn"):
        ms_deform_attn(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_pytorchs_checks_of_operators(dtype: torch.dtype) -> None:
    arguments = _arguments(Case(queries=3), dtype)
    arguments = [a.requires_grad_(a.is_floating_point()) for a in arguments]
    torch.library.opcheck(torch.ops.grounding_dino.ms_deform_attn.default, tuple(arguments))
    gradient = torch.randn(2, 3, 64).to(dtype)
    detached = tuple(a.detach() for a in arguments)
    torch.library.opcheck(torch.ops.grounding_dino.ms_deform_attn_backward.default, (*detached, gradient))


def test_shapes_are_inferred_without_data() -> None:
    arguments = [a.to("meta") for a in _arguments(Case())]
    assert torch.ops.grounding_dino.ms_deform_attn(*arguments).shape == (2, 7, 64)


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    arguments = _arguments(Case())

    def function(*arguments: Tensor) -> Tensor:
        return ms_deform_attn(*arguments).relu() * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(_with_gradients(compiled, arguments), _with_gradients(function, arguments), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_exports_as_one_operator() -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return ms_deform_attn(*arguments) + 1

    arguments = tuple(_arguments(Case()))
    program = torch.export.export(Module(), arguments)
    assert any("ms_deform_attn" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*arguments), Module()(*arguments))
