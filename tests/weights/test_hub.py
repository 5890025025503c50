"""The Hub: the real client against a loopback server; no other network is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from oracles.hub_server import TOKEN, HubServer
from oracles.small_modules import assert_same

import cdzoo
from cdzoo.errors import PairingError, WeightsError
from cdzoo.hub import download
from cdzoo.weights.building import build_codec
from cdzoo.weights.resolve import find_weights

# a warning that the client's use of its HTTP library earns it
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "tests/small"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server, and a client that knows no other; the client reads its environment once, when it is imported."""
    with HubServer() as server:
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # another protocol, which this server does not speak
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():
            for module in (constants, file_download):  # earlier clients copy some of them
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture(scope="module")
def saved(codec, model, tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    cdzoo.save_pretrained(codec, root / "codec")
    cdzoo.save_pretrained(model, root / "model", codec=codec)
    return root


def without_waiting(monkeypatch):
    """The client tries five times, with growing pauses."""
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)


# -- down --------------------------------------------------------------------------------------------------------


def test_download_and_load(hub, saved, model):
    commit = hub.add(REPO, saved / "model")
    folder = download(REPO)
    assert folder.name == commit
    assert sorted(f.name for f in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for file in folder.iterdir():
        assert file.read_bytes() == (saved / "model" / file.name).read_bytes()
    for loaded in (
        cdzoo.from_pretrained(REPO),
        cdzoo.from_pretrained(f"hf://{REPO}"),
        cdzoo.from_pretrained(f"hf://{REPO}@{commit}"),
        cdzoo.models.cresnet39(weights=f"hf://{REPO}"),
        cdzoo.get_model("cresnet39", weights=f"hf://{REPO}@main"),
    ):
        assert_same(model, loaded)
        assert (loaded.origin.repo_id, loaded.origin.revision) == (REPO, commit)
    assert not cdzoo.from_pretrained(REPO).training


def test_a_codec_comes_with_its_fingerprint(hub, saved, codec):
    hub.add(REPO, saved / "codec")
    loaded = cdzoo.from_pretrained(REPO)
    assert_same(codec, loaded)
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.origin.fingerprint == codec.fingerprint


def test_a_pinned_revision_stays_what_it_was(hub, saved, model, tmp_path):
    first = hub.add(REPO, saved / "model")
    torch.manual_seed(2)
    newer = cdzoo.get_model("cresnet39", width=0.0625, num_classes=5, in_channels=12, latent_stride=16)
    second = hub.add(REPO, cdzoo.save_pretrained(newer, tmp_path / "newer"))
    assert_same(newer, cdzoo.from_pretrained(REPO))
    assert_same(model, cdzoo.from_pretrained(REPO, revision=first))
    assert_same(model, cdzoo.models.cresnet39(weights=f"hf://{REPO}@{first}"))
    assert cdzoo.models.cresnet39(weights=f"hf://{REPO}@{second}").num_classes == 5


def test_a_branch_that_moves_meanwhile_does_not_mix_two_commits(hub, saved, model, tmp_path, monkeypatch):
    first = hub.add(REPO, saved / "model")
    other = cdzoo.save_pretrained(cdzoo.get_model("cresnet39", width=0.125), tmp_path / "other")
    answer = hub._resolve

    def push_after_the_first_answer(*request):
        response = answer(*request)
        if len(hub.repos[REPO].commits) == 1:
            hub.add(REPO, other)
        return response

    monkeypatch.setattr(hub, "_resolve", push_after_the_first_answer)
    assert_same(model, cdzoo.from_pretrained(REPO))
    assert {path.split("/")[4] for _, path in hub.requests if path.endswith("model.safetensors")} == {first}
    assert cdzoo.from_pretrained(REPO).origin.arguments["width"] == 0.125


def test_what_is_in_the_cache_needs_no_server(hub, saved, model):
    commit = hub.add(REPO, saved / "model")
    cdzoo.from_pretrained(REPO)
    asked = len(hub.requests)
    # a commit never changes, so there is nothing to ask
    assert_same(model, cdzoo.from_pretrained(REPO, revision=commit))
    assert_same(model, cdzoo.from_pretrained(REPO, local_files_only=True))
    assert len(hub.requests) == asked
    hub.stop()
    assert_same(model, cdzoo.from_pretrained(REPO))
    assert_same(model, cdzoo.models.cresnet39(weights=f"hf://{REPO}"))


def test_a_second_load_asks_only_whether_the_branch_moved(hub, saved):
    hub.add(REPO, saved / "model")
    cdzoo.from_pretrained(REPO)
    asked = len(hub.requests)
    cdzoo.from_pretrained(REPO)
    assert hub.requests[asked:] == [("GET", f"/api/models/{REPO}/revision/main")]


def test_a_missing_card_is_no_obstacle(hub, saved, model):
    hub.add(REPO, saved / "model")
    for tree in hub.repos[REPO].commits.values():
        del tree["README.md"]
    assert_same(model, cdzoo.from_pretrained(REPO))
    hub.stop()
    assert_same(model, cdzoo.from_pretrained(REPO))


def test_cache_dir_is_where_files_go(hub, saved, tmp_path):
    hub.add(REPO, saved / "model")
    folder = download(REPO, cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere") in folder.parents
    assert not (tmp_path / "cache").exists()


def test_tokens_go_to_the_hub_and_nowhere_else(hub, saved, model):
    hub.add(REPO, saved / "model")
    hub.repos[REPO].private = True
    with pytest.raises(WeightsError, match=f"hf://{REPO}: there is no such repository, or it is private; .*token="):
        cdzoo.from_pretrained(REPO)
    assert_same(model, cdzoo.from_pretrained(REPO, token=TOKEN))
    assert any(path.startswith("/storage/") for _, path in hub.requests)
    assert hub.leaked == []


# -- what can go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"repo_or_dir": "tests/smell"}, "hf://tests/smell: there is no such repository, or it is private"),
        (
            {"repo_or_dir": REPO, "revision": "v9"},
            f"hf://{REPO}@v9: the repository has no revision 'v9'; name a branch",
        ),
        ({"repo_or_dir": f"hf://{REPO}@v9"}, f"hf://{REPO}@v9: the repository has no revision 'v9'"),
        ({"repo_or_dir": "a/b/c"}, "'a/b/c' is neither a local folder nor a repository's name"),
        ({"repo_or_dir": "./missing/folder"}, "'./missing/folder' is neither a local folder nor"),
        ({"repo_or_dir": "hf://"}, "'' is neither a local folder nor"),
        ({"repo_or_dir": REPO, "revision": "0" * 40}, f"has no revision '{'0' * 40}'"),
    ],
)
def test_names_that_do_not_exist(asked, message, hub, saved):
    hub.add(REPO, saved / "model")
    with pytest.raises(WeightsError, match=message):
        cdzoo.from_pretrained(**asked)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_repository_without_a_file(name, hub, saved):
    hub.add(REPO, saved / "model")
    for tree in hub.repos[REPO].commits.values():
        del tree[name]
    with pytest.raises(WeightsError, match=f"hf://{REPO}: the repository has no {name}; .*made by cdzoo"):
        cdzoo.from_pretrained(REPO)


