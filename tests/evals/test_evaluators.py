"""ZeroShot and Retrieval with an encoder whose embeddings are planted."""

import json

import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.evals.retrieval import Retrieval
from clipjax.evals.templates import TEMPLATES, fill, load_templates
from clipjax.evals.zero_shot import ZeroShot

APPLE, PEAR, DOG = 0, 1, 2


class PlantedEncoder:
    """An image's first value, and the words of a text, say which axis it lies on."""

    def __init__(self, axes, size=8):
        self.axes, self.size, self.calls = axes, size, []

    def images(self, params, images):
        self.calls.append(len(images))
        out = np.zeros((len(images), self.size), np.float32)
        out[np.arange(len(images)), [int(image[0, 0, 0]) for image in images]] = 1
        return out

    def texts(self, params, texts):
        out = np.zeros((len(texts), self.size), np.float32)
        for row, text in zip(out, texts, strict=True):
            vector = next((v for word, v in self.axes.items() if word in text), self.size - 1)
            if isinstance(vector, int):
                row[vector] = 1
            else:
                row[:] = vector
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def img(value):
    return np.full((4, 4, 3), value, np.uint8)


def records():
    return [
        {"image": img(APPLE), "name": "apple", "text": ["apple", "a fruit"], "label": 0},
        {"image": [img(PEAR), img(PEAR)], "name": "pear", "text": ["pear"], "label": 1},
        {"image": img(DOG), "name": "dog", "text": ["dog", "a hound"], "label": 2},
    ]


AXES = {"apple": APPLE, "fruit": APPLE, "pear": PEAR, "dog": DOG, "hound": APPLE}


def test_zero_shot_counts_every_image_and_reports_its_protocol():
    encoder = PlantedEncoder({"apple": APPLE, "pear": PEAR, "dog": PEAR})
    evaluator = ZeroShot("fruit", records(), encoder, classes=["apple", "pear", "dog"], chunk=2)
    result = evaluator.run(None)
    # apple right; both pears tie with "dog" on the same axis: half each; for the dog all three tie.
    assert result["acc@1"] == pytest.approx((1 + 0.5 + 0.5 + 1 / 3) / 4)
    assert result["mean_per_class"] == pytest.approx((1 + 0.5 + 1 / 3) / 3)
    assert "acc@5" not in result
    assert encoder.calls == [2, 2]
    assert evaluator.protocol["images"] == 4
    assert evaluator.protocol["records"] == 3
    assert evaluator.protocol["classes"] == 3
    assert evaluator.protocol["templates"] == len(TEMPLATES["simple"])
    assert evaluator.protocol["chance"]["acc@1"] == pytest.approx(1 / 3)
    json.dumps(evaluator.protocol)
    other = ZeroShot("fruit", records(), encoder, classes=["apple", "pear", "cat"])
    other.run(None)
    assert other.protocol["classes_sha256"] != evaluator.protocol["classes_sha256"]
    assert other.protocol["templates_sha256"] == evaluator.protocol["templates_sha256"]


def test_classifier_normalises_each_template_then_the_mean():
    encoder = PlantedEncoder({"big": np.eye(8)[0], "small": np.eye(8)[1], "odd": np.eye(8)[0]})
    templates = ["a big {}", "an odd {}", "a small {}"]
    got = ZeroShot("x", records(), encoder, classes=["a", "b"], templates=templates).classifier(
        None, [["a"], ["b", "c"]]
    )
    want = np.array([2.0, 1.0]) / np.sqrt(5.0)
    np.testing.assert_allclose(got[0, :2], want, rtol=1e-6)
    np.testing.assert_allclose(got[1, :2], want, rtol=1e-6)

    class Unnormalised(PlantedEncoder):
        def texts(self, params, texts):
            return super().texts(params, texts) * (1 + np.arange(len(texts)))[:, None]

    scaled = ZeroShot(
        "x", records(), Unnormalised(encoder.axes), templates=templates, classes=["a", "b"]
    )
    np.testing.assert_allclose(scaled.classifier(None, [["a"]])[0], got[0], rtol=1e-6)


def test_labels_may_be_names_positions_or_keys_of_a_mapping(tmp_path):
    encoder = PlantedEncoder(AXES)
    by_name = ZeroShot("x", records(), encoder, label_field="name")  # the names are the classes
    assert by_name.run(None)["acc@1"] == 1
    assert by_name.protocol["classes"] == 3
    # Names that look like numbers are still names: position 0 is "2".
    digits = PlantedEncoder({"2": APPLE, "1": PEAR, "0": DOG})
    assert ZeroShot("x", records(), digits, classes=["2", "1", "0"]).run(None)["acc@1"] == 1
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"2": "dog", "0": ["apple", "fruit"], "1": "pear"}))
    assert ZeroShot("x", records(), encoder, classes=str(path)).run(None)["acc@1"] == 1
    with pytest.raises(UserError, match="label 0"):
        ZeroShot("x", records(), encoder, classes={"7": "apple", "8": "pear"}).run(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_field": "kind"}, "no field 'kind'"),
        ({}, "set classes"),
        ({"classes": ["a", "a"]}, "listed twice"),
        ({"classes": ["a"]}, "at least two classes"),
        ({"classes": ["a", " "]}, "each with a name"),
        ({"classes": "no/such.json"}, "The classes file .* cannot be read"),
        ({"classes": ["a", "b"], "templates": "simpel"}, "did you mean 'simple'"),
        ({"classes": ["a", "b"], "templates": ["a photo"]}, "has no {}"),
        ({"classes": ["a", "b"], "templates": []}, "at least one"),
    ],
)
def test_zero_shot_says_what_is_wrong_before_the_first_run(options, message):
    with pytest.raises(UserError, match=message):
        ZeroShot("x", records(), PlantedEncoder({}), **options)


