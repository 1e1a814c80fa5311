from worker import singleton


def test_a_name_that_nobody_knows_yet_is_looked_for_again() -> None:
    assert singleton.bind("nobody.invalid:8700") is None


def test_a_name_is_listened_on_by_its_own_address_alone() -> None:
    listener = singleton.bind("localhost:0")
    assert listener is not None

    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"
