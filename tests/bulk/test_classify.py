"""``cdzoo.classify``: files of any kind and size to labels, with errors that stay with their file."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.fresh_process import FreshProcesses
from oracles.jpeg_files import encode, picture
from torch import Tensor, nn

import cdzoo
from cdzoo.bulk.classify import Classified, Classify, Networks, classify_bytes, classify_files
from cdzoo.bulk.engine import Item, Task, process, read_paths
from cdzoo.bulk.networks import JPEG_MODEL, STREAM_MODELS
from cdzoo.bulk.plan import File
from cdzoo.codecs import JPEGWarning, read_jpeg
from cdzoo.codecs.hyperprior import RATES
from cdzoo.demo import PHOTO
from cdzoo.errors import JPEGError, PairingError, WeightsError
from cdzoo.models import LatentEfficientNetLite0_Weights, latent_efficientnet_lite0
from cdzoo.transforms import CoefficientTransform


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of several sizes and kinds, and streams of three packaged codecs."""
    root = tmp_path_factory.mktemp("files")
    (root / "sub").mkdir()
    for number, size in enumerate([(64, 48), (100, 80), (64, 48)]):
        (root / f"{number}.jpg").write_bytes(encode(picture(*size, "RGB", seed=number)))
    (root / "sub" / "gray.JPEG").write_bytes(encode(picture(64, 48, "L", seed=5)))
    torch.manual_seed(0)
    for name in ("bmshj2018_hyperprior", "torfason2018", "mbt2018_mean"):
        codec = cdzoo.get_codec(name, weights="DEFAULT")
        for number, size in enumerate([(64, 64), (64, 96)]):
            (root / "sub" / f"{name}{number}.cdz").write_bytes(codec.compress(torch.rand(1, 3, *size))[0])
    return root


def check(result: Classified, logits: Tensor, top: int) -> None:
    assert result.error is None, result.error
    best = logits[0].softmax(0).topk(top)
    assert [label.number for label in result.classes] == best.indices.tolist()
    assert [label.probability for label in result.classes] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_every_file_gets_the_labels_of_its_network(files: Path) -> None:
    (files / "notes.txt").write_text("not an image")
    results = cdzoo.classify([files, files / "0.jpg", files / "notes.txt", files / "gone.jpg"], top=3, batch_size=2)
    by_name = {Path(result.path).name: result for result in results}
    found = sorted(str(p.relative_to(files)) for p in files.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".cdz"))
    assert [result.path for result in results] == [
        *(str(files / name) for name in found), str(files / "0.jpg"), str(files / "notes.txt"), str(files / "gone.jpg")
    ]  # fmt: skip
    network = cdzoo.get_model(JPEG_MODEL, weights="DEFAULT").eval()
    names = cdzoo.get_model_weights(JPEG_MODEL)["DEFAULT"].meta["classes"]
    with torch.no_grad():
        for name in ("0.jpg", "1.jpg", "2.jpg", "sub/gray.JPEG"):
            result = by_name[Path(name).name]
            check(result, network(network.transforms(read_jpeg(files / name))), 3)
            assert all(label.name in names for label in result.classes)
            assert result.num_bytes == (files / name).stat().st_size
        for codec, builder in STREAM_MODELS.items():
            if codec == "choi2019":
                continue
            weights = cdzoo.get_model_weights(builder)["DEFAULT"]
            model = cdzoo.compose(weights.build_codec(), cdzoo.get_model(builder, weights=weights)).eval()
            for number in range(2):
                result = by_name[f"{codec}{number}.cdz"]
                check(result, model.from_streams([(files / "sub" / f"{codec}{number}.cdz").read_bytes()]), 3)
                assert result.image_size == (64, 64 + 32 * number)
    for number in range(2):
        assert "no packaged network reads latents of mbt2018_mean" in str(by_name[f"mbt2018_mean{number}.cdz"].error)
    assert "run 'cdzoo compress'" in str(by_name["notes.txt"].error)
    assert isinstance(by_name["gone.jpg"].error, FileNotFoundError)
    assert by_name["gone.jpg"].classes == ()


