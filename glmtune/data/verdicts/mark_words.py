"""The words for good and bad: names of keys whose value judges an answer, and what may stand there."""

from __future__ import annotations

import re

_GOOD_IF_TRUE = """
    kto_tag kto_label good chosen selected preferred accepted accept desirable correct is_positive is_right is_better
    loss train training trainable use_for_training use_in_training include_in_training learn
    thumbs_up thumbsup liked upvoted approved approve valid keep kept use usable include included enabled active ok
    safe harmless helpful acceptable pass passed passing success succeeded successful qualified eligible recommended
    human_verified human_approved good_quality high_quality
    有效 采用 采纳 采信 可用 合格 通过 正确 保留 使用 启用 安全 审核通过 点赞 合规 达标 可信 成功 入库
"""
GOOD_IF_TRUE = frozenset(_GOOD_IF_TRUE.split())
_BAD_IF_TRUE = """
    bad badcase bad_case rejected reject undesirable unacceptable wrong incorrect invalid is_negative low_quality
    skip skipped ignore ignored exclude excluded delete deleted discard discarded drop dropped remove removed
    filtered filtered_out hidden hide disabled banned blocked flagged masked mask_out
    thumbs_down thumbsdown dislike disliked downvote downvoted disapproved unapproved reported
    blacklisted blocklisted denylisted blacklist blocklist withdrawn retracted revoked obsolete deprecated junk trash
    trashed garbage corrupt corrupted broken useless unusable unused unqualified failed failure fail
    outdated suppressed quarantined removal del bad_quality poor_quality
    not_used not_use do_not_use dont_use no_use to_delete to_be_deleted to_be_removed to_remove
    spam toxic unsafe harmful abusive nsfw hallucinated hallucination
    删除 作废 废弃 丢弃 剔除 排除 弃用 隐藏 屏蔽 违规 有害 有毒 错误 垃圾 垃圾信息 跳过 忽略 无效 拒绝 驳回 不合格 点踩
    撤回 撤销 过时 过期 失效 停用 禁用 举报 拉黑 失败 不可用 不合规 不达标 待删除
"""
BAD_IF_TRUE = frozenset(_BAD_IF_TRUE.split())
ASIDE = re.compile(
    r"(?:(?:should|must|to|needs?|needs?_to|can|may|marked_as|mark_as|marked|flagged_as|flagged|labell?ed_as)_)?(?:be_)?"
    r"(.+?)(?:_(?:flag|mark))?"
)
"""What may stand around a mark without changing what it says: `should_skip`, `delete_flag`."""
BY_WHOM = re.compile(
    r"(?:(?:qa|qc|review|reviewer|audit|check|quality_check|human|admin|expert|editor|llm|gpt4?|judge|auto|manually|manual"
    r"|moderator|annotator)_)?(.+?)(?:_(?:review|qa|qc|audit|check|by_(?:reviewer|human|admin|editor|annotator|moderator)))?"
)
"""Who said so; a number there may count them."""
PASSED = re.compile(r"(?:人工)?(?:审核|质检|复核|验收|审批)?(?:是否)?(?:已)?通过(?:审核|质检|复核|验收|审批)?")
SWITCH_WORDS = frozenset(("loss", "train", "training", "trainable", "learn"))
"""Marks that mean something else behind other words: `test_loss`."""
_VERBS = "use keep include accept train learn skip ignore exclude delete discard drop remove hide hidden mask masked"
VERBS = frozenset(_VERBS.split())
"""Marks that are done to many things but rows: `ignore_case`."""
ONLY_TRUE_OR_FALSE = {"flag": False}
"""Keys that are a mark where a boolean stands there, and what that says: 1 may be one of many flags."""
NEVER_WHEN = frozenset(("reported", "failed", "fail", "failure", "reject", "dislike", "downvote"))
"""Marks whose time, author or reason says something else: `reported_by` is a newspaper."""

_TRAIN = r"(?:train(?:ing|able|ed)?|learn(?:ing|able)?|sft|fine_?tun(?:e|ing)|loss)"
GOOD_TRAINING = re.compile(
    r"(?:(?:should|can|may|must|to|be|for|in|with|needs?|used?|include|included|keep|allow|allowed|enable|enabled|ok|good"
    r"|suitable|usable|valid|fit|ready|eligible|compute|calc|calculate|cal|apply|do)_)+"
    rf"{_TRAIN}(?:_set|_data)?|train(?:ing)?_flag"
    r"|(?:可|能|要|需要?|可以|应)?(?:用于|参与|进入|加入|纳入|适合|用作|计入|计算)?(?:训练集?|微调|学习|损失)"
)
"""Keys that say of the row whether it is trained: `should_train`, `compute_loss`, `参与训练`."""
BAD_TRAINING = re.compile(
    r"(?:no|not|non|do_not|must_not|should_not|may_not|dont|don_t|never|skip|skipped|ignore|ignored|exclude|excluded|omit|omitted|without|mask|masked"
    r"|disable|block|blocked|remove|removed|hold_out|held_out|forbid|forbidden)_(?:(?:to|for|from|in|be|used?|the"
    rf"|compute|calc|suitable|usable|valid|fit)_)*{_TRAIN}(?:_set|_data)?"
    r"|(?:不|勿|禁止|跳过|排除|禁用)(?:用于|参与|进入|加入|纳入|计入|计算)?(?:训练集?|微调|学习|损失)"
)

