"""Addresses that name nothing are refused before anything is made."""

import pytest

from sgan.addresses import store_address
from sgan.checks import ConfigError
from sgan.store.s3 import find_store, open_store


@pytest.mark.parametrize("text", ["", " ", "\t", "~nobody-here/x", "gs://bucket/x", "s3://", "s3:///x", "a\nb", "x "])
def test_an_address_that_names_nothing(text: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opens in (store_address, open_store, find_store):
        with pytest.raises(ConfigError, match="store"):
            opens(text)
    assert not list(tmp_path.iterdir())


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_address("~/runs/") == str(tmp_path / "runs")
    assert open_store("~/runs").root == tmp_path / "runs"
    assert store_address("s3://bucket/folder/") == "s3://bucket/folder"


def test_a_folder_that_is_no_store_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    assert find_store(str(tmp_path)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "stages").mkdir()
    found = find_store(str(tmp_path))
    assert found is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "stages"]
