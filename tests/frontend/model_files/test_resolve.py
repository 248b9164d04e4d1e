from pathlib import Path
from typing import Any

import pytest

from event_tensor.errors import UserError
from frontend.model_files.resolve import DEMO_MODELS, is_hub_id, resolve_model


def test_resolve_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "weights.gguf").touch()
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("owner/name") == Path("owner/name")
    for name, directory in DEMO_MODELS.items():
        if directory.is_dir():
            assert resolve_model(name) == directory
    with pytest.raises(UserError, match="is a file"):
        resolve_model("weights.gguf")
    for name in ("absent", "./absent", "../absent/x", "/absent/x", "a/b/c", "~nobody/x", "a--b/c"):
        with pytest.raises(UserError, match="there is no directory.*Hub id"):
            resolve_model(name)
    with pytest.raises(UserError, match="empty"):
        resolve_model(" ")


def test_hub_ids() -> None:
    assert is_hub_id("Qwen/Qwen3-0.6B")
    for name in ("qwen", "a/b/c", "/a/b", "a/b/", "a b/c", "a/..", "a/" + "b" * 99):
        assert not is_hub_id(name)


def hub_errors() -> list[tuple[Exception, str]]:
    from huggingface_hub import errors

    def without_init(kind: type[Exception]) -> Exception:
        return kind.__new__(kind)  # the Hub's errors want a response to be built from

    return [
        (without_init(errors.GatedRepoError), "is gated; accept its licence"),
        (without_init(errors.RepositoryNotFoundError), "no public model owner/name"),
        (errors.LocalEntryNotFoundError("x"), "cannot be reached; connect"),
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("first line\nsecond line"), r"\(first line\)"),
    ]


def test_hub_failures_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for error, message in hub_errors():
        def fail(*args: object, error: Exception = error, **kwargs: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(UserError, match=message) as caught:
            resolve_model("owner/name")
        assert "\n" not in str(caught.value)


def test_hub_download_takes_only_what_we_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(hub_id: str, **kwargs: Any) -> str:
        asked.update(kwargs, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name") == tmp_path
    files = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
             "tokenizer.json", "chat_template.jinja", "pytorch_model.bin", "original/params.json",
             "consolidated.safetensors", "README.md"]  # fmt: skip
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects(files, **patterns)) == files[:5]
