"""Pushes a checkpoint to the Hub: model, processor, code, card and pictures in one commit."""

import json
import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from peft import PeftModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
)
from transformers.utils.hub import extract_commit_hash

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration, LlmAsrPreTrainedModel
from ..processing.processing_llm_asr import LlmAsrProcessor
from .checkpoint_forms import FORMS, find_form, load_checkpoint, save_checkpoint
from .inspect import CARD_NAME, format_bytes, read_json
from .model_card import write_model_card
from .pictures import can_draw
from .staging import add_processor_code, is_part, link_parts, stage_checkpoint, stage_documents


# `huggingface_hub` keeps its own records in this folder and never uploads it.
RECORD_PATH = Path(".cache", "huggingface", "llm_asr_push.json")
# The commits of the last pushes of models and processors in memory, by branch.
PUSHED: WeakKeyDictionary[LlmAsrPreTrainedModel | LlmAsrProcessor, dict[str, str]] = WeakKeyDictionary()
# The Hub stores larger files and binary files in LFS.
MAX_TEXT_SIZE = 10_000_000


@dataclass(frozen=True)
class PushReport:
    """
    The changes of a push. A dry run reports the same changes without making them.

    Attributes:
        repo_id (`str`): Repository on the Hub.
        revision (`str`): Branch.
        parent_commit (`str`, *optional*): Parent of the commit; `None` if there is no repository yet.
        uploads (`dict[str, tuple[int, bool]]`): New and changed files, each with its size in bytes and whether LFS stores it.
        unchanged (`tuple[str]`): Files that are the same in the repository.
        deletions (`tuple[str]`): Checkpoint files in the repository that the new checkpoint does not have.
        commit (`CommitInfo`, *optional*): The new commit; `None` for a dry run.
    """

    repo_id: str
    revision: str
    parent_commit: str | None
    uploads: dict[str, tuple[int, bool]]
    unchanged: tuple[str, ...]
    deletions: tuple[str, ...]
    commit: CommitInfo | None = None

    def __str__(self) -> str:
        after = f"after commit {self.parent_commit}" if self.parent_commit else "a new repository"
        lines = [f"{'Pushed to' if self.commit else 'Would push to'} {self.repo_id}, branch {self.revision}, {after}:"]
        lines += [
            f"  {'LFS' if large else 'git'} {format_bytes(size):>10}  {path}"
            for path, (size, large) in self.uploads.items()
        ]
        total = sum(size for size, _ in self.uploads.values())
        large = sum(size for size, in_lfs in self.uploads.values() if in_lfs)
        lines.append(f"{len(self.uploads)} files, {format_bytes(total)}, {format_bytes(large)} of it in LFS")
        if self.deletions:
            lines.append(f"Removed: {', '.join(self.deletions)}")
        if self.unchanged:
            lines.append(f"Unchanged: {len(self.unchanged)} files")
        if self.commit:
            lines.append(self.commit.commit_url)
        return "\n".join(lines)


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    form: str | None = None,
    *,
    revision: str = constants.DEFAULT_REVISION,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    parent_commit: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    backbones: dict[str, str] | None = None,
    base: str | None = None,
) -> PushReport:
    """
    Publish a checkpoint in one commit: model, processor, checksums, the package's code, model card and pictures.

    Other files in the folder, such as the states of a training run, are not uploaded. Checkpoint files in the repository that
    this checkpoint does not have are removed. Other files in the repository are kept. If neither the folder nor the
    repository has a model card, [`write_model_card`] writes one.

    A push does not overwrite unknown work. If it would replace files, the newest commit of the branch must be the commit from
    which the folder was downloaded, or the commit of its last push. A failed push changes neither the folder nor a branch. A
    repeated push does not upload again the files that were uploaded before the failure.

    Args:
        folder (`str` or `os.PathLike`):
            Local folder of a checkpoint with its processor.
        repo_id (`str`):
            `"user/name"`. The repository is created if it does not exist.
        form (`str`, *optional*):
            One of `"full"`, `"slim"` and `"adapter"`, see [`save_checkpoint`]. Defaults to the form of the checkpoint.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch. It is created from `main` if it does not exist.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to the setting of the user or organization.
        token (`str` or `bool`, *optional*):
            See `huggingface_hub`.
        commit_message (`str`, *optional*):
            Defaults to `"Upload <form> checkpoint"`.
        parent_commit (`str`, *optional*):
            The commit on which the folder is based, if the folder does not record it.
        force (`bool`, *optional*, defaults to `False`):
            Whether to replace files on top of any newest commit. That commit stays in the history.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to report the changes without making them.
        backbones (`dict[str, str]`, *optional*), base (`str`, *optional*):
            See [`save_checkpoint`]. They apply only if the checkpoint is saved in another form.

    Returns:
        [`PushReport`]: Report of the changes. `str` gives a list of files.

    Raises:
        `ValueError`: If the checkpoint is missing or incomplete, refers to folders on this machine, or would overwrite
            unknown work in the repository.
        `HfHubHTTPError`, `RuntimeError`: If the Hub refuses the request or fails. A further call continues the push.

    Example:

    ```python
    >>> print(push_checkpoint("runs/demo", "user/asr", dry_run=True))
    ```
    """
    folder = Path(folder)
    if form is not None and form not in FORMS:
        raise ValueError(f"`form` must be one of {list(FORMS)}, got {form!r}.")
    if repo_id.count("/") != 1:
        raise ValueError(f"`repo_id` must be of the form 'user/name', got {repo_id!r}.")
    found = find_form(folder)
    with tempfile.TemporaryDirectory() as temporary:
        source = folder
        if form is not None and form != found:
            source = Path(temporary, "converted")
            model, processor = load_checkpoint(folder)
            save_checkpoint(model, processor, source, form, backbones=backbones, base=base)
        elif backbones is not None or base is not None:
            raise ValueError(
                f"`backbones` and `base` apply only when the form changes, but {str(folder)!r} is {found} already; leave them "
                "out."
            )
        staged = Path(temporary, "staged")
        stage_checkpoint(source, staged)
        stage_documents(folder, staged)
        api = HfApi(token=token)
        place = _place(api, repo_id, revision)
        report = _push(
            api,
            staged,
            repo_id,
            revision,
            private=private,
            commit_message=commit_message or f"Upload {form or found} checkpoint",
            known={parent_commit, *_known_commits(folder, place)},
            force=force,
            dry_run=dry_run,
            add_card=lambda: write_model_card(staged, run=folder, repo_id=repo_id, pictures=can_draw()),
        )
    if report.commit is not None:
        _record(folder, place, report.commit.oid)
    return report


