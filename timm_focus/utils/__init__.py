"""What every part of the package may use; it knows none of them."""
from .files import FileError, copy_whole, is_scratch, open_whole, write_whole
from .text import shown, some
