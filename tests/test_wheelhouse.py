"""A wheelhouse built from tiny wheels: what is chosen, cut, refused by name, resumed, and installed with and without pip."""

import base64
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wheelhouse, installer = load("wheelhouse"), load("wheelhouse_install")


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str], requires=(), tag="py3-none-any") -> Path:
    """A wheel as the format says, with RECORD's hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    files = {
        **files,
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(member, text)
    return path


PROJECT = """
[project]
name = "deep"
dependencies = ["tinybase>=1"]
[project.optional-dependencies]
gpu = ["tinygpu", "tinytorch"]
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels, a project that wants some of them, and what the other machine has."""
    root = tmp_path_factory.mktemp("index")
    links = root / "links"
    make_wheel(links, "tinybase", "1.0", {"tinybase.py": "VERSION = 1\n"})
    make_wheel(links, "tinybase", "2.0", {"tinybase.py": "VERSION = 2\n"})
    make_wheel(links, "tinytorch", "2.11.0", {"tinytorch.py": ""})
    make_wheel(
        links,
        "tinygpu",
        "0.3",
        {
            "tinygpu/__init__.py": "from tinybase import VERSION\n\n\ndef main():\n    print('tiny', VERSION)\n    return 0\n",
            "tinygpu/kernels.bin": "x" * 20_000,
            "tinygpu-0.3.data/scripts/tinyscript": "#!python\nimport tinygpu\ntinygpu.main()\n",
            "tinygpu-0.3.data/data/share/tiny.txt": "shared",
            "tinygpu-0.3.data/platlib/tinyplat.py": "WHERE = 'platlib'\n",
            "tinygpu-0.3.dist-info/entry_points.txt": "[console_scripts]\ntiny = tinygpu:main\n",
        },
        requires=["tinybase", "tinytorch"],
    )
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "locked.txt").write_text("# tested\ntinybase==1.0\ntinytorch==9.9\n")
    (root / "installed.txt").write_text("TinyTorch==2.11.0+cu130\n-e somewhere\nlocal @ file:///x\n")
    return root


def build(index: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / "wheelhouse.py", "build", "--no-index", "--find-links", index / "links"]
    command += ["--pyproject", index / "pyproject.toml", "--constraints", index / "locked.txt", "--extra", "gpu"]
    command += ["--exclude-present", index / "installed.txt", "--python", HERE, "--machine", platform.machine()]
    command += ["--piece-size", "9KB", "--out", out, *more]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(index, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "wheelhouse"
    done = build(index, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copied(built, tmp_path):
    """What a user carries over."""
    target = tmp_path / "carried"
    target.mkdir()
    for path in (*built.glob("piece-*"), built / "manifest.json", built / "install.py"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def install(folder: Path, *words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(folder / "install.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------ building


def test_what_is_chosen_and_cut(built):
    manifest = json.loads((built / "manifest.json").read_text())
    assert {w["name"]: w["version"] for w in manifest["wheels"]} == {
        "tinybase": "1.0",
        "tinygpu": "0.3",
    }  # locked; present
    sizes = [piece["bytes"] for piece in manifest["pieces"]]
    assert len(sizes) == 4 and set(sizes[:-1]) == {9000} and 0 < sizes[-1] <= 9000
    for piece in manifest["pieces"]:
        content = (built / piece["file"]).read_bytes()
        assert len(content) == piece["bytes"] and hashlib.sha256(content).hexdigest() == piece["sha256"]
    lock = (built / "lock.txt").read_text().splitlines()
    assert lock[0].startswith("tinybase==1.0 --hash=sha256:")


def test_the_same_wheels_give_the_same_bytes_and_are_not_fetched_again(index, built, tmp_path, monkeypatch):
    wheels = [wheelhouse.Wheel(**row) for row in json.loads((built / "manifest.json").read_text())["wheels"]]
    again = wheelhouse.pack(wheels, built / "wheels", tmp_path, 9000)
    assert again == json.loads((built / "manifest.json").read_text())["pieces"]
    monkeypatch.setattr(wheelhouse, "urlopen", lambda *_, **__: pytest.fail("fetched again"))
    chosen = [wheelhouse.Chosen(w.name, w.version, f"https://nowhere/{w.file}", w.sha256) for w in wheels]
    assert [wheelhouse.fetch(one, built / "wheels") for one in chosen] == wheels


def test_a_download_that_is_not_what_the_index_says_is_refused(index, tmp_path):
    path = index / "links" / "tinybase-1.0-py3-none-any.whl"
    with pytest.raises(wheelhouse.Refused, match=r"tinybase-1\.0.*: sha256 .*, the index says 0000"):
        wheelhouse.fetch(wheelhouse.Chosen("tinybase", "1.0", path.as_uri(), "0" * 64), tmp_path)
    assert not (tmp_path / path.name).exists()


def test_a_dry_run_tells_sizes_and_writes_nothing(index, tmp_path):
    done = build(index, tmp_path / "none", "--dry-run", "--free", "tinybase")
    assert done.returncode == 0, done.stderr
    assert "3 packages, 2 of them not on the other machine" in done.stdout
    assert "tinybase 2.0" in done.stdout and "in 3 pieces" in done.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--extra", "tpu"), "wheelhouse: --extra tpu: pyproject.toml has gpu"),
        (("--torch", "3.0"), None),
        (("--wheel", "missing.whl"), "wheelhouse: --wheel missing.whl: no such wheel"),
        (("--exclude-present", "nowhere.txt"), "wheelhouse: nowhere.txt: No such file or directory"),
        (("--piece-size", "60XB"), "expected a size such as 60MB or 1GiB, got '60XB'"),
    ],
)
def test_what_is_refused(index, tmp_path, more, message):
    if message is None:  # the extra wants a version that the constraint rules out
        (tmp_path / "installed.txt").write_text("tinybase==0.5\n")
        more, message = ("--exclude-present", str(tmp_path / "installed.txt")), "wheelhouse: pip: "
    done = build(index, tmp_path / "out", *more)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_conflict_is_told_in_one_line():
    said = """ERROR: Cannot install vllm==0.24.0 because these package versions have conflicting dependencies.
    The conflict is caused by:
        common 1.13 depends on numpy<2.4
        common 1.12 depends on numpy<2.4
        The user requested (constraint) numpy==2.4.6
    ERROR: ResolutionImpossible: for help visit"""
    told = (
        "common 1.13 depends on numpy<2.4; The user requested (constraint) numpy==2.4.6 (--free NAME lifts a version)"
    )
    assert wheelhouse.reason(said) == told
    assert (
        wheelhouse.reason("WARNING: x\nERROR: No matching distribution found for y\n")
        == "No matching distribution found for y"
    )


@pytest.mark.parametrize(("text", "size"), [("60MB", 60_000_000), ("1.5GiB", 1_610_612_736), ("4096", 4096)])
def test_sizes(text, size):
    assert wheelhouse.parse_size(text) == size


def test_the_projects_own_extras_are_read():
    wanted = wheelhouse.requirements(SCRIPTS.parent / "pyproject.toml", ["gpu", "vllm"])
    assert any(line.startswith("vllm>=") for line in wanted) and any(line.startswith("pydantic") for line in wanted)
    kept = wheelhouse.constraints(SCRIPTS.parent / "constraints.txt", {"rich": "1.0+here"}, "2.11.0+cu130", ["numpy"])
    assert "torch==2.11.0" in kept and "rich==1.0" in kept and not any(line.startswith("numpy==") for line in kept)


# ------------------------------------------------------------------------------ installing


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "piece-0002").unlink(), "missing: piece-0002 (of 4 pieces); copy these again"),
        (lambda folder: flip(folder / "piece-0003"), "corrupt: piece-0003 (of 4 pieces)"),
        (lambda folder: (folder / "piece-0004").write_bytes(b"x"), "corrupt: piece-0004"),
        (
            lambda folder: [(folder / "piece-0001").unlink(), flip(folder / "piece-0002")],
            "missing: piece-0001; corrupt: piece-0002",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: no such file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: damaged"),
    ],
)
def test_damage_is_named(copied, tmp_path, damage, message):
    damage(copied)
    for words in (["--check"], ["--target", tmp_path / "site"]):
        done = install(copied, *words)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "site").exists()


def test_another_python_is_refused(copied, tmp_path):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "python": "3.99"}))
    done = install(copied, "--target", tmp_path / "site")
    assert done.returncode == 2 and f"made for python 3.99, and this is {HERE}" in done.stderr


def test_without_pip_into_a_folder(copied, tmp_path):
    site = tmp_path / "site"
    done = install(copied, "--target", site)
    assert done.returncode == 0, done.stderr
    assert (site / "share/tiny.txt").read_text() == "shared" and (site / "tinyplat.py").is_file()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for command in ([site / "bin/tiny"], [site / "bin/tinyscript"]):
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ran.stdout == "tiny 1\n", ran.stderr
    # a second time from the unpacked wheels alone; what is there stays as it is
    (site / "tinybase.py").write_text("VERSION = 'mine'\n")
    for piece in copied.glob("piece-*"):
        piece.unlink()
    assert install(copied, "--target", site).returncode == 0
    assert (site / "tinybase.py").read_text() == "VERSION = 'mine'\n"


def test_it_goes_on_where_it_was_cut_off(copied, tmp_path):
    wheels, site = copied / "wheels", tmp_path / "site"
    assert install(copied, "--target", site).returncode == 0
    cut = next(wheels.glob("tinygpu*"))
    cut.write_bytes(cut.read_bytes()[:100])  # killed while it was written
    record = next(site.glob("tinygpu*.dist-info")) / "RECORD"
    record.unlink()  # killed before a wheel was whole
    (site / "tinygpu/kernels.bin").unlink()
    assert install(copied, "--target", site).returncode == 0
    assert (site / "tinygpu/kernels.bin").stat().st_size == 20_000 and record.is_file()


def test_with_pip(copied, tmp_path):
    """pip sees that what the wheels need is missing here, and installs where it is there."""
    site = tmp_path / "venv/lib" / f"python{HERE}" / "site-packages"
    site.mkdir(parents=True)
    (site / "pip.pth").write_text(
        str(Path(pip.__file__).parents[1]) + "\n"
    )  # so that none is put in, which takes seconds
    done = install(copied, "--venv", tmp_path / "venv")
    assert done.returncode == 2 and "pip: " in done.stderr and "tinytorch" in done.stderr
    info = site / "tinytorch-2.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinytorch\nVersion: 2.11.0\n")
    done = install(copied, "--venv", tmp_path / "venv")
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([tmp_path / "venv/bin/tiny"], capture_output=True, text=True, check=False)
    assert ran.stdout == "tiny 1\n"


def test_a_wheel_that_was_cut_off_is_put_in_place_again(tmp_path, monkeypatch):
    entry = {"foo-1.dist-info/entry_points.txt": "[console_scripts]\nfoo = foo:main\n", "foo.py": ""}
    wheel = make_wheel(tmp_path, "foo", "1", entry)
    target, scripts = tmp_path / "site", tmp_path / "bin"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(installer, "_write_commands", interrupted)
        installer.unzip(wheel, target, scripts)
    installer.unzip(wheel, target, scripts)
    assert (scripts / "foo").is_file() and (target / "foo-1.dist-info/RECORD").is_file()


def interrupted(*given):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "evil-1.0.data/platform/x"])
def test_a_wheel_that_would_write_elsewhere_is_refused(tmp_path, name):
    wheel = make_wheel(tmp_path, "evil", "1.0", {name: "x"})
    with pytest.raises(installer.Refused, match=r"evil-1\.0-py3-none-any\.whl: "):
        installer.unzip(wheel, tmp_path / "site/packages", tmp_path / "site/bin")
    assert not (tmp_path / "site/outside.py").exists()
