"""Loading, overriding and checking configs; durations; JSON."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from clipjax.config import apply_override, check_type, flatten, from_json, in_samples, to_json
from clipjax.config import load_config as load
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.workdir import resolve
from tests.tiny_run import CONFIG, tiny_config


def overridden(*overrides):
    return load(str(CONFIG), base_config(), overrides)


def refused(*overrides):
    with pytest.raises(UserError) as caught:
        overridden(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Overrides


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("config.batch_size=16", "batch_size", 16),
        ("batch_size=16", "batch_size", 16),
        ("batch_size=2_048", "batch_size", 2048),
        ("optim.lr=1", "optim.lr", 1),
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.clip_norm=1.0", "optim.clip_norm", 1.0),
        ("optim.name=lion", "optim.name", "lion"),
        ("model.image.depth=6", "model.image.depth", 6),
        ("data.record_ids=False", "data.record_ids", False),
        (
            "data.features.image.augment.crop_scale=(0.5, 1)",
            "data.features.image.augment.crop_scale",
            (0.5, 1),
        ),
        ("model.init_bias=-10.0", "model.init_bias", -10.0),
        ("mesh.fsdp=2", "mesh.fsdp", 2),
        # Fields that users name: the section is open.
        ("losses.contrastive.layout=ring", "losses.contrastive.layout", "ring"),
        ("losses.second={'kind': 'sigmoid'}", "losses.second.kind", "sigmoid"),
        ("evals.unseen.chunk=64", "evals.unseen.chunk", 64),
        ("data.sources.drawings.weight=2", "data.sources.drawings.weight", 2),
        ("init.image=efficientnet_lite0", "init.image", "efficientnet_lite0"),
        ("data.features.text.captions.name=0.25", "data.features.text.captions.name", 0.25),
        # Durations are numbers or words.
        ("total_samples=3 epochs", "total_samples", "3 epochs"),
        ("total_samples=64", "total_samples", 64),
        ("checkpoint.every=None", "checkpoint.every", None),
        ("optim.warmup=5%", "optim.warmup", "5%"),
        # A string stays one, even if it looks like something else; a value may hold "=".
        ("tokenizer.source=123", "tokenizer.source", "123"),
        ("tokenizer.source=a=b", "tokenizer.source", "a=b"),
    ],
)
def test_overrides(text, field, value):
    assert flatten(overridden(text))[field] == value


def test_a_section_is_replaced_by_a_dict():
    config = overridden("evals={}", "losses={'only': {'kind': 'softmax'}}")
    assert not config.evals
    assert config.losses.only.kind == "softmax"
    assert list(config.losses) == ["only"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bach_size=3", "no field 'bach_size' (did you mean 'batch_size'"),
        ("optim.learning_rate=3", "no field 'optim.learning_rate' (there are: b1, b2"),
        ("optim.wramup=3", "'optim.wramup' (did you mean 'warmup'"),
        (
            "data.features.image.augment.flip.x=1",
            "config.data.features.image.augment.flip is a value and has no field 'x'",
        ),
        ("batch_size", "no value; write --config.batch_size=VALUE"),
        ("batch_size=", "config.batch_size must be a whole number, not ''"),
        ("batch_size=8.0", "config.batch_size must be a whole number, not 8.0"),
        ("batch_size=True", "config.batch_size must be a whole number, not True"),
        ("optim.lr=fast", "config.optim.lr must be a number, not 'fast'"),
        ("data.record_ids=1", "config.data.record_ids must be True or False, not 1"),
        (
            "data.features.image.augment.crop_scale=0.5",
            "augment.crop_scale must be a tuple, not 0.5",
        ),
        ("optim=3", "config.optim is a section with the fields b1, b2"),
        ("optim={'name': 'lion'}", "config lacks the field 'optim.b1'"),
        ("losses={}", "config.losses is empty"),
        ("losses.contrastive=3", "config.losses.contrastive is a section"),
        ("data.features.mine=3", "config.data.features.mine must be a section such as"),
        ("mesh.fsdp=two", "config.mesh.fsdp must be a whole number, not 'two'"),
        ("model.image.depth=deep", "config.model.image.depth must be a whole number"),
        ("seed=None", "config.seed cannot be None"),
        ("preprocess=None", "config.preprocess is a section"),
    ],
)
def test_wrong_overrides(override, message):
    assert message in refused(override)


names = st.sampled_from(sorted(flatten(tiny_config())))
values = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(deadline=None)
@given(path=st.one_of(names, st.text(max_size=12)), value=values, plain=st.booleans())
def test_any_override_is_applied_or_refused(path, value, plain):
    """No other exception, and a field that was set keeps its kind of value."""
    config = ConfigDict(tiny_config().to_dict(), type_safe=False)
    before = flatten(config)
    text = str(value) if plain else repr(value)
    try:
        apply_override(config, f"config.{path}={text}")
    except UserError:
        assert flatten(config) == before
        return
    path = path.partition("=")[0].removeprefix("config.")
    changed = {
        key
        for key in before.keys() | flatten(config).keys()
        if repr(before.get(key)) != repr(flatten(config).get(key))
    }
    assert all(key.startswith(path) or path.startswith(key) for key in changed)
    if path in before and path in flatten(config):
        check_type(path, before[path], flatten(config)[path])


# Durations


def samples(value, total=10_000):
    return in_samples(value, "x", 32, 500, total)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (0, 0),
        (100, 100),
        (99.6, 100),
        ("100", 100),
        ("1_000 samples", 1000),
        ("1 sample", 1),
        ("1e3", 1000),
        ("10 steps", 320),
        ("1 step", 32),
        ("2.5 epochs", 1250),
        ("1epoch", 500),
        ("5%", 500),
        ("100 %", 10_000),
        (1e20, 10**20),
        # A share that is less than a sample is still not "never".
        ("0.001%", 1),
        (0.3, 1),
        ("0%", 0),
    ],
)
def test_durations(value, expected):
    assert samples(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(-1, "-5", "ten steps", "10 minutes", "10 s", "10 stepss", "", "%", "1 2", "steps"),
        *(True, "1__0", (3,), float("nan"), float("inf"), "1e999"),
    ],
)
def test_wrong_durations(value):
    with pytest.raises(UserError, match=r"config.x = .* is not a valid duration"):
        samples(value)


def test_a_share_of_nothing():
    with pytest.raises(UserError, match="a percentage of itself makes no sense"):
        samples("5%", total=None)


@given(
    st.one_of(
        st.integers(),
        st.floats(),
        st.text(max_size=10),
        st.from_regex(r"\A[0-9.e+_]{1,6} ?[a-z%]{0,7}\Z"),
    )
)
def test_any_duration_is_a_count_or_refused(value):
    try:
        result = samples(value)
    except UserError:
        return
    assert isinstance(result, int)
    assert result >= 0


@given(st.integers(0, 10**12), st.sampled_from(["", " samples", " steps", " epochs"]))
def test_whole_durations_are_exact(count, unit):
    per = {"": 1, " samples": 1, " steps": 32, " epochs": 500}[unit]
    assert samples(f"{count}{unit}") == count * per


def test_resolve():
    config = resolve(overridden("total_samples=100", "checkpoint.keep_every=50%"), epoch=673)
    assert config.total_samples == 104  # whole batches
    assert config.checkpoint.every == 32
    assert config.checkpoint.keep_every == 52
    assert config.evals.unseen.every == 52
    assert resolve(overridden("total_samples=2 epochs"), epoch=40).total_samples == 80
    with pytest.raises(UserError, match="total_samples is 0"):
        resolve(overridden("total_samples=0"), epoch=673)
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        resolve(overridden("batch_size=0"), epoch=673)


# Config files and JSON


def test_json_round_trip():
    config = overridden("optim.freeze=(('image/.*', True), ('.*', False))")
    again = from_json(to_json(config))
    assert again.to_dict() == config.to_dict()
    assert again.optim.freeze == (("image/.*", True), (".*", False))
    assert to_json(again) == to_json(config)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.from_regex(r"\A[a-z]\w{0,5}\Z"), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.from_regex(r"\A[a-z]\w{0,5}\Z"), plain, max_size=4))
def test_any_json_round_trip(value):
    config = ConfigDict(value, type_safe=False)
    assert from_json(to_json(config)).to_dict() == config.to_dict()


BAD_FILES = {
    "def get_config(arg=None:\n    pass": "is not valid Python",
    "def config():\n    pass": "defines no function get_config",
    "import no_such_module": "line 1: ModuleNotFoundError: No module named 'no_such_module'",
    "def get_config(arg=None):\n    return undefined": "line 2: NameError",
    "def get_config(arg=None):\n    return 1 / 0": "line 2: ZeroDivisionError",
    "def get_config(arg=None):\n    return {}": "must return a ConfigDict, not a dict",
    "def get_config(arg=None):\n    pass": "must return a ConfigDict, not a NoneType",
    "from clipjax.defaults import base_config\ndef get_config(arg=None):\n"
    "    config = base_config()\n    config.optim.lrr.x = 3\n    return config": "line 4: AttributeError",
    "from clipjax.defaults import base_config\ndef get_config(arg=None):\n"
    "    config = base_config()\n    config.optim.lrr = 3\n    return config": (
        "no field 'optim.lrr' (did you mean 'lr'"
    ),
    "from clipjax.models import image_section\ndef get_config(arg=None):\n"
    "    return image_section(depht=3)": "'vit' has no setting 'depht' (did you mean 'depth'",
    "from clipjax.defaults import base_config\ndef get_config(arg=None):\n"
    "    config = base_config()\n    config.seed = 'one'\n    return config": (
        "config.seed must be a whole number, not 'one'"
    ),
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_config_files(tmp_path, text):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(file), base_config())
    assert BAD_FILES[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_of_config_files(tmp_path):
    assert load(f"{CONFIG}:7", base_config()).total_samples == "7 steps"
    file = tmp_path / "plain.py"
    file.write_text(
        "from clipjax.defaults import base_config\ndef get_config():\n    return base_config()"
    )
    assert load(str(file), base_config()).batch_size == 1024
    with pytest.raises(UserError, match=r"takes no argument, but 'b16' was given"):
        load(f"{file}:b16", base_config())


def test_missing_config_file(tmp_path):
    (tmp_path / "drawings.py").write_text("")
    with pytest.raises(
        UserError, match=r"no config file '.*drawing.py' .did you mean '.*drawings.py'"
    ):
        load(str(tmp_path / "drawing.py"), base_config())


def test_a_loaded_config_is_locked():
    with pytest.raises(AttributeError):
        overridden().batchsize = 3
