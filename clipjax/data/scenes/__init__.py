"""Scenes composed of the bundled drawings, with exact boxes, masks and region texts: the sprites and their names are
real, the layout is synthetic. `Scenes` is a source of raw records; tools/make_scenes.py writes them to files.

    sprites.py      which drawings there are, and one of them turned, flipped and scaled
    backgrounds.py  photographs that scikit-image ships, and made-up ones
    layout.py       where objects lie, what hides what, and the painted image
    facts.py        what is true of a layout: sizes, places, relations
    texts.py        those facts in words, and captions in which one of them is wrong
    sheet.py        an image to look at
"""

from clipjax.data.scenes.backgrounds import TEST_PHOTOS, TRAIN_PHOTOS
from clipjax.data.scenes.source import Scenes

__all__ = ["TEST_PHOTOS", "TRAIN_PHOTOS", "Scenes"]
