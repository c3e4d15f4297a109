"""MaPLe on a CLIP ViT-B/16: Khattak et al., CVPR 2023 (arXiv 2210.03117), and the released code's configs.

`experiments/maple/configs/paper.py:base_to_novel,DATASET` trains on one half of a data set's classes,
`paper.py:cross_dataset` on all of ImageNet's. Both want `weights/maple-9` (or `-3`), made of OpenAI's weights:

  clipjax stage --stage=experiments.maple.stages:add_prompts --source=ViT-B-16.pt --target=weights/maple-9

(for the second with `--target=weights/maple-3 --stage.depth=3`)
and DATASET/{train,base,novel}.jsonl, captions files (docs/data.md) with columns `image` and `label`, a class's place in
DATASET/{base,novel}.json, lists of names; train.jsonl has 16 images a class. Across data sets: train.jsonl, test.jsonl
and classes.json. Names are taken as they are: write spaces where a folder has "_". EuroSAT's are here, in halves
as CoOp has them.
"""

from clipjax.defaults import base_config
from clipjax.models import model_section
from clipjax.models.variants import model_config

FREEZE = ((r"prompts/.*", False), (".*", True))
# Protocol -> epochs, learning rate, J.
PROTOCOLS = {"base_to_novel": (5, 0.0035, 9), "cross_dataset": (2, 0.0026, 3)}
TARGETS = (
    *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101"),
    *("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
)


NAMES = {
    "eurosat": {
        "base": (
            *("Annual Crop Land", "Forest", "Herbaceous Vegetation Land"),
            *("Highway or Road", "Industrial Buildings"),
        ),
        "novel": (
            *("Pasture Land", "Permanent Crop Land", "Residential Buildings"),
            *("River", "Sea or Lake"),
        ),
    }
}


def classes(dataset, which):
    """Names of the classes, or the file that has them."""
    return NAMES.get(dataset, {}).get(which, f"{dataset}/{which}.json")


def captions(file):
    return {"kind": "captions", "file": file}


def get_config(arg="base_to_novel,eurosat"):
    protocol, _, dataset = arg.partition(",")
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    dataset = dataset or "imagenet"
    epochs, rate, depth = PROTOCOLS[protocol]
    config = base_config()
    config.batch_size = 4
    config.total_samples = f"{epochs} epochs"
    clip = model_config("ViT-B-16-quickgelu")
    names = "base" if protocol == "base_to_novel" else "classes"
    ours = {"kind": "experiments.maple.model:PromptedDualEncoder", "prompt_depth": depth}
    ours |= {"classes": classes(dataset, names), "tokenizer": config.tokenizer.to_dict()}
    config.model = model_section(**clip.to_dict() | ours)
    config.init = {"": f"weights/maple-{depth}"}
    config.losses = {"classes": {"kind": "class_cross_entropy"}}
    config.data.sources = {dataset: captions(f"{dataset}/train.jsonl")}
    config.data.features = {
        "image": config.data.features.image.to_dict(),
        "labels": {"kind": "labels", "column": "label"},
    }
    config.data.features.image.augment.update(crop_scale=(0.08, 1.0), flip=0.5)
    config.optim.update(name="sgd", settings={"momentum": 0.9, "l2": 5e-4}, weight_decay=0.0)
    config.optim.update(lr=rate, schedule="experiments.maple.schedules:cosine_by_epoch")
    config.optim.update(warmup="1 epochs", freeze=FREEZE)
    config.checkpoint.every = "100%"
    if protocol == "base_to_novel":
        halves = ("base", "novel")
        config.evals.generalisation = {
            "kind": "experiments.maple.evals:BaseToNovel",
            "sources": {half: captions(f"{dataset}/{half}.jsonl") for half in halves},
            "classes": {half: classes(dataset, half) for half in halves},
        }
    else:
        config.evals = {
            name: {
                "kind": "zero_shot",
                "source": captions(f"{name}/test.jsonl"),
                "classes": classes(name, "classes"),
                "templates": ("a photo of a {}.",),
            }
            for name in (dataset, *TARGETS)
        }
    return config
