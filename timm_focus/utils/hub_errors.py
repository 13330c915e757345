"""Explains errors of the Hub's client in sentences."""
from typing import Any, Iterator, Optional, Set, Union

from huggingface_hub import constants

from .secrets import redact

__all__ = ['answered', 'explanation', 'short']


def explanation(error: BaseException, repo_id: str, writing: bool = False) -> str:
    """Explain an error of the Hub's client in a sentence or two, with the server's own message, without the token.

    Args:
        error: What the client, or the HTTP library that its version uses, raised.
        repo_id: The repository.
        writing: Whether it was to be written to, or read.
    """
    return redact(_explanation(error, repo_id, writing))


def _explanation(error: BaseException, repo_id: str, writing: bool) -> str:
    response = _first(error, 'response')
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
        return f'The Hub cannot be used: {short(error)}.'
    status = response.status_code
    wait = response.headers.get('Retry-After')
    may_not = {
        401: f'{endpoint} does not know the token (401), or {repo_id} is private: `hf auth login`, or HF_TOKEN, with a '
             'token that is valid and allows writing.',
        403: f'The token does not allow this on {repo_id} (403): take one that may write there, another name, or open '
             'a pull request.',
    } if writing else {
        401: f'{repo_id} is not on {endpoint}, or is private or gated and the token may not read it (401): check the '
             'name; `hf auth login`, or HF_TOKEN, gives a token.',
        403: f'The token may not read {repo_id} (403): ask for access on its page, or give another token by `hf auth '
             'login` or HF_TOKEN.',
    }
    meanings = {
        **may_not,
        404: f'{endpoint} has no repository {repo_id}, or not this branch, or the token may not see it (404): check '
             'the name.',
        409: f'{repo_id} was changed by somebody else meanwhile (409): have a look at it.',
        412: f'{repo_id} was changed by somebody else meanwhile (412): have a look at it.',
        429: f'{endpoint} asks for fewer requests (429): wait {f"{wait} seconds" if wait else "some minutes"}.',
    }
    if status in meanings:
        return meanings[status] + _said(error)
    if status >= 500:
        return f'{endpoint} has a fault ({status}): wait some minutes.{_said(error)}'
    return f'{endpoint} refuses ({status}): {short(error)}.'


def answered(error: BaseException) -> bool:
    """Whether a server's answer, rather than none, is what an error of the client comes from."""
    return _first(error, 'response') is not None


def _said(error: BaseException) -> str:
    """The server's own message as a sentence, '' if there is none."""
    words = _first(error, 'server_message')
    return f' The server says: {short(words)}.' if words else ''


def short(said: Union[BaseException, str]) -> str:
    """A text or an error as one line, redacted before it is cut, so that no part of a token is left at the cut."""
    return redact(' '.join(str(said).split())).rstrip('.')[:300] or type(said).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: Set[int] = set()
    at: Optional[BaseException] = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _first(error: BaseException, name: str) -> Any:
    """The value of an attribute of the first error that has it, among an error and its causes."""
    found = (getattr(e, name, None) for e in _causes(error))
    return next((value for value in found if value is not None), None)
