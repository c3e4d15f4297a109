"""What the pipeline makes of one record. `kind` in config.data.features is a key of `KINDS`, or an import path.

The batch is the union of the fields of all features, and its shapes come from them. A feature of one's own is a class
(`config.data.features.tilt = {"kind": "experiments.mine.features:Tilt", "degrees": 20.0}`):

    class Tilt:
        def __init__(self, config, *, name, degrees=10.0):   # settings of the section; `name` if it wants it
            self.name, self.degrees = name, degrees

        def fields(self):                                     # of one sample, without the batch axis
            return {self.name: jax.ShapeDtypeStruct((), np.float32)}

        def __call__(self, record, view, rng):
            tilt = rng.uniform(-self.degrees, self.degrees)
            return {self.name: np.float32(tilt)}

- `config` is the whole run's, plain dicts and tuples. `__init__` and `fields` must read no files, since shapes are
  asked for where there is no data; what is read goes into an optional `open(self)`, called once before the first
  sample. The object is pickled after that, for data workers.
- `record` is the source's (clipjax/data/stream.py), `view` what the features share (clipjax/data/features/view.py),
  `rng` a `np.random.Generator` of this feature and sample alone. All randomness must come from `rng`, or from
  `view.generator(name, number)`: then a resumed run, and one on other hosts, sees the same sample.
- It raises `clipjax.data.bad.BadRecord` for a record that cannot be used: another one takes its place, and it is
  counted. Anything else that goes wrong stops the run, with a sentence that names the class.
- An optional attribute `after`, a tuple of names, says which features must be there and run before this one, which
  reads what they leave in `view`.

The features named `text`, `image` and `regions` run first, in this order, and draw from one generator of the sample, so
their draws depend on one another. Every other one, and every view of an image after its first, has its own, so adding
one changes nothing of the others.
"""

import inspect
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from clipjax import registry
from clipjax.data.bad import BadRecord
from clipjax.data.features.view import Frame, View
from clipjax.errors import UserError

__all__ = ["KINDS", "Feature", "Features", "Frame", "View", "makers", "shapes"]

KINDS = {
    "column": "clipjax.data.features.column:Column",
    "image": "clipjax.data.features.image:Image",
    "labels": "clipjax.data.features.labels:Labels",
    "language": "clipjax.data.features.language:Language",
    "mask": "clipjax.data.features.mask:Mask",
    "regions": "clipjax.data.features.regions:Regions",
    "text": "clipjax.data.features.text:Text",
    "tokens": "clipjax.data.features.tokens:Tokens",
    "vectors": "clipjax.data.features.vectors:Vectors",
}

# These run first, in this order, and share the sample's own generator: runs of every version draw the same.
FIRST = ("text", "image", "regions")
# Fields of a sample that the stream itself makes.
RESERVED = ("sample_id", "sample_seed", "counts")
_LARGE = {"int64": "int32", "uint64": "uint32", "float64": "float32"}


class Feature(Protocol):
    """What a feature offers; see the module. `open(self)` is optional."""

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each field of one sample."""
        ...

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Exactly the fields, each of its shape and dtype."""
        ...


class Features:
    """All features of a run, checked, in the order in which they run.

    Args:
      config: the run's config; ConfigDict or dict.

    Attributes:
      made: name -> feature.
      fields: name of a feature -> its fields' shapes and dtypes.
      sources: names of the config's sources, in order.

    Raises:
      UserError: an unknown kind or setting; fields that are none, or that two features make; anything that goes wrong
        in a feature's own code.
    """

    def __init__(self, config: Mapping[str, Any]):
        config = _plain(config)
        self.sources = tuple(config["data"].get("sources", ()))
        sections = config["data"]["features"]
        if not sections:
            raise UserError(
                "config.data.features is empty, so a batch would hold nothing; name at least one, such as "
                "{'image': {'kind': 'image'}}."
            )
        names = sorted(sections, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))
        self.made = _in_order({name: _make(name, sections[name], config) for name in names})
        self.fields = {name: _fields(name, feature) for name, feature in self.made.items()}
        owner: dict[str, str] = {}
        for name, fields in self.fields.items():
            for field in fields:
                if field in owner:
                    raise UserError(
                        f"The features {owner[field]!r} and {name!r} both make the field {field!r}; a field has one "
                        "maker."
                    )
                owner[field] = name
        self._what = {name: f"the feature {name!r} ({_path(f)})" for name, f in self.made.items()}

    def open(self) -> None:
        """Reads what the features read of files; once, before the first sample.

        Raises:
          UserError: a file that cannot be used, or anything that goes wrong in a feature's own code.
        """
        for name, feature in self.made.items():
            if hasattr(feature, "open"):
                _guarded(feature.open, self._what[name], "in open()")

    def __call__(self, record: Mapping[str, Any], view: View) -> dict[str, np.ndarray]:
        """All fields of one sample.

        Raises:
          BadRecord: the record cannot be used.
          UserError: a feature failed, or gave other fields than it declares.
        """
        sample: dict[str, np.ndarray] = {}
        for name, feature in self.made.items():
            rng = view.rng if name in FIRST else view.generator(name)
            where = f"for record {view.index} of source {view.source_name!r}"
            found = _guarded(lambda f=feature, r=rng: f(record, view, r), self._what[name], where)
            sample |= _checked(found, self.fields[name], self._what[name])
        return sample


