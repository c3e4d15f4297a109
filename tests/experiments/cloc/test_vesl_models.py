"""VESL's models of transformers on tiny random checkpoints: OWLv2 against its own post-processing, captioners.

PyTorch and transformers are no part of the extra `test`; where they are not installed this is skipped.
"""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from clipjax.errors import UserError  # noqa: E402
from experiments.cloc.vesl.assign import regions  # noqa: E402
from experiments.cloc.vesl.example import Example  # noqa: E402
from experiments.cloc.vesl.owlv2 import OwlV2  # noqa: E402
from experiments.cloc.vesl.transformers_captioner import TransformersCaptioner  # noqa: E402
from tests.tiny_images import noise  # noqa: E402

WORDS = [
    "a",
    "cat",
    "dog",
    "on",
    "the",
    "red",
    "mat",
    "and",
    "one",
    "small",
    "image",
    "of",
    "USER",
    ":",
    "ASSISTANT",
]
TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def clip_tokenizer():
    """Bytes only; the ends are the two last ids, as in CLIP's."""
    plain = [chr(c) for c in range(33, 127)]
    tokens = plain + [c + "</w>" for c in plain] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[]), len(vocabulary)


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    """A folder with a checkpoint of OWLv2: 56 px, patches of 14."""
    folder = tmp_path_factory.mktemp("owl")
    tokenizer, size = clip_tokenizer()
    config = transformers.Owlv2Config(
        text_config={
            "vocab_size": size,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.Owlv2ForObjectDetection(config).eval()
    for weights in model.class_head.parameters():  # so that scores differ
        torch.nn.init.normal_(weights, std=0.5)
    for weights in model.box_head.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(folder)
    images = transformers.Owlv2ImageProcessor(size={"height": 56, "width": 56})
    transformers.Owlv2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def examples():
    imgs = [noise(i, size) for i, size in enumerate([(60, 40), (30, 50)])]
    return [
        Example({}, imgs[0], ("a cat", "the red mat on the very long floor of that house")),
        Example({}, imgs[1], ("one dog", "a small cat", "the mat")),
    ]


@pytest.mark.parametrize("size", [0, 84])
def test_owlv2_gives_what_its_own_post_processing_gives(owl, size):
    detector = OwlV2(owl, size=size, device="cpu")
    detector.load()
    for example, found in zip(examples(), detector(examples()), strict=True):
        assert found.scores_NxP.shape == (((size or 56) // 14) ** 2, len(example.phrases))
        ours = regions(found, len(example.phrases), threshold=0.1)
        width, height = example.image.size
        inputs = detector._processor(
            images=example.image,
            text=[list(example.phrases)],
            images_kwargs={"size": {"height": size or 56, "width": size or 56}},
            text_kwargs={"max_length": 16, "truncation": True, "padding": "max_length"},
            return_tensors="pt",
        )
        with torch.no_grad():
            outputs = detector._model(**inputs, interpolate_pos_encoding=size > 0)
        (theirs,) = detector._processor.image_processor.post_process_object_detection(
            outputs, threshold=0.1, target_sizes=[(height, width)]
        )
        boxes = theirs["boxes"].double().numpy() / [width, height, width, height]
        boxes = boxes.clip(0, 1)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        assert inside.sum() > 0
        assert len(inside) == len(ours.boxes_Mx4) + ours.outside
        np.testing.assert_allclose(ours.boxes_Mx4, boxes[inside], atol=1e-5)
        np.testing.assert_array_equal(ours.phrase_M, theirs["labels"].numpy()[inside])
        np.testing.assert_allclose(ours.score_M, theirs["scores"].numpy()[inside], atol=1e-5)
        assert len(set(ours.phrase_M.tolist())) > 1


def test_owlv2_takes_a_image_without_phrases_and_refuses_odd_sizes(owl):
    detector = OwlV2(owl, size=0, device="cpu")
    detector.load()
    one, other = examples()
    found = detector([one._replace(phrases=()), other])
    assert found[0].scores_NxP.shape == (16, 0)
    np.testing.assert_allclose(found[1].scores_NxP, detector([other])[0].scores_NxP, atol=1e-5)
    with pytest.raises(UserError, match="not a multiple of 14"):
        OwlV2(owl, size=100, device="cpu").load()
    with pytest.raises(UserError, match=r"checkpoint '.*nowhere' cannot be loaded"):
        OwlV2(owl + "/nowhere", device="cpu").load()
    with pytest.raises(UserError, match=r"cannot be loaded on 'no_such'"):
        OwlV2(owl, device="no_such").load()


def test_weights_that_a_checkpoint_lacks_are_said(owl, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(owl, tmp_path / "owl")
    path = tmp_path / "owl" / "model.safetensors"
    whole = load_file(path)
    name = next(n for n in whole if n.startswith("class_head") and n.endswith("weight"))
    for changed in (
        {n: w for n, w in whole.items() if n != name},
        whole | {name: torch.zeros(3, 5)},
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"of another model than 'owlv2' needs: 1 .*class_head"):
            OwlV2(str(tmp_path / "owl"), device="cpu").load()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A folder with a checkpoint of BLIP."""
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(w.lower() for w in WORDS)]
    tokenizer = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)})
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 16,
            "encoder_hidden_size": 16,
            "intermediate_size": 32,
            "projection_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        projection_dim=16,
    )
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).eval().save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 28, "width": 28})
    transformers.BlipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with a checkpoint of LLaVA, whose processor has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llava")
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "<image>", *WORDS]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    config = transformers.LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokens),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 16,
        },
        image_token_index=4,
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).eval().save_pretrained(folder)
    images = transformers.CLIPImageProcessor(
        size={"height": 28, "width": 28}, crop_size={"height": 28, "width": 28}
    )
    transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("prompt", ["", "a small image of", "A small"])
def test_blip_writes_captions(blip, prompt):
    captioner = TransformersCaptioner(blip, prompt, max_new_tokens=12, device="cpu")
    captioner.load()
    found = captioner(examples())
    assert [len(texts) for texts in found] == [1, 1]
    assert all(texts[0] for texts in found)
    assert not prompt or not found[0][0].startswith(prompt.lower())
    assert found == [captioner([e])[0] for e in examples()]


def test_llava_writes_captions(llava):
    captioner = TransformersCaptioner(llava, "the image", max_new_tokens=6, device="cpu")
    captioner.load()
    found = captioner(examples())
    assert all("ASSISTANT :" not in t for texts in found for t in texts)
    assert found == [captioner([e])[0] for e in examples()]
    assert [len(texts) for texts in found] == [1, 1]


def test_a_missing_checkpoint_is_said():
    with pytest.raises(UserError, match="nowhere' cannot be loaded"):
        TransformersCaptioner("/nowhere", device="cpu").load()
