"""Data sets: every format gives the images it holds, and bad files are named."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hwnas.core.errors import InputError, UnknownNameError
from hwnas.train import DataConfig, datasets
from hwnas.train.batches import Batches, augment, resize, to_device
from hwnas.train.data import Augmentation, DataSet, Images, Splits, assemble, load_data
from hwnas.train.decode import decode

Image = pytest.importorskip("PIL.Image")
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(label: int, side: int = 12) -> bytes:
    """A PNG whose colour tells its label."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side + 4, 3), 40 * label + 20, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(root: Path, classes: int = 3, each: int = 8) -> Path:
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(each):
                (folder / f"{index}.png").write_bytes(encoded(label))
    return root


def colours_tell_labels(images: Images) -> bool:
    return bool((images.read() == (40 * images.labels + 20)[:, None, None, None]).all())


def parquet_file(path: Path, labels: list[int], struct: bool = False) -> Path:
    images = [encoded(label) for label in labels]
    values = [{"bytes": image, "path": None} for image in images] if struct else images
    pq.write_table(pa.table({"image": values, "label": labels}), path)
    return path


def cifar_files(folder: Path, records: int = 20) -> Path:
    folder.mkdir()
    for name in [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]:
        labels = np.arange(records, dtype=np.uint8) % 10
        pixels = np.zeros((records, 3, 32, 32), np.uint8)
        pixels[:, 1] = labels[:, None, None] * 20
        rows = np.concatenate([labels[:, None], pixels.reshape(records, -1)], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"name{i}" for i in range(10)) + "\n\n")
    return folder


def load(name: str, classes: int, side: int = 64, **options: object) -> DataSet:
    return load_data(DataConfig.model_validate({"name": name, **options}), side, classes)


def test_digits_are_split_the_same_way_every_time() -> None:
    first, again = load("digits", 10), load("digits", 10)
    assert len(first.train) + len(first.val) + len(first.test) == 1797
    np.testing.assert_array_equal(first.train.read(), again.train.read())
    rows = {part.tobytes() for part in first.train.read()}
    assert sum(part.tobytes() in rows for part in first.test.read()) < 5
    assert set(first.val.labels) == set(range(10))


def test_image_folders(tmp_path: Path) -> None:
    data = load("folder", 3, path=image_folder(tmp_path / "data"))
    assert data.classes == ("class0", "class1", "class2")
    assert data.train.read().shape[1:] == (12, 12, 3)
    assert len(data.train) + len(data.val) == 24 and len(data.test) == 24
    assert all(map(colours_tell_labels, (data.train, data.val, data.test)))


def test_a_folder_of_classes_alone_is_split_in_three(tmp_path: Path) -> None:
    data = load("folder", 3, path=image_folder(tmp_path / "data") / "train", val_fraction=0.25, size=8)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 6)
    assert data.train.read().shape[1:] == (8, 8, 3)


def test_validation_and_test_folders_are_used_as_they_are(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data")
    (root / "val").rename(root / "validation")
    shutil.copytree(root / "train", root / "test")
    data = load("folder", 3, path=root)
    assert [len(images) for images in (data.train, data.val, data.test)] == [24, 24, 24]
    with pytest.raises(InputError, match="leave val_fraction out"):
        load("folder", 3, path=root, val_fraction=0.1)


def test_labels_are_those_of_the_folder_asked_for(tmp_path: Path) -> None:
    """Two trees of links over the same files share decoded pixels, not labels."""
    for index in range(12):
        (tmp_path / "pool").mkdir(exist_ok=True)
        (tmp_path / "pool" / f"{index:02}.png").write_bytes(encoded(index % 3))
    for tree, classes in (("two", (6, 6)), ("three", (4, 4, 4))):
        for label, count in enumerate(classes):
            (tmp_path / tree / f"c{label}").mkdir(parents=True)
            for index in range(count):
                number = sum(classes[:label]) + index
                (tmp_path / tree / f"c{label}" / f"{index}.png").symlink_to(tmp_path / "pool" / f"{number:02}.png")
    labels = [
        sorted(np.concatenate([part.labels for part in (data.train, data.val, data.test)]).tolist())
        for data in (load("folder", 2, path=tmp_path / "two"), load("folder", 3, path=tmp_path / "three"))
    ]
    assert labels == [[0] * 6 + [1] * 6, [0] * 4 + [1] * 4 + [2] * 4]


def test_links_are_followed_and_hidden_files_left_out(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data") / "train"
    (root / "class0" / ".ipynb_checkpoints").mkdir()
    (root / "class0" / ".ipynb_checkpoints" / "x.png").write_bytes(encoded(2))
    (root / "class0" / "x.png").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "y.PNG").write_bytes(encoded(0))
    (root / "class0" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "loop").symlink_to(root / "class0")
    data = load("folder", 3, path=root)
    assert len(data.train) + len(data.val) + len(data.test) == 25
    assert all(map(colours_tell_labels, (data.train, data.val, data.test)))


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    path = image_folder(tmp_path / "data")
    first = load("folder", 3, path=path).train.read()
    for length in (0, 100):
        for file in cache.rglob("*-pixels.npy"):
            os.truncate(file, length)
        np.testing.assert_array_equal(load("folder", 3, path=path).train.read(), first)


def png(image: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})  # type: ignore[attr-defined]
    return buffer.getvalue()


