"""What every registered space must hold; a new space is tested by being registered."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import DomainError, InputError
from hwnas.spaces import Primitive, SearchSpace, get_space, spaces

SPECS = [
    *spaces,
    "ofa-mbv3:width=0.5,resolution=64",
    "ofa-mbv2:widths=proxyless,width=1.3,last_block=elastic",
    "fbnet:variant=cifar",
    "mnasnet:act=swish,resolution=64",
]
SMALL = {
    "ofa-mbv3": "ofa-mbv3:width=0.5,resolution=64/96,num_classes=10",
    "ofa-mbv2": "ofa-mbv2:width=0.5,resolution=64/96,num_classes=10,last_block=elastic",
    "fbnet": "fbnet:variant=cifar",
    "mnasnet": "mnasnet:resolution=64,num_classes=10",
}


@pytest.fixture(params=SPECS)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return get_space(request.param)


@pytest.fixture(params=list(spaces))
def small_space(request: pytest.FixtureRequest) -> SearchSpace:
    return get_space(SMALL.get(request.param, request.param))


def test_spec_names_an_equal_space(space: SearchSpace) -> None:
    again = get_space(space.spec)
    assert again == space
    assert again.primitives() == space.primitives()


@given(seed=st.integers(0, 2**32 - 1), spec=st.sampled_from(SPECS))
@settings(max_examples=60, deadline=None)
def test_format_and_parse_are_inverse(seed: int, spec: str) -> None:
    space = get_space(spec)
    population = space.sample(5, seed)
    np.testing.assert_array_equal(space.parse_many([space.format(row) for row in population]), population)


@given(seed=st.integers(0, 2**32 - 1), spec=st.sampled_from(SPECS))
@settings(max_examples=60, deadline=None)
def test_canonical_is_idempotent_and_keeps_what_runs(seed: int, spec: str) -> None:
    space = get_space(spec)
    raw = np.random.default_rng(seed).integers(0, space.choices, (20, len(space.genes)))
    canonical = space.canonical(raw)
    np.testing.assert_array_equal(space.canonical(canonical), canonical)
    np.testing.assert_array_equal(space.blocks(canonical), space.blocks(raw))


def test_blocks_are_the_primitives_of_the_graph(space: SearchSpace) -> None:
    for row in space.sample(5, 1):
        indices = space.blocks(row)[0]
        running = [space.primitives()[i] for i in indices if i >= 0]
        assert [node.primitive for node in space.graph(row).nodes] == running


def test_every_primitive_is_reached_and_survives_its_key(space: SearchSpace) -> None:
    primitives = space.primitives()
    assert len(set(primitives)) == len(primitives)
    for primitive in primitives:
        assert Primitive.from_key(primitive.key) == primitive
    seen = np.unique(space.blocks(space.sample(200_000, 0)))
    assert len(seen[seen >= 0]) == len(primitives)


def test_counts_equal_those_of_the_pytorch_network(small_space: SearchSpace) -> None:
    population = small_space.sample(2, 3)
    for row, params, macs in zip(
        population, small_space.parameters(population), small_space.macs(population), strict=True
    ):
        network = small_space.build(row).eval()
        assert sum(p.numel() for p in network.parameters()) == params
        assert _counted_macs(network, small_space.graph(row).inputs[0]) == macs


def _counted_macs(network: torch.nn.Module, shape: tuple[int, ...]) -> int:
    total = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            total += output.numel() * module.weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def test_onnx_equals_pytorch_whole_and_primitive_by_primitive(small_space: SearchSpace) -> None:
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    row = small_space.sample(1, 5)[0]
    network = randomised(small_space.build(row))
    graph = small_space.graph(row)
    images = torch.randn(2, *graph.inputs[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images).numpy()
    session = ort.InferenceSession(network.to_onnx(batch=None), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"input": images.numpy()})
    scale = np.abs(expected).max()
    np.testing.assert_allclose(whole, expected, atol=1e-4 * scale)

    values: list[np.ndarray] = []
    for node, block in zip(graph.nodes, network.blocks, strict=True):
        inputs = [images.numpy() if i < 0 else values[i] for i in node.inputs]
        alone = type(graph)(
            node.primitive.inputs,
            (type(node)(node.primitive, tuple(-1 - i for i in range(len(inputs)))),),
            graph.bn_eps,
        )
        part = ort.InferenceSession(alone.to_onnx(2, [block.arrays()]), providers=["CPUExecutionProvider"])
        (value,) = part.run(None, {f"input{i or ''}": array for i, array in enumerate(inputs)})
        with torch.no_grad():
            reference = block(*map(torch.from_numpy, inputs)).numpy()
        np.testing.assert_allclose(value, reference, atol=1e-4 * max(1e-3, np.abs(reference).max()))
        values.append(value)
    np.testing.assert_allclose(values[-1], expected, atol=1e-4 * scale)


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Non-trivial BatchNorm statistics, so that a mistake in folding shows."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data = torch.rand(tensor.shape, generator=generator) * (high - low) + low
    return network.eval()


def test_size_counts_canonical_genotypes(space: SearchSpace) -> None:
    if space.size > 20_000:
        assert space.size <= np.prod(space.choices.astype(object))
        return
    everything = np.stack(np.meshgrid(*map(np.arange, space.choices), indexing="ij"), -1).reshape(
        -1, len(space.choices)
    )
    assert len(space.distinct(everything)) == space.size


def test_bad_populations_and_texts_are_refused(space: SearchSpace) -> None:
    good = space.sample(3, 0)
    for bad in (good[:, :-1], good.astype(float), good - 100, good + space.choices):
        with pytest.raises(DomainError):
            space.blocks(bad)
    text = space.format(good[0])
    for bad_text in ("", "{}", "[]", "null", text[:-2], text + "x", "[" * 100_000, '{"ks":3}', "|nor_conv_9x9~0|"):
        with pytest.raises(InputError, match="not an architecture"):
            space.parse(bad_text)
