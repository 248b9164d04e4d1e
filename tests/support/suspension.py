"""Processes that are stopped and continued, as by Ctrl-Z and `fg` or a machine that sleeps."""

import os
import signal
import subprocess
import time

from persistent_runtime.rows import layout


def output_of_stopping(program, stopped_s, environment, cwd=None):
    """Standard output of a program that calls `stop`; each time it is continued after so long."""
    process = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True, text=True, cwd=cwd)
    try:
        while True:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            time.sleep(stopped_s)
            os.killpg(process.pid, signal.SIGCONT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    output = process.stdout.read()
    assert process.returncode == 0, output
    return output


def stop():
    """Stops this process and those that it has forked until the other side continues them."""
    os.killpg(os.getpgrp(), signal.SIGSTOP)


def stop_when_waiting(launch, event, polling_s=0.2):
    """Stops once all but one notify of the event have come. Before and after, its waiters have
    `polling_s` to poll."""
    counter, count = counter_of(launch, event)
    while counter[0] < count - 1:
        time.sleep(0.01)
    time.sleep(polling_s)
    stop()
    time.sleep(polling_s)


def notify_by_hand(launch, event):
    """The one notify that is missing; it wakes those who wait, and pushes no task."""
    counter, count = counter_of(launch, event)
    counter[0] = count


def counter_of(launch, event):
    """(the event's counter as an array of one, its count)"""
    counters = launch._counters[0][layout.EVENTS].reshape(-1)
    at = event * layout.EVENT_STRIDE
    table = launch._segments[0].encoded.schedule.table
    return counters[at:at + 1], int(table.event_count[event])
