"""What a network looks at, and what it costs."""
from .complexity import multiply_adds
from .focus_area import FocusArea, coverage_ratio, focus_area, last_map, threshold_map
from .plots import coverage_plot, focus_sheet
from .receptive_field import ReceptiveField, receptive_field
from .step_cost import StepCost, peak_bytes, saved_bytes, step_cost, training_flops
