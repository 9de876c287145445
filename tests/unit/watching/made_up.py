"""A made-up sample, and event files as TensorBoard's own reader gives them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megafuser.watching.excerpts import Excerpt, ExcerptTurn, TokenValues


def excerpt(pieces: list[str], weights: list[list[float]], domain: str = "text") -> Excerpt:
    """One turn; the fused loss is 1 at every token."""
    values = TokenValues(np.ones(len(pieces)), np.ones((len(pieces), len(weights[0]))), np.array(weights))
    turn = ExcerptTurn("What is *this*?\n<b>", pieces, values)
    return Excerpt(domain, "id_1", response_tokens=9, shown_tokens=len(pieces), turns=[turn])


def read_events(directory: Path) -> EventAccumulator:
    """All of a directory's event files."""
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    events = EventAccumulator(str(directory), size_guidance=everything)
    events.Reload()
    return events


def image(events: EventAccumulator, tag: str) -> np.ndarray:
    """The last image of a tag, [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)).convert("RGB"))


def text(events: EventAccumulator, tag: str) -> str:
    """The last text of a tag."""
    return str(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode("utf-8"))
