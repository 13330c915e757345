"""Nothing secret in what is said and logged: tokens, and addresses of storage that are signed like one."""
import contextlib
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any, Iterator, List
from urllib.parse import quote

from huggingface_hub import constants

__all__ = ['discreet', 'redact']

ENVIRONMENT = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_API_TOKEN')
HIDDEN = '***'
CLIENTS = ('httpx', 'httpx2', 'httpcore', 'httpcore2', 'urllib3', 'fsspec')  # they log each request with its address
LOOKS_LIKE = (
    (re.compile(r'(\bauthorization\b[\'"]?\s*[:=]\s*[\'"]?)(?:(?:bearer|basic|token)\b\s*)?[^\s\'",;<>}]+', re.I),
     r'\1'),
    (re.compile(r'(\bbearer\s+)[\w.~+/=-]{6,}', re.I), r'\1'),
    (re.compile(r'(?<![A-Za-z0-9])(hf_)(?:[a-z]+_)?[A-Za-z0-9]{6,}'), r'\1'),
    (re.compile(r'(://)[^/\s@\'"]+(?=@)'), r'\1'),
    (re.compile(r'(https?://[^\s?\'"<>]+\?)[^\s\'"<>]+'), r'\1'),  # signed addresses are so by their query
)


def redact(text: str) -> str:
    """A text without this user's tokens of the Hub, and without anything that looks like one, whole or cut off."""
    for token in _tokens():
        text = text.replace(token, HIDDEN)
    for pattern, kept in LOOKS_LIKE:
        text = pattern.sub(f'{kept}{HIDDEN}', text)
    return text


def _tokens() -> List[str]:
    """Tokens of the environment and of the client's file, in every way that they may be written, the longest first."""
    raw = [os.environ.get(name, '') for name in ENVIRONMENT]
    try:
        raw.append(Path(constants.HF_TOKEN_PATH).read_text('utf-8'))
    except (OSError, UnicodeDecodeError):
        pass
    sent = [re.sub(r'[\r\n]', '', token).strip() for token in raw]  # as huggingface_hub sends it
    words = [word for token in raw for word in token.split()]
    written = {form for token in (*raw, *sent, *words)
               for form in (token, quote(token, safe=''), json.dumps(token)[1:-1], repr(token)[1:-1])}
    return sorted((form for form in written if len(form) > 3), key=len, reverse=True)


@contextlib.contextmanager
def discreet() -> Iterator[None]:
    """While this lasts, what is logged or warned of is redacted, and HTTP clients log their warnings alone."""
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    levels = {logger: logger.level for logger in map(logging.getLogger, CLIENTS)}

    def make_redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # of a wrong format, which the handler tells
            return record
        if redact(text) != text:
            record.msg, record.args = redact(text), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(make_redacted_record)
    warnings.formatwarning = lambda *args, **kwargs: redact(format_warning(*args, **kwargs))
    for logger, level in levels.items():
        logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning
        for logger, level in levels.items():
            logger.setLevel(level)
