"""The training scenes as files, composed once for all runs."""

from pathlib import Path

from clipjax.config import import_file
from clipjax.data.bad import BadRecord
from clipjax.data.scenes import Scenes
from clipjax.data.sources.array_record import write as write_records

SHARDS = 8


def write(count, *, folder):
    """Writes `count` of the scenes that configs/scenes.py trains on, those without an object left out.

    Args:
      count: of scenes.
      folder: gets eight files `scenes-....array_record`.

    Returns:
      How many were written.
    """
    arms = import_file(Path(__file__).parent / "configs" / "scenes.py")
    entry = arms.get_config("cloc").data.sources.scenes.to_dict()
    settings = {k: v for k, v in entry.items() if k != "kind"}
    scenes = Scenes(**settings | {"length": count, "jpeg": 95})

    def records(shard):
        for index in range(shard, count, SHARDS):
            try:
                yield scenes[index]
            except BadRecord:
                continue

    written = sum(
        write_records(records(n), folder / f"scenes-{n:05d}-of-{SHARDS:05d}.array_record")
        for n in range(SHARDS)
    )
    return {"scenes": written}
