"""Opens a page in a headless Chromium (Qt WebEngine) and prints what it found, as JSON.

    python tests/support/browser.py FILE.html SCRIPT [PICTURE.png]

{"loaded": bool, "value": what the JavaScript gave, "messages": errors of the page's own scripts,
"requests": addresses other than the page's}. A process of its own: Qt wants the main thread.
"""

import json
import os
import sys

TIMEOUT_MS = 300_000
PAINTED_MS = 500  # after loading, before the picture is taken


def look(file, script, picture=None):
    """What the page gave within TIMEOUT_MS."""
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    found = {"loaded": False, "value": None, "messages": [], "requests": []}
    url = QUrl.fromLocalFile(os.path.abspath(file))

    class Requests(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):  # noqa: N802 (Qt's name)
            if info.requestUrl() != url:
                found["requests"].append(info.requestUrl().toString())

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
            found["messages"].append(f"{message} (line {line})")

    def loaded(is_loaded):
        found["loaded"] = is_loaded
        view.page().runJavaScript(script, evaluated)

    def evaluated(value):
        found["value"] = value
        QTimer.singleShot(PAINTED_MS, finish)

    def finish():
        if picture:
            view.grab().save(picture)
        application.quit()

    application = QApplication(sys.argv[:1])
    view, requests = QWebEngineView(), Requests()
    view.setPage(Page(view))
    view.page().profile().setUrlRequestInterceptor(requests)
    view.resize(1100, 1400)
    view.loadFinished.connect(loaded)
    view.load(url)
    view.show()
    QTimer.singleShot(TIMEOUT_MS, application.quit)
    application.exec()
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # taking Chromium apart complains about the order


if __name__ == "__main__":
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"  # also for root
    look(*sys.argv[1:])
