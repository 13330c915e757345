"""Helpers that every part of the package may use. They import no other part."""
from .files import FileError, copy_whole, is_scratch, open_whole, write_whole
from .text import shown, some