def test_images_are_decoded_as_a_viewer_shows_them() -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16))
    np.testing.assert_allclose(decode(png(deep), 16)[..., 0].ravel(), np.linspace(0, 255, 256), atol=1)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (decode(png(clear), 16) == 255).all()
    half = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 16, 0), 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is on the left comes to the top
    turned = decode(png(half, format="JPEG", exif=exif), 16)
    assert turned[:7].max() < 40 and turned[9:].min() > 215
    from PIL import ImageOps

    corner = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        data = png(corner, exif=exif)
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(decode(data, 16)[..., 0], wanted)


@pytest.mark.parametrize("struct", [False, True])
def test_parquet(tmp_path: Path, struct: bool) -> None:
    train = parquet_file(tmp_path / "train.parquet", [0, 1, 2] * 10, struct)
    test = parquet_file(tmp_path / "test.parquet", [2, 1, 0], struct)
    data = load("parquet", 3, path=train, test_path=test)
    assert colours_tell_labels(data.train) and list(data.test.labels) == [2, 1, 0]
    assert len(data.train) == 27


def test_a_folder_of_parquet_shards(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for index in range(2):
        parquet_file(tmp_path / "shards" / f"part-{index}.parquet", [0, 1] * 5)
    full = pq.read_table(tmp_path / "shards" / "part-0.parquet")
    pq.write_table(full.slice(0, 0), tmp_path / "shards" / "an-empty-one.parquet")
    assert len(load("parquet", 2, path=tmp_path / "shards").train) == 16
    damaged = bytearray((tmp_path / "shards" / "part-0.parquet").read_bytes())
    damaged[4:100] = b"\xff" * 96  # the images, whose column is the first
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load("parquet", 2, path=tmp_path / "damaged.parquet")


def test_shards_that_say_their_split(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    parquet_file(folder / "train-00000-of-00002.parquet", [0, 1] * 5)
    struct = parquet_file(folder / "train-00001-of-00002.parquet", [0, 1] * 5, struct=True)
    table = pq.read_table(struct)
    pq.write_table(table.set_column(1, "label", table["label"].cast(pa.int8())), struct)
    parquet_file(folder / "validation-0.parquet", [1, 0, 1])
    parquet_file(folder / "test-0.parquet", [0, 0])
    data = load("parquet", 2, path=tmp_path / "set")
    assert [len(images) for images in (data.train, data.val, data.test)] == [20, 3, 2]
    assert all(map(colours_tell_labels, (data.train, data.val, data.test)))
    alone = parquet_file(tmp_path / "alone.parquet", [0, 1] * 10)
    assert len(load("parquet", 2, path=alone, test_path=tmp_path / "set").test) == 2
    parquet_file(folder / "more.parquet", [0, 1])
    with pytest.raises(InputError, match="shards of several splits"):
        load("parquet", 2, path=tmp_path / "set")


def test_classes_are_called_as_the_file_says(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "a.parquet", [0, 1] * 6)
    features = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    assert load("parquet", 3, path=path).classes == ("cat", "dog", "owl")


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image_folder(tmp_path / "data")
    first = load("folder", 3, path=path)
    monkeypatch.setattr("hwnas.train.decode.decode", None)
    np.testing.assert_array_equal(load("folder", 3, path=path).train.read(), first.train.read())


@pytest.mark.parametrize("archived", [False, True])
def test_cifar_binary_files(tmp_path: Path, archived: bool) -> None:
    path = cifar_files(tmp_path / "cifar-10-batches-bin")
    if archived:
        with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
            archive.add(path, "cifar-10-batches-bin")
        path = tmp_path / "cifar.tar.gz"
    data = load("cifar10", 10, path=path)
    assert data.classes[3] == "name3" and len(data.train) == 90 and len(data.test) == 20
    assert (data.train.read()[..., 1] == 20 * data.train.labels[:, None, None]).all()
    assert not data.train.read()[..., (0, 2)].any()


def corrupt_image(root: Path) -> dict[str, object]:
    bad = image_folder(root) / "train" / "class1" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    return {"name": "folder", "path": root}


def empty_class(root: Path) -> dict[str, object]:
    (image_folder(root) / "train" / "class9").mkdir()
    return {"name": "folder", "path": root}


def unknown_class(root: Path) -> dict[str, object]:
    (image_folder(root) / "val" / "other").mkdir()
    return {"name": "folder", "path": root}


def one_class(root: Path) -> dict[str, object]:
    root.mkdir()
    return {"name": "parquet", "path": parquet_file(root / "one.parquet", [1] * 10)}


def negative_label(root: Path) -> dict[str, object]:
    root.mkdir()
    return {"name": "parquet", "path": _labels(root)}


def _labels(root: Path) -> Path:
    images = [encoded(0)] * 6
    pq.write_table(pa.table({"image": images, "label": [0, 1, -7, 1, 0, 1]}), root / "bad.parquet")
    return root / "bad.parquet"


def test_labels_beyond_those_of_training(tmp_path: Path) -> None:
    train, test = (
        parquet_file(tmp_path / "a.parquet", [0, 1] * 5),
        parquet_file(tmp_path / "b.parquet", [0, 5]),
    )
    with pytest.raises(InputError, match=r"label 5 of test image 1 is out of range"):
        load("parquet", 2, path=train, test_path=test)


def no_column(root: Path) -> dict[str, object]:
    root.mkdir()
    pq.write_table(pa.table({"picture": [b"x"], "label": [0]}), root / "odd.parquet")
    return {"name": "parquet", "path": root / "odd.parquet"}


def not_parquet(root: Path) -> dict[str, object]:
    root.mkdir()
    (root / "no.parquet").write_bytes(b"nothing of the kind")
    return {"name": "parquet", "path": root / "no.parquet"}


def null_label(root: Path) -> dict[str, object]:
    root.mkdir()
    pq.write_table(pa.table({"image": [encoded(0)] * 2, "label": [0, None]}), root / "null.parquet")
    return {"name": "parquet", "path": root / "null.parquet"}


def cut_cifar(root: Path) -> dict[str, object]:
    path = cifar_files(root) / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-7])
    return {"name": "cifar10", "path": root}


