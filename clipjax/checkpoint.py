"""Checkpoints: parameters, optimizer, EMA, clock, config, preprocessing and tokenizer, whole or not at all.

`workdir/checkpoints/SAMPLES/` holds one checkpoint, named by the samples seen. Orbax writes it in the background under
a temporary name and renames it when all of it is there, so a kill at any instant leaves the previous one valid. Items:

  params     parameters                      } Orbax arrays; restored with any sharding
  train      optimizer state, step, EMA      }
  meta       samples, data counters, config (with preprocessing), versions            JSON
  tokenizer  its config, and its files as text                                        JSON
  frozen     only with `checkpoint.frozen_once`: which folder `checkpoints/frozen/SAMPLES-TOKEN` holds the parameters
             that no step changes (a teacher, a frozen tower), for all checkpoints of the run; it is whole before the
             first of them is begun, and without it none of them can be read                                    JSON
"""

import base64
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from clipjax import rules
from clipjax.data.tokenizers import Tokenizer, load_tokenizer
from clipjax.errors import UserError
from clipjax.migrate import migrate

# The item that names the folder of what is saved once, and the folder of all of those.
FROZEN = "frozen"
ITEMS = {
    "params": ocp.StandardCheckpointHandler,
    "train": ocp.StandardCheckpointHandler,
    "meta": ocp.JsonCheckpointHandler,
    "tokenizer": ocp.JsonCheckpointHandler,
    FROZEN: ocp.JsonCheckpointHandler,
}


def due(samples: int, every: int | None, batch_size: int) -> bool:
    """Whether a multiple of `every` lies in the last batch before `samples`."""
    return bool(every) and samples // every > (samples - batch_size) // every


