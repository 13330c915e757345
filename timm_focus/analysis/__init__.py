"""Measures what a network looks at, and what it costs."""
from .class_map import ClassMap, classifier_map
from .complexity import multiply_adds
from .explain import Explanation, explain
from .faithfulness import Faithfulness, erase_highest, faithfulness, pixel_rank, random_maps
from .focus_area import FocusArea, coverage_ratio, focus_area, last_map, plain_model, threshold_map
from .plots import coverage_plot, explanation_plot, explanation_sheet, focus_sheet, save_figure
from .sizes import FINE, check_size, find_size
from .step_cost import StepCost, peak_bytes, saved_bytes, step_cost, training_flops
