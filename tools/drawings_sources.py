"""Where the bundled drawings and their names come from: packages, checksums, licences, locales.

Only tables; the work is in build_drawings.py, the data set's own documents in drawings_readme.py.
"""

from __future__ import annotations

import dataclasses

TILE = 64  # pixels
COLUMNS = 32  # tiles in a row of a contact sheet
QUALITY = 90  # of WebP; alpha is lossless


@dataclasses.dataclass(frozen=True)
class Package:
    """An npm package, pinned by version and by the sha256 of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclasses.dataclass(frozen=True)
class Style:
    """One drawing style: the package that has it and what its licence asks for."""

    package: Package
    title: str
    authors: str
    homepage: str
    licence: str
    licence_file: str
    role: str = "train"


GOOGLE = Package(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
TWITTER = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
OPENMOJI = Package(
    "openmoji", "17.0.0", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68"
)
NOTO_V1 = Package(
    "@iconify-json/noto-v1",
    "1.2.5",
    "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
)
EMOJIONE = Package(
    "@iconify-json/emojione",
    "1.2.3",
    "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
CLDR = Package(
    "cldr-annotations-full",
    "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
)
CLDR_DERIVED = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
)
# Full licence texts, for the packages that ship only the licence's name.
LICENCE_TEXTS = Package(
    "spdx-license-list",
    "6.9.0",
    "6fc548671065864949e0cedd510c823ecb2fcded932f32b116dc2618be61dcc5",
)

STYLES = {
    "noto": Style(
        GOOGLE,
        "Noto Emoji",
        "Google LLC",
        "github.com/googlefonts/noto-emoji",
        "Apache-2.0",
        "Apache-2.0.txt",
    ),
    "twemoji": Style(
        TWITTER,
        "Twemoji",
        "Twitter, Inc and other contributors",
        "github.com/twitter/twemoji",
        "CC-BY-4.0",
        "CC-BY-4.0.txt",
    ),
    "openmoji": Style(
        OPENMOJI,
        "OpenMoji",
        "the OpenMoji project, HfG Schwäbisch Gmünd",
        "openmoji.org",
        "CC-BY-SA-4.0",
        "CC-BY-SA-4.0.txt",
    ),
    "noto_v1": Style(
        NOTO_V1,
        "Noto Emoji, first version",
        "Google Inc",
        "github.com/googlefonts/noto-emoji",
        "Apache-2.0",
        "Apache-2.0.txt",
    ),
    "emojione": Style(
        EMOJIONE,
        "EmojiOne 2.3",
        "EmojiOne, and EmojiTwo which continues it",
        "github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
        "CC-BY-4.0.txt",
    ),
    "fluent_3d": Style(
        FLUENT_3D,
        "Fluent Emoji 3D",
        "Microsoft Corporation; packaged by LobeHub",
        "github.com/microsoft/fluentui-emoji",
        "MIT",
        "MIT-fluent-emoji.txt",
        role="test",
    ),
}

# The five emoji groups that are things: no faces, people, symbols or flags.
CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")

# (style, code point) whose slug names another thing in that set, found by looking at every pair.
WRONG_JOINS = {
    ("noto_v1", "1F997"): "`cricket` is the game's bat and ball there, the concept is the insect",
    ("emojione", "1F997"): "`cricket` is the game's bat and ball there, the concept is the insect",
}

# English first; then by script. Each covers every concept.
LOCALES = {
    "en": "English",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "ha": "Hausa",
    "id": "Indonesian",
    "it": "Italian",
    "pl": "Polish",
    "pt": "Portuguese",
    "sw": "Swahili",
    "tr": "Turkish",
    "vi": "Vietnamese",
    "el": "Greek",
    "ru": "Russian",
    "uk": "Ukrainian",
    "hy": "Armenian",
    "ka": "Georgian",
    "he": "Hebrew",
    "ar": "Arabic",
    "fa": "Persian",
    "ur": "Urdu",
    "am": "Amharic",
    "hi": "Hindi",
    "mr": "Marathi",
    "bn": "Bengali",
    "pa": "Punjabi (Gurmukhi)",
    "gu": "Gujarati",
    "ta": "Tamil",
    "te": "Telugu",
    "ml": "Malayalam",
    "th": "Thai",
    "my": "Burmese",
    "km": "Khmer",
    "zh": "Chinese (simplified)",
    "ja": "Japanese",
    "ko": "Korean",
}


def sources() -> list[tuple[str, Package, str]]:
    """(part of the data set, package, licence of what is taken from it), in a fixed order."""
    rows = [(f"{name}.webp", style.package, style.licence) for name, style in STYLES.items()]
    rows.append(("concepts.json", GOOGLE, "MIT"))
    rows += [("names/", CLDR, "Unicode-3.0"), ("names/", CLDR_DERIVED, "Unicode-3.0")]
    rows.append(("licence texts", LICENCE_TEXTS, "CC0-1.0"))
    return rows


def packages() -> list[Package]:
    """Every package once."""
    return list(dict.fromkeys(package for _, package, _ in sources()))
