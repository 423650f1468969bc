"""When seeds are trained concurrently, and what concurrent seeds must not do."""

import threading

import pytest
import torch

from fmcache.decoders import concurrent_seeds
from fmcache.decoders.arithmetic import multiply_adds
from fmcache.decoders.concurrent_seeds import concurrent_seed_count, threads_of_a_seed, train_concurrently
from fmcache.decoders.decoder import Decoder
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import Training
from fmcache.grid import GridGeometry
from fmcache.specs import FitSpec

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEMO = 8 * multiply_adds(Shape((384,), 32, 3, GridGeometry(128, 16)))
PAPER = 8 * multiply_adds(Shape((1024,), 256, 3, GridGeometry(512, 16)))


def test_the_arithmetic_of_the_papers_step_is_the_protocols():
    assert abs(PAPER / 8 - 0.206e12) < 0.002e12  # four 3x3 convolutions: 0.21 T multiply-adds per tile


@pytest.mark.parametrize(("size", "device", "threads", "wanted"), [
    (DEMO, CPU, 1, 1), (DEMO, CPU, 2, 2), (DEMO, CPU, 64, 10), (PAPER, CPU, 64, 1),
    (DEMO, GPU, 8, 1), (PAPER, GPU, 64, 1),
])  # fmt: skip
def test_small_steps_run_concurrently_and_large_ones_one_after_another(size, device, threads, wanted):
    assert concurrent_seed_count(size, 10, device, threads) == wanted


def test_a_seed_runs_on_as_many_threads_alone_as_in_a_sweep():
    assert threads_of_a_seed(DEMO, CPU, 8) == 1
    assert threads_of_a_seed(PAPER, CPU, 8) == 8
    assert threads_of_a_seed(DEMO, GPU, 8) == 8


def training(source=None):
    return Training(Decoder(Shape((2,), 2, 2, GridGeometry(8, 4))), source, source, source, FitSpec(), "pooled", CPU)


def train_two_seeds(monkeypatch, train, tick=lambda _: None):
    monkeypatch.setattr(concurrent_seeds, "train", train)
    return dict(train_concurrently(training(), (4, 5), tick))


def test_concurrent_seeds_return_each_result_and_each_has_its_own_decoder_and_threads(monkeypatch):
    before, met, decoders, threads = torch.get_num_threads(), threading.Barrier(2, timeout=20), set(), set()

    def train(training, seed, tick):
        met.wait()  # breaks unless both seeds run concurrently
        decoders.add(id(training.decoder))
        threads.add(torch.get_num_threads())
        return seed

    assert train_two_seeds(monkeypatch, train) == {4: 4, 5: 5}
    assert len(decoders) == 2
    assert threads == {1}
    assert torch.get_num_threads() == before


def test_an_error_of_one_seed_stops_the_others_and_is_raised(monkeypatch):
    def train(training, seed, tick):
        if seed == 5:
            raise ZeroDivisionError
        while True:
            tick(1)

    with pytest.raises(ZeroDivisionError):
        train_two_seeds(monkeypatch, train)


def test_seeds_whose_result_is_not_needed_stop_after_their_step_not_their_epoch(monkeypatch):
    class Endless:
        tiles, views = ("t",), range(1)

        def fetch(self, step, device):
            return None, None

    def train(training, seed, tick):
        while seed == 5:  # never comes to the end of its epoch, or of its validation or test
            getattr(training, asked[-1]).fetch(None, CPU)
        return "fitted"

    monkeypatch.setattr(concurrent_seeds, "train", train)
    asked = []
    for at in ("train", "val", "test"):
        asked.append(at)
        results = train_concurrently(training(Endless()), (4, 5))
        assert next(results) == (4, "fitted")
        results.close()  # returns, as seed 5 has ended


def test_a_seed_that_has_ended_is_handed_over_though_a_later_one_fails(monkeypatch):
    ended = threading.Event()

    def train(training, seed, tick):
        if seed == 5:
            assert ended.wait(20)
            raise ZeroDivisionError
        return "fitted"

    monkeypatch.setattr(concurrent_seeds, "train", train)
    got = []
    with pytest.raises(ZeroDivisionError):
        for one in train_concurrently(training(), (4, 5)):
            got.append(one)
            ended.set()
    assert got == [(4, "fitted")]
