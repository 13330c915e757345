"""Selects the settings to publish: those that reproduce the run, and nothing about the machine."""
import os
import re
from typing import Any, Dict

from timm_focus.runs.kinds import PRIVATE

__all__ = ['published_settings']

NAMES = re.compile(f'({"|".join(PRIVATE)})$', re.I)
# paths, tokens of the Hub, and addresses that may contain a password
LOCAL = re.compile(r'(^|[\s:=,;\'"])(~?/|\.{1,2}/|~$|[A-Za-z]:[\\/]|\\\\|file:)')
SECRET = re.compile(r'\bhf_\w{8,}|://[^/\s]*@|[?&](token|key|sig|signature|x-amz-[a-z-]+)=', re.I)
NO_TEXT = re.compile('[\x85\ud800-\udfff]')  # a control character that YAML loses; bytes that are no UTF-8
PLAIN = (bool, int, float, str, type(None))


def published_settings(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Remove private values from the settings of train_focus.py or timm's train.py.

    This removes local paths under any name, accounts of trackers, credentials, devices and processes. The rest can be
    the `--config` of another run, on data of its own.

    Args:
        settings: Values by name.
    """
    shown = ((str(k), _published(v)) for k, v in settings.items()
             if not NAMES.match(str(k)) and not NO_TEXT.search(str(k)))
    return {k: v for k, v in shown if v is not _WITHHELD}


_WITHHELD = object()


def _published(value: Any) -> Any:
    """A value without its private parts; `_WITHHELD` if nothing is left."""
    if isinstance(value, dict):
        return published_settings(value)
    if isinstance(value, (list, tuple)):
        items = [_published(v) for v in value]
        return _WITHHELD if any(v is _WITHHELD for v in items) else items
    if not isinstance(value, PLAIN):
        return _WITHHELD
    if isinstance(value, str) and (
            NO_TEXT.search(value) or LOCAL.search(value) or SECRET.search(value) or value in _secrets()
            or os.path.isfile(value)):
        return _WITHHELD
    return value


def _secrets() -> set:
    """Credentials in this process's environment."""
    return {v for k, v in os.environ.items() if re.search('TOKEN|SECRET|PASSWORD|API_?KEY', k) and v}
