"""Pictures of API requests: read with their side-cars, embedded, classified. Knows nothing about HTTP."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.desk.answering import Reader, read_images
from serve.http.conversation import ApiError, SentPicture, image_bytes
from serve.http.schemas import (
    Classification,
    ClassificationReply,
    ClassificationRequest,
    EmbeddedPicture,
    EmbeddingRequest,
    Score,
)

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph
    from serve.desk.desk import Desk


def read_picture(picture: SentPicture, *, pixel_size_nm: float | None, read: Reader | None) -> Micrograph:
    """Read a picture, with its side-car beside it where one was sent. Raises MicrographError."""
    if picture.sidecar is None:
        return read_images([picture.data], pixel_size_nm=pixel_size_nm, read=read)[0]
    with tempfile.TemporaryDirectory(prefix="maemi-") as folder:  # readers look for side-cars on a disk
        file = Path(folder, "picture")
        file.write_bytes(picture.data)
        ending = ".hdr" if picture.sidecar.name.lower().endswith(".hdr") else ".txt"
        file.with_name(f"picture{ending}").write_text(picture.sidecar.text, encoding="utf-8")
        (micrograph,) = read_images([file], pixel_size_nm=pixel_size_nm, read=read)
    return replace(micrograph, source=None)


def embed(asked: EmbeddingRequest, desk: Desk) -> dict[str, Any]:
    """The `list` of embeddings, in the order of the inputs. Raises ApiError and MicrographError."""
    inputs = asked.input if isinstance(asked.input, list) else [asked.input]
    uris = [
        one.image if isinstance(one, EmbeddedPicture) else one if one[:11].lower() == "data:image/" else None
        for one in inputs
    ]
    texts = [str(one) for one, uri in zip(inputs, uris, strict=True) if uri is None]
    images = [read_images([image_bytes(uri)], read=desk.reader)[0] for uri in uris if uri is not None]
    of_images, of_texts = (iter(vectors) for vectors in desk.answerer.embed(images=images, texts=texts))
    vectors = [next(of_texts if uri is None else of_images) for uri in uris]
    if asked.dimensions not in (None, len(vectors[0])):
        raise ApiError(400, "invalid_value", f"dimensions: this model has {len(vectors[0])}.", "dimensions")
    arrays = [vector.astype("<f4") for vector in vectors]
    if asked.encoding_format == "base64":
        encoded = [base64.b64encode(array.tobytes()).decode() for array in arrays]
    else:
        encoded = [array.tolist() for array in arrays]
    data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(encoded)]
    tokens = sum(map(desk.count_tokens, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": desk.answerer.name, "usage": usage}


def classify_pictures(asked: ClassificationRequest, desk: Desk) -> dict[str, Any]:
    """Scores of every picture, in order. Raises ApiError, ConfigError and MicrographError."""
    if len(set(asked.labels)) != len(asked.labels):
        raise ApiError(400, "invalid_value", "labels: one of them stands twice.", "labels")

    def pictures(uris: list[str]) -> list[Micrograph]:
        return read_images([image_bytes(uri) for uri in uris], read=desk.reader)

    examples = {label: pictures(uris) for label, uris in asked.examples.items()} if asked.examples else None
    scores = desk.answerer.classify(pictures(asked.images), asked.labels, examples=examples, top=asked.top)
    data = [
        Classification(index=n, scores=[Score(label=label, probability=p) for label, p in row], verdict=row[0][0])
        for n, row in enumerate(scores)
    ]
    return ClassificationReply(model=desk.answerer.name, data=data).model_dump(mode="json")
