"""Which record stands where. `kind` of config.data.order is a key of `KINDS`, or an import path.

An order of one's own is a class `(records, **settings)`, with `records` as in `Records`, and

    def draw(self, place, number):   # -> (source, record)

the record at a place of the endless stream, and for `number` > 0 its `number`-th replacement, after so many that could
not be used or that a filter turned down. It must be a function of (seed, place, number) alone, so that a run can go on
anywhere and hosts can read their parts. It is pickled for data workers.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from clipjax import registry
from clipjax.data.orders.records import Records
from clipjax.errors import UserError

KINDS = {
    "classes": "clipjax.data.orders.classes:Classes",
    "clusters": "clipjax.data.orders.clusters:Clusters",
    "pairs": "clipjax.data.orders.pairs:Pairs",
    "shuffle": "clipjax.data.orders.shuffle:shuffle",
}


class Order(Protocol):
    """What an order offers; see the module."""

    def draw(self, place: int, number: int) -> tuple[int, int]:
        """(source, record) of a place."""
        ...


def make_order(config: Mapping[str, Any], records: Records) -> Order:
    """The order of a section `config.data.order`.

    Raises:
      UserError: an unknown kind or setting, or one that means nothing.
    """
    settings = dict(config)
    kind = settings.pop("kind", None)
    if kind is None:
        raise UserError(
            f"config.data.order needs a 'kind', one of {', '.join(KINDS)} or an import path."
        )
    make = registry.lookup(kind, KINDS, "order")
    first = next(iter(inspect.signature(make).parameters), "records")
    order = registry.call(make, settings, f"The order {kind!r}", **{first: records})
    if not callable(getattr(order, "draw", None)):
        raise UserError(
            f"The order {kind!r} has no method draw(place, number); see clipjax/data/orders."
        )
    return order
