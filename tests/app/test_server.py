"""The page as strangers meet it: other paths, damaged uploads, passwords, many clients, clients that go."""

from __future__ import annotations

import concurrent.futures
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sfumato[app]'")

from sfumato.app import pictures, server
from sfumato.errors import InputError
from tests.app.pages import Active, Client, classes, generating, served


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    classes(place / "runs" / "digits")
    (place / "secret.txt").write_text("a secret")
    return place


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with served(place) as found:
        yield found


@pytest.fixture
def client(url: str, request: pytest.FixtureRequest) -> Client:
    return Client(url, f"session{abs(hash(request.node.name))}").open()


def digits(place: Path) -> dict[str, Any]:
    return {"generate_model": str(place / "runs" / "digits"), "generate_count": 1, "generate_steps": 2}


def test_a_picture_is_made(client: Client, place: Path) -> None:
    client.send(generating(client), **digits(place))
    last = client.result()
    assert last["success"], last
    gallery = last["output"]["data"][2]
    shown = gallery["value"] if isinstance(gallery, dict) else gallery
    path = shown[0]["image"]["path"]
    answer = client.http.get(f"/gradio_api/file={path}")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (8, 8) and '"seed": 0' in image.info["sfumato"]


OTHERS = ("/etc/passwd", "../../../../etc/passwd", "//etc/passwd", "/proc/self/environ", "{place}/secret.txt")


@pytest.mark.parametrize("way", [*OTHERS, "{place}/runs/digits/config.json"])
def test_other_files_are_not_served(client: Client, place: Path, way: str) -> None:
    path = way.replace("{place}", str(place))
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
        answer = client.http.get(f"{prefix}{path}")
        assert answer.status_code >= 400 or (b"secret" not in answer.content and b"root:" not in answer.content)
        assert b'"format"' not in answer.content


@pytest.mark.parametrize("path", ["/etc/passwd", "secret.txt", "../secret.txt"])
def test_a_path_is_no_upload(client: Client, place: Path, path: str) -> None:
    payload = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    client.press("generate-drop", "upload", generate_drop=payload)
    assert not client.result()["success"]


@pytest.mark.parametrize("name", ["../../secret", "/etc", "runs", ""])
def test_a_path_is_no_model(client: Client, place: Path, name: str) -> None:
    client.send(generating(client), **{**digits(place), "generate_model": name})
    last = client.result()
    assert not last["success"] and "/etc/" not in str(last["output"].get("error", ""))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"generate_count": 10**6}, "16"),
        ({"generate_steps": 10**9}, "steps"),
        ({"generate_seed": -1}, "seed"),
        ({"generate_seed": 10**30}, "seed"),
        ({"generate_class": "twelve"}, "list"),
        ({"generate_sampler": "os:system"}, "list"),
    ],
)
def test_values_from_the_browser_are_checked(client: Client, place: Path, value: dict[str, Any], words: str) -> None:
    client.send(generating(client), **{**digits(place), **value})
    last = client.result()
    assert not last["success"]
    assert any(one in str(last["output"]["error"]).lower() for one in (words, "value", "choices", "maximum", "minimum"))


def uploaded(client: Client, content: bytes, name: str) -> Any:
    return client.http.post("/gradio_api/upload", files={"files": (name, content)})


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, format="PNG", compress_level=0 if width < 1000 else 9)
    return buffer.getvalue()


def test_an_upload_has_a_largest_size(client: Client) -> None:
    assert uploaded(client, b"x" * (pictures.MOST_BYTES + 10), "a.png").status_code >= 400
    assert uploaded(client, b"x" * 100, "a.png").status_code == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture at all", "damaged"),
        (png(640, 640)[:-80], "damaged"),
        (png(9000, 9000), "pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_bad_upload_is_answered_in_a_sentence(client: Client, content: bytes, words: str) -> None:
    (path,) = uploaded(client, content, "a.png").json()
    payload = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    client.press("generate-drop", "upload", generate_drop=payload)
    last = client.result()
    assert not last["success"] and words in last["output"]["error"]


def test_other_names_of_this_machine_are_refused(client: Client) -> None:
    assert client.http.get("/", headers={"Host": "example.com"}).status_code == 400
    assert client.http.get("/config", headers={"Host": "example.com:7860"}).status_code == 400


def test_ten_clients_take_turns(url: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active = Active(monkeypatch)

    def one(number: int) -> dict[str, Any]:
        client = Client(url, f"turn{number}").open()
        client.send(generating(client), **digits(place))
        return client.result()

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        results = list(pool.map(one, range(10)))
    assert all(one["success"] for one in results)
    assert active.all == 10 and active.most == 1


def test_a_client_that_goes_does_not_hold_up_others(url: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active = Active(monkeypatch)
    gone = Client(url, "gone").open()
    gone.send(generating(gone), **{**digits(place), "generate_count": 16, "generate_steps": 900})
    for message in gone.events():
        if message["msg"] == "process_generating":
            break
    gone.http.close()
    start = time.monotonic()
    while active.now and time.monotonic() - start < 10.0:
        time.sleep(0.05)
    assert active.now == 0
    other = Client(url, "other").open()
    other.send(generating(other), **digits(place))
    assert other.result()["success"]


def test_a_run_that_vanishes_is_named(tmp_path: Path) -> None:
    import shutil

    classes(tmp_path / "runs" / "mine")
    with served(tmp_path) as url:
        client = Client(url, "vanished").open()
        (tmp_path / "away").mkdir()
        shutil.move(tmp_path / "runs" / "mine", tmp_path / "away")
        client.send(generating(client), **{**digits(tmp_path), "generate_model": str(tmp_path / "runs" / "mine")})
        last = client.result()
    assert not last["success"] and "no weights" in last["output"]["error"].lower()


def test_elsewhere_than_on_loopback_there_is_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path, host="0.0.0.0") as url:
        said = capsys.readouterr().out
        word = said.partition("password ")[2].split()[0]
        client = Client(url.replace("0.0.0.0", "127.0.0.1"), "stranger")
        assert len(word) >= 12
        assert client.http.get("/config").status_code == 401
        assert client.http.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
        assert uploaded(client, b"x", "a.png").status_code == 401
        assert client.http.post("/login", data={"username": "sfumato", "password": "wrong"}).status_code == 400
        assert client.http.post("/login", data={"username": "other", "password": word}).status_code == 400
        answer = client.http.post("/login", data={"username": "sfumato", "password": word})
        assert answer.status_code == 200
        assert client.http.get("/config").status_code == 200


def test_a_password_that_was_given_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path, password="open sesame") as url:
        assert "sesame" not in capsys.readouterr().out
        assert Client(url, "stranger").http.get("/config").status_code == 401


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with served(tmp_path, port=port) as url:
            said = capsys.readouterr().out
            assert f"Port {port} is taken" in said and not url.endswith(f":{port}")


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no address"):
        server.serve(runs=tmp_path, host="192.0.2.1", block=False)
    with pytest.raises(InputError, match="no folder"):
        server.serve(runs=tmp_path, folders=[tmp_path / "none"], block=False)
