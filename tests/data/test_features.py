"""Features: what each makes of a record, that they change nothing of one another, and what is said of wrong ones."""

import io
import pickle

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from clipjax.batch import example_batch
from clipjax.data.bad import BadRecord
from clipjax.data.features import Features, View, makers
from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.pipeline import batches
from clipjax.data.stream import COUNTERS, Stream
from clipjax.errors import UserError
from tests.tiny_run import tiny_config

OWN = "tests.data.own_features:"
NUMBERED = {"numbers": {"kind": f"{OWN}Numbered"}}


def config_of(features=(), sources=None, without=(), **changes):
    """The tiny config with noise, and further features."""
    config = tiny_config()
    with config.unlocked():
        config.data.sources = sources or {"noise": {"kind": "synthetic", "size": 12, "length": 50}}
        config.data.features.text.captions = {"kind": "any"}
        config.data.features.update(dict(features))
        for name in without:
            del config.data.features[name]
        config.data.update(changes)
    return config


def numbered(missing=(), **features):
    """A stream of records without images, with these features alone."""
    sources = {"numbers": {"kind": f"{OWN}Numbered", "missing": missing}}
    without = {"image", "text"} - features.keys()
    return Stream(config_of(features, sources, without))


def said(build):
    with pytest.raises(UserError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# Each draws for itself


def test_a_further_feature_changes_nothing_of_the_others():
    plain = Stream(config_of())
    more = Stream(
        config_of(
            {
                "aardvark": {"kind": f"{OWN}Tilt"},
                "other": {"kind": "image", "size": 8, "views": 2},
                "query": {"kind": "text", "captions": {"kind": "any"}, "length": 5},
                "tilt": {"kind": f"{OWN}Tilt", "degrees": 40.0},
            }
        )
    )
    for place in (0, 7, 12_345):
        a, b = plain[place], more[place]
        for field in ("image", "text", "sample_id", "sample_seed"):
            np.testing.assert_array_equal(a[field], b[field], err_msg=field)
        assert b["other"].shape == (2, 8, 8, 3)
        assert b["query"].shape == (5,)
        assert b["tilt"] != 4 * b["aardvark"]  # another generator
    assert makers(config_of({"tilt": {"kind": f"{OWN}Tilt"}})) == {
        "image": "image",
        "text": "text",
        "tilt": "tilt",
    }


def test_features_of_ones_own():
    config = config_of(
        {
            "tilt": {"kind": f"{OWN}Tilt", "degrees": 40.0},
            "extra": {"kind": "tokens", "column": "text", "length": 4},
            "a_seen": {"kind": f"{OWN}Seen"},
        }
    )
    stream = Stream(config)
    tilt = stream.features.made["tilt"]
    assert tilt.degrees == 40.0
    assert type(tilt.config["data"]["features"]) is dict
    again = pickle.loads(cloudpickle.dumps(stream))
    for place in (0, 3):
        assert abs(stream[place]["tilt"]) <= 40
        for field, value in stream[place].items():
            np.testing.assert_array_equal(again[place][field], value)
        number = stream[place]["sample_id"] & (1 << SOURCE_BITS) - 1
        assert stream[place]["seen"].tolist() == [number, number, 1]
    assert example_batch(config, 8)["seen"].shape == (8, 3)


@pytest.mark.slow
def test_worker_processes_have_them_too():
    stream = Stream(config_of({"tilt": {"kind": f"{OWN}Tilt"}}))
    here, there = (list(batches(stream, 8, 0, 24, workers=w)) for w in (0, 2))
    for a, b in zip(here, there, strict=True):
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])


# Views

IMAGE = {"kind": "image", "augment": {"crop_scale": (0.3, 1.0)}}


def test_views():
    one, two = (Stream(config_of({"image": image})) for image in (IMAGE, IMAGE | {"views": 3}))
    for place in range(3):
        views = two[place]["image"]
        assert views.shape == (3, 16, 16, 3)
        np.testing.assert_array_equal(views[0], one[place]["image"])
        assert len({view.tobytes() for view in views}) == 3
        np.testing.assert_array_equal(two[place]["text"], one[place]["text"])


def test_each_view_has_settings_of_its_own():
    views = ({}, {"crop": "fit"}, {"crop": "fit", "solarize": 1.0}, {"crop": "fit", "blur": 1.0})
    config = config_of()
    with config.unlocked():
        config.data.features.image = IMAGE | {"views": views}
    config.preprocess.resize = "squash"
    found = Stream(config)[0]["image"]
    plain, inverted, blurred = found[1], found[2], found[3]
    np.testing.assert_array_equal(inverted, np.where(plain < 128, plain, 255 - plain))
    assert (
        np.abs(np.diff(blurred.astype(int), axis=0)).mean()
        < 0.9 * np.abs(np.diff(plain.astype(int), axis=0)).mean()
    )


