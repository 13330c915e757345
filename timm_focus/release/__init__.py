"""Exports a trained model: as a folder, as ONNX, to the Hugging Face Hub."""
from .export import is_export, save_for_hub, save_onnx, save_plain
from .folder import check_free, written_whole
from .hub import HubError, check_push, create_from_hub, list_export, push_export, push_folder, push_to_hub
from .provenance import note_images
from .publication import Publication, add_publication_flags
from .run import export_run, planned_publication, push_run
from .settings import published_settings
