"""To the Hugging Face Hub and back."""
import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import timm
from huggingface_hub import (
    CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, hf_hub_download)
from huggingface_hub.utils import (
    HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, validate_repo_id)
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from timm_focus.method import FocusNet

from .export import CARD, CONFIG, FILES, HEADS, check_about, is_export, read_config, save_for_hub

__all__ = ['HubError', 'check_publication', 'check_push', 'create_from_hub', 'list_export', 'push_folder',
           'push_to_hub']

_logger = logging.getLogger(__name__)

LIBRARY = dict(library_name='timm_focus')
PICKLES = ('.bin', '.pt', '.pth', '.tar', '.ckpt', '.pkl', '.pickle', '.npy', '.npz')
COMMIT = set('0123456789abcdef')
HUB, LOCAL = 'hf-hub:', 'local-dir:'


class HubError(OSError):
    """The Hub cannot be reached, or refuses: what happened, and how to go on."""


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no `user/name`.

    Raises:
        ValueError: It is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise ValueError(f'{repo_id!r} is no user/name of a Hub repository: {" ".join(str(e).split())}') from None
    if str(repo_id).count('/') != 1:
        raise ValueError(f'{repo_id!r} is no user/name of a Hub repository: give both, with one slash.')


def check_push(repo_id: str) -> None:
    """Refuse a push that cannot be, before anything is done for it: a wrong name, no token, no network wanted.

    Raises:
        ValueError: That, in a sentence. The token itself is never shown.
    """
    check_repo_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise ValueError('HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or give --dry-run.')
    if not _token():
        raise ValueError(
            'There is no token of the Hub: `hf auth login` keeps one, or HF_TOKEN names it; it has to allow writing.')


def check_publication(repo_id: str, license: str, dataset: str) -> None:
    """`check_push`, and whether licence and data set are given; what a run asks before it trains for days.

    Raises:
        ValueError: What is missing.
    """
    check_push(repo_id)
    check_about(license, dataset)


def _token() -> Optional[str]:
    """The token from where huggingface_hub keeps it."""
    with _explained('', ''):
        return get_token()


def list_export(folder: Union[str, Path]) -> List[Tuple[str, int]]:
    """Names and sizes of what is pushed of an export: its files, but hidden ones and what editors leave behind.

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
    """Publish a model on the Hugging Face Hub, as the plain timm model that it is, with its heads and its card.

    Args:
        model: A `FocusNet` or a plain timm model, also compiled, in DDP or in any memory format.
        repo_id: 'user/name'. The repository is made if it is not there.
        folder: Where the export is kept; by default it is gone after a push that succeeds.
        private: Only its owner sees it.
        create_pr: Open a pull request instead of writing to the branch.
        revision: Branch (default: main).
        overwrite: Replace the files of a repository that has some.
        **about: As `save_for_hub`; license and dataset are required.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        ValueError: Something makes no sense; nothing was written.
        HubError: The Hub cannot be reached, or refuses. The export is whole, and the message says where.
        OSError: The export cannot be written.
    """
    check_publication(repo_id, about.get('license', ''), about.get('dataset', ''))
    kept = folder is not None
    place = Path(folder) if kept else Path(tempfile.mkdtemp(prefix='timm_focus_')) / repo_id.split('/')[-1]
    try:
        save_for_hub(model, place, repo_id=repo_id, **about)
    except BaseException:
        if not kept:
            shutil.rmtree(place.parent, ignore_errors=True)
        raise
    url = push_folder(
        place, repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite)
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

    Nothing that is in a repository is replaced unless that is asked for, and nothing that came there meanwhile. What
    was sent before a push broke off is not sent again.

    Args, returns and raises: as `push_to_hub`.
    """
    folder = Path(folder)
    check_push(repo_id)
    names = [name for name, _ in list_export(folder)]
    _refuse_secrets(folder, names)
    if (folder / CARD).is_file() and repo_id not in (folder / CARD).read_text('utf-8'):
        _logger.warning(f'{folder / CARD} does not name {repo_id}: look through what it says on loading.')
    flags = ''.join(f' {flag}' for flag, on in (
        ('--private', private), ('--create-pr', create_pr), ('--overwrite', overwrite),
        (f'--revision {revision}', revision)) if on)
    again = f'The export is whole in {folder}: `timm-focus push {folder} {repo_id}{flags}` goes on with it.'
    api = HfApi(**LIBRARY)
    with _explained(repo_id, again):
        parent, there = _prepare(api, repo_id, private, create_pr, revision)
        if there and not create_pr and not overwrite:
            if _same(folder, names, there):
                _logger.info(f'{repo_id} has all of it already.')
                return f'{api.endpoint}/{repo_id}'
            raise HubError(
                f'{repo_id} has files already ({_some(there)}), and nothing is overwritten without being asked. The '
                f'export is whole in {folder}: `timm-focus push {folder} {repo_id}{flags} --overwrite` replaces them, '
                '--create-pr proposes that.')
        # what an earlier push had and this one has not, such as heads, must not stay beside other weights
        gone = [name for name in FILES if name in there and name not in names]
        commit = api.create_commit(
            repo_id,
            [*(CommitOperationAdd(name, str(folder / name)) for name in names),
             *(CommitOperationDelete(name) for name in gone)],
            commit_message=f'Add {_architecture(folder)} trained with timm_focus',
            revision=revision, create_pr=create_pr, parent_commit=parent)
    return commit.pr_url or commit.commit_url