_VERDICTS = """
    label verdict feedback user_feedback human_feedback human_label vote votes thumbs rating judgement judgment judge
    quality state status review evaluation assessment acceptance approval validity usability
    annotation_status row_status data_status
    标签 标注 好坏 状态 反馈 评价 评分 有效性 可用性 合格性 正确性 判定 评判 裁决 数据状态 评级 标记 处理意见
"""
VERDICTS = frozenset(_VERDICTS.split())
"""Keys whose value may be a word for good or bad, and may be something else."""
_JUDGED_OVER = """
    review audit check qa qc moderation annotation approval quality inspection screening filter filtering verification
    validation evaluation eval judge judgement judgment grading acceptance vetting curation labeling labelling label
"""
_BY = (
    r"(?:human|reviewer|annotator|expert|admin|editor|llm|gpt4?|ai|auto|final|overall|manual|answer|response|output|row"
    r"|sample|record|item|message|completion|conversation|dialog|dialogue|content)"
)
JUDGEMENT = re.compile(
    rf"(?:{_BY}_)*(?:{'|'.join(_JUDGED_OVER.split())})(?:_(?:status|result|state|verdict|decision|outcome|opinion"
    r"|conclusion|check))"
    rf"|(?:{_BY}_)+(?:verdict|feedback|vote|rating|judgement|judgment|judge|quality|status|state|review|evaluation"
    r"|assessment|decision|opinion|reaction|check|qa|qc|audit)"
    r"|user_(?:verdict|rating|vote|reaction|review|opinion)|qa|qc|audit|moderation|inspection|screening|vetting|grading|grader|(?:quality|safety|fact|human|manual)_check"
    r"|(?:人工|机器|最终|一审|二审|初审|终审|用户|专家|模型|数据|样本|回答|答案)?"
    r"(?:审核|审批|初审|复审|终审|复核|质检|验收|评审|抽检|检查|校验|标注|评价|反馈|判定|评判|质量)(?:意见|结论|结果|状态|情况|标记)?"
)
"""Keys of the same kind that are put together: `human_verdict`, `qc_status`, `审核意见`."""
BY_TRUTH = re.compile(r".*(?:status|state|result|verdict|judgement|judgment|意见|结论|结果|状态|判定)")
"""Those of them whose `false` and 0 judge, too: `human_review: false` says that nobody looked."""
LIKE_REMARKS = re.compile(r".*_(?:decision|outcome|opinion|conclusion)")
"""Those of them that may be about anything."""
_REMARKS = """
    result results outcome conclusion check decision disposition opinion reaction reactions grade test_result
    test_results note notes remark remarks comment comments emoji
    结果 结论 处理结果 处理状态 备注 说明 批注
"""
REMARKS = frozenset(_REMARKS.split())
"""Keys that hold anything, among it words that can only judge: `result: fail`, `备注: 作废`."""
_VOTE_COUNTS = "votes vote_count vote_score net_votes upvotes likes karma"
VOTE_COUNTS = frozenset(_VOTE_COUNTS.split())
"""Keys whose value below 0 says that most people think it bad; a score below 0 may be a logarithm."""
STARS = frozenset(("stars", "star", "star_rating", "num_stars", "user_stars", "星级", "评星"))
"""Keys whose 1 is the worst; in a row of a repository they are its own, and in one of plain text a class."""
RATINGS = frozenset(("rating", "评分", "评级", "user_rating", "human_rating"))
"""Keys whose `1 star` and `1/5` are the worst; of a bare 1 nobody knows of how many."""
ONE_STAR = re.compile(r"(?:1(?:\.0)?(?:\s*(?:/\s*[5１]|stars?|星|颗星))?|[★⭐]️?[☆✩]*|一星)", re.IGNORECASE)
REPOSITORY = re.compile(r"(?:max_|gh_|github_|git_)?(?:repo|repository|forks|commit)(?:_.*)?|.*_repo(?:_.*)?")

_FILING = """
    split subset bucket partition set data_split set_type group folder bin queue stage pool usage purpose
    数据集 数据集划分 划分 用途
"""
FILING = frozenset(_FILING.split())
"""Keys that say how a row is filed: a bin is a place, too."""
KINDS = frozenset(("kind", "category", "type", "data_type", "sample_type", "row_type", "类别", "类型", "分类"))
"""Keys that say what kind of a row it is; in plain text a class."""
TAGS = frozenset(("tags", "tag", "flags", "flag", "marks", "labels", "标记", "标签列表"))
"""Keys that hold several words."""

