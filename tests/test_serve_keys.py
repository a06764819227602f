"""API keys and what each may ask for; the configuration of `fathom serve`, and what it refuses to start with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fathom.cli import main
from fathom.errors import InputError
from fathom.serve.keys import KeyEntry, Keys, Limits, new_key, read_keys, sha256
from fathom.serve.limits import Allowance, Bucket
from fathom.serve.serving import ServerConfig, server_keys

HASH = sha256("secret")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_known_by_its_hash_alone():
    keys = Keys({"alice": KeyEntry(sha256=HASH), "bob": KeyEntry(sha256=sha256("other"))})
    assert [keys.owner(key) for key in ("secret", "other", "third", HASH, "", "sécret")] == [
        "alice",
        "bob",
        *[None] * 4,
    ]
    assert len({new_key() for _ in range(100)}) == 100


def test_keys_come_from_a_file_and_from_the_environment(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f"alice: {{sha256: {HASH}, concurrency: 2}}\nbob: {sha256('b')}\n")
    keys = read_keys(path, Limits(requests_per_minute=5), f"carol:{sha256('c')}, dan:{sha256('d')}")
    assert list(keys.entries) == ["alice", "bob", "carol", "dan"]
    assert keys.entries["alice"].concurrency == 2
    assert {entry.requests_per_minute for entry in keys.entries.values()} == {5}
    assert not read_keys(None, Limits())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("alice: secret\n", "alice: sha256: expected the 64 hexadecimal digits"),
        ("alice: {}\n", "alice: sha256"),
        ("alice: 5\n", "alice: expected {sha256"),
        (f"alice: {{sha256: {HASH}, concurrency: 0}}\n", "alice: concurrency"),
        (f"alice: {{sha256: {HASH}, requests: 5}}\n", "alice: requests"),
        (f"al ice: {HASH}\n", "expected a name"),
        (f"alice: {HASH}\nbob: {HASH}\n", "two names have the same key"),
    ],
)
def test_a_wrong_file_of_keys_is_one_line_without_a_key(tmp_path, text, told):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        read_keys(path, Limits())
    assert str(path) in str(error.value)
    assert HASH not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_key_in_the_place_of_its_entry_is_not_repeated():
    with pytest.raises(InputError, match=r"^\$FATHOM_SERVE_KEYS: expected entries of the form name:sha256$"):
        read_keys(None, Limits(), "fathom-secret")


def test_a_made_key_opens_with_the_entry_that_was_printed(tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "fathom.serve.keys", "alice"], capture_output=True, text=True, check=True
    )
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    path = tmp_path / "keys.yaml"
    path.write_text(made.stdout)
    assert yaml.safe_load(made.stdout) == {"alice": {"sha256": sha256(key)}}
    assert read_keys(path, Limits()).owner(key) == "alice"


def test_a_bucket_fills_evenly_and_holds_a_minute():
    clock = Clock()
    bucket = Bucket(120, clock)
    bucket.take(120)
    assert bucket.seconds_until(1) == pytest.approx(0.5)
    clock.now += 30
    assert bucket.level == pytest.approx(60)
    clock.now += 3600
    assert bucket.level == 120
    bucket.take(200)
    assert bucket.seconds_until(1) == pytest.approx(40.5)


def test_each_limit_refuses_and_says_how_long():
    clock = Clock()
    at_once = Allowance(Limits(concurrency=2), clock)
    assert [at_once.enter(), at_once.enter()] == [None, None]
    assert at_once.enter().limit == "concurrency"
    at_once.leave(5)
    assert at_once.enter() is None

    often = Allowance(Limits(requests_per_minute=2), clock)
    assert [often.enter(), often.enter()] == [None, None]
    assert (often.enter().limit, often.enter().seconds) == ("requests_per_minute", 30)
    clock.now += 30
    assert often.enter() is None

    much = Allowance(Limits(tokens_per_minute=600), clock)
    assert much.enter() is None
    much.leave(700)
    assert (much.enter().limit, much.enter().seconds) == ("tokens_per_minute", 11)
    clock.now += 10.2
    assert much.enter() is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_a_server_for_others_insists_on_a_key(host):
    config = ServerConfig(name="m", host=host)
    with pytest.raises(InputError, match="needs API keys"):
        server_keys(config, {})
    assert server_keys(config, {"FATHOM_SERVE_KEYS": f"alice:{HASH}"})
    assert not server_keys(ServerConfig(name="m"), {})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "host=0.0.0.0"], "host 0.0.0.0 is open to others"),
        (["--set", "prot=80"], "did you mean 'port'"),
        (["--set", "port=99999"], "port"),
        (["--set", "port=eighty"], "port: "),
        (["--set", "limits.concurrency=0"], "limits.concurrency"),
        (["--set", "engine.kind=scripted"], "engine"),
        (["--set", "keys=nowhere.yaml"], "nowhere.yaml"),
        (["embedded:nobody"], "no model 'embedded:nobody'"),
        (["no-such-model"], "no-such-model"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fathom", "serve", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said
    assert list(Path().iterdir()) == []