def push_to_hub(
    model: LlmAsrForConditionalGeneration | PeftModel,
    processor: LlmAsrProcessor,
    repo_id: str,
    form: str = "full",
    *,
    revision: str = constants.DEFAULT_REVISION,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    parent_commit: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    backbones: dict[str, str] | None = None,
    base: str | None = None,
) -> PushReport:
    """
    Publish a model with its processor: save it with [`save_checkpoint`] and push it as [`push_checkpoint`] does.

    The push may replace files if the newest commit of the branch is the one from which `model` was loaded, or the commit of
    the last push of `model` or `processor`.

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`), processor ([`LlmAsrProcessor`]):
            Model and processor to publish.
        form (`str`, *optional*, defaults to `"full"`):
            See [`save_checkpoint`].
        backbones, base:
            See [`save_checkpoint`].
        repo_id, revision, private, token, commit_message, parent_commit, force, dry_run:
            See [`push_checkpoint`].

    Returns:
        [`PushReport`]: Report of the changes. `str` gives a list of files.

    Raises:
        `ValueError`, `HfHubHTTPError`, `RuntimeError`: See [`push_checkpoint`].
    """
    base_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with tempfile.TemporaryDirectory() as temporary:
        saved, staged = Path(temporary, "saved"), Path(temporary, "staged")
        save_checkpoint(model, processor, saved, form, backbones=backbones, base=base)
        stage_checkpoint(saved, staged)
        return _push_from_memory(
            HfApi(token=token),
            staged,
            repo_id,
            revision,
            [base_model, processor],
            parent_commit=parent_commit,
            private=private,
            commit_message=commit_message or f"Upload {form} checkpoint",
            force=force,
            dry_run=dry_run,
        )


