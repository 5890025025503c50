"""Weights: what is damaged is not loaded, what ``weights=`` takes, and which codec they belong to."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.small_modules import assert_same, small
from safetensors.torch import load_file, save

import cdzoo
from cdzoo import _registry
from cdzoo.codecs import Codec
from cdzoo.errors import PairingError, WeightsError
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent
from cdzoo.weights import enums as _weights
from cdzoo.weights.building import build_codec
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.weights.folder import WeightsFolder


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def replace_tensors(folder: Path, data: bytes) -> None:
    """Another file, with its hash recorded: what remains to be found is what is in it."""
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())


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
    for kind, name, enum in (
        ("codec", "bmshj2018_hyperprior", Small_Codec_Weights),
        ("model", "cresnet39", Small_Model_Weights),
    ):
        entry = replace(_registry.find_entry(name), weights=enum)
        monkeypatch.setitem(_registry._entries[kind], name, entry)
    meta = {"license": "apache-2.0", "classes": ["a", "b", "c"], "metrics": {"acc@1": 33.3}}
    transforms = LatentTransform(mean=(0.5,) * 12)
    folder = tmp_path / "small-model"
    cdzoo.save_pretrained(model, folder, codec=codec, repo_id="cdzoo/small-model", meta=meta, transforms=transforms)
    return Small_Codec_Weights, Small_Model_Weights


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
    (without_a_tensor, r"1 missing \(.*weight.*nothing was loaded"),
    (with_one_too_many, r"1 unexpected \(surplus"),
    (another_shape, r"1 of the wrong shape or kind \(.*weight"),
    (another_kind, r"1 of the wrong shape or kind \(.*int64.*float32"),
    (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "no 'kind'"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    (lambda folder: edit(folder, repo_id=7), "repo_id in config.json must be a string, not 7"),
    (lambda folder: edit(folder, codec={"fingerprint": 5}), "codec.fingerprint in config.json must be a string, not 5"),
    (lambda folder: edit(folder, codec={"weights": ["x"]}), "codec.weights in config.json must be a string"),
    (lambda folder: edit(folder, transforms={"size": [True, True]}), "unusable transforms"),
    (without_a_key, "no 'sha256' of type str"),
    (lambda folder: edit(folder, kind="dataset"), "'dataset', neither 'codec' nor 'model'"),
    (lambda folder: edit(folder, builder="cresnet93"), "unknown (codec|model) 'cresnet93'; .*upgrade cdzoo"),
    (lambda folder: edit(folder, arguments={"depth": 3}), "arguments in config.json do not fit.*depth"),
    (lambda folder: edit(folder, transforms={"sise": 28}), "unusable transforms"),
    (lambda folder: edit(folder, transforms=[28]), "transforms in config.json must be an object or null"),
    (lambda folder: edit(folder, meta="good"), "meta in config.json must be an object or null"),
]


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        ("model", "width", 1e9), ("model", "width", 300.0), ("model", "num_classes", 10**12),
        ("model", "in_channels", 10**7), ("model", "layers", [10, 10, 10**9]), ("codec", "N", 10**5),
        ("codec", "M", 10**9),
    ],
)  # fmt: skip
def test_more_memory_than_the_file_has_tensors_for_is_not_taken(kind, argument, value, folders):
    config = json.loads((folders / kind / "config.json").read_text())
    edit(folders / kind, arguments={**config["arguments"], argument: value})
    rules = (
        "arguments in config.json do not fit",
        "that makes more numbers than there can be",
        r"tensors do not fit (cresnet39|bmshj2018_hyperprior): \d+ of the wrong shape",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="|".join(rules)):
        cdzoo.from_pretrained(folders / kind)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("builder", ["resnet41", "mobilenet_v2_45"])
def test_a_network_of_few_channels_has_no_tensor_of_all(builder, tmp_path):
    model = cdzoo.get_model(builder, in_channels=1920, width=0.0625, num_classes=3, channels=range(8))
    cdzoo.save_pretrained(model, tmp_path)
    assert_same(model, cdzoo.from_pretrained(tmp_path))


def test_nothing_is_loaded_into_a_module_without_memory(folders):
    for kind in ("model", "codec"):
        with torch.device("meta"), pytest.raises(WeightsError, match="is being built on the meta device"):
            cdzoo.from_pretrained(folders / kind)


def test_facts_of_weights_are_copies():
    member = cdzoo.models.cResNet39_Weights.DEFAULT
    before = member.meta
    member.meta["codec"]["fingerprint"] = "0" * 16
    cdzoo.models.cresnet39(weights=member).meta["metrics"] = {}
    assert member.meta == before
    assert member.build_codec().fingerprint == before["codec"]["fingerprint"]


@pytest.mark.parametrize("kind", ["codec", "model"])
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_refused(kind, damage, message, folders):
    damage(folders / kind)
    with pytest.raises(WeightsError, match=f"(?s)folder .*{message}"):
        cdzoo.from_pretrained(folders / kind)


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
    with pytest.raises(WeightsError, match="coding tables do not fit" if damage == "no tables" else codec.fingerprint):
        cdzoo.from_pretrained(folders / "codec")


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
    config = models.DEFAULT.source.config
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
    entry = models.DEFAULT.source.config["codec"]

    def build(changes):
        edit(folder, codec=None if changes is None else {**entry, **changes})
        return build_codec(WeightsFolder.from_path(folder))

    with pytest.raises(WeightsError, match="no learned codec's latents"):
        build(None)
    with pytest.raises(WeightsError, match="this version of cdzoo has not got the codec's weights: unknown member"):
        build({"weights": "Small_Codec_Weights.MAPS"})
    with pytest.raises(WeightsError, match=f"{codec.fingerprint} was not published"):
        build({"weights": None, "repo_id": None})
    with pytest.raises(
        WeightsError, match=f"feedfeedfeedfeed, but the published codec has fingerprint {codec.fingerprint}"
    ):
        build({"fingerprint": "feedfeedfeedfeed"})


def test_saving_again_keeps_what_the_weights_said(packaged, tmp_path):
    _, models = packaged
    cdzoo.save_pretrained(cdzoo.models.cresnet39(weights="DEFAULT"), tmp_path / "again")
    first, again = models.DEFAULT.source.config, WeightsFolder.from_path(tmp_path / "again").config
    for key in ("codec", "meta", "transforms", "arguments", "sha256"):
        assert again[key] == first[key], key


STATED = {
    "title": "A network",
    "description": "Reads latents.",
    "license": "cc-by-4.0",
    "datasets": ["photos"],
    "data": "Photographs, on their owners' terms.",
    "recipe": {"epochs": 3},
    "time": "an hour",
    "metrics": {"photos": {"acc@1": 74.8}},
    "limits": ["None."],
    "history": "Trained twice.",
    "member": "DEFAULT",
    "classes": ["a", "b", "c"],
    "class_names": ["ant", "bee", "cat"],
    "wnids": ["n1", "n2", "n3"],
}
TERMS = {"license", "datasets", "data"}
CLASSES = {"classes", "class_names", "wnids"}


def meta_when_saved(module, folder, **options):
    cdzoo.save_pretrained(module, folder, **options)
    return WeightsFolder.from_path(folder).meta


@pytest.mark.parametrize("kind", ["codec", "model"])
def test_other_values_do_not_carry_the_facts_of_the_former_ones(kind, codec, model, tmp_path):
    module = {"codec": codec, "model": model}[kind]
    cdzoo.save_pretrained(module, tmp_path / "published", meta=STATED)

    def load():
        return cdzoo.from_pretrained(tmp_path / "published")

    assert meta_when_saved(load(), tmp_path / "same") == STATED
    assert meta_when_saved(copy.deepcopy(load()), tmp_path / "copied") == STATED
    assert meta_when_saved(load(), tmp_path / "rounded", dtype=torch.float16).keys() == TERMS | CLASSES

    tuned = load()
    with torch.no_grad():
        next(tuned.parameters()).view(-1)[0].nextafter_(torch.tensor(9.0))
    expected = {key: STATED[key] for key in TERMS | CLASSES}
    assert meta_when_saved(tuned, tmp_path / "tuned") == expected
    assert "74.8" not in (tmp_path / "tuned" / "README.md").read_text()
    assert meta_when_saved(tuned, tmp_path / "told", meta=STATED) == STATED
    tuned.meta["metrics"]["photos"]["acc@1"] = 75.1
    assert meta_when_saved(tuned, tmp_path / "measured") == expected | {"metrics": {"photos": {"acc@1": 75.1}}}
    assert load().meta == STATED


def test_a_buffer_counts_as_well(model, tmp_path):
    cdzoo.save_pretrained(model, tmp_path / "published", meta=STATED)
    tuned = cdzoo.from_pretrained(tmp_path / "published")
    next(m for m in tuned.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean[0] += 1
    assert meta_when_saved(tuned, tmp_path / "tuned").keys() == TERMS | CLASSES


def test_narrow_weights_keep_their_facts_when_saved_wide(model, tmp_path):
    cdzoo.save_pretrained(model, tmp_path / "narrow", meta=STATED, dtype=torch.float16)
    loaded = cdzoo.from_pretrained(tmp_path / "narrow")
    assert meta_when_saved(loaded, tmp_path / "wide") == STATED
    assert meta_when_saved(loaded, tmp_path / "again", dtype=torch.float16) == STATED


@pytest.mark.parametrize("num_classes", [0, 3, 5])
def test_a_new_classifier_forgets_the_former_classes(num_classes, model, tmp_path):
    cdzoo.save_pretrained(model, tmp_path / "published", meta=STATED)
    loaded = cdzoo.from_pretrained(tmp_path / "published")
    shared = loaded.meta
    loaded.reset_classifier(num_classes)
    assert loaded.meta.keys() == STATED.keys() - CLASSES
    assert shared == STATED
    assert meta_when_saved(loaded, tmp_path / "tuned") == {key: STATED[key] for key in TERMS}


@pytest.mark.parametrize("values", [1, 11, 13])
def test_a_mean_of_another_codec_is_refused(values):
    latent = Latent(torch.zeros(2, 12, 3, 4), None, (48, 64))
    with pytest.raises(ValueError, match=f"a mean of {values} channels, but y_hat has 12"):
        LatentTransform(mean=(0.5,) * values)(latent)
    assert torch.equal(LatentTransform(mean=(0.5,) * 12)(latent).y_hat, torch.full((2, 12, 3, 4), -0.5))


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
