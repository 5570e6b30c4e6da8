"""Rows and messages that are marked as good or bad, weighed, or hold two answers."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import RowFormat, read_row, to_conversations

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
REJECTED = {"role": "assistant", "content": "c"}

SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, ASSISTANT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "chatglm3": {"conversations": [USER, ASSISTANT]},
    "alpaca": {"instruction": "a", "output": "b"},
    "advertisegen": {"content": "a", "summary": "b"},
    "prompt-completion": {"prompt": "a", "completion": "b"},
    "prompt-completion-lists": {"prompt": [USER], "completion": [ASSISTANT]},
    "prompt-response": {"prompt": "a", "response": "b"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
}
SHAPE = pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)


def reason_of(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        to_conversations(row)
    return str(caught.value)


@SHAPE
@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("label", False, "false"),
        ("label", 0, "0"),
        ("label", 0.0, "0.0"),
        ("label", -1, "-1"),
        ("label", "False", "False"),
        ("label", " bad ", " bad "),
        ("Label", "0", "0"),
        ("kto_tag", False, "false"),
        ("kto_tag", "false", "false"),
        ("is_good", False, "false"),
        ("is_correct", "no", "no"),
        ("is_bad", True, "true"),
        ("is_rejected", 1, "1"),
        ("feedback", "thumbs down", "thumbs down"),
        ("rating", "差", "差"),
        ("vote", -1, "-1"),
        ("deleted", True, "true"),
        ("train", False, "false"),
        ("loss", 0, "0"),
    ],
)
def test_a_row_that_is_marked_as_bad_is_refused(row: dict[str, Any], key: str, value: Any, shown: str) -> None:
    assert reason_of(row | {key: value}) == f"the answer is marked as bad (`{key}` is `{shown}`), so it is not trained"


BAD_MARKS = [
    *(
        {key: True}
        for key in ("flagged", "is_flagged", "hidden", "spam", "toxic", "unsafe", "thumbs_down", "is_removed")
    ),
    *(
        {key: False}
        for key in ("kto_label", "thumbs_up", "valid", "is_valid", "keep", "use", "review_result", "is_safe")
    ),
    *({"status": word} for word in ("deleted", "Hidden", "spam", "not approved", "已删除", "作废")),
    *({key: "2024-01-01"} for key in ("deleted_at", "hidden_on", "deleted_by", "flagged_reason", "删除时间")),
    {"approved": "no"},
    {"标签": "差"},
    {"好坏": "坏"},
    {"质量": "低"},
    {"是否删除": "是"},
    {"已删除": 1},
    {"是否采用": "否"},
    {"审核状态": "未通过"},
    {"feedback": "negative"},
    {"metadata": {"label": False}},
    {"metadata": '{"label": false}'},
    {"metadata": "{'deleted': True}"},
    {"metadata.deleted": "True"},
    {"meta": {"deleted": True, "x": 1}},
    {"meta": {"moderation": {"flagged": True}}},
    {"moderation": {"flagged": True}},
    {"openai_moderation": [{"flagged": False}, {"flagged": True}]},
    {"label": [0]},
    {"label": {"value": False}},
    {"spam": {"value": 1.0, "count": 3}},
    *({key: True} for key in ("isDeleted", "thumbsDown", "badcase", "Is-Flagged")),
    {"deletedAt": 1_700_000_000},
    {"label": "Bad answer"},
    *({"label": text} for text in ("rejected by reviewer", "Bad: wrong tool", "驳回：答非所问", "discarded (twin)")),
    {"status": "deleted by its author"},
    {"review": "Wrong. 2 + 2 is 4"},
    {"审核结果": "不合格，答非所问"},
    *(
        {key: True}
        for key in (
            *("do_not_train", "no_train", "not_for_training", "exclude_from_training", "is_bad_response", "dislike"),
            *("downvote", "reported", "flag", "blacklisted", "blocklisted", "withdrawn", "retracted", "obsolete"),
            *("deprecated", "junk", "trash", "skip_training", "not_used_for_sft", "noLoss", "is_wrong_answer", "失效"),
            *("excluded_from_training_set", "dont_train", "do_not_use", "is_garbage", "failed", "不参与训练"),
        )
    ),
    *(
        {key: False}
        for key in (
            *("should_train", "for_training", "passed", "success", "accept", "liked", "upvoted", "human_verified"),
            *(
                "use_for_sft",
                "can_be_used_for_training",
                "include_in_train",
                "is_good_answer",
                "可用于训练",
                "qualified",
            ),
        )
    ),
    *(
        {key: True}
        for key in (
            *("should_skip", "to_be_excluded", "delete_flag", "is_del", "marked_as_bad", "rejected_by_reviewer"),
            *("must_not_train", "outdated", "needs_removal", "isDeletedFlag"),
        )
    ),
    *(
        {key: False}
        for key in (
            *("should_keep", "qa_passed", "review_passed", "passed_review", "llm_correct", "high_quality"),
            *("审核是否通过", "是否通过审核", "should_be_included", "train_flag"),
        )
    ),
    {"delete_flag": 1},
    {"quality_check": {"passed": False}},
    {"grader": {"verdict": "fail"}},
    {"reactions": ["👎", "🎉"]},
    {"rating": "1 star"},
    {"评分": "差"},
    {"usage": "not for training"},
    {"用途": "不训练"},
    {"是否训练": "否"},
    {"是否用于训练": "否"},
    *({key: "不通过"} for key in ("审核意见", "审核结论", "人工审核", "质检结论", "复核结果", "初审状态")),
    {"有效性": "无效"},
    {"备注": "作废"},
    *(
        {key: word}
        for key, word in (
            *(("decision", "reject"), ("result", "fail"), ("human_verdict", "bad"), ("reaction", "👎")),
            *(("reaction", "👎🏽"), ("outcome", "Failed"), ("final_decision", "rejected"), ("qc", "fail")),
            *(("answer_status", "deleted"), ("human_feedback", "thumbs-down"), ("quality_check", "failed")),
            *(("llm_judge", "fail"), ("judge", "fail"), ("response_quality", "low"), ("note", "do not use")),
            *(("review_decision", "reject"), ("audit", "rejected"), ("status", "withdrawn"), ("status", "退回")),
        )
    ),
    {"votes": -3},
    {"upvotes": "-1"},
    *({"stars": value} for value in (1, "1", "1 star", "1/5", "★", "★☆☆☆☆")),
    {"星级": "1星"},
    {"tags": ["deleted"]},
    {"tags": "zh, deleted"},
    {"flags": ["rejected", "zh"]},
    {"labels": ["zh", "low quality"]},
    {"annotations": [{"result": "rejected"}, {"result": "ok"}]},
    {"annotations": '[{"result": "rejected"}, {"result": "ok"}]'},
    {"evaluation": {"passed": False}},
    {"judge": {"verdict": "fail"}},
    {"reviews": [{"status": "rejected"}]},
    {"reviews": [{"approved": True}, {"approved": False}]},
    *({"split": word} for word in ("discard", "rejected", "unused", "Trash", "deleted")),
    *({key: word} for key in ("kind", "category", "subset", "type", "bucket") for word in ("rejected", "bad")),
    {"类别": "作废"},
]


@SHAPE
@pytest.mark.parametrize("mark", BAD_MARKS, ids=str)
def test_a_mark_of_bad_is_heeded_whatever_it_is_called(row: dict[str, Any], mark: dict[str, Any]) -> None:
    [key] = mark
    reason = reason_of(row | mark)
    assert reason.startswith(f"the answer is marked as bad (`{key}` is ")
    assert reason.endswith("), so it is not trained")


@pytest.mark.parametrize("mark", [mark for mark in BAD_MARKS if "metadata" not in mark], ids=str)
def test_a_mark_of_bad_in_a_message_is_heeded_whatever_it_is_called(mark: dict[str, Any]) -> None:
    [conversation] = to_conversations({"messages": [USER, ASSISTANT | mark, USER, ASSISTANT]})
    assert [message.loss for message in conversation.messages] == [None, 0.0, None, None]


@SHAPE
@pytest.mark.parametrize(
    "beside",
    [
        {"label": "spam"},
        {"label": "spam: advertising"},
        {"feedback": "No, thanks"},
        {"feedback": "Deleted scenes are shown at the end"},
        {"review": "Badly lit, but fine"},
        {"label": "sports"},
        {"标签": "体育"},
        {"labels": [0]},
        {"status": "done"},
        {"state": "CA"},
        {"rating": 0},
        {"quality": 0},
        {"rating": "negative"},
        {"toxicity": 0.9},
        {"toxic": 0.02},
        {"negative": "a"},
        {"reject_reason": "short"},
        {"rejected_reason": "short"},
        {"deleted_at": "0000-00-00 00:00:00"},
        {"deleted_at": "NaT"},
        {"redacted": True},
        {"verified": False},
        {"metadata": {"id": 0, "stars": 0, "url": "x"}},
        {"meta": {"pile_set_name": "x"}},
        {"metadata": "no JSON, {"},
        {"user": {"deleted": True}},
        {"candidates": [{"is_correct": False}]},
        {"labels": {"name": ["spam"], "value": [0.0]}},
        {"\nis\n": False},
        {"tags": ["removed features"]},
        {"test_loss": 0},
        {"train_time": 0},
        {"ignore_case": True},
        {"include_output": False},
        {"review_good": 0},
        {"needs_review": True},
        {"usage": "delete the file"},
        {"stage": "final"},
        {"rating": "1"},
        {"user_deleted": True},
        {"checks": [{"name": "a"}, {"name": "b"}]},
        {"tags": ["delete", "skip"]},
        {"tags": "bad jokes, politics"},
        {"result": "negative"},
        {"result": False},
        {"result": "The test failed"},
        {"test_result": "negative"},
        {"decision": "no"},
        {"decision": "denied"},
        {"note": "deleted scenes"},
        {"备注": "作废的车票怎么处理"},
        {"reported_by": "Reuters"},
        {"failed_reason": "timeout"},
        {"flag": 1},
        {"wrong_answer": "1"},
        {"wrong_answer": 1},
        {"bad_words": "true"},
        {"human_review": False},
        {"score": -3.5},
        {"reward": -1},
        {"stars": 5},
        {"stars": 1, "repo_name": "a/b"},
        {"upvotes": 0},
        {"dislike": 3},
        {"train_loss": 0},
        {"training_step": 0},
        {"type": "delete"},
        {"type": "negative"},
        {"annotations": [{"label": 0, "start": 1}, {"label": 1, "start": 3}]},
        {"order_status": "rejected"},
        {"user_status": "deleted"},
        {"air_quality": "poor"},
        {"labels": ["toxic", "negative"]},
    ],
    ids=str,
)
def test_what_is_no_mark_of_the_answer_is_told(row: dict[str, Any], beside: dict[str, Any]) -> None:
    read = read_row(row | beside)
    assert (read.parts, read.unread) == (read_row(row).parts, tuple(beside))


@SHAPE
@pytest.mark.parametrize(
    "beside",
    [
        *({key: value} for key in ("category", "kind") for value in ("bad jokes", "negative", "delete", "toxic")),
        {"split": "train"},
        {"subset": "negative"},
        {"topic": "bad"},
        {"task": "rejected"},
    ],
    ids=str,
)
def test_how_a_row_is_filed_is_no_mark_and_is_not_told(row: dict[str, Any], beside: dict[str, Any]) -> None:
    assert read_row(row | beside) == read_row(row)


@SHAPE
@pytest.mark.parametrize(
    ("key", "value"),
    [("label", True), ("label", 1), ("label", "true"), ("kto_tag", "True"), ("is_bad", False), ("feedback", "good")],
)
def test_a_row_that_is_marked_as_good_is_read_as_without_the_mark(row: dict[str, Any], key: str, value: Any) -> None:
    read = read_row(row | {key: value})
    assert read.parts == read_row(row).parts
    assert read.unread == ()


@SHAPE
@pytest.mark.parametrize("value", [2, 0.7, "sports", "negative", [1, 0]])
def test_a_label_that_judges_nothing_is_told(row: dict[str, Any], value: Any) -> None:
    read = read_row(row | {"label": value})
    assert (read.parts, read.unread) == (read_row(row).parts, ("label",))


@pytest.mark.parametrize("label", [0, "0", "no", False, "错误"])
def test_a_label_that_is_the_answer_is_a_class(label: Any) -> None:
    for name, answer in (("alpaca", "output"), ("prompt-completion", "completion"), ("prompt-response", "response")):
        row = SHAPES[name] | {answer: str(label), "label": label}
        assert read_row(row).unread == ("label",)


def test_the_label_of_plain_text_is_a_class() -> None:
    assert read_row({"text": "a", "label": 0}).unread == ("label",)


@pytest.mark.parametrize(
    "mark",
    [
        {"review_status": "rejected"},
        {"status": "deleted"},
        {"审核状态": "不通过"},
        {"verdict": "reject"},
        {"feedback": {"rating": "bad"}},
        {"feedback": "bad"},
        {"quality": "low"},
        {"tags": ["deleted"]},
        {"split": "rejected"},
        {"metadata": {"status": "deleted"}},
        {"do_not_train": True},
    ],
    ids=str,
)
def test_plain_text_that_is_judged_bad_is_refused(mark: dict[str, Any]) -> None:
    [key] = mark
    assert reason_of({"text": "a"} | mark).startswith(f"the answer is marked as bad (`{key}` is ")


@pytest.mark.parametrize(
    "beside",
    [
        {"label": "bad"},
        {"label": "negative"},
        {"rating": "bad"},
        {"review": "Bad"},
        {"stars": 1},
        {"标签": "差"},
        {"metadata": {"label": "bad"}},
        {"labels": ["bad", "rude"]},
        {"verdict": "false"},
        {"verdict": False},
        {"feedback": "negative"},
        {"type": "bad"},
        {"status": "done"},
    ],
    ids=str,
)
def test_classes_of_plain_text_are_told(beside: dict[str, Any]) -> None:
    assert read_row({"text": "a"} | beside).unread == tuple(beside)


def test_the_class_of_a_text_in_its_category_is_its_answer() -> None:
    row = {"instruction": "Which class?", "output": "rejected", "category": "rejected"}
    assert read_row(row).unread == ()


@pytest.mark.parametrize("key", ["compute_loss", "need_loss", "cal_loss", "learn", "should_train", "calculate_loss"])
def test_a_message_says_in_many_words_that_it_is_not_trained(key: str) -> None:
    marks: list[dict[str, Any]] = [{key: False}, {key: 0}]
    if key == "learn":
        marks += [{"no_loss": True}, {"skip_loss": True}, {"no_train": 1}, {"mask_loss": "true"}]
    for mark in marks:
        [conversation] = to_conversations({"messages": [USER, ASSISTANT | mark, USER, ASSISTANT]})
        assert [message.loss for message in conversation.messages] == [None, 0.0, None, None]
    assert read_row({"messages": [USER, ASSISTANT | {key: True}]}).parts == read_row(SHAPES["messages"]).parts


def test_a_tag_of_kto_that_is_neither_is_refused() -> None:
    assert reason_of(SHAPES["alpaca"] | {"kto_tag": "maybe"}) == "`kto_tag` is `maybe`; expected true or false"


@SHAPE
@pytest.mark.parametrize("key", ["weight", "sample_weight", "loss_weight"])
def test_the_weight_of_a_row_is_that_of_its_answers(row: dict[str, Any], key: str) -> None:
    for value, weight in ((0.5, 0.5), ("2", 2.0)):
        [conversation] = to_conversations(row | {key: value})
        assert conversation.messages[-1].loss == weight
    assert read_row(row | {key: 1}).parts == read_row(row).parts
    assert read_row(row | {key: "2 kg"}).unread == (key,)
    for value in (0, False, "0"):
        shown = "false" if value is False else value
        assert reason_of(row | {key: value}) == f"the row is not to be trained (`{key}` is `{shown}`)"
    assert "expected a weight of at least 0" in reason_of(row | {key: -1})


@SHAPE
@pytest.mark.parametrize(
    "weight",
    [
        *(
            {"weight": value}
            for value in ("0,5", "1/2", "high", "50%", 1e300, "inf", [0.5, 1], [], {}, {"a": 1}, [None])
        ),
        *(
            {key: [0, 0]}
            for key in ("weights", "loss_mask", "train_mask", "loss_scale", "权重", "损失权重", "training_weight")
        ),
        {"sample_weight": "0%"},
        {"weight": [0]},
        {"sampleWeight": 0},
        {"loss_scale": 0},
        {"train_mask": [1, 0]},
        {"loss": 0.5},
        {"train": 2},
        {"mask": [0, 1]},
        {"mask": 1},
    ],
    ids=str,
)
def test_a_weight_of_a_row_that_cannot_be_honoured_is_refused(row: dict[str, Any], weight: dict[str, Any]) -> None:
    [(key, value)] = weight.items()
    if value in ([], {}, [None]):
        assert read_row(row | weight) == read_row(row)
        return
    assert f"`{key}`" in reason_of(row | weight)


@SHAPE
def test_masks_and_lists_that_weigh_alike_are_a_weight(row: dict[str, Any]) -> None:
    for nothing_new in ({"loss_mask": [1, 1]}, {"weights": [1]}, {"train_mask": True}, {"loss_scale": "1"}):
        assert read_row(row | nothing_new) == read_row(row)
    assert read_row(row | {"mask": "User"}).unread == ("mask",)
    assert to_conversations(row | {"loss_scale": [0.5]})[0].messages[-1].loss == 0.5


@pytest.mark.parametrize("mark", [{"weight": 0}, {"label": False}, {"flagged": True}, {"loss_scale": 0.5}])
def test_a_mark_of_a_part_of_a_message_is_refused(mark: dict[str, Any]) -> None:
    function = {"name": "f", "arguments": "{}"}
    answers: list[dict[str, Any]] = [
        {"tool_calls": [{"function": function} | mark]},
        {"tool_calls": [{"function": function | mark}]},
        {"function_call": function | mark},
        {"content": [{"type": "text", "text": "b"} | mark]},
    ]
    for answer in answers:
        assert "expected such marks in the message itself" in reason_of(
            {"messages": [USER, {"role": "assistant"} | answer, *([USER, ASSISTANT] if "content" in answer else [])]}
        )


@pytest.mark.parametrize("key", ["mask", "train_detail", "training_detail"])
def test_a_mask_of_another_tool_in_a_message_is_refused(key: str) -> None:
    value = 1 if key == "mask" else [{"begin_offset": 0, "end_offset": 1, "train": False}]
    assert f"message 1 has `{key}`" in reason_of({"messages": [USER, ASSISTANT | {key: value}]})


def test_a_mask_in_a_message_is_its_weight() -> None:
    for key in ("loss_mask", "train_mask"):
        [conversation] = to_conversations({"messages": [USER, ASSISTANT | {key: 0}, USER, ASSISTANT | {key: 1}]})
        assert [message.loss for message in conversation.messages] == [None, 0.0, None, 1.0]


def test_the_weight_of_a_row_multiplies_that_of_its_messages_and_leaves_context_untrained() -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT | {"weight": 0.5}], "weight": 4}
    assert [message.loss for message in to_conversations(row)[0].messages] == [None, 0.0, None, 2.0]
    assert (
        reason_of(row | {"sample_weight": 2})
        == "the row has `weight` 4.0 and `sample_weight` 2.0; expected one of them"
    )


@pytest.mark.parametrize("mark", [{"label": False}, {"is_good": 0}, {"rating": "bad"}, {"weight": 0}, {"train": False}])
def test_a_message_that_is_marked_as_bad_is_context(mark: dict[str, Any]) -> None:
    said = {"from": "gpt", "value": "b"}
    rows = [
        {"messages": [USER, ASSISTANT | mark, USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "a"}, said | mark, {"from": "human", "value": "a"}, said]},
    ]
    for row in rows:
        read = read_row(row)
        [conversation] = [part for part in read.parts if isinstance(part, Conversation)]
        assert [message.loss for message in conversation.messages] == [None, 0.0, None, None]
        assert read.unread == ()


@pytest.mark.parametrize("key", ["rejected_response", "rejected_messages", "rejected", "rejected_output"])
@pytest.mark.parametrize("value", ["c", [USER, REJECTED], REJECTED])
def test_a_rejected_answer_beside_a_good_one_is_not_used(key: str, value: Any) -> None:
    for name in ("messages", "sharegpt", "alpaca", "prompt-completion"):
        read = read_row(SHAPES[name] | {key: value})
        assert read.parts == read_row(SHAPES[name]).parts
        assert (read.unread, read.has_rejected) == ((), True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            SHAPES["messages"] | {"rejected_response": "b"},
            "`rejected_response` is the same as the chosen answer; which one is good is not clear",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "`rejected` is the same as the chosen answer; which one is good is not clear",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2},
            "`score_chosen` is 1, below `score_rejected`, 2; which answer is good is not clear",
        ),
        (
            SHAPES["alpaca"] | {"chosen": "c"},
            "the row has `chosen` but no rejected answer; which answer is good is not clear",
        ),
        (
            {"messages": [USER, ASSISTANT], "chosen": "c", "rejected": "d"},
            "`messages` ends with an answer and `chosen` is another; expected one of them",
        ),
        (
            {"prompt": "x", "chosen": [USER, ASSISTANT], "rejected": [USER, REJECTED]},
            "`prompt` is not what the chosen answer repeats; expected one question",
        ),
        (
            SHAPES["alpaca"] | {"response": "c"},
            "`output` and `response` are two answers; expected one of them, or a `format` that says which",
        ),
        (
            SHAPES["prompt-completion"] | {"answer": "c"},
            "`completion` and `answer` are two answers; expected one of them, or a `format` that says which",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": True}, "`rejected` is a boolean; expected an answer"),
        (
            SHAPES["messages"] | {"rejected": True},
            "the answer is marked as bad (`rejected` is `true`), so it is not trained",
        ),
    ],
)
def test_a_row_that_does_not_say_which_answer_is_good_is_refused(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


PAIRS = [
    SHAPES["preference"],
    {"prompt": "a", "chosen_response": "b", "rejected_response": "c"},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [REJECTED]},
    SHAPES["alpaca"] | {"rejected_response": "c"},
]


@pytest.mark.parametrize("row", PAIRS)
@pytest.mark.parametrize(
    "beside",
    [
        {"score_chosen": "1.5", "score_rejected": "2"},
        {"chosen_rating": 1, "rejected_rating": 2.0},
        {"chosen_reward": -2, "rejected_reward": "-1"},
        {"reward_chosen": [1], "reward_rejected": [2]},
        {"chosen score": "1", "rejected score": "2"},
        {"chosen.score": 1, "rejected.score": 2},
        {"preferred_score": 1, "non_preferred_score": 2},
        {"winner_votes": 1, "loser_votes": 2},
        {"chosen_rank": 2, "rejected_rank": 1},
        {"scores": {"chosen": 1, "rejected": 2}},
        {"scores": '{"chosen": 1, "rejected": 2}'},
        {"metadata": {"chosen_score": 1, "rejected_score": 2}},
        {"margin": -0.5},
        {"reward_margin": "-1"},
        {"winner": "rejected"},
        {"better": "Rejected"},
        {"chosen_label": False},
        {"chosen_label": False, "rejected_label": True},
        {"chosen_is_correct": None, "rejected_is_correct": True},
        {"chosen_quality": "poor"},
        {"chosen_helpfulness": 1, "rejected_helpfulness": 4},
        {"prob_chosen": 0.1, "prob_rejected": 0.9},
        {"chosen_elo": 900, "rejected_elo": 1100},
        {"chosen_win_rate": 0.4, "rejected_win_rate": 0.6},
        {"chosen_correctness": 1, "rejected_correctness": 2},
        {"chosen_toxicity": 0.9, "rejected_toxicity": 0.1},
        {"chosen_downvotes": 9, "rejected_downvotes": 1},
        *({"winner": name} for name in ("B", "b", "response_b", "2", "second")),
        {"preferred": "B"},
        *({key: True} for key in ("is_flipped", "flipped", "swapped", "label_flipped", "is_reversed")),
        {"is_flipped": "true"},
        {"label_swapped": True},
        {"preference_strength": -2},
        {"chosen_is_better": False},
        {"chosen_annotations": {"helpfulness": 1}, "rejected_annotations": {"helpfulness": 4}},
    ],
    ids=str,
)
def test_a_pair_that_its_scores_contradict_is_refused(row: dict[str, Any], beside: dict[str, Any]) -> None:
    assert reason_of(row | beside).endswith("; which answer is good is not clear")


@pytest.mark.parametrize("row", PAIRS)
@pytest.mark.parametrize(
    "beside",
    [
        {"score_chosen": 2, "score_rejected": 2},
        {"chosen_rating": "10", "rejected_rating": "9"},
        {"chosen_rank": 1, "rejected_rank": 2},
        {"chosen_length": 1, "rejected_length": 2},
        {"logps_chosen": -9, "logps_rejected": -8},
        {"chosen_model": "x", "rejected_model": "y"},
        {"margin": 0.1},
        {"winner": "model_a"},
        {"winner": "chosen"},
        {"winner": "A"},
        {"winner": "model_b"},
        {"winner": "tie"},
        {"chosen_annotations": {"helpfulness": 4, "x": 1}, "rejected_annotations": {"helpfulness": 1, "x": 2}},
        {"chosen_meta": {"length": 1}, "rejected_meta": {"length": 2}},
        {"is_flipped": False},
        {"chosen_loss": 5, "rejected_loss": 1},
        {"chosen_loss": 1, "rejected_loss": 0},
        {"chosen_log_prob": -9, "rejected_log_prob": -8},
        {"chosen_logprob": -9, "rejected_logprob": -8},
        {"chosen_helpfulness": 4, "rejected_helpfulness": 1},
        {"chosen_label": True, "rejected_label": False},
        {"scores": {"chosen": 2, "rejected": 1}},
    ],
    ids=str,
)
def test_a_pair_that_its_scores_bear_out_is_read(row: dict[str, Any], beside: dict[str, Any]) -> None:
    read = read_row(row | beside)
    assert (read.parts, read.unread) == (read_row(row).parts, tuple(beside))


def test_scores_inside_the_two_answers_are_compared() -> None:
    row = {"prompt": "a", "chosen": ASSISTANT | {"score": 1}, "rejected": REJECTED | {"score": 2}}
    assert reason_of(row) == "`chosen_score` is 1, below `rejected_score`, 2; which answer is good is not clear"


def test_a_format_that_is_named_says_which_of_two_answers_is_read() -> None:
    read = read_row(SHAPES["alpaca"] | {"response": "c"}, RowFormat(name="alpaca"))
    assert (read.parts, read.unread) == (read_row(SHAPES["alpaca"]).parts, ("response",))
    assert read_row(SHAPES["alpaca"] | {"response": "b"}).unread == ()


MEDIA_KEYS = """
    image images Images videos audios image_path input_audio image_1 image1 image_0 image_list images_list 图片 图片路径
    pic pics wav screenshot screenshot_path imageUrl image_file_names video_1 image_base64 mp3 商品图片 图片1 音频
    视频链接 audio_features picture_urls photo.id
