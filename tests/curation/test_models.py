"""Where a recipe's models are: directories, packages, files, URLs, and a hub in miniature asked by the real client."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from curation import fetch, hub
from curation.models import (
    Kind,
    download_size,
    folder_identity,
    kind_of,
    local_file,
    local_folder,
    model_identity,
)
from shards.errors import InfrastructureError
from tests.curation.hub_server import Hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "run.py": b"print()", "onnx/model.json": b"{}"}


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("org/name", "hub"), ("org/name-v1.5_x", "hub"), ("package:rapidocr", "package"), ("https://example.org/a.pth", "url"),
        ("/no/such/model", "folder"), ("./model", "folder"), ("../a/head.pth", "file"), ("PP-OCRv6_small_det", "library"),
        ("a/b/c", "library"), ("there", "folder"), ("there/config.json", "file"),
    ],
)  # fmt: skip
def test_what_a_word_for_a_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, kind: Kind) -> None:
    folder_of(tmp_path / "there", FILES)
    monkeypatch.chdir(tmp_path)
    assert kind_of(model) == kind


def test_a_directory_is_taken_as_it_is_and_known_by_its_content(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", FILES)
    second = folder_of(tmp_path / "elsewhere/b", {**FILES, ".cache/when": b"today", ".hidden": b""})
    assert local_folder(str(first)) == first
    assert folder_identity(first) == folder_identity(second) == folder_identity(second)
    assert model_identity(str(first)) == ["folder", folder_identity(first)]
    found = {folder_identity(first)}
    (second / "model.safetensors").write_bytes(b"WEIGHTS")
    found.add(folder_identity(second))
    (second / "model.safetensors").rename(second / "model2.safetensors")
    found.add(folder_identity(second))
    assert len(found) == 3


def test_a_large_file_is_hashed_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FILES)
    before = folder_identity(folder)
    path = folder / "model.safetensors"
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(stamp, stamp))  # same size, same date: this process believes what it read
    assert folder_identity(folder) == before
    os.utime(path, ns=(stamp, stamp + 1))
    assert folder_identity(folder) != before


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"model.safetensors": b""}, r"lacks config\.json"),
        ({"config.json": b"{}"}, r"lacks \*\.safetensors"),
        (
            {
                "config.json": b"{}",
                "model-1.safetensors": b"",
                "model.safetensors.index.json": json.dumps(
                    {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
                ).encode(),
            },
            r"lacks model-2\.safetensors",
        ),
        ({"config.json": b"{}", "model.safetensors.index.json": b'{"weights": {}}'}, "is no index of weights"),
        ({"config.json": b"{", "model.safetensors": b""}, "config.json is not readable"),
        ({"config.json": b'{"auto_map": {"AutoModel": "run.Model"}}', "model.safetensors": b""}, "`remote_code: true`"),
    ],
)
def test_what_is_wrong_with_a_directory_is_named(tmp_path: Path, files: dict[str, bytes], told: str) -> None:
    folder_of(tmp_path / "model", files)
    with pytest.raises(InfrastructureError, match=told) as caught:
        local_folder(str(tmp_path / "model"))
    assert str(tmp_path / "model") in str(caught.value)
    assert not caught.value.retryable


def test_remote_code_where_the_recipe_allows_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {**FILES, "config.json": b'{"auto_map": {"AutoModel": "run.Model"}}'})
    assert local_folder(str(folder), remote_code=True) == folder


def test_a_missing_directory_and_a_package_that_is_not_there() -> None:
    with pytest.raises(InfrastructureError, match=r"/no/such/model is not there"):
        local_folder("/no/such/model")
    with pytest.raises(InfrastructureError, match="pip install nothing-of-that-name"):
        local_folder("package:nothing-of-that-name")
    assert local_folder("package:huggingface_hub", needs=("__init__.py",), wants=()).name == "huggingface_hub"


def test_a_hub_model_is_downloaded_once_without_python_and_other_engines(model_hub: Hub) -> None:
    commit = model_hub.put("org/model", FILES)
    assert hub.cached_commit("org/model") is None
    assert hub.asked_commit("org/model") == commit
    assert download_size("org/model") == sum(len(FILES[n]) for n in ("config.json", "model.safetensors", "tokenizer.json"))
    folder = local_folder("org/model")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert hub.cached_commit("org/model") == commit
    model_hub.asked.clear()
    assert local_folder("org/model", commit) == local_folder("org/model") == folder
    assert model_hub.asked == []
    moved = model_hub.put("org/model", {**FILES, "model.safetensors": b"newer"})
    assert (hub.asked_commit("org/model"), hub.cached_commit("org/model")) == (moved, commit)
    assert (local_folder("org/model", moved) / "model.safetensors").read_bytes() == b"newer"
    assert model_identity("org/model", commit) == ["hub", "org/model", commit]


def test_python_of_a_hub_model_is_refused_before_its_weights_are_downloaded(model_hub: Hub) -> None:
    model_hub.put("org/model", {**FILES, "config.json": b'{"auto_map": {"AutoModel": "run.Model"}}'})
    with pytest.raises(InfrastructureError, match="`remote_code: true`"):
        local_folder("org/model")
    assert not [path for path in model_hub.asked if "safetensors" in path]
    assert (local_folder("org/model", remote_code=True) / "run.py").read_bytes() == FILES["run.py"]


@pytest.mark.parametrize(
    ("model", "revision", "told"),
    [("org/none", "", "not on the hub"), ("org/model", "v9", "no such revision"), ("org/mo--del", "", "model org/mo--del: ")],
)
def test_what_the_hub_does_not_have(model_hub: Hub, model: str, revision: str, told: str) -> None:
    model_hub.put("org/model", FILES)
    with pytest.raises(InfrastructureError, match=told):
        local_folder(model, revision)
    assert download_size(model, revision) is None


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_the_mend_is_said(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"give a directory, or fill the cache with `hf download org/model --revision v1`"):
        local_folder("org/model", "v1")
    assert download_size("org/model") is None
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = folder_of(tmp_path / "cache/models--org--model/snapshots" / commit, FILES)  # as an older client leaves it
    assert local_folder("org/model", commit) == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(InfrastructureError, match="hub cannot be reached"):
        local_folder("org/model", commit)


def test_a_file_from_a_url(model_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = model_hub.put("org/heads", {"head.pth": b"a linear head"})
    url, digest = f"{model_hub.url}/org/heads/resolve/{commit}/head.pth", hashlib.sha256(b"a linear head").hexdigest()
    assert download_size(url) == 13
    path = local_file(url, digest.upper())
    assert (path.name, path.read_bytes()) == ("head.pth", b"a linear head")
    model_hub.asked.clear()
    assert local_file(url) == path
    assert model_hub.asked == []
    assert model_identity(url, sha256=digest) == model_identity(str(path)) == ["file", digest]
    with pytest.raises(InfrastructureError, match=f"its sha256 is {digest}, expected is 00"):
        local_file(url, "00" * 32)
    assert not path.exists()  # the next run downloads it anew
    with pytest.raises(InfrastructureError, match="larger than 12 bytes"):
        fetch.fetched(url, "", tmp_path / "small", bound=12)
    with pytest.raises(InfrastructureError, match=r"head2\.pth could not be downloaded to .*404"):
        local_file(f"{model_hub.url}/org/heads/resolve/{commit}/head2.pth?token=secret")
    assert not [p for p in (tmp_path / "small").rglob("*") if p.is_file()]


def test_a_url_that_nobody_answers(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    with pytest.raises(InfrastructureError, match="give the path of the file") as caught:
        local_file("http://127.0.0.1:9/head.pth?token=secret")
    assert "secret" not in str(caught.value)
    assert download_size("http://127.0.0.1:9/head.pth") is None
