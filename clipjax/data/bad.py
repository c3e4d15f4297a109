"""Records that cannot become a sample: one exception, and the list of reasons that a run counts."""

# A reason is counted by its place here, so new ones go to the end: checkpoints carry the counts by name.
REASONS = (
    "image has zero bytes",
    "image format not recognised",
    "image is truncated or broken",
    "image has more than 100,000,000 pixels",
    "image array is not uint8 [H,W,3|4]",
    "image is neither bytes, array nor picture",
    "image is too long and thin",
    "image file cannot be read",
    "there is no image",
    "text is empty",
    "text is not UTF-8",
    "text is neither a string nor a list of them",
    "json is broken",
    "json is no object",
    "boxes are not [m,4] numbers",
    "boxes and region texts are not equally many",
    "file is damaged here",
    "record is not a msgpack map",
    "other",
)


class BadRecord(Exception):
    """A record that cannot become a sample. The message is one of `REASONS`; any other one counts as "other"."""

    @property
    def number(self) -> int:
        """Place of the reason in `REASONS`."""
        reason = str(self)
        return REASONS.index(reason) if reason in REASONS else len(REASONS) - 1
