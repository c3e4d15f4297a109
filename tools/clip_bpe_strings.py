"""The strings of the CLIP tokenizer's golden: real phrases, known traps, and random mixtures."""

import collections
import html.entities
import random
import sys
import unicodedata
from collections.abc import Iterator

PHRASES = [
    "A photo of a dog, isn't it? We're sure they'll say: \"I'd've gone!\"",
    "IT'S NOT WHAT YOU'RE THINKING",
    "Une photo d’un chien à côté d’une forêt",
    "Ein Foto von einem großen Hund in der Straße",
    "Ψυχή και ΣΊΣΥΦΟΣ ΟΔΟΣ",
    "Una foto de un niño pequeño ¿verdad? ¡Sí!",
    "Uma fotografia de um cão à beira do coração",
    "Zdjęcie żółtej łódki nad źdźbłem",
    "Фотография собаки в лесу, ЁЖИК и ёлка",
    "Світлина пса біля їжака",
    "Снимка на куче",
    "Фотографија пса поред љубави и њиве",
    "Köpeğin fotoğrafı, İSTANBUL ve ıspanak DIŞ",
    "Fotografie psa na žluťoučkém koni",
    "Egy kutya fotója, árvíztűrő tükörfúrógép",
    "Ảnh chụp một con chó đang chạy trên bãi cỏ",
    "Larawan ng isang aso",
    "Foto seekor anjing",
    "Picha ya mbwa mkubwa",
    "صورة كلب في الحديقة، مرحبا بالعالم",
    "تصویر یک سگ در می‌خواهم",
    "כַּלְבָּא תמונה של כלב בגינה",
    "ایک کتے کی تصویر",
    "कुत्ते की तस्वीर, क्षत्रिय विद्यार्थी",
    "একটি কুকুরের ছবি",
    "ஒரு நாயின் புகைப்படம்",
    "కుక్క ఫోటో",
    "ಒಂದು ನಾಯಿಯ ಫೋಟೋ",
    "ഒരു നായയുടെ ഫോട്ടോ",
    "ภาพถ่ายของสุนัขในสวนน้ำ",
    "ຮູບພາບຂອງຫມາ",
    "រូបថតរបស់ឆ្កែ",
    "ခွေးတစ်ကောင်၏ဓာတ်ပုံ",
    "བོད་སྐད་ཀྱི་པར",
    "ሰላም የውሻ ፎቶ",
    "一张狗的照片，在草地上奔跑。",
    "一張狗的照片「你好」",
    "公園を走る犬の写真、ｶﾀｶﾅとひらがなー",
    "강아지 사진 입니다 한국어",
    "ㅎㅏㄴ",
    "ძაღლის ფოტო ᲫᲐᲦᲚᲘ",
    "Շան լուսանկար և ՈՒ",
    "Нохойн зураг",
    "Иттің суреті",
    "Ljósmynd af hundi, það ÐÆ",
    "Foto de gos: l·l, paral·lel",
    "Valokuva koirasta yötä",
    "Foto af en sød hund på åen",
    "Suņa fotogrāfija",
    "Šuns nuotrauka ąčęėįšųūž",
    "ʻŌlelo Hawaiʻi, ka ʻīlio",
    "Tiếng Việt phở",
]

EMOJI = [
    "😀",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪🇯🇵",
    "❤️",
    "☕",
    "🐕‍🦺",
    "1️⃣",
    "#️⃣",
    "🧑🏿‍🚀",
    "♀",
    "✈︎",
    "™",
    "©",
    "🫠",
    "👁️‍🗨️",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "㊙️",
    "🎄🎄🎄",
]

