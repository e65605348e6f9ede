"""The demo: its explanations, the requests that it answers, and its page in a real browser."""

import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from stages.common.artifacts.methods import METHODS
from stages.common.reporting.formatting import DISPLAY_NAMES
from stages.common.serving.demo_server import MAX_BYTES, DemoServer, _Handler
from stages.common.serving.explanation import MAX_WORDS, NearestTexts, explain_prediction
from stages.common.serving.text_classifier import TextClassifier, load_text_classifier
from tests.support.browser import visit
from tests.support.corpus import LABELS
from tests.support.project import ROOT

MARKUP = "<img src=x onerror=document.title='run'>"


@pytest.fixture
def classifier(trained_project, monkeypatch) -> TextClassifier:
    monkeypatch.chdir(trained_project)
    return load_text_classifier(Path("data/models/lora"))


def test_the_attribution_of_a_word_is_what_the_probability_loses_without_it(classifier):
    explanation = explain_prediction(classifier, "배터리 정말 최고")
    with_all, without = classifier.predict_proba(["배터리 정말 최고", "배터리 최고"])
    best = int(with_all.argmax())
    assert explanation["label"] == LABELS[best]
    assert explanation["probabilities"] == pytest.approx(with_all, abs=1e-6)
    assert explanation["attributions"][1]["word"] == "정말"
    assert explanation["attributions"][1]["attribution"] == pytest.approx(with_all[best] - without[best], abs=2e-6)


def test_the_only_word_of_a_text_carries_its_whole_probability(classifier):
    explanation = explain_prediction(classifier, "최고")
    assert explanation["attributions"][0]["attribution"] == max(explanation["probabilities"])


def test_a_text_of_which_cleaning_leaves_nothing_has_no_label(classifier):
    assert explain_prediction(classifier, "😊 …") == {"label": None, "probabilities": None, "attributions": []}


def test_decomposed_hangul_is_explained_as_composed_hangul_is(classifier):
    text = "배터리 정말 최고"
    decomposed = explain_prediction(classifier, unicodedata.normalize("NFD", text))
    assert decomposed == explain_prediction(classifier, text)
    nearest = NearestTexts([text, "화면 별로"], ["긍정", "부정"])
    assert nearest.find(unicodedata.normalize("NFD", text), 1)[0]["similarity"] == 1


def test_the_words_of_a_long_text_are_attributed_up_to_a_limit(classifier):
    assert len(explain_prediction(classifier, "최고 " * 2 * MAX_WORDS)["attributions"]) == MAX_WORDS


def test_the_nearest_texts_share_the_most_with_the_text():
    nearest = NearestTexts(["배터리 최고", "화면 별로", "배터리가 별로"], ["긍정", "부정", "부정"])
    found = nearest.find("배터리 최고", 2)
    assert [(row["text"], row["label"]) for row in found] == [("배터리 최고", "긍정"), ("배터리가 별로", "부정")]
    assert found[0]["similarity"] == 1
    assert nearest.find("xyz", 2) == []


def explain(text: str) -> dict:
    """Return an answer in which every text is HTML markup."""
    prediction = {"label": MARKUP, "probabilities": [0.2, 0.3, 0.5]}
    prediction["attributions"] = [{"word": word, "attribution": 0.1} for word in text.split()]
    nearest = [{"text": MARKUP, "label": MARKUP, "similarity": 0.5}]
    return {"labels": [MARKUP] * 3, "models": {MARKUP: prediction, "lora": prediction}, "nearest": nearest}


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(explain, 0) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def request(server: DemoServer, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
    """Send a request, and return status and body of the answer. Names of headers have _ instead of -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=300)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body.encode(), {"Content-Type": "application/json", **named})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_server_listens_on_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_the_endpoint_answers_a_text(server):
    status, answer = request(server, "POST", "/explain", json.dumps({"text": "최고 별로"}))
    assert status == 200
    assert json.loads(answer) == explain("최고 별로")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Host": "example.org"},
        {"Content_Type": "text/plain"},
    ],
    ids=str,
)
def test_requests_of_other_origins_are_refused(server, headers):
    assert request(server, "POST", "/explain", json.dumps({"text": "최고"}), **headers)[0] == 403


def test_the_page_is_refused_under_another_name(server):
    assert request(server, "GET", "/", Host="rebound.example.org")[0] == 403
    assert request(server, "GET", "/", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://127.0.0.1", "http://localhost"])
def test_port_80_is_left_out_of_host_and_origin(origin):
    handler = _Handler.__new__(_Handler)
    handler.server = SimpleNamespace(server_port=80)
    handler.headers = {"Host": origin.removeprefix("http://"), "Origin": origin}
    assert handler._is_own_origin()
    handler.server.server_port = 8000
    assert not handler._is_own_origin()


def test_a_client_that_leaves_is_no_error(server, capfd):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # Reset the connection.
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert request(server, "GET", "/")[0] == 200
    time.sleep(0.1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "{}", '{"text": "\\ud800"}', json.dumps({"text": "가" * MAX_BYTES}), "[" * 5000],
    ids=["nothing", "half", "array", "no text", "half of a pair", "too long", "deep"],
)
def test_a_request_that_holds_no_text_is_refused(server, body):
    assert request(server, "POST", "/explain", body)[0] == 400


def test_a_browser_shows_markup_as_text_and_asks_nobody_else(server, tmp_path):
    page = visit(f"{server.url}/#text={quote(f'최고 {MARKUP}')}", tmp_path)
    assert "<img" not in page.dom
    assert page.dom.count("&lt;img src=x") >= 5  # In label, model, word, and nearest review and label.
    assert "<title>Full fine-tuning and LoRA</title>" in page.dom
    assert page.console == []
    assert {url.partition("#")[0] for url in page.requests} <= {f"{server.url}/", f"{server.url}/explain"}


def test_a_class_has_one_colour_wherever_it_stands(tmp_path):
    def answer(text: str) -> dict:
        probabilities = [0.1, 0.2, 0.7]
        best = {
            "label": LABELS[2],
            "probabilities": probabilities,
            "attributions": [{"word": text, "attribution": 0.1}],
        }
        nearest = [{"text": text, "label": label, "similarity": 0.5} for label in LABELS]
        return {"labels": LABELS, "models": {"one": best}, "nearest": nearest}

    with DemoServer(answer, 0) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        dom = visit(f"{running.url}/#text=x", tmp_path).dom
        running.shutdown()
    bars = re.findall(r'class="bar" style="[^"]*background: ([^;]+);', dom)
    labels = dict(re.findall(r'class="label" style="border-color: ([^;]+);">([^<]+)<', dom))
    assert len(set(bars)) == len(LABELS)
    assert [labels[color] for color in bars] == list(LABELS)


def test_the_demo_starts_and_answers(trained_project):
    command = [sys.executable, "-m", "stages.demo", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=trained_project, env=environment, stdout=subprocess.PIPE) as process:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline().decode())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request(
            "POST", "/explain", json.dumps({"text": "배터리 최고"}), {"Content-Type": "application/json"}
        )
        answer = json.loads(connection.getresponse().read())
        process.terminate()
    assert list(answer["models"]) == [DISPLAY_NAMES[method] for method in METHODS]
    assert len(answer["nearest"]) == 5