def upload_saved(
    part: LlmAsrPreTrainedModel | LlmAsrProcessor,
    working_dir: str | os.PathLike,
    repo_id: str,
    files_timestamps: dict[str, float],
    commit_message: str | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo | None:
    """
    Complete a saved model or processor and push it as [`push_checkpoint`] does. The methods `push_to_hub` and
    `save_pretrained(push_to_hub=True)` of models and processors call this function instead of
    `PushToHubMixin._upload_modified_files`.

    A model is pushed with the processor in the same folder. Without one, it is pushed with the processor of the checkpoint
    from which the model was loaded. A processor is pushed without a model, but with the package's code.

    Raises:
        `ValueError`: If a model has no processor, or the push would overwrite unknown work in the repository.
    """
    working_dir = Path(working_dir)
    is_model = isinstance(part, LlmAsrPreTrainedModel)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary, "staged")
        if isinstance(part, LlmAsrPreTrainedModel):
            saved = Path(temporary, "saved")
            link_parts(working_dir, saved)
            if not (saved / PROCESSOR_NAME).exists():
                _find_processor(part).save_pretrained(saved)
            stage_checkpoint(saved, staged)
        else:
            link_parts(working_dir, staged)
            add_processor_code(staged)
        report = _push_from_memory(
            HfApi(token=token),
            staged,
            repo_id,
            revision or constants.DEFAULT_REVISION,
            [part],
            commit_message=commit_message or f"Upload {'model' if is_model else 'processor'}",
            commit_description=commit_description,
            create_pr=create_pr,
        )
    return report.commit


def _push_from_memory(
    api: HfApi,
    staged: Path,
    repo_id: str,
    revision: str,
    parts: list[LlmAsrPreTrainedModel | LlmAsrProcessor],
    parent_commit: str | None = None,
    **kwargs,
) -> PushReport:
    """Push the staged files of `parts` and record the new commit for them."""
    place = _place(api, repo_id, revision)
    models = [part for part in parts if isinstance(part, LlmAsrPreTrainedModel)]
    report = _push(
        api,
        staged,
        repo_id,
        revision,
        known={parent_commit, *map(_loaded_commit, models), *(PUSHED.get(part, {}).get(place) for part in parts)},
        add_card=lambda: write_model_card(staged, repo_id=repo_id, pictures=False) if models else None,
        replaces_all=bool(models),
        **kwargs,
    )
    if report.commit is not None and not kwargs.get("create_pr"):
        for part in parts:
            PUSHED.setdefault(part, {})[place] = report.commit.oid
    return report


def _find_processor(model: LlmAsrPreTrainedModel) -> LlmAsrProcessor:
    try:
        return LlmAsrProcessor.from_pretrained(model.name_or_path, revision=_loaded_commit(model))
    except (OSError, ValueError) as error:
        raise ValueError(
            "The model was not loaded from a checkpoint with a processor, and a model without a processor cannot be used. "
            "Push both with `llm_asr.publishing.push.push_to_hub(model, processor, repo_id)`."
        ) from error


def _loaded_commit(model: LlmAsrPreTrainedModel) -> str | None:
    return vars(model.config).get("_commit_hash")


def _place(api: HfApi, repo_id: str, revision: str) -> str:
    return f"{api.endpoint}/{repo_id}/tree/{revision}"


def _known_commits(folder: Path, place: str) -> set[str | None]:
    """The commit from which a folder was downloaded, in the records of `huggingface_hub`, and the commit of its last push."""
    known = {(read_json(folder / RECORD_PATH) or {}).get(place), extract_commit_hash(str(folder / CONFIG_NAME), None)}
    for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        metadata = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        if metadata.is_file():
            known.add(metadata.read_text(encoding="utf-8").partition("\n")[0])
    return known


