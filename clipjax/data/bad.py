"""Records that cannot become a sample: one exception, and the list of reasons that a run counts."""

# A reason is counted by its place here; checkpoints carry the counts by name.
REASONS = (
    "image has zero bytes",
    "image format not recognised",
    "image is truncated or broken",
    "image has more than 100,000,000 pixels",
    "image array is not uint8 [H,W,3|4]",
    "image is neither bytes, array nor image",
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
    "a column is missing",
    "a column has another shape or type",
    "the sample id is not in the stored arrays",
    "other",
)


class BadRecord(Exception):
    """A record that cannot become a sample.

    Args:
      reason: one of `REASONS`, under which it is counted; any other one counts as "other".
      detail: a sentence for people, which says what was met where; `str` of the exception then.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)  # what pickling needs
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail or self.reason

    @property
    def number(self) -> int:
        """Place of the reason in `REASONS`."""
        return REASONS.index(self.reason) if self.reason in REASONS else len(REASONS) - 1
