"""The files of a release: what is in them, and that they work where nothing else is."""

import email.message
import email.policy
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("hatch_fancy_pypi_readme")

ROOT = Path(__file__).parent.parent
NAME = "fastapi_lifespan_deps"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both files: the wheel is built from the source distribution."""
    directory = tmp_path_factory.mktemp("dist")
    # In this environment: nothing is downloaded.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT))
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (sdist,) = built.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.EmailMessage:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        return BytesParser(policy=email.policy.default).parsebytes(archive.read(file))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, and with the requirements that are here.

    This environment's own, editable package isn't among them: what names its folder is only read in
    the folder of an environment itself.
    """
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    (packages,) = venv.glob("lib/python*/site-packages")
    fastapi = importlib.metadata.distribution("fastapi").locate_file("")
    packages.joinpath("requirements.pth").write_text(f"{fastapi}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"]
    run(*pip, "--quiet", "--no-index", "--no-deps", str(wheel))
    return venv / "bin"


def run(*command: str, cwd: Path | None = None) -> str:
    """What the command writes; it must succeed. It doesn't see this checkout by itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"{NAME}-{importlib.metadata.version(NAME)}.dist-info"
    files = {path for path in ROOT.joinpath(NAME).rglob("*") if path.suffix in (".py", ".typed")}
    assert names == {str(path.relative_to(ROOT)) for path in files} | {
        f"{about}/{name}"
        for name in (
            "METADATA",
            "RECORD",
            "WHEEL",
            "entry_points.txt",
            "licenses/LICENSE",
            "licenses/NOTICE",
        )
    }


def test_the_source_distribution_holds_what_the_repository_holds(sdist: Path) -> None:
    """So whatever its tests and scripts need; and no file that lies about here."""
    if not ROOT.joinpath(".git").exists():
        pytest.skip("this is no repository")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    inside = {member.name.partition("/")[2] for member in members}
    listed = ["git", "ls-files", "-z"]
    tracked = {name for name in run(*listed, cwd=ROOT).split("\0") if ROOT.joinpath(name).is_file()}
    # What is about to be added is there, too.
    others = run(*listed, "--others", "--exclude-standard", cwd=ROOT).split("\0")
    assert tracked - inside == set()
    assert inside - tracked - set(others) == {"PKG-INFO"}
    scripts = {member.name for member in members if "/scripts/" in member.name}
    runnable = {member.name for member in members if member.mode & 0o100} & scripts
    assert {Path(name).name for name in runnable} >= {"install", "serve", "test", "check-sdist"}


def test_the_index_can_show_it(built: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(map(str, built.iterdir()))
    output = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files)
    assert output.count("PASSED") == 2


def test_the_page_of_the_index_has_no_link_that_leads_nowhere(
    metadata: email.message.EmailMessage,
) -> None:
    page = metadata.get_payload()
    assert isinstance(page, str)
    links = re.findall(r"\]\(([^)]+)\)", ROOT.joinpath("README.md").read_text())
    assert any(not link.startswith("https://") for link in links)
    assert [x for x in re.findall(r"\]\(([^)]+)\)", page) if not x.startswith("https://")] == []
    assert "\n$ pip install fastapi-lifespan-deps\n" in page
    assert "pip install ." not in page


def test_the_metadata_is_complete(metadata: email.message.EmailMessage) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    for name in ("Author", "Keywords", "Requires-Python", "Summary"):
        assert metadata[name]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    for url in metadata.get_all("Project-URL", []):
        assert re.fullmatch(r"\w+, https://.+", url)


def test_it_requires_fastapi_and_offers_what_it_can_use_itself(
    metadata: email.message.EmailMessage,
) -> None:
    assert metadata.get_all("Provides-Extra") == ["cli", "otel"]
    required = metadata.get_all("Requires-Dist", [])
    always = [requirement for requirement in required if "extra ==" not in requirement]
    assert [re.split(r"\W", requirement)[0] for requirement in always] == ["fastapi"]


def test_what_was_installed_runs(installed: Path, tmp_path: Path) -> None:
    program = """\
        from typing import Annotated

        from fastapi.testclient import TestClient

        import fastapi_lifespan_deps
        from fastapi_lifespan_deps import Depends, LifespanFastAPI

        app = LifespanFastAPI()


        def get_list() -> list[str]:
            return [fastapi_lifespan_deps.__file__]


        @app.get("/")
        def read(values: Annotated[list[str], Depends(get_list, scope="lifespan")]) -> list[str]:
            values.append("shared")
            return values


        if __name__ == "__main__":
            with TestClient(app) as client:
                client.get("/")
                print(client.get("/").json())
    """
    tmp_path.joinpath("main.py").write_text(textwrap.dedent(program))
    (package,) = installed.parent.glob(f"lib/python*/site-packages/{NAME}")
    answer = run(str(installed / "python"), "-W", "ignore", "main.py", cwd=tmp_path)
    assert answer == f"{[str(package / '__init__.py'), 'shared', 'shared']}\n"

    command = str(installed / "fastapi-lifespan-deps")
    assert "worker" in run(command, "--help", cwd=tmp_path)
    assert "get_list" in run(command, "graph", "main:app", cwd=tmp_path)
    assert package.joinpath("py.typed").is_file()
