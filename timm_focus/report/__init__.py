"""The page that compares runs: facts.py what a run says of itself, measure.py what it says of images, compare.py what
differs, charts.py and page.py how that is shown."""
from .compare import Comparison, choose
from .facts import Run, read_run
from .measure import Measured, Shown, explain_images, measure, thumbnails, view
from .page import Gallery, build_page, find_page, listed_confusions, page_images
