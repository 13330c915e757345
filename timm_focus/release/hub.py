"""Pushes models to the Hugging Face Hub and loads them from it."""
import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import timm
from huggingface_hub import (
    CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, hf_hub_download)
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import SafetensorError
from torch import nn

from timm_focus.method import FocusNet
from timm_focus.utils.hub_errors import explanation, short
from timm_focus.utils.secrets import discreet
from timm_focus.utils.weight_files import read_weight_file

from .export import CARD, CONFIG, FILES, HEADS, REPORT, is_export, read_config, save_for_hub
from .folder import some_names
from .publication import Publication

__all__ = ['HubError', 'check_push', 'create_from_hub', 'list_export', 'push_export', 'push_folder', 'push_to_hub']

_logger = logging.getLogger(__name__)

LIBRARY = 'timm_focus'
PICKLES = ('.bin', '.pt', '.pth', '.tar', '.ckpt', '.pkl', '.pickle', '.npy', '.npz')
COMMIT = set('0123456789abcdef')
HUB, LOCAL = 'hf-hub:', 'local-dir:'


class HubError(OSError):
    """The Hub cannot be reached or refuses; the message says what happened and how to go on."""


def check_push(publication: Publication) -> None:
    """Refuse a push that cannot succeed (wrong name, no token, offline mode) before any work is done for it.

    Raises:
        ValueError: One of these is wrong. The message never shows the token.
    """
    publication.check_where()
    if constants.HF_HUB_OFFLINE:
        raise ValueError('HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.')
    if not _token():
        raise ValueError(
            'There is no token of the Hub: `hf auth login` keeps one, or HF_TOKEN names it; it has to allow writing.')


def _token() -> Optional[str]:
    """The user's token, as huggingface_hub finds it."""
    with _as_hub_error('', ''):
        return get_token()


def list_export(folder: Union[str, Path]) -> List[Tuple[str, int]]:
    """List names and sizes of the files of an export to push, without hidden files and leftovers of editors.

    Raises:
        ValueError: The folder is no export, or holds weights of a format that can run code.
    """
    folder = Path(folder)
    if not is_export(folder):
        raise ValueError(f'{folder} is no export: model.safetensors and config.json are not both there.')
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    names = [p.relative_to(folder) for p in files]
    names = [n for n in names
             if not any(part.startswith('.') for part in n.parts) and not n.name.endswith(('~', '.tmp'))]
    for name in names:
        if name.name.lower().endswith(PICKLES):
            raise ValueError(f'{folder / name} may hold code that runs when it is loaded: only safetensors are pushed.')
    return [(n.as_posix(), (folder / n).stat().st_size) for n in names]


def push_to_hub(
        model: nn.Module,
        repo_id: str,
        *,
        folder: Union[None, str, Path] = None,
        private: bool = False,
        create_pr: bool = False,
        revision: Optional[str] = None,
        overwrite: bool = False,
        **about: Any,
) -> str:
    """Publish a model on the Hugging Face Hub as a plain timm model, with its heads and its card.

    Args:
        model: A `FocusNet` or a plain timm model; it may be compiled, in DDP or in any memory format.
        repo_id: 'user/name'. The repository is made if it is not there.
        folder: Folder to keep the export in; by default it is deleted after a successful push.
        private: Make the repository visible to its owner only.
        create_pr: Open a pull request instead of writing to the branch.
        revision: Branch to push to (default: main).
        overwrite: Allow replacing files in the repository.
        **about: Arguments of `save_for_hub`; license and dataset are required.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        ValueError: An argument makes no sense; nothing was written.
        HubError: The Hub cannot be reached, or refuses. The export is whole, and the message says where.
        OSError: The export cannot be written.
    """
    publication = Publication(
        repo_id, private=private, create_pr=create_pr, revision=revision or '', overwrite=overwrite)
    check_push(publication)
    kept = folder is not None
    place = Path(folder or os.path.join(tempfile.mkdtemp(prefix='timm_focus_'), repo_id.split('/')[-1]))
    try:
        save_for_hub(model, place, repo_id=repo_id, **{'license': '', 'dataset': '', **about})
    except BaseException:
        if not kept:
            shutil.rmtree(place.parent, ignore_errors=True)
        raise
    url = push_export(place, publication)
    if not kept:
        shutil.rmtree(place.parent, ignore_errors=True)
    return url


