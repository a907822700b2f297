import pytest

from llmsvc.settings import parse


def test_flags_win_over_variables() -> None:
    environ = {"LLMSVC_PORT": "8001", "LLMSVC_SHARE": "yes", "LLMSVC_AUTH": "ann:one,bob:two"}
    settings = parse(["--port", "8002"], environ)
    assert (settings.port, settings.share) == (8002, True)
    assert settings.auth == (("ann", "one"), ("bob", "two"))


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        (["--port", "70000"], {}),
        (["--device", "tpu"], {}),
        (["--auth", "nobody"], {}),
        (["--api-key", "short"], {}),
        (["--max-upload", "big"], {}),
        (["--remote", "ftp://host"], {}),
        (["--rate-limit", "many"], {}),
        (["--log-level", "loud"], {}),
        (["--nonsense"], {}),
        (["--model", " "], {}),
        ([], {"LLMSVC_PORT": "x"}),
        ([], {"LLMSVC_SHARE": "maybe"}),
        ([], {"LLMSVC_AUTH": "nobody"}),
    ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(flags, environ, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags, environ)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_explains_every_flag(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    for name in ("HOST", "PORT", "DATA_DIR", "MODEL", "DEVICE", "SHARE", "AUTH", "MAX_UPLOAD", "LOG_LEVEL"):
        assert f"LLMSVC_{name}" in shown


def test_memory_is_given_in_bytes() -> None:
    settings = parse(["--memory", "8gb", "--idle-minutes", "30"], {"LLMSVC_PARKED_MEMORY": "500MB"})
    assert (settings.memory, settings.parked_memory, settings.idle_minutes) == (8 * 10**9, 500 * 10**6, 30)