def test_templates_from_a_file_and_braces_in_names(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(["a photo of {c}", "{} {x}"]))
    templates = load_templates(str(path))
    assert [fill(t, "{c} {}") for t in templates] == ["a photo of {c} {}", "{c} {} {x}"]
    path.write_text("{")
    with pytest.raises(UserError, match=r"The templates file .* cannot be read"):
        load_templates(str(path))
    assert all(load_templates(name) for name in TEMPLATES)


def test_retrieval_with_many_captions_and_images():
    evaluator = Retrieval("all", records(), PlantedEncoder(AXES), chunk=3)
    result = evaluator.run(None)
    # "a hound" lies on the apple: its right image ties with nothing and is beaten by the apple.
    # Text axes: apple, apple, pear, dog, apple(hound). Images: apple, pear, pear, dog.
    # Text to image: hound has score 0 with its dog, tied with both pears, behind the apple: 0 at 1.
    assert result["text_to_image/R@1"] == pytest.approx(4 / 5)
    assert result["text_to_image/R@5"] == 1
    # Image to text: apple's best are {apple, fruit, hound}, 2 of the 3 right: 2/3. The others: 1.
    assert result["image_to_text/R@1"] == pytest.approx((2 / 3 + 3) / 4)
    assert evaluator.protocol["texts"] == 5
    assert evaluator.protocol["images"] == 4
    assert evaluator.protocol["chance"]["text_to_image/R@1"] == pytest.approx(
        (1 + 1 + 2 + 1 + 1) / 20
    )
    json.dumps(evaluator.protocol)
    names = Retrieval("names", records(), PlantedEncoder(AXES), text_fields="name").run(None)
    assert names["text_to_image/R@1"] == names["image_to_text/R@1"] == 1


def test_a_text_of_two_records_is_right_for_both():
    shared = [
        {"image": img(APPLE), "text": ["fruit"]},
        {"image": img(PEAR), "text": ["fruit"]},
        {"image": img(DOG), "text": ["dog"]},
    ]
    # All fruit lies on the pear: merged, the text finds a right image; the apple ranks its text
    # last.
    encoder = PlantedEncoder({"fruit": PEAR, "dog": DOG})
    merged = Retrieval("m", shared, encoder)
    assert merged.run(None)["text_to_image/R@1"] == 1
    assert merged.protocol["texts"] == 2
    apart = Retrieval("a", shared, encoder, merge_duplicates=False)
    result = apart.run(None)
    assert result["text_to_image/R@1"] == pytest.approx(2 / 3)  # the apple's copy finds the pear
    assert result["image_to_text/R@1"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert apart.protocol["texts"] == 3


def test_template_is_put_around_retrieval_texts():
    seen = []

    class Listening(PlantedEncoder):
        def texts(self, params, texts):
            seen.extend(texts)
            return super().texts(params, texts)

    Retrieval(
        "x", records(), Listening(AXES), text_fields=["name"], template="a drawing of {}"
    ).run(None)
    assert seen == ["a drawing of apple", "a drawing of pear", "a drawing of dog"]


def test_retrieval_gallery_names_records_and_marks_the_right_ones():
    evaluator = Retrieval("all", records(), PlantedEncoder(AXES))
    examples = evaluator.examples(None, 10)
    by_text = {e.text: e for e in examples if e.direction == "text_to_image"}
    by_image = [e for e in examples if e.direction == "image_to_text"]
    assert len(by_text) == 5
    assert len(by_image) == 4
    assert by_text["apple"].rank == 1
    hound = by_text["a hound"]
    assert (hound.record, hound.rank) == (2, 4)
    assert [(h.record, h.image, h.right) for h in hound.hits] == [
        (0, 0, False),
        (1, 0, False),
        (1, 1, False),
        (2, 0, True),
    ]
    assert hound.hits[0].score == pytest.approx(1.0)
    second_pear = by_image[2]
    assert (second_pear.record, second_pear.image, second_pear.text) == (1, 1, "pear")
    assert second_pear.hits[0].right
    assert second_pear.hits[0].text == "pear"
    assert evaluator.image(1, 1)[0, 0, 0] == PEAR
    few = evaluator.examples(None, 2, answers=1)
    assert len(few) == 4
    assert all(len(e.hits) == 1 for e in few)


def test_retrieval_says_what_is_wrong_before_the_first_run():
    with pytest.raises(UserError, match="no field 'title'"):
        Retrieval("x", records(), PlantedEncoder({}), text_fields="title")
    with pytest.raises(UserError, match="empty"):
        Retrieval("x", [], PlantedEncoder({}))
    blank = [{"image": img(0), "text": ["  "]}]
    with pytest.raises(UserError, match="has no text in 'text'"):
        Retrieval("x", blank, PlantedEncoder({}))