def test_an_image_among_several_is_the_same_for_all_views():
    class Two:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            sides = [np.full((20, 20, 3), v, np.uint8) for v in (10, 200)]
            return {"image": sides, "mask": [np.full((5, 5), v) for v in (1, 2)], "text": ["a"]}

    features = Features(config_of({"image": IMAGE | {"views": 2}, "mask": {"kind": "mask"}}))
    features.open()
    seen = set()
    for place in range(20):
        record = Two()[0]
        sample = features(record, View(record, 0, "two", {}, 0, (0, place, 0)))
        value = sample["image"].reshape(-1)
        assert len(set(value.tolist())) == 1
        assert set(sample["mask"].reshape(-1).tolist()) == {1 if value[0] == 10 else 2}
        seen.add(int(value[0]))
    assert seen == {10, 200}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"views": 0}, "features.image.views must be a whole number of at least 1, not 0"),
        ({"views": ()}, "features.image.views must be a number, or a list with one section a view"),
        ({"views": ({}, {"size": 8})}, "must have one size, not [16, 8]"),
        ({"views": ({"flp": 1.0},)}, "views[0] has no setting 'flp' (did you mean 'flip'"),
        ({"views": ({"flip": 2.0},)}, "views[0].flip must be from 0 to 1"),
        ({"augment": {"blur_sigma": (0.0, 1.0)}}, "augment.blur_sigma must be (low, high) above 0"),
        ({"augment": {"flip": "no"}}, "augment.flip must be a number, not 'no'"),
        ({"size": 0}, "features.image.size must be a whole number of at least 1"),
        ({"sized": 1}, "The feature 'image' has no setting 'sized' (did you mean 'size'"),
    ],
)
def test_mistakes_in_views(image, message):
    assert message in said(lambda: example_batch(config_of({"image": IMAGE | image})))


# Runs without images, texts, towers


def test_records_without_images():
    stream = numbered(score={"kind": "column"})
    assert set(stream[0]) == {"score", "sample_id", "sample_seed", "counts"}
    index = stream[0]["sample_id"]
    assert stream[0]["score"] == index / 2
    assert stream[0]["score"].dtype == np.float32
    with_image = Stream(config_of(sources=NUMBERED))
    assert "(there is no image)" in said(lambda: with_image[0])


def test_models_without_towers_need_sizes_and_lengths():
    config = config_of()
    with config.unlocked():
        del config.model["text"]
    assert "set config.data.features.text.length" in said(lambda: example_batch(config))
    with config.unlocked():
        config.data.features.text.length = 6
        del config.model["image"]
    assert "set config.data.features.image.size" in said(lambda: example_batch(config))
    with config.unlocked():
        config.data.features.image.size = 8
    assert {k: v.shape for k, v in example_batch(config, 2).items()} == {
        "image": (2, 8, 8, 3),
        "text": (2, 6),
        "sample_seed": (2,),
    }
    assert Stream(config)[0]["text"].shape == (6,)


# The library's kinds


def test_texts():
    stream = numbered(
        text={"kind": "text", "captions": {"kind": "any"}},
        other={"kind": "text", "captions": {"kind": "several", "count": 2}, "length": 5},
        hard={"kind": "tokens", "count": 3, "required": False},
    )
    tokenizer = stream.features.made["text"].tokenizer
    for place in range(6):
        sample = stream[place]
        index = int(sample["sample_id"])
        np.testing.assert_array_equal(sample["text"], tokenizer([f"number {index}"])[0])
        assert sample["other"].shape == (2, 5)
        texts = [f"hard {index}", "harder"][: index % 3]
        rows = tokenizer(texts) if texts else np.zeros((0, 8), np.int32)
        np.testing.assert_array_equal(sample["hard"][: len(texts)], rows)
        assert (sample["hard"][len(texts) :] == tokenizer.pad_id).all()


def test_a_column_may_need_a_text():
    stream = numbered(hard={"kind": "tokens"})
    samples = [stream[place] for place in range(30)]
    assert all(sample["sample_id"] % 3 for sample in samples)
    name = COUNTERS.index("bad/text is empty")
    assert sum(sample["counts"][name] for sample in samples) > 3
    assert samples[0]["hard"].shape == (8,)