def push_folder(
        folder: Union[str, Path],
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        revision: Optional[str] = None,
        overwrite: bool = False,
) -> str:
    """Publish an export of `save_for_hub` as it is, in one commit. The folder is left as it was, whatever happens.

    Files in the repository are only replaced with `overwrite`, and never those that arrived during the push. After a
    push that broke off, files that arrived are not sent again.

    Arguments, result and errors are those of `push_to_hub`.
    """
    return push_export(folder, Publication(
        repo_id, private=private, create_pr=create_pr, revision=revision or '', overwrite=overwrite))


@discreet()
def push_export(folder: Union[str, Path], publication: Publication) -> str:
    """Publish an export as `push_folder` does, with the repository and options of a `Publication`."""
    folder, repo_id, create_pr = Path(folder), publication.repo_id, publication.create_pr
    check_push(publication)
    names = [name for name, _ in list_export(folder)]
    _refuse_secrets(folder, names)
    if (folder / CARD).is_file() and repo_id not in (folder / CARD).read_text('utf-8'):
        _logger.warning(f'{folder / CARD} does not name {repo_id}: look through what it says on loading.')
    again = f'The export is whole in {folder}: `{publication.again(folder)}` goes on with it.'
    api = HfApi(library_name=LIBRARY)
    with _as_hub_error(repo_id, again, writing=True):
        parent, there, new_branch = _prepare(api, publication, again)
        same = _same(folder, names, there)
        if there and not (same or create_pr or publication.overwrite):
            over = dataclasses.replace(publication, overwrite=True).again(folder)
            raise HubError(
                f'{repo_id} has files already ({some_names(sorted(there))}), and nothing is overwritten without being '
                f'asked. The export is whole in {folder}: `{over}` replaces them, --create-pr instead of --overwrite '
                'proposes it.')
        if new_branch:
            api.create_branch(repo_id, branch=publication.revision)
        if same and not create_pr:
            _logger.info(f'{repo_id} has all of it already.')
            return f'{api.endpoint}/{repo_id}'
        # files of an earlier push that this one lacks, such as heads, must not stay beside other weights
        gone = [name for name in (*FILES, REPORT) if name in there and name not in names]
        if gone:
            _logger.info(f'{", ".join(gone)} of {repo_id} goes, not being of these weights; its history keeps it.')
        commit = api.create_commit(
            repo_id,
            [*(CommitOperationAdd(name, str(folder / name)) for name in names),
             *(CommitOperationDelete(name) for name in gone)],
            commit_message=f'Add {_architecture(folder)} trained with timm_focus',
            revision=publication.revision or None, create_pr=create_pr, parent_commit=parent)
    return commit.pr_url or commit.commit_url


def _prepare(api: HfApi, publication: Publication, again: str) -> Tuple[Optional[str], Dict[str, Any], bool]:
    """Make the repository if it is not there, and check that it is private if that was asked for.

    Returns:
        The branch's commit, its files by name, and whether the branch is still to be made, in which case it starts
        from the main branch.
    """
    repo_id, private, revision = publication.repo_id, publication.private, publication.revision
    try:
        info = api.model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError:
        if publication.create_pr:
            raise
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: the Hub's or organisation's default
        info = api.model_info(repo_id, files_metadata=True)  # the actual state, whatever was asked for
    if private and not info.private:
        how = 'public' if info.private is False else 'not known to be private'
        raise HubError(
            f'{repo_id} was to be private, and is {how} on {api.endpoint}: nothing was sent. Make it private there, '
            f'give another name, or leave out {publication.flag("private")}. {again}')
    new_branch = False
    if revision not in ('', constants.DEFAULT_REVISION):
        try:
            info = api.model_info(repo_id, revision=revision, files_metadata=True)
        except RevisionNotFoundError:
            new_branch = True
    sha = info.sha if info.sha and len(info.sha) == 40 and set(info.sha) <= COMMIT else None
    there = {s.rfilename: s for s in info.siblings or () if s.rfilename != '.gitattributes'}
    return sha, there, new_branch


