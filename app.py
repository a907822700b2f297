"""llmsvc: ``python app.py`` opens the page; ``--help`` lists the flags."""

import logging
import os
import sys
import traceback

from llmsvc import logs
from llmsvc.engine.compute import wait_briefly
from llmsvc.errors import LlmsvcError
from llmsvc.models.memory import importing
from llmsvc.settings import parse


def main() -> int:
    settings = parse()
    logs.configure(settings.log_level, settings.log_json)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    wait_briefly()
    with importing():  # after the command line, so that --help answers at once
        from llmsvc.service import Service
        from llmsvc.ui.launch import check_port, launch

    try:
        check_port(settings)
        launch(Service(settings))
    except LlmsvcError as error:
        print(f"llmsvc: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # All is stored and closed. The interpreter's own end can wait for ever for what a daemon thread holds that is just
    # loading torch.
    os._exit(code)
