"""Keeps tokens and signed storage addresses out of messages and logs."""
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
CLIENTS = ('httpx', 'httpx2', 'httpcore', 'httpcore2', 'urllib3', 'fsspec')  # these log the address of each request
LOOKS_LIKE = (
    (re.compile(r'(\bauthorization\b[\'"]?\s*[:=]\s*[\'"]?)(?:(?:bearer|basic|token)\b\s*)?[^\s\'",;<>}]+', re.I),
     r'\1'),
    (re.compile(r'(\bbearer\s+)[\w.~+/=-]{6,}', re.I), r'\1'),
    # but not a step of a path, or a function of huggingface_hub
    (re.compile(r'(?<![A-Za-z0-9/])(hf_)(?!hub_)(?:[a-z]+_)?[A-Za-z0-9]{6,}(?![\w-]*/)'), r'\1'),
    (re.compile(r'(://)[^/\s@\'"]+(?=@)'), r'\1'),
    (re.compile(r'(https?://[^\s?\'"<>]+\?)[^\s\'"<>]+'), r'\1'),  # the signature of a signed address is in its query
)


def redact(text: str) -> str:
    """Remove this user's Hub tokens from a text, and everything that looks like a token or a part of one."""
    for token in _tokens():
        text = text.replace(token, HIDDEN)
    for pattern, kept in LOOKS_LIKE:
        text = pattern.sub(f'{kept}{HIDDEN}', text)
    return text


def _tokens() -> List[str]:
    """Tokens from the environment and the client's file, in every form that may be sent, the longest first."""
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
    """Redact all log records and warnings for a while, and let HTTP clients log warnings only."""
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    levels = {logger: logger.level for logger in map(logging.getLogger, CLIENTS)}

    def make_redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a wrong format, which the handler reports
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