class Milestones(policies.PreservationPolicy):
    """Preserves the first checkpoint at or after each multiple of `every` samples."""

    def __init__(self, every: int):
        self._every = every

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> list[bool]:
        """See Orbax."""
        del context
        multiples = [info.step // self._every for info in checkpoints]
        return [m > 0 and m not in multiples[:i] for i, m in enumerate(multiples)]


class Checkpointer:
    """Saves and restores the checkpoints of one run.

    Args:
      workdir: the run's directory.
      keep: how many of the newest to keep; None keeps all.
      keep_every: samples; the first checkpoint at or after each multiple is kept for ever.
      once: paths of parameters that are saved once, beside the checkpoints.
      token: a number of this start of the run alone, the same in all processes; it tells the folders of what is saved
        once apart, wherever they are copied to.
    """

    def __init__(
        self,
        workdir: Path | str,
        *,
        keep: int | None = 1,
        keep_every: int | None = None,
        once: frozenset[str] = frozenset(),
        token: int = 0,
    ):
        self._once, self._token = once, token
        self._frozen: str | None = None
        self._directory = epath.Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), *([Milestones(keep_every)] if keep_every else [])]
            ),
            create=True,
            cleanup_tmp_directories=True,
        )
        # Named here, not at the first save, so that a new process can read what another one wrote.
        handlers = {name: make() for name, make in ITEMS.items()}
        self._manager = ocp.CheckpointManager(
            self._directory, item_handlers=handlers, options=options
        )

    def save(
        self,
        samples: int,
        params: Any,
        train: Any,
        meta: Mapping[str, Any],
        tokenizer: Mapping[str, Any],
    ) -> None:
        """Starts to write a checkpoint and returns; the arrays may be donated or changed afterwards.

        What is saved once is on disk when the first of them returns.
        """
        if self._manager.latest_step() == samples:
            return
        items = {
            "train": ocp.args.StandardSave(train),
            "meta": ocp.args.JsonSave(dict(meta)),
            "tokenizer": ocp.args.JsonSave(dict(tokenizer)),
        }
        if self._once:
            flat = rules.paths(params)
            if self._frozen is None:
                # In a folder of their own: Orbax, while it starts, removes what is unfinished among the checkpoints.
                name = f"{samples}-{self._token:08x}"
                with ocp.StandardCheckpointer() as writer:
                    constant = rules.tree({path: flat[path] for path in self._once})
                    writer.save(self._directory / FROZEN / name, constant)
                self._frozen = name
            params = rules.tree({path: x for path, x in flat.items() if path not in self._once})
            items[FROZEN] = ocp.args.JsonSave({"folder": self._frozen})
        items["params"] = ocp.args.StandardSave(params)
        self._manager.save(samples, args=ocp.args.Composite(**items))

    def restore(self, samples: int, params: Any, train: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Restores (params, train, meta) with the shardings of the abstract trees `params` and `train`.

        Raises:
          UserError: a parameter is missing, left over, or of another shape; all of them are named.
        """
        where = self._directory / str(samples)
        check_shapes(parameter_metadata(where), params, str(where))
        own, folder, frozen = _parted(where, rules.paths(params))
        with _readable(where):
            restored = self._manager.restore(
                samples,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(rules.tree(own)),
                    train=ocp.args.StandardRestore(train),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        params = restored["params"]
        if folder is not None:
            if frozen.keys() == self._once:
                self._frozen = folder.name
            params = rules.tree(rules.paths(params) | _read_flat(where, folder, frozen))
        return params, restored["train"], restored["meta"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go."""
        self._manager.close()


def check_shapes(found: Any, wanted: Any, where: str) -> None:
    """Compares two trees of things with a shape, by path.

    Raises:
      UserError: names every parameter that is missing, left over, or of another shape.
    """
    shape = lambda flat: {path: tuple(leaf.shape) for path, leaf in flat.items()}  # noqa: E731
    have, want = shape(rules.paths(getattr(found, "tree", found))), shape(rules.paths(wanted))
    problems = [f"{p} is missing" for p in want if p not in have]
    problems += [f"{p} is left over" for p in have if p not in want]
    problems += [
        f"{p} has shape {list(have[p])}, the model wants {list(want[p])}"
        for p in want
        if p in have and have[p] != want[p]
    ]
    if problems:
        raise UserError(f"The checkpoint {where} does not fit the model: {'; '.join(problems)}.")


def pack_tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A tokenizer as one JSON-able dict: its config, and the files it saves; the config of none is None."""
    if tokenizer is None:
        return {"config": None, "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        config = tokenizer.save(Path(folder))
        files = {
            str(p.relative_to(folder)): base64.b64encode(p.read_bytes()).decode()
            for p in sorted(Path(folder).rglob("*"))
            if p.is_file()
        }
    return {"config": config, "files": files}


def unpack_tokenizer(packed: Mapping[str, Any]) -> Tokenizer:
    """Inverse of `pack_tokenizer`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in packed["files"].items():
            path = (Path(folder) / name).resolve()
            if not path.is_relative_to(Path(folder).resolve()):
                raise UserError(
                    f"The checkpoint's tokenizer names a file outside its folder, {name!r}."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(text))
        return load_tokenizer(packed["config"], Path(folder))


def with_length(tokenizer: Tokenizer, length: int) -> Tokenizer:
    """The same tokenizer with rows of another length."""
    packed = pack_tokenizer(tokenizer)
    return unpack_tokenizer(packed | {"config": packed["config"] | {"length": length}})


def newest(folder: Path | epath.Path) -> int | None:
    """Samples of the newest whole checkpoint in a `checkpoints` folder; None if there is none, or no folder.

    A checkpoint has its final name only when it is whole, and is removed only when there is a newer one.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        return None
    names = [p.name for p in folder.iterdir() if p.name.isdigit() and (p / "meta").exists()]
    return max(map(int, names), default=None)


def find(path: Path | str) -> epath.Path:
    """The directory of the checkpoint that `path` means: itself, or the newest of a run or of a `checkpoints` folder.

    Raises:
      UserError: nothing is there, or what is there is not a checkpoint of clipjax.
    """
    if not epath.Path(path).exists():
        raise UserError(f"There is no checkpoint at {str(path)!r}.")
    found = _find(path)
    if found is None:
        raise UserError(
            f"{str(path)!r} is not a clipjax checkpoint: it should be a run's workdir, or a folder in its "
            "'checkpoints' (clipjax convert makes one of other formats)."
        )
    return found


def is_checkpoint(path: Path | str) -> bool:
    """Whether `find` would find something."""
    return _find(path) is not None


def _find(path: Path | str) -> epath.Path | None:
    root = epath.Path(path).absolute()
    for folder in (root / "checkpoints", root):
        samples = newest(folder)
        if samples is not None:
            return folder / str(samples)
    whole = root.is_dir() and (root / "meta").exists() and (root / "params").exists()
    return root if whole else None


@contextlib.contextmanager
def _readable(path: epath.Path | str) -> Iterator[None]:
    """Makes one sentence of what Orbax says about files that are missing or damaged."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise UserError(
            f"The checkpoint {str(path)!r} cannot be read, so it is damaged or foreign: {reason}."
        ) from error