def shapes(config: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Field -> shape and dtype of one sample, of all features of a config; no file is read.

    Raises:
      UserError: see `Features`.
    """
    return {k: v for fields in Features(config).fields.values() for k, v in fields.items()}


def makers(config: Mapping[str, Any]) -> dict[str, str]:
    """Field -> the name of the feature that makes it, for messages.

    Raises:
      UserError: see `Features`.
    """
    return {field: name for name, fields in Features(config).fields.items() for field in fields}


def _make(name: str, section: Any, config: Mapping[str, Any]) -> Any:
    """The feature of one section."""
    if not isinstance(section, Mapping) or "kind" not in section:
        raise UserError(
            f"config.data.features.{name} must be a section with a 'kind', one of {', '.join(KINDS)} or an import path."
        )
    settings = {k: v for k, v in section.items() if k != "kind"}
    make = registry.lookup(section["kind"], KINDS, "feature")
    parameters = inspect.signature(make).parameters
    given = {k: v for k, v in (("config", config), ("name", name)) if k in parameters}
    what = f"the feature {name!r} ({_path(make)})"
    feature = _guarded(
        lambda: registry.call(make, settings, f"The feature {name!r}", **given),
        what,
        "in __init__()",
    )
    for method in ("fields", "__call__"):
        if not callable(getattr(feature, method, None)):
            raise UserError(
                f"{_upper(what)} has no method {method}(); see clipjax/data/features/__init__.py."
            )
    return feature


def _in_order(made: Mapping[str, Any]) -> dict[str, Any]:
    """The features, each behind those that it names in `after`."""
    ordered: dict[str, Any] = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise UserError(
                f"The features {' and '.join(waiting)} wait for one another in `after`."
            )
        after = getattr(made[name], "after", ())
        for other in (after,) if isinstance(after, str) else after:
            if other not in made:
                raise UserError(
                    f"The feature {name!r} follows the feature {other!r}, which config.data.features does not have"
                    f"{registry.nearest(other, list(made))}."
                )
            add(other, (*waiting, name))
        ordered.setdefault(name, made[name])

    for name in made:
        add(name, ())
    return ordered


def _plain(value: Any) -> Any:
    """A config as dicts, lists and tuples."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return value


def _fields(name: str, feature: Feature) -> dict[str, jax.ShapeDtypeStruct]:
    """What a feature declares, checked."""
    what = f"the feature {name!r} ({_path(feature)})"
    fields = _guarded(feature.fields, what, "in fields()")
    if not isinstance(fields, Mapping) or not fields:
        raise UserError(
            f"{_upper(what)} must return {{field: jax.ShapeDtypeStruct}} from fields(), not {fields!r}."
        )
    for field, struct in fields.items():
        if not isinstance(field, str) or not field.isidentifier() or field in RESERVED:
            reserved = " (the stream makes it)" if field in RESERVED else ""
            raise UserError(f"{_upper(what)} cannot have a field named {field!r}{reserved}.")
        if not hasattr(struct, "shape") or not hasattr(struct, "dtype"):
            raise UserError(
                f"{_upper(what)} must declare the field {field!r} as a jax.ShapeDtypeStruct, not {struct!r}."
            )
        dtype = np.dtype(struct.dtype).name
        if dtype in _LARGE:
            raise UserError(
                f"{_upper(what)} declares the field {field!r} as {dtype}, which JAX would cut on its way to the "
                f"device; declare {_LARGE[dtype]}."
            )
        if np.dtype(struct.dtype).kind not in "biufV":
            raise UserError(
                f"{_upper(what)} declares the field {field!r} as {dtype}, which no device holds."
            )
    return {k: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for k, v in fields.items()}


def _checked(
    found: Any, fields: Mapping[str, jax.ShapeDtypeStruct], what: str
) -> dict[str, np.ndarray]:
    """What a feature returned, if it is what it declares."""
    if not isinstance(found, Mapping):
        raise UserError(
            f"{_upper(what)} must return a dict of its fields, not {type(found).__name__}."
        )
    for field in found:
        if field not in fields:
            raise UserError(
                f"{_upper(what)} returned the field {field!r}, which fields() does not declare"
                f"{registry.nearest(str(field), list(fields))}."
            )
    arrays = {}
    for field, declared in fields.items():
        if field not in found:
            raise UserError(
                f"{_upper(what)} did not return the field {field!r}, which it declares."
            )
        array = np.asarray(found[field])
        if array.shape != declared.shape or array.dtype != declared.dtype:
            raise UserError(
                f"{_upper(what)} returned the field {field!r} as {array.dtype.name} {list(array.shape)}, but declares "
                f"{np.dtype(declared.dtype).name} {list(declared.shape)}."
            )
        arrays[field] = array
    return arrays


def _guarded(function: Any, what: str, where: str) -> Any:
    """`function()`; what goes wrong in it is one sentence that names the object and the line."""
    try:
        return function()
    except (BadRecord, UserError):
        raise
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        own = [line for line in lines if "site-packages" not in line.filename]  # not numpy's
        place = f"{own[-1].filename}, line {own[-1].lineno}"
        reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
        raise UserError(
            f"{_upper(what)} fails {where}: {type(error).__name__}: {reason} ({place})."
        ) from error


def _path(thing: Any) -> str:
    """The import path of a class, or of an object's class."""
    kind = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
    return f"{kind.__module__}:{kind.__qualname__}"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
