"""What ends a run with one sentence."""
from timm_focus.utils.errors import SettingsError, explained

__all__ = ['SettingsError', 'explained']
