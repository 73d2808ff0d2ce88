from kd.console import console, progress, say


def test_news_is_one_plain_line_on_stderr(capsys):
    say("epoch 1/3 [bold]loss[/bold] " + 200 * "x")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "epoch 1/3 [bold]loss[/bold] " + 200 * "x" + "\n"


def test_bars_are_silent_where_there_is_no_terminal(capsys):
    assert not console.is_terminal
    with progress("training", 3) as advance:
        advance(1, "epoch 1/3")
    assert "training" not in capsys.readouterr().err