def test_packaged_networks_fit_the_packaged_codecs() -> None:
    for codec, builder in STREAM_MODELS.items():
        assert cdzoo.get_model_weights(builder)["DEFAULT"].build_codec().name == codec


def test_networks_that_are_asked_for(files: Path, make_codec: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cdzoo.models.jpeg_resnet_small(num_classes=3)
    (result,) = cdzoo.classify(files / "0.jpg", model=model, top=9)
    assert model.training
    with torch.no_grad():
        check(result, model.eval()(read_jpeg(files / "0.jpg")), 3)
    cdzoo.save_pretrained(model, tmp_path / "weights", meta={"classes": ["a", "b", "c"]})
    (named,) = cdzoo.classify(files / "0.jpg", weights=tmp_path / "weights")
    assert sorted(label.name for label in named.classes) == ["a", "b", "c"]
    assert cdzoo.classify(files / "0.jpg", model="jpeg_resnet_small", weights=tmp_path / "weights") == [named]
    (refused,) = cdzoo.classify(files / "sub" / "torfason20180.cdz", model=model)
    assert isinstance(refused.error, PairingError)
    assert "does not read .cdz files" in str(refused.error)
    codec = make_codec("bmshj2018_hyperprior")
    network = cdzoo.models.cresnet39(in_channels=24, width=0.05, num_classes=3, latent_stride=16)
    with pytest.raises(TypeError, match=r"behind its codec with cdzoo\.compose"):
        cdzoo.classify(files / "0.jpg", model=network)
    foreign = files / "sub" / "torfason20180.cdz"
    (other,) = cdzoo.classify(foreign, model=cdzoo.compose(codec, network))
    assert str(other.error).startswith("written by torfason2018")
    with pytest.raises(ValueError, match="unknown codec or model 'jpeg_resnet81'"):
        cdzoo.classify(files / "0.jpg", model="jpeg_resnet81")
    with pytest.raises(ValueError, match="is a codec"):
        cdzoo.classify(files / "0.jpg", weights="Torfason2018_Weights.DEFAULT")
    with pytest.raises(ValueError, match="weights go with a builder's name"):
        cdzoo.classify(files / "0.jpg", model=model, weights="DEFAULT")
    with pytest.raises(WeightsError):
        cdzoo.classify(files / "0.jpg", weights=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file ends in one of \.jpg"):
        cdzoo.classify(tmp_path)
    for options in ({"top": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            cdzoo.classify(files / "0.jpg", model=model, **options)  # type: ignore[arg-type]


def test_networks_of_timm(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    create, made = timm.create_model, []

    def untrained(name: str, pretrained: bool) -> Any:
        torch.manual_seed(0)
        made.append(create(name))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", untrained)
    (result,) = cdzoo.classify(files / "1.jpg", model="timm/resnet10t")
    assert result.error is None
    assert len(result.classes) == 5
    assert all(label.id is not None and label.id[0] == "n" for label in result.classes)
    assert len(made) == 1


def test_networks_of_timm_that_cannot_be_downloaded(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args: Any, **options: Any) -> Any:
        raise LocalEntryNotFoundError("An error happened. Please check")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"timm/resnet18 could not be downloaded .*'timm/local-dir:FOLDER'"):
        cdzoo.classify(files / "1.jpg", model="timm/resnet18")
    with pytest.raises(PairingError, match=r"reads JPEG files, and there are only .cdz"):
        cdzoo.classify("a.cdz", model="timm/resnet18")


def test_unknown_networks_of_timm_are_value_errors(files: Path) -> None:
    pytest.importorskip("timm")
    for name in ("nothing", "resnet18.nothing"):
        with pytest.raises(ValueError, match=f"model='timm/{name}': .*list_models"):
            cdzoo.classify(files / "1.jpg", model=f"timm/{name}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"top": 0}, ValueError),
        ({"top": 1.5}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"device": "nothing"}, ValueError),
        ({"model": 3}, TypeError),
        ({"model": cdzoo.get_codec("torfason2018")}, TypeError),
        ({"paths": None}, TypeError),
        ({"paths": b"a.jpg"}, TypeError),
        ({"paths": [None]}, TypeError),
        ({"paths": [b"a.jpg"]}, TypeError),
    ],
)
def test_wrong_arguments_are_not_errors_of_a_file(
    files: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    ((name, _),) = arguments.items()
    with pytest.raises(error, match=name if error is ValueError else "takes|gives logits"):
        cdzoo.classify(**{"paths": files / "1.jpg", **arguments})


def test_a_network_over_pixels_is_a_type_error_with_the_way_out(files: Path, tmp_path: Path) -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.shape[0] * self.weight

    pixels = cdzoo.models.resnet50(width=0.0625, num_classes=3)
    expected = r"does not read JPEG coefficients \(.*JPEGCoefficients.*\); cdzoo\.ops\.to_jpeg_domain\(model\)"
    for model in (nn.Sequential(nn.Conv2d(3, 4, 3)), Transformer(), pixels):
        with pytest.raises(TypeError, match=f"^{type(model).__name__} {expected}"):
            cdzoo.classify(files / "1.jpg", model=model)
    folder = cdzoo.save_pretrained(pixels, tmp_path / "pixels")
    with pytest.raises(TypeError, match=expected):
        cdzoo.classify(files / "1.jpg", weights=folder)
    assert callable(cdzoo.ops.to_jpeg_domain)


def test_another_error_of_a_network_stays_what_it_is(files: Path) -> None:
    class Broken(cdzoo.models.jpeg_resnet.JPEGResNetSmall):
        def forward(self, coefficients: Any) -> Any:
            raise TypeError("a mistake in the network")

    with pytest.raises(TypeError, match=r"^a mistake in the network$"):
        cdzoo.classify(files / "1.jpg", model=Broken())


def test_photographs_of_all_sizes_share_a_batch(files: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = cdzoo.models.jpeg_resnet_small(num_classes=7).eval()
    model.transforms = CoefficientTransform(resize=40, crop=32)
    exif = picture(8, 8).getexif()
    exif[0x0112] = 6
    for number, (size, mode) in enumerate([((64, 48), "RGB"), ((90, 70), "L"), ((64, 48), "RGB"), ((70, 50), "CMYK")]):
        data = encode(picture(*size, mode, seed=number), **({"exif": exif} if number == 2 else {}))
        (tmp_path / f"{number}.jpg").write_bytes(data)
    (tmp_path / "4.jpg").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "5.jpg").write_bytes(data[:30])
    batches = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0].qtables)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JPEGWarning)
        *good, cut, bad = cdzoo.classify(tmp_path, model=model, top=7)
        for number, result in enumerate([*good, cut]):
            found = read_jpeg(tmp_path / f"{number}.jpg", transform=model.transforms, strict=False)
            with torch.no_grad():
                check(result, model(found), 7)
    assert good[2].image_size == (64, 48)
    assert [result.damage == "" for result in (*good, cut)] == [True, True, True, True, False]
    assert str(bad.error).startswith("byte ")
    assert batches[0] == 5
    strict = Classify(model, strict=True)
    results = {file.number: result for file, result in process(read_paths(sorted(tmp_path.iterdir())), strict)}
    assert isinstance(results[4], JPEGError)
    assert results[4].name is None
    assert [label.number for label in results[0].classes] == [label.number for label in good[0].classes[:5]]


