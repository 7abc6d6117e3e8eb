"""Forms of the spaces for small images and narrow networks."""

import numpy as np
import pytest

from hwnas.core.errors import InputError
from hwnas.spaces import get_space


@pytest.mark.parametrize("name", ["ofa-mbv3", "ofa-mbv2"])
def test_the_cifar_form_of_once_for_all_keeps_small_images_large(name: str) -> None:
    space = get_space(f"{name}:variant=cifar,num_classes=10")
    graph = space.graph(space.choices - 1)
    assert graph.inputs == ((3, 32, 32),)
    sides = [node.primitive.output[-1] for node in graph.nodes if len(node.primitive.output) == 3]
    assert sides[:2] == [32, 32] and sides[-3] == 4
    published = get_space(f"{name}:num_classes=10,resolution=128")
    np.testing.assert_array_equal(space.parameters(space.choices - 1), published.parameters(published.choices - 1))


def test_the_cifar_form_takes_other_resolutions() -> None:
    space = get_space("ofa-mbv3:width=0.25,resolution=16/24/32,num_classes=10,variant=cifar")
    assert space.spec == "ofa-mbv3:width=0.25,resolution=16/24/32,num_classes=10,variant=cifar"
    assert space.genes[-1].choices == (16, 24, 32)


@pytest.mark.parametrize("name", ["ofa-mbv2", "ofa-mbv3"])
def test_resolutions_rise_in_whatever_order_they_are_written(name: str) -> None:
    space = get_space(f"{name}:resolution=224/128/160")
    assert space.genes[-1].choices == (128, 160, 224)
    assert space.spec == f"{name}:resolution=128/160/224"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ofa-mbv3:variant=tiny", "variant is 'tiny'"),
        ("ofa-mbv3:resolution=16", "from 32 to 4096"),
        ("ofa-mbv3:variant=cifar,resolution=4", "from 8 to 4096"),
        ("fbnet:width=0", "above 0"),
        ("nasbench201:resolution=30", "multiple of 4"),
    ],
)
def test_options_that_make_no_network(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_space(spec)


def test_fbnet_width_scales_the_channels_and_one_is_as_published() -> None:
    narrow, published = get_space("fbnet:variant=cifar,width=0.25,num_classes=10"), get_space("fbnet:variant=cifar")
    row = narrow.sample(1, 0)[0]
    outputs = [node.primitive.output[0] for node in narrow.graph(row).nodes]
    assert outputs[0] == 8 and outputs[-4] == 88 and outputs[-3] == 1504
    assert narrow.macs(row)[0] < published.macs(row)[0] / 4
    assert get_space("fbnet:variant=cifar,width=1.0").primitives() == published.primitives()