def _record(folder: Path, place: str, commit: str) -> None:
    path = folder / RECORD_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**(read_json(path) or {}), place: commit}, indent=1) + "\n", encoding="utf-8")


def _push(
    api: HfApi,
    staged: Path,
    repo_id: str,
    revision: str,
    *,
    commit_message: str,
    known: Collection[str | None],
    add_card: Callable[[], object],
    private: bool | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    dry_run: bool = False,
    replaces_all: bool = True,
) -> PushReport:
    """
    Create the commit. Files may be replaced on top of the commits `known`. `add_card` writes a model card to `staged`.
    """
    parent, is_new_branch = _find_parent(api, repo_id, revision)
    present = {} if parent is None else _list_files(api, repo_id, parent)
    if CARD_NAME not in present and not (staged / CARD_NAME).exists():
        add_card()
    additions = {
        path.relative_to(staged).as_posix(): CommitOperationAdd(path.relative_to(staged).as_posix(), str(path))
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    changed = {path: addition for path, addition in additions.items() if not _is_the_same(addition, present.get(path))}
    deletions = sorted(path for path in present if replaces_all and is_part(path) and path not in additions)
    lost = sorted({*deletions, *(path for path in changed if path in present)})
    if lost and parent not in known and not (force or create_pr or is_new_branch):
        raise ValueError(
            f"This checkpoint is not based on {parent}, the newest commit of {repo_id}, branch {revision}. The push would "
            f"replace {', '.join(lost[:3])}{f' and {len(lost) - 3} others' if len(lost) > 3 else ''}. Look at that commit. To "
            "replace its files, pass `parent_commit` or `force` to `push_checkpoint` or `push_to_hub` of "
            "`llm_asr.publishing.push`, or `--parent` or `--force` to `llm-asr push`. The commit stays in the history."
        )
    report = PushReport(
        repo_id=repo_id,
        revision=revision,
        parent_commit=parent,
        uploads={path: (one.upload_info.size, _is_large(one)) for path, one in changed.items()},
        unchanged=tuple(path for path in additions if path not in changed),
        deletions=tuple(deletions),
    )
    if dry_run:
        return report
    if parent is None:
        api.create_repo(repo_id, private=private)
        parent, is_new_branch = _find_parent(api, repo_id, revision)
        report = replace(report, parent_commit=parent)
    if is_new_branch and not create_pr:
        # Create the branch after the upload, so that a failed upload leaves no branch behind.
        api.preupload_lfs_files(repo_id, changed.values(), free_memory=False)
        api.create_branch(repo_id, branch=revision, revision=parent, exist_ok=True)
    try:
        commit = api.create_commit(
            repo_id,
            [*changed.values(), *map(CommitOperationDelete, deletions)],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            parent_commit=parent,
            create_pr=create_pr,
        )
    except HfHubHTTPError as error:
        if error.response.status_code == 412:
            raise ValueError(
                f"Somebody has pushed to {repo_id}, branch {revision}, meanwhile; look at that commit, and push again."
            ) from error
        raise
    return replace(report, commit=commit)


def _find_parent(api: HfApi, repo_id: str, revision: str) -> tuple[str | None, bool]:
    """The newest commit of a branch and `False`. If the branch does not exist, the newest commit of `main` and `True`."""
    try:
        return api.model_info(repo_id, revision=revision).sha, False
    except RevisionNotFoundError:
        return api.model_info(repo_id).sha, True
    except RepositoryNotFoundError:
        return None, False


def _list_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_the_same(addition: CommitOperationAdd, present: RepoFile | None) -> bool:
    if present is None or present.size != addition.upload_info.size:
        return False
    if present.lfs is not None:
        return present.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return present.blob_id == git_hash(file.read())


def _is_large(addition: CommitOperationAdd) -> bool:
    """Whether the Hub stores a file in LFS. The Hub decides by the size and the first bytes of the file."""
    return addition.upload_info.size > MAX_TEXT_SIZE or b"\0" in addition.upload_info.sample


__all__ = ["PushReport", "push_checkpoint", "push_to_hub", "upload_saved"]