def test_labels():
    stream = numbered(
        labels={"kind": "labels", "count": 3},
        kind={"kind": "labels", "classes": ("dog", "cat", "cow")},
        group={"kind": "labels", "column": "group", "count": 2},
    )
    for place in range(8):
        sample = stream[place]
        index = int(sample["sample_id"])
        want = [*range(index % 4 + 1), -1, -1, -1][:3]
        assert sample["labels"].tolist() == want
        assert sample["kind"].tolist() == [(1, 0, 2)[index % 3]]
        assert sample["group"].tolist() == [index % 4, -1]
        assert sample["labels"].dtype == np.int32


def test_columns():
    stream = numbered(row={"kind": "column", "shape": (2,), "dtype": "int32"})
    index = int(stream[0]["sample_id"])
    assert stream[0]["row"].tolist() == [index, index + 1]
    assert stream[0]["row"].dtype == np.int32


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (
            {"kind": "column", "column": "scor"},
            "'mine' finds no column 'scor' in the record, which",
        ),
        ({"kind": "column", "column": "row"}, "int64 [2], but float32 [] is declared"),
        ({"kind": "column", "column": "score", "dtype": "int32"}, "float64 [], but int32 []"),
        ({"kind": "column", "column": "kind"}, "str64 [] is no number"),
        ({"kind": "vectors", "column": "row", "shape": (3,)}, "int64 [2], but float32 [3]"),
        ({"kind": "labels", "column": "kind"}, "which is no label and no list of them (names need"),
        ({"kind": "labels", "column": "kind", "classes": ("cat", "dog")}, "none of its classes"),
        ({"kind": "labels", "column": "scores"}, "'mine' finds no column 'scores'"),
        ({"kind": "tokens", "column": "long"}, "'mine' finds no text in the column 'long'"),
    ],
)
def test_records_that_do_not_have_it_are_bad(feature, message):
    class Always:
        def __len__(self):
            return 1

    stream = numbered(mine=feature)
    if "classes" in feature:  # only every third is a cow
        record = {"kind": "cow"}
        with pytest.raises(BadRecord, match=message):
            stream.features(record, View(record, 0, "numbers", {}, 0, (0, 0, 0)))
        return
    words = said(lambda: stream[0]).replace("<U3", "str64")
    if "str64" in message:
        assert "but float32 [] is declared" in words
    else:
        assert message in words


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"kind": "colum"}, "no feature named 'colum' (did you mean 'column'"),
        ({"column": "a"}, "config.data.features.mine must be a section with a 'kind'"),
        ({"kind": "column", "shape": 3}, "mine.shape must be a tuple of whole numbers above 0"),
        ({"kind": "column", "dtype": "int64"}, "mine.dtype cannot be 'int64' (there are: float32"),
        ({"kind": "vectors"}, "The feature 'mine' needs the setting(s) shape"),
        ({"kind": "vectors", "shape": (2,), "array": "x"}, "mine.array is the name of an array in"),
        (
            {"kind": "vectors", "shape": (2,), "files": "a.npz", "column": "b"},
            "mine has both files and column",
        ),
        ({"kind": "vectors", "shape": (2,), "files": 3}, "mine.files must be a path, several, or"),
        ({"kind": "vectors", "shape": (2,), "files": {"x": "a"}}, "names the source 'x', which"),
        ({"kind": "vectors", "shape": (2,), "files": "no.npz"}, "no file of config.data.features"),
        ({"kind": "labels", "count": 0}, "mine.count must be a whole number of at least 1"),
        ({"kind": "labels", "classes": "cat"}, "mine.classes must be a tuple of names"),
        ({"kind": "language", "tags": "en"}, "mine.tags must be a tuple such as ('en', 'de')"),
        ({"kind": "mask", "follows": "imag"}, "follows the feature 'imag', which config.data."),
        ({"kind": "tokens", "tokenizer": {"source": "x"}}, "'mine' needs a tokenizer"),
        ({"kind": "text", "captions": {"kind": "anny"}}, "no caption policy named 'anny'"),
    ],
)
def test_mistakes_in_settings(feature, message):
    assert message in said(lambda: Stream(config_of({"mine": feature})))


