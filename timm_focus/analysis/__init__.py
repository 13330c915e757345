"""What a network looks at."""
from .plots import focus_sheet
