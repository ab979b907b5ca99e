"""Publishing a run: what would be sent, what is sent, and cards that the hub's library accepts."""

import json
import pathlib

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.errors import LmsiError
from lmsi_jax.integrations import hub

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def export(tmp_path):
    """Stands in for an export: no architecture of the hub computes the micro model."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3000))
    return folder


class _Api:
    """Takes the place of HfApi."""

    calls: list = []

    def create_repo(self, repo_id, **settings):
        self.calls.append(("create", repo_id, settings))

    def upload_folder(self, *, repo_id, folder_path, **settings):
        files = {
            path.relative_to(folder_path).as_posix(): path.read_bytes()
            for path in pathlib.Path(folder_path).rglob("*")
            if path.is_file()
        }
        self.calls.append(("upload", repo_id, settings, files))


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(_Api, "calls", [])
    return _Api


def _push(run, *more):
    return main(["push", str(run), "me/tiny", *more])


def test_a_dry_run_prints_files_card_and_gaps_and_sends_nothing(copy, export, api, capsys):
    assert _push(copy, f"--export={export}", "--license=mit", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "model me/tiny, private if it is new" in out and "3.0 kB  model.safetensors" in out
    assert "license: mit" in out and "--base_model" in out and "--license" not in out
    assert api.calls == [] and not (export / "README.md").exists()


def test_the_model_is_sent_in_one_commit_with_its_card(copy, export, api, capsys):
    assert _push(copy, f"--export={export}", "--license=mit", "--public") == 0
    created, uploaded = api.calls
    assert created == (
        "create",
        "me/tiny",
        {"repo_type": "model", "private": False, "exist_ok": True},
    )
    assert uploaded[:2] == ("upload", "me/tiny") and uploaded[2]["repo_type"] == "model"
    assert set(uploaded[3]) == {"README.md", "config.json", "model.safetensors"}
    assert "done: https://huggingface.co/me/tiny" in capsys.readouterr().out


def test_the_model_s_card_has_the_metadata_and_accuracies_of_the_run(copy, export):
    labels = hub.Labels(license="apache-2.0", base_model="a/b", language=("en",), tags=("x",))
    upload = hub.model_upload(str(copy), "me/tiny", labels, export=export)
    assert upload.missing == ()
    data = huggingface_hub.ModelCard(upload.card).data  # reads and checks the metadata
    assert (data.license, data.base_model, data.language) == ("apache-2.0", "a/b", ["en"])
    assert {"lmsi", "x"} <= set(data.tags)
    wanted = {
        (row["task"], one["n"], round(100 * one["share"], 2))
        for row in json.loads((copy / "eval.json").read_text())
        for one in row["accuracy"]
        if one["model"] == "round 1"
    }
    found = {
        (one.dataset_name, one.metric_args["n"], one.metric_value) for one in data.eval_results
    }
    assert found == wanted
    assert "| purchases | CoT | 4 | 0.0 [0.0, 49.0] | 0.0 [0.0, 49.0] | 1 |" in upload.card


def test_no_folder_of_this_machine_is_in_a_card(copy, export):
    report = json.loads((copy / "report.json").read_text())
    assert "/tmp" in report["command"] or "/" in report["command"]
    for upload in (
        hub.model_upload(str(copy), "me/tiny", export=export),
        hub.dataset_upload(str(copy), "me/rows"),
    ):
        assert not any(f"/{part}/" in upload.card for part in copy.parts[1:3])
        assert "lmsi run micro.gin" in upload.card or upload.repo_type == "dataset"


def test_the_rows_are_sent_as_a_data_set_that_its_card_describes(copy, api):
    assert _push(copy, "--dataset", "--language=en") == 0
    _, (*_, settings, files) = api.calls
    assert settings["repo_type"] == "dataset"
    data = huggingface_hub.DatasetCard(files["README.md"].decode()).data
    (config,) = data.configs
    (split,) = config["data_files"]
    rows = [json.loads(line) for line in files[split["path"]].splitlines()]
    assert f"{len(rows)} training rows of round 1" in files["README.md"].decode()
    assert {"prompt", "completion", "weight"} <= set(rows[0])
    assert data.size_categories == ["n<1K"] and data.language == ["en"]


def test_a_hub_that_refuses_is_named_with_the_way_to_log_in(copy, export, api, monkeypatch):
    def refuse(self, *args, **settings):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(api, "create_repo", refuse)
    upload = hub.model_upload(str(copy), "me/tiny", export=export)
    with pytest.raises(LmsiError, match="401 Unauthorized; log in with `hf auth login`"):
        upload.send()


def test_what_cannot_be_published_is_named(copy, export, tmp_path):
    with pytest.raises(LmsiError, match="names no repository of the hub; write owner/name"):
        hub.model_upload(str(copy), "tiny", export=export)
    with pytest.raises(LmsiError, match=r"has no round 7 with a trained model"):
        hub.model_upload(str(copy), "me/tiny", export=export, round_index=7)
    with pytest.raises(LmsiError, match="is no export of `lmsi export-hf`"):
        hub.model_upload(str(copy), "me/tiny", export=tmp_path)
    (copy / "report.json").unlink()
    with pytest.raises(LmsiError, match="report.json is missing.* run `lmsi report`"):
        hub.dataset_upload(str(copy), "me/tiny")
