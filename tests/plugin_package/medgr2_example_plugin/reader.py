"""A data format: a file of lines `image<TAB>question<TAB>right option<TAB>wrong option<TAB>…`."""

from __future__ import annotations

from collections.abc import Iterator

from medgr2_jobs.data.record import BadField, BadRecord, Images, Place, Record
from medgr2_jobs.errors import DataError


def read(place: Place, *, question_type: str = "Question") -> Iterator[Record | BadRecord]:
    """The questions of a file, in its order.

    Raises:
        DataError: there is no such file.
    """
    if not place.path.is_file():
        raise DataError(f"{place.what}: {place.path} is not a file")
    images, folder = Images(place), place.images or place.path.parent
    for number, line in enumerate(place.keep_inside(place.path).read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{place.path.name}:{number}"
        try:
            image, question, *options = line.split("\t")
            if len(options) < 2:
                raise BadField("options", f"{len(options)} options; at least 2 are needed")
            answers = tuple(sorted(options))
            yield Record(
                question_id=where,
                image=images.get(folder, image, "image"),
                image_path=image,
                dataset=place.path.name,
                modality=place.modality,
                question_type=question_type,
                question=question,
                options=answers,
                answer_index=answers.index(options[0]),
            )
        except (BadField, ValueError) as error:
            field = error.field if isinstance(error, BadField) else "-"
            yield BadRecord(where, field, str(error))