def _prepare(
        api: HfApi,
        repo_id: str,
        private: bool,
        create_pr: bool,
        revision: Optional[str],
) -> Tuple[Optional[str], Dict[str, Any]]:
    """See to it that repository and branch are there: the commit that they are at, and their files by name."""
    try:
        info = api.model_info(repo_id, revision=revision or constants.DEFAULT_REVISION, files_metadata=True)
    except RevisionNotFoundError:
        if revision is None:  # a repository without a commit
            return None, {}
        api.create_branch(repo_id, branch=revision)
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    except RepositoryNotFoundError:
        if create_pr:
            raise
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return None, {}
    if private and info.private is False:
        raise HubError(
            f'{repo_id} is there and public, so --private cannot be had: give another name, or leave it out.')
    sha = info.sha if info.sha and len(info.sha) == 40 and set(info.sha) <= COMMIT else None
    return sha, {s.rfilename: s for s in info.siblings or () if s.rfilename != '.gitattributes'}


def _same(folder: Path, names: List[str], there: Dict[str, Any]) -> bool:
    """Whether a repository has just these files, as after a push whose answer was lost."""
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


def _some(names: Any) -> str:
    names = sorted(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _refuse_secrets(folder: Path, names: List[str]) -> None:
    """The last look before files become public."""
    token = (_token() or '').encode()
    for name in names:
        if not name.endswith('.safetensors') and token and token in (folder / name).read_bytes():
            raise ValueError(f'{folder / name} contains your token of the Hub: take it out.')


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _explained(repo_id: str, again: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into a `HubError` of what happened and how to go on, without the token."""
    try:
        yield
    except HubError:
        raise
    except Exception as e:  # of the client, and of the HTTP library that its version uses
        text = _explanation(e, repo_id)
        tokens = os.environ.get('HF_TOKEN'), os.environ.get('HUGGING_FACE_HUB_TOKEN'), _saved_token()
        for token in filter(None, tokens):
            text = text.replace(token, '***')
        # not `from e`: a traceback must not print a request with its header
        raise HubError(f'{text} {again}'.strip()) from None


def _saved_token() -> Optional[str]:
    try:
        return Path(constants.HF_TOKEN_PATH).read_text('utf-8').strip()
    except (OSError, UnicodeDecodeError):
        return None


def _explanation(error: BaseException, repo_id: str) -> str:
    """One or two sentences on an error of the client."""
    response = next((e.response for e in _causes(error) if getattr(e, 'response', None) is not None), None)
    kinds = [type(e).__name__ for e in _causes(error)]
    endpoint = constants.ENDPOINT
    if response is None:
        disk = next((e for e in _causes(error) if isinstance(e, OSError) and e.filename), None)
        if disk is not None and not isinstance(disk, ConnectionError):
            return f'{disk.filename} cannot be read or written: {disk.strerror}.'
        words = ('Connect', 'Timeout', 'Protocol', 'Network', 'Read', 'Write')
        if any(word in kind for kind in kinds for word in words):
            xet = not constants.HF_HUB_DISABLE_XET and 'huggingface.co' not in endpoint
            hint = ' A Hub without Xet storage needs HF_HUB_DISABLE_XET=1.' if xet else ''
            return f'The connection to {endpoint} cannot be made, or broke ({kinds[-1]}).{hint}'
        return f'The Hub cannot be used: {_short(error)}.'
    status = response.status_code
    if status == 401:
        return (f'{endpoint} does not know the token (401), or {repo_id} is private: `hf auth login`, or HF_TOKEN, '
                'with a token that is valid and allows writing.')
    if status == 403:
        return (f'The token does not allow this on {repo_id} (403): take one that may write there, another name, or '
                '--create-pr.')
    if status == 404:
        return (f'{endpoint} has no repository {repo_id}, or not this branch, or the token may not see it (404): check '
                'the name.')
    if status in (409, 412):
        return f'{repo_id} was changed by somebody else meanwhile ({status}): have a look at it.'
    if status == 429:
        wait = response.headers.get('Retry-After')
        return f'{endpoint} asks for fewer requests (429): wait {f"{wait} seconds" if wait else "some minutes"}.'
    if status >= 500:
        return f'{endpoint} has a fault ({status}): wait some minutes.'
    return f'{endpoint} refuses ({status}): {_short(error)}.'


def _short(error: BaseException) -> str:
    return ' '.join(str(error).split()).rstrip('.')[:300] or type(error).__name__


def create_from_hub(source: str, **kwargs: Any) -> FocusNet:
    """The focus model of a Hub repository that `push_to_hub` made, with its heads, bit for bit, to go on training.

    Args:
        source: 'user/name', or 'user/name@revision'; of a local copy 'local-dir:FOLDER'.
        **kwargs: `focus_*` arguments replace those that it was trained with; all others are of timm's `create_model`.

    Returns:
        A `FocusNet`, in training mode, as timm's models are.

    Raises:
        ValueError: It has no heads, or they do not fit.
        HubError: It cannot be loaded.
    """
    source = source.removeprefix(HUB)
    local = source.startswith(LOCAL)
    if not local:
        check_repo_id(source.partition('@')[0])
    _, focus_args = read_config(_fetch(source, CONFIG))
    if not focus_args:
        name = source if local else f'{HUB}{source}'
        raise ValueError(
            f'{source} is a plain model, without heads of focus training: timm.create_model({name!r}, pretrained=True) '
            'loads it, and FocusNet gives it new ones.')
    path = _fetch(source, HEADS)
    focus_args.update({k: kwargs.pop(k) for k in list(kwargs) if k.startswith('focus_')})
    try:
        heads = load_file(path)
        with contextlib.nullcontext() if local else _explained(source, ''):
            backbone = timm.create_model(source if local else f'{HUB}{source}', pretrained=True, **kwargs)
    except (AssertionError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as e:
        raise ValueError(f'{source} cannot be loaded: {_short(e)}.') from e
    try:
        model = FocusNet(backbone, **focus_args)
        own = {k for k in model.state_dict() if not k.startswith('backbone.')}
        if own != set(heads):
            raise ValueError(f'there are {", ".join(sorted(heads))}, not {", ".join(sorted(own))}')
        model.load_state_dict(heads, strict=False)
    except (RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f'The heads of {source} do not fit its model: {_short(e)}.') from e
    return model


def _fetch(source: str, name: str) -> str:
    """Path of a file of a source, downloaded if it has to be."""
    if not source.startswith(LOCAL):
        repo_id, _, revision = source.partition('@')
        with _explained(repo_id, ''):
            return hf_hub_download(repo_id, name, revision=revision or None, **LIBRARY)
    path = os.path.join(source.removeprefix(LOCAL), name)
    if not os.path.isfile(path):
        raise ValueError(f'There is no {path}.')
    return path
