"""Prompt templates: named sets, lists of strings, or a JSON file with a list of strings.

`{}` (or `{c}`, as some published files write it) stands for the class name. The sets here are the
project's own; published ones, such as the 80 of the CLIP paper, are given as a file.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from clipjax.errors import UserError

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "simple": (
        "{}",
        "a {}",
        "a picture of a {}.",
        "an image that shows a {}.",
        "this is a {}.",
    ),
    "drawings": (
        "a drawing of a {}.",
        "a colourful drawing of a {}.",
        "a small picture of a {}.",
        "an icon of a {}.",
        "an emoji of a {}.",
    ),
}


def load_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the templates behind a set's name, a path that ends in `.json`, or a list.

    Raises:
        UserError: unknown set, unreadable file, or a template without a placeholder.
    """
    if not isinstance(templates, str):
        found, origin = list(templates), "The list of templates"
    elif templates.endswith(".json"):
        found, origin = read_json(templates, "templates"), f"The templates file {templates}"
    elif templates in TEMPLATES:
        return TEMPLATES[templates]
    else:
        near = difflib.get_close_matches(templates, TEMPLATES, n=1)
        raise UserError(
            f"There is no template set {templates!r}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + f"; give one of {', '.join(sorted(TEMPLATES))}, a list of strings or a .json file."
        )
    if not isinstance(found, list) or not found or not all(isinstance(t, str) for t in found):
        raise UserError(f"{origin} must be a list of at least one string.")
    for template in found:
        if "{}" not in template and "{c}" not in template:
            raise UserError(
                f"{origin} has {template!r} in it, which has no {{}} for the class name."
            )
    return tuple(found)


def fill(template: str, name: str) -> str:
    """Puts a name into a template; other braces stay as they are."""
    # Split before joining, so that a name that itself contains "{}" or "{c}" is not filled again.
    return name.join("{}".join(template.split("{c}")).split("{}"))


def read_json(path: str, what: str):
    """Reads a JSON file the user named; `what` is for the error."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The {what} file {path} cannot be read: {error}.") from error


def text_hash(texts) -> str:
    """First 16 hex digits of the SHA-256 of JSON: tells two lists of names or templates apart."""
    encoded = json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return hashlib.sha256(encoded).hexdigest()[:16]
