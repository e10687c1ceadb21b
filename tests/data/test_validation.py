from helpers.images import encode, odd_files, photo, write_photos
from helpers.sources import sizes

from vitkeras import data
from vitkeras.data import validation


def test_odd_files_of_a_folder_are_decoded_or_listed(tmp_path):
    root = write_photos(tmp_path, [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(5)])
    odd = odd_files(encode(photo(30, 40)))
    for name, content in odd.items():
        (root / "bee" / name).write_bytes(content)
    source = data.FolderSource(root)
    assert sum(sizes(source)) == 13
    reasons = dict(source.bad_images)
    assert set(reasons) == {f"bee/{name}" for name in odd if name.startswith("bad")}
    assert reasons["bee/bad_empty.jpg"] == "the file is empty"
    assert "at most 100,000,000 pixels" in reasons["bee/bad_giant.png"]


def test_files_that_were_decoded_are_not_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(5)]
    root = write_photos(tmp_path / "photos", files)
    (root / "bee" / "bad.png").write_bytes(b"text")
    decoded, decode = [], validation._decode

    def record(files, progress):
        decoded.extend(files)
        return decode(files, progress)

    monkeypatch.setattr(validation, "_decode", record)

    def read():
        decoded.clear()
        source = data.FolderSource(root)
        return sum(sizes(source)), sorted(path for path, _ in source.bad_images), len(decoded)

    assert read() == (10, ["bee/bad.png"], 11)
    assert read() == (10, ["bee/bad.png"], 1)  # a bad file may have been repaired
    (root / "ant" / "3.png").write_bytes(b"text")
    assert read() == (9, ["ant/3.png", "bee/bad.png"], 2)
    cache = next((tmp_path / "cache").rglob("*.npy"))
    cache.write_bytes(cache.read_bytes()[:50])
    assert read()[2] == 11
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "ant" / "0.png"))  # not a directory
    assert read()[0] == 9
