"""An encoder of regions whose embeddings and boxes are planted, and records that it reads."""

import numpy as np

SIZE = 12
WORDS = ("cat", "dog", "cup", "hat", "car", "bee", "fox")


class Planted:
    """Embeds a text by its word; a region by the colour in the middle of its box; finds a text where it is told."""

    def __init__(self, texts=None, boxes=None, hidden=(), size=8):
        self.table = np.eye(size, dtype=np.float32) if texts is None else texts
        self.boxes, self.hidden, self.calls = boxes or {}, hidden, []

    def check_regions(self, how):
        assert how in ("model", "crop")

    def check_ground(self):
        pass

    def texts(self, params, texts):
        return np.stack([self.table[WORDS.index(text.split()[-1])] for text in texts])

    def images(self, params, images):
        return np.stack([np.eye(8, dtype=np.float32)[int(image[0, 0, 0])] for image in images])

    def visible(self, images, boxes, how):
        found = [np.array([tuple(box) not in self.hidden for box in some], bool) for some in boxes]
        assert all((x[:, 2:] > x[:, :2]).all() for x in map(np.asarray, boxes) if len(x))
        return found

    def regions(self, params, images, boxes, how):
        self.calls.append((len(images), how))
        found = []
        for image, some in zip(images, boxes, strict=True):
            rows = [np.zeros((0, 8), np.float32)]
            for box in some:
                x, y = int((box[0] + box[2]) / 2 * SIZE), int((box[1] + box[3]) / 2 * SIZE)
                rows.append(np.eye(8, dtype=np.float32)[None, image[y, x, 0]])
            found.append(np.concatenate(rows))
        return found

    def ground(self, params, images, texts):
        return [
            np.array([self.boxes[text] for text in some], np.float32).reshape(-1, 4)
            for some in texts
        ]


class Same(Planted):
    """Everything is alike."""

    def texts(self, params, texts):
        return np.full((len(texts), 8), 8**-0.5, np.float32)

    def images(self, params, images):
        return self.texts(params, images)

    def regions(self, params, images, boxes, how):
        return [self.texts(params, some) for some in boxes]


def scene(*things, **more):
    """A record with a patch of colour WORDS.index(name) in each (name, box) of whole pixels."""
    image = np.full((SIZE, SIZE, 3), 7, np.uint8)
    for name, (x1, y1, x2, y2) in things:
        image[y1:y2, x1:x2] = WORDS.index(name)
    return {
        "image": image,
        "boxes": [np.array(box) / SIZE for _, box in things],
        "names": [name for name, _ in things],
        "region_text": [["", f"the {name}", "not this"] for name, _ in things],
        **more,
    }


LEFT, RIGHT, TOP, LOW = (0, 0, 4, 12), (8, 0, 12, 12), (4, 0, 8, 4), (4, 8, 8, 12)


def scenes():
    return [
        scene(("cat", LEFT), ("dog", RIGHT)),
        scene(),
        scene(("cup", TOP), ("cat", LOW), ("hat", LEFT)),
        scene(("car", RIGHT), ("bee", TOP), ("fox", LEFT), ("cat", LOW)),
    ]
