"""Saving: what is written comes back bit for bit, and what could not come back is not written."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from oracles.slow import one_of_each_class
from oracles.small_modules import assert_same, small
from torch import nn

import cdzoo
from cdzoo import zoo
from cdzoo.codecs import Codec, TransformCodec
from cdzoo.errors import PairingError, WeightsError
from cdzoo.weights import saving as _saving

# -- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", one_of_each_class(cdzoo.list_models()))
def test_models_round_trip(name, tmp_path):
    module = small(name)
    cdzoo.save_pretrained(module, tmp_path / "new" / "folder")
    loaded = cdzoo.from_pretrained(tmp_path / "new" / "folder")
    assert type(loaded) is type(module)
    assert not loaded.training
    assert (loaded.origin.builder, loaded.origin.arguments) == (name, module.origin.arguments)
    assert_same(module, loaded)
    assert_same(module, zoo.get_builder(name)(weights=str(tmp_path / "new" / "folder")))


@pytest.mark.parametrize("name", cdzoo.list_models("jpeg_*"))
def test_jpeg_models_read_files_alike_after_a_round_trip(name, tmp_path):
    module = small(name).eval()
    cdzoo.save_pretrained(module, tmp_path)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    coefficients = cdzoo.codecs.encode_jpeg(images)
    with torch.no_grad():
        logits = module(coefficients)
        assert logits.shape == (1, 3)
        assert torch.equal(cdzoo.from_pretrained(tmp_path)(coefficients), logits)


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


def test_a_codec_loads_its_integers_and_derives_none(codec, tmp_path, monkeypatch):
    cdzoo.save_pretrained(codec, tmp_path)

    def derive(self):
        pytest.fail("derived on this machine, where another one may have rounded differently")

    monkeypatch.setattr(type(codec), "derive_state", derive)
    assert cdzoo.from_pretrained(tmp_path).fingerprint == codec.fingerprint


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
@pytest.mark.parametrize("rounded", ["networks", "networks, for nothing else needs it"])
def test_narrow_codecs_are_codecs_of_their_own(name, rounded, tmp_path):
    module = small(name)
    if rounded != "networks":
        module.entropy_bottleneck.half().float()
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
    fresh = zoo.get_builder(name)(N=8, M=12)
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


@pytest.mark.slow
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
    module.origin.arguments["width"] = -1.0
    with pytest.raises(ValueError, match="cannot be built again"):
        cdzoo.save_pretrained(module, tmp_path)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        cdzoo.save_pretrained(model, tmp_path, meta={"accuracy": float("nan")})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        cdzoo.save_pretrained(model, tmp_path, meta={"confusion": torch.zeros(2, 2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"metrics": [{"top-1 (%)": 70}]}, r"meta\['metrics'\] is \[.* must be a mapping"),
        ({"metrics": 0.5}, "must be a mapping"),
        ({"classes": 10}, r"meta\['classes'\] is 10, and must be a list"),
        ({"datasets": "imagenet"}, "must be a list"),
        ({"tags": "small"}, "must be a list"),
    ],
)
def test_a_save_that_fails_leaves_what_was_there(meta, message, model, tmp_path):
    cdzoo.save_pretrained(model, tmp_path)
    other = cdzoo.get_model("cresnet39", width=0.0625, num_classes=3, in_channels=12, latent_stride=16)
    with pytest.raises(ValueError, match=message):
        cdzoo.save_pretrained(other, tmp_path, meta=meta)
    assert_same(model, cdzoo.from_pretrained(tmp_path))
    cdzoo.save_pretrained(other, tmp_path, meta=meta, card="# A card of one's own needs no form")
    assert_same(other, cdzoo.from_pretrained(tmp_path))


def test_transforms_that_cannot_be_written_are_not_dropped(model, tmp_path):
    module = copy.deepcopy(model)
    for given in ({"transforms": lambda latent: latent}, {}):
        with pytest.raises(TypeError, match="transforms of type function cannot be written down"):
            cdzoo.save_pretrained(module, tmp_path, **given)
        module.transforms = lambda latent: latent
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64, "float16"])
def test_types_that_could_not_be_loaded(dtype, codec, model, tmp_path):
    for module in (codec, model):
        with pytest.raises(ValueError, match=f"dtype={dtype!r}: weights are written as torch.float16"):
            cdzoo.save_pretrained(module, tmp_path, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_network_is_not_saved_as_one_of_a_codec_that_it_cannot_read(codec, tmp_path):
    model = cdzoo.get_model("cresnet39", width=0.0625, num_classes=3, in_channels=codec.latent_channels + 1)
    with pytest.raises(PairingError, match=rf"reads {codec.latent_channels + 1} latent channels.*{codec.fingerprint}"):
        cdzoo.save_pretrained(model, tmp_path, codec=codec)


def test_what_no_builder_made_is_not_saved(codec, model, tmp_path):
    for module in (nn.Linear(2, 2), cdzoo.compose(codec, model), cdzoo.models.cresnet.CResNet(width=0.0625)):
        with pytest.raises(TypeError, match=f"{type(module).__name__} was not made by a registered builder"):
            cdzoo.save_pretrained(module, tmp_path)
    own = TransformCodec(nn.Conv2d(3, 2, 4, 4), nn.ConvTranspose2d(2, 3, 4, 4), stride=4, latent_channels=2)
    with pytest.raises(TypeError, match=r"TransformCodec was not made by .*a subclass .*cdzoo\.register_codec"):
        cdzoo.save_pretrained(own, tmp_path)
    with pytest.raises(TypeError, match="codec must be a codec of cdzoo, not CResNet"):
        cdzoo.save_pretrained(model, tmp_path, codec=model)


def test_an_interrupted_save_leaves_nothing_that_loads_as_something_else(codec, tmp_path, monkeypatch):
    cdzoo.save_pretrained(codec, tmp_path)
    write = _saving.write_atomically

    def full_disk(path, data):
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    other = small("bmshj2018_hyperprior", seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(_saving, "write_atomically", full_disk)
        with pytest.raises(OSError, match="No space left"):
            cdzoo.save_pretrained(other, tmp_path)
    with pytest.raises(WeightsError, match="SHA-256"):
        cdzoo.from_pretrained(tmp_path)
    cdzoo.save_pretrained(other, tmp_path)
    assert_same(other, cdzoo.from_pretrained(tmp_path))


# -- the model card ----------------------------------------------------------------------------------------------

META = {
    "title": "cResNet for tests",
    "description": "Reads latents.",
    "license": "apache-2.0",
    "datasets": ["photos: the 'best' #1"],
    "tags": ["test"],
    "data": "Random numbers, on no terms.",
    "recipe": {"epochs": 3, "optimizer": "SGD"},
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
        "pipeline_tag": "image-classification",
        "tags": ["compressed-domain", "cresnet39", "test"],
        "datasets": ["photos: the 'best' #1"],
        "metrics": ["acc@1", "mIoU"],
        "model-index": [
            {
                "name": "cResNet for tests",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": "photos", "type": "photos"},
                        "metrics": [{"type": "acc@1", "value": 33.3}, {"type": "mIoU", "value": 12.5}],
                    }
                ],
            }
        ],
    }
    card = (tmp_path / "README.md").read_text()
    for expected in (
        "# cResNet for tests\n\nReads latents.",
        "## Data and terms\n\nRandom numbers, on no terms.",
        "## Recipe\n\n- epochs: 3\n- optimizer: SGD",
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
