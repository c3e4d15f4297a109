"""What evaluators share in reading records: images, texts, and embedding them in chunks."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from clipjax.data.bad import BadRecord
from clipjax.errors import ImageError, UserError


class Encoder(Protocol):
    """Turns images and texts into embeddings; the evaluators need nothing else of a model."""

    def images(self, params: Any, images: Sequence[Any]) -> np.ndarray:
        """Float32 [n, D], L2-normalised; `images` are encoded bytes or uint8 arrays."""
        ...

    def texts(self, params: Any, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, D], L2-normalised."""
        ...


def check_source(name: str, source: Sequence[Any]) -> None:
    """Refuses an empty source of evaluator `name`."""
    if not len(source):
        raise UserError(f"The source of evaluator {name!r} is empty.")


def field_of(record: dict[str, Any], field: str, where: str) -> Any:
    """A field of a record; UserError if it has none, with those that it has."""
    if field not in record:
        raise UserError(
            f"{where} has no field {field!r}; its fields are {', '.join(sorted(record))}."
        )
    return record[field]


@contextlib.contextmanager
def naming_records(name: str, records: Sequence[int]) -> Iterator[None]:
    """Within it, an image that cannot be used is named by the record of evaluator `name` that has it.

    Args:
        name: of the evaluator.
        records: index of the record of each image that the encoder is given.
    """
    try:
        yield
    except ImageError as error:
        record = records[error.place]
        raise UserError(
            f"The image of record {record} of evaluator {name!r} cannot be used: {error.reason}."
        ) from error


def images_of(record: dict[str, Any]) -> list[Any]:
    """All images of a record: one, or every candidate of a list (training draws one of them)."""
    image = record.get("image")
    return list(image) if isinstance(image, (list, tuple)) else [image]


def texts_of(record: dict[str, Any], fields: Sequence[str], where: str) -> list[str]:
    """Distinct texts of a record in the named fields, in order.

    Raises:
        UserError: a field is missing or no field holds a text that is not blank.
    """
    found: dict[str, None] = {}
    for field in fields:
        value = field_of(record, field, where)
        for text in [value] if isinstance(value, str) else value:
            if text.strip():
                found[text] = None
    if not found:
        raise UserError(f"{where} has no text in {', '.join(map(repr, fields))}.")
    return list(found)


def embed_records(
    encoder: Encoder,
    params: Any,
    source: Sequence[dict[str, Any]],
    visit: Callable[[int, dict[str, Any]], None],
    chunk: int,
    name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds every image of every record in one pass over the source.

    Args:
        encoder: the encoder.
        params: parameters of the model.
        source: records.
        visit: called once for each record, with its index, as it goes by.
        chunk: images handed to the encoder at once; only those are in memory.
        name: of the evaluator, for errors.

    Returns:
        float32 embeddings [P, D] and int64 record indices [P].

    Raises:
        UserError: a record, or one of its images, cannot be used.
    """
    embeddings: list[np.ndarray] = []
    owners: list[int] = []
    waiting: list[Any] = []

    def embed(images: list[Any]) -> None:
        start = len(owners) - len(waiting)
        with naming_records(name, owners[start : start + len(images)]):
            embeddings.append(encoder.images(params, images))

    for index in range(len(source)):
        try:
            record = source[index]
        except BadRecord as error:
            raise UserError(
                f"Record {index} of evaluator {name!r} cannot be used: {error}."
            ) from error
        visit(index, record)
        images = images_of(record)
        owners += [index] * len(images)
        waiting += images
        while len(waiting) >= chunk:
            embed(waiting[:chunk])
            del waiting[:chunk]
    if waiting:
        embed(waiting)
    return np.concatenate(embeddings), np.array(owners, dtype=np.int64)


def embed_texts(encoder: Encoder, params: Any, texts: Sequence[str], chunk: int) -> np.ndarray:
    """Embeds texts in chunks; float32 [n, D]."""
    return np.concatenate([encoder.texts(params, part) for part in chunks(texts, chunk)])


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of at most `size` items."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
