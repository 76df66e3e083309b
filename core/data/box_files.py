"""Box annotations of a folder or zip: PASCAL VOC's XML, COCO's JSON, YOLO's text files.

All readers return boxes as in core.boxes: (x1, y1, x2, y2), edges in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from zerokara.core.config import UserError, format_count
from zerokara.core.data.box_coco import read_coco
from zerokara.core.data.box_types import Listing, Read, name_some
from zerokara.core.data.box_voc import read_voc
from zerokara.core.data.box_yolo import read_yolo
from zerokara.core.data.image_files import SUFFIXES, is_hidden


def read_boxes(members: Sequence[str], read: Read, where: Path) -> Listing:
    """Read all annotations of a folder or archive, in the first format found of VOC, COCO and YOLO.

    Images are sorted by path. What is left out is named in the audit: annotations without an image, images without an
    annotation, and invalid boxes. Images that have annotations, but no valid one, are in `Listing.unusable`.

    Args:
        members: paths in the folder or archive.
        read: function that returns the bytes of a path.
        where: the folder or archive, for messages.

    Raises:
        UserError: none of the formats was found, a file is damaged, or an image is annotated twice.
    """
    files = [name for name in members if not name.endswith("/") and not is_hidden(name)]
    pictures = [name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        raise UserError(f"There are no images in {where}: give a folder or zip of images with box annotations.")
    for reader in (read_voc, read_coco, read_yolo):
        listing = reader(files, pictures, read, where)
        if listing.pictures:
            listing.pictures.sort(key=lambda annotated: annotated.picture)
            annotated: dict[str, str] = {}
            for each in listing.pictures:
                if each.picture in annotated:
                    raise UserError(
                        f"{each.picture} in {where} is annotated twice, by {annotated[each.picture]} and by "
                        f"{each.annotation_file}: remove one of the files."
                    )
                annotated[each.picture] = each.annotation_file
            listing.leave_out_images()
            if missing := [path for path in pictures if path not in annotated and path not in listing.unusable]:
                listing.audit.notes.append(
                    f"left out: {format_count(len(missing), 'image')} without an annotation: {name_some(missing)}"
                )
            return listing
    raise UserError(
        f"{where} has no box annotations: expected PASCAL VOC's XML in Annotations/, COCO's JSON with images and "
        f"annotations, or YOLO's text files next to the images or in labels/."
    )
