"""Texts of the bundled drawings as queries and gallery."""

from clipjax.data.drawings import TEST_STYLE, Drawings


class ConceptTexts(list):
    """Records with a `text` and the `concept` it means: its name, or up to three `keywords` that are not its name."""

    def __init__(self, keywords: bool = False):
        for record in Drawings("all", (TEST_STYLE,)):
            words = [k for k in record["keywords"] if k != record["name"]][:3]
            text = ", ".join(words) if keywords else record["name"]
            if text:
                self.append({"text": text, "concept": record["concept"]})