"""


@SHAPE
@pytest.mark.parametrize("key", MEDIA_KEYS.split())
def test_what_the_model_would_not_see_or_hear_is_refused(row: dict[str, Any], key: str) -> None:
    reason = "expected text alone: the model would not see or hear it"
    assert reason_of(row | {key: ["a.jpg"]}) == f"the row has `{key}`; {reason}"
    for nothing in (None, [], "", "[]", [None]):
        assert read_row(row | {key: nothing}) == read_row(row)


@SHAPE
@pytest.mark.parametrize(
    "key", ["media", "frames", "image_left", "附图", "figure", "thumbnail", "attachments", "voice", "cover_url", "图"]
)
def test_what_may_be_seen_or_heard_is_refused_by_what_it_is(row: dict[str, Any], key: str) -> None:
    for value in ("a.jpg", ["x/a.PNG"], "https://a.b/c.mp4?d=1", {"path": "a.wav"}, "data:image/png;base64,aa"):
        assert "would not see or hear it" in reason_of(row | {key: value})
    for other in ("the press", 12, ["tv", "radio"], {"kind": "bar"}, "a.jpg is shown"):
        assert read_row(row | {key: other}).unread == (key,)


@SHAPE
def test_what_says_how_many_pictures_there_are_not_or_speaks_of_them_is_told(row: dict[str, Any]) -> None:
    for beside in (
        {"num_images": 0},
        {"image_caption": "a"},
        {"topic_picture_book": "x"},
        {"imagery": "x"},
        {"gifted": 1},
    ):
        assert read_row(row | beside).unread == tuple(beside)


@pytest.mark.parametrize("message", [{"image": "a.jpg"}, {"audio": {"id": "x"}}])
def test_a_message_with_something_to_see_or_hear_is_refused(message: dict[str, Any]) -> None:
    [key] = message
    reason = f"message 0 has `{key}`; expected text alone: the model would not see or hear it"
    assert reason_of({"messages": [USER | message, ASSISTANT]}) == reason
    said = [{"from": "human", "value": "a"} | message, {"from": "gpt", "value": "b"}]
    assert reason_of({"conversations": said}) == reason


@pytest.mark.parametrize(
    ("more", "doubt"),
    [
        ({"split": "test"}, "`split` is `test`"),
        ({"split": " Validation "}, "`split` is `Validation`"),
        ({"output": " NaN "}, "a text to be trained is `NaN`"),
        ({"output": "N/A"}, "a text to be trained is `N/A`"),
        *(
            ({"output": word}, f"a text to be trained is `{word}`")
            for word in ("#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#SPILL!")
        ),
        ({"system": "nan"}, "a system prompt is `nan`"),
        ({"instruction": "NaN"}, "a question is `NaN`"),
        *(
            (
                {"instruction": f"{place}\nwhat"},
                f"`{place}` stands in a question, and nothing is shown to the model there",
            )
            for place in ("<image>", "<video>", "<audio>", "<|image|>", "<|vision_start|>")
        ),
        (
            {"instruction": "what <|image|>"},
            "`<|image|>` stands in a question, and nothing is shown to the model there",
        ),
        ({"instruction": "what<image>"}, "`<image>` stands in a question, and nothing is shown to the model there"),
        *(
            (
                {"instruction": f"what is {place} here, and why?"},
                f"`{place}` stands in a question, and nothing is shown to the model there",
            )
            for place in (
                "<image>",
                "<image_1>",
                "<|begin_of_image|>",
                "<|image_pad|>",
                "<start_of_image>",
                "<image 1>",
                "<|imgpad|>",
                "[image]",
                "<IMAGE>",
                "[IMG]",
            )
        ),
        (
            {"system": "You see <image>."},
            "`<image>` stands in a system prompt, and nothing is shown to the model there",
        ),
        (
            {"instruction": "<img>a.jpg</img> what"},
            "`<img>` stands in a question, and nothing is shown to the model there",
        ),
    ],
)
def test_what_may_be_meant_otherwise_is_told(more: dict[str, Any], doubt: str) -> None:
    read = read_row(SHAPES["alpaca"] | more)
    assert (read.doubts, read.unread) == ((doubt,), ())
    assert [type(part) for part in read.parts] == [Conversation]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"prompt": "<image>\nWhat is shown?", "response": "a cat"}, "a text"),
        ({"text": "<image>\na cat"}, "a text"),
        ({"text": "before\n<image>\na cat"}, "a text"),
        ({"text": "<audio>a.wav</audio> says"}, "a text"),
        ({"text": "a cat <|image_pad|> sits"}, "a text"),
        ({"prompt": "What is <image>?", "completion": "a cat"}, "a question"),
    ],
)
def test_the_place_of_a_picture_in_any_text_is_told(row: dict[str, Any], where: str) -> None:
    [doubt] = read_row(row).doubts
    assert doubt.endswith(f"stands in {where}, and nothing is shown to the model there")


@pytest.mark.parametrize(
    "text", ["<html>\n<video>\n<source src=a></video>", "a <image> b", "<b>x</b>", "Use <audio> here"]
)
def test_tags_in_pages_are_not_told(text: str) -> None:
    assert read_row({"text": text}).doubts == ()


@pytest.mark.parametrize(
    "more",
    [
        {"split": "train"},
        {"instruction": "How is the <video> tag used?"},
        {"instruction": "How is `<image>` used?"},
        {"instruction": "What is wrong?\n<video><source src=a></video>"},
        {"instruction": "<video> 标签怎么用"},
        {"output": "no"},
        {"output": "<image> is a tag"},
        {"instruction": "What does <video controls> do?"},
        {"instruction": "Is a < b and <b>c</b>?"},
        {"instruction": "see ![x](y.png)"},
    ],
)
def test_what_is_meant_as_it_stands_is_not_told(more: dict[str, Any]) -> None:
    assert read_row(SHAPES["alpaca"] | more).doubts == ()


def test_the_result_of_a_call_that_is_not_there_is_told() -> None:
    function = {"name": "f", "arguments": "{}"}
    called = {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}
    for name, doubts in (("1", ()), ("99", ("`tool_call_id` names a call that the row does not have",))):
        result = {"role": "tool", "content": "o", "tool_call_id": name}
        assert read_row({"messages": [USER, called, result, ASSISTANT]}).doubts == doubts
    unnamed = {"role": "assistant", "tool_calls": [{"function": function}]}
    assert read_row({"messages": [USER, unnamed, result, ASSISTANT]}).doubts == ()


def test_a_transcript_as_the_answer_is_read_as_what_was_said() -> None:
    said = "\n\nHuman: {}\n\nAssistant: {}"
    row = {"prompt": "a", "chosen": said.format("a", "b"), "rejected": said.format("a", "c")}
    assert read_row(row).parts == read_row(SHAPES["preference"]).parts
    other = row | {"prompt": "x"}
    assert reason_of(other) == "`prompt` is not what the chosen answer repeats; expected one question"
    alone = {key: row[key] for key in ("chosen", "rejected")}
    assert read_row(alone).parts == read_row(SHAPES["preference"]).parts


@pytest.mark.parametrize(
    ("rejected", "is_told"),
    [
        ([USER, REJECTED], False),
        ([USER | {"content": "x"}, REJECTED], True),
        ([{"from": "human", "value": "x"}, {"from": "gpt", "value": "c"}], True),
        ([REJECTED], False),
        ("c", False),
        ("\n\nHuman: a\n\nAssistant: c", False),
        ("\n\nHuman: x\n\nAssistant: c", True),
    ],
)
def test_a_rejected_answer_to_another_question_is_told(rejected: Any, is_told: bool) -> None:
    read = read_row({"chosen": [USER, ASSISTANT], "rejected": rejected})
    assert read.doubts == (("the rejected answer is one to another question",) if is_told else ())


@SHAPE
def test_a_weight_that_is_a_slip_is_refused(row: dict[str, Any]) -> None:
    for value in (1e30, "1e7", 1_000_001):
        assert "expected a weight of at least 0 and at most 1,000,000, such as 0.5" in reason_of(
            row | {"weight": value}
        )
    assert to_conversations(row | {"weight": 1000})[0].messages[-1].loss == 1000
    assert (
        reason_of({"messages": [USER, ASSISTANT | {"weight": 1e30}]})
        == "`weight` of message 1 is `1e+30`; expected true, false or a weight of at least 0 and at most 1,000,000"
    )


@pytest.mark.parametrize("nothing", ["null", "None", "nan", " ", "{}"])
def test_metadata_that_says_nothing_calls_no_function(nothing: str) -> None:
    read = read_row({"messages": [USER, ASSISTANT | {"metadata": nothing}]})
    assert read.parts == read_row(SHAPES["messages"]).parts
