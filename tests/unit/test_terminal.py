from worker.cli.terminal import JOBS, Table

ID = "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"
COLUMNS = ("id", "kind", "subject", "state", "age", "step", "why")
ROW = (ID, "workspace.provision", f"workspace:{ID}", "waiting", "12 min", "registration", "the agent to register by itself")


def laid(room: int, why: str = ROW[-1]) -> list[str]:
    table = Table(COLUMNS, [(*ROW[:-1], why)])
    table.fit(room, JOBS)
    return table.lines()


def test_a_wide_terminal_costs_nothing() -> None:
    assert laid(200)[1] == f"{ID}  workspace.provision  workspace:{ID}  waiting  12 min  registration  {ROW[-1]}"


def test_eighty_columns_cost_digits_of_ids_and_leave_the_step_and_the_reason_whole() -> None:
    heading, line, why = laid(80)

    assert heading.split() == ["id", "kind", "subject", "state", "age", "step"]
    assert line.split() == ["0f3c9a52", "workspace.provision", "0f3c9a52", "waiting", "12", "min", "registration"]
    assert why == f"          {ROW[-1]}"


def test_a_long_reason_goes_on_below_itself_and_none_leaves_no_line() -> None:
    lines = laid(80, "it answered nothing " * 8)

    assert max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines[2:]) == ("it answered nothing " * 8).strip()
    assert {line[:10] for line in lines[2:]} == {" " * 10}
    assert len(laid(80, "-")) == 2


def test_what_is_copied_is_not_broken() -> None:
    address = "http://ws-0f3c9a52-7d1.simulated.invalid:8000/" + "a" * 60

    assert any(line.strip() == address for line in laid(80, f"it does not answer at {address} today"))


def test_an_even_narrower_one_costs_the_age_but_never_the_step() -> None:
    heading, line, why = laid(66)

    assert heading.split() == ["id", "kind", "subject", "state", "step"]
    assert line.endswith("registration")
    assert why.strip() == ROW[-1]