# A forker's mistakes


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("init", "fails in __init__(): KeyError: 'nothing here' ("),
        ("fields", "fails in fields(): ZeroDivisionError: division by zero ("),
        ("none", "must return {field: jax.ShapeDtypeStruct} from fields(), not None"),
        ("empty", "must return {field: jax.ShapeDtypeStruct} from fields(), not {}"),
        ("tuple", "must declare the field 'a' as a jax.ShapeDtypeStruct, not (3,)"),
        ("name", "cannot have a field named 'a b'"),
        ("reserved", "cannot have a field named 'sample_id' (the stream makes it)"),
        ("int64", "declares the field 'a' as int64, which JAX would cut"),
        ("float64", "to the device; declare float32"),
        ("strings", "which no device holds"),
        ("open", "fails in open(): FileNotFoundError: no such file: a.npz ("),
        ("call", "for record"),
        ("list", "must return a dict of its fields, not list"),
        ("more", "returned the field 'aa', which fields() does not declare (did you mean 'a'"),
        ("fewer", "did not return the field 'b', which it declares"),
        ("shape", "returned the field 'a' as int32 [3], but declares int32 [2]"),
        ("dtype", "returned the field 'a' as float64 [2], but declares int32 [2]"),
    ],
)
def test_mistakes_in_ones_own_code(how, message):
    words = said(lambda: Stream(config_of({"wrong": {"kind": f"{OWN}Wrong", "how": how}}))[0])
    assert words.startswith(f"The feature 'wrong' ({OWN}Wrong) ")
    assert message in words
    if how == "call":
        assert "of source 'noise': KeyError: 'no such column' (" in words
        assert "own_features.py, line" in words


def test_more_mistakes():
    image = config_of({"wrong": {"kind": f"{OWN}Wrong", "how": "image"}})
    assert "features 'image' and 'wrong' both make the field 'image'" in said(lambda: Stream(image))
    bad = Stream(config_of({"wrong": {"kind": f"{OWN}Wrong", "how": "bad"}}))
    assert "(a column is missing; the last: the feature 'wrong' finds nothing)" in said(
        lambda: bad[0]
    )
    call = config_of({"wrong": {"kind": f"{OWN}NoCall"}})
    assert f"({OWN}NoCall) has no method __call__()" in said(lambda: Stream(call))
    typo = config_of({"tilt": {"kind": f"{OWN}Tilt", "degree": 3.0}})
    assert "The feature 'tilt' has no setting 'degree' (did you mean" in said(lambda: Stream(typo))
    empty = config_of(without=("image", "text"))
    assert "config.data.features is empty" in said(lambda: example_batch(empty))


# Masks


def test_masks_move_with_the_pixels():
    """A mask painted as the image is, in colours that the label decides: they must agree wherever the view lies."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (5, 7)), np.ones((12, 12), int)).astype(np.uint8)
    pixels = np.stack([labels * 60] * 3, axis=-1)
    encoded = io.BytesIO()
    Image.fromarray(labels).save(encoded, "PNG")
    record = {"image": pixels, "mask": encoded.getvalue(), "text": ["a"]}
    augment = {"crop_scale": (0.2, 1.0), "flip": 0.5, "rotate": 25.0, "background": "white"}
    for resize in ("longest", "squash"):
        for crop in ("random", "fit"):
            config = config_of(
                {
                    "image": {"kind": "image", "size": 64, "augment": augment | {"crop": crop}},
                    "mask": {"kind": "mask"},
                }
            )
            config.preprocess.resize = resize
            features = Features(config)
            features.open()
            agree, ignored = [], []
            for place in range(20):
                sample = features(record, View(record, 0, "mine", {}, 0, (0, place, 0)))
                mask, image = sample["mask"], sample["image"][..., 0].astype(int)
                assert mask.dtype == np.int32
                assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
                known = mask != 255
                agree.append(np.mean(np.abs(image[known] - 60 * mask[known]) < 30))
                ignored.append(np.mean(image[~known] > 200) if (~known).any() else 1.0)
            assert (
                np.mean(agree) > 0.88
            )  # the others are at the edges of the squares, which the image blurs
            assert np.mean(ignored) > 0.9  # white padding


def test_masks_are_whole_numbers():
    features = Features(config_of({"mask": {"kind": "mask"}}))
    features.open()
    pixels = np.zeros((9, 9, 3), np.uint8)
    for mask, message in (
        (None, "no column 'mask'"),
        (np.zeros((9, 9)), "float64"),
        (np.zeros((9, 9, 3), int), r"int64 \[9, 9, 3\]"),
        (b"no image", "bytes that are no image"),
    ):
        record = {"image": pixels, "text": ["a"], "mask": mask}
        with pytest.raises(BadRecord, match=message):
            features(record, View(record, 0, "mine", {}, 0, (0, 0, 0)))
