"""Endpoints that do not answer, refuse, or have another model: one sentence and its fix, and every wait has an end."""

from __future__ import annotations

import socket

import pytest

from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.endpoint import server as servers
from moe_eval.engines.endpoint.load import check, load
from moe_eval.errors import UsageError
from tests.doubles.openai_server import NAME, Service, served


def settings(url: str, model: str = NAME, **options: object) -> EngineSettings:
    return EngineSettings(model, options={"base_url": url, **options})


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(servers.KEY, raising=False)


def test_what_cannot_be_known_of_an_endpoint_is_said_to_be_unknown() -> None:
    with served(Service(window=4096)) as service:
        check(settings(service.url), ())
        facts = registry.load("openai", settings(f"{service.url}/completions"), None).facts
    assert (facts.checkpoint, facts.max_length) == (NAME, 4094)
    labels = {facts.version, facts.fingerprint, facts.architecture, facts.precision, facts.dtype, facts.device_name}
    assert labels == {"not known"}
    assert (facts.moe_backend_observed, facts.kv_cache_dtype, facts.weight_bytes) == (None, None, None)
    assert facts.arguments["base_url"] == service.url


def test_a_server_that_lists_no_models_has_the_window_of_its_arm() -> None:
    with served(Service(lists_models=False)) as service:
        assert load(settings(service.url, max_length=300), None).facts.max_length == 298
        assert load(settings(service.url), None).facts.max_length == 2046


@pytest.mark.parametrize(
    ("service", "changes", "sentence"),
    [
        (Service(key="k"), {}, "wants a key in OPENAI_API_KEY."),
        (Service(status=500), {}, 'answers 500 ({"error": "out of memory"}).'),
        (Service(), {"model": "tinny"}, "has no model tinny. Did you mean tiny?"),
        (Service(lists_models=False), {"model": "other"}, "answers 404"),
        (Service(pause=0.5), {}, "did not answer within 0.2 s."),
    ],
)
def test_an_endpoint_that_fails_is_one_sentence(
    service: Service, changes: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_ANSWER_SECONDS", 0.2)
    with served(service), pytest.raises(UsageError) as error:
        check(settings(service.url, **changes), ())
    assert sentence in str(error.value)
    assert str(error.value).count(". ") == 1, "one sentence and its fix"


def test_a_wrong_key_is_told_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(servers.KEY, "sk-wrong")
    with served(Service(key="k")) as service, pytest.raises(UsageError, match="refuses the key of OPENAI") as error:
        check(settings(service.url), ())
    assert "sk-wrong" not in str(error.value)
    monkeypatch.setenv(servers.KEY, "k")
    with served(Service(key="k")) as service:
        check(settings(service.url), ())


def test_nobody_at_the_address_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UsageError, match="cannot be reached"):
        check(settings(f"http://127.0.0.1:{port}/v1"), ())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "needs the address of a server"),
        ("127.0.0.1:8000", "needs the address of a server"),
        ("http://me:secret@127.0.0.1/v1", "holds a user or a password"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        check(settings(url), ())
    assert "secret" not in str(error.value)


def test_endpoints_without_log_probabilities_are_told() -> None:
    with served(Service(returns_scores=False)) as service, pytest.raises(UsageError, match="no log-probabilities"):
        servers.Server(service.url, NAME).check_scores()
    with served(Service()) as service:
        servers.Server(service.url, NAME).check_scores()
        with pytest.raises(UsageError, match="A chat endpoint returns no log-probabilities"):
            servers.Server(service.url, NAME, chat=True).check_scores()


def test_the_plug_in_refuses_an_endpoint() -> None:
    from moe_eval.harness import settings as model_settings

    with pytest.raises(UsageError, match="Use lm_eval's --model local-completions"):
        model_settings.read({"pretrained": "x", "engine": "openai"})
