"""The rules of the soak: they pass what is flat, and each of them can fail."""

import copy
from typing import Any

import pytest
from make_engine import MODEL
from soak_questions import MAX_TOKENS, Decoder, Question, Questions, faults
from soak_traffic import KINDS, Traffic
from soak_verdict import gain, verdict

MIB = 2**20
NOTHING: dict[str, int] = {}
ASKED = {"stream": 10}


def flat(rounds: int = 12) -> list[dict[str, Any]]:
    """A soak in which everything warms up for three rounds and then stays, but for a little noise."""
    return [
        {
            "at_s": 30.0 * number,
            "resting": True,
            "processes": {
                "server": {
                    "anonymous": (60 + min(number, 3) + number % 2) * MIB,
                    "descriptors": 80 + number % 2,
                    "threads": 200,
                },
                "tensorrt_llm": {"anonymous": 170 * MIB, "descriptors": 4, "threads": 7},
            },
            "shm_segments": 5,
            "shm_bytes": 5 * MIB,
            "tables": {"mixtral_streams_live": 0.0},
        }
        for number in range(rounds)
    ]


def test_what_is_flat_after_warm_up_passes() -> None:
    assert verdict(flat(), NOTHING, ASKED) == []


@pytest.mark.parametrize(
    ("process", "what", "each_round"),
    [
        ("tensorrt_llm", "anonymous", 2 * MIB),
        ("server", "anonymous", 2 * MIB),
        ("server", "descriptors", 1),
        ("server", "threads", 1),
    ],
)
def test_a_planted_leak_fails(process: str, what: str, each_round: int) -> None:
    samples = flat()
    for number, sample in enumerate(samples):
        sample["processes"][process][what] += each_round * number
    (failure,) = verdict(samples, NOTHING, ASKED)
    assert failure.startswith(f"{what} of {process} gained ")


def test_one_outlier_is_not_a_leak() -> None:
    samples = flat()
    samples[-2]["processes"]["server"]["anonymous"] += 50 * MIB
    assert verdict(samples, NOTHING, ASKED) == []


@pytest.mark.parametrize(("what", "each_third_round"), [("shm_segments", 1), ("shm_bytes", MIB)])
def test_shared_memory_that_grows_fails(what: str, each_third_round: int) -> None:
    samples = flat()
    for number, sample in enumerate(samples):
        sample[what] += number // 3 * each_third_round
    (failure,) = verdict(samples, NOTHING, ASKED)
    assert failure.startswith(f"{what} gained ")


def test_a_table_that_holds_something_at_rest_fails() -> None:
    samples = flat()
    samples[-1]["tables"]["mixtral_streams_live"] = 1.0
    assert verdict(samples, NOTHING, ASKED) == ["mixtral_streams_live is 1 at rest after 330 s"]


def test_a_busy_sample_may_hold_anything() -> None:
    busy = copy.deepcopy(flat()[-1]) | {"resting": False, "tables": {"mixtral_streams_live": 40.0}}
    assert verdict([*flat(), busy], NOTHING, ASKED) == []


def test_a_process_that_is_gone_or_a_soak_without_requests_or_rest_fails() -> None:
    samples = flat()
    del samples[-1]["processes"]["tensorrt_llm"]
    assert verdict(samples, NOTHING, ASKED) == ["the server's processes are not the same at all times"]
    assert verdict(flat(), NOTHING, {}) == ["nothing was asked"]
    assert verdict([], NOTHING, ASKED) != []


def test_a_wrong_answer_fails() -> None:
    assert verdict(flat(), {"lost": 1}, ASKED) == ["1 answers with the fault `lost`"]


def test_the_gain_is_that_of_the_line_through_the_points() -> None:
    assert gain([(0.0, 5.0), (10.0, 7.0), (20.0, 9.0)]) == pytest.approx(4.0)
    assert gain([(0.0, 5.0)]) == 0.0


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(MODEL)


@pytest.fixture
def question() -> Question:
    return Questions(seed=7).draw()


