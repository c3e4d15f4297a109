"""clipjax: pretrain language-image encoders in JAX.

    model = clipjax.load("runs/quickstart")
    model.encode_image(["cat.jpg"]) @ model.encode_text(["a drawing of a cat"]).T

Attributes are imported on first use, so that `import clipjax` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "load", "losses"]

_LAZY = {"load": ("clipjax.encode.inference", "load"), "UserError": ("clipjax.errors", "UserError")}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("clipjax.losses")
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'clipjax' has no attribute {name!r}")
