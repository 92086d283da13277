"""The hub of Hugging Face: uploading an export where one is logged in."""

import re

from ..errors import InputError


def check(repository):
    """Raise InputError unless `repository` is a name of the hub's and somebody is logged in there."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"--push {repository}: no name of the hub. Give owner/name.")
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise InputError(f"--push {repository}: not logged in. hf auth login, or set HF_TOKEN.")


def push(folder, repository, private=False):
    """Upload the folder, its repository made if there is none yet. Returns the address. Raises InputError where that fails."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Weights, network and card")
    except Exception as error:  # of whichever HTTP library there is
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(
            f"--push {repository}: not uploaded ({text}). {folder} is whole; hf upload {repository} {folder} sends it."
        ) from error
    return f"https://huggingface.co/{repository}"
