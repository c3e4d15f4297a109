"""The paper's evaluation of a released CLIP: `clipjax eval --config=...paper.py:BACKBONE`; nothing is trained.

Each set is Parquet files of its parts under data/NAME; docs/data.md has other forms.
"""

from clipjax.defaults import base_config

PATCHES = {"ViT-B-32": 1, "ViT-L-14": 4, "DataComp-B-32": 1, "DataComp-L-14": 2}
PATCHES |= {"SigLIP-B-16": 4, "SLIP-B-16": 1, "SLIP-L-16": 2}
CLASSES = ("cars", "pets", "flowers", "aircraft", "dtd", "eurosat", "food101", "sun397")
CLASSES += ("caltech101", "ucf101", "imagenet")
# Of each protocol of the landmarks: which of the query's lists are relevant, and which leave the gallery.
LANDMARKS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}
NANOBEIR = ("arguana", "climatefever", "dbpedia", "fever", "fiqa2018", "hotpotqa", "msmarco")
NANOBEIR += ("nfcorpus", "nq", "quora", "scidocs", "scifact", "touche2020")


def part(name, which, **settings):
    return {"kind": "parquet", "files": f"data/{name}/{which}/*.parquet", **settings}


def apart(name, queries, gallery, **settings):
    parts = {"queries": queries, "gallery": gallery}
    return {"sources": {to: part(name, which, **settings) for to, which in parts.items()}}


def get_config(arg="ViT-B-32"):
    if arg not in PATCHES:
        raise ValueError(f"there is no backbone {arg!r}; there are {', '.join(PATCHES)}")
    kind, ovi = "experiments.cross_the_gap.evals:", {"steps": (1000,), "patches": PATCHES[arg]}
    images = {"kind": f"{kind}ImageRetrieval", "inversion": {"steps": (150,)}}
    texts = {"kind": f"{kind}TextRetrieval", "inversion": ovi}
    zero_shot = {"kind": f"{kind}ZeroShot", "ovi": ovi, "templates": ("a photo of a {}.",)}
    evals = {"gap": {"kind": f"{kind}Gap", "source": part("coco", "test")}}
    evals |= {name: images | {"source": part(name, "all")} for name in ("cub", "sop_test")}
    for name in ("roxford", "rparis"):
        for protocol, (relevant, ignored) in LANDMARKS.items():
            lists = apart(name, "queries", "gallery") | {"relevant": relevant, "ignored": ignored}
            evals[f"{name}_{protocol}"] = images | lists
    for name in CLASSES:
        evals[name] = images | apart(name, "test", "train")
        named = {"classes": f"data/{name}/classes.json", "source": part(name, "test")}
        evals[f"{name}_zero_shot"] = zero_shot | named
    for name in ("coco", "flickr30k", "nocaps"):
        evals[name] = texts | {"label_field": None, "source": part(name, "test", image=False)}
    for name in ("newsgroup", "imdb"):
        evals[name] = texts | apart(name, "test", "train", image=False)
    for name in NANOBEIR:
        lists = apart(f"nanobeir/{name}", "queries", "corpus", image=False)
        evals[name] = texts | lists | {"relevant": ("relevant",)}
    config = base_config()
    config.evals = evals
    return config