def test_a_gated_repository(hub, saved):
    hub.add(REPO, saved / "model")
    hub.repos[REPO].gated = True
    with pytest.raises(WeightsError, match="access to the repository has to be granted: accept its terms"):
        cdzoo.from_pretrained(REPO)


def test_nothing_cached_and_no_network_allowed(hub, saved, monkeypatch):
    hub.add(REPO, saved / "model")
    with pytest.raises(WeightsError, match=r"the repository is not in the cache, and the network was not to be used"):
        cdzoo.from_pretrained(REPO, local_files_only=True)
    assert hub.requests == []


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    without_waiting(monkeypatch)
    hub.stop()
    with pytest.raises(WeightsError, match=r"the repository is not in the cache, and the Hub cannot be reached"):
        cdzoo.from_pretrained(REPO)


def test_a_hub_that_is_broken(hub, saved, monkeypatch):
    without_waiting(monkeypatch)
    hub.add(REPO, saved / "model")
    hub.fail = [500] * 100
    with pytest.raises(WeightsError, match=r"the Hub cannot be reached .*500"):
        cdzoo.from_pretrained(REPO)


def test_a_download_that_is_cut_short_leaves_nothing_behind(hub, saved, model, monkeypatch):
    without_waiting(monkeypatch)
    hub.add(REPO, saved / "model")
    hub.cut = 7
    with pytest.raises(WeightsError, match=rf"hf://{REPO}: the download failed"):
        cdzoo.from_pretrained(REPO)
    hub.cut = 0
    assert_same(model, cdzoo.from_pretrained(REPO))


