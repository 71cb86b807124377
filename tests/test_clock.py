"""The clock of trials: what a computation takes by itself, not what others make it wait."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch

from landscape.clock import cpu_clock

CPU = torch.device("cpu")


class TestOnACpu:
    def test_waiting_does_not_count(self):
        clock = cpu_clock(CPU)
        start = clock()
        time.sleep(0.2)
        assert clock() - start < 0.1

    @pytest.mark.parametrize("threads", [1, 2])
    def test_it_is_the_share_of_one_thread_forward_and_backward(self, threads):
        """Held against the whole process's time, which counts every thread of torch."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            x, clock = torch.randn(400, 400, requires_grad=True), cpu_clock("cpu")
            torch.autograd.grad((x @ x).sum(), x)
            whole, start = time.process_time(), clock()
            for _ in range(20):
                torch.autograd.grad((x @ x).sum(), x)
            spent, whole = clock() - start, time.process_time() - whole
        finally:
            torch.set_num_threads(before)
        # An equal share but for what threads wait for each other: half and double it are far beyond that.
        assert whole / threads / 2 < spent < 1.01 * whole + 1e-3

    def test_another_thread_does_not_count(self):
        stop, clock = threading.Event(), cpu_clock(CPU)

        def compute() -> None:
            while not stop.is_set():
                torch.ones(1000).sum()

        other = threading.Thread(target=compute)
        other.start()
        try:
            start = clock()
            time.sleep(0.2)  # the other thread has a whole core meanwhile
            assert clock() - start < 0.1
        finally:
            stop.set()
            other.join()


class TestOnOtherDevices:
    def test_it_is_the_wall_after_the_device_has_done_all(self, monkeypatch):
        waited = []
        monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
        clock = cpu_clock(torch.device("cuda", 1))
        start = clock()
        time.sleep(0.05)
        assert clock() - start >= 0.05
        assert waited == [torch.device("cuda", 1)] * 2

    def test_windows_has_no_fine_clock_of_threads(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "win32")
        assert cpu_clock(CPU) is time.perf_counter
