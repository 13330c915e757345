"""What a network looks at."""
from .complexity import multiply_adds
from .plots import focus_sheet