def pickled_cifar(root: Path) -> dict[str, object]:
    root.mkdir()
    (root / "data_batch_1").write_bytes(b"pickle")
    return {"name": "cifar10", "path": root}


def nothing(root: Path) -> dict[str, object]:
    return {"name": "folder", "path": root}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (corrupt_image, r"class1/3\.png: not a readable image"),
        (empty_class, r"train/class9: no image of class 'class9'"),
        (unknown_class, r"val/other: a class that the training images do not have"),
        (one_class, r"one\.parquet: all 10 images have label 1"),
        (negative_label, r"bad\.parquet: label -7 of training image 2 is out of range"),
        (no_column, r"odd\.parquet: no column 'image' \(it has picture, label\)"),
        (not_parquet, r"no\.parquet: not a readable Parquet file"),
        (null_label, r"null\.parquet: column label does not hold an integer for every image"),
        (cut_cifar, r"data_batch_2\.bin: 61453 bytes are no whole number of records"),
        (pickled_cifar, r"the binary version is needed"),
        (nothing, r"nothing at"),
    ],
)
def test_bad_data_is_named_in_one_line(
    tmp_path: Path, make: Callable[[Path], dict[str, object]], message: str, cache: Path
) -> None:
    options = make(tmp_path / "data")
    with pytest.raises(InputError, match=message) as caught:
        load_data(DataConfig.model_validate(options), 32, 3)
    assert "\n" not in str(caught.value)
    assert not any("pixels" in path.name and path.name.startswith(".") for path in cache.rglob("*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digits", "path": "x"}, "digits' does not read path"),
        ({"name": "digits", "size": 32}, "digits' does not read size"),
        ({"name": "cifar10", "path": ".", "size": 32}, "cifar10' does not read size"),
        ({"name": "folder", "path": ".", "test_path": "x"}, "folder' does not read test_path"),
        ({"name": "folder", "path": __file__}, "is a file: data set 'folder' reads a folder"),
    ],
)
def test_what_a_data_set_does_not_read_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(DataConfig.model_validate(options), 32, 10)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data")
    (root / "train" / "class1" / "gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"gone\.png: a link that leads nowhere"):
        load("folder", 3, path=root)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        archive.add(cifar_files(tmp_path / "cifar-10-batches-bin"), "cifar-10-batches-bin")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a readable folder or archive"):
        load("cifar10", 10, path=path)


def test_an_unknown_data_set() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load("digit", 10)
    assert {"cifar10", "cifar100", "digits", "folder", "parquet"} <= set(datasets)


def whole() -> torch.Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_augmentation_without_variation_is_the_identity() -> None:
    out = augment(whole(), 32, Augmentation(flip=False), torch.Generator())
    torch.testing.assert_close(out, whole(), rtol=0, atol=1e-4)


def test_shifts_are_by_whole_pixels_and_mirrors_are_exact() -> None:
    x = whole() + 1
    out = augment(x, 32, Augmentation(flip=True, shift=0.125), torch.Generator().manual_seed(1))
    for image, moved in zip(x, out, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        views = [padded[:, v : v + 32, u : u + 32] for v in range(9) for u in range(9)]
        assert any((view - moved).abs().max() < 1e-3 for both in views for view in (both, both.flip(2)))
    assert len({round(float(moved[0, 16, 16]), 4) for moved in out}) > 8


def test_resizing_gives_the_resolution() -> None:
    assert resize(whole(), 20).shape == (16, 3, 20, 20)
    assert augment(whole(), 48, Augmentation(scale=0.3), torch.Generator()).shape == (16, 3, 48, 48)
    torch.testing.assert_close(resize(whole(), 32), whole())


def test_batches_depend_on_seed_and_step_alone() -> None:
    data, cpu = load("digits", 10), torch.device("cpu")
    first, second = Batches(data, 32, 0, cpu), Batches(data, 32, 0, cpu)
    for _ in range(3):
        second.at(0, 16)
    for step in (40, 3):
        for a, b in zip(first.at(step, 16), second.at(step, 16), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(first.at(0, 16)[0], Batches(data, 32, 1, cpu).at(0, 16)[0])


def test_an_epoch_shows_every_image_once_to_one_process() -> None:
    data, cpu = load("digits", 10), torch.device("cpu")
    parts = [Batches(data, 16, 0, cpu, rank, 2) for rank in range(2)]
    seen = np.concatenate([part.rows(step) for step in range(parts[0].steps_per_epoch) for part in parts])
    assert len(np.unique(seen)) == len(seen) and len(seen) > len(data.train) - 32


def test_a_batch_of_more_images_than_there_are_is_refused() -> None:
    data = load("digits", 10)
    with pytest.raises(InputError, match=f"leaves {len(data.train)} images to train on: set batch to"):
        Batches(data, len(data.train) + 1, 0, torch.device("cpu"))
    with pytest.raises(InputError, match="in each of 2 processes"):
        Batches(data, len(data.train), 0, torch.device("cpu"), 1, 2)


def test_pixels_reach_the_device_unchanged() -> None:
    pixels = rng.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
    moved = to_device(torch.from_numpy(pixels), torch.device("cpu"))
    np.testing.assert_array_equal(moved.numpy()[0, 2], pixels[0, ..., 2])


def test_images_are_stored_at_their_usual_size(tmp_path: Path) -> None:
    """Whatever the first of them is."""
    root = image_folder(tmp_path / "set", each=20)
    first = min((root / "train").glob("*/*") if (root / "train").is_dir() else root.glob("*/*"))
    first.write_bytes(encoded(0, 4))
    assert load("folder", 3, path=root).train.read(slice(None)).shape[1:] == (12, 12, 3)
    rows = {"image": [encoded(n % 3, 4 if n == 0 else 12) for n in range(60)], "label": [n % 3 for n in range(60)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=10)
    assert load("parquet", 3, path=tmp_path / "a.parquet").train.read(slice(None)).shape[1:] == (12, 12, 3)


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path: Path) -> None:
    data = load("folder", 3, path=image_folder(tmp_path / "set", each=70))
    pixels = data.train.read(slice(None)).reshape(-1, 3) / 255
    assert data.mean == pytest.approx(pixels.mean(0)) and data.std == pytest.approx(pixels.std(0))


def test_a_share_that_is_asked_for_is_kept() -> None:
    images = Images(np.zeros((40_000, 1, 1, 3), np.uint8), np.arange(40_000) % 2)
    for asked, held in ((0.4, 16_000), (None, 4_000)):
        config = DataConfig(name="folder", val_fraction=asked)
        data = assemble("made up", ("a", "b"), Splits(images, test=images), config, Augmentation())
        assert len(data.val) == held