def _same(folder: Path, names: List[str], there: Dict[str, Any]) -> bool:
    """Whether a repository already has exactly these files, as after a push whose answer was lost."""
    if set(names) != set(there):
        return False
    for name in names:
        remote = there[name]
        with open(folder / name, 'rb') as f:
            if remote.lfs is not None:
                same = sha_fileobj(f).hex() == remote.lfs['sha256']
            else:
                same = git_hash(f.read()) == remote.blob_id
        if not same:
            return False
    return True


def _architecture(folder: Path) -> str:
    return str(read_config(folder / CONFIG)[0].get('architecture'))


def _refuse_secrets(folder: Path, names: List[str]) -> None:
    """Refuse to publish a file that contains the user's token."""
    token = (_token() or '').encode()
    for name in names:
        if not name.endswith('.safetensors') and token and token in (folder / name).read_bytes():
            raise ValueError(f'{folder / name} contains your token of the Hub: take it out.')


@contextlib.contextmanager
def _as_hub_error(repo_id: str, again: str, writing: bool = False) -> Iterator[None]:
    """Turn errors of the Hub's client into a `HubError`: what happened and how to go on, without the token."""
    try:
        yield
    except HubError:
        raise
    except Exception as e:  # from the client and the HTTP library of its version
        # not `from e`: a traceback must not print a request with its header
        raise HubError(f'{explanation(e, repo_id, writing)} {again}'.strip()) from None


@discreet()
def create_from_hub(source: str, **kwargs: Any) -> FocusNet:
    """Load the focus model of a repository made by `push_to_hub`, with its heads, bit for bit, to go on training.

    Args:
        source: 'user/name' or 'user/name@revision', or 'local-dir:FOLDER' for a local copy.
        **kwargs: `focus_*` arguments replace those of the training; all others go to timm's `create_model`.

    Returns:
        A `FocusNet` in training mode, as timm's models are when created.

    Raises:
        ValueError: The repository has no heads, or they do not fit.
        HubError: The Hub cannot be reached or refuses.
    """
    source = source.removeprefix(HUB)
    local = source.startswith(LOCAL)
    if not local:
        Publication(source.partition('@')[0]).check_where()
    _, focus_args = read_config(_fetch(source, CONFIG))
    if not focus_args:
        name = source if local else f'{HUB}{source}'
        raise ValueError(
            f'{source} is a plain model, without heads of focus training: timm.create_model({name!r}, pretrained=True) '
            'loads it, and FocusNet gives it new ones.')
    path = _fetch(source, HEADS)
    focus_args.update({k: kwargs.pop(k) for k in list(kwargs) if k.startswith('focus_')})
    try:
        heads = read_weight_file(path)
        with contextlib.nullcontext() if local else _as_hub_error(source, ''):
            backbone = timm.create_model(source if local else f'{HUB}{source}', pretrained=True, **kwargs)
    except (AssertionError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as e:
        raise ValueError(f'{source} cannot be loaded: {short(e)}.') from e
    try:
        model = FocusNet(backbone, **focus_args)
        own = {k for k in model.state_dict() if not k.startswith('backbone.')}
        if own != set(heads):
            raise ValueError(f'there are {", ".join(sorted(heads))}, not {", ".join(sorted(own))}')
        model.load_state_dict(heads, strict=False)
    except (RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f'The heads of {source} do not fit its model: {short(e)}.') from e
    return model


def _fetch(source: str, name: str) -> str:
    """Path of a file of a source, downloaded if needed."""
    if not source.startswith(LOCAL):
        repo_id, _, revision = source.partition('@')
        with _as_hub_error(repo_id, ''):
            return hf_hub_download(repo_id, name, revision=revision or None, library_name=LIBRARY)
    path = os.path.join(source.removeprefix(LOCAL), name)
    if not os.path.isfile(path):
        raise ValueError(f'There is no {path}.')
    return path
