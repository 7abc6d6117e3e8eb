"""The elastic network: a sub-network inside gives what it gives alone, and sorting channels changes nothing else."""

import numpy as np
import pytest
import torch

from hwnas.core.errors import InputError
from hwnas.spaces import Primitive, SearchSpace, get_space
from hwnas.train.elastic import ElasticNetwork, _expansions

SPECS = (
    "ofa-mbv3:width=0.25,resolution=32/48,num_classes=10",
    "ofa-mbv2:width=0.25,resolution=32,num_classes=7,last_block=elastic",
    "ofa-mbv2:width=0.2,widths=proxyless,resolution=40,num_classes=3",
)


@pytest.fixture(params=SPECS)
def network(request: pytest.FixtureRequest) -> ElasticNetwork:
    network = ElasticNetwork(get_space(request.param), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if ("transforms" in name or "bn" in name) and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    return network.eval()


def images(space: SearchSpace, row: np.ndarray) -> torch.Tensor:
    side = space.graph(row).inputs[0][-1]
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))


def test_a_network_taken_out_gives_what_it_gave_inside(network: ElasticNetwork) -> None:
    space = network.space
    for row in [*space.sample(5, 0), space.choices - 1, np.zeros_like(space.choices)]:
        x = images(space, row)
        alone = network.extract(row)
        assert isinstance(alone, type(space.build(row)))
        torch.testing.assert_close(alone(x), network(x, row), rtol=0, atol=1e-5)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5, and not because inputs make no difference: in a whole network not trained yet they make none."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std(dim=0).max() > 0.002


def inputs(primitive: Primitive) -> torch.Tensor:
    return torch.randn(4, *primitive.inputs[0], generator=torch.Generator().manual_seed(7))


def test_every_block_taken_out_gives_what_it_gave_inside(network: ElasticNetwork) -> None:
    space = network.space
    for row in [*space.sample(5, 0), space.choices - 1, np.zeros_like(space.choices)]:
        for alone, (block, primitive) in zip(network.extract(row).blocks, network.running(row), strict=True):
            x = inputs(primitive)
            assert_same(alone(x), block.run(primitive, space.bn_eps, x))


@pytest.mark.parametrize("spec", [*SPECS, "mnasnet:resolution=32,num_classes=4"])
def test_sorting_channels_keeps_the_outputs_of_every_block(spec: str) -> None:
    """Of its largest member, and of every member whose width was in use before."""
    space = get_space(spec)
    network = ElasticNetwork(space, seed=1).eval()

    def outputs(*expansions: int) -> list[torch.Tensor]:
        found = []
        for index, block in enumerate(network.blocks):
            widest = max(p.number("mid") for p in block.members) if "depthwise" in block._modules else 0
            for e, member in _expansions(space)[index]:
                if e in expansions or (e is not None and member.number("mid") == widest) or e is None:
                    found.append(block.run(member, space.bn_eps, inputs(member)))
        return found

    kept = [block.depthwise.weight.clone() for block in network.blocks if "depthwise" in block._modules]
    for opened in ((), (4,)):
        before = outputs(*opened)
        network.sort_channels(opened)
        for now, then in zip(outputs(*opened), before, strict=True):
            assert_same(now, then)
    now = [block.depthwise.weight for block in network.blocks if "depthwise" in block._modules]
    moved = sum(not torch.equal(a, b) for a, b in zip(now, kept, strict=True))
    assert moved == sum(
        all(member.number("mid") for member in block.members)
        for block in network.blocks
        if "depthwise" in block._modules
    ), "all but those that may run without an expansion, whose depthwise channels are their inputs"


@pytest.mark.parametrize("spec", ["mnasnet:resolution=32,num_classes=4"])
def test_other_spaces_whose_blocks_nest_are_elastic_too(spec: str) -> None:
    space = get_space(spec)
    network = ElasticNetwork(space).eval()
    for row in [*space.sample(4, 0), space.choices - 1, np.zeros_like(space.choices)]:
        x = images(space, row)
        torch.testing.assert_close(network.extract(row)(x), network(x, row), rtol=0, atol=1e-5)


def test_networks_differ_and_training_reaches_every_part_that_runs(network: ElasticNetwork) -> None:
    space = network.space
    row = np.zeros_like(space.choices)
    network.train()
    network(images(space, row), row).square().sum().backward()
    touched = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("5to3" in name for name in touched) and any("7to5" in name for name in touched)
    slots = {int(name.split(".")[1]) for name in touched}
    learning = {i for i, block in enumerate(network.blocks) if block.primitive.parameters}
    running = learning & set(np.flatnonzero(space.blocks(row)[0] >= 0).tolist())
    assert slots == running


def test_transforms_start_as_the_centre_of_the_larger_kernel() -> None:
    space = get_space("ofa-mbv3:width=0.25,resolution=32,num_classes=10")
    network = ElasticNetwork(space)
    row = np.zeros_like(space.choices)
    block, primitive = network.running(row)[2]
    assert primitive["kernel"] == 3
    small, whole = block.tensors(primitive)["depthwise.weight"], block.depthwise.weight
    torch.testing.assert_close(small, whole[: len(small), :, 2:5, 2:5])


def test_sorting_channels_keeps_the_outputs_of_widths_in_use(network: ElasticNetwork) -> None:
    space = network.space
    n = (len(space.genes) - 6) // 2
    largest, middle = space.choices - 1, space.choices - 1
    middle[n : 2 * n] = 1
    x = images(space, largest)
    before = network(x, largest), network(x, middle)
    network.sort_channels(())
    torch.testing.assert_close(network(x, largest), before[0])
    middle_now = network(x, middle)
    network.sort_channels((4,))
    torch.testing.assert_close(network(x, largest), before[0])
    torch.testing.assert_close(network(x, middle), middle_now)


def test_the_most_important_channels_come_first() -> None:
    space = get_space("ofa-mbv3:width=0.25,resolution=32,num_classes=10")
    network = ElasticNetwork(space)
    network.sort_channels(())
    for block in network.blocks:
        if "project" in block._modules:
            importance = block.project.weight.abs().sum(dim=(0, 2, 3))
            if "expand" in block._modules:
                assert (importance.diff() <= 1e-6).all()


@pytest.mark.parametrize("spec", ["fbnet:num_classes=10", "nasbench201"])
def test_a_space_without_nested_blocks_says_so(spec: str) -> None:
    with pytest.raises(InputError, match="elastic super-network"):
        ElasticNetwork(get_space(spec))


def test_the_seed_decides_the_weights() -> None:
    space = get_space(SPECS[0])
    first, again, other = (ElasticNetwork(space, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
