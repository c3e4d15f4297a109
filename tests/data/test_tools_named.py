"""How a user names the data of a `clipjax data` command."""

import pytest

from clipjax.cli import main
from clipjax.data.commands.named import entry_of, named, parse_setting
from clipjax.errors import UserError

CONFIG = """
from clipjax.defaults import base_config

def get_config(arg=None):
    config = base_config()
    config.total_samples = 64
    config.model.image.size = 32
    config.data.sources = {
        "noise": {"kind": "synthetic", "size": 16, "length": 9},
        "drawings": {"kind": "drawings"},
    }
    return config
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return str(tmp_path / "config.py")


@pytest.mark.parametrize(
    ("pattern", "entry"),
    [
        ("a/{000..010}.tar", {"kind": "tars", "shards": "a/{000..010}.tar"}),
        ("web.tars", {"kind": "tars", "shards": "web.tars"}),
        ("gs://b/*.parquet", {"kind": "parquet", "files": "gs://b/*.parquet"}),
        ("x.arrayrecord", {"kind": "array_record", "files": "x.arrayrecord"}),
        (
            "d/x.array_record-00000-of-00002",
            {"kind": "array_record", "files": "d/x.array_record-00000-of-00002"},
        ),
        ("x.array_record*", {"kind": "array_record", "files": "x.array_record*"}),
        ("c.jsonl", {"kind": "captions", "file": "c.jsonl"}),
        ("c.CSV", {"kind": "captions", "file": "c.CSV"}),
        ("drawings", {"kind": "drawings"}),
        ("my.package:Pairs", {"kind": "my.package:Pairs"}),
    ],
)
def test_the_ending_says_the_kind(pattern, entry):
    assert entry_of(pattern) == entry


@pytest.mark.parametrize("pattern", ["x.zip", "folder", "x.tar.gz", "a.arrayrecord/x", "", "tar"])
def test_other_endings(pattern):
    with pytest.raises(UserError, match=r"neither with \.tar, .*nor \.csv, and is no kind"):
        entry_of(pattern)
    if pattern == "folder":
        with pytest.raises(UserError, match="there are: array_record, captions"):
            entry_of(pattern)


def test_settings():
    assert parse_setting("text=('a', 'b')", "--set") == ("text", ("a", "b"))
    assert parse_setting("text=plain text", "--set") == ("text", "plain text")
    assert parse_setting("size=64", "--set") == ("size", 64)
    assert parse_setting("index=a=b", "--set") == ("index", "a=b")
    assert parse_setting("x=", "--set") == ("x", "")
    for wrong in ("text", "=3", "a b=3"):
        with pytest.raises(UserError, match="--set needs NAME=VALUE"):
            parse_setting(wrong, "--set")
    entry = named("synthetic", ["size=8", "length=3"]).entries["synthetic"]
    assert entry == {"kind": "synthetic", "size": 8, "length": 3}


def test_a_config_names_its_sources(config):
    assert set(named(config=config).entries) == {"noise", "drawings"}
    found = named(
        config=config, source="noise", overrides=["data.sources.noise.length=5", "seed=7"]
    )
    assert found.entries == {"noise": {"kind": "synthetic", "size": 16, "length": 5}}
    assert found.settings().seed == 7
    stream = found.stream()
    assert stream.names == ["noise"]
    assert stream[0]["image"].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of them"),
        (["drawings", "--config=CONFIG"], "not both"),
        (["--config=CONFIG", "--set", "size=3"], "--set is for a SOURCE"),
        (["--config=CONFIG", "--source=nois"], "no source 'nois' (did you mean 'noise'?)"),
        (["--config=missing.py"], "no config file 'missing.py'"),
        (["drawings", "--source=noise"], "--source belongs to a config"),
        (["drawings", "--config.seed=3"], "--config.seed=3 belongs to a config"),
        (["drawing"], "did you mean 'drawings'?"),
        (["nothing-*.tar"], "no tar 'nothing-*.tar'"),
        (["drawings", "--set", "splitt=seen"], "no setting 'splitt' (did you mean 'split'?)"),
        (["x.tar", "--set", "shards=y"], "'shards' of 'x.tar' is given twice"),
    ],
)
@pytest.mark.parametrize("command", [["inspect"], ["bench"], ["verify"]])
def test_mistakes_are_one_sentence(config, capsys, command, arguments, words):
    arguments = [a.replace("CONFIG", config) for a in arguments]
    assert main(["data", *command, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_one_source_where_one_is_needed(config, tmp_path, capsys):
    for arguments in (["convert", f"--output={tmp_path / 'o'}"], ["verify", "--hashes=h"]):
        assert main(["data", *arguments, f"--config={config}"]) == 2
        assert "choose one with --source" in capsys.readouterr().err
