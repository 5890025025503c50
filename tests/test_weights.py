"""Weights on disk: what is saved comes back bit for bit, and what is damaged does not come back at all."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save
from torch import nn

import cdzoo
from cdzoo import _registry, _saving, _weights
from cdzoo._weights import Weights, WeightsEnum, WeightsFolder
from cdzoo.codecs import Codec
from cdzoo.errors import PairingError, WeightsError
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent

SMALL = {"N": 8, "M": 12, "latent_channels": 8, "width": 0.0625, "num_classes": 3, "in_channels": 12}
"""Sizes for tests; each builder takes those that it knows."""
EXACTLY: dict[str, dict[str, object]] = {
    # the pixels' three channels are not a size
    "resnet50": {"width": 0.0625, "num_classes": 3},
    "resnet71": {"width": 0.0625, "num_classes": 3},
}
"""Builders whose small arguments are not the plain ones, and why."""


def small(name: str, *, seed: int = 0) -> nn.Module:
    """A small module with values that no initialisation gives, buffers included."""
    builder = _registry.get_builder(name)
    known = inspect.signature(builder).parameters
    torch.manual_seed(seed)
    module = builder(**EXACTLY.get(name, {k: v for k, v in SMALL.items() if k in known}))
    with torch.no_grad():
        for tensor_name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not tensor_name.startswith("entropy_bottleneck."):
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
    return module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert list(state) == list(one.state_dict())
    for name, tensor in one.state_dict().items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def replace_tensors(folder: Path, data: bytes) -> None:
    """Another file, with its hash recorded: what remains to be found is what is in it."""
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="module")
def codec():
    return small("bmshj2018_hyperprior")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return cdzoo.get_model("cresnet39", width=0.0625, num_classes=3, in_channels=12, latent_stride=16).eval()


@pytest.fixture(scope="module")
def saved(codec, model, tmp_path_factory):
    """Folders of a codec and of a model over its latents, to be copied before they are damaged."""
    root = tmp_path_factory.mktemp("saved")
    cdzoo.save_pretrained(codec, root / "codec")
    cdzoo.save_pretrained(model, root / "model", codec=codec, transforms=LatentTransform(mean=(0.5,) * 12))
    return root


@pytest.fixture
def folders(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "folders"))


@pytest.fixture
def packaged(codec, model, tmp_path, monkeypatch):
    """Enums of weights that ship with the package, as if these small ones did."""
    cdzoo.save_pretrained(codec, tmp_path / "small-codec", repo_id="cdzoo/small-codec", revision="v1")

    class Small_Codec_Weights(WeightsEnum):
        PHOTOS = Weights("small-codec")
        DEFAULT = PHOTOS

    class Small_Model_Weights(WeightsEnum):
        PHOTOS = Weights("small-model")
        DEFAULT = PHOTOS

    monkeypatch.setattr(_weights, "PACKAGED", tmp_path)
    monkeypatch.setattr(
        _registry,
        "_WEIGHTS",
        {**_registry._WEIGHTS, "bmshj2018_hyperprior": Small_Codec_Weights, "cresnet39": Small_Model_Weights},
    )
    meta = {"license": "apache-2.0", "classes": ["a", "b", "c"], "metrics": {"acc@1": 33.3}}
    transforms = LatentTransform(mean=(0.5,) * 12)
    folder = tmp_path / "small-model"
    cdzoo.save_pretrained(model, folder, codec=codec, repo_id="cdzoo/small-model", meta=meta, transforms=transforms)
    return Small_Codec_Weights, Small_Model_Weights


# -- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cdzoo.list_models())
def test_models_round_trip(name, tmp_path):
    module = small(name)
    cdzoo.save_pretrained(module, tmp_path / "new" / "folder")
    loaded = cdzoo.from_pretrained(tmp_path / "new" / "folder")
    assert type(loaded) is type(module)
    assert not loaded.training
    assert (loaded.builder, loaded.arguments) == (name, module.arguments)
    assert_same(module, loaded)
    assert_same(module, _registry.get_builder(name)(weights=str(tmp_path / "new" / "folder")))


@pytest.mark.parametrize("name", cdzoo.list_codecs())
def test_codecs_round_trip_with_their_streams(name, tmp_path):
    module = small(name)
    assert isinstance(module, Codec)
    cdzoo.save_pretrained(module, tmp_path)
    loaded = cdzoo.from_pretrained(tmp_path)
    assert isinstance(loaded, Codec)
    assert_same(module, loaded)
    assert loaded.fingerprint == module.fingerprint
    assert json.loads((tmp_path / "config.json").read_text())["fingerprint"] == module.fingerprint
    integers = loaded.integer_state()
    assert integers.keys() == module.integer_state().keys()
    assert all(torch.equal(integers[k], v) for k, v in module.integer_state().items())
    images = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decompress(module.compress(images)).y_hat, module.encode(images).y_hat)


def test_a_codec_loads_its_integers_and_derives_none(codec, folders, monkeypatch):
    derive = type(codec)._derive

    def from_saved_integers_only(self, state):
        assert state is not None, "derived on this machine, where another one may have rounded differently"
        return derive(self, state)

    monkeypatch.setattr(type(codec), "_derive", from_saved_integers_only)
    assert cdzoo.from_pretrained(folders / "codec").fingerprint == codec.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cresnet39", "fa_cresnet39"])
def test_narrow_models_round_parameters_and_nothing_else(name, dtype, tmp_path):
    module = small(name)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    cdzoo.save_pretrained(module, tmp_path / "wide")
    cdzoo.save_pretrained(module, tmp_path / "narrow", dtype=dtype)
    loaded = cdzoo.from_pretrained(tmp_path / "narrow").state_dict()
    parameters = dict(module.named_parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items()), "saving changed the module"
    assert any("running_var" in k for k in loaded)
    for key, tensor in before.items():
        expected = tensor.to(dtype).float() if key in parameters else tensor
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], expected), key
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("narrow", "wide")]
    assert sizes[0] < 0.65 * sizes[1]


@pytest.mark.parametrize("name", ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"])
def test_narrow_codecs_are_codecs_of_their_own(name, tmp_path):
    module = small(name)
    fingerprint = module.fingerprint
    cdzoo.save_pretrained(module, tmp_path, dtype=torch.float16)
    assert module.fingerprint == fingerprint
    loaded = cdzoo.from_pretrained(tmp_path)
    assert loaded.fingerprint not in (fingerprint, None)
    assert torch.equal(loaded.g_a[0].weight, module.g_a[0].weight.half().float())
    for key, tensor in module.state_dict().items():
        if key.startswith("entropy_bottleneck."):
            assert torch.equal(loaded.state_dict()[key], tensor), key
    # what was written belongs to the rounded parameters: deriving everything from these alone agrees
    fresh = _registry.get_builder(name)(N=8, M=12)
    fresh.load_state_dict(loaded.state_dict())
    assert fresh.fingerprint == loaded.fingerprint
    # rounding what is round already changes nothing
    cdzoo.save_pretrained(loaded, tmp_path / "again", dtype=torch.float16)
    assert cdzoo.from_pretrained(tmp_path / "again").fingerprint == loaded.fingerprint


def test_values_beyond_a_type_are_refused(tmp_path):
    module = small("cresnet39")
    with torch.no_grad():
        module.fc.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"fc\.weight has values up to 1e\+06.*bfloat16"):
        cdzoo.save_pretrained(module, tmp_path, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.double, lambda codec: codec.half().float()])
def test_a_cast_codec_is_not_saved_under_a_fingerprint_of_other_values(cast, tmp_path):
    codec = small("bmshj2018_factorized")
    fingerprint = codec.fingerprint
    with pytest.raises(ValueError, match=f"cast to .*{fingerprint}.*before the cast"):
        cdzoo.save_pretrained(cast(codec), tmp_path)


def test_memory_layout_and_sharing_do_not_matter(model, tmp_path):
    module = small("cresnet39").to(memory_format=torch.channels_last)
    module.layer3[2].conv1.weight = module.layer3[1].conv1.weight
    assert not module.layer3[1].conv2.weight.is_contiguous()
    cdzoo.save_pretrained(module, tmp_path)
    assert_same(module, cdzoo.from_pretrained(tmp_path))


def test_a_compiled_module_is_saved_as_what_it_wraps(model, tmp_path):
    cdzoo.save_pretrained(torch.compile(model), tmp_path)
    assert_same(model, cdzoo.from_pretrained(tmp_path))


def test_saving_draws_no_random_numbers(model, tmp_path):
    before = torch.get_rng_state()
    cdzoo.save_pretrained(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_twice_writes_the_same_bytes(model, tmp_path):
    for folder in ("one", "two"):
        cdzoo.save_pretrained(model, tmp_path / folder)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_new_classifier_is_remembered(tmp_path):
    module = small("cresnet39")
    module.reset_classifier(7)
    cdzoo.save_pretrained(module, tmp_path)
    loaded = cdzoo.from_pretrained(tmp_path)
    assert loaded.num_classes == 7
    assert_same(module, loaded)


def test_what_could_not_be_loaded_is_not_saved(model, tmp_path):
    module = small("cresnet39")
    module.fc = nn.Linear(module.num_features, 8)
    with pytest.raises(ValueError, match=r"2 tensors \(fc.bias, fc.weight.*replaced by hand.*reset_classifier"):
        cdzoo.save_pretrained(module, tmp_path)
    module = small("cresnet39")
    module.arguments["width"] = -1.0
    with pytest.raises(ValueError, match="cannot be built again"):
        cdzoo.save_pretrained(module, tmp_path)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        cdzoo.save_pretrained(model, tmp_path, meta={"accuracy": float("nan")})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        cdzoo.save_pretrained(model, tmp_path, meta={"confusion": torch.zeros(2, 2)})
    assert list(tmp_path.iterdir()) == []


def test_what_no_builder_made_is_not_saved(codec, model, tmp_path):
    for module in (nn.Linear(2, 2), cdzoo.compose(codec, model), cdzoo.models.cresnet.CResNet(width=0.0625)):
        with pytest.raises(TypeError, match=f"{type(module).__name__} was not made by a builder of cdzoo"):
            cdzoo.save_pretrained(module, tmp_path)
    with pytest.raises(TypeError, match="codec must be a codec of cdzoo, not CResNet"):
        cdzoo.save_pretrained(model, tmp_path, codec=model)


def test_an_interrupted_save_leaves_nothing_that_loads_as_something_else(codec, folders, monkeypatch):
    write = _saving.write_atomically

    def full_disk(path, data):
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    other = small("bmshj2018_hyperprior", seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(_saving, "write_atomically", full_disk)
        with pytest.raises(OSError, match="No space left"):
            cdzoo.save_pretrained(other, folders / "codec")
    with pytest.raises(WeightsError, match="SHA-256"):
        cdzoo.from_pretrained(folders / "codec")
    cdzoo.save_pretrained(other, folders / "codec")
    assert_same(other, cdzoo.from_pretrained(folders / "codec"))


# -- damage ------------------------------------------------------------------------------------------------------


def flip_a_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def truncate_and_hash(folder):
    replace_tensors(folder, (folder / "model.safetensors").read_bytes()[:-100])


def pickle_under_a_false_name(folder):
    replace_tensors(folder, pickle.dumps({"fc.weight": 1}))


def pickle_alone(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(n for n in tensors if n.endswith("weight"))]
    replace_tensors(folder, save(tensors))


def with_one_too_many(folder):
    replace_tensors(folder, save({**load_file(folder / "model.safetensors"), "surplus": torch.zeros(2)}))


def another_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("weight"))
    replace_tensors(folder, save({**tensors, name: tensors[name][:1].clone()}))


def another_kind(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("weight"))
    replace_tensors(folder, save({**tensors, name: tensors[name].long()}))


def without_a_key(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))


DAMAGE = [
    (flip_a_bit, "SHA-256 [0-9a-f]{64}, but config.json says [0-9a-f]{64}.*fetch it again"),
    (truncate, "SHA-256 [0-9a-f]{64}, but config.json says"),
    (truncate_and_hash, "not a safetensors file"),
    (pickle_under_a_false_name, "not a safetensors file.*pickled checkpoints are never read"),
    (pickle_alone, r"No such file.*pytorch_model\.bin is a pickle"),
    (lambda folder: (folder / "model.safetensors").unlink(), "No such file"),
    (without_a_tensor, r"1 missing \(.*weight.*Nothing was loaded"),
    (with_one_too_many, r"1 unexpected \(surplus"),
    (another_shape, r"1 of the wrong shape or kind \(.*weight"),
    (another_kind, r"1 of the wrong shape or kind \(.*int64.*float32"),
    (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "no 'kind'"),
    (without_a_key, "no 'sha256' of type str"),
    (lambda folder: edit(folder, kind="dataset"), "'dataset', neither 'codec' nor 'model'"),
    (lambda folder: edit(folder, builder="cresnet93"), "unknown (codec|model) 'cresnet93'; .*Upgrade cdzoo"),
    (lambda folder: edit(folder, arguments={"depth": 3}), "arguments in config.json do not fit.*depth"),
    (lambda folder: edit(folder, transforms={"sise": 28}), "unusable transforms"),
    (lambda folder: edit(folder, transforms=[28]), "transforms in config.json must be an object or null"),
    (lambda folder: edit(folder, meta="good"), "meta in config.json must be an object or null"),
]


@pytest.mark.parametrize("kind", ["codec", "model"])
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_refused(kind, damage, message, folders):
    damage(folders / kind)
    with pytest.raises(WeightsError, match=f"(?s)folder .*{message}"):
        cdzoo.from_pretrained(folders / kind)


@pytest.mark.parametrize("kind", ["codec", "model"])
@pytest.mark.parametrize("damage", [flip_a_bit, without_a_tensor, with_one_too_many, another_shape])
def test_a_refused_folder_leaves_a_module_as_it_was(kind, damage, folders):
    name = {"codec": "bmshj2018_hyperprior", "model": "cresnet39"}[kind]
    module, untouched = small(name, seed=3), small(name, seed=3)
    damage(folders / kind)
    with pytest.raises(WeightsError):
        WeightsFolder.from_path(folders / kind).load_into(module)
    assert_same(untouched, module)


@pytest.mark.parametrize("damage", ["fingerprint", "tables", "no tables"])
def test_integers_that_are_not_the_recorded_ones_are_refused(damage, codec, folders):
    tensors = load_file(folders / "codec" / "model.safetensors")
    if damage == "fingerprint":
        edit(folders / "codec", fingerprint="0123456789abcdef")
    elif damage == "tables":
        tensors["integer.bottleneck.medians"] = tensors["integer.bottleneck.medians"] + 1
        replace_tensors(folders / "codec", save(tensors))
    else:
        own = {k: v for k, v in tensors.items() if not k.startswith("integer.")}
        replace_tensors(folders / "codec", save(own))
    module, untouched = small("bmshj2018_hyperprior", seed=3), small("bmshj2018_hyperprior", seed=3)
    fingerprint = module.fingerprint
    with pytest.raises(WeightsError, match="coding tables do not fit" if damage == "no tables" else codec.fingerprint):
        WeightsFolder.from_path(folders / "codec").load_into(module)
    assert_same(untouched, module)
    assert module.fingerprint == fingerprint


def test_tables_in_a_models_folder_are_refused(folders):
    tensors = load_file(folders / "model" / "model.safetensors")
    replace_tensors(folders / "model", save({**tensors, "integer.medians": torch.zeros(2)}))
    with pytest.raises(WeightsError, match="cresnet39 is not a codec"):
        cdzoo.from_pretrained(folders / "model")


# -- what weights= takes -----------------------------------------------------------------------------------------


def test_members_and_their_names(codec, model, packaged):
    codecs, models = packaged
    for weights in (models.PHOTOS, models.DEFAULT, "PHOTOS", "DEFAULT", "Small_Model_Weights.DEFAULT"):
        assert_same(model, cdzoo.models.cresnet39(weights=weights))
    loaded = cdzoo.get_codec("bmshj2018_hyperprior", weights="DEFAULT")
    assert loaded.fingerprint == codec.fingerprint
    assert models.DEFAULT.repo_id == "cdzoo/small-model"
    assert (codecs.DEFAULT.repo_id, codecs.DEFAULT.revision) == ("cdzoo/small-codec", "v1")
    data = (_weights.PACKAGED / "small-model" / "model.safetensors").read_bytes()
    assert models.DEFAULT.sha256 == hashlib.sha256(data).hexdigest()
    assert models.DEFAULT.meta["classes"] == ["a", "b", "c"]
    assert models.DEFAULT.meta["codec"]["fingerprint"] == codec.fingerprint
    assert models.DEFAULT.transforms() == LatentTransform(mean=(0.5,) * 12)
    assert codecs.DEFAULT.transforms() == LatentTransform()
    assert repr(models.DEFAULT) == str(models.DEFAULT) == "Small_Model_Weights.PHOTOS"


def test_a_folder_does_not_hide_a_member(model, packaged, folders, monkeypatch):
    monkeypatch.chdir(folders)
    (folders / "codec").rename(folders / "DEFAULT")
    assert_same(model, cdzoo.models.cresnet39(weights="DEFAULT"))
    with pytest.raises(ValueError, match="are for bmshj2018_hyperprior, not for cresnet39"):
        cdzoo.models.cresnet39(weights="./DEFAULT")
    with pytest.raises(ValueError, match="are for bmshj2018_hyperprior, not for cresnet39"):
        cdzoo.models.cresnet39(weights=Path("DEFAULT"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("PHOTO", "unknown weights of cresnet39 .*'PHOTO'; did you mean 'PHOTOS'"),
        ("default", "did you mean 'DEFAULT'"),
        ("Small_Model_Weight.PHOTOS", "unknown weights enum .*did you mean 'Small_Model_Weights'"),
        ("Small_Model_Weights.PHOTO", "unknown member of Small_Model_Weights 'PHOTO'; did you mean 'PHOTOS'"),
        ("owner/repo", "no folder either; a Hub repository is written 'hf://owner/repo'"),
        ("./elsewhere", "no folder either"),
        ("Small_Codec_Weights.DEFAULT", r"are for bmshj2018_hyperprior, not for cresnet39; use bmshj2018_hyperprior\("),
    ],
)
def test_unknown_names_are_refused_with_suggestions(weights, message, packaged):
    with pytest.raises(ValueError, match=message):
        cdzoo.models.cresnet39(weights=weights)


def test_things_that_are_no_weights(packaged, tmp_path):
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(pickle.dumps({}))
    for weights in (file, str(file)):
        with pytest.raises(WeightsError, match=r"is a file; weights are a folder.*never read"):
            cdzoo.models.cresnet39(weights=weights)
    with pytest.raises(WeightsError, match="does not exist; weights are a folder"):
        cdzoo.models.cresnet39(weights=tmp_path / "missing")
    with pytest.raises(TypeError, match="weights must be an enum member"):
        cdzoo.models.cresnet39(weights=True)


def test_a_package_without_its_files_says_so(packaged):
    shutil.rmtree(_weights.PACKAGED / "small-model")
    with pytest.raises(WeightsError, match=r"Small_Model_Weights\.PHOTOS: .*config\.json does not exist"):
        cdzoo.models.cresnet39(weights="DEFAULT")


# -- the codec that weights belong to ----------------------------------------------------------------------------


def test_weights_build_the_codec_that_they_belong_to(codec, packaged):
    codecs, models = packaged
    config = models.DEFAULT.value.source.config
    assert config["codec"] == {
        "fingerprint": codec.fingerprint,
        "weights": "Small_Codec_Weights.PHOTOS",
        "repo_id": "cdzoo/small-codec",
        "revision": "v1",
    }
    built = models.DEFAULT.build_codec()
    assert isinstance(built, Codec)
    assert not built.training
    assert built.fingerprint == codec.fingerprint == codecs.DEFAULT.build_codec().fingerprint

    composed = cdzoo.compose(built, cdzoo.models.cresnet39(weights="DEFAULT").eval())
    images = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = codec.encode(images)
        expected = composed.model(Latent(latent.y_hat - 0.5, None, latent.image_size))
        assert torch.equal(composed.from_streams(codec.compress(images)), expected)


def test_another_codec_is_refused_with_both_fingerprints(codec, packaged):
    _, models = packaged
    model, other = cdzoo.models.cresnet39(weights=models.DEFAULT), small("bmshj2018_hyperprior", seed=9)
    with pytest.raises(PairingError, match=f"{codec.fingerprint}.*{other.fingerprint}"):
        cdzoo.compose(other, model)


def test_codecs_that_cannot_be_had(codec, model, packaged):
    _, models = packaged
    folder = _weights.PACKAGED / "small-model"
    entry = models.DEFAULT.value.source.config["codec"]

    def build(changes):
        edit(folder, codec=None if changes is None else {**entry, **changes})
        return WeightsFolder.from_path(folder).build_codec()

    with pytest.raises(WeightsError, match="no learned codec's latents"):
        build(None)
    with pytest.raises(WeightsError, match="this version of cdzoo has not got the codec's weights: unknown member"):
        build({"weights": "Small_Codec_Weights.MAPS"})
    with pytest.raises(WeightsError, match=f"{codec.fingerprint} was not published"):
        build({"weights": None, "repo_id": None})
    with pytest.raises(
        WeightsError, match=f"feedfeedfeedfeed, but what is published in its place has {codec.fingerprint}"
    ):
        build({"fingerprint": "feedfeedfeedfeed"})


def test_saving_again_keeps_what_the_weights_said(packaged, tmp_path):
    _, models = packaged
    cdzoo.save_pretrained(cdzoo.models.cresnet39(weights="DEFAULT"), tmp_path / "again")
    first, again = models.DEFAULT.value.source.config, WeightsFolder.from_path(tmp_path / "again").config
    for key in ("codec", "meta", "transforms", "arguments", "sha256"):
        assert again[key] == first[key], key


# -- the model card ----------------------------------------------------------------------------------------------

META = {
    "title": "cResNet for tests",
    "description": "Reads latents.",
    "license": "apache-2.0",
    "datasets": ["photos: the 'best' #1"],
    "tags": ["test"],
    "data": "Random numbers, on no terms.",
    "recipe": {"epochs": 3, "optimiser": "SGD"},
    "time": "one second on one core",
    "metrics": {"photos": {"acc@1": 33.3, "mIoU": 12.5}},
    "limits": ["Nothing was learned.", "Nothing will be."],
    "classes": ["cat", "dog", "bird"],
    "seed": 1,
}


def header(folder: Path) -> dict[str, object]:
    match = re.match(r"---\n(.*?)\n---\n", (folder / "README.md").read_text(), re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1])


def test_the_card_states_every_fact(codec, model, tmp_path):
    cdzoo.save_pretrained(model, tmp_path, codec=codec, meta=META)
    assert header(tmp_path) == {
        "license": "apache-2.0",
        "library_name": "cdzoo",
        "tags": ["compressed-domain", "compressed-domain-vision", "cresnet39", "test"],
        "datasets": ["photos: the 'best' #1"],
        "metrics": ["acc@1", "mIoU"],
    }
    card = (tmp_path / "README.md").read_text()
    for expected in (
        "# cResNet for tests\n\nReads latents.",
        "## Data and terms\n\nRandom numbers, on no terms.",
        "## Recipe\n\n- epochs: 3\n- optimiser: SGD",
        "## Time spent\n\none second on one core",
        "| acc@1 | photos | 33.3 |",
        "## Limits\n\n- Nothing was learned.\n- Nothing will be.",
        "3 classes: cat, dog, bird",
        f"fingerprint `{codec.fingerprint}`",
        "## Further facts\n\n- seed: 1\n",
    ):
        assert expected in card, expected
    assert cdzoo.from_pretrained(tmp_path).meta == META


def test_a_card_of_ones_own(model, tmp_path):
    cdzoo.save_pretrained(model, tmp_path, card="Ünique\n")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "Ünique\n"


def test_the_cards_program_runs(codec, packaged, tmp_path, monkeypatch):
    def run(folder, **names):
        (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        exec(program, names)
        return names

    cdzoo.save_pretrained(codec, tmp_path / "path" / "to" / "this" / "folder")
    monkeypatch.chdir(tmp_path)
    names = run(tmp_path / "path" / "to" / "this" / "folder", images=torch.rand(2, 3, 32, 32))
    assert names["latent"].y_hat.shape == (2, 12, 2, 2)

    model = cdzoo.models.cresnet39(weights="DEFAULT")
    cdzoo.save_pretrained(model, tmp_path / "path" / "to" / "this" / "folder")
    names = run(tmp_path / "path" / "to" / "this" / "folder", streams=names["streams"])
    assert names["logits"].shape == (2, 3)