def read_meta(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(meta, packed tokenizer) of the checkpoint directory `path`; the config in meta has today's fields."""
    handler = ocp.CompositeCheckpointHandler("meta", "tokenizer")
    with _readable(path), ocp.Checkpointer(handler) as reader:
        items = reader.restore(
            path,
            args=ocp.args.Composite(meta=ocp.args.JsonRestore(), tokenizer=ocp.args.JsonRestore()),
        )
        meta, tokenizer = items["meta"], items["tokenizer"]
        if not {"config", "samples"} <= meta.keys() or "config" not in tokenizer:
            raise ValueError("it is not one of clipjax")
    return meta | {"config": migrate(meta["config"])}, tokenizer


def parameter_metadata(path: epath.Path) -> Any:
    """The tree of the parameters in the checkpoint directory `path`, things with a shape and a dtype."""
    folder = frozen_folder(path)
    with _readable(path):
        tree = ocp.StandardCheckpointHandler().metadata(path / "params").tree
        if folder is None:
            return tree
        frozen = ocp.StandardCheckpointHandler().metadata(folder).tree
    return rules.tree(rules.paths(tree) | rules.paths(frozen))


def frozen_folder(path: epath.Path) -> epath.Path | None:
    """Where the checkpoint directory `path` has the parameters that its run saved once; None: all are in it.

    Raises:
      UserError: the folder is not there.
    """
    if not (path / FROZEN).exists():
        return None
    with _readable(path), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        # It may have been linked to.
        real = path if "://" in str(path) else epath.Path(os.path.realpath(path))
        name = epath.Path(reader.restore(path / FROZEN)["folder"]).name
    # The first version had its folders, FROZEN-SAMPLES-TOKEN, among the checkpoints.
    inner = name if name.startswith(f"{FROZEN}-") else f"{FROZEN}/{name}"
    folder = real.parent / inner
    if not folder.exists():
        raise UserError(
            f"The checkpoint {str(path)!r} has its frozen parameters in the folder {inner!r} beside it, which is not "
            "there; copy that along, or make a whole checkpoint of it where it came from, with: clipjax stage "
            "--stage=rewrite."
        )
    return folder


def _parted(
    path: epath.Path, flat: Mapping[str, Any]
) -> tuple[dict[str, Any], epath.Path | None, dict[str, Any]]:
    """Parameters in the checkpoint directory `path` itself, the folder of those saved once, and these."""
    folder = frozen_folder(path)
    if folder is None:
        return dict(flat), None, {}
    with _readable(path):
        once = rules.paths(ocp.StandardCheckpointHandler().metadata(folder).tree)
    own = {p: x for p, x in flat.items() if p not in once}
    return own, folder, {p: x for p, x in flat.items() if p in once}


def averaged_paths(path: epath.Path) -> frozenset[str]:
    """The parameters of which the checkpoint directory `path` has averages (EMA)."""
    train = path / "train"
    if not train.exists():  # converted from another format
        return frozenset()
    with _readable(path):
        saved = ocp.PyTreeCheckpointHandler().metadata(train).tree
    return frozenset(saved.get("ema") or ())


def read_average(path: epath.Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Averages by parameter path; `wanted` has their shapes, dtypes and shardings."""
    return _read_part(path, path / "train", {"ema": dict(wanted)})["ema"]


def read_some(path: epath.Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Some parameters by path, without what a run averaged; `wanted` has their shapes, dtypes and shardings."""
    own, folder, frozen = _parted(path, wanted)
    found = _read_flat(path, path / "params", own)
    return found if folder is None else found | _read_flat(path, folder, frozen)


def _read_flat(
    path: epath.Path, item: epath.Path, wanted: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Parameters by path, of a folder of the checkpoint directory `path`."""
    return rules.paths(_read_part(path, item, rules.tree(wanted))) if wanted else {}


def _read_part(path: epath.Path, item: epath.Path, wanted: Any) -> Any:
    arguments = jax.tree.map(
        lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype), wanted
    )
    how = ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=True)
    with _readable(path), ocp.PyTreeCheckpointer() as reader:
        return reader.restore(item, args=how)
