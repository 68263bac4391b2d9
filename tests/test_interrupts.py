"""What must be whole is whole, whoever presses Ctrl-C."""

import os
import signal
import threading

import pytest

from opslib.interrupts import deferred


def test_an_interrupt_waits_for_the_end_of_the_block():
    """The block runs to its end, and the interrupt is not lost."""
    done = []

    def block():
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["the rest of the block"]


def test_a_block_within_another_one_waits_for_the_end_of_that():
    """What is whole in parts is whole as well."""
    done = []

    def block():
        with deferred():
            with deferred():
                os.kill(os.getpid(), signal.SIGINT)
            done.append("the rest of the outer block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["the rest of the outer block"]


def test_without_an_interrupt_nothing_is_raised():
    """The handler of before is back, so that the next Ctrl-C works as ever."""
    before = signal.getsignal(signal.SIGINT)

    with deferred():
        assert signal.getsignal(signal.SIGINT) is not before

    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_is_not_hidden_by_the_interrupt():
    """Of two reasons to stop, the block's own is told."""

    def block():
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        block()


def test_another_thread_is_left_alone():
    """Only the main thread gets signals; elsewhere the block just runs."""
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [before]
