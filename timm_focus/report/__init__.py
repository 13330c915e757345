"""The page that compares runs.

facts.py reads what a run records about itself, measure.py measures runs on images, compare.py finds what differs, and
charts.py and page.py show it.
"""
from .compare import Comparison, choose
from .facts import Run, read_run
from .measure import Measured, Shown, explain_images, measure, thumbnails, view
from .page import Gallery, build_page, find_page, listed_confusions, page_images
