"""A request to stop reaches workers, or the driver learns that none is there to answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.training import log_relay
from pipeline.training.log_relay import _Relay


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(log_relay, "_ANSWER_S", 0.5)
    monkeypatch.setattr(log_relay, "_POLL_S", 0.02)


def run(coroutine):
    """Run in a thread: a browser of other tests leaves its event loop running in this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, coroutine).result(timeout=20)


def test_before_a_worker_has_started_nobody_answers():
    async def ask():
        return await _Relay().request_stop("save")

    assert run(ask()) is False


def test_while_a_run_waits_for_nodes_nobody_answers():
    async def ask():
        relay = _Relay()
        await relay.set_location(0, "node-1", 7)  # lost since
        return await relay.request_stop("save")

    assert run(ask()) is False


def test_workers_stop_before_the_latest_step_that_one_of_them_needs():
    async def answer(relay, rank, step):
        await relay.wait_for_stop()
        return await relay.agree_on_stop(rank, step, 2)

    async def ask():
        relay = _Relay()
        for rank in (0, 1):
            await relay.set_location(rank, "node-1", rank)
        answers = asyncio.gather(answer(relay, 0, 5), answer(relay, 1, 6))
        return await relay.request_stop("save"), await answers

    assert run(ask()) == (True, [(6, "save"), (6, "save")])
