"""The keys and the button that stop a run."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from hepscale.executor import session
from hepscale.executor.job import StopRequest
from hepscale.executor.task import RunStarted


def test_an_interrupt_by_the_button_is_no_second_one() -> None:
    stop = StopRequest()
    with session.stop_on_sigint(stop):
        # heard as a message, and then as the interrupt that the page sends when in doubt
        stop.requested = True
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_page_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import comm

    from hepscale.view import base, widget

    shown: list[Any] = []
    monkeypatch.setenv("HEPSCALE_VIEW", "widget")
    monkeypatch.setattr(base, "_front_end_asks", lambda: True)
    monkeypatch.setattr(widget, "show", lambda *_, **__: shown.append(1))
    widgets: list[widget.RunWidget] = []
    listen = widget.RunWidget.listen

    def noted(self: widget.RunWidget, hear: Any) -> None:
        widgets.append(self)
        listen(self, hear)

    monkeypatch.setattr(widget.RunWidget, "listen", noted)
    stop = StopRequest()
    targets = comm.get_comm_manager().targets
    with pytest.MonkeyPatch.context() as patch, session.shown(stop, status=True) as observer:
        patch.setattr(widget.WidgetView, "close", lambda self, state, output: self._widget.close())
        observer.see(RunStarted("r", "Processing", "chunk", 1, 1, "local", 0.0))
        observer.tick()
        assert shown == [1]
        (there,) = widgets
        open_ = targets[there.channel]
        line = comm.create_comm(target_name=there.channel, primary=False)
        open_(line, {"content": {"data": {"type": "watch", "names": []}}})
        assert not stop.requested
        open_(line, {"content": {"data": {"type": "stop"}}})
        assert stop.requested
    assert there.channel not in targets