def test_damaged_files_are_read_as_far_as_possible_with_one_warning(files: Path, tmp_path: Path) -> None:
    whole = (files / "1.jpg").read_bytes()
    for number in range(2):
        (tmp_path / f"cut{number}.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "text.jpg").write_text("no photograph")
    with pytest.warns(JPEGWarning, match=r"2 of 4 files are damaged .*cut0\.jpg: ") as caught:
        cut, _, text, good = cdzoo.classify(tmp_path)
    assert len(caught) == 1
    assert cut.missing_blocks > 0
    assert cut.classes
    assert good.damage == ""
    assert not text.classes
    assert str(text.error).startswith("byte 0")


def test_a_file_that_a_network_refuses_does_not_affect_its_batch(files: Path, tmp_path: Path) -> None:
    class Picky(torch.nn.Module):
        """Refuses batches that hold a file with a certain table."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, coefficients: Any) -> Tensor:
            if (coefficients.qtables[:, 0, 0, 0] == 1).any():
                raise ValueError("refused")
            return torch.ones(len(coefficients.qtables), 4)

    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encode(picture(64, 48, "RGB"), quality=100 if number == 2 else 50))
    results = cdzoo.classify(tmp_path, model=Picky())
    assert [str(result.error) for result in results] == ["None", "None", "refused", "None"]


class Sum(Task):
    """Sums the bytes of files; hungry for memory in batches of more than ``most``."""

    def __init__(self, most: int = 9, message: str = "DefaultCPUAllocator: can't allocate memory") -> None:
        super().__init__(batch_size=4)
        self.most, self.message, self.sizes = most, message, []  # type: ignore[var-annotated]

    def prepare(self, file: File) -> Item:
        if not file.content:
            raise ValueError("empty")
        return Item(file, len(file.content), sum(file.content), None, len(file.content))

    def run(self, items: Any) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.most:
            raise RuntimeError(self.message)
        return [item.value for item in items]


def test_the_engine_keeps_errors_with_their_files() -> None:
    data: list[Any] = [b"a", b"bb", b"", b"c", OSError(5, "gone"), b"d", b"e", b"ff", b"g"]
    files = [File(number, str(number), one) for number, one in enumerate(data)]
    task = Sum()
    results = {file.number: result for file, result in process(files, task)}
    assert sorted(task.sizes) == [1, 2, 4]
    for number, one in enumerate(data):
        if isinstance(one, bytes) and one:
            assert results[number] == sum(one)
    assert (str(results[2]), results[4].errno) == ("empty", 5)
    assert len(results) == len(data)
    starved = {file.number: result for file, result in process(files, Sum(most=0))}
    assert isinstance(starved[0], MemoryError)
    assert "not enough memory" in str(starved[0])
    with pytest.raises(RuntimeError, match="a bug"):
        list(process(files, Sum(most=0, message="a bug")))


def test_files_in_memory_have_the_labels_of_the_files_on_disk(files: Path) -> None:
    paths = sorted(path for path in files.rglob("*") if path.suffix in (".jpg", ".JPEG", ".cdz"))
    expected = cdzoo.classify(paths)
    found = classify_bytes([path.read_bytes() for path in paths], Networks())
    assert [one.path for one in found] == [str(number) for number in range(len(paths))]
    assert {bool(one.error) for one in found} == {True, False}
    for one, other in zip(found, expected, strict=True):
        assert type(one.error) is type(other.error)
        assert [label.name for label in one.classes] == [label.name for label in other.classes]


def test_bytes_of_another_format_are_named_so() -> None:
    other, empty = classify_bytes([b"\x89PNG....", b""], Networks())
    assert str(other.error).startswith("neither a JPEG file nor a .cdz stream: it begins with b'\\x89PNG'")
    assert "empty stream" in str(empty.error)


def test_a_small_stream_is_classified_without_numba(files: Path, fresh: FreshProcesses) -> None:
    code = f"""
        import sys, cdzoo
        [result] = cdzoo.classify({str(files / "sub" / "bmshj2018_hyperprior0.cdz")!r})
        print("numba" in sys.modules, *[label.number for label in result.classes])
    """
    result = fresh(textwrap.dedent(code))
    [here] = cdzoo.classify(files / "sub" / "bmshj2018_hyperprior0.cdz")
    assert result.stdout.split() == ["False", *[str(label.number) for label in here.classes]]


def test_a_network_that_is_given_stays_as_it_is(files: Path) -> None:
    network = cdzoo.get_model(JPEG_MODEL, weights="DEFAULT").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    [named], [given] = cdzoo.classify(files / "0.jpg"), cdzoo.classify(files / "0.jpg", model=network)
    assert given.classes == named.classes
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_packaged_network_is_loaded_once_for_its_kind(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    networks = Networks(on_load=lambda network: told.append(str(network)), top=1)
    first, second = (File(i, f"{i}.jpg", b"") for i in range(2))
    assert networks(first) is networks(second)
    weights = cdzoo.get_model_weights(JPEG_MODEL)["DEFAULT"]
    assert told == [f"{JPEG_MODEL}, weights {weights}, {len(weights.meta['classes'])} classes"]

    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("not installed")

    monkeypatch.setattr("cdzoo.bulk.classify.find_network", missing)
    with warnings.catch_warnings():
        (result, other) = cdzoo.classify([files / "0.jpg", files / "1.jpg"])
    assert "not installed" in str(result.error)
    assert "not installed" in str(other.error)


def test_streams_of_each_rate_are_read_by_the_network_of_their_rate(tmp_path: Path) -> None:
    image, told = cdzoo.load_images(PHOTO, size=224), []
    for member in RATES:
        (tmp_path / f"{member.name}.cdz").write_bytes(member.build_codec().compress(image)[0])
    networks = Networks(on_load=lambda network: told.append(network.facts), top=3)
    results = {Path(r.path).stem: r for r in classify_files(read_paths(sorted(tmp_path.iterdir())), networks)}
    readers = [LatentEfficientNetLite0_Weights["IMAGENET1K" + m.name[m.name.index("_") :]] for m in RATES]
    assert sorted(facts["weights"] for facts in told) == sorted(map(str, readers))
    for member, weights in zip(RATES, readers, strict=True):
        model = cdzoo.compose(member.build_codec(), latent_efficientnet_lite0(weights=weights).eval())
        with torch.no_grad():
            check(results[member.name], model.from_streams([(tmp_path / f"{member.name}.cdz").read_bytes()]), 3)


def test_files_of_other_formats_are_decoded_on_request(tmp_path: Path) -> None:
    image = picture(80, 60, "RGB", seed=3)
    (tmp_path / "a.jpg").write_bytes(encode(image))
    image.save(tmp_path / "b.jpg", "PNG")
    (tmp_path / "c.jpg").write_bytes(b"neither")
    good, refused, _ = cdzoo.classify(tmp_path)
    assert good.error is None
    assert isinstance(refused.error, JPEGError)
    reason = 'no JPEG file: it does not begin with FF D8; fallback="decode" lets Pillow decode other formats'
    assert str(refused.error) == f"byte 0: {reason}"
    network = cdzoo.get_model(JPEG_MODEL, weights="DEFAULT").eval()
    for transforms in (network.transforms, CoefficientTransform()):  # with and without one size for all files
        task = Classify(network, transforms=transforms, fallback="decode")
        found = [result for _, result in process(read_paths(sorted(tmp_path.iterdir())), task)]
        png = next(result for result in found if getattr(result, "path", "").endswith("b.jpg"))
        assert png.num_bytes == (tmp_path / "b.jpg").stat().st_size
        assert png.image_size == (image.height, image.width)
        with torch.no_grad():
            check(png, network(transforms(read_jpeg(tmp_path / "b.jpg", fallback="decode"))), 5)
        assert sum(isinstance(result, JPEGError) and "Pillow cannot decode" in str(result) for result in found) == 1
    assert cdzoo.classify(tmp_path, fallback="decode")[1].classes[0].name
    with pytest.raises(ValueError, match="fallback='pillow'"):
        cdzoo.classify(tmp_path, fallback="pillow")  # type: ignore[arg-type]
