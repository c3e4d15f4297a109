"""Word-sense induction: pseudo-words in held-out sentences, of which the true sense is known."""

from typing import Any

import numpy as np


def adjusted_rand(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Adjusted Rand index of two clusterings (Hubert & Arabie 1985): 1 if they are the same, on average 0 by chance."""
    table = np.zeros((a_N.max() + 1, b_N.max() + 1))
    np.add.at(table, (a_N, b_N), 1)
    pairs = lambda x: (x * (x - 1) / 2).sum()  # noqa: E731
    a, b = pairs(table.sum(1)), pairs(table.sum(0))
    mean, most = a * b / max(pairs(table.sum()), 1), (a + b) / 2
    return float((pairs(table) - mean) / (most - mean)) if most != mean else 1.0


def k_means(x_NxD: np.ndarray, k: int, rng: np.random.Generator, rounds: int = 30) -> np.ndarray:
    """Centres [k, D] of x, begun as k-means++ does (Arthur & Vassilvitskii 2007)."""
    centres = x_NxD[[rng.integers(len(x_NxD))]]
    while len(centres) < k:
        far = distances(x_NxD, centres).min(1) + 1e-9
        centres = np.concatenate([centres, x_NxD[[rng.choice(len(far), p=far / far.sum())]]])
    for _ in range(rounds):
        own = distances(x_NxD, centres).argmin(1)
        found = np.unique(own)
        centres[found] = [x_NxD[own == i].mean(0) for i in found]
    return centres


def distances(x_NxD: np.ndarray, y_KxD: np.ndarray) -> np.ndarray:
    """Squared, [N, K]."""
    return ((x_NxD[:, None] - y_KxD) ** 2).sum(-1)


class Senses:
    """ARI and accuracy of the model's senses, and how many of them words use; means over words.

    A sense is in use whose prior is at least `prune`. Priors P(k | w) are p = softmax(z), summed over all training
    positions of a word; UNKNOWN's are all alike. For accuracy a sense stands for the true one that it has most often
    among the training occurrences of the word; `chance` is that of always saying the more frequent one.

    Args:
      source: a `windows.Windows`.
      whole: the context is the sentence, the word itself included, and all senses count; else it is the window, and
        only senses in use do.
      prune: see above.

    Cost: the model without its loss at every training position: 20 s a million on two cores.
    """

    units = {"senses": "", "pseudo_word_senses": ""}  # noqa: RUF012

    def __init__(
        self, name: str, encoder: Any, source: Any, *, whole: bool = True, prune: float = 0.05
    ):
        del name
        self._encoder, self._source, self._whole, self._prune = encoder, source, whole, prune
        self._train = source.train[source.part[source.train] >= 0]
        self._words = np.unique(source.centre[source.test])
        counts = np.zeros((len(source.words), 2))
        np.add.at(counts, (source.centre[self._train], source.part[self._train]), 1)
        chance = counts[self._words].max(1) / np.maximum(counts[self._words].sum(1), 1)
        self.protocol = {
            "pseudo_words": len(self._words),
            "occurrences": len(source.test),
            "chance": {"ari": 0.0, "accuracy": float(chance.mean())},
        }

    def output(self, output: str, params: Any, places_N: np.ndarray, whole: bool) -> np.ndarray:
        """An output of the model [N, ...] at positions of the corpus."""
        context = self._source.contexts(places_N, whole)
        batch = {"centre": self._source.centre[places_N], "context": context}
        return self._encoder.outputs(params, batch, only=[output])[output]

    def priors(self, params: Any) -> np.ndarray:
        """P(k | w), [V, K]; of words that never occur they are all alike."""
        places = self._source.train
        z_NxK = self.output("sense_logits", params, places, False)
        p_NxK = np.exp(z_NxK - z_NxK.max(1, keepdims=True))
        sums = np.zeros((len(self._source.words), z_NxK.shape[1]))
        np.add.at(sums, self._source.centre[places], p_NxK / p_NxK.sum(1, keepdims=True))
        sums[0], sums[~sums.any(1)] = 1.0, 1.0
        return sums / sums.sum(1, keepdims=True)

    def run(self, params: Any) -> dict[str, float]:
        """`ari`, `accuracy`, and how many `senses` a word that occurs has in use, and a pseudo-word."""
        source, used = self._source, self.priors(params) >= self._prune
        found = []
        for places in (self._train, source.test):
            z_NxK = self.output("sense_logits", params, places, self._whole)
            usable = self._whole | used[source.centre[places]]
            found.append(np.where(usable, z_NxK, -np.inf).argmax(1))
        occurs = np.unique(source.centre[source.train])
        return self.scores(*found) | {
            "senses": float(used[occurs[occurs > 0]].sum(1).mean()),
            "pseudo_word_senses": float(used[self._words].sum(1).mean()),
        }

    def scores(self, found_train: np.ndarray, found_test: np.ndarray) -> dict[str, float]:
        """`ari` and `accuracy` of the senses found at the pseudo-words' training and held-out occurrences."""
        centre, part, rand, right = self._source.centre, self._source.part, [], []
        for word in self._words:
            seen, asked = centre[self._train] == word, centre[self._source.test] == word
            true, answer = part[self._source.test][asked], found_test[asked]
            counts = np.zeros((max(found_train.max(), found_test.max()) + 1, 2))
            np.add.at(counts, (found_train[seen], part[self._train][seen]), 1)
            means = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())
            rand.append(adjusted_rand(answer, true))
            right.append((means[answer] == true).mean())
        return {"ari": float(np.mean(rand)), "accuracy": float(np.mean(right))}


class ContextClusters(Senses):
    """The baseline: k-means of the normalised context means u of each pseudo-word's training occurrences.

    Args:
      source, whole: as above.
      clusters: k.
      seed: of k-means.
    """

    units = {}  # noqa: RUF012

    def __init__(
        self,
        name: str,
        encoder: Any,
        source: Any,
        *,
        clusters: int = 3,
        whole: bool = True,
        seed: int = 0,
    ):
        super().__init__(name, encoder, source, whole=whole)
        self._clusters, self._seed = clusters, seed

    def run(self, params: Any) -> dict[str, float]:
        """`ari` and `accuracy` of the nearest centres."""
        places = (self._train, self._source.test)
        u = [self.output("context_mean", params, p, self._whole) for p in places]
        u = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in u]
        found = [np.zeros(len(p), int) for p in places]
        for word in self._words:
            at = [self._source.centre[p] == word for p in places]
            rng = np.random.default_rng((self._seed, int(word)))
            centres = k_means(u[0][at[0]], self._clusters, rng)
            for x, mine, own in zip(u, at, found, strict=True):
                own[mine] = distances(x[mine], centres).argmin(1)
        return self.scores(*found)
