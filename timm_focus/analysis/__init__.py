"""What a network looks at, and what it costs."""
from .complexity import multiply_adds
from .focus_area import FocusArea, coverage_ratio, focus_area, last_map, threshold_map
from .plots import focus_sheet
