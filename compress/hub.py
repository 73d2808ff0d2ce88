"""`push_to_hub`: an artefact and its card to the Hugging Face hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from compress.artefact import FILES, load_artefact
from compress.card import CARD
from kd.errors import InputError
from students.storage import PLAN, WEIGHTS


def push_to_hub(folder: Path, repo_id: str, private: bool = False, message: str = "A model made by Retort") -> str:
    """Upload the artefact of a folder and the card beside it, and nothing else that lies there. Returns its address.

    The token is the one that `hf auth login` keeps, or HF_TOKEN; the hub is HF_ENDPOINT's, or the public one.

    Args:
        repo_id: user/name. It is made where there is none.
        private: whether it is then for its owner alone.
        message: of the commit.

    Raises:
        InputError: there is no artefact or card, it was altered, there is no token, or the hub refuses or is not there.
    """
    load_artefact(folder)
    if not (folder / CARD).is_file():
        raise InputError("model", str(folder), f"has no card: write {CARD} first")
    from huggingface_hub import HfApi, get_token  # late: it takes a while
    from huggingface_hub.errors import HTTPError

    if get_token() is None:
        raise InputError("to", repo_id, "there is no token for the hub: `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        files = [*FILES, PLAN, WEIGHTS, CARD]
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=files, commit_message=message)
    except (HTTPError, OSError, ValueError) as error:  # what the hub answers, or that it does not; a name that is none
        raise InputError("to", repo_id, f"the hub at {api.endpoint} does not take it: {error}") from error
    return str(address)
