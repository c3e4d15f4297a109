"""Every field of a config, once, with its default."""

from ml_collections import ConfigDict

from clipjax.data import augment
from clipjax.models import model_section


def base_config() -> ConfigDict:
    """Every field of a config, with the defaults of OpenAI's CLIP recipe. A duration is a number of samples."""
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 1024,
            "grad_cache": 1,  # micro-batches a step's towers see one after another; the losses see the whole batch
            "total_samples": 0,  # duration; the run ends with the whole batch that reaches it
            "model": model_section(),
            "init": {},  # part of the model ("image", "text", "") -> pretrained tower, checkpoint or "fresh"
            "tokenizer": {"kind": "clip_bpe"},
            "losses": {"contrastive": {"kind": "softmax", "weight": 1.0}},
            "data": {
                # name -> kind, settings, and optionally weight, captions, filter, window, box_format
                "sources": {},
                "order": {"kind": "shuffle"},  # which record stands where; clipjax/data/orders
                # name -> kind and settings; a batch is the union of their fields (clipjax/data/features)
                "features": {
                    # `views` is a number, or a list of what differs from `augment`, one section a view
                    "image": {"kind": "image", "views": 1, "augment": dict(augment.DEFAULTS)},
                    "text": {"kind": "text", "captions": {"kind": "any"}},
                },
                "threads": 2,
                "workers": 0,  # processes; 0 decodes in threads of this one
                "prefetch": 4,  # batches
                "max_bad_fraction": 0.01,
                "record_ids": False,
            },
            "preprocess": {
                "resize": "shortest",
                "interpolation": "bicubic",
                "crop_fraction": 1.0,  # share of the resized side that "shortest" keeps
            },
            "optim": {
                "name": "adamw",  # or adafactor, lion, muon, sgd, or an import path: see optim.py
                "settings": {},  # of an optimizer that has its own, such as sgd's momentum
                "lr": 5e-4,
                "b1": 0.9,
                "b2": 0.98,
                "eps": 1e-6,
                "schedule": "cosine",
                "warmup": "2%",  # duration
                "final_lr": 0.0,  # fraction of lr at the end of the cosine
                "weight_decay": 0.2,
                "decay_rules": ((r".*(kernel|embedding|probe)", 1.0), (".*", 0.0)),
                "lr_multipliers": ((".*", 1.0),),
                "freeze": ((".*", False),),
                "follow": (),  # (target, source, decay): frozen parameters that follow others, see updates.py
                "clip_norm": None,
                "clip_values": (("logit_scale", 0.0, 4.605170185988092),),
                "ema": 0.0,  # decay per step; 0: none
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "expert": 1},
            "evals": {},  # name -> kind, settings, and `every` (duration)
            "refreshes": {},  # name -> kind, settings, `every` (duration), and `at_start`: see refresh.py
            "checkpoint": {
                "every": "10%",  # durations; None: none
                "keep": 1,
                "keep_every": None,
                "frozen_once": False,  # what no step changes is saved once, beside the checkpoints
            },
            "log": {"every": "1%", "tensorboard": True, "wandb": False},
            "run": {  # seconds
                "start_timeout": 300,  # until the processes of a job must have met
                "heartbeat_timeout": 100,  # without a sign of life: a process counts as dead, and the job stops
                "step_timeout": 1800,  # without a finished step: the run hangs, and stops; 0: never
                "pause_timeout": 7200,  # the same for start-up with the first step, an evaluation, a save; 0: never
            },
        },
        type_safe=False,
    )
