"""The arrays that a model or a loss is given: a mapping that cannot be changed and that says what is missing."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from clipjax.errors import UserError


@jax.tree_util.register_pytree_node_class
class Named(Mapping[str, Any]):
    """Arrays by name, to be read only: `x["name"]`, `"name" in x`, `x.get("name")`, `{**x}`, `dict(x)`.

    Args:
      arrays: name -> array, of any shape and dtype.
      missing: the sentence for a name that is not there.

    Raises:
      UserError: from `x["name"]`, the sentence `missing("name")`.
    """

    def __init__(self, arrays: Mapping[str, Any], missing: Callable[[str], str]):
        self._arrays, self._missing = dict(arrays), missing

    def __getitem__(self, name: str) -> Any:
        if name not in self._arrays:
            raise UserError(self._missing(name))
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def get(self, name: str, default: Any = None) -> Any:
        """The array, or `default`."""
        return self._arrays.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self._arrays | dict(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._arrays)})"

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """For JAX."""
        names = tuple(sorted(self._arrays))
        return [self._arrays[name] for name in names], (names, self._missing)

    @classmethod
    def tree_unflatten(cls, about: Any, arrays: list[Any]) -> "Named":
        """For JAX."""
        names, missing = about
        return cls(dict(zip(names, arrays, strict=True)), missing)
