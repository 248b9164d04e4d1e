"""What the user calls a model (`demo`, `demo-moe`, a directory, a Hub id) becomes a directory."""

import re
from pathlib import Path

from event_tensor.errors import UserError
from frontend.model_files.json_fields import require_directory

DEMO_MODELS = {name: Path(__file__).parents[1] / name.replace("-", "_")
               for name in ("demo", "demo-moe")}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# Everything we read, from the top folder only: no second copy of the weights in another format.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
HUB_IGNORED_FILES = ("*/*", "consolidated*")
REMEDY = "give `demo`, `demo-moe`, a model directory or a Hub id (owner/name)"


def resolve_model(name: str) -> Path:
    """The directory of a model: one of DEMO_MODELS, an existing directory, or a Hub id, downloaded
    if need be.

    HF_HOME, HF_HUB_OFFLINE and a stored login are respected. `./demo` is a directory of that name.
    """
    if name in DEMO_MODELS:
        if not DEMO_MODELS[name].is_dir():
            raise UserError(f"this installation lacks the model {name}; install the package again")
        return DEMO_MODELS[name]
    if not name.strip():
        raise UserError(f"the model name is empty; {REMEDY}")
    directory = expand_user(name)
    if path_exists(directory):
        require_directory(directory)
        return directory
    if not is_hub_id(name):
        raise UserError(
            f"there is no directory {name!r}, and it is not a Hub id either; {REMEDY}"
        )
    return download(name)


def expand_user(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~someone unknown
        return Path(name)


def path_exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # forbidden, too long or a NUL: require_directory says which
        return True


def is_hub_id(name: str) -> bool:
    """Whether `name` is owner/name under the rules of huggingface_hub's validate_repo_id."""
    forbidden = "--" in name or ".." in name or name.endswith((".git", ".", "-"))
    return HUB_ID.fullmatch(name) is not None and len(name) <= 96 and not forbidden


def download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    local = f"there is no directory {hub_id}, and"
    try:
        return Path(
            snapshot_download(
                hub_id, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_IGNORED_FILES)
            )
        )
    except HFValidationError:
        problem = f"{local} it is not a Hub id; {REMEDY}"
    except GatedRepoError:
        problem = (
            f"the Hub model {hub_id} is gated; accept its licence at "
            f"https://huggingface.co/{hub_id} and log in with `hf auth login`"
        )
    except RepositoryNotFoundError:
        problem = (
            f"{local} the Hub has no public model {hub_id}; check the spelling, or log in with "
            "`hf auth login` if it is private"
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        problem = (
            f"{local} the Hub model {hub_id} is not in the local cache and the Hub cannot be "
            "reached; connect (HF_HUB_OFFLINE must not be set) or give a model directory"
        )
    except Exception as error:  # whatever the network, the disk or the Hub's client comes up with
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        problem = f"{local} the Hub model {hub_id} could not be downloaded ({reason}); try again"
    raise UserError(problem)