_HOLDERS = """
    labels meta metadata meta_data info extra extra_info extras attributes attrs annotation annotations moderation
    openai_moderation flags tags marks properties quality_info scores_info audit qa qc check checks
    reviews evaluations judgements judgments verdicts assessments audits feedbacks inspection reactions
    元数据 附加信息 标注信息 审核信息
"""
HOLDERS = VERDICTS.union(_HOLDERS.split())
"""Keys whose value may be an object with marks inside."""
_LISTS_OF_MARKS = """
    moderation openai_moderation annotations reviews evaluations judgements judgments verdicts assessments audits
    feedbacks checks votes review evaluation annotation feedback 标注 审核
"""
LISTS_OF_MARKS = frozenset(_LISTS_OF_MARKS.split())
"""Those of them whose value may be a list of such objects: one for each message, or for each person who looked."""

NUMBERED = GOOD_IF_TRUE | BAD_IF_TRUE | {"label", "标签", "标注", "好坏"}
"""Keys whose 1 is true and whose 0 is false."""

_GOOD_WORDS = """
    true yes y t good accept accepted chosen choose desirable preferred right correct up thumbs_up thumbsup
    like liked positive approve approved valid pass passed keep kept ok okay usable
    好 对 是 真 正确 合格 通过 有效 保留 可用 采纳 优 优质 已通过 审核通过 正常 👍 ✓ ✔ ✅ √
"""
GOOD_WORDS = frozenset(_GOOD_WORDS.split())
_ONLY_BAD = """
    rejected bad deleted discarded dropped excluded unused ignored skipped removed trashed trash junk garbage withdrawn
    retracted blacklisted blocklisted unusable not_approved disapproved unapproved low_quality bad_quality poor_quality
    badcase do_not_use do_not_train dont_use dont_train no_train not_for_training not_used to_delete to_be_deleted
    to_be_removed undesirable dispreferred
    不合格 作废 已作废 废弃 已废弃 已删除 已丢弃 丢弃 剔除 已剔除 驳回 已驳回 被拒 被拒绝 已拒绝 不通过 未通过
    审核不通过 低质量 劣质 不可用 弃用 已弃用 无效数据 坏例 坏样本 待删除 已屏蔽 不采用 不采纳 未采纳
    不训练 不用于训练 勿用 已撤回
"""
ONLY_BAD = frozenset(_ONLY_BAD.split())
"""Words that can only mean that a row is not wanted, wherever they stand alone."""
_BAD_WORDS = """
    false no n f bad reject rejected undesirable dispreferred non_preferred unacceptable wrong incorrect
    down thumbs_down thumbsdown dislike disliked negative fail failed failure
    delete deleted discard discarded drop dropped remove removed exclude excluded skip skipped ignore ignored
    hide hidden invalid flagged banned blocked disapproved unapproved not_approved denied declined unusable
    low_quality spam toxic unsafe harmful
    withdraw revoked obsolete deprecated void voided corrupt corrupted broken useless terrible awful worse worst
    not_good not_ok not_useful not_helpful unhelpful unsatisfactory inaccurate inappropriate disqualified unqualified
    downvote downvoted no_good ng needs_revision needs_rework needs_fix
    差 坏 错 否 假 错误 不好 不对 不合格 不通过 未通过 审核不通过 拒绝 驳回 已驳回 删除 已删除 作废 已作废 废弃 已废弃
    无效 丢弃 剔除 屏蔽 已屏蔽 隐藏 不可用 不采用 不采纳 不保留 违规 有害 劣 劣质 差评 低质量 👎 ✗ ✘ ❌ ×
    不予通过 不合规 不达标 未达标 不可信 未过审 退回 打回 返工 停用 禁用 失效 撤回 不行 很差 极差 踩 点踩 不满意
"""
BAD_WORDS = ONLY_BAD.union(_BAD_WORDS.split())
SHORT_WORDS = frozenset(("no", "n", "f", "ng", "否"))
"""Those of them that begin many a sentence: `feedback: "No, thanks"`."""
CLASSES = frozenset(("positive", "negative", "spam", "toxic", "unsafe", "harmful", "valid", "invalid"))
"""Words that name a class of texts as often as they judge an answer; not heeded under `CLASS_KEYS`."""
FACTS = frozenset(("false", "wrong", "incorrect", "错", "错误", "假", "否", "no", "n", "f", "down", "worse", "worst"))
"""Words for what is not so, or goes down: of a text, or of what a row is about, they judge no answer."""
CLASS_KEYS = frozenset(("label", "rating", "review", "标签", "标注", "评价"))
_REMARK_WORDS = """
    fail failed failure reject discard delete dislike disliked downvote downvoted thumbs_down thumbsdown
    👎 ❌ ✗ ✘ 拒绝 删除 无效 踩 点踩
"""
REMARK_WORDS = ONLY_BAD.union(_REMARK_WORDS.split())
"""What judges under `REMARKS`."""
FILING_WORDS = ONLY_BAD | {"discard", "reject", "rejects", "exclude", "drop", "delete", "skip", "ignore", "remove"}
"""What judges under `FILING`, where a word such as `delete` is no kind of task."""
POOR = frozenset(("low", "poor", "very_low", "very_poor", "低", "很差", "较差", "很低"))
"""Words for a bad quality, and for much else under other keys."""
QUALITY_KEYS = frozenset(("quality", "质量"))