def test_wrong_content_is_refused(hub, saved, tmp_path):
    folder = tmp_path / "wrong"
    cdzoo.save_pretrained(cdzoo.from_pretrained(saved / "model"), folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    hub.add(REPO, folder)
    with pytest.raises(WeightsError, match=f"hf://{REPO}: model.safetensors has SHA-256 .* but config.json says"):
        cdzoo.from_pretrained(REPO)
    with pytest.raises(WeightsError, match="SHA-256"):
        cdzoo.models.cresnet39(weights=f"hf://{REPO}")


def test_weights_of_another_builder(hub, saved):
    hub.add(REPO, saved / "model")
    with pytest.raises(ValueError, match=f"weights hf://{REPO} are for cresnet39, not for cresnet51"):
        cdzoo.models.cresnet51(weights=f"hf://{REPO}")


def test_revisions_that_contradict(hub, saved):
    with pytest.raises(ValueError, match="is a local folder, which has no revision 'v1'"):
        cdzoo.from_pretrained(saved / "model", revision="v1")
    with pytest.raises(ValueError, match="name different revisions"):
        cdzoo.from_pretrained(f"hf://{REPO}@v1", revision="v2")
    assert hub.requests == []


# -- up ----------------------------------------------------------------------------------------------------------


def test_push_and_load(hub, codec, model):
    url = cdzoo.push_to_hub(codec, "tests/codec", token=TOKEN, meta={"license": "mit"})
    repo = hub.repos["tests/codec"]
    commit = repo.refs["main"]
    assert url == f"{hub.endpoint}/tests/codec/commit/{commit}"
    assert len(repo.commits) == 2, "the initial commit, and one for all files"
    assert sorted(repo.commits[commit]) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert b"\nlicense: mit\n" in b"\n" + repo.commits[commit]["README.md"]
    assert b"cdzoo.from_pretrained('tests/codec')" in repo.commits[commit]["README.md"]
    loaded = cdzoo.from_pretrained("tests/codec")
    assert_same(codec, loaded)
    assert loaded.fingerprint == codec.fingerprint

    cdzoo.push_to_hub(model, "tests/model", token=TOKEN, codec=loaded, commit_message="three classes")
    assert hub.repos["tests/model"].messages[-1] == "three classes"
    entry = json.loads(hub.repos["tests/model"].commits[hub.repos["tests/model"].refs["main"]]["config.json"])["codec"]
    assert entry == {
        "fingerprint": codec.fingerprint,
        "weights": None,
        "repo_id": "tests/codec",
        "revision": commit,
    }
    pulled = cdzoo.models.cresnet39(weights="hf://tests/model")
    assert_same(model, pulled)
    assert pulled.codec_fingerprint == codec.fingerprint
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = cdzoo.compose(codec, model)(images)
        assert torch.equal(cdzoo.compose(loaded, pulled.eval()).from_streams(codec.compress(images)), expected)
    torch.manual_seed(7)
    other = cdzoo.get_codec("bmshj2018_hyperprior", N=8, M=12)
    with pytest.raises(PairingError, match=f"{codec.fingerprint}.*{other.fingerprint}"):
        cdzoo.compose(other, pulled)


def test_the_codec_of_published_weights_is_fetched(hub, codec, model):
    cdzoo.push_to_hub(codec, "tests/codec", token=TOKEN)
    cdzoo.push_to_hub(model, "tests/model", token=TOKEN, codec=cdzoo.from_pretrained("tests/codec"))
    folder = find_weights("hf://tests/model")
    assert build_codec(folder).fingerprint == codec.fingerprint


def test_push_narrow_to_a_branch_of_a_private_repository(hub, model):
    cdzoo.push_to_hub(model, REPO, token=TOKEN, private=True, revision="half", dtype=torch.float16)
    assert hub.repos[REPO].private
    assert set(hub.repos[REPO].refs) == {"main", "half"}
    assert "model.safetensors" not in hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    loaded = cdzoo.from_pretrained(REPO, revision="half", token=TOKEN)
    assert torch.equal(loaded.fc.weight, model.fc.weight.half().float())
    config = json.loads((download(REPO, revision="half", token=TOKEN) / "config.json").read_text())
    assert (config["repo_id"], config["revision"]) == (REPO, "half")


def test_pushing_again_adds_a_commit(hub, model):
    first = cdzoo.push_to_hub(model, REPO, token=TOKEN)
    assert cdzoo.push_to_hub(model, REPO, token=TOKEN) == first, "nothing changed, so there is nothing to commit"
    assert cdzoo.push_to_hub(model, REPO, token=TOKEN, meta={"time": "1 s"}) != first
    assert_same(model, cdzoo.from_pretrained(REPO))


def test_pushes_that_are_refused(hub, model):
    with pytest.raises(WeightsError, match=f"hf://{REPO}: publishing failed: .*check the connection and the token"):
        cdzoo.push_to_hub(model, REPO, token="hf_wrong")
    with pytest.raises(WeightsError, match="'a/b/c' is neither a local folder nor a repository's name"):
        cdzoo.push_to_hub(model, "a/b/c", token=TOKEN)
    assert hub.repos == {}
    asked = len(hub.requests)
    with pytest.raises(TypeError, match="not made by a registered builder"):
        cdzoo.push_to_hub(torch.nn.Linear(1, 1), REPO, token=TOKEN)
    assert len(hub.requests) == asked, "nothing is sent before everything is written"


def test_a_card_that_the_hub_refuses(hub, model):
    with pytest.raises(WeightsError, match="publishing failed"):
        cdzoo.push_to_hub(model, REPO, token=TOKEN, card="---\nlicense: [mit]\n---\n")
    assert hub.repos[REPO].messages == ["initial commit"]


# -- the environment, which the client reads when it is imported -------------------------------------------------

PROGRAM = """
import sys, torch, cdzoo
for weights in sys.argv[1:]:
    try:
        model = cdzoo.models.cresnet39(weights=weights).eval()
        print(model(torch.ones(1, 12, 2, 2)).tolist())
    except cdzoo.errors.WeightsError as error:
        print(error)
"""


@pytest.mark.slow
def test_offline_mode_from_the_environment(hub, saved, model, tmp_path):
    hub.add(REPO, saved / "model")
    download(REPO, cache_dir=tmp_path / "home" / "hub")
    asked = len(hub.requests)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(cdzoo.__file__).parent.parent),
    }
    command = [sys.executable, "-c", PROGRAM, f"hf://{REPO}", "hf://tests/other"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    cached, other = done.stdout.splitlines()
    with torch.no_grad():
        assert cached == str(model(torch.ones(1, 12, 2, 2)).tolist())
    assert other.startswith("hf://tests/other: the repository is not in the cache, and offline mode is on")
    assert len(hub.requests) == asked
