"""/metrics, read as Prometheus reads it."""

import httpx
from clients import CAPITAL, MODEL
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families


def samples(app) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels, sorted."""
    text = httpx.get(f"{app.url}/metrics").raise_for_status().text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(one.name, *sorted(one.labels.values())): one.value for one in found}


def test_an_answer_is_counted(app) -> None:
    before = samples(app)
    api = OpenAI(base_url=f"{app.url}/v1", api_key="none", timeout=120)
    api.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    after = samples(app)
    more = lambda *name: after.get(name, 0) - before.get(name, 0)  # noqa: E731
    assert more("llmsvc_http_requests_total", "/v1/chat/completions", "200") == 1
    assert more("llmsvc_answers_total", MODEL, "stop") == 1
    assert more("llmsvc_tokens_total", MODEL) == 8
    assert more("llmsvc_prompt_tokens_total", MODEL) > 8
    assert more("llmsvc_ttft_seconds_count", MODEL) == 1
    assert more("llmsvc_inter_token_seconds_count", MODEL) == 7
    assert 0 < more("llmsvc_ttft_seconds_sum", MODEL) < 120
    assert more("llmsvc_inter_token_seconds_bucket", "+Inf", MODEL) == 7
    assert after["llmsvc_kv_tokens", MODEL] > 8
    assert after["llmsvc_model_memory_bytes", MODEL] > 100e6
    assert (after["llmsvc_running", MODEL], after["llmsvc_queued", MODEL]) == (0, 0)
    assert after[("process_open_fds",)] > 0