def test_the_known_answer_has_no_fault(decoder: Decoder, question: Question) -> None:
    ids = question.tokens[:50]
    text = decoder.text(question.prompt, ids)
    assert faults(decoder, question, ids, text, tokens=50) == []
    assert faults(decoder, question, ids, text[:-1], tokens=None) == []  # cut short
    stop = text[20:24]
    assert faults(decoder, question, ids[:9], text[: text.find(stop)], tokens=50, stop=stop) == []


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda ids: ids[:20] + ids[21:], "lost"),
        (lambda ids: ids[:-1], "lost"),
        (lambda ids: ids[:20] + ids[19:-1], "duplicated"),
        (lambda ids: [*ids[:20], ids[21], ids[20], *ids[22:]], "order"),
        (lambda ids: [*ids[:20], 2, *ids[21:]], "foreign"),
    ],
)
def test_planted_faults_of_tokens_are_named(decoder: Decoder, question: Question, damage: Any, name: str) -> None:
    ids = question.tokens[:MAX_TOKENS]
    text = decoder.text(question.prompt, ids)
    assert faults(decoder, question, damage(ids), text, tokens=MAX_TOKENS) == [name]


def test_text_that_differs_by_one_character_is_wrong(decoder: Decoder, question: Question) -> None:
    ids = question.tokens[:50]
    text = decoder.text(question.prompt, ids)
    assert faults(decoder, question, ids, text[:10] + text[11:], tokens=50) == ["text"]
    assert faults(decoder, question, ids, text + "x", tokens=None) == ["text"]
    assert faults(decoder, question, ids, text[:12], tokens=50, stop="no such string") == ["text"]


@pytest.fixture
def euros(question: Question) -> Question:
    """An answer of nothing but characters of three bytes, each byte a token."""
    first_byte = 3  # behind the special tokens
    return Question(question.prompt, [first_byte + byte for byte in ("€" * (MAX_TOKENS // 3)).encode()])


def test_a_character_that_a_deadline_cuts_is_marked_byte_by_byte(decoder: Decoder, euros: Question) -> None:
    for ids, text in ((5, "€��"), (4, "€�"), (3, "€"), (2, "��")):
        assert faults(decoder, euros, euros.tokens[:ids], text, tokens=None, flushed=True) == []
    assert faults(decoder, euros, euros.tokens[:5], "€����", tokens=None, flushed=True) == ["text"]
    assert faults(decoder, euros, euros.tokens[:8], "€��€", tokens=None, flushed=True) == ["text"]


def test_half_a_character_is_wrong_where_nothing_was_cut_by_the_server(decoder: Decoder, euros: Question) -> None:
    assert faults(decoder, euros, euros.tokens[:5], "€��", tokens=None) == ["text"]
    assert faults(decoder, euros, euros.tokens[:6], "€��", tokens=6) == ["text"]


def test_text_is_judged_as_far_as_it_is_known(decoder: Decoder, question: Question, euros: Question) -> None:
    end_of_text, known = 2, decoder.text(question.prompt, question.tokens[:20])
    for unknown in (end_of_text, euros.tokens[1]):
        partly = Question(question.prompt, [*question.tokens[:20], unknown, *question.tokens[21:]])
        ids = partly.tokens[:40]
        assert faults(decoder, partly, ids, known + " anything", tokens=40) == []
        assert faults(decoder, partly, ids, known[:-1], tokens=40) == ["text"]
        assert faults(decoder, partly, ids[:-1], known + " anything", tokens=40) == ["lost"]
        stop = known[10:14]
        assert faults(decoder, partly, ids[:9], known[: known.find(stop)], tokens=40, stop=stop) == []
        assert faults(decoder, partly, ids[:9], known[: known.find(stop) + 1], tokens=40, stop=stop) == ["text"]


def test_stop_strings_are_taken_from_known_text(decoder: Decoder, euros: Question) -> None:
    traffic = Traffic(None, None, decoder, seed=1, kinds=KINDS)  # type: ignore[arg-type]  # asks nothing
    assert {traffic.stop_string(euros, 7) for _ in range(9)} == {""}
    assert all(set(traffic.stop_string(euros, 9)) == {"€"} for _ in range(9))
