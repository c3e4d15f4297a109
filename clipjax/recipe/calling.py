"""The process of a call step: python -m clipjax.recipe.calling MODULE:FUNCTION FOLDER ROOT SETTINGS."""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.errors import UserError
from clipjax.imports import make_importable
from clipjax.log.writers import replace_file
from clipjax.recipe.results import flat_numbers
from clipjax.registry import call, load

RESULTS = "results.json"


def run(function: str, folder: Path, root: str, settings: Mapping[str, Any]) -> None:
    """Calls the function and writes what it returns to `folder/results.json`.

    Raises:
      UserError: it cannot be imported, does not take the settings, or returns something else than results.
    """
    make_importable(root)
    if ":" not in function:
        raise UserError(f"The function {function!r} must be an import path, 'package.module:name'.")
    found = load(function, f"The function {function!r}")
    takes_folder = "folder" in inspect.signature(found).parameters
    given = {"folder": folder} if takes_folder else {}
    results = call(found, settings, f"The function {function!r}", **given)
    results = {} if results is None else results
    what = f"The function {function!r} must return None or a dict of results that JSON can hold"
    if not isinstance(results, Mapping):
        raise UserError(f"{what}, not a {type(results).__name__}.")
    try:
        text = json.dumps(results, indent=2, ensure_ascii=False)
        flat_numbers(json.loads(text))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}.") from error
    replace_file(folder / RESULTS, text + "\n")


def main() -> int:
    """Returns the exit status, 2 for a user's mistake."""
    function, folder, root, settings = sys.argv[1:]
    try:
        run(function, Path(folder), root, json.loads(settings))
    except UserError as error:
        print(f"clipjax recipe: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