NASTY = [
    "",
    " ",
    "\n",
    "\t \u3000\xa0",
    "\0",
    "\x1b[31mred\x1b[0m",
    "a\x00b\x07c\x7fd",
    "\x85\x1c\x1d\x1e\x1f",
    "'",
    "''s",
    "<start_of_text>",
    "<end_of_text>",
    "a<end_of_text>b",
    "<START_OF_TEXT> <End_Of_Text>",
    "<start_of_text",
    "</w>",
    "<end_of_text><end_of_text>!",
    "<|startoftext|>",
    "<\u017ftart_of_text>",
    "it'\u017f",
    "THEY'LL WE'VE I'M HE'D DON'T",
    "it’s rock’n’roll ‘quoted’ “double” „low“ ‚x’",
    "l'a l's",
    "'S'T'RE",
    "3.14159 1,000,000 ½ ² ⅷ ٣٤٥ १२३ ①",
    "2023-01-01T00:00",
    "&lt;b&gt;",
    "&amp;amp;lt;",
    "&amp;amp;amp;amp;",
    "&nbsp;x&nbsp;",
    "&#39;s &#x27;s &#x1F600; &#0; &#128; &#xD800; &#1114112;",
    "&eacute &copy &notit; &notin; &AMP; &bogus; &",
    "<p>AT&amp;T</p>",
    "a &lt; b",
    "<a &lt; b",
    "&#x80;&#150;",
    "&#x1b;",
    "âœ” No problems",
    "LÃ¡vate las manos",
    "sÃ³",
    "doesnâ€™t",
    "Ã¢â‚¬â„¢",
    "Ñ‚ÐµÑÑ‚",
    "ðŸ˜€",
    "ï»¿bom",
    "\ufeffbom",
    "Ãƒ",
    "voilÃ  le travail",
    "ﬁne ﬂow ﬃ ĳ ǆ",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "\u200b\u200c\u200d\u2060\ufe0f",
    "a\u200bb\u00adc\u034f\u061c",
    "\u202eRTL\u202c \u2066x\u2069 \u200f",
    "e\u0301 é n\u0303 ñ ộ o\u0323\u0302",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033da\u0334\u0319l\u0348g\u0321o",
    "\u0301",
    "ΑΣ-ΑΣ ΟΔΟΣ/Σ ΑΣ'Α",
    "İstanbul Iı ẞß ǅ Σας ΑΣ ᾈ",
    "\u2028line\u2029para\x0bvt\x0cff",
    "\r\n\r\rx\r",
    "_under_score__",
    "a_b-c/d\\e",
    "!!!",
    "! !",
    "!" * 100,
    "...",
    "#hash @at $1 50% a+b=c",
    "~`^*()[]{}|",
    "\ufffd\ufffe\uffff",
    "\U0010ffff\U000e0001",
    "\ue000",
    "a" * 200,
    "ab" * 500,
    "antidisestablishmentarianism" * 20,
    "漢" * 120,
    "😀" * 60,
    "the cat " * 60,
    "1" * 100,
    "'s" * 60,
    "a\u0301" * 80,
    "\ud800",
    "x\udfffy",
    "\ud83d\ude00",
    "\ude00\ud83d",
    "\ud83d \ude00 &lt;",
    "\udc80\udcff bytes",
    "http://x.org/a?b=c&d=e&copy=1#f",
    "me@example.com",
]

SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2000\u2009\u2028\u202f\u3000\u200b\u2060\ufeff"
ENCODINGS = ("cp1252", "latin-1", "cp1251", "cp437", "mac-roman", "cp1250", "iso8859-2")
ENTITIES = [f"&{name}" for name in html.entities.html5]


class Strings:
    """Random strings of every kind, each made of a few pieces."""

    def __init__(self, seed: int, captions: list[str]):
        self.random = random.Random(seed)
        self.captions = captions
        # Letters by script, so that a random word is of one script, as words are.
        scripts = collections.defaultdict(list)
        self.assigned = []
        for code in range(sys.maxunicode + 1):
            letter = chr(code)
            category = unicodedata.category(letter)
            if category in ("Cn", "Cs", "Co"):
                continue
            self.assigned.append(letter)
            if category[0] in "LM":
                scripts[unicodedata.name(letter, "?").split(" ")[0]].append(letter)
        self.scripts = [letters for letters in scripts.values() if len(letters) > 10]
        low = [letter for letter in self.assigned if letter < "\u3100"]
        self.makers = [
            lambda: self.random.choice(captions),
            lambda: self.random.choice(PHRASES),
            self._part,
            self._mojibake,
            lambda: self._some(self.random.choice(self.scripts), 7),
            lambda: self._some(self.assigned, 4),
            lambda: self._some(low, 6),
            lambda: self._some([chr(code) for code in range(256)], 12),
            lambda: self._some([chr(code) for code in range(0x20, 0x7F)], 16),
            lambda: self.random.choice(EMOJI),
            lambda: self._some(SPACES, 3),
            lambda: self.random.choice(ENTITIES),
            lambda: f"&#{self.random.choice(['', 'x'])}{self.random.randrange(3000)};",
            lambda: str(self.random.randrange(10**6)),
            lambda: self._case(self.random.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"])),
            lambda: self._case(self.random.choice(["<start_of_text>", "<end_of_text>"])),
            lambda: self.random.choice(NASTY)[:60],
        ]

    def _some(self, letters: list[str] | str, most: int) -> str:
        return "".join(self.random.choices(letters, k=self.random.randint(1, most)))

    def _case(self, text: str) -> str:
        return self.random.choice([str, str, str.upper, str.title, str.swapcase])(text)

    def _part(self) -> str:
        text = self.random.choice(PHRASES)
        start = self.random.randrange(len(text))
        return self._case(text[start : start + self.random.randint(1, 12)])

    def _mojibake(self) -> str:
        text = self._part()
        for _ in range(self.random.randint(1, 2)):
            text = text.encode("utf-8").decode(self.random.choice(ENCODINGS), errors="ignore")
        return text

    def __iter__(self) -> Iterator[str]:
        while True:
            pieces = [self.random.choice(self.makers)() for _ in range(self.random.randint(1, 5))]
            yield self.random.choice(["", " ", " ", " ", "\n", ", "]).join(pieces)
